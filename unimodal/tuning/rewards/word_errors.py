"""Speech that a recogniser understands: 1 minus the word error rate of its transcript, at least -1.

`recogniser` is a model of transformers for automatic speech recognition, by folder or hub id, or a function
"module:function" from a sound (float32 [T] at 16 kHz) to its words. `wish` says where the words stand in the request.
"""

from __future__ import annotations

import importlib.util
import string
from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor

from unimodal.tuning.rewards.caption import CaptionReward, CaptionSettings
from unimodal.tuning.rewards.own_function import load_function
from unimodal.tuning.rewards.reward import Attempt, RewardContext

LEAST = -1.0
RATE_HZ = 16_000


class WordErrorSettings(CaptionSettings):
    recogniser: str


class WordErrorReward(CaptionReward):
    cfg: WordErrorSettings

    def __init__(self, cfg: WordErrorSettings) -> None:
        super().__init__(cfg)
        self._recognise = load_recogniser(cfg.recogniser)

    def __call__(self, attempts: Sequence[Attempt], context: RewardContext) -> list[float]:
        import jiwer
        import torchaudio

        scores = []
        for attempt in attempts:
            medium = attempt.medium
            if medium is None or medium.modality != "audio":
                scores.append(LEAST)
                continue
            sound, rate = context.decode(medium)
            assert rate is not None
            heard = self._recognise(torchaudio.functional.resample(sound, round(rate), RATE_HZ))
            if not isinstance(heard, str):
                raise ValueError(
                    f"the recogniser {self.cfg.recogniser} gave {type(heard).__name__}; it must give the words, a str"
                )
            wanted = clean_words(self.read_caption(attempt.words))
            scores.append(max(LEAST, 1.0 - float(jiwer.wer(wanted, clean_words(heard)))))
        return scores


def clean_words(text: str) -> str:
    """Lower case, without punctuation and with single spaces."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def load_recogniser(name: str) -> Callable[[Tensor], str]:
    """Raises ValueError for a recogniser that cannot be had."""
    if importlib.util.find_spec("jiwer") is None:
        raise ValueError("the reward word_errors needs jiwer: pip install 'unimodal[eval]'")
    if ":" in name:
        return cast(Callable[[Tensor], str], load_function(name))
    from transformers import pipeline

    try:
        recogniser = pipeline("automatic-speech-recognition", model=name)
    except (OSError, ValueError) as error:
        raise ValueError(f"the recogniser {name} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    return lambda sound: str(recogniser({"raw": sound.numpy(), "sampling_rate": RATE_HZ})["text"])
