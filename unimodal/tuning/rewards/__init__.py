"""Rewards for answers that a model wrote itself, by name; one of one's own is "module:function".

    rewards:
      caption: {wish: "draw {text}."}
      my_rewards:prefer_red: {}

A function of one's own is called as `Reward` is, with its settings as further arguments.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from functools import partial
from typing import cast

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from unimodal.config import Config
from unimodal.files import join_lines
from unimodal.tuning.rewards.caption import CaptionReward, CaptionSettings
from unimodal.tuning.rewards.ctc import CtcReward
from unimodal.tuning.rewards.own_function import load_function
from unimodal.tuning.rewards.reward import Attempt, Reward, RewardContext
from unimodal.tuning.rewards.similarity import SimilarityReward, SimilaritySettings
from unimodal.tuning.rewards.word_errors import WordErrorReward, WordErrorSettings

__all__ = ["REWARDS", "Attempt", "Reward", "RewardContext", "Rewards"]


class Rewards:
    """Several rewards and their weighted sum. Raises ValueError for an unknown reward and for wrong settings of one."""

    def __init__(self, settings: Mapping[str, Mapping[str, object]], weights: Mapping[str, float]) -> None:
        unknown = [name for name in weights if name not in settings]
        if unknown:
            raise ValueError(f"objective.grpo.weights names {unknown[0]!r}; the rewards are {', '.join(settings)}")
        self.weights = {name: float(weights.get(name, 1.0)) for name in settings}
        self._rewards = {name: _make_reward(name, own) for name, own in settings.items()}

    def score(self, attempts: Sequence[Attempt], context: RewardContext) -> tuple[Tensor, dict[str, Tensor]]:
        """(the weighted sum, each reward by name), all float64 [attempts].

        Raises ValueError for a reward that is not a finite number, or for another number of them.
        """
        found = {}
        for name, reward in self._rewards.items():
            scores = _read_scores(name, reward(attempts, context), attempts)
            found[name] = torch.tensor(scores, dtype=torch.float64)
        total = sum((self.weights[name] * scores for name, scores in found.items()), torch.zeros(len(attempts)))
        return total.double(), found


def _read_scores(name: str, given: object, attempts: Sequence[Attempt]) -> list[float]:
    """What a reward gave, as a number for each answer. Raises ValueError, naming the reward and what it gave."""
    has_order = isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping, Set))
    if not has_order or getattr(given, "shape", None) == ():
        raise ValueError(f"the reward {name} gave {_describe(given)}; it must give a list of a number for each answer")
    assert isinstance(given, Iterable)
    found = list(given)
    if len(found) != len(attempts):
        raise ValueError(f"the reward {name} gave {len(found)} numbers for {len(attempts)} answers")
    scores = []
    for attempt, one in zip(attempts, found, strict=True):
        score = one.item() if isinstance(one, np.generic) or (isinstance(one, Tensor) and one.numel() == 1) else one
        number = float("nan")
        if isinstance(score, (int, float)) and not isinstance(score, bool):
            with suppress(OverflowError):
                number = float(score)
        if not math.isfinite(number):
            raise ValueError(
                f"the reward {name} gave {_describe(score)} for an answer to {attempt.words[:60]!r}; it must be a "
                "finite number"
            )
        scores.append(number)
    return scores


def _describe(value: object) -> str:
    """A value and its kind, in one line: `'1' (str)`, `a Tensor of shape [3, 2]`."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"a {type(value).__name__} of shape {list(shape)}"
    shown = join_lines(repr(value))
    return f"{shown[:60]}{'…' * (len(shown) > 60)} ({type(value).__name__})"


def _make_reward(name: str, settings: Mapping[str, object]) -> Reward:
    if ":" in name:
        function = load_function(name)
        try:
            inspect.signature(function).bind((), None, **settings)
        except TypeError as error:
            raise ValueError(
                f"objective.grpo.rewards.{name}: {error}; it is called with answers, context, settings"
            ) from None
        except ValueError:
            pass  # a function of C has no signature
        return cast(Reward, partial(function, **settings))
    if name not in REWARDS:
        raise ValueError(f"the reward {name!r} is unknown; use {', '.join(REWARDS)}, or module:function")
    config, make = REWARDS[name]
    try:
        return make(config.model_validate(settings))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(("objective.grpo.rewards", name, *map(str, first["loc"])))
        raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None


REWARDS: dict[str, tuple[type[Config], Callable[..., Reward]]] = {
    "caption": (CaptionSettings, CaptionReward),
    "ctc": (CaptionSettings, CtcReward),
    "similarity": (SimilaritySettings, SimilarityReward),
    "word_errors": (WordErrorSettings, WordErrorReward),
}
