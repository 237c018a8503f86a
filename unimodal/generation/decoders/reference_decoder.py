"""Cached decoding through the model's own forward: what the lean decoder must equal, and what other architectures use.

The cache has room for the whole answer from the start (`reference_cache.py`), so that a step copies none of it.

Shapes: S streams of the batch, N tokens of a prompt, P tokens of a step, V latest slots of the cache, C slots in all,
K key/value heads, W head width, D width.
"""

from __future__ import annotations

import inspect
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


def visible_mask(visible: Tensor | None, pads: Tensor, begin: int, end: int) -> Tensor:
    """Which slots each new token sees, bool [S, P, end]: those behind the left padding, itself and what ``visible``
    says.

    visible [S or 1, P, V] rules over the last V slots; all earlier ones are seen. None is causal.
    """
    slots = torch.arange(end, device=pads.device)
    queries = slots[begin:, None]
    if visible is None:
        seen = (slots <= queries)[None]  # aligned bottom-right: a new token sees itself and all before
    else:
        earlier = torch.ones(len(visible), end - begin, end - visible.shape[2], dtype=torch.bool, device=pads.device)
        seen = torch.cat([earlier, visible], 2)
    return (seen & (slots >= pads[:, None, None])) | (slots == queries)  # a padding query sees itself: no NaN


def common_suffix(prompts: Sequence[Sequence[int]], kept: Sequence[int]) -> int:
    """How many tokens of every prompt are to be read when ``kept`` of each are in a cache; at least one, for its
    hidden state."""
    return max(1, *(len(prompt) - num for prompt, num in zip(prompts, kept, strict=True)))


def places_after(
    pads: Sequence[int], kept: Sequence[Sequence[int]], length: int, num_new: int
) -> tuple[list[tuple[int, list[int]]], int]:
    """Where the slots of each stream go when of the last ``num_new`` only those numbered ``kept`` stay.

    All streams end at the same slot, so that one that keeps fewer than another moves. Returns (its new padding, the
    slots it takes) for each stream, and the new length: that of the longest stream.
    """
    begin = length - num_new
    taken = [
        [*range(pad, begin), *(begin + number for number in numbers)] for pad, numbers in zip(pads, kept, strict=True)
    ]
    longest = max(map(len, taken))
    return [(longest - len(slots), slots) for slots in taken], longest


class ReferenceDecoder:
    """Hugging Face's forward with a cache of its kind, a padding mask and explicit positions."""

    def __init__(self, model: nn.Module) -> None:
        self.backbone: Any = model.get_decoder()
        names = inspect.signature(type(self.backbone).forward).parameters  # transformers renamed it in 5.24
        self._cache_name = "cache" if "cache" in names else "past_key_values"

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        pad_id: int,
        capacity: int,
        prefixes: Sequence[Any] | None = None,
    ) -> Tensor:
        """Read the prompts and return the last hidden states [S, D]; ``capacity`` is the most a stream will hold.

        prefixes: for each prompt what `export` gave for a text that begins with the same tokens, and how many of them
        to take, or None.
        """
        from unimodal.generation.decoders.reference_cache import cache_with_room

        device = next(self.backbone.parameters()).device
        ids, self.pads = left_pad(prompts, pad_id, device)
        self.cache = cache_with_room(self.backbone.config, capacity)
        self.length = 0
        given = list(prefixes or [None] * len(prompts))
        suffix = common_suffix(prompts, [0 if prefix is None else prefix[1] for prefix in given])
        first = ids.shape[1] - suffix
        if first > 0:
            layers = [prefix[0] for prefix in given if prefix is not None][0]
            for number, (key, _) in enumerate(layers):
                shape = (len(prompts), key.shape[0], first, key.shape[2])
                keys, values = key.new_zeros(shape), key.new_zeros(shape)
                for stream, prefix in enumerate(given):
                    pad = int(self.pads[stream])
                    if prefix is not None and pad < first:
                        keys[stream, :, pad:] = prefix[0][number][0][:, : first - pad]
                        values[stream, :, pad:] = prefix[0][number][1][:, : first - pad]
                self.cache.update(keys, values, number)
            self.length = first
        self.computed = suffix
        return self.step(ids[:, first:])

    def step(
        self, ids: Tensor, offsets: Tensor | None = None, visible: Tensor | None = None, every: bool = False
    ) -> Tensor:
        """Append ids [S, P] to every stream and return the last hidden state [S, D], or all [S, P, D] with ``every``.

        offsets [S, P]: positions from the next one on, in place of 0, 1, …; visible: see `visible_mask`.
        """
        begin, end = self.length, self.length + ids.shape[1]
        if offsets is None:
            offsets = torch.arange(ids.shape[1], device=ids.device)[None]
        positions = (begin - self.pads[:, None] + offsets).clamp(min=0)  # [S, P]
        self.length = end
        if visible is None:
            mask = (torch.arange(end, device=ids.device)[None, :] >= self.pads[:, None]).long()  # [S, end]
        else:
            mask = visible_mask(visible, self.pads, begin, end)[:, None]  # [S, 1, P, end]
        out: Any = self.backbone(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{self._cache_name: self.cache},
        )
        return out.last_hidden_state if every else out.last_hidden_state[:, -1]

    def commit(self, kept: Sequence[Sequence[int]], num_new: int) -> None:
        """Of the last ``num_new`` tokens only those numbered ``kept``, ascending, by stream, stay."""
        from unimodal.generation.decoders.reference_cache import is_whole

        moves, length = places_after(self.pads.tolist(), kept, self.length, num_new)
        slots = [[*([0] * start), *taken] for start, taken in moves]
        index = torch.tensor(slots, dtype=torch.int64, device=self.pads.device)  # [S, C] slots to take
        self.pads = torch.tensor([start for start, _ in moves], dtype=torch.int64, device=self.pads.device)
        for layer in self.cache.layers:
            if not is_whole(layer):
                raise ValueError(f"a cache layer of type {type(layer).__name__} cannot be cut; use the plain decoder")
            for name in ("keys", "values"):
                held = getattr(layer, name)  # [S, K, C, W]
                where = index[:, None, :, None].expand(-1, held.shape[1], -1, held.shape[3])
                setattr(layer, name, held.gather(2, where))
        self.length = length

    def export(self, stream: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [K, n, W] of what this stream has read, by layer."""
        pad = int(self.pads[stream])
        return [
            (layer.keys[stream, :, pad:].clone(), layer.values[stream, :, pad:].clone()) for layer in self.cache.layers
        ]

    def num_read(self, stream: int) -> int:
        """Tokens that this stream holds."""
        return self.length - int(self.pads[stream])

    def keep(self, streams: Sequence[int]) -> None:
        """Go on with these streams only."""
        index = torch.tensor(list(streams), dtype=torch.int64, device=self.pads.device)
        self.pads = self.pads[index]
        self.cache.batch_select_indices(index)
