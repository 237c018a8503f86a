"""Adaptive computation modules (ACM, arXiv 2312.10193): every token gets as much of a feed-forward as it needs.

In place of a layer's feed-forward stand a few small ones, the learners. A gate says of every token how many of them
act, none to all, and what these bring is added up; the others are not computed. The module is trained in three phases:
every number of learners imitates the feed-forward whose place it takes; gates learn the number behind which a further
learner would bring less than `factor`; then all learn together, gates by a straight-through Gumbel softmax, from what
the model answers, and are held to the share `keep` of the learners (weight 0.1), to using all choices (0.05) and to
treating rows differently (0.05).

No token goes: the method makes them cheaper. The authors replace every feed-forward and the projections of attention,
for all tokens; here it is the feed-forward, for codes (`scope="prompt"`: words too), and the decoder itself stays as
it is. Learners have the width of the decoder, so that four of them cost what a gated feed-forward of 8/3 of it does.
In the authors' code the last learner of a call never acts, and a token that the first helps little is not told from
one that all help; neither is followed. `keep` is what a module was trained for: what is used of it, gates say.

Shapes: B spans, N tokens of each, n tokens in all, D width, K learners.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.compression.distillation import compute_distillation_loss
from unimodal.compression.learned import DecoderShape, check_layers, check_width
from unimodal.compression.method import check_whole
from unimodal.compression.plan import Plan, Span
from unimodal.compression.running.decoder_parts import DecoderParts
from unimodal.compression.running.session import find_decoder
from unimodal.compression.tokens.learned import LearnedCompressor
from unimodal.vocabulary import Vocabulary

LEARNERS, GATE_WIDTH, TEMPERATURE = 4, 16, 0.8
BUDGET, ENTROPY, DIVERSITY = 0.1, 0.05, 0.05  # weights of the third phase


class AdaptiveFeedForward(nn.Module):
    """K learners in place of one layer's feed-forward, and their gate, which is linear as the authors' is."""

    def __init__(self, width: int, num_learners: int = LEARNERS) -> None:
        super().__init__()
        self.enter = nn.ModuleList([nn.Linear(width, width) for _ in range(num_learners)])
        self.leave = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(num_learners)])
        self.gate = nn.Sequential(
            nn.Linear(width, GATE_WIDTH), nn.Linear(GATE_WIDTH, GATE_WIDTH), nn.Linear(GATE_WIDTH, num_learners + 1)
        )

    @property
    def num_learners(self) -> int:
        return len(self.enter)

    def learn(self, x: Tensor, number: int) -> Tensor:
        """x [n, D] → what one learner brings, [n, D]."""
        return self.leave[number](F.gelu(self.enter[number](x)))

    def sum_all(self, x: Tensor) -> Tensor:
        """x [n, D] → what none, the first, the first two, … of the learners bring, [n, K + 1, D]."""
        brought = [torch.zeros_like(x), *(self.learn(x, number) for number in range(self.num_learners))]
        return torch.stack(brought, 1).cumsum(1)

    def choose(self, x: Tensor) -> Tensor:
        """x [n, D] → how many learners act, as rows of zeros and a one, [n, K + 1]: drawn in training."""
        logits = self.gate(x)
        if self.training:
            return F.gumbel_softmax(logits, tau=TEMPERATURE, hard=True)
        return F.one_hot(logits.argmax(-1), self.num_learners + 1).to(x)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, D] → [n, D]. Without a gradient a learner sees only the tokens for which it acts."""
        chosen = self.choose(x)
        if torch.is_grad_enabled() and chosen.requires_grad:
            return (chosen[..., None] * self.sum_all(x)).sum(1)
        num, out = chosen.argmax(-1), torch.zeros_like(x)
        for number in range(self.num_learners):
            acts = (num > number).nonzero()[:, 0]
            if not len(acts):
                break
            out = out.index_add(0, acts, self.learn(x[acts], number))
        return out


