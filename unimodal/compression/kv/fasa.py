"""FASA (arXiv 2602.03152): a few rotary frequencies of a head tell which entries matter; attend to those in full.

A head's logit is a sum over rotary frequency pairs. The dominant pairs of a head are those whose own logits rank the
entries most like the whole sum does: their best entries overlap most, over the last queries of a prompt. At every step
entries are scored by the dominant pairs alone, and the best ones are attended to with all pairs.

The paper finds the dominant pairs once for a model, from a few texts: `FASA(…).calibrate(model, vocabulary, rows)`.
Without that they are found on each prompt, which for a short one costs more time than the method saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from unimodal.compression.kv.method import Acts, CacheCompressor
from unimodal.compression.method import check_whole
from unimodal.compression.running.attention_rows import compute_logits
from unimodal.compression.running.look import Look
from unimodal.compression.running.session import CompressionTarget, find_decoder
from unimodal.vocabulary import Vocabulary

QUERIES = 8  # the last so many of the prompt find the dominant pairs


@dataclass(eq=False)
class FASA(CacheCompressor):
    """Attend at every step to the entries that a few rotary frequencies of a head rank best (FASA, arXiv 2602.03152).

    scores [B, K, L]: the logits of the dominant pairs alone; nothing is dropped.
    num_pairs: dominant pairs of each head. pairs: those of a model, int64 [layers, H, num_pairs], by `calibrate`; None:
    they are found on each prompt. Raises ValueError for less than one pair, and for what `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "FASA, arXiv 2602.03152"
    num_pairs: int = 4
    pairs: Tensor | None = field(default=None, repr=False)
    acts: ClassVar[Acts] = "select"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("num_pairs", self.num_pairs, 1)

    def __eq__(self, other: object) -> bool:
        """Two with other pairs are two methods, whose rows are not read together."""
        if not isinstance(other, FASA) or self.pairs is not other.pairs:
            return False
        return vars(self) | {"pairs": None} == vars(other) | {"pairs": None}

    @torch.inference_mode()
    def calibrate(self, model: CompressionTarget, vocabulary: Vocabulary | None, rows: Sequence[Sequence[int]]) -> FASA:
        """The same method with the dominant pairs of a model, from prompts that are read one by one.

        Raises ValueError without a row of more than one token.
        """
        decoder, vocabulary = find_decoder(model, vocabulary)
        probe = _Calibration(self.keep, num_pairs=self.num_pairs)
        device = next(decoder.parameters()).device
        with probe(model, vocabulary):
            for row in rows:
                decoder(input_ids=torch.tensor([list(row)], device=device), use_cache=False)
        if not probe.agreement:
            raise ValueError("FASA finds its pairs on prompts of several tokens; give at least one")
        layers = [probe.agreement[index] for index in sorted(probe.agreement)]
        return replace(self, pairs=torch.cat([choose_pairs(each, self.num_pairs) for each in layers]).cpu())

    def observe(self, look: Look) -> None:
        if self.pairs is None:
            agreement = measure_agreement(look, look.query[:, :, -QUERIES:], self.keep)
            look.state.memory["pairs"] = choose_pairs(agreement, self.num_pairs)

    def score(self, look: Look) -> Tensor:
        pairs = look.state.memory.get("pairs")
        if self.pairs is not None:
            pairs = self.pairs[look.index].to(look.query.device).expand(len(look.query), -1, -1)
        elif pairs is None:  # the cache was cropped since the prompt: find the pairs at this step
            pairs = choose_pairs(measure_agreement(look, look.query, self.keep), self.num_pairs)
        query, keys = split_heads(look, look.query)
        query, keys = (x.gather(2, _spread(pairs, x)) for x in (query, keys))  # [B, H, num_pairs, Q or L, 2]
        scores = (query @ keys.transpose(-1, -2)).sum(2).mean(2) * look.rule.scaling  # [B, H, L]
        return look.average_groups(scores)


class _Calibration(FASA):
    """Sums the agreement of every pair over the prompts that it sees; it attends to everything."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.keep = min(self.keep, 0.999)
        self.scope = "prompt"
        self.agreement: dict[int, Tensor] = {}  # layer → [1, H, F]

    def observe(self, look: Look) -> None:
        found = measure_agreement(look, look.query[:, :, -QUERIES:], self.keep)
        self.agreement[look.index] = self.agreement.get(look.index, torch.zeros_like(found)) + found


def _spread(pairs: Tensor, x: Tensor) -> Tensor:
    """pairs int64 [B, H, P] as an index into x [B, H, F, N, 2] along F."""
    return pairs[..., None, None].expand(-1, -1, -1, *x.shape[3:])


def split_heads(look: Look, query: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [B, H, Q, W] and the keys of each head by the F pairs that a frequency turns: [B, H, F, Q or L, 2]."""
    keys = look.keys.repeat_interleave(query.shape[1] // look.keys.shape[1], 1)
    first, second = (look.rotation.split_pairs(x).transpose(2, 3).float() for x in (query, keys))
    return first, second


def compute_pair_logits(look: Look, query: Tensor) -> Tensor:
    """The logits split by the F rotary frequency pairs, [B, H, F, Q, L]; their sum over F is the logits."""
    queries, keys = split_heads(look, query)
    return queries @ keys.transpose(-1, -2) * look.rule.scaling


def measure_agreement(look: Look, query: Tensor, keep: float) -> Tensor:
    """How many of the best entries of all pairs together are each pair's best too, summed over queries: [B, H, F].

    query: [B, H, Q, W]. keep: the share of the entries that count as best.
    """
    bias = look.slots.make_bias(torch.float32, query.shape[1])[:, :, None]  # [B, 1 or H, 1, L]
    free = (look.slots.evictable & look.slots.find_held()).any(1)  # [B, L], where a choice is made
    bias = bias.masked_fill(~free[:, None, None], -torch.inf)
    count = free.sum(-1).mul(keep).round().clamp(min=1)[:, None, None, None]  # [B, 1, 1, 1]
    whole = _mark_best(compute_logits(query, look.keys, look.rule) + bias, count)  # [B, H, Q, L]
    own = _mark_best(compute_pair_logits(look, query) + bias[:, :, None], count[..., None])
    valid = look.slots.valid[:, None, -query.shape[2] :, None]
    return (own & (whole & valid)[:, :, None]).flatten(3).sum(-1)


def choose_pairs(agreement: Tensor, num_pairs: int) -> Tensor:
    """The pairs [..., F] → [..., P] that agree most, the first of equal ones; P = `num_pairs`, at most F."""
    return agreement.argsort(dim=-1, descending=True, stable=True)[..., :num_pairs]


def _mark_best(x: Tensor, count: Tensor) -> Tensor:
    """Whether each of x [..., L] is among the `count` largest, bool [..., L]; of equal ones the first count.

    count: int64, broadcast against x.
    """
    order = x.argsort(dim=-1, descending=True, stable=True)
    first = torch.arange(x.shape[-1], device=x.device) < count  # [..., L], places in the order
    return torch.zeros_like(x, dtype=torch.bool).scatter(-1, order, first.expand(x.shape))
