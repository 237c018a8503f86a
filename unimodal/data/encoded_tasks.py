"""The tasks that a small model is trained on, each a source of documents, from one folder of prepared, encoded data.

Only the files of the tasks that are asked for are read, and codes of another tokenizer than the one in use are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np

from unimodal.data import encoded_media, named_sounds, sources
from unimodal.data.scenes.scene import read_scenes, read_things
from unimodal.data.scenes.sources import EncodedScenes, list_scene_sources

IMAGE_TASKS = ("image_to_name", "text_to_image", "text_to_styled_image")
CLIP_TASKS = ("video_to_name", "text_to_video")
SPEECH_TASKS = ("audio_to_text", "text_to_audio")
SOUND_TASKS = ("sound_to_name", "text_to_sound")
SCENE_TASKS = ("scene_to_text", "text_to_scene", "scene_talk")
MOVE_TASKS = ("moves_to_text", "text_to_moves")
#: task → the medium whose tokenizer made its codes
MEDIUM_OF_TASK = {
    **dict.fromkeys((*IMAGE_TASKS, *SCENE_TASKS), "image"),
    **dict.fromkeys((*CLIP_TASKS, *MOVE_TASKS), "video"),
    **dict.fromkeys((*SPEECH_TASKS, *SOUND_TASKS), "audio"),
}
#: medium of codes → their files, in the folder of the prepared data, with the tasks that read each
CODE_FILES = {
    "image_codes.npz": IMAGE_TASKS, "clip_codes.npz": CLIP_TASKS, "speech/codes.npz": SPEECH_TASKS,
    "sounds/codes.npz": SOUND_TASKS, "scenes/scene_codes.npz": SCENE_TASKS, "scenes/move_codes.npz": MOVE_TASKS,
}  # fmt: skip
#: file of codes → the file that lists what was encoded, item by item
WORD_FILES = {
    "image_codes.npz": "images.npz", "clip_codes.npz": "clips.npz", "speech/codes.npz": "speech/utterances.json",
    "sounds/codes.npz": "sounds/sounds.json", "scenes/scene_codes.npz": "scenes/scenes.jsonl",
    "scenes/move_codes.npz": "scenes/moves.jsonl",
}  # fmt: skip


def open_tasks(
    folder: Path,
    names: Collection[str],
    sha256: Mapping[str, str],
    default_style: str = "noto",
    max_audio_codes: int | None = None,
) -> dict[str, sources.Source]:
    """The tasks of these names, of the training split. sha256: medium → the hash of its tokenizer.

    default_style: the drawing style of pictures that are asked for without one. max_audio_codes: longer sounds are left
    out. Raises ValueError, in one line, for an unknown task, a medium without a tokenizer, and missing or other codes.
    """
    for name in names:
        if name not in MEDIUM_OF_TASK:
            raise ValueError(f"there is no task {name!r}; choose from {', '.join(MEDIUM_OF_TASK)}")
        if MEDIUM_OF_TASK[name] not in sha256:
            raise ValueError(f"the task {name} needs a tokenizer of {MEDIUM_OF_TASK[name]}; name its folder")

    def read(file: str) -> Mapping[str, np.ndarray]:
        return encoded_media.read_codes(folder / file, sha256[MEDIUM_OF_TASK[CODE_FILES[file][0]]])

    return _open_sources(folder, names, read, default_style, max_audio_codes)


def open_for_texts(folder: Path) -> list[sources.Source]:
    """The sources of every task whose media are prepared, for their texts: their media have one code each, a zero."""
    there = [task for file, tasks in CODE_FILES.items() if (folder / WORD_FILES[file]).is_file() for task in tasks]

    def read(file: str) -> Mapping[str, np.ndarray]:
        count = encoded_media.count_items(folder / WORD_FILES[file])
        if WORD_FILES[file].endswith(("utterances.json", "sounds.json")):
            return {"codes": np.zeros(count, np.int32), "offsets": np.arange(count + 1)}
        return {"codes": np.zeros((count, 1), np.int32)}

    return list(_open_sources(folder, there, read).values())


def _open_sources(
    folder: Path,
    names: Collection[str],
    read: Callable[[str], Mapping[str, np.ndarray]],
    default_style: str = "noto",
    max_audio_codes: int | None = None,
) -> dict[str, sources.Source]:
    """read: from a file of CODE_FILES to its arrays."""
    found: list[sources.Source] = []
    if not {*names}.isdisjoint(IMAGE_TASKS):
        codes = read("image_codes.npz")["codes"]
        others = tuple(sorted({*encoded_media.TRAINING_STYLES} - {default_style}))
        found += [
            sources.MediaToName(encoded_media.load_pictures(folder, codes)),
            sources.NameToMedia(encoded_media.load_pictures(folder, codes, styles=(default_style,)), style_share=0.2),
            sources.NameToMedia(
                encoded_media.load_pictures(folder, codes, styles=others), style_share=1.0, name="text_to_styled_image"
            ),
        ]
    if not {*names}.isdisjoint(CLIP_TASKS):
        codes = read("clip_codes.npz")["codes"]
        clips = encoded_media.load_clips(folder, codes)
        found += [sources.MediaToName(clips), sources.NameToMedia(clips)]
    if not {*names}.isdisjoint(SPEECH_TASKS):
        arrays, utterances = read("speech/codes.npz"), encoded_media.read_utterances(folder / "speech")
        speech = encoded_media.EncodedSpeech(arrays["codes"], arrays["offsets"], utterances, max_codes=max_audio_codes)
        found += [sources.SpeechToText(speech), sources.TextToSpeech(speech)]
    if not {*names}.isdisjoint(SOUND_TASKS):
        arrays = read("sounds/codes.npz")
        listed = named_sounds.read_sounds(folder / "sounds")
        sounds = named_sounds.EncodedSounds(arrays["codes"], arrays["offsets"], listed, max_codes=max_audio_codes)
        found += [named_sounds.SoundToName(sounds), named_sounds.NameToSound(sounds)]
    pictures = moves = None
    if not {*names}.isdisjoint(SCENE_TASKS):
        pictures = _open_scenes(folder, "scene", read)
    if not {*names}.isdisjoint(MOVE_TASKS):
        moves = _open_scenes(folder, "move", read)
    found += list_scene_sources(pictures, moves)
    return {source.name: source for source in found if source.name in names}


def _open_scenes(folder: Path, kind: str, read: Callable[[str], Mapping[str, np.ndarray]]) -> EncodedScenes:
    codes = read(f"scenes/{kind}_codes.npz")["codes"]
    return EncodedScenes(
        codes, read_scenes(folder / "scenes" / f"{kind}s.jsonl"), read_things(folder / "scenes" / "things.json")
    )
