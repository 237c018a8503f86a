"""New vocabulary rows beside a frozen base model, and the head read row by row.

Media codes and controls become rows behind the base table, padded base rows included. The base table stays frozen and
untouched; the new rows are a parameter of their own on the input side and, unless the base ties its tables, another on
the output side. (peft's trainable indices train the input side of an untied model only, and resizing the base puts its
whole table into the optimizer.) ``merge_rows`` concatenates both into a stock model of the same architecture.

New rows are treated as base rows are: a table that scales what it looks up (Gemma's) scales them too. Where the head
has a bias, it is 0 for new rows.

Shapes: B batch, N tokens, D width, V base rows, R new rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.utils import parametrize

from unimodal.model.feature_rows import FeatureRows
from unimodal.model.soft_prompt import PromptedEmbedding, attach_soft_prompt, detach_soft_prompt
from unimodal.model.structured_rows import StructuredRows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def draw_initial_rows(base: Tensor, num_rows: int, seed: int = 0) -> Tensor:
    """New rows [R, D] like the base's [V, D]: their mean, plus noise with their spread in each of the D directions.

    The head cannot tell rows apart that all equal the mean, and rows far larger than the base's drown its logits.
    Raises ValueError for a base of zeros.
    """
    table = base.detach().float()
    used = table[table.abs().sum(1) > 0]  # padded rows are often zero
    if not len(used):
        raise ValueError("the base table has only zero rows; load its weights before adding rows")
    spread = used.std(0, correction=0) if len(used) > 1 else used.abs().mean(0)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_rows, table.shape[1], generator=generator).to(table.device)
    return (used.mean(0) + noise * spread).to(base.dtype)


def find_embedding_scale(table: nn.Embedding) -> float:
    """The factor by which a base's embedding table multiplies its rows: sqrt(D) in Gemma's, 1 in most.

    Raises ValueError for a table that does more than multiply.
    """
    if type(table) is nn.Embedding:
        return 1.0
    found = getattr(table, "embed_scale", 1.0)  # transformers has a class of its own for each family
    scale = float(found)
    rows = torch.arange(min(table.num_embeddings, 64), device=table.weight.device)
    with torch.no_grad():
        if not torch.allclose(table(rows).float(), table.weight[rows].float() * scale, rtol=2e-2, atol=1e-6):
            raise ValueError(f"its embedding table is a {type(table).__name__}, which does more than scale its rows")
    return scale


class ExtendedEmbedding(nn.Module):
    """An embedding of V base rows and R new ones: ids [B, N] -> [B, N, D], without joining the two tables."""

    def __init__(self, base: nn.Embedding, new_rows: nn.Parameter) -> None:
        super().__init__()
        self.base = base
        self.new_rows = new_rows  # [R, D]
        self.num_base = base.num_embeddings
        self.scale = find_embedding_scale(base)

    @property
    def num_rows(self) -> int:
        return self.num_base + len(self.new_rows)

    def forward(self, ids: Tensor) -> Tensor:
        is_new = ids >= self.num_base
        old = self.base(ids.masked_fill(is_new, 0))
        new = F.embedding((ids - self.num_base).clamp(min=0), self.new_rows).to(old.dtype)
        if self.scale != 1.0:  # rounded as the base's own factor is
            new = new * new.new_tensor(self.scale)
        return torch.where(is_new[..., None], new, old)


class ExtendedHead(nn.Module):
    """A head of V base rows and R new ones: hidden [..., D] -> logits [..., V + R].

    `UntiedExtendedHead` has new rows of its own, `TiedExtendedHead` those of the embedding.
    """

    new_rows: Tensor  # [R, D]

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.num_base = base.out_features

    @property
    def num_rows(self) -> int:
        return self.num_base + len(self.new_rows)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.cat([self.base(hidden), F.linear(hidden, self.new_rows.to(hidden.dtype))], dim=-1)

    def select_biases(self, rows: range) -> list[Tensor | None]:
        """The biases [k] of the parts of these rows; None for new rows, and for a base without a bias."""
        old: list[Tensor | None] = []
        if rows.start < self.num_base:
            bias = self.base.bias
            old = [None if bias is None else bias[rows.start : min(rows.stop, self.num_base)]]
        return [*old, None] if rows.stop > self.num_base else old


class UntiedExtendedHead(ExtendedHead):
    """The head of a base whose two tables are separate: its new rows are a parameter of its own."""

    def __init__(self, base: nn.Linear, new_rows: nn.Parameter) -> None:
        super().__init__(base)
        self.new_rows = new_rows


class TiedExtendedHead(ExtendedHead):
    """The head of a base that ties its tables: its new rows are the embedding's, parametrized or not."""

    def __init__(self, base: nn.Linear, embedding: ExtendedEmbedding) -> None:
        super().__init__(base)
        self._embedding = [embedding]  # in a list: its parameters are the embedding's alone

    @property
    def new_rows(self) -> Tensor:  # type: ignore[override]
        return self._embedding[0].new_rows


