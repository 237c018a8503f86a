"""The rows of a hypernetwork, and its training (zero-shot tokenizer transfer, arXiv:2405.07883).

Each step draws a tokenizer at random from the batch's text (`sampled_tokenizer.py`). The base, frozen, reads the text
in the drawn tokens by the made rows and is scored by them; and where a drawn token is one of the base's, its made rows
are held near the base's own. The head's bias, where a base has one, counts for nothing in training and is the mean for
all tokens.

Shapes: R tokens, S sides, D width, V text rows of the base, N tokens of a text.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unimodal.model.logits import read_logit_rule
from unimodal.model.rows import find_embedding_scale
from unimodal.text.reports.opened import OpenedTokenizer
from unimodal.tuning.transplant.hypernetwork import HypernetworkSettings, RowHypernetwork, read_pieces, stack_tables
from unimodal.tuning.transplant.pieces import decompose
from unimodal.tuning.transplant.request import Side, TransplantRequest
from unimodal.tuning.transplant.resize import Tables
from unimodal.tuning.transplant.sampled_tokenizer import sample_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class MadeByNetwork:
    """The rows that a network makes of every token, one side of them; `apply` is given that side's table."""

    network: RowHypernetwork
    rows: Tensor  # [V, S, D]
    listed: dict[int, list[int]]  # new row → the base's rows of its pieces
    num_rows: int
    side: int

    @torch.no_grad()
    def apply(self, table: Tensor) -> Tensor:
        made = torch.full((self.num_rows, table.shape[1]), float("nan"))
        if table.shape[1] != self.network.width:
            return made  # biases
        numbers = list(self.listed)
        for at in range(0, len(numbers), 1024):
            part = numbers[at : at + 1024]
            found = self.network(*read_pieces(self.rows, [self.listed[row] for row in part]))
            made[torch.tensor(part)] = found[:, self.side]
        return made.to(table)


def mix_by_network(request: TransplantRequest, side: Side = "input") -> MadeByNetwork:
    """The rows of all tokens by the request's network. Raises ValueError without one, and for one of another base."""
    network, rows = request.hypernetwork, request.base_rows
    if network is None or rows is None:
        raise ValueError(
            "method 'zett' needs a network that was trained for this base by tools/train_hypernetwork.py; "
            "name it by --hypernetwork"
        )
    if (network.num_sides, network.width) != tuple(rows.shape[1:]):
        raise ValueError(
            f"the hypernetwork makes {network.num_sides} rows of width {network.width} a token, but the base has "
            f"{rows.shape[1]} of {rows.shape[2]}; train one for this base"
        )
    listed = {row: request.decompose(piece) for row, piece in sorted(request.new.spelled.items())}
    return MadeByNetwork(
        network.eval(), rows, listed, request.num_rows, int(side == "output" and network.num_sides > 1)
    )


def train_hypernetwork(
    model: PreTrainedModel,
    tables: Tables,
    old: OpenedTokenizer,
    pieces: Sequence[str],
    start: int | None,
    settings: HypernetworkSettings,
    on_step: Callable[[int, float, float], None] = lambda step, loss, near: None,
    seconds: float | None = None,
) -> RowHypernetwork:
    """Train a network for a base on pieces of text, in an order that the seed decides; the base stays as it is.

    start: the row before a text. on_step: called with the step, its loss in nats a byte, and how far made rows lie from
    the base's own, as a share of their spread. seconds: of a processor, after which no further step begins. Raises
    ValueError for too little text.
    """
    if len(pieces) < settings.batch_size:
        raise ValueError(f"{len(pieces)} pieces of text are too few for a batch of {settings.batch_size}; give more")
    rows = stack_tables(tables, old.text.size)
    network = RowHypernetwork(rows.shape[2], rows.shape[1], settings)
    network.fit_scales(rows)
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    rng = random.Random(settings.seed)
    scale, rule = find_embedding_scale(model.get_input_embeddings()), read_logit_rule(model)
    spread = rows.var(0).mean()
    by_bytes = {piece: row for row, piece in sorted(old.spelled.items(), reverse=True)}
    known: dict[bytes, list[int]] = {}
    model.requires_grad_(False)
    model.eval()
    begun = time.process_time()
    for step in range(settings.steps):
        if seconds is not None and time.process_time() - begun >= seconds:
            break
        texts = rng.sample(list(pieces), settings.batch_size)
        drawn = sample_tokenizer(texts, settings.num_rows, rng)
        used = sorted(drawn.spelled)
        for row in used:
            known.setdefault(drawn.spelled[row], decompose(old, drawn.spelled[row]))
        made = network(*read_pieces(rows, [known[drawn.spelled[row]] for row in used]))  # [R, S, D]
        nats = made.new_zeros(())
        for text in texts:
            ids = torch.tensor(drawn.encode(text))
            inputs = made[ids, 0] * scale
            before = inputs[:0] if start is None else (tables.input[start].float() * scale)[None]
            given = torch.cat([before, inputs])[None]
            states = model.get_decoder()(inputs_embeds=given.to(tables.input.dtype), use_cache=False).last_hidden_state
            logits = rule.apply(states[0, :-1].float() @ made[:, -1].T)
            nats = nats + cross_entropy(logits, ids if start is not None else ids[1:], reduction="sum")
        loss = nats / sum(len(text.encode()) for text in texts)
        shared = [(at, by_bytes[drawn.spelled[row]]) for at, row in enumerate(used) if drawn.spelled[row] in by_bytes]
        here, there = torch.tensor(shared).T
        near = (made[here] - rows[there]).square().mean() / spread
        optimizer.zero_grad(set_to_none=True)
        (loss + settings.near_weight * near).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        on_step(step, float(loss.detach()), float(near.detach()))
    return network.eval()
