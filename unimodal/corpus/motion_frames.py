"""Frames of a sample and what follows them, as `objectives/motion.py` learns it.

Shapes: N tokens of a frame, T steps, A numbers of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from unimodal.objectives.motion import NEWEST, PAST
from unimodal.sequence.templates.own import IGNORE, Rendered, join_group


def join_frames(frames: Sequence[Rendered], steps: np.ndarray) -> Rendered:
    """Rendered frames, oldest first, and the steps float [T, A] behind the newest → one item to pack; no labels."""
    told = []
    for number, frame in enumerate(frames, start=1):
        values = np.zeros((len(frame), 1 + steps.size), dtype=np.float32)
        values[-1, 0] = NEWEST if number == len(frames) else PAST
        if number == len(frames):
            values[-1, 1:] = steps.reshape(-1)
        told.append(replace(frame, labels=np.full_like(frame.labels, IGNORE), values=values))
    return join_group(told)