def find_base_table(model: PreTrainedModel) -> nn.Embedding:
    """The base's own embedding table, below what stands in its place (`FeatureRows`, new rows, a soft prompt)."""
    table = model.get_input_embeddings()
    while isinstance(table, (FeatureRows, PromptedEmbedding, ExtendedEmbedding)):
        table = table.base
    return table


def find_rows(model: PreTrainedModel) -> nn.Module:
    """The table of base and new rows, below a soft prompt where there is one."""
    table = model.get_input_embeddings()
    return table.base if isinstance(table, PromptedEmbedding) else table


class _CutRows(torch.autograd.Function):
    """A table [V, D] → the rows of each (first, behind the last). Their gradients are summed in one table, where slices
    of autograd's own fill one of the whole size each."""

    @staticmethod
    def forward(ctx: FunctionCtx, table: Tensor, ends: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
        ctx.ends, ctx.size = ends, table.shape
        ctx.set_materialize_grads(False)
        return tuple(table[first:behind] for first, behind in ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        total: Tensor | None = None
        for (first, behind), gradient in zip(ctx.ends, gradients, strict=True):
            if gradient is not None:
                total = gradient.new_zeros(ctx.size) if total is None else total
                total[first:behind] += gradient
        return total, None


def cut_head(head: nn.Module, pieces: Sequence[range]) -> list[list[Tensor]]:
    """The weights of each piece of a head's rows as parts [k, D], attached to its parameters.

    head: an ExtendedHead, whose base rows and new rows are parts of their own, or any module with a ``weight`` [V, D]
    (a Linear, a tied Embedding).
    """
    found: list[list[Tensor]] = [[] for _ in pieces]
    tables = (
        [(head.base.weight, 0), (head.new_rows, head.num_base)]
        if isinstance(head, ExtendedHead)
        else [(head.weight, 0)]
    )
    for table, before in tables:
        ends = [(max(piece.start - before, 0), min(piece.stop - before, len(table))) for piece in pieces]
        inside = [number for number, (first, behind) in enumerate(ends) if first < behind]
        for number, part in zip(inside, _CutRows.apply(table, [ends[number] for number in inside]), strict=True):
            found[number].append(part)
    return found


def select_head_parts(head: nn.Module, rows: range) -> list[Tensor]:
    """The parts of `cut_head` of one piece."""
    return cut_head(head, [rows])[0]


def select_head_biases(head: nn.Module, rows: range) -> list[Tensor | None]:
    """The biases of the parts of `select_head_parts`, each [k] or None."""
    if isinstance(head, ExtendedHead):
        return head.select_biases(rows)
    bias = head.bias if isinstance(head, nn.Linear) else None
    return [None if bias is None else bias[rows.start : rows.stop]]


def read_head_rows(head: nn.Module, rows: range) -> Tensor:
    """The weights of these rows in one tensor [len(rows), D], in the precision of the first part."""
    parts = select_head_parts(head, rows)
    return parts[0] if len(parts) == 1 else torch.cat([part.to(parts[0].dtype) for part in parts])


def read_head_bias(head: nn.Module, rows: range) -> Tensor | None:
    """The biases of these rows in one tensor [len(rows)]; None for a head without."""
    biases = select_head_biases(head, rows)
    if all(bias is None for bias in biases):
        return None
    pairs = zip(biases, select_head_parts(head, rows), strict=True)
    return torch.cat([part.new_zeros(len(part)) if bias is None else bias.to(part.dtype) for bias, part in pairs])


def extend_rows(
    model: PreTrainedModel,
    num_rows: int,
    seed: int = 0,
    freeze_base: bool = True,
    draw_rows: Callable[[Tensor, int], Tensor] | None = None,
) -> PreTrainedModel:
    """Put ``num_rows`` trainable rows behind the embedding rows of a Hugging Face causal LM, in place; return it.

    draw_rows: (table [V, D], seed) → the first values [R, D] of one side; ``draw_initial_rows`` by default.

    The first new id is the length of the base's table, which may be longer than its tokenizer. Everything else is
    frozen unless ``freeze_base`` is False. LoRA is added afterwards; peft freezes the new rows then, so call
    ``requires_grad_(True)`` on them again.
    Raises ValueError for a model that has new rows already, and for one whose tables do not fit.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(embedding, ExtendedEmbedding):
        raise ValueError("this model already has new rows; merge them first")
    if not isinstance(head, nn.Linear):
        raise ValueError(f"the head is {head}; new rows need a Linear")
    if embedding.num_embeddings != head.out_features:
        raise ValueError(f"the tables have {embedding.num_embeddings} and {head.out_features} rows; they must agree")
    if num_rows < 1:
        raise ValueError(f"num_rows is {num_rows}; give at least 1")
    tied = head.weight is embedding.weight
    if freeze_base:
        model.requires_grad_(False)
    draw_rows = draw_rows or (lambda table, side_seed: draw_initial_rows(table, num_rows, side_seed))
    input_rows = nn.Parameter(draw_rows(embedding.weight, seed))
    extended = ExtendedEmbedding(embedding, input_rows)
    if tied:
        new_head: ExtendedHead = TiedExtendedHead(head, extended)
    else:
        new_head = UntiedExtendedHead(head, nn.Parameter(draw_rows(head.weight, seed + 1)))
    model.set_input_embeddings(extended)
    model.set_output_embeddings(new_head)
    return model


def share_rows(model: PreTrainedModel, features: Mapping[range, Tensor]) -> None:
    """Train the new rows of a block together: row + features(code) @ table, with one table [F, D] for each side.

    features: rows of the vocabulary → [R, F]. The rows keep their values; a gradient for one code then also moves the
    codes with similar features (`structured_rows.py`). Compute inside ``parametrize.cached()``. Saving and merging give
    plain rows. Raises ValueError for a model without new rows, and for features that do not fit them.

    By `tools/compare_initialisers.py --only codebook --sharing both --layers 8 --precision bfloat16 --pictures 100
    --steps 100` (one seed; the first 8 layers of SmolLM2; 100 emoji asked about and asked for, 82 other concepts held
    out), training documents are fitted sooner and held-out concepts are not known better; losses in nats a token:

        loss after 100 steps      trained on: text  pictures    held out: text  pictures
        rows of their own                    2.290     4.984             2.803    10.157
        rows that share                      2.154     4.244             2.807    10.347
    """
    embedding, head = find_rows(model), model.get_output_embeddings()
    if not isinstance(embedding, ExtendedEmbedding) or not isinstance(head, ExtendedHead):
        raise ValueError("this model has no new rows to share")
    num_base = embedding.num_base
    shifted = {range(rows.start - num_base, rows.stop - num_base): block for rows, block in features.items()}
    sides: list[ExtendedEmbedding | ExtendedHead] = [embedding]
    if not isinstance(head, TiedExtendedHead):
        sides.append(head)
    for module in sides:
        num_rows, width = module.new_rows.shape
        shared = StructuredRows(shifted, num_rows, width, std=0.0).to(module.new_rows.device)
        parametrize.register_parametrization(module, "new_rows", shared, unsafe=True)


@torch.no_grad()
def merge_rows(model: PreTrainedModel) -> PreTrainedModel:
    """Join base and new rows into plain tables, in place: a stock model again, with ``vocab_size`` grown to match.

    Raises ValueError for a model without new rows.
    """
    embedding, head = find_rows(model), model.get_output_embeddings()
    if not isinstance(embedding, ExtendedEmbedding) or not isinstance(head, ExtendedHead):
        raise ValueError("this model has no new rows to merge")
    prompt = detach_soft_prompt(model)
    table, matrix = embedding.base, head.base  # of their own classes, which may scale what they look up
    weight = torch.cat([table.weight, embedding.new_rows.to(table.weight.dtype)])
    if isinstance(head, TiedExtendedHead):
        table.weight = matrix.weight = nn.Parameter(weight)
    else:
        table.weight = nn.Parameter(weight)
        matrix.weight = nn.Parameter(torch.cat([matrix.weight, head.new_rows.to(matrix.weight.dtype)]))
    if matrix.bias is not None:
        matrix.bias = nn.Parameter(F.pad(matrix.bias, (0, len(weight) - len(matrix.bias))))
    table.num_embeddings = matrix.out_features = len(weight)
    model.set_input_embeddings(table)
    model.set_output_embeddings(matrix)
    model.config.vocab_size = weight.shape[0]
    if hasattr(model, "vocab_size"):
        model.vocab_size = weight.shape[0]
    decoder = model.get_decoder()
    if hasattr(decoder, "vocab_size"):
        decoder.vocab_size = weight.shape[0]
    if prompt is not None:
        attach_soft_prompt(model, prompt)
    return model


def get_new_rows(model: PreTrainedModel) -> dict[str, Tensor]:
    """The new rows [R, D] of each side: ``input`` and, on an untied model, ``output``.

    Raises ValueError for a model without new rows.
    """
    embedding, head = find_rows(model), model.get_output_embeddings()
    if not isinstance(embedding, ExtendedEmbedding) or not isinstance(head, ExtendedHead):
        raise ValueError("this model has no new rows")
    rows = {"input": embedding.new_rows}
    return rows if isinstance(head, TiedExtendedHead) else {**rows, "output": head.new_rows}
