"""STILL (arXiv 2602.02180): old entries that stand out stay; the others live on in the state of a linear attention.

Each head keeps exactly its entries of the last two chunks and, of older chunks, those with the highest self-saliency:
how far the attention of the token to a window of `chunk` tokens is from what it would be without its own place in it.
The other entries go into a state of fixed size, φ(k)ᵀ[v, 1] summed up. A query attends to both at once: its exponents
over the exact entries and φ(q) times the state share one denominator, and a learned gate scales the state's part.
φ turns a vector by a reflection and a matrix, gives it its old length back (a norm-preserved feature map), and takes
the softmax of it and of its negative.

Trained as the authors' first stage is: the attention of each layer is to give what it gave before, by the mean squared
error; the model stays as it is. Their second stage, LoRA of the decoder under the method, is left out. A key/value head
selects once, by the mean saliency over its queries; the authors repeat its keys and select for every query. The gate is
made of the query, not of the layer's input. The place that a token takes in its own window without itself is weighed
evenly; the authors' code gives that weight to the last place of a ring, which is the own one at the end of a chunk
alone. Within a call nothing is saved: entries go when it ends. Layers with a sliding window are left alone.

Shapes: B rows, H query heads, K key/value heads, Q new tokens, L slots, W head width, F = 2 W features.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.compression.kv.method import Acts, CacheCompressor
from unimodal.compression.learned import DecoderShape, LearnedMethod, check_layers
from unimodal.compression.method import check_whole
from unimodal.compression.running.attention_rows import compute_logits, mask_logits
from unimodal.compression.running.look import Look
from unimodal.vocabulary import Vocabulary

TINY = 1e-8  # in the saliency
SETTLED = 1e6  # the score of an entry that was selected once


class FeatureMap(nn.Module):
    """φ of each head: a reflection, a matrix, the old length, and the softmax of both signs."""

    def __init__(self, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.mirror = nn.Parameter(torch.randn(num_heads, head_width))
        self.matrix = nn.Parameter(torch.empty(num_heads, head_width, head_width))
        for own in self.matrix.data:
            nn.init.kaiming_uniform_(own)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, H, N, W] → [B, H, N, F], none below 0."""
        mirror = F.normalize(self.mirror, dim=-1)[:, None]  # [H, 1, W]
        turned = x - 2 * (x * mirror).sum(-1, keepdim=True) * mirror
        turned = F.normalize(turned @ self.matrix.transpose(1, 2), dim=-1) * x.norm(dim=-1, keepdim=True)
        return torch.cat([turned.softmax(-1), (-turned).softmax(-1)], -1).clamp(min=1e-12)


