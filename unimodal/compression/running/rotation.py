"""Rotary tables for explicit positions: one for each token, several (PPE), or a cached key rotated to a new one.

A key at position p is R(p) k; rotations add up, so a cached key moves to position p' by R(p' - p). A merged token with
P source positions divides its rotary frequencies evenly among them (positional preservation embedding). Decoders differ
in which components a frequency turns, and in how many: the model's own function of its module is used, and asked.

Shapes: B rows, N tokens, P positions of a token, H heads, W head width, R ≤ W rotated components, F = R / 2
frequencies.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from unimodal.compression.running.reading import AxisPositions

#: kinds of rotary tables in which a position's angle does not depend on the length of the sequence
STATIC_ROPE = ("default", "linear", "llama3", "yarn")

#: (queries, keys, cos, sin) → both rotated
RotaryFunction = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class KeyRotation(Protocol):
    """What a cache method may ask of a layer's positions."""

    def rotate_by(self, states: Tensor, offset: Tensor) -> Tensor: ...

    def rotate_to_mean(self, states: Tensor, positions: Tensor) -> Tensor: ...

    def split_pairs(self, states: Tensor) -> Tensor: ...


class LayerRotation:
    """The rotary positions of one kind of layer.

    rotary: the model's module that makes cos and sin. kind: the kind of layer, for a model that has tables by kind.
    apply: the model's function. turns: False for layers without positions.
    """

    def __init__(self, rotary: nn.Module, kind: str = "full_attention", apply: RotaryFunction | None = None) -> None:
        self.rotary, self.kind, self.turns = rotary, kind, True
        self.has_axes = False  # whether positions may lie on several axes
        self.apply = apply or apply_halves
        self.takes_kind = "layer_type" in inspect.signature(rotary.forward).parameters

    def stop(self) -> LayerRotation:
        """The same for layers whose queries and keys have no positions."""
        other = LayerRotation(self.rotary, self.kind, self.apply)
        other.turns = False
        return other

    def _compute(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of positions int64 [B, N]: [B, N, R], or [B, N, R / 2] where both of a pair have one value."""
        kind = {"layer_type": self.kind} if self.takes_kind else {}
        return self.rotary(like, position_ids=positions, **kind)

    def make_tables(self, like: Tensor, positions: Tensor, axes: AxisPositions | None = None) -> tuple[Tensor, Tensor]:
        """positions int64 [B, N, P] → cos and sin [B, N, R] by the model's own rotary module.

        axes: the positions are numbers of tokens, of which these are the positions.
        """
        num_rows, num, count = positions.shape
        flat = positions.flatten(1)  # [B, N * P]
        if axes is None:
            cos, sin = self._compute(like, flat)  # [B, N * P, R]
        else:
            at = (flat - axes.first).clamp(min=0).expand(len(axes.places), -1, -1)
            cos, sin = self.rotary(like, position_ids=axes.places.gather(2, at))
        if count == 1:
            return cos, sin
        half = self._width // 2
        section = torch.arange(half, device=cos.device) * count // half  # [R / 2], which of the P positions
        if cos.shape[-1] > half:  # the tables repeat, or each value does
            is_twice = bool(torch.equal(sin[..., :half], sin[..., half:]))
            section = torch.cat([section, section]) if is_twice else section.repeat_interleave(2)
        section = section.expand(num_rows, num, 1, -1)
        cos, sin = (table.unflatten(1, (num, count)).gather(2, section).squeeze(2) for table in (cos, sin))
        return cos, sin

    def rotate_by(self, states: Tensor, offset: Tensor) -> Tensor:
        """Move rotated queries or keys [B, H, N, W] by offset int64 [B, H or 1, N] positions."""
        if not self.turns:
            return states
        if self.has_axes:
            raise ValueError("keys whose positions lie on several axes (M-RoPE) cannot be moved; use another method")
        num_rows, num_heads, num, width = states.shape
        flat = offset.expand(num_rows, num_heads, num).reshape(num_rows * num_heads, num)
        cos, sin = self._compute(states, flat)  # [B * H, N, R]
        lines = states.reshape(num_rows * num_heads, 1, num, width)
        return self._turn(lines, cos, sin).view(states.shape)

    def rotate_to_mean(self, states: Tensor, positions: Tensor) -> Tensor:
        """The mean of states without positions [B, H, N, W] at each of positions int64 [B, F]."""
        if not self.turns:
            return states
        cos, sin = self._compute(states, positions)  # [B, F, R]
        return self._turn(states, cos.mean(1, keepdim=True), sin.mean(1, keepdim=True))

    def _turn(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate the first R components of states [B, H, N, W] by tables [B, N or 1, R] of the model's module."""
        name = f"{self.kind}_attention_scaling" if self.takes_kind else "attention_scaling"
        scale: float = vars(self.rotary)[name]  # the states contain it already
        first = states[..., : self._width]
        turned, _ = self.apply(first, first, cos / scale, sin / scale)
        return torch.cat([turned, states[..., self._width :]], -1)

    @property
    def _width(self) -> int:
        return self._partner[0]

    @cached_property
    def _partner(self) -> tuple[int, int]:
        """How many components are rotated, and how far the partner of component 0 lies behind it."""
        one = torch.tensor([[1]], device=next(iter(self.rotary.buffers())).device)
        cos, sin = self._compute(torch.zeros(1, 1, 1, device=one.device), one)
        for width in (cos.shape[-1], 2 * cos.shape[-1]):  # a table for every component, or one for both of a pair
            unit = torch.zeros(1, 1, 1, width, device=one.device)
            unit[..., 0] = 1
            try:
                turned, _ = self.apply(unit, unit, cos, sin)
            except RuntimeError:  # the shapes do not fit
                continue
            return width, int(turned[0, 0, 0, 1:].abs().argmax()) + 1
        raise ValueError(f"{type(self.rotary).__name__} makes tables that its model's rotation does not take")

    def split_pairs(self, states: Tensor) -> Tensor:
        """[..., W] → [..., W / 2, 2]: the two components that a frequency turns side by side, unrotated pairs last."""
        rotated, step = self._partner
        whole, rest = states[..., :rotated], states[..., rotated:].unflatten(-1, (-1, 2))
        if step == 1:
            return torch.cat([whole.unflatten(-1, (-1, 2)), rest], -2)
        return torch.cat([torch.stack(whole.chunk(2, -1), -1), rest], -2)


def apply_halves(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate [B, H, N, R] as Llama does: frequency f turns components f and f + R / 2."""

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]

    return rotate(query), rotate(key)


def find_rotary_function(attention: nn.Module) -> RotaryFunction | None:
    """The function of a model's own file that rotates queries and keys, or None."""
    return vars(sys.modules[type(attention).__module__]).get("apply_rotary_pos_emb")
