"""The tables of a model as they were, and others in their place: the stock model of another vocabulary.

Shapes: V rows, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Tables:
    """The rows of a causal LM: embedding [V, D], head [V, D] or None where tied, and the head's bias [V], if any."""

    input: Tensor
    output: Tensor | None
    bias: Tensor | None


def read_tables(model: PreTrainedModel) -> Tables:
    """The weights of a model's tables, which stay as they are when others take their place."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    output = None if head.weight is table.weight else head.weight.detach()
    return Tables(table.weight.detach(), output, None if bias is None else bias.detach())


def replace_tables(model: PreTrainedModel, tables: Tables) -> None:
    """Give a stock causal LM other rows, in place and in its precision; a tied model stays tied."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    kind = table.weight.dtype
    table.weight = nn.Parameter(tables.input.to(kind))
    head.weight = table.weight if tables.output is None else nn.Parameter(tables.output.to(kind))
    if tables.bias is not None:
        head.bias = nn.Parameter(tables.bias.to(kind))
    num_rows = len(tables.input)
    table.num_embeddings = head.out_features = num_rows
    table.padding_idx = None  # it only keeps gradients away
    for owner in (model.config, model, model.get_decoder()):
        if hasattr(owner, "vocab_size"):
            owner.vocab_size = num_rows