class LayerMaps(nn.Module):
    """The feature maps of queries and of keys of one layer, alike at first, and the gate."""

    def __init__(self, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.queries, self.keys = FeatureMap(num_heads, head_width), FeatureMap(num_heads, head_width)
        self.keys.load_state_dict(self.queries.state_dict())
        self.gate = nn.Parameter(torch.randn(num_heads, head_width, head_width) * 0.02)

    def weigh(self, query: Tensor) -> Tensor:
        """query [B, H, Q, W] → factors between 0 and 1, [B, H, Q, W]."""
        return (query @ self.gate).sigmoid()


class FeatureMaps(nn.Module):
    """The maps of every layer of a decoder."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.width, self.num_layers = shape.width, shape.num_layers
        self.num_heads, self.head_width = shape.num_heads, shape.head_width
        self.layers = nn.ModuleList([LayerMaps(shape.num_heads, shape.head_width) for _ in range(shape.num_layers)])

    def get_layer(self, number: int, query: Tensor) -> LayerMaps:
        """Raises ValueError for queries [B, H, Q, W] of other heads than these are for."""
        if (query.shape[1], query.shape[3]) != (self.num_heads, self.head_width):
            raise ValueError(
                f"these maps were trained for {self.num_heads} heads of {self.head_width} values; the model has "
                f"{query.shape[1]} of {query.shape[3]}"
            )
        layer = self.layers[number]
        assert isinstance(layer, LayerMaps)
        return layer


@dataclass
class STILL(LearnedMethod, CacheCompressor):
    """Keep old entries that stand out, and the rest as a state of linear attention (STILL, arXiv 2602.02180).

    scores [B, K, L]: the self-saliency. keep: the share that stays exact of the evictable entries of each chunk that is
    older than the last two. chunk: positions in one, and in the window of a token; the authors' is 64, with
    `scope="prompt"` and `keep=1/16`. maps: trained with the decoder. Raises ValueError for a chunk below 2, on entering
    without maps, for a decoder of more layers, in use for one of other heads, and for what `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "STILL, arXiv 2602.02180"
    part: ClassVar[str] = "maps"
    learns_by: ClassVar[str] = "transfer"
    acts: ClassVar[Acts] = "mix"

    chunk: int = 8
    maps: FeatureMaps | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("chunk", self.chunk, 2)

    @classmethod
    def make_part(cls, shape: DecoderShape) -> FeatureMaps:
        return FeatureMaps(shape)

    def check(self, num_layers: int) -> None:
        super().check(num_layers)
        self.check_part()
        if self.maps is not None:
            check_layers(self.maps.num_layers, num_layers, self.part)

    def is_active(self, look: Look) -> bool:
        return look.rule.window is None

    def score(self, look: Look) -> Tensor:
        """The self-saliency of the new tokens behind what is known of the others, float32 [B, K, L]."""
        num, before = look.query.shape[2], look.state.score
        fresh = look.query.new_zeros(*look.keys.shape[:2], num, dtype=torch.float32)
        if look.reads:
            with torch.no_grad():
                fresh = look.average_groups(measure_saliency(look, self.chunk))
        if before is None or before.shape[2] + num != look.keys.shape[2]:  # nothing was read here before
            before = fresh.new_zeros(*fresh.shape[:2], look.keys.shape[2] - num)
        return torch.cat([before, fresh], 2)

    def mix(self, look: Look) -> tuple[Tensor, Tensor, Tensor] | None:
        """The attention [B, Q, H, W] of the new tokens, the entries that go now, bool [B, K, L], and what the state
        gets for them, [B, H, F, W + 1]; None while nothing is old enough. What stays for good has its score raised."""
        scores = self.score(look)
        number = number_chunks(look, self.chunk)  # [B, K or 1, L]
        newest = number[..., -1:].amax(1, keepdim=True)  # [B, 1, 1]; a row ends in its newest token
        old = (number <= newest - 2).expand_as(scores)
        free = (look.slots.evictable & look.slots.find_held()).expand_as(scores)
        if look.state.summary is None and not bool((free & old).any()):
            look.state.score = scores
            return None
        chosen = choose_salient(scores, number.expand_as(scores), free & (scores < SETTLED), self.keep)
        spared = chosen | (scores >= SETTLED) | ~free
        out, features = self.attend(look, number, spared)
        look.state.score = scores.masked_fill(old & chosen, SETTLED)
        gone = old & ~spared
        heads = look.query.shape[1] // scores.shape[1]
        going = features * gone.repeat_interleave(heads, 1)[..., None]  # [B, H, L, F]
        return out, gone, going.transpose(2, 3) @ extend(look.values, heads)

    def attend(self, look: Look, number: Tensor, spared: Tensor) -> tuple[Tensor, Tensor]:
        """The attention [B, Q, H, W], and the features of the keys by their sizes, [B, H, L, F].

        number: int64 [B, K or 1, L], the chunks. spared: bool [B, K, L], what stays exact however old it is.
        """
        assert self.maps is not None
        num, heads = look.query.shape[2], look.query.shape[1] // look.keys.shape[1]
        maps = self.maps.get_layer(look.index, look.query)
        at = look.find_newest(num)
        logits = mask_logits(compute_logits(look.query, look.keys, look.rule), at, look.slots, look.rule)
        own = number.expand(-1, spared.shape[1], -1)
        far = (own[:, :, None] <= own[..., -num:, None] - 2) & ~spared[:, :, None]  # [B, K, Q, L]
        far = far.repeat_interleave(heads, 1)
        exact = logits.masked_fill(far, -torch.inf)
        blind = exact.isneginf().all(-1, keepdim=True)  # padding
        weight = (exact - exact.amax(-1, keepdim=True).masked_fill(blind, 0.0)).exp()
        query = maps.queries(look.query.float())
        keys = look.keys.float().repeat_interleave(heads, 1)
        sizes = look.slots.make_log_sizes().exp()
        sizes = sizes if sizes.shape[1] == 1 else sizes.repeat_interleave(heads, 1)
        features = maps.keys(keys) * sizes[..., None]
        values = extend(look.values, heads)  # [B, H, L, W + 1]
        told = (query @ features.transpose(2, 3)).masked_fill(~far | logits.isneginf(), 0.0) @ values
        if look.state.summary is not None:
            told = told + query @ look.state.summary
        gate = maps.weigh(look.query.float())
        said = weight @ values
        out = (said[..., :-1] + gate * told[..., :-1]) / (said[..., -1:] + told[..., -1:] + 1e-6)
        return out.transpose(1, 2), features

    def compute_loss(
        self, model: nn.Module, vocabulary: Vocabulary, ids: Tensor, valid: Tensor, learnt: Tensor
    ) -> tuple[Tensor, int]:
        settings = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        watched = _TransferringSTILL(**settings)
        with watched(model, vocabulary):
            model(input_ids=ids, attention_mask=valid.long(), use_cache=False)
        count = int(learnt.sum())
        return count * (torch.stack(watched.errors).mean() if watched.errors else 0.0 * ids.sum()), count


@dataclass
class _TransferringSTILL(STILL):
    """One that lets each layer attend as it did, and notes how far from that it would be."""

    errors: list[Tensor] = field(default_factory=list)

    def mix(self, look: Look) -> tuple[Tensor, Tensor, Tensor] | None:
        with torch.enable_grad():
            mixed = super().mix(look)
        if mixed is None:
            return None
        out, gone, told = mixed
        heads = look.query.shape[1] // look.keys.shape[1]
        rows = look.attend_newest(look.query.shape[2])  # [B, H, Q, L]
        own = (rows @ look.values.float().repeat_interleave(heads, 1)).transpose(1, 2).detach()
        real = look.slots.valid[:, -look.query.shape[2] :]
        self.errors.append((out - own)[real].square().mean())
        return own, torch.zeros_like(gone), torch.zeros_like(told)


def extend(values: Tensor, heads: int) -> Tensor:
    """values [B, K, L, W] → those of every query head with a one behind them, float32 [B, K · heads, L, W + 1]."""
    return F.pad(values.float(), (0, 1), value=1.0).repeat_interleave(heads, 1)


def number_chunks(look: Look, chunk: int) -> Tensor:
    """In which chunk of its row each slot lies, counted from the row's first token: int64 [B, K or 1, L]."""
    return (look.slots.positions - look.slots.first_position).clamp(min=0) // chunk


def choose_salient(scores: Tensor, number: Tensor, free: Tensor, keep: float) -> Tensor:
    """The best of each chunk, bool [B, K, L]: of those that are free, the share `keep`, rounded, one at least.

    scores: [B, K, L]. number: int64 [B, K, L], the chunks. free: bool [B, K, L].
    """
    same = number[..., :, None] == number[..., None, :]
    place = torch.arange(scores.shape[-1], device=scores.device)
    ahead = scores[..., None, :] > scores[..., :, None]
    ahead |= (scores[..., None, :] == scores[..., :, None]) & (place < place[:, None])
    rivals = same & free[..., None, :]
    rank, count = (rivals & ahead).sum(-1), rivals.sum(-1)
    return free & (rank < (count * keep).round().clamp(min=1))


def measure_saliency(look: Look, window: int) -> Tensor:
    """How far the attention of each new token to its last `window` positions is from that without its own place, in
    nats: float32 [B, H, Q].

    Without it the own place weighs 1 / `window`, and the others share the rest.
    """
    num = look.query.shape[2]
    at = look.find_newest(num)
    logits = mask_logits(compute_logits(look.query, look.keys, look.rule), at, look.slots, look.rule)
    positions = look.slots.positions  # [B, K or 1, L]
    gap = positions[..., -num:, None] - positions[..., None, :]
    heads = look.query.shape[1] // gap.shape[1]
    near = ((gap >= 0) & (gap < window)).repeat_interleave(heads, 1)  # [B, H, Q, L]
    logits = logits.masked_fill(~near, -torch.inf)
    own = F.one_hot(at, look.keys.shape[2]).bool()[:, None]  # [B, 1, Q, L]
    whole = logits.softmax(-1).nan_to_num(0.0)
    others = logits.masked_fill(own, -torch.inf).softmax(-1).nan_to_num(0.0)
    whole = (whole + TINY) / (1 + window * TINY)
    others = ((others + TINY) / (1 + window * TINY + 1 / window)).masked_fill(own, 1 / window + TINY)
    seen = near & ~logits.isneginf()
    return (whole * (whole / (others + TINY)).log()).masked_fill(~seen, 0.0).sum(-1)
