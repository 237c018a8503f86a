"""Cached decoding through the model's own forward: what the lean decoder must equal, and what other architectures use.

Shapes: S streams of the batch, N tokens of a prompt, P tokens of a step, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts of different lengths -> ids [S, N] padded on the left, and the number of pads of each, [S]."""
    longest = max(len(prompt) for prompt in prompts)
    pads = [longest - len(prompt) for prompt in prompts]
    rows = [[pad_id] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)]
    return torch.tensor(rows, dtype=torch.int64, device=device), torch.tensor(pads, dtype=torch.int64, device=device)


class ReferenceDecoder:
    """Hugging Face's forward with a DynamicCache, a padding mask and explicit positions."""

    def __init__(self, model: nn.Module) -> None:
        self.backbone = model.get_decoder()

    def start(self, prompts: Sequence[Sequence[int]], pad_id: int, capacity: int) -> Tensor:
        """Read the prompts and return the last hidden states [S, D]; ``capacity`` is for decoders that preallocate."""
        from transformers import DynamicCache

        device = next(self.backbone.parameters()).device
        ids, self.pads = left_pad(prompts, pad_id, device)
        self.cache = DynamicCache(config=self.backbone.config)
        self.length = 0
        return self.step(ids)

    def step(self, ids: Tensor) -> Tensor:
        """Append ids [S, P] to every stream and return the last hidden state [S, D]."""
        slots = torch.arange(self.length, self.length + ids.shape[1], device=ids.device)
        self.length += ids.shape[1]
        positions = (slots[None, :] - self.pads[:, None]).clamp(min=0)  # [S, P]
        mask = torch.arange(self.length, device=ids.device)[None, :] >= self.pads[:, None]  # [S, length]
        out: Any = self.backbone(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        return out.last_hidden_state[:, -1]

    def keep(self, streams: Sequence[int]) -> None:
        """Go on with these streams only."""
        index = torch.tensor(list(streams), dtype=torch.int64, device=self.pads.device)
        self.pads = self.pads[index]
        self.cache.batch_select_indices(index)
