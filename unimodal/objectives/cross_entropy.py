"""Cross-entropy of a large head without holding its logits.

The logits [P, K] of P positions over K rows are by far the largest tensor of a training step: 4,096 positions over
65,000 rows are 1 GB in float32, and autograd keeps several of that size. Here they exist for one chunk of positions at
a time, as in "Cut Your Losses in Large-Vocabulary Language Models" (arXiv 2411.09009) and Liger Kernel (arXiv
2410.10989), in plain torch. The head's weight comes in parts (a frozen base table and new rows) that are never joined.
Values and gradients equal the plain computation's, with the factor and the soft cap of a base that has them
(`unimodal.model.logits`).

The gradient of the hidden states is computed with the loss, while a chunk's probabilities are at hand; the backward
pass multiplies it by the weight of each position. So a frozen part takes two matrix products in all. Trained parts need
their probabilities in the backward pass: these are kept if they are no larger than a chunk's logits, as for a media
block or a few new rows, and computed again otherwise.

Shapes: P positions, D width, K rows of the softmax (the parts' rows one behind the other), c positions of a chunk.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from unimodal.model.logits import PLAIN, LogitRule

MAX_LOGITS = 1 << 24  # elements of a chunk's logits: 64 MB in float32


def compute_chunked_cross_entropy(
    hidden: Tensor,
    index: Tensor,
    parts: Sequence[Tensor],
    max_logits: int = MAX_LOGITS,
    biases: Sequence[Tensor | None] = (),
    rule: LogitRule = PLAIN,
) -> tuple[Tensor, Tensor]:
    """hidden [P, D], labels ``index`` int64 [P] into the K rows → (loss [P] in nats, log-sum-exp [P]).

    parts: the weights, each [k, D]. max_logits: elements of a chunk's logits. biases: of each part, [k] or None; empty
    for a head without. rule: from products to logits.
    Both results are float32 (float64 for double inputs) and can be differentiated. Under autocast products run in its
    type, otherwise in that of ``hidden``.
    """
    num_rows = sum(len(part) for part in parts)
    chunk = max(1, max_logits // max(num_rows, 1))
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    each = biases or [None] * len(parts)
    return _ChunkedCrossEntropy.apply(hidden, index, chunk, dtype, rule, torch.is_grad_enabled(), *parts, *each)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        index: Tensor,
        chunk: int,
        dtype: torch.dtype,
        rule: LogitRule,
        differentiated: bool,
        *tables: Tensor,
    ) -> tuple[Tensor, Tensor]:
        parts, biases = tables[: len(tables) // 2], tables[len(tables) // 2 :]
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        device, num = hidden.device, len(hidden)
        needs_hidden = differentiated and ctx.needs_input_grad[0]
        needed_tables = ctx.needs_input_grad[6:]
        needs_parts = [
            differentiated and (weight or bias)
            for weight, bias in zip(needed_tables[: len(parts)], needed_tables[len(parts) :], strict=True)
        ]
        places = _locate_parts(parts)
        with torch.autocast(device.type, enabled=False):
            weights = [part.detach().to(dtype) for part in parts]
            logits_of_chunk = torch.empty(min(chunk, num), places[-1].stop, dtype=exact, device=device)
            lse, picked = torch.empty(2, num, dtype=exact, device=device)
            slope = torch.empty(hidden.shape, dtype=exact, device=device) if needs_hidden else None
            trained = sum(len(part) for part, needed in zip(parts, needs_parts, strict=True) if needed)
            # under a cap the logits are needed again, not their probabilities
            fits, whole = rule.cap is None and num * trained <= chunk * places[-1].stop, num <= chunk
            steep_at_label = torch.empty(num, dtype=exact, device=device) if rule.cap is not None else None
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
                for weight, bias, place in zip(weights, biases, places, strict=True):
                    logits[:, place] = _multiply_part(states, weight, bias)
                rule.apply_in_place(logits)
                label = index[rows, None]
                steep = rule.differentiate(logits)
                if steep_at_label is not None and isinstance(steep, Tensor):
                    steep_at_label[rows] = steep.gather(1, label)[:, 0]
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
                    if rule.cap is not None:
                        logits.mul_(steep)
                    slope[rows] = _multiply_parts(logits.to(dtype), weights, places)
                    if whole:
                        logits.scatter_add_(1, label, one)  # what is kept are probabilities
            if slope is not None and rule.cap is None:
                slope.mul_(rule.scale)
        ctx.save_for_backward(hidden, index, lse, slope, steep_at_label, *parts, *biases, *kept)
        ctx.chunk, ctx.dtype, ctx.rule = chunk, dtype, rule
        return lse - picked, lse.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_loss: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        hidden, index, lse, slope, steep_at_label, *rest = ctx.saved_tensors
        num, rule = len(rest) // 3, ctx.rule
        parts, biases, kept = rest[:num], rest[num : 2 * num], rest[2 * num :]
        needs_parts, needs_biases = ctx.needs_input_grad[6 : 6 + num], ctx.needs_input_grad[6 + num :]
        places = _locate_parts(parts)
        with torch.autocast(hidden.device.type, enabled=False):
            weights = [part.detach().to(ctx.dtype) for part in parts]
            grad_hidden = None
            if slope is not None:  # d lse = d loss + the row of the label
                grad_hidden = slope * (grad_loss + grad_lse)[:, None]
                for weight, place in zip(weights, places, strict=True):
                    inside = ((index >= place.start) & (index < place.stop)).nonzero().squeeze(1)
                    labels = weight[index[inside] - place.start].to(lse.dtype)
                    factor = grad_lse[inside] * (rule.scale if steep_at_label is None else steep_at_label[inside])
                    grad_hidden.index_add_(0, inside, labels * factor[:, None])
                grad_hidden = grad_hidden.to(hidden.dtype)
            grad_parts: list[Tensor | None] = []
            grad_biases: list[Tensor | None] = []
            for part, weight, bias, place, probabilities, needed, needs_bias in zip(
                parts, weights, biases, places, kept, needs_parts, needs_biases, strict=True
            ):
                if not needed and not needs_bias:
                    grad_parts.append(None)
                    grad_biases.append(None)
                    continue
                total = torch.zeros(part.shape, dtype=lse.dtype, device=part.device)
                summed = torch.zeros(len(part), dtype=lse.dtype, device=part.device)
                step = ctx.chunk if probabilities is None else max(1, ctx.chunk // 4)  # those kept are not overwritten
                for begin in range(0, len(hidden) if len(part) else 0, step):
                    rows = slice(begin, begin + step)
                    states = hidden[rows].detach().to(ctx.dtype)
                    factor = (grad_loss[rows] + grad_lse[rows])[:, None]
                    steep: Tensor | float = rule.scale
                    if probabilities is not None:
                        grad = probabilities[rows] * factor
                    else:
                        logits = rule.apply_in_place(_multiply_part(states, weight, bias).to(lse.dtype))
                        steep = rule.differentiate(logits)
                        grad = logits.sub_(lse[rows, None]).exp_().mul_(factor)
                    inside = (index[rows] >= place.start) & (index[rows] < place.stop)
                    label = (index[rows] - place.start).clamp(0, len(part) - 1)
                    grad.scatter_add_(1, label[:, None], -(grad_loss[rows] * inside)[:, None])
                    grad.mul_(steep)
                    total += grad.to(ctx.dtype).T @ states
                    summed += grad.sum(0)
                grad_parts.append(total.to(part.dtype) if needed else None)
                grad_biases.append(summed.to(bias.dtype) if needs_bias else None)
        return grad_hidden, None, None, None, None, None, *grad_parts, *grad_biases


def _multiply_part(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """states [c, D] times a part [k, D] → [c, k], a new tensor."""
    products = states @ weight.T
    return products if bias is None else products + bias.detach()


def _locate_parts(parts: Sequence[Tensor]) -> list[slice]:
    """Where each part's rows lie among the K."""
    ends = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0).tolist()
    return [slice(begin, end) for begin, end in itertools.pairwise(ends)]


def _multiply_parts(grad: Tensor, weights: Sequence[Tensor], places: Sequence[slice]) -> Tensor:
    """grad [c, K] times the parts → [c, D]."""
    return functools.reduce(Tensor.add_, (grad[:, p] @ w for w, p in zip(weights, places, strict=True)))
