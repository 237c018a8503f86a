"""A look at the model while it is trained: what it says and draws, and the figures of what it can do.

A watched run has the losses of one that is not: the generators of random numbers are put back behind each look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from unimodal.training.checkpoint import get_random_state, set_random_state
from unimodal.training.distributed import Parallel
from unimodal.training.trackers import Tracker


@dataclass(frozen=True)
class Watched:
    """figures: numbers by name. pictures, sounds: files by name, for the trackers."""

    figures: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, Path] = field(default_factory=dict)
    sounds: Mapping[str, Path] = field(default_factory=dict)


class Watch(Protocol):
    """Looks at the model of a training, which is in evaluation mode, at a step. The main rank alone calls it."""

    def __call__(self, step: int) -> Watched: ...


def look(
    watch: Watch, model: nn.Module, step: int, trackers: Sequence[Tracker], parallel: Parallel
) -> dict[str, float]:
    """The figures, the same on every rank; pictures and sounds go to the trackers. The model is in training mode
    again."""
    found = Watched()
    if parallel.is_main:
        before = get_random_state()
        model.eval()
        with torch.no_grad():
            found = watch(step)
        for tracker in trackers:
            for name, path in found.pictures.items():
                tracker.log_picture(name, path, step)
            for name, path in found.sounds.items():
                tracker.log_sound(name, path, step)
        set_random_state(before)
    model.train()
    return dict(parallel.gather(found.figures)[0])
