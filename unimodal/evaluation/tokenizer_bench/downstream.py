"""What codes are good for once they stand: how much a simple reader finds in them, and how easy they are to model.

- `probe_codes`: a linear probe and the nearest neighbour, on codes alone, of items that are filed by label.
- `train_language_model`: nats an item of one fixed small decoder, at equal updates and at equal tokens.

Shapes: M items, N positions of an item, G groups, F features, L tokens of a sequence, B sequences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from unimodal.evaluation.tokenizer_bench.coded_items import CodedItems, count_vocabulary, flatten_codes, list_sizes
from unimodal.tokenizers.interface import MediaTokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

RowT = TypeVar("RowT")
WARMUP = 20  # updates
MOST_COUNTED = 4096  # values of a group's histogram; larger codebooks are folded
FOLDS = 5
RIDGE = 1.0
CELLS = 4  # parts of a sequence whose vectors are averaged


# ---- readers


def describe_codes(tokenizer: MediaTokenizer, row: Tensor) -> Tensor:
    """What a simple reader is given of one item's codes [N, G], float [F]: how often each value occurs in each group,
    and the mean vectors of each quarter of the sequence, where codes have vectors."""
    parts = []
    for group in range(row.shape[1]):
        size = min(tokenizer.codebook_sizes[group], MOST_COUNTED)
        counts = torch.bincount(row[:, group] % size, minlength=size).float()
        parts.append(normalize(counts.sqrt(), dim=0))
    block = tokenizer.segments[0][0]
    for group in range(row.shape[1]):
        table = tokenizer.code_features(block, group)
        if table is not None and int(row[:, group].max()) < len(table):
            vectors = table[row[:, group]].float()
            means = [part.mean(0) for part in vectors.tensor_split(CELLS) if len(part)]
            means += [torch.zeros(table.shape[1])] * (CELLS - len(means))
            parts.append(normalize(torch.cat(means), dim=0))
    return torch.cat(parts)


def probe_codes(tokenizer: MediaTokenizer, items: CodedItems) -> dict[str, float]:
    """The share of items [0, 1] whose label is found: by a ridge regression to the labels, in five folds, and by the
    nearest other item. `chance` is the share of the commonest label. Labels of one item alone are left out.

    Raises ValueError for fewer than two labels with two items each.
    """
    times = Counter(items.groups)
    kept = [index for index, label in enumerate(items.groups) if times[label] > 1]
    labels = sorted({items.groups[index] for index in kept})
    if len(labels) < 2:
        raise ValueError("the probe needs two labels or more with two items each: file the data in a folder a label")
    x = torch.stack([describe_codes(tokenizer, items.rows[index]) for index in kept])
    y = torch.tensor([labels.index(items.groups[index]) for index in kept])
    alike = normalize(x, dim=1) @ normalize(x, dim=1).T
    alike.fill_diagonal_(-torch.inf)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    found = 0
    for held in order.tensor_split(FOLDS):
        seen = torch.ones(len(x), dtype=torch.bool)
        seen[held] = False
        found += int((_fit_ridge(x[seen], y[seen], len(labels), x[held]) == y[held]).sum())
    return {
        "items": len(x),
        "labels": len(labels),
        "chance": round(max(Counter(y.tolist()).values()) / len(x), 4),
        "linear_probe": round(found / len(x), 4),
        "nearest_neighbour": round(float((y[alike.argmax(1)] == y).float().mean()), 4),
    }


def _fit_ridge(x: Tensor, y: Tensor, num_labels: int, asked: Tensor) -> Tensor:
    """The labels of asked items by ridge regression to one-hot labels, in its dual form: items may be few."""
    mean = x.mean(0)
    centred, targets = x - mean, one_hot(y, num_labels).float() * 2 - 1
    weights = torch.linalg.solve(centred @ centred.T + RIDGE * torch.eye(len(x)), targets - targets.mean(0))
    scores: Tensor = (asked - mean) @ centred.T @ weights + targets.mean(0)
    return scores.argmax(1)


# ---- a small language model


@dataclass(frozen=True)
class ModelPlan:
    """The decoder and its training, the same for every tokenizer; no updates and no tokens: there is none.

    updates: of `items_per_update` items each. tokens: seen in all at the second figure. one_held_out_of: items that are
    measured and never trained on.
    """

    width: int = 128
    layers: int = 4
    heads: int = 4
    updates: int = 200
    items_per_update: int = 8
    tokens: int = 100_000
    learning_rate: float = 1e-3
    one_held_out_of: int = 5
    seed: int = 0


def train_language_model(
    tokenizer: MediaTokenizer, items: CodedItems, plan: ModelPlan, report: Callable[[int, int], None]
) -> tuple[LlamaForCausalLM, dict[str, float]]:
    """A small Llama that reads codes position by position, and its nats of a held-out item.

    `nats_at_updates` after `plan.updates` updates, `nats_at_tokens` after `plan.tokens` tokens; `uniform_nats` of codes
    that are drawn evenly. An item's codes are one sequence behind a token that begins it. The model is that of the
    later of the two. Raises ValueError for fewer items than one update takes beside those held out.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    rows = [flatten_codes(tokenizer, row) for row in items.rows]
    held, seen = split_items(rows, plan)
    if len(seen) < plan.items_per_update:
        raise ValueError(
            f"a language model of codes needs {plan.items_per_update} items or more beside those held out; there are "
            f"{len(seen)}"
        )
    torch.manual_seed(plan.seed)
    settings = LlamaConfig(
        vocab_size=count_vocabulary(tokenizer), hidden_size=plan.width, intermediate_size=plan.width * 8 // 3,
        num_hidden_layers=plan.layers, num_attention_heads=plan.heads, num_key_value_heads=plan.heads,
        max_position_embeddings=max(map(len, rows)) + 1, tie_word_embeddings=True, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(settings).train()
    optimizer = torch.optim.AdamW(model.parameters(), plan.learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    generator = torch.Generator().manual_seed(plan.seed)
    found: dict[str, float] = {}
    tokens = update = 0
    while update < plan.updates or tokens < plan.tokens:
        drawn = [seen[index] for index in torch.randint(len(seen), (plan.items_per_update,), generator=generator)]
        count = sum(map(len, drawn))
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * min(1.0, (update + 1) / WARMUP)
        optimizer.zero_grad()
        (_measure_nats(model, drawn) / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        update, tokens = update + 1, tokens + count
        report(update, max(plan.updates, update * plan.tokens // tokens))
        if update == plan.updates:
            found["nats_at_updates"] = _measure_held_out(model, held, plan.items_per_update)
        if tokens - count < plan.tokens <= tokens:
            found["nats_at_tokens"] = _measure_held_out(model, held, plan.items_per_update)
            found["updates_at_tokens"] = update
    uniform = sum(_count_uniform_nats(tokenizer, row) for row in items.rows) / len(rows)
    figures = {
        **{name: round(value, 3) for name, value in found.items()},
        "uniform_nats": round(uniform, 3),
        "tokens_an_item": round(sum(map(len, rows)) / len(rows), 2),
        "held_out_items": len(held),
    }
    return model.eval(), figures


def split_items(rows: Sequence[RowT], plan: ModelPlan) -> tuple[list[RowT], list[RowT]]:
    """Items that are held out, and those that are trained on."""
    held = [row for index, row in enumerate(rows) if index % plan.one_held_out_of == 0]
    return held, [row for index, row in enumerate(rows) if index % plan.one_held_out_of]


def draw_codes(
    model: LlamaForCausalLM, tokenizer: MediaTokenizer, shape: tuple[int, int], count: int, seed: int
) -> Tensor:
    """Codes int64 [count, N, G] that the model draws at temperature 1, among those of each place. shape: N, G."""
    low = flatten_codes(tokenizer, torch.zeros(shape, dtype=torch.int64))
    sizes = list_sizes(tokenizer, *shape)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(count, 1, dtype=torch.int64)
    cache, drawn = None, []
    with torch.no_grad():
        for first, size in zip(low.tolist(), sizes, strict=True):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            shares = out.logits[:, -1, first : first + size].float().softmax(-1)
            codes = torch.multinomial(shares, 1, generator=generator)
            drawn.append(codes)
            ids = codes + first
    return torch.cat(drawn, dim=1).view(count, *shape)


def _measure_nats(model: torch.nn.Module, rows: Sequence[Tensor]) -> Tensor:
    """The sum of nats of sequences, each int64 [L], behind the token that begins them."""
    longest = max(map(len, rows))
    labels = torch.full((len(rows), longest), -100)
    for into, row in zip(labels, rows, strict=True):
        into[: len(row)] = row
    ids = torch.cat([torch.zeros(len(rows), 1, dtype=torch.int64), labels[:, :-1].clamp_min(0)], dim=1)
    logits = model(input_ids=ids, use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum")


def _measure_held_out(model: torch.nn.Module, rows: Sequence[Tensor], batch: int) -> float:
    model.eval()
    with torch.no_grad():
        total = sum(float(_measure_nats(model, rows[start : start + batch])) for start in range(0, len(rows), batch))
    model.train()
    return total / len(rows)


def _count_uniform_nats(tokenizer: MediaTokenizer, row: Tensor) -> float:
    """Nats of codes [N, G] whose every value is as likely as another."""
    return sum(log(size) for size in list_sizes(tokenizer, len(row), row.shape[1]))
