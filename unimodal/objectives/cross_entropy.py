"""Cross-entropy of a large head without holding its logits.

The logits [P, K] of P positions over K rows are by far the largest tensor of a training step: 4,096 positions over
65,000 rows are 1 GB in float32, and autograd keeps several of that size. Here they exist for one chunk of positions at
a time, as in "Cut Your Losses in Large-Vocabulary Language Models" (arXiv 2411.09009) and Liger Kernel (arXiv
2410.10989), in plain torch. The head's weight comes in parts (a frozen base table and new rows) that are never joined.
Values and gradients equal the plain computation's.

The gradient of the hidden states is found beside the loss, while a chunk's probabilities are at hand: the weight of a
position, known in the backward pass only, is a factor of it. So a frozen part is multiplied twice and never a third
time. Trained parts need their probabilities again: these are kept if they are no larger than a chunk's logits, as those
of a media block or of a few new rows are, and otherwise computed again.

Shapes: P positions, D width, K rows of the softmax (the parts' rows one behind the other), c positions of a chunk.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_LOGITS = 1 << 24  # elements of a chunk's logits: 64 MB in float32


def chunked_cross_entropy(
    hidden: Tensor, index: Tensor, parts: Sequence[Tensor], max_logits: int = MAX_LOGITS
) -> tuple[Tensor, Tensor]:
    """hidden [P, D], index [P] into the rows of ``parts`` (each [k, D]) → (loss [P], log-sum-exp [P]).

    Both results are float32 (float64 for double inputs) and can be differentiated. Under autocast the products run in
    its type, otherwise in that of ``hidden``.
    """
    num_rows = sum(len(part) for part in parts)
    chunk = max(1, max_logits // max(num_rows, 1))
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    return _ChunkedCrossEntropy.apply(hidden, index, chunk, dtype, torch.is_grad_enabled(), *parts)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, index: Tensor, chunk: int, dtype: torch.dtype, differentiated: bool, *parts: Tensor
    ) -> tuple[Tensor, Tensor]:
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        device, num = hidden.device, len(hidden)
        needs_hidden = differentiated and ctx.needs_input_grad[0]
        needs_parts = [differentiated and needed for needed in ctx.needs_input_grad[5:]]
        places = _locate_parts(parts)
        with torch.autocast(device.type, enabled=False):
            weights = [part.detach().to(dtype) for part in parts]
            logits_of_chunk = torch.empty(min(chunk, num), places[-1].stop, dtype=exact, device=device)
            lse, picked = torch.empty(2, num, dtype=exact, device=device)
            slope = torch.empty(hidden.shape, dtype=exact, device=device) if needs_hidden else None
            trained = sum(len(part) for part, needed in zip(parts, needs_parts, strict=True) if needed)
            fits, whole = num * trained <= chunk * places[-1].stop, num <= chunk
            kept = [
                None if not (needed and fits)
                else logits_of_chunk[:, place] if whole
                else torch.empty(num, len(part), dtype=exact, device=device)
                for part, place, needed in zip(parts, places, needs_parts, strict=True)
            ]  # fmt: skip
            for begin in range(0, num, chunk):
                rows = slice(begin, begin + chunk)
                states = hidden[rows].detach().to(dtype)
                logits = logits_of_chunk[: len(states)]  # [c, K]
                for weight, place in zip(weights, places, strict=True):
                    logits[:, place] = states @ weight.T
                label = index[rows, None]
                picked[rows] = logits.gather(1, label)[:, 0]
                top = logits.amax(1, keepdim=True)
                total = logits.sub_(top).exp_().sum(1, keepdim=True)
                lse[rows] = (top + total.log())[:, 0]
                if slope is None and not trained:
                    continue
                logits.div_(total)  # probabilities
                for probabilities, place in zip(kept, places, strict=True):
                    if probabilities is not None and not whole:
                        probabilities[rows] = logits[:, place]
                if slope is not None:
                    one = torch.ones_like(total)
                    logits.scatter_add_(1, label, -one)  # d loss / d logits
                    slope[rows] = _multiply_parts(logits.to(dtype), weights, places)
                    if whole:
                        logits.scatter_add_(1, label, one)  # what is kept are probabilities
        ctx.save_for_backward(hidden, index, lse, slope, *parts, *kept)
        ctx.chunk, ctx.dtype = chunk, dtype
        return lse - picked, lse.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        hidden, index, lse, slope, *rest = ctx.saved_tensors
        parts, kept = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        needs_parts = ctx.needs_input_grad[5:]
        places = _locate_parts(parts)
        with torch.autocast(hidden.device.type, enabled=False):
            weights = [part.detach().to(ctx.dtype) for part in parts]
            grad_hidden = None
            if slope is not None:  # d lse = d loss + the row of the label
                grad_hidden = slope * (grad_loss + grad_lse)[:, None]
                for weight, place in zip(weights, places, strict=True):
                    inside = ((index >= place.start) & (index < place.stop)).nonzero().squeeze(1)
                    labels = weight[index[inside] - place.start].to(lse.dtype)
                    grad_hidden.index_add_(0, inside, labels * grad_lse[inside, None])
                grad_hidden = grad_hidden.to(hidden.dtype)
            grad_parts: list[Tensor | None] = []
            for part, weight, place, probabilities, needed in zip(
                parts, weights, places, kept, needs_parts, strict=True
            ):
                if not needed:
                    grad_parts.append(None)
                    continue
                total = torch.zeros(part.shape, dtype=lse.dtype, device=part.device)
                step = ctx.chunk if probabilities is None else max(1, ctx.chunk // 4)  # those kept are not overwritten
                for begin in range(0, len(hidden) if len(part) else 0, step):
                    rows = slice(begin, begin + step)
                    states = hidden[rows].detach().to(ctx.dtype)
                    factor = (grad_loss[rows] + grad_lse[rows])[:, None]
                    if probabilities is not None:
                        grad = probabilities[rows] * factor
                    else:
                        grad = (states @ weight.T).to(lse.dtype).sub_(lse[rows, None]).exp_().mul_(factor)
                    inside = (index[rows] >= place.start) & (index[rows] < place.stop)
                    label = (index[rows] - place.start).clamp(0, len(part) - 1)
                    grad.scatter_add_(1, label[:, None], -(grad_loss[rows] * inside)[:, None])
                    total += grad.to(ctx.dtype).T @ states
                grad_parts.append(total.to(part.dtype))
        return grad_hidden, None, None, None, None, *grad_parts


def _locate_parts(parts: Sequence[Tensor]) -> list[slice]:
    """Where each part's rows lie among the K."""
    ends = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0).tolist()
    return [slice(begin, end) for begin, end in itertools.pairwise(ends)]


def _multiply_parts(grad: Tensor, weights: Sequence[Tensor], places: Sequence[slice]) -> Tensor:
    """grad [c, K] times the parts → [c, D]."""
    return functools.reduce(Tensor.add_, (grad[:, p] @ w for w, p in zip(weights, places, strict=True)))
