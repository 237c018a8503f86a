"""Cross-entropy of a large head without holding its logits.

The logits [P, K] of P positions over K rows are by far the largest tensor of a training step: 4,096 positions over
65,000 rows are 1 GB in float32, and autograd keeps several of that size. Here they exist for one chunk of positions at
a time and are computed again in the backward pass, as in "Cut Your Losses in Large-Vocabulary Language Models"
(arXiv 2411.09009) and Liger Kernel (arXiv 2410.10989), in plain torch. The head's weight comes in parts (a frozen
base table and new rows): they are never joined, and a frozen part gets no gradient computed. Values and gradients
equal the plain computation's.

Where all logits fit into one chunk they are kept as probabilities instead, which saves the second product.

Shapes: P positions, D width, K rows of the softmax (the parts' rows one behind the other).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

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
    return _ChunkedCrossEntropy.apply(hidden, index, chunk, dtype, *parts)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, index: Tensor, chunk: int, dtype: torch.dtype, *parts: Tensor
    ) -> tuple[Tensor, Tensor]:
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        with torch.autocast(hidden.device.type, enabled=False):
            weights = [part.detach().to(dtype) for part in parts]
            lse = torch.empty(len(hidden), dtype=exact, device=hidden.device)
            picked = torch.empty_like(lse)
            kept = None
            for begin in range(0, len(hidden), chunk):
                rows = slice(begin, begin + chunk)
                logits = _logits(hidden[rows].detach().to(dtype), weights, exact)  # [c, K]
                torch.logsumexp(logits, 1, out=lse[rows])
                picked[rows] = logits.gather(1, index[rows, None])[:, 0]
                if len(hidden) <= chunk and any(ctx.needs_input_grad):
                    kept = logits.sub_(lse[:, None]).exp_()  # probabilities
        ctx.save_for_backward(hidden, index, lse, *parts)
        ctx.kept, ctx.chunk, ctx.dtype = kept, chunk, dtype
        return lse - picked, lse.clone()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        hidden, index, lse, *parts = ctx.saved_tensors
        needs_hidden, needs_parts = ctx.needs_input_grad[0], ctx.needs_input_grad[4:]
        with torch.autocast(hidden.device.type, enabled=False):
            weights = [part.detach().to(ctx.dtype) for part in parts]
            grad_hidden = torch.empty_like(hidden) if needs_hidden else None
            grad_parts = [
                torch.zeros(part.shape, dtype=lse.dtype, device=part.device) if needed else None
                for part, needed in zip(parts, needs_parts, strict=True)
            ]
            for begin in range(0, len(hidden), ctx.chunk):
                rows = slice(begin, begin + ctx.chunk)
                states = hidden[rows].detach().to(ctx.dtype)  # [c, D]
                if ctx.kept is not None:
                    grad, ctx.kept = ctx.kept, None  # one use: a second backward computes them again
                else:
                    grad = _logits(states, weights, lse.dtype).sub_(lse[rows, None]).exp_()
                # d loss = softmax - one-hot, d lse = softmax
                grad.mul_((grad_loss[rows] + grad_lse[rows])[:, None])
                grad.scatter_add_(1, index[rows, None], -grad_loss[rows, None])
                grad = grad.to(ctx.dtype)  # [c, K]
                if grad_hidden is not None:
                    grad_hidden[rows] = _times(grad, weights).to(hidden.dtype)
                at = 0
                for total, weight in zip(grad_parts, weights, strict=True):
                    if total is not None:
                        total += grad[:, at : at + len(weight)].T @ states
                    at += len(weight)
        typed = [None if g is None else g.to(part.dtype) for g, part in zip(grad_parts, parts, strict=True)]
        return grad_hidden, None, None, None, *typed


def _logits(states: Tensor, weights: Sequence[Tensor], exact: torch.dtype) -> Tensor:
    """states [c, D] → logits [c, K] in the exact type, written part by part into one tensor."""
    if len(weights) == 1:
        return (states @ weights[0].T).to(exact)
    logits = torch.empty(len(states), sum(len(w) for w in weights), dtype=states.dtype, device=states.device)
    at = 0
    for weight in weights:
        torch.mm(states, weight.T, out=logits[:, at : at + len(weight)])
        at += len(weight)
    return logits.to(exact)


def _times(grad: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """grad [c, K] times the parts → [c, D]."""
    at, total = 0, None
    for weight in weights:
        part = grad[:, at : at + len(weight)] @ weight
        total = part if total is None else total.add_(part)
        at += len(weight)
    assert total is not None
    return total
