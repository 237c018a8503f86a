"""What the engine hands to everything that decodes for it: to runs, to sessions and to batches that never end."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unimodal.generation.decoders.step_decoder import StepDecoder
from unimodal.generation.head import SlicedHead
from unimodal.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class EngineParts:
    """decoder: one step of the model; head: its output head by rows; pad_id: the row that fills short prompts."""

    decoder: StepDecoder
    head: SlicedHead
    vocabulary: Vocabulary
    pad_id: int
    max_positions: int
    device: torch.device
