"""The training loss of a packed batch, as the training loop calls it.

Shapes: B rows of a batch, N tokens, K values a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from unimodal.sequence.packing import PackedBatch
from unimodal.training.batches import WeightedLoss


def to_tensors(batch: PackedBatch, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """A packed batch as ids, labels and position ids, each int64 [B, N], and for a vocabulary with summed positions
    their further codes, [B, N, G - 1]."""

    def move(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).long().to(device)

    arrays = [batch.ids, batch.labels, batch.position_ids]
    return tuple(map(move, [*arrays, batch.further] if batch.further.shape[2] else arrays))


def read_values(batch: PackedBatch, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """What the objective is told of each token, float32 [B, N, K], by the name of its argument; {} for nothing."""
    if not batch.values.shape[2]:
        return {}
    return {"values": torch.from_numpy(np.ascontiguousarray(batch.values)).to(device)}


def measure_shares(terms: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> dict[str, float]:
    """The share of each term of a sum in its gradient: the part that its own gradient has along the whole one.

    Shares sum to 1; a term that works against the others has one below 0. The graph is kept. {} for one term, and where
    nothing is learnt.
    """
    if len(terms) < 2:
        return {}
    found = {}
    for name, term in terms.items():
        if not term.requires_grad:
            return {}
        own = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        found[name] = [torch.zeros_like(p) if g is None else g.detach() for p, g in zip(parameters, own, strict=True)]
    whole = [torch.stack(each).sum(0) for each in zip(*found.values(), strict=True)]
    square = float(sum(g.double().square().sum() for g in whole))
    if not square:
        return {}
    return {
        name: float(sum((g.double() * w.double()).sum() for g, w in zip(own, whole, strict=True))) / square
        for name, own in found.items()
    }


def make_packed_loss(
    module: nn.Module, device: torch.device, by_block: bool = False, shares_every: int = 0
) -> Callable[[PackedBatch, int], WeightedLoss]:
    """The loss function of a trainer. module: an `Objective`, or its DDP wrapper.

    by_block: log losses by block of the vocabulary in place of by modality. shares_every: log `measure_shares` as
    `share_…` in every so-manieth step, of this rank's documents; 0 for never, nor where weights are split over ranks.
    """
    learnt = [p for p in module.parameters() if p.requires_grad and type(p) is nn.Parameter]

    def compute_loss(batch: PackedBatch, step: int) -> WeightedLoss:
        total, found = module(*to_tensors(batch, device), **read_values(batch, device))
        named: Mapping[str, tuple[float, int]] = found["blocks" if by_block else "modalities"]
        sums = {f"loss_{name}": (summed, float(count)) for name, (summed, count) in named.items()}
        if batch.further.shape[2]:  # and the codes of summed positions by group
            blocks: Mapping[str, tuple[float, int]] = found["blocks"]
            summed_blocks = {name.partition(".")[0] for name in blocks if "." in name}
            for name, (summed, count) in blocks.items():
                if name.partition(".")[0] in summed_blocks:
                    label = name if "." in name else f"{name}.0"
                    sums[f"loss_{label}"] = (summed, float(count))
        sums |= found["metrics"]
        if shares_every and module.training and step % shares_every == 0:
            shares = measure_shares(found.get("terms", {}), learnt)
            sums |= {f"share_{name}": (share, 1.0) for name, share in shares.items()}
        return WeightedLoss(total, found["weight"], sums, int((batch.segment_ids > 0).sum()))

    return compute_loss
