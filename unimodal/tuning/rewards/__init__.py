"""Rewards for answers that a model wrote itself, by name; one of one's own is "module:function".

    rewards:
      caption: {wish: "draw {text}."}
      my_rewards:prefer_red: {}

A function of one's own is called as `Reward` is, with its settings as further arguments.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from unimodal.config import Config
from unimodal.tuning.rewards.caption import CaptionReward, CaptionSettings
from unimodal.tuning.rewards.ctc import CtcReward
from unimodal.tuning.rewards.reward import Attempt, Reward, RewardContext
from unimodal.tuning.rewards.similarity import SimilarityReward, SimilaritySettings
from unimodal.tuning.rewards.word_errors import WordErrorReward, WordErrorSettings, load_function

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
            given = reward(attempts, context)
            if not isinstance(given, Iterable):
                raise ValueError(f"the reward {name} gave {given!r}; it must give a list of a number for each answer")
            scores = [_read_number(score) for score in given]
            if len(scores) != len(attempts):
                raise ValueError(f"the reward {name} gave {len(scores)} numbers for {len(attempts)} answers")
            for attempt, score in zip(attempts, scores, strict=True):
                if not isinstance(score, (int, float)) or not math.isfinite(score):
                    raise ValueError(
                        f"the reward {name} gave {score!r} for an answer to {attempt.words[:60]!r}; it must be a "
                        "finite number"
                    )
            found[name] = torch.tensor(scores, dtype=torch.float64)
        total = sum((self.weights[name] * scores for name, scores in found.items()), torch.zeros(len(attempts)))
        return total.double(), found


def _read_number(score: object) -> object:
    """A number of numpy or torch as one of Python; anything else as it is."""
    if isinstance(score, np.generic) or (isinstance(score, Tensor) and score.numel() == 1):
        return score.item()
    return score


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
