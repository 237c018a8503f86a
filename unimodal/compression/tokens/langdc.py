"""LangDC (arXiv 2509.00969): a small language model describes each clip, and its description is what goes on.

A captioner reads the tokens of a clip and writes soft caption tokens one after another, each from the clip and those
before it, until it says that nothing is left to say. The soft tokens take the places of the clip's own, so that a scene
with more to tell gets more of them. It is trained to spell a description: behind the decoder's head the soft tokens are
to be its words, and the end of it is where writing is to stop (semantic density-aware supervision); beside that the
answers under the method are to be those of the whole model. Untrained it refuses.

The authors' captioner is a language model of half a billion weights which was trained on captions of clips, and goes on
from the words that it picks. This one has two layers and goes on from its own soft tokens; the description is the
answer that the row of the corpus has, of every clip in it; and `keep` bounds how much it writes. A picture and a sound
are one clip.

Shapes: B spans, N tokens, M soft tokens, D width, E inner width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.compression.distillation import compute_distillation_loss
from unimodal.compression.method import check_whole
from unimodal.compression.plan import Plan, Span, count_share
from unimodal.compression.tokens.grids import allot
from unimodal.compression.tokens.learned import LearnedCompressor, check_width
from unimodal.compression.tokens.stride import choose_evenly
from unimodal.vocabulary import Vocabulary

BEGIN = -2.0  # the logit of stopping, before training: it writes on


class CaptionLayer(nn.Module):
    """A transformer layer in pieces: tokens see each other and all that went before them."""

    def __init__(self, inner: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(inner), nn.LayerNorm(inner)
        self.qkv, self.out = nn.Linear(inner, 3 * inner), nn.Linear(inner, inner)
        self.mlp = nn.Sequential(nn.Linear(inner, 2 * inner), nn.GELU(), nn.Linear(2 * inner, inner))

    def forward(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """x [n, E] and keys and values of before, [2, H, m, E / H] → x, and those of m + n."""
        heads = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.num_heads, -1)).permute(1, 2, 0, 3)
        held = heads[1:] if past is None else torch.cat([past, heads[1:]], 2)
        mixed = F.scaled_dot_product_attention(heads[0], held[0], held[1])
        x = x + self.out(mixed.transpose(0, 1).flatten(1))
        return x + self.mlp(self.norm_mlp(x)), held


class SoftCaptioner(nn.Module):
    """Clip tokens and the soft tokens so far → the next soft token, and whether it is the last."""

    def __init__(self, width: int, inner: int = 64, num_layers: int = 2, num_heads: int = 4) -> None:
        super().__init__()
        self.width = width
        self.read, self.written = nn.Linear(width, inner), nn.Linear(width, inner)
        self.start = nn.Parameter(torch.randn(inner) * 0.02)
        self.layers = nn.ModuleList(CaptionLayer(inner, num_heads) for _ in range(num_layers))
        self.norm, self.out, self.stop = nn.LayerNorm(inner), nn.Linear(inner, width), nn.Linear(inner, 1)
        nn.init.constant_(self.stop.bias, BEGIN)

    def forward(self, clip: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """clip [N, D] → `count` soft tokens [M, D], and the logits of stopping behind each, [M]."""
        known = self.read(F.layer_norm(clip, clip.shape[-1:]))
        past: list[Tensor | None] = [None] * len(self.layers)
        self._pass(known + make_waves(len(clip), known), past)
        places, new, soft, stops = make_waves(count, known), self.start, [], []
        for place in places:
            last = self.norm(self._pass((new + place)[None], past)[0])
            soft.append(self.out(last))
            stops.append(self.stop(last)[0])
            new = self.written(F.layer_norm(soft[-1], soft[-1].shape))
        return torch.stack(soft), torch.stack(stops)

    def _pass(self, x: Tensor, past: list[Tensor | None]) -> Tensor:
        for at, layer in enumerate(self.layers):
            x, past[at] = layer(x, past[at])
        return x


def make_waves(num: int, like: Tensor) -> Tensor:
    """Sinusoids of positions, [num, E], in the type of [..., E]."""
    inner = like.shape[-1]
    angles = torch.arange(num)[:, None] / 10_000 ** (torch.arange(0, inner, 2) / inner)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :inner].to(like)


class Written(NamedTuple):
    """What was written of one clip: its row of the batch, soft tokens [M, D], and the logits of stopping, [M]."""

    row: int
    soft: Tensor
    stops: Tensor


@dataclass
class LangDC(LearnedCompressor):
    """Let a small captioner describe each clip in soft tokens, as many as it finds to say (LangDC, arXiv 2509.00969).

    hidden [B, N, D] → the soft tokens of its clips, one at least and at most the share `keep`. frames: of a clip.
    spelling: weight of the description in training. captioner: trained with the decoder. Raises ValueError for less
    than one frame, a negative weight, on entering without a captioner, for a decoder of another width, and for what
    `Method` refuses.
    """

    paper: ClassVar[str] = "LangDC, arXiv 2509.00969"
    part: ClassVar[str] = "captioner"
    judges_rows: ClassVar[bool] = True

    frames: int = 4
    spelling: float = 1.0
    captioner: SoftCaptioner | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("frames", self.frames, 1)
        if self.spelling < 0:
            raise ValueError(f"spelling is {self.spelling}; give a weight from 0 on")

    @classmethod
    def make_part(cls, width: int, num_layers: int) -> SoftCaptioner:
        return SoftCaptioner(width)

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        if self.keep == 1:
            return [len(span) for span in spans]
        with torch.no_grad():
            return [sum(len(soft) for soft in self.describe(span.hidden[0], span)) for span in spans]

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        states = torch.stack([torch.cat(self.describe(row, span, at)) for at, row in enumerate(hidden)])
        return Plan(choose_evenly(len(span), span.count, hidden), states=states.to(hidden.dtype))

    def describe(self, hidden: Tensor, span: Span, at: int | None = None) -> list[Tensor]:
        """The soft tokens of each clip of a span [N, D], up to where the captioner stops."""
        written = self.write(hidden, span)
        return [soft[: count_words(stops)] for soft, stops in written]

    def write(self, hidden: Tensor, span: Span) -> list[tuple[Tensor, Tensor]]:
        """What the captioner writes of each clip, up to its share of the bound."""
        assert self.captioner is not None
        check_width(self.captioner.width, hidden)
        lengths = [len(span)]
        if span.modality == "video" and sum(span.segments) == len(span):
            runs = range(0, len(span.segments), self.frames)
            lengths = [sum(span.segments[first : first + self.frames]) for first in runs]
        bounds = allot(count_share(self.keep, len(span)), lengths)
        clips = zip(hidden.float().split(lengths), bounds, strict=True)
        return [self.captioner(clip, bound) for clip, bound in clips if bound]

    def compute_loss(
        self, model: nn.Module, vocabulary: Vocabulary, ids: Tensor, valid: Tensor, learnt: Tensor
    ) -> tuple[Tensor, int]:
        watched = _WatchedLangDC(**{spec.name: getattr(self, spec.name) for spec in fields(self)})
        total, count = compute_distillation_loss(watched, model, vocabulary, ids, valid, learnt)
        head = model.get_output_embeddings()  # type: ignore[operator]  # of transformers
        assert isinstance(head, nn.Module)
        terms = [spell(one, ids[one.row, 1:][learnt[one.row, :-1]], head) for one in watched.written]
        if terms:
            total = total + self.spelling * count * torch.stack(terms).mean()
        return total, count


@dataclass
class _WatchedLangDC(LangDC):
    """One that notes what is written of each clip."""

    written: list[Written] = field(default_factory=list)

    def describe(self, hidden: Tensor, span: Span, at: int | None = None) -> list[Tensor]:
        written = self.write(hidden, span)
        if at is not None and span.place is not None:
            self.written += [Written(int(span.place.rows[at]), soft, stops) for soft, stops in written]
        return [soft[: count_words(stops)] for soft, stops in written]


def count_words(stops: Tensor) -> int:
    """How many soft tokens go on, for logits of stopping behind each, [M]: up to the first that says so."""
    ends = (stops.detach() > 0).nonzero()
    return int(ends[0]) + 1 if len(ends) else len(stops)


def spell(written: Written, words: Tensor, head: nn.Module) -> Tensor:
    """How far soft tokens are from a description, int64 [L], behind the head, and stopping from its end, in nats."""
    num = min(len(words), len(written.soft))
    if not num:
        return written.soft.sum() * 0
    logits = head(written.soft[:num].to(next(head.parameters()).dtype)).float()
    ends = torch.zeros(num, device=words.device)
    ends[-1] = float(len(words) <= len(written.soft))  # a description that is longer than the bound has no end in it
    stopping = F.binary_cross_entropy_with_logits(written.stops[:num], ends)
    return F.cross_entropy(logits, words[:num]) + stopping
