"""Sounds that have a name: effects and notes, as `tools/prepare_sounds.py` writes them, by their codes, and as
documents: what is it, which instrument, which note; and requests to make one.

Shapes: N codes, G groups; samples are int16 at 16 kHz.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unimodal.data.order import make_generator
from unimodal.data.sources import make_informal, pick
from unimodal.data.words import find_named
from unimodal.files import read_json_as
from unimodal.sequence.document import Audio, Document, Part, Text, Turn

PREPARE = "python tools/prepare_sounds.py"

ASK = ("What do you hear?", "What is this sound?", "What sound is this?", "Name the sound.")
ASK_INSTRUMENT = ("Which instrument is this?", "What instrument is playing?", "What is playing?")
ASK_NOTE = ("Which note is it?", "What note is played?", "And which note?")
WISH_EFFECT = ("The sound of a {name}.", "Make the sound of a {name}.", "Let me hear a {name}.", "A {name}, a sound.")
WISH_NOTE = ("Play {note} on the {name}.", "A {name} playing {note}.", "{name}, {note}, a sound.")


@dataclass(frozen=True)
class NamedSound:
    """name: what is heard, `crow` or `flute, C4`. kind: `effect` or `note`. sample: the recording, or the instrument of
    a note. split: `train`; `variant`, `sample` or `combination` where it is held out. start, num_samples: its place in
    `audio.int16`."""

    id: str
    name: str
    kind: str
    sample: str
    note: str
    split: str
    start: int = 0
    num_samples: int = 0

    @property
    def source(self) -> str:
        """What makes the sound: the instrument of a note, or the effect."""
        return self.sample if self.kind == "note" else self.name

    @property
    def recording(self) -> str:
        """What all takes of the sound have in common: the recording, or the instrument and the note."""
        return f"{self.sample}, {self.note}" if self.kind == "note" else self.sample

    def is_named_by(self, answer: str, names: Iterable[str]) -> bool:
        """Whether an answer names what makes the sound, among all names: `electric guitar` is no `guitar`."""
        return self.source in find_named(answer, names)


def read_sounds(folder: Path) -> list[NamedSound]:
    """`sounds.json` of a folder of prepared sounds. Raises ValueError, in one line, where it is missing."""
    path = folder / "sounds.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; make it with `{PREPARE}`")
    return read_json_as(list[NamedSound], path, f"make it with `{PREPARE}`")


class EncodedSounds:
    """The sounds of one split by their codes, int [ΣN] or [ΣN, G] with offsets [S + 1] into them."""

    def __init__(
        self, codes: np.ndarray, offsets: np.ndarray, sounds: Sequence[NamedSound], split: str = "train",
        max_codes: int | None = None,
    ) -> None:  # fmt: skip
        if len(offsets) != len(sounds) + 1 or int(offsets[-1]) != len(codes):
            raise ValueError(f"{len(offsets) - 1} spans of codes do not belong to {len(sounds)} sounds; encode again")
        self._codes, self._offsets, self._sounds = codes, offsets, sounds
        lengths = np.diff(offsets)
        self.items = [
            row
            for row, sound in enumerate(sounds)
            if sound.split == split and 0 < lengths[row] <= (max_codes or np.inf)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def get_sound(self, item: int) -> NamedSound:
        return self._sounds[self.items[item]]

    def get_codes(self, item: int) -> np.ndarray:
        """Codes int64 [N] or [N, G] of a sound."""
        row = self.items[item]
        return self._codes[self._offsets[row] : self._offsets[row + 1]].astype(np.int64)


class SoundTask:
    """What both tasks share. name: of the task."""

    name: str

    def __init__(self, sounds: EncodedSounds, seed: int = 0) -> None:
        self.sounds, self.seed = sounds, seed

    def __len__(self) -> int:
        return len(self.sounds)

    def get_group(self, item: int) -> str:
        return self.sounds.get_sound(item).source

    def make_document(self, item: int, draw: int = 0) -> Document:
        draws = make_generator(self.seed, self.name, item, draw)
        return self.write(self.sounds.get_sound(item), Audio(codes=self.sounds.get_codes(item)), draws)

    def write(self, sound: NamedSound, audio: Audio, draws: random.Random) -> Document:
        """The document of a sound, in the wording that a generator chooses."""
        raise NotImplementedError


class SoundToName(SoundTask):
    """Asks what a sound is; of a note also which instrument it is and, in a second turn, which note."""

    name = "sound_to_name"

    def write(self, sound: NamedSound, audio: Audio, draws: random.Random) -> Document:
        asked = [(pick(draws, ASK), sound.name)]
        if sound.kind == "note" and draws.random() < 0.5:
            asked = [(pick(draws, ASK_INSTRUMENT), sound.sample), (pick(draws, ASK_NOTE), sound.note)]
        turns: list[Turn] = []
        for question, answer in asked:
            parts: list[Part] = [Text(make_informal(draws, question))]
            if not turns:
                parts.insert(0 if draws.random() < 0.75 else 1, audio)
            turns += [Turn("user", parts), Turn("assistant", answer)]
        return Document(turns)


class NameToSound(SoundTask):
    """Asks for a sound by its name; the sound is the answer."""

    name = "text_to_sound"

    def write(self, sound: NamedSound, audio: Audio, draws: random.Random) -> Document:
        wish = pick(draws, WISH_NOTE if sound.kind == "note" else WISH_EFFECT).format(
            name=sound.source, note=sound.note
        )
        return Document([Turn("user", make_informal(draws, wish)), Turn("assistant", [audio])])
