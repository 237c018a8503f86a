"""The tasks that a small model is trained on, each a source of documents, from one folder of prepared, encoded data.

Only the files of the tasks that are asked for are read, and codes of another tokenizer than the one in use are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

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
    image, video, audio = (sha256.get(medium, "") for medium in ("image", "video", "audio"))
    found: list[sources.Source] = []
    if not {*names}.isdisjoint(IMAGE_TASKS):
        codes = encoded_media.read_codes(folder / "image_codes.npz", image)["codes"]
        others = tuple(sorted({*encoded_media.TRAINING_STYLES} - {default_style}))
        found += [
            sources.MediaToName(encoded_media.load_pictures(folder, codes)),
            sources.NameToMedia(encoded_media.load_pictures(folder, codes, styles=(default_style,)), style_share=0.2),
            sources.NameToMedia(
                encoded_media.load_pictures(folder, codes, styles=others), style_share=1.0, name="text_to_styled_image"
            ),
        ]
    if not {*names}.isdisjoint(CLIP_TASKS):
        codes = encoded_media.read_codes(folder / "clip_codes.npz", video)["codes"]
        clips = encoded_media.load_clips(folder, codes)
        found += [sources.MediaToName(clips), sources.NameToMedia(clips)]
    if not {*names}.isdisjoint(SPEECH_TASKS):
        speech = encoded_media.load_speech(folder / "speech", max_codes=max_audio_codes, sha256=audio)
        found += [sources.SpeechToText(speech), sources.TextToSpeech(speech)]
    if not {*names}.isdisjoint(SOUND_TASKS):
        arrays = encoded_media.read_codes(folder / "sounds" / "codes.npz", audio)
        listed = named_sounds.read_sounds(folder / "sounds")
        sounds = named_sounds.EncodedSounds(arrays["codes"], arrays["offsets"], listed, max_codes=max_audio_codes)
        found += [named_sounds.SoundToName(sounds), named_sounds.NameToSound(sounds)]
    pictures = moves = None
    if not {*names}.isdisjoint(SCENE_TASKS):
        pictures = _open_scenes(folder / "scenes", "scene", image)
    if not {*names}.isdisjoint(MOVE_TASKS):
        moves = _open_scenes(folder / "scenes", "move", video)
    found += list_scene_sources(pictures, moves)
    return {source.name: source for source in found if source.name in names}


def _open_scenes(folder: Path, kind: str, sha256: str) -> EncodedScenes:
    codes = encoded_media.read_codes(folder / f"{kind}_codes.npz", sha256)["codes"]
    return EncodedScenes(codes, read_scenes(folder / f"{kind}s.jsonl"), read_things(folder / "things.json"))
