"""The keys and values of a model's soft prompt, read once and shared by all streams.

A prompt is the same for every stream, so it is the prefix of all: what a session does for the beginnings that two
prompts share, this does for the one that all share. Weights that change are seen, and the prompt is read again.

Shapes: P tokens of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from unimodal.generation.decoders.slot_decoders import make_twin
from unimodal.generation.decoders.step_decoder import CachedPrefix, StepDecoder
from unimodal.generation.head import WeightState, read_weight_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PromptCache:
    """decoder: the one that reads the cache. ids: those of the prompt, [P]. num_read: how often it was read."""

    def __init__(self, model: PreTrainedModel, decoder: StepDecoder, ids: Sequence[int], pad_id: int) -> None:
        self.model, self.decoder, self.ids, self.pad_id = model, decoder, list(ids), pad_id
        self.num_read = 0
        self._held: tuple[WeightState, CachedPrefix] | None = None

    def fill(self, prefixes: Sequence[CachedPrefix | None], num: int) -> list[CachedPrefix | None]:
        """The prefixes of `num` streams, with the prompt's for those that have none or a shorter one."""
        own = self._read()
        given = prefixes or [None] * num
        return [own if one is None or one.num_tokens < own.num_tokens else one for one in given]

    @torch.inference_mode()
    def _read(self) -> CachedPrefix:
        now = read_weight_state(self.model.parameters())
        if self._held is None or self._held[0] != now:
            reader = make_twin(self.decoder)
            reader.prefill([self.ids], self.pad_id, len(self.ids))
            self._held = now, CachedPrefix(reader.export(0), len(self.ids))
            self.num_read += 1
        return self._held[1]
