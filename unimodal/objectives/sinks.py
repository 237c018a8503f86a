"""Attention sinks and massive activations: a loss against them, and what to measure of them.

A few tokens take most of the attention, and a few channels of theirs are a thousand times as large as the rest. In
audio-visual speech models not only the first token is such a sink but others are too, all alike in direction. Pulling
the directions of the others away from that of the first takes these away (arXiv 2510.22603):

    loss = mean over layers, and over the tokens t of a document behind its first, of cos(h_first, h_t)²

The square, which leaves directions that are at right angles alone, and the mean over all blocks are choices of ours; of
the published loss only what it compares is known here. The term is added to any objective.

A sink is a token with more than `SINK_SHARE` of the attention of the queries behind it, a mean over heads, as in
arXiv 2410.10781; activations are compared with the median of their layer, as in arXiv 2402.17762.

Shapes: B rows, N tokens, T = B * N, D width, L blocks, H heads, S documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from unimodal.config import Config
from unimodal.model.attention import Packing
from unimodal.model.blocks import find_decoder_blocks
from unimodal.objectives.objective import LossParts, Objective, number_documents, run_decoder
from unimodal.objectives.states import BlockStates

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SINK_SHARE = 0.3


class SinkConfig(Config):
    """Keep the states of tokens apart from that of the first."""

    weight: float = Field(default=1.0, gt=0)


class SinkDecorrelation(nn.Module):
    """An objective, and the term of its decoder's states beside it."""

    def __init__(self, main: Objective, own: SinkConfig | None = None) -> None:
        super().__init__()
        self.main, self.own = main, own or SinkConfig()
        self._states = BlockStates(main.model, only_trained=True)  # not of the model that it is compared with

    def forward(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        further: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        """See `Objective.forward`."""
        with self._states.collect() as states:
            total, parts = self.main(ids, labels, position_ids, further, values)
        if not states:  # without gradients, as in validation: nothing was kept
            return total, parts
        term = compute_first_likeness(states, position_ids, find_padding(labels, position_ids))
        parts["metrics"]["sink_likeness"] = (float(term.detach()), 1.0)
        added = self.own.weight * parts["weight"] * term
        parts["terms"] = parts.get("terms", {"objective": total}) | {"sinks": added}
        return total + added, parts


def find_padding(labels: Tensor, position_ids: Tensor) -> Tensor:
    """Which tokens are in a document without labels, bool [B, N]: the padding at the end of rows."""
    documents = number_documents(position_ids)
    learnt = torch.zeros(int(documents[-1]) + 1, dtype=torch.bool, device=labels.device)
    learnt[documents[labels.reshape(-1) >= 0]] = True
    return ~learnt[documents].view_as(labels)


def compute_first_likeness(states: list[Tensor], position_ids: Tensor, left_out: Tensor) -> Tensor:
    """states: of each block, [B, N, D] → the mean squared cosine between a document's first state and its others.

    left_out: tokens that do not count, bool [B, N].
    """
    flat = position_ids.reshape(-1)
    places = torch.arange(len(flat), device=flat.device)
    others = ((flat != 0) & ~left_out.reshape(-1)).nonzero().flatten()  # [P]
    firsts = (places - flat)[others]
    if not len(others):
        return states[0].sum() * 0.0
    terms = []
    for state in states:
        rows = state.flatten(0, 1).float()
        terms.append(torch.cosine_similarity(rows[others], rows[firsts], dim=-1).square().mean())
    return torch.stack(terms).mean()


@torch.no_grad()
def measure_sinks(model: PreTrainedModel, ids: Tensor, position_ids: Tensor) -> dict[str, float]:
    """ids and position_ids [B, N] of packed documents without padding → what the module's docstring defines.

    first_share: attention of a query to its document's first token, a mean over queries, heads and layers.
    inner_sinks: share of the other tokens that are sinks in some layer. likeness: see `compute_first_likeness`.
    largest_first, largest_other: the largest activation over the median of its layer's, at first tokens and at others;
    the greatest over layers. Needs attention varlen or xformers (`Packing.watch_layer`).
    """
    blocks, states = find_decoder_blocks(model), []
    handles = [
        block.register_forward_hook(
            lambda module, inputs, out: states.append(out[0] if isinstance(out, tuple) else out)
        )
        for block in blocks
    ]
    packing = Packing.from_position_ids(position_ids)
    flat = position_ids.reshape(-1)
    shares: list[Tensor] = []
    sinks = torch.zeros_like(flat, dtype=torch.bool)
    try:
        for layer in range(len(blocks)):
            states.clear()
            packing.watch_layer = layer
            run_decoder(model, ids, position_ids, packing)
            watched = packing.watched
            if watched is None:
                raise ValueError("sinks are measured with attention 'varlen' or 'xformers'; choose one of them")
            to_first, received = measure_attention(*watched, packing)
            shares.append(to_first[flat > 0].mean())
            sinks |= (received > SINK_SHARE) & (flat > 0)
    finally:
        for handle in handles:
            handle.remove()
    first = flat == 0
    ratios = []
    for state in states:
        rows = state.flatten(0, 1).float().abs()
        median = rows.median().clamp_min(1e-12)
        ratios.append(torch.stack([rows[first].max() / median, rows[~first].max() / median]))
    largest = torch.stack(ratios).amax(0).tolist()
    return {
        "first_share": float(torch.stack(shares).mean()),
        "inner_sinks": float(sinks[~first].float().mean()),
        "likeness": float(compute_first_likeness(states, position_ids, torch.zeros_like(ids, dtype=torch.bool))),
        "largest_first": largest[0],
        "largest_other": largest[1],
    }


def measure_attention(query: Tensor, key: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    """query [B, H, N, D], key [B, K, N, D] → (attention of each token to its document's first one, the mean attention
    that each token gets from the queries behind it), each [T], means over heads."""
    batch, num_heads, length, width = query.shape
    key = key.repeat_interleave(num_heads // key.shape[1], 1)
    flat = [x.float().transpose(1, 2).reshape(batch * length, num_heads, width) for x in (query, key)]
    to_first, received = torch.zeros(2, batch * length, device=query.device)
    for index, valid in packing.bucket_documents():  # [S, L]
        q, k = (x[index].transpose(1, 2) for x in flat)  # [S, H, L, D]
        num = index.shape[1]
        future = torch.ones(num, num, dtype=torch.bool, device=query.device).triu(1)
        weights = (q @ k.transpose(2, 3) * width**-0.5).masked_fill(future, -torch.inf).softmax(-1).mean(1)  # [S, L, L]
        behind = valid[:, :, None] & future.T  # [S, queries, keys]
        counted = torch.where(behind, weights, 0.0).sum(1) / behind.sum(1).clamp_min(1)  # [S, L]
        to_first[index[valid]] = weights[..., 0][valid]
        received[index[valid]] = counted[valid]
    return to_first, received
