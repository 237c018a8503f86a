"""The parts of an engine that runs, sessions and continuous batches use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from unimodal.generation.decoders.step_decoder import CachedPrefix, StepDecoder
from unimodal.generation.head import SlicedHead
from unimodal.generation.prompt_cache import PromptCache
from unimodal.model.depth_decoder import DepthDecoder
from unimodal.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class EngineParts:
    """The parts of an engine. pad_id: the row that fills up short prompts. max_positions: most tokens of a stream.

    depth, embed: what writes summed positions, and the table whose rows it reads; None without such positions. prompt:
    the keys and values of the model's soft prompt; None without one, and where a prompt is read anew.
    """

    decoder: StepDecoder
    head: SlicedHead
    vocabulary: Vocabulary
    pad_id: int
    max_positions: int
    device: torch.device
    depth: DepthDecoder | None = None
    embed: nn.Module | None = None
    prompt: PromptCache | None = None

    def begin_streams(self, num: int, prefixes: Sequence[CachedPrefix | None] = ()) -> Sequence[CachedPrefix | None]:
        """The prefixes of `num` streams, of which the model's soft prompt is one wherever none is longer."""
        return prefixes if self.prompt is None else self.prompt.fill(prefixes, num)
