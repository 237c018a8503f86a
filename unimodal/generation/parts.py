"""The parts of an engine that runs, sessions and continuous batches use."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unimodal.generation.decoders.step_decoder import StepDecoder
from unimodal.generation.head import SlicedHead
from unimodal.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class EngineParts:
    """The parts of an engine. pad_id: the row that fills up short prompts. max_positions: most tokens of a stream."""

    decoder: StepDecoder
    head: SlicedHead
    vocabulary: Vocabulary
    pad_id: int
    max_positions: int
    device: torch.device
