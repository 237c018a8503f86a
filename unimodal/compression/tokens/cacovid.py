"""CaCoVID (arXiv 2602.01649): a policy that learned by trial which tokens of a clip carry the right answer.

A small network, one layer that looks in both directions, gives every frame and every token a score. The softmax over
frames divides the budget, between a half of an even share and the share `most` of a frame's tokens; within a frame the
best tokens go on. It is not taught to repeat attention: in training combinations of tokens are tried on the frozen
model, and those after which the answer is better than the mean of its group become likelier (group-relative policy
optimization). Combinations are drawn from a reduced space: the tokens of a frame in the order of their probabilities
are cut into groups, one group is drawn by its probability, at most a bound, and the tokens within it. A quarter of the
trials draws half of the frames in place of tokens.

The policy refuses untrained. What differs from the authors' code: a plan sees no words, so that the question comes in
by the attention that the words behind the span pay in the coming layer; the reward is how little what the model expects
changes, not whether an answer that it writes is right; every draw is used for one update, so that no ratio is clipped;
no trial of density peaks and no choice between modes is learned; the best tokens of drawn frames are tried, not the
most diverse. A picture and a sound are clips of one frame.

Shapes: B spans, N tokens, F frames, D width, R rows of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.compression.expectations import compute_expectations, find_following
from unimodal.compression.learned import DecoderShape, check_width
from unimodal.compression.method import check_share, check_whole
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.learned import LearnedCompressor
from unimodal.vocabulary import Vocabulary

SPREAD = 3.0  # greatest distance of the frames' scores from 0, before their softmax


class TokenPolicy(nn.Module):
    """A layer over the tokens of a span in both directions, and the scores of tokens and of frames."""

    def __init__(self, width: int, inner: int = 64, num_heads: int = 4) -> None:
        super().__init__()
        self.width = width
        self.project, self.place = nn.Linear(width, inner), nn.Linear(3, inner, bias=False)
        self.layer = nn.TransformerEncoderLayer(
            inner, num_heads, 2 * inner, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.token, self.frame = (
            nn.Sequential(nn.LayerNorm(inner), nn.Linear(inner, inner // 2), nn.SiLU(), nn.Linear(inner // 2, 1))
            for _ in range(2)
        )

    def forward(self, hidden: Tensor, attention: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """hidden [B, N, D], attention [B, N] of the words as a multiple of an even share, lengths of the frames → the
        scores of tokens [B, N] and of frames [B, F]."""
        places = [
            torch.stack([torch.arange(length) / length, torch.full((length,), at / len(lengths))], -1)
            for at, length in enumerate(lengths)
        ]
        place = torch.cat(places).to(hidden).expand(len(hidden), -1, -1)
        known = self.place(torch.cat([attention[..., None], place], -1))
        read = self.layer(self.project(F.layer_norm(hidden, hidden.shape[-1:])) + known)
        frames = torch.stack([frame.mean(1) for frame in read.split(list(lengths), 1)], 1)
        return self.token(read)[..., 0], self.frame(frames)[..., 0]


class Trial(NamedTuple):
    """One draw for the spans of a plan: their rows int64 [B], and the log-probabilities of what was drawn, [B]."""

    rows: Tensor
    chances: Tensor


@dataclass
class CaCoVID(LearnedCompressor):
    """Keep the tokens that a policy learned to keep for the answer's sake (CaCoVID, arXiv 2602.01649).

    hidden [B, N, D] → `span.count` tokens: frames by their scores, and within a frame the best. most: the greatest
    share of a frame's tokens, where `keep` is less. trials: combinations tried in a step of training. group_size: a
    group of them has so many times the tokens that are drawn of it. policy: trained with the decoder. Raises ValueError
    for less than four trials, a size below 1, a share outside [0, 1], on entering without a policy, for a decoder of
    another width, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "CaCoVID, arXiv 2602.01649"
    part: ClassVar[str] = "policy"
    learns_by: ClassVar[str] = "policy"
    previews: ClassVar[bool] = True

    most: float = 0.5
    trials: int = 8
    group_size: float = 2.0
    policy: TokenPolicy | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("trials", self.trials, 4)
        check_share("most", self.most)
        if self.group_size < 1:
            raise ValueError(f"group_size is {self.group_size}; give a number of at least 1")

    @classmethod
    def make_part(cls, shape: DecoderShape) -> TokenPolicy:
        return TokenPolicy(shape.width)

    def rate(self, hidden: Tensor, span: Span) -> tuple[Tensor, Tensor, list[int]]:
        """The scores of tokens [B, N] and of frames [B, F], and the frames' lengths."""
        assert self.policy is not None
        check_width(self.policy.width, hidden)
        lengths = list(span.segments) if span.modality == "video" and sum(span.segments) == len(span) else [len(span)]
        attention = span.measure_attention("after", span.layer)
        attention = attention / attention.mean(-1, keepdim=True).clamp_min(1e-9) - 1
        return *self.policy(hidden.float(), attention.float(), lengths), lengths

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        tokens, frames, lengths = self.rate(hidden, span)
        budgets = self.divide(frames.detach(), lengths, span.count)
        chosen = [choose_in_frames(*pair, lengths) for pair in zip(tokens.detach(), budgets, strict=True)]
        return Plan(torch.stack(chosen))

    def divide(self, frames: Tensor, lengths: Sequence[int], count: int) -> list[list[int]]:
        """How many tokens of each frame go on, `count` in all, for scores of frames [B, F]: [B][F]."""
        num = len(lengths)
        spread = frames / frames.abs().amax(-1, keepdim=True).clamp_min(1e-9) * SPREAD
        share = count / sum(lengths)
        shares = spread.softmax(-1).clamp(1 / (2 * num), max(1.0, self.most / share) / num)
        shares = shares / shares.sum(-1, keepdim=True)
        limits = [length if share >= self.most else max(1, int(self.most * length)) for length in lengths]
        divided, least = [], int(count >= num)
        for row in shares.tolist():
            given = [min(limit, max(least, round(part * count))) for part, limit in zip(row, limits, strict=True)]
            while (rest := count - sum(given)) != 0:  # one more for the poorest, one less for the richest
                able = [at for at in range(num) if (given[at] < lengths[at] if rest > 0 else given[at] > 0)]
                at = (min if rest > 0 else max)(able, key=lambda one: given[one])
                given[at] += 1 if rest > 0 else -1
            divided.append(given)
        return divided

    def compute_loss(
        self, model: nn.Module, vocabulary: Vocabulary, ids: Tensor, valid: Tensor, learnt: Tensor
    ) -> tuple[Tensor, int]:
        """Minus the log-probabilities of what was drawn, times how much better than its group it did."""
        num, settings = int(learnt.sum()), {spec.name: getattr(self, spec.name) for spec in fields(self)}
        num_frames = max(2, self.trials // 4)
        trying = [_TryingCaCoVID(**settings, draws_frames=at < num_frames) for at in range(self.trials)]
        with torch.no_grad():
            whole = expect(model, vocabulary, ids, valid)
            rewards = []
            for method in trying:
                with method(model, vocabulary):
                    rewards.append(-measure_rows(whole, expect(model, vocabulary, ids, valid), learnt))
            kinds = torch.stack(rewards).split([num_frames, self.trials - num_frames])  # [trials, R] each
            gained = torch.cat([(kind - kind.mean(0)) / (kind.std(0) + 1e-4) for kind in kinds])
        terms = [
            -(gained[at, trial.rows] * trial.chances).sum() for at, one in enumerate(trying) for trial in one.drawn
        ]
        loss = torch.stack(terms).mean() if terms else whole.new_zeros(())
        return loss * num, num


@dataclass
class _TryingCaCoVID(CaCoVID):
    """One that draws tokens, or frames, and notes how likely they were."""

    draws_frames: bool = False
    drawn: list[Trial] = field(default_factory=list)

    def plan(self, hidden: Tensor, span: Span) -> Plan:
        assert span.place is not None
        with torch.enable_grad():
            tokens, frames, lengths = self.rate(hidden.detach(), span)
            if self.draws_frames and len(lengths) > 1:
                picked = torch.multinomial(frames.softmax(-1).clamp(1e-6, 3 / len(lengths)), -(-len(lengths) // 2))
                is_picked = torch.zeros_like(frames, dtype=torch.bool).scatter(1, picked, True)
                chances = measure_choice(frames, is_picked)
                budgets = self.divide(is_picked.float() * 2 - 1, lengths, span.count)
                chosen = [choose_in_frames(*pair, lengths) for pair in zip(tokens.detach(), budgets, strict=True)]
            else:
                [budget] = self.divide(frames.new_zeros(1, len(lengths)), lengths, span.count)
                chosen = [self.draw_tokens(scores, budget, lengths) for scores in tokens.detach()]
                is_chosen = F.one_hot(torch.stack(chosen), len(span)).sum(1) > 0
                chances = measure_choice(tokens, is_chosen)
        self.drawn.append(Trial(span.place.rows, chances))
        return Plan(torch.stack(chosen))

    def draw_tokens(self, scores: Tensor, budget: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Of each frame as many tokens as its budget, int64 [M], ascending, for scores [N]."""
        parts, start = [], 0
        for length, count in zip(lengths, budget, strict=True):
            chances = scores[start : start + length].softmax(-1)
            parts.append(draw_combination(chances, count, self.group_size) + start)
            start += length
        return torch.cat(parts).sort().values


def choose_in_frames(scores: Tensor, budget: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """The best tokens of each frame, as many as its budget, int64 [M], ascending, for scores [N]."""
    parts, start = [], 0
    for length, count in zip(lengths, budget, strict=True):
        parts.append(scores[start : start + length].topk(count).indices + start)
        start += length
    return torch.cat(parts).sort().values


def measure_choice(scores: Tensor, is_chosen: Tensor) -> Tensor:
    """The mean log-probability of what was chosen and what was not, scores and bool [B, N] → [B]; both weigh the
    same, however few were chosen."""
    logs = torch.where(is_chosen, F.logsigmoid(scores), F.logsigmoid(-scores))
    share = is_chosen.float().mean(-1, keepdim=True)
    weights = torch.where(is_chosen, 1 - share, share)
    return (logs * weights).sum(-1) / weights.sum(-1).clamp_min(1e-7)


def draw_combination(chances: Tensor, count: int, group_size: float) -> Tensor:
    """So many of the tokens of a frame, int64 [count], of one group: the tokens in the order of their chances [N] are
    cut into groups, one is drawn by its chance, bounded, and the tokens within it by theirs."""
    if not count:
        return torch.zeros(0, dtype=torch.int64, device=chances.device)
    num_groups = max(1, min(int(len(chances) / count / group_size), len(chances) // count))
    parts = chances.argsort(descending=True, stable=True).tensor_split(num_groups)
    bound = max(min(2 / num_groups, 0.9), 0.1) if num_groups > 1 else 1.0
    shares = torch.stack([chances[part].sum() for part in parts]).clamp(1 / num_groups**2, bound)
    part = parts[int(torch.multinomial(shares, 1))]
    return part[torch.multinomial(chances[part].clamp_min(1e-9), count)]


def expect(model: nn.Module, vocabulary: Vocabulary | None, ids: Tensor, valid: Tensor) -> Tensor:
    """What a causal LM expects behind each token, float32 [R, N, V], as logarithms (`expectations.py`)."""
    found = model(input_ids=ids, attention_mask=valid.long(), use_cache=False).logits
    assert isinstance(found, Tensor)
    return compute_expectations(found, find_following(ids), vocabulary)


def measure_rows(expected: Tensor, reached: Tensor, learnt: Tensor) -> Tensor:
    """The divergence, in nats, of what is reached from what is expected, the mean over the learnt tokens of a row: [R].

    expected, reached: logarithms [R, N, V]. learnt: bool [R, N]."""
    nats = (expected.exp() * (expected - reached)).sum(-1) * learnt
    return nats.sum(1) / learnt.sum(1).clamp_min(1)
