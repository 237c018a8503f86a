"""The format of a model folder: its number in `processor_config.json`, and what older formats meant by what they omit.

    1   no number. What the file left out, or a folder without the file, meant the settings of nano, the first model:
        sounds of 8 s and 250 codes, its English questions and wishes.
    2   What is left out is neutral: no limit, no words. Limits stand under `limits`, by medium.

A folder of an older format is read as it was meant; `unimodal upgrade FOLDER` (`upgrade.py`) writes that meaning down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

FORMAT: Final = 2

#: what a folder of format 1 meant by the settings that it left out
FIRST_SETTINGS: Mapping[str, object] = {
    "processor_class": "UnimodalProcessor",
    "image_fit": "pad",
    "history_turns": None,
    "template": "unimodal",
    "system": "",
    "reading": None,
}
FIRST_AUDIO_S, FIRST_AUDIO_CODES = 8.0, 250
FIRST_QUESTION = "What is this?"  # of a medium without one of its own
FIRST_WORDING: Mapping[str, object] = {
    "questions": {"image": "What is this?", "audio": "What is said?", "video": "What is this?"},
    "wishes": {"image": "Draw {thing}.", "audio": "Say: {text}", "video": "A clip of {thing}."},
    "in_voice": "Say in the voice of {voice}: {text}",
    "voices": [],
    "wish_starts": {
        "image": ["draw ", "paint ", "a picture of ", "make a picture of ", "show me "],
        "audio": ["say: ", "say this: ", "say in the voice of ", "speak: ", "read aloud", "read this: ", "voice "],
        "video": ["a clip of ", "a video of ", "make a video of ", "animate ", "film ", "show me "],
    },
    "add_article": True,
    "plain_speech": True,
}


def read_format(values: Mapping[str, object], path: Path) -> int:
    """The number of the format of a `processor_config.json`. Raises ValueError for a format of a newer program."""
    number = values.get("format", 1)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"{path}: format {number!r} is no number of a format; take it from the model again")
    if number > FORMAT:
        raise ValueError(
            f"{path} is of format {number} and this unimodal reads up to {FORMAT}; install a newer unimodal"
        )
    return number


def upgrade_settings(values: Mapping[str, object], path: Path) -> dict[str, object]:
    """The content of a `processor_config.json` in the newest format; values {} stand for a folder without the file.

    What its own format meant without saying is said. Raises ValueError for a format of a newer program.
    """
    number = read_format(values, path)
    new = dict(values)
    for step in STEPS[number - 1 :]:
        new = step(new)
    return {"format": FORMAT, **{name: value for name, value in new.items() if name != "format"}}


def _say_first_settings(values: dict[str, object]) -> dict[str, object]:
    """1 → 2"""
    said = {name: value for name, value in values.items() if name not in ("max_audio_s", "max_audio_codes")}
    seconds = values.get("max_audio_s", FIRST_AUDIO_S)
    codes = values.get("max_audio_codes", FIRST_AUDIO_CODES)
    wording = values.get("wording", {})
    if isinstance(wording, dict):  # else the settings' own check names what is wrong
        wording = {**FIRST_WORDING, **wording}
        questions, known = wording["questions"], FIRST_WORDING["questions"]
        if isinstance(questions, dict) and isinstance(known, dict):
            wording["questions"] = {**dict.fromkeys(known, FIRST_QUESTION), **questions}
    return {
        **FIRST_SETTINGS,
        **said,
        "limits": {"audio": {"seconds": seconds, "codes": codes}},
        "wording": wording,
    }


#: from each format to the next
STEPS: tuple[Callable[[dict[str, object]], dict[str, object]], ...] = (_say_first_settings,)
