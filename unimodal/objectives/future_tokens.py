"""The loss of draft heads: the tokens behind the next one, predicted from the states of a frozen LM.

From the state of token t the heads predict the tokens t + 2, …, t + 1 + A of the same answer, each given the tokens
between. The token k places behind the next one counts decay^k, as in Medusa (arXiv 2401.10774, 0.8) and Future Token
Prediction (arXiv 2410.18160). Each is scored among the rows that the grammar allows there, as by `next_token.py`.

Only what an answer holds is learnt, and only states of that answer are read, since fast decoding has no others: the
state that its first token comes from, and those of its tokens.

Shapes: B rows, N tokens, R places, A tokens ahead, M states, P scored tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unimodal.model.draft_heads import DraftHeads
from unimodal.model.logits import PLAIN, LogitRule
from unimodal.objectives.cross_entropy import MAX_LOGITS
from unimodal.objectives.next_token import IGNORE, HeadGroups, SlicedLoss, TokenLosses, compute_token_losses

DECAY = 0.8


def find_answer_starts(targets: Tensor, position_ids: Tensor) -> Tensor:
    """For each token the first one of its run of targets, int64 [B, N]; its own index where it has no target.

    targets: int64 [B, N] of `shift_labels`. A run ends with its document.
    """
    index = torch.arange(targets.shape[1], device=targets.device).expand_as(targets)
    goes_on = torch.zeros_like(targets, dtype=torch.bool)
    labelled = targets != IGNORE
    goes_on[:, 1:] = labelled[:, 1:] & labelled[:, :-1] & (position_ids.expand_as(targets)[:, 1:] > 0)
    return torch.where(goes_on, 0, index).cummax(1).values


def compute_future_losses(
    heads: DraftHeads,
    hidden: Tensor,
    ids: Tensor,
    targets: Tensor,
    position_ids: Tensor,
    embed: nn.Module,
    head: nn.Module,
    groups: HeadGroups,
    max_logits: int = MAX_LOGITS,
    rule: LogitRule = PLAIN,
    most: int | None = None,
    generator: torch.Generator | None = None,
) -> list[TokenLosses]:
    """The losses of each place ahead, from the LM's states [B, N, D] at tokens ``ids`` [B, N].

    targets: of `shift_labels`. embed, head, rule: the LM's table, output matrix and `read_logit_rule`. A token is
    scored if all between it and the state belong to the same answer. most: learn from so many states of the batch,
    which ``generator`` chooses; None for all. Raises ValueError as `compute_token_losses`.
    """
    device, num_ahead, length = ids.device, heads.num_ahead, ids.shape[1]
    starts, labelled = find_answer_starts(targets, position_ids), targets != IGNORE
    joined = labelled[:, :-1] & labelled[:, 1:] & (starts[:, :-1] == starts[:, 1:])
    row, at = joined.nonzero(as_tuple=True)  # [R], tokens with another target behind theirs
    if most is not None and len(row) > most:
        chosen = torch.randperm(len(row), generator=generator)[:most].to(device)
        row, at = row[chosen], at[chosen]

    back = at[:, None] - torch.arange(heads.num_states - 1, -1, -1, device=device)  # [R, M], the newest last
    seen = back >= starts[row, at][:, None]
    states = hidden[row[:, None], back.clamp(min=0)]
    ahead = at[:, None] + torch.arange(1, num_ahead + 1, device=device)  # [R, A]
    whole = ahead < length
    ahead = ahead.clamp(max=length - 1)
    found = targets[row[:, None], ahead]
    whole &= (found != IGNORE) & (starts[row[:, None], ahead] == starts[row, at][:, None])
    outputs = heads(states, seen, embed(ids[row[:, None], ahead]))  # [R, A, D]

    losses = []
    for place in range(num_ahead):
        scored = whole[:, place]
        own = heads.get_head(place)
        losses.append(
            compute_token_losses(
                outputs[None, scored, place], ids[row, ahead[:, place]][None, scored], found[None, scored, place],
                head if own is None else own, groups, "block", max_logits, rule,
            )
        )  # fmt: skip
    return losses


def sum_future_losses(losses: list[TokenLosses], decay: float = DECAY) -> SlicedLoss:
    """The losses of all places in one sum, those k places behind the next token weighted by decay^k, k from 1."""
    each = [one.reduce() for one in losses]
    factors = [decay ** (place + 1) for place in range(len(each))]
    total = torch.stack([factor * one.total for factor, one in zip(factors, each, strict=True)]).sum()
    weight = sum(factor * one.weight for factor, one in zip(factors, each, strict=True))
    blocks = {}
    for place, one in enumerate(each, start=1):
        if one.count:
            blocks[f"ahead_{place}"] = (sum(nats for nats, _ in one.per_block.values()), one.count)
    return SlicedLoss(total, weight, sum(one.count for one in each), blocks)
