"""LangDC (arXiv 2509.00969): a small language model describes each clip, and its description is what goes on.

A captioner reads the tokens of a clip and writes a description word by word, each from the clip and the words that it
picked before, until it says that nothing is left to say. What it thinks at each word goes through a projector and takes
the places of the clip's own tokens, so that a scene with more to tell gets more of them.

It is trained as the authors' is. First the captioner alone learns to describe, from given descriptions (semantic
density-aware supervision): the head says each next word behind those before it, and that the description ends. Then it
is frozen, and the projector learns what the decoder needs of its thoughts. All at once does not work: a projector that
changes what the captioner thinks, and a captioner that goes on from its own soft tokens, were no better than even
pruning. Untrained it refuses.

The authors' captioner is a language model of half a billion weights that was trained before; this one has two layers,
learns its words from nothing, and reads and says them by the decoder's embeddings and head. The description is the
answer that the row of the corpus has, of every clip in it; `keep` bounds how much it writes; in the second phase it
goes on from its own words, the authors' from given ones; and the decoder is not trained with it. A picture and a sound
are one clip.

Shapes: B spans, N tokens, M words, D width, E inner width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.compression.distillation import compute_distillation_loss
from unimodal.compression.learned import DecoderShape, check_width
from unimodal.compression.method import check_whole
from unimodal.compression.plan import Plan, Span, count_share
from unimodal.compression.tokens.grids import allot
from unimodal.compression.tokens.learned import LearnedCompressor
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
    """Clip tokens and the words so far → what is thought at the next word, what it is, and whether it is the last.

    project: thoughts [M, E] → soft tokens [M, D]. steps: how many it was trained for so far, which decide the phase.
    """

    steps: Tensor

    def __init__(self, width: int, inner: int = 128, num_layers: int = 2, num_heads: int = 4) -> None:
        super().__init__()
        self.width = width
        self.read, self.heard = nn.Linear(width, inner), nn.Linear(width, inner)
        self.start = nn.Parameter(torch.randn(inner) * 0.02)
        self.layers = nn.ModuleList(CaptionLayer(inner, num_heads) for _ in range(num_layers))
        self.norm, self.say, self.stop = nn.LayerNorm(inner), nn.Linear(inner, width), nn.Linear(inner, 1)
        self.project = nn.Sequential(nn.Linear(inner, width), nn.GELU(), nn.Linear(width, width))
        nn.init.constant_(self.stop.bias, BEGIN)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def write(self, clip: Tensor, count: int, span: Span, words: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """clip [N, D] → the thoughts at its words, [M, E], and the logits of stopping behind each, [M].

        Of at most `count` words, up to where it stops. words: int64 [M], given ones, which it follows to their end.
        span: spells and embeds words.
        """
        known = self.read(F.layer_norm(clip, clip.shape[-1:]))
        past: list[Tensor | None] = [None] * len(self.layers)
        self._pass(known + make_waves(len(clip), known), past)
        places, new, thoughts, stops = make_waves(count, known), self.start, [], []
        for number, place in enumerate(places):
            thoughts.append(self.norm(self._pass((new + place)[None], past)[0]))
            stops.append(self.stop(thoughts[-1])[0])
            if words is None and float(stops[-1].detach()) > 0 or number + 1 == count:
                break
            word = span.spell(self.say(thoughts[-1].detach())).argmax(-1) if words is None else words[number]
            own = span.embed(word[None])[0].detach().float()
            new = self.heard(F.layer_norm(own, own.shape))
        return torch.stack(thoughts), torch.stack(stops)

    def _pass(self, x: Tensor, past: list[Tensor | None]) -> Tensor:
        for at, layer in enumerate(self.layers):
            x, past[at] = layer(x, past[at])
        return x


def make_waves(num: int, like: Tensor) -> Tensor:
    """Sinusoids of positions, [num, E], in the type of [..., E]."""
    inner = like.shape[-1]
    angles = torch.arange(num)[:, None] / 10_000 ** (torch.arange(0, inner, 2) / inner)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :inner].to(like)


@dataclass
class LangDC(LearnedCompressor):
    """Let a small captioner describe each clip in soft tokens, as many as it finds to say (LangDC, arXiv 2509.00969).

    hidden [B, N, D] → the soft tokens of its clips, one at least and at most the share `keep`. frames: of a clip.
    describing: steps of training in which the captioner learns to describe; behind them the projector learns.
    captioner: trained with the decoder. Raises ValueError for less than one frame, steps below 0, on entering without
    a captioner, for a decoder of another width, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "LangDC, arXiv 2509.00969"
    part: ClassVar[str] = "captioner"
    learns_by: ClassVar[str] = "loss"
    judges_rows: ClassVar[bool] = True

    frames: int = 4
    describing: int = 300
    captioner: SoftCaptioner | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("frames", self.frames, 1)
        check_whole("describing", self.describing, 0)

    @classmethod
    def make_part(cls, shape: DecoderShape) -> SoftCaptioner:
        return SoftCaptioner(shape.width)

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        if self.keep == 1:
            return [len(span) for span in spans]
        with torch.no_grad():
            return [sum(len(thoughts) for thoughts in self.describe(span.hidden[0], span)) for span in spans]

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        assert self.captioner is not None
        with torch.no_grad():  # the captioner is frozen where the projector learns
            thoughts = torch.stack([torch.cat(self.describe(row, span)) for row in hidden])
        states = self.captioner.project(thoughts)
        return Plan(choose_evenly(len(span), span.count, hidden), states=states.to(hidden.dtype))

    def describe(self, hidden: Tensor, span: Span) -> list[Tensor]:
        """What the captioner thinks at each word about each clip of a span [N, D], up to its share of the bound."""
        assert self.captioner is not None
        clips = self.cut(hidden, span)
        bounds = allot(count_share(self.keep, len(span)), [len(clip) for clip in clips])
        pairs = zip(clips, bounds, strict=True)
        return [self.captioner.write(clip, bound, span)[0] for clip, bound in pairs if bound]

    def cut(self, hidden: Tensor, span: Span) -> list[Tensor]:
        """The clips of a span [N, D]."""
        assert self.captioner is not None
        check_width(self.captioner.width, hidden)
        lengths = [len(span)]
        if span.modality == "video" and sum(span.segments) == len(span):
            runs = range(0, len(span.segments), self.frames)
            lengths = [sum(span.segments[first : first + self.frames]) for first in runs]
        return list(hidden.float().split(lengths))

    def compute_loss(
        self, model: nn.Module, vocabulary: Vocabulary, ids: Tensor, valid: Tensor, learnt: Tensor
    ) -> tuple[Tensor, int]:
        assert self.captioner is not None
        steps = int(self.captioner.steps)
        if self.captioner.training:
            self.captioner.steps += 1
        if steps >= self.describing:
            return compute_distillation_loss(self, model, vocabulary, ids, valid, learnt)
        reading = _ReadingLangDC(**{spec.name: getattr(self, spec.name) for spec in fields(self)})
        with reading(model, vocabulary), torch.no_grad():
            model(input_ids=ids, attention_mask=valid.long(), use_cache=False)
        terms = []
        for row, span in reading.seen:
            words = ids[row, 1:][learnt[row, :-1]]
            if len(words):
                terms += [supervise(self.captioner, clip, words, span) for clip in self.cut(span.hidden[0], span)]
        count = int(learnt.sum())
        return count * (torch.stack(terms).mean() if terms else ids.new_zeros((), dtype=torch.float32)), count


@dataclass
class _ReadingLangDC(LangDC):
    """One that notes the spans of each row and leaves them as they are."""

    seen: list[tuple[int, Span]] = field(default_factory=list)

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        for span in spans:
            assert span.place is not None
            self.seen.append((int(span.place.rows[0]), span))
        return [len(span) for span in spans]


def supervise(captioner: SoftCaptioner, clip: Tensor, words: Tensor, span: Span) -> Tensor:
    """How far what is said of a clip [N, D] is from a description, int64 [L], and stopping from its end, in nats."""
    thoughts, stops = captioner.write(clip.detach(), len(words), span, words)
    ends = torch.zeros_like(stops)
    ends[-1] = 1.0
    said = span.spell(captioner.say(thoughts)).float()
    return F.cross_entropy(said, words) + F.binary_cross_entropy_with_logits(stops, ends)