class AdaptiveModules(nn.Module):
    """An `AdaptiveFeedForward` for each layer. steps: how many it was trained for so far, of which phases depend."""

    steps: Tensor

    def __init__(self, width: int, num_layers: int = 1) -> None:
        super().__init__()
        self.width, self.num_layers = width, num_layers
        self.layers = nn.ModuleList([AdaptiveFeedForward(width) for _ in range(num_layers)])
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def get_layer(self, number: int) -> AdaptiveFeedForward:
        layer = self.layers[number]
        assert isinstance(layer, AdaptiveFeedForward)
        return layer


@dataclass
class ACM(LearnedCompressor):
    """Give every token as many small feed-forwards as it needs (adaptive computation modules, ACM, arXiv 2312.10193).

    hidden [B, N, D] → all N tokens, with another feed-forward in each layer. imitating, gating: steps of the first two
    phases of training. factor: by which a learner has to lower the error to be worth it, above 1. scope: "media", or
    "prompt": words too. modules: trained with the decoder. Raises ValueError for steps below 0, another factor or
    scope, on entering without modules, for a decoder of another width or of more layers, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "ACM, arXiv 2312.10193"
    part: ClassVar[str] = "modules"
    learns_by: ClassVar[str] = "loss"
    shortens: ClassVar[bool] = False

    imitating: int = 200
    gating: int = 50
    factor: float = 1.2
    scope: Literal["media", "prompt"] = "media"
    modules: AdaptiveModules | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("imitating", self.imitating, 0)
        check_whole("gating", self.gating, 0)
        if self.factor <= 1:
            raise ValueError(f"factor is {self.factor}; give a number above 1")
        if self.scope not in ("media", "prompt"):
            raise ValueError(f"scope {self.scope!r} is unknown; use media or prompt")

    @property
    def acts_on_words(self) -> bool:
        return self.scope == "prompt"

    @classmethod
    def make_part(cls, shape: DecoderShape) -> AdaptiveModules:
        return AdaptiveModules(shape.width, shape.num_layers)

    def check(self, num_layers: int) -> None:
        super().check(num_layers)
        if self.modules is not None:
            check_layers(self.modules.num_layers, num_layers, self.part)

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return tuple(range(num_layers))

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        assert self.modules is not None
        check_width(self.modules.width, hidden)
        index = torch.arange(len(span), device=hidden.device).expand(len(hidden), -1)
        return Plan(index, feed_forward=self.make_feed_forward(span))

    def make_feed_forward(self, span: Span) -> Callable[[Tensor], Tensor]:
        """What stands in the place of the coming layer's feed-forward, [n, D] → [n, D]."""
        assert self.modules is not None
        layer = self.modules.get_layer(span.layer)
        return lambda x: layer(x.float())

    def compute_loss(
        self, model: nn.Module, vocabulary: Vocabulary, ids: Tensor, valid: Tensor, learnt: Tensor
    ) -> tuple[Tensor, int]:
        assert self.modules is not None
        steps = int(self.modules.steps)
        if self.modules.training:
            self.modules.steps += 1
        settings = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        count = int(learnt.sum())
        if steps < self.imitating + self.gating:
            parts = DecoderParts(find_decoder(model, vocabulary)[0])
            own = [parts.list_modules_of(number)[1] for number in range(len(parts.layers))]
            imitating = _ImitatingACM(**settings, own=own, learns_gates=steps >= self.imitating)
            with imitating(model, vocabulary), torch.no_grad():
                model(input_ids=ids, attention_mask=valid.long(), use_cache=False)
            losses = [one() for one in imitating.losses]
            return count * (torch.stack(losses).mean() if losses else ids.new_zeros((), dtype=torch.float32)), count
        watched = _WatchedACM(**settings)
        total, count = compute_distillation_loss(watched, model, vocabulary, ids, valid, learnt)
        if watched.choices:
            total = total + count * hold(watched.choices, self.keep)
        return total, count


