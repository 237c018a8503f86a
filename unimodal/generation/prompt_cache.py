"""The keys and values of a model's soft prompt, read once and shared by all streams.

A prompt is the same for every stream, so it is the prefix of all: what a session does for the beginnings that two
prompts share, this does for the one that all share. Weights that change are seen, and the prompt is read again. Where
layers read states of the prompt's own (`model/prefix.py`), the model's forward makes the keys and values, and a lean
decoder, which runs no hooks, is given them.

Shapes: P tokens of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from unimodal.generation.decoders.lean_decoder import LeanDecoder
from unimodal.generation.decoders.slot_decoders import make_twin
from unimodal.generation.decoders.step_decoder import CachedPrefix, StepDecoder
from unimodal.generation.head import WeightState, read_weight_state
from unimodal.model.prompt_files import compute_keys_and_values
from unimodal.model.soft_prompt import find_soft_prompt

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
        own = self.read()
        given = prefixes or [None] * num
        return [own if one is None or one.num_tokens < own.num_tokens else one for one in given]

    @torch.inference_mode()
    def read(self) -> CachedPrefix:
        """The prompt as a prefix of every stream."""
        now = read_weight_state(self.model.parameters())
        if self._held is None or self._held[0] != now:
            reader = make_twin(self.decoder)
            prompt = find_soft_prompt(self.model)
            if isinstance(reader, LeanDecoder) and prompt is not None and prompt.first_layer is not None:
                cache = reader.convert(compute_keys_and_values(self.model, prompt).permute(1, 2, 3, 0, 4))
            else:
                reader.prefill([self.ids], self.pad_id, len(self.ids))
                cache = reader.export(0)
            self._held = now, CachedPrefix(cache, len(self.ids))
            self.num_read += 1
        return self._held[1]
