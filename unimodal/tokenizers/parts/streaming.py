"""Causal networks run on pieces: a stage keeps what it must know of earlier pieces, and gives each step of its output
as soon as that is known. What all pieces give together is what the whole gives, however it is cut.

A stage belongs to one stream; the modules whose weights it uses keep no state.

Shapes: B batch, C channels, n steps of a piece, H heads, d width of a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv_transpose1d, pad

PadMode = Literal["constant", "reflect", "replicate"]


class Stage(ABC):
    """One step of a network, for one stream."""

    @abstractmethod
    def push(self, x: Tensor, last: bool = False) -> Tensor:
        """x: [B, C, n], n ≥ 0, the steps that follow the earlier ones → [B, C', m], the output steps known by now and
        not given before. last: nothing follows."""


class ChainStage(Stage):
    """Stages one after another."""

    def __init__(self, stages: Sequence[Stage]):
        self.stages = list(stages)

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        for stage in self.stages:
            x = stage.push(x, last)
        return x


class PointwiseStage(Stage):
    """A function that looks at every step by itself. nothing: what it makes of no steps, where that is another shape
    than came in."""

    def __init__(self, run: Callable[[Tensor], Tensor], nothing: Tensor | None = None):
        self.run, self.nothing = run, nothing

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        if x.numel():
            return self.run(x)
        return x if self.nothing is None else self.nothing


class SumStage(Stage):
    """Two branches of one input, added up: the one that is ahead waits for the other."""

    def __init__(self, first: Stage, second: Stage):
        self.branches = (first, second)
        self.waiting: list[Tensor | None] = [None, None]

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        ready = [
            append_steps(waiting, branch.push(x, last))
            for waiting, branch in zip(self.waiting, self.branches, strict=True)
        ]
        count = min(part.shape[-1] for part in ready)
        self.waiting = [part[..., count:] for part in ready]
        return ready[0][..., :count] + ready[1][..., :count]


class BlockStage(Stage):
    """Steps in whole blocks of `size`: what does not fill one waits. At the end it is filled up with silence, or left
    out where `drop_rest` says so."""

    def __init__(self, size: int, drop_rest: bool = False):
        self.size, self.drop_rest = size, drop_rest
        self.waiting: Tensor | None = None

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        x = append_steps(self.waiting, x)
        if last and not self.drop_rest:
            x = pad(x, (0, -x.shape[-1] % self.size))
        count = x.shape[-1] // self.size * self.size
        self.waiting = x[..., count:]
        return x[..., :count]


class ConvStage(Stage):
    """A convolution over time, its own padding left out, behind `left` steps of padding and before `right`.

    At the end the padding on the right grows until every input step is in an output, as EnCodec pads (arXiv
    2210.13438); left + right is what the kernel reaches beyond its stride. pad_mode: "reflect" needs the first steps
    before the first output; a whole that is too short to be reflected is filled up with zeros first.
    """

    def __init__(self, conv: nn.Conv1d, left: int, right: int = 0, pad_mode: PadMode = "constant"):
        self.conv, self.left, self.right, self.pad_mode = conv, left, right, pad_mode
        self.stride = conv.stride[0]
        self.reach = (conv.kernel_size[0] - 1) * conv.dilation[0] + 1
        self.seen = 0
        self.started = False
        self.waiting: Tensor | None = None
        self.tail: Tensor | None = None  # the last input steps, to reflect at the end

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        self.seen += x.shape[-1]
        if self.pad_mode == "reflect":
            self.tail = append_steps(self.tail, x)[..., -(self.right + self.stride) :]
        x = append_steps(self.waiting, x)
        needed = {"constant": 1, "replicate": 1, "reflect": max(self.left, self.right + self.stride - 1) + 1}
        if not self.started and self.seen < needed[self.pad_mode]:
            if not (last and self.seen):
                self.waiting = x
                return x.new_zeros(len(x), self.conv.out_channels, 0)
            ends = (self.left, self.right + -self.seen % self.stride)
            missing = max(0, max(ends) + 1 - self.seen)
            padded = pad(pad(x, (0, missing)), ends, self.pad_mode)
            return self._convolve(padded[..., : padded.shape[-1] - missing])
        if not self.started:
            x = pad(x, (self.left, 0), self.pad_mode) if self.left else x
            self.started = True
        if last:
            x = self._pad_end(x, self.right + -self.seen % self.stride)
        return self._convolve(x)

    def _pad_end(self, x: Tensor, count: int) -> Tensor:
        if self.tail is None or not count:
            return pad(x, (0, count), self.pad_mode) if count else x
        return torch.cat([x, self.tail[..., :-1].flip(-1)[..., :count]], -1)

    def _convolve(self, x: Tensor) -> Tensor:
        count = max(0, (x.shape[-1] - self.reach) // self.stride + 1)
        self.waiting = x[..., count * self.stride :]
        if not count:
            return x.new_zeros(len(x), self.conv.out_channels, 0)
        conv, x = self.conv, x[..., : (count - 1) * self.stride + self.reach]
        return conv1d(x, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


class TransposedStage(Stage):
    """A transposed convolution over time, cut by `left` steps at the start and `right` at the end."""

    def __init__(self, conv: nn.ConvTranspose1d, left: int, right: int):
        self.conv, self.left, self.right = conv, left, right
        self.stride, self.overlap = conv.stride[0], max(0, conv.kernel_size[0] - conv.stride[0])
        self.sums: Tensor | None = None  # of the steps that the next input reaches too
        self.cut = 0

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        conv = self.conv
        if x.shape[-1]:
            out = conv_transpose1d(x, conv.weight, None, conv.stride, 0, 0, conv.groups)
            if self.sums is not None:
                out = torch.cat([out[..., : self.overlap] + self.sums, out[..., self.overlap :]], -1)
        else:
            out = self.sums if self.sums is not None else x.new_zeros(len(x), conv.out_channels, self.overlap)
        done = x.shape[-1] * self.stride
        self.sums = out[..., done : done + self.overlap]
        if last and out.shape[-1] > done:
            done = out.shape[-1] - self.right
        skipped = min(max(0, done), self.left - self.cut)
        self.cut += skipped
        out = out[..., skipped : max(skipped, done)]
        return out if conv.bias is None else out + conv.bias[:, None]


class LstmStage(Stage):
    """An LSTM that looks back, added to its input."""

    def __init__(self, lstm: nn.LSTM):
        assert not lstm.bidirectional, "an LSTM in both directions needs the whole"
        self.lstm = lstm
        self.state: tuple[Tensor, Tensor] | None = None

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        if not x.shape[-1]:
            return x
        order = (0, 2, 1) if self.lstm.batch_first else (2, 0, 1)
        steps = x.permute(order)
        out, self.state = self.lstm(steps, self.state)
        return (out + steps).permute((0, 2, 1) if self.lstm.batch_first else (1, 2, 0))


class KeyWindow:
    """The keys and values that later steps of one attention may still look at.

    context: each step looks at itself and the context - 1 before; None for all. Within a call of n steps the first of
    them needs keys that the last does not. ring: forget these, as a ring buffer of `context` places does that is
    written before it is read (Moshi, MOSS-Audio-Tokenizer): results then depend on how the stream is cut.
    """

    def __init__(self, context: int | None, ring: bool = False):
        self.context, self.ring = context, ring
        self.position = 0  # of the next step
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """keys, values: [B, H, n, d] of the next steps → those that they may look at, [B, H, m, d], and which step may
        look at which, bool [n, m]. Of more steps than a ring has places, the first look at nothing."""
        count = keys.shape[2]
        if self.keys is not None and self.values is not None:
            keys = torch.cat([self.keys, keys], 2)
            values = torch.cat([self.values, values], 2)
        end = self.position + count
        queries = torch.arange(self.position, end, device=keys.device)
        places = torch.arange(end - keys.shape[2], end, device=keys.device)
        mask = make_causal_mask(queries, places, self.context)
        if self.ring and self.context is not None:
            mask = mask & (places >= end - self.context)
        self.position = end
        kept = keys.shape[2] if self.context is None else self.context - 1
        first = max(0, keys.shape[2] - kept)
        self.keys, self.values = keys[:, :, first:], values[:, :, first:]
        return keys, values, mask


def make_causal_mask(queries: Tensor, keys: Tensor, context: int | None) -> Tensor:
    """Positions int64 [n] and [m] → bool [n, m]: whether a query may look at a key, itself and those before it, of the
    last `context`."""
    behind = queries[:, None] - keys
    return (behind >= 0) if context is None else (behind >= 0) & (behind < context)


def append_steps(waiting: Tensor | None, x: Tensor) -> Tensor:
    """Steps behind those that wait."""
    if waiting is None or not waiting.shape[-1]:
        return x
    return torch.cat([waiting, x], -1) if x.shape[-1] else waiting