class GateChoice(NamedTuple):
    """The choices of a layer's gate, [n, K + 1], and of which rows of the batch the tokens are, int64 [n]."""

    layer: int
    rows: Tensor
    chosen: Tensor


def hold(choices: list[GateChoice], keep: float) -> Tensor:
    """The three terms that hold gates in the third phase: to a share of the learners, to all choices, to differences
    between rows."""
    rows = torch.cat([choice.rows for choice in choices])  # of the tokens of all layers
    chosen = torch.cat([choice.chosen for choice in choices]).float()
    layers = torch.cat([torch.full_like(choice.rows, choice.layer) for choice in choices])
    num = chosen.shape[-1]
    costs = chosen @ torch.arange(num, device=chosen.device).to(chosen) / (num - 1)  # [all tokens], shares of K
    budget = (costs.mean() - keep).abs()
    kinds, place = torch.unique(torch.stack([rows, layers]), dim=1, return_inverse=True)
    sums = chosen.new_zeros(kinds.shape[1], num).index_add(0, place, chosen)
    spread = sums / sums.sum(-1, keepdim=True)
    entropy = -(spread * (spread + 1e-20).log()).sum(-1) / math.log(num)
    names, row = torch.unique(rows, return_inverse=True)
    means = costs.new_zeros(len(names)).index_add(0, row, costs * (num - 1) / num) / row.bincount().to(costs)
    differences = (means[:, None] - means).abs().mean() * 2
    return BUDGET * budget - ENTROPY * entropy.mean() - DIVERSITY * differences


def label(sums: Tensor, target: Tensor, factor: float) -> Tensor:
    """The number of learners, int64 [n], behind which a further one would lower the error by less than a factor.

    sums: [n, K + 1, D], what each number of learners brings. target: [n, D].
    """
    errors = (sums - target[:, None]).norm(dim=-1)  # [n, K + 1]
    enough = errors[:, :-1] / errors[:, 1:].clamp_min(1e-12) < factor
    return torch.where(enough.any(1), enough.long().argmax(1) + 1, sums.shape[1] - 1)


@dataclass
class _ImitatingACM(ACM):
    """One that leaves the model as it is, and notes how far each layer's module is from its feed-forward."""

    own: list[nn.Module] = field(default_factory=list)
    learns_gates: bool = False
    losses: list[Callable[[], Tensor]] = field(default_factory=list)

    def make_feed_forward(self, span: Span) -> Callable[[Tensor], Tensor]:
        assert self.modules is not None
        own, layer = self.own[span.layer], self.modules.get_layer(span.layer)

        def measure(x: Tensor, target: Tensor) -> Tensor:
            if not self.learns_gates:
                return (layer.sum_all(x) - target[:, None]).square().mean()
            with torch.no_grad():
                labels = label(layer.sum_all(x), target, self.factor)
            return F.nll_loss((layer.choose(x) + 1e-20).log(), labels)

        def feed(x: Tensor) -> Tensor:
            # its forward alone: calling the module would come here again
            out = own.forward(x[None])
            target = out[0] if isinstance(out, tuple) else out
            seen, aim = x.detach().float(), target[0].detach().float()
            self.losses.append(lambda: measure(seen, aim))  # the model runs without a gradient, its modules have one
            return target[0]

        return feed


@dataclass
class _WatchedACM(ACM):
    """One that notes what its gates choose."""

    choices: list[GateChoice] = field(default_factory=list)

    def make_feed_forward(self, span: Span) -> Callable[[Tensor], Tensor]:
        assert self.modules is not None and span.place is not None
        layer, number = self.modules.get_layer(span.layer), span.layer
        rows = span.place.rows.repeat_interleave(len(span)).sort().values  # as the tokens of a batch come

        def feed(x: Tensor) -> Tensor:
            chosen = layer.choose(x.float())
            self.choices.append(GateChoice(number, rows, chosen))
            return (chosen[..., None] * layer.sum_all(x.float())).sum(1)

        return feed
