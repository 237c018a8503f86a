"""Who reads the speech of a model: a recogniser that is no part of its own tokenizer.

Shapes: T samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from unimodal.evaluation.judges import WhisperJudge
from unimodal.evaluation.tokenizer_bench.moonshine import Moonshine
from unimodal.pipeline import Unimodal
from unimodal.tokenizers.systems.whisper_hearing import WhisperHearing


class Listener(NamedTuple):
    """name: of the recogniser. transcribe: a sound, float32 [T] at 16 kHz → what is said in it."""

    name: str
    transcribe: Callable[[Tensor], str]


def choose_listener(model: Unimodal) -> Listener:
    """Whisper tiny.en; Moonshine tiny for a model whose codes of sounds are what Whisper hears, and whose speech it
    would understand best. Raises ValueError if the packages are not installed."""
    if isinstance(model.coder.get_tokenizer("audio"), WhisperHearing):
        return Listener("Moonshine tiny", Moonshine().transcribe)
    return Listener("Whisper tiny.en", WhisperJudge().transcribe)
