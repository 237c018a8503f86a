"""Prepared and encoded data: the codes of pictures, clips and utterances with what they show or say.

Each class gives access to one split. Held-out concepts never enter the training split, and neither does the style that
is kept for evaluation.

Shapes: M pictures or clips, V views of each, U utterances, N codes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from typing_extensions import TypedDict

from unimodal.files import read_json_as
from unimodal.sequence.document import Image, Video

T = TypeVar("T")

TRAINING_STYLES = ("noto", "fluent3d", "fluentflat")
EVALUATION_STYLES = ("twemoji",)  # never trained on, whatever the concept


def make_code_point_key(name: str) -> str:
    """The key of an emoji by its code points: `A9-FE0F` → `00a9`, lower case, 4 digits, no presentation selector."""
    return "-".join(part.zfill(4) for part in name.lower().split("-") if part != "fe0f")


@dataclass(frozen=True)
class Concept:
    """What a picture or clip shows. `family` joins the genders of one concept; the split is by family."""

    id: int
    key: str
    family: str
    label: str
    tags: tuple[str, ...]
    group: str
    split: str


def load_concepts(path: str | Path) -> list[Concept]:
    """`concepts.json` of `tools/prepare_images.py`; ids are positions in the list."""
    concepts = _read_entries(list[Concept], Path(path), "python tools/prepare_images.py")
    if [concept.id for concept in concepts] != list(range(len(concepts))):
        raise ValueError(f"{path}: concept ids are not 0, 1, 2, …; prepare the pictures again")
    return concepts


class EncodedConcepts:
    """Pictures or clips by their codes, with the concepts they show, restricted to one split and some styles.

    codes: int [M, N], [M, V, N] or, of several groups, [M, V, N, G] (view 0 is the item itself), concept: int [M],
    style: str [M] or None.
    """

    def __init__(
        self,
        codes: np.ndarray,
        concept: np.ndarray,
        concepts: Sequence[Concept],
        style: np.ndarray | None = None,
        split: str = "train",
        styles: Sequence[str] = TRAINING_STYLES,
        part: type[Image] | type[Video] = Image,
    ) -> None:
        if (
            codes.ndim not in (2, 3, 4)
            or len(codes) != len(concept)
            or (style is not None and len(style) != len(concept))
        ):
            raise ValueError(
                f"codes {list(codes.shape)} do not belong to {len(concept)} items: encode the prepared arrays again"
            )
        if split == "train" and (kept := set(styles) & set(EVALUATION_STYLES)):
            raise ValueError(f"style {sorted(kept)[0]!r} is for evaluation only; choose from {TRAINING_STYLES}")
        self.part: type[Image] | type[Video] = part
        self._codes = codes[:, None] if codes.ndim == 2 else codes  # [M, V, N] or [M, V, N, G]
        self.concepts = concepts  # of every split
        self._concept = np.asarray(concept)
        self._style = style
        self.items = np.array(  # the rows of the given arrays that this split and these styles have
            [
                row
                for row, shown in enumerate(self._concept)
                if concepts[shown].split == split and (style is None or str(style[row]) in styles)
            ],
            dtype=np.int64,
        )

    def __len__(self) -> int:
        return len(self.items)

    @property
    def num_views(self) -> int:
        return self._codes.shape[1]

    def get_concept(self, item: int) -> Concept:
        return self.concepts[self._concept[self.items[item]]]

    def get_style(self, item: int) -> str:
        """The style of an item; "" for clips, which have none."""
        return "" if self._style is None else str(self._style[self.items[item]])

    def get_view(self, item: int, number: int = 0) -> np.ndarray:
        """Codes int64 [N] or [N, G] of one view; numbers past the last view start again at 0."""
        return self._codes[self.items[item], number % self.num_views].astype(np.int64)


class Utterance(TypedDict):
    """One utterance: its words, its voice, and its split (`train` or another)."""

    text: str
    voice: str
    split: str


class EncodedSpeech:
    """Utterances by their codes, as `recipes/encode_media.py` writes them: int [ΣN] or [ΣN, G], offsets [U + 1]."""

    def __init__(
        self,
        codes: np.ndarray,
        offsets: np.ndarray,
        utterances: Sequence[Utterance],
        split: str = "train",
        max_codes: int | None = None,
    ) -> None:
        if len(offsets) != len(utterances) + 1 or int(offsets[-1]) != len(codes):
            raise ValueError(
                f"{len(offsets) - 1} code spans do not belong to {len(utterances)} utterances; encode again"
            )
        self._flat, self._offsets, self._utterances = codes, offsets, utterances
        lengths = np.diff(offsets)
        self.items = np.array(
            [
                row
                for row, utterance in enumerate(utterances)
                if utterance["split"] == split and 0 < lengths[row] <= (max_codes or np.inf)
            ],
            dtype=np.int64,
        )

    def __len__(self) -> int:
        return len(self.items)

    def get_text(self, item: int) -> str:
        return str(self._utterances[self.items[item]]["text"])

    def get_voice(self, item: int) -> str:
        return str(self._utterances[self.items[item]]["voice"])

    def get_codes(self, item: int) -> np.ndarray:
        """Codes int64 [N] or [N, G] of an utterance."""
        row = self.items[item]
        return self._flat[self._offsets[row] : self._offsets[row + 1]].astype(np.int64)


def load_pictures(
    prepared: Path, codes: np.ndarray, split: str = "train", styles: Sequence[str] = TRAINING_STYLES
) -> EncodedConcepts:
    """The pictures of `images.npz` by their codes, int [M, N] or [M, V, N] in its order."""
    arrays = _load_arrays(prepared / "images.npz", "python tools/prepare_images.py")
    concepts = load_concepts(prepared / "concepts.json")
    return EncodedConcepts(codes, arrays["concept"], concepts, arrays["style"], split, styles, Image)


def load_clips(prepared: Path, codes: np.ndarray, split: str = "train") -> EncodedConcepts:
    """The clips of `clips.npz` by their codes, int [C, N] or [C, V, N] in its order."""
    arrays = _load_arrays(prepared / "clips.npz", "python tools/prepare_clips.py")
    return EncodedConcepts(codes, arrays["concept"], load_concepts(prepared / "concepts.json"), split=split, part=Video)


def load_speech(
    folder: Path, split: str = "train", max_codes: int | None = None, sha256: str | None = None
) -> EncodedSpeech:
    """`utterances.json` and `codes.npz` of the speech folder; sha256: of the tokenizer that has to have made them."""
    arrays = read_codes(folder / "codes.npz", sha256)
    return EncodedSpeech(arrays["codes"], arrays["offsets"], read_utterances(folder), split, max_codes)


def read_utterances(folder: Path) -> list[Utterance]:
    """`utterances.json` of the speech folder. Raises ValueError, in one line, where it is missing."""
    return _read_entries(list[Utterance], folder / "utterances.json", "python tools/make_speech.py pack")


def count_items(path: Path) -> int:
    """How many items a file of prepared media lists: `.npz` by `concept`, `.jsonl` by lines, `.json` by entries."""
    if path.suffix == ".npz":
        return len(_load_arrays(path, "the tool that prepares it")["concept"])
    if path.suffix == ".jsonl":
        return len(path.read_text("utf-8").splitlines())
    return len(json.loads(path.read_text("utf-8")))


def read_codes(path: Path, sha256: str | None = None) -> Mapping[str, np.ndarray]:
    """The arrays of a file that `recipes/encode_media.py` wrote: `codes`, and `offsets` where lengths differ.

    sha256: of the tokenizer that must have made them. Raises ValueError, in one line, for a file that is missing and
    for codes of another tokenizer.
    """
    command = "python recipes/encode_media.py"
    arrays = _load_arrays(path, command)
    made_by = str(arrays["sha256"]) if "sha256" in arrays else None
    if sha256 is not None and made_by not in (None, sha256):
        raise ValueError(
            f"{path} holds codes of another tokenizer ({str(made_by)[:12]}, not {sha256[:12]}); run `{command}` again"
        )
    return arrays


def _read_entries(kind: type[T], path: Path, command: str) -> T:
    if not path.is_file():
        raise ValueError(f"{path} is missing; make it with `{command}`")
    return read_json_as(kind, path, f"make it with `{command}`")


def _load_arrays(path: Path, command: str) -> Mapping[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if name not in ("pixels", "frames")}
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; make it with `{command}`") from None
