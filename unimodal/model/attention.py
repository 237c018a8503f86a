"""Causal attention for packed documents, registered with transformers under two names.

``xformers`` calls memory_efficient_attention with a BlockDiagonalCausalMask (arXiv:2112.05682, CUDA only). ``varlen``
computes the same in plain torch: documents are gathered into short padded rows, so that attention costs the sum of the
squared document lengths instead of the squared row length. The two differ in the kernel only, and both give what stock
``sdpa`` gives with a dense mask.

A document starts wherever position ids do not continue. Call the model with position ids that restart; pass
``packing=Packing.from_position_ids(position_ids)`` as well to find the boundaries once instead of once a layer. With
padding masks, caches or sliding windows both names fall back to stock ``sdpa`` and its dense mask.

Shapes: B batch, N tokens in a row, T = B * N tokens in all, S documents, L longest document of a bucket,
H query heads, K key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.model.comparison import find_tolerance, measure_difference

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

XFORMERS = "xformers"
VARLEN = "varlen"
# On a processor in bfloat16, scores are held for documents of at most so many tokens, in buckets of so many scores.
LONGEST_DENSE, MOST_SCORES = 512, 1 << 23


@dataclass(eq=False)
class Packing:
    """Where the documents of a batch lie among its T flattened tokens; build it once a step, on any device.

    watch_layer: number of a layer whose queries [B, H, N, D] and keys [B, K, N, D] are left in ``watched``, detached.
    """

    lengths: tuple[int, ...]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    watch_layer: int | None = None
    watched: tuple[Tensor, Tensor] | None = None
    _buckets: list[tuple[Tensor, Tensor]] | None = None
    _bias: BlockDiagonalCausalMask | None = None

    @classmethod
    def from_position_ids(cls, position_ids: Tensor) -> Packing:
        """position_ids [B, N]: a document starts in column 0 and wherever a position is not the one before plus 1."""
        starts = torch.ones_like(position_ids, dtype=torch.bool)
        starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
        offsets = starts.flatten().nonzero().squeeze(1)
        lengths = torch.diff(offsets, append=offsets.new_tensor([position_ids.numel()]))
        return cls(tuple(lengths.tolist()), position_ids.device)

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def cu_seqlens(self) -> Tensor:
        """Cumulative document lengths, int32 [S + 1], the form that flash and xformers kernels take."""
        return torch.tensor((0, *self.lengths)).cumsum(0).to(device=self.device, dtype=torch.int32)

    def make_xformers_bias(self) -> BlockDiagonalCausalMask:
        """xformers' mask of these documents; made once."""
        if self._bias is None:
            from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

            self._bias = BlockDiagonalCausalMask.from_seqlens(list(self.lengths), device=self.device)
        return self._bias

    def bucket_documents(self) -> list[tuple[Tensor, Tensor]]:
        """Documents of similar length together: for each bucket token indices int64 [S, L] and valid bool [S, L].

        A padded slot repeats the document's first token. Made once.
        """
        if self._buckets is None:
            starts = torch.tensor((0, *self.lengths)).cumsum(0)[:-1]
            lengths = torch.tensor(self.lengths)
            self._buckets = []
            for members in _group_lengths(self.lengths):
                chosen = torch.tensor(members)
                longest = int(lengths[chosen].max())
                column = torch.arange(longest)
                valid = column < lengths[chosen, None]
                index = starts[chosen, None] + torch.where(valid, column, 0)
                self._buckets.append((index.to(self.device), valid.to(self.device)))
        return self._buckets


def _group_lengths(lengths: Sequence[int], waste: float = 1.25) -> list[list[int]]:
    """Group document indices so that none is padded beyond ``waste`` times its length, or by more than 8 tokens."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    groups: list[list[int]] = []
    for i in order:
        shortest = lengths[groups[-1][0]] if groups else 0
        if groups and lengths[i] <= max(shortest * waste, shortest + 8):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


class VarlenKernel(Protocol):
    """Causal attention within each document: query, key and value [1, T, H, D] → [1, T, H, D].

    p: dropout of the attention weights. scale: what scores are multiplied by; None is 1 / sqrt(D).
    """

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, packing: Packing, p: float = 0.0, scale: float | None = None
    ) -> Tensor: ...


def attend_by_products(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """query, key, value [S, H, L, D] -> [S, H, L, D]: causal attention as two matrix products, as "eager" computes it.

    In bfloat16 on a processor, sdpa's kernel takes 1.3 to 4 times as long, forward and backward, for documents of up to
    `LONGEST_DENSE` tokens, and as long for longer ones (``tools/bench_attention.py --kernels``). Scores are rounded to
    bfloat16, as "eager" does and the kernel does not, and all [S, H, L, L] are held for the backward pass.
    """
    num_docs, num_heads, longest, width = query.shape
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = (x.reshape(num_docs * num_heads, longest, width) for x in (query, key, value))
        later = q.new_full((longest, longest), -torch.inf).triu_(1)
        scores = torch.bmm(q * (width**-0.5 if scale is None else scale), k.transpose(1, 2)).add_(later)
        return torch.bmm(scores.softmax(-1), v).view(num_docs, num_heads, longest, width)


def attend_by_torch(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, p: float = 0.0, scale: float | None = None
) -> Tensor:
    """A `VarlenKernel` in plain torch: documents of similar length are padded to one batch."""
    _, num_tokens, num_heads, width = query.shape
    buckets = packing.bucket_documents()
    places = torch.cat([index.flatten() for index, _ in buckets])
    sizes = [index.numel() for index, _ in buckets]
    # gathered for all buckets at once: the gradient of each gather is a tensor of all tokens
    parts = [x.reshape(num_tokens, num_heads * width).index_select(0, places).split(sizes) for x in (query, key, value)]
    pieces = []
    for (index, _), *part in zip(buckets, *parts, strict=True):
        num_docs, longest = index.shape
        q, k, v = (x.view(num_docs, longest, num_heads, width).transpose(1, 2) for x in part)
        # [S, H, L, D]; a padded slot comes after its document, so no valid query sees it
        half = q.device.type == "cpu" and q.dtype == torch.bfloat16
        if half and longest <= LONGEST_DENSE and q.shape[:2].numel() * longest**2 <= MOST_SCORES and not p:
            out = attend_by_products(q, k, v, scale)
        else:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True, scale=scale)
        pieces.append(out.transpose(1, 2).reshape(num_docs * longest, num_heads * width))
    keep = torch.cat([valid.flatten() for _, valid in buckets]).nonzero().squeeze(1)
    back = keep[torch.argsort(places[keep])]  # where each token stands among the buckets
    return torch.cat(pieces).index_select(0, back).view(1, num_tokens, num_heads, width)


def attend_by_xformers(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, p: float = 0.0, scale: float | None = None
) -> Tensor:
    """A `VarlenKernel` of xformers, CUDA only."""
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(query, key, value, attn_bias=packing.make_xformers_bias(), p=p, scale=scale)


def attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    *,
    kernel: VarlenKernel = attend_by_torch,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> Tensor:
    """query [B, H, N, D], key and value [B, K, N, D] -> [B, N, H, D]; key/value heads are repeated to H.

    Raises ValueError for a packing of another number of tokens.
    """
    batch, num_heads, length, width = query.shape
    if packing.num_tokens != batch * length:
        raise ValueError(
            f"packing covers {packing.num_tokens} tokens but the batch has {batch} x {length}: build it from the same"
            " position_ids"
        )
    repeats = num_heads // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    # Under autocast the rotation leaves queries and keys in fp32 beside half-precision values: one type for the kernel.
    q, k, v = (
        x.to(value.dtype).transpose(1, 2).reshape(1, batch * length, num_heads, width) for x in (query, key, value)
    )
    return kernel(q, k, v, packing, p=dropout, scale=scaling).reshape(batch, length, num_heads, width)


def _make_attention(kernel: VarlenKernel, whole_rows_by_sdpa: bool) -> Callable[..., tuple[Tensor, None]]:
    """An attention function of transformers over this kernel.

    whole_rows_by_sdpa: leave a batch whose rows hold one document each to stock sdpa.
    """

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        packing: Packing | None = None,
        position_ids: Tensor | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, None]:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        if packing is not None and packing.watch_layer is not None and packing.watch_layer == module.layer_idx:
            packing.watched = (query.detach(), key.detach())
        dense = attention_mask is not None or key.shape[2] != query.shape[2]
        if not dense and packing is None and position_ids is not None:
            packing = Packing.from_position_ids(position_ids.expand(query.shape[0], -1))
        if dense or packing is None or (whole_rows_by_sdpa and len(packing.lengths) == query.shape[0]):
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
            )
        out = attend_packed(query, key, value, packing, kernel=kernel, dropout=dropout, scaling=scaling)
        return out, None

    return attend


def _make_packed_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    **kwargs: object,
) -> Tensor | None:
    """No dense mask where the kernel itself is causal within documents; stock sdpa's mask in every other case.

    Registering this is not optional: without it transformers drops padding masks silently.
    """
    from transformers.masking_utils import sdpa_mask

    plain = attention_mask is None or bool(attention_mask.all())
    fresh = q_length == kv_length and isinstance(q_offset, int) and q_offset == 0
    if plain and fresh and local_size is None and not use_vmap:  # use_vmap: the caller changed the causal pattern
        return None
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        attention_mask=attention_mask,
        local_size=local_size,
        use_vmap=use_vmap,
        **kwargs,
    )


def register_attention() -> None:
    """Make ``xformers`` and ``varlen`` valid values of ``attn_implementation``. May be called repeatedly."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(XFORMERS, _make_attention(attend_by_xformers, whole_rows_by_sdpa=False))
    AttentionInterface.register(VARLEN, _make_attention(attend_by_torch, whole_rows_by_sdpa=True))
    for name in (XFORMERS, VARLEN):
        AttentionMaskInterface.register(name, _make_packed_mask)


@cache
def find_xformers_problem() -> str | None:
    """Why xformers cannot be used here (one line), or None when its kernel runs on this machine's GPU."""
    if not torch.cuda.is_available():
        return "no CUDA device: xformers has no CPU operator"
    try:
        probe = torch.zeros(1, 16, 1, 32, device="cuda", dtype=torch.float16)
        attend_by_xformers(probe, probe, probe, Packing((16,), probe.device))
    except (ImportError, NotImplementedError, OSError, RuntimeError) as error:
        return f"xformers does not run on {torch.cuda.get_device_name()}: {str(error).splitlines()[0]}"
    return None


def set_attention(model: PreTrainedModel, name: str = "auto") -> str:
    """Choose the attention of a Hugging Face model for packed training and return its name.

    ``auto``: ``xformers`` for a model on CUDA where xformers runs, else ``varlen``. A model keeps its own "sdpa" or
    "eager" if its attention does more than sdpa's kernel (Gemma 2's soft cap) or does not pass on where documents lie.
    Raises ValueError for an unknown name, and if the documents of a row would see each other.
    """
    register_attention()
    if name not in ("auto", VARLEN, XFORMERS, "sdpa", "eager"):
        raise ValueError(f"attention {name!r} is unknown; use auto, {VARLEN}, {XFORMERS}, sdpa or eager")
    if name == XFORMERS and (problem := find_xformers_problem()) is not None:
        raise ValueError(f"attention 'xformers' cannot be used ({problem}); use 'auto', 'varlen' or 'sdpa'")
    own = model.config._attn_implementation
    own = own if own in ("sdpa", "eager") else "sdpa"
    choices = [name]
    if name == "auto":
        on_cuda = next(model.parameters()).is_cuda
        choices = [XFORMERS if on_cuda and find_xformers_problem() is None else VARLEN, own]
    for chosen in choices:
        if try_attention(model, chosen):
            return chosen
    fix = "" if name == "auto" else "; use 'auto'"
    raise ValueError(f"{type(model).__name__} does not keep the documents of a row apart with attention {name!r}{fix}")


@torch.no_grad()
def try_attention(model: PreTrainedModel, name: str) -> bool:
    """Choose this attention if the model can use it, else leave the one it has; return whether it was chosen.

    The model can use it if two documents in one row, marked by positions that restart, get the hidden states that each
    gets alone under the attention before.
    """
    register_attention()
    ours, before = name in (VARLEN, XFORMERS), model.config._attn_implementation
    backbone, device = model.get_decoder(), next(model.parameters()).device
    row = torch.tensor([[0, 1, 2, 0, 1, 3]], device=device)
    positions = torch.arange(3, device=device).repeat(2)[None]
    packing = {"packing": Packing.from_position_ids(positions)} if ours else {}
    was_training, fits = model.training, False
    model.eval()
    try:
        alone = backbone(input_ids=row[:, :3], position_ids=positions[:, :3], use_cache=False).last_hidden_state
        model.set_attn_implementation("sdpa" if ours else name)  # ours is sdpa's kernel
        model.set_attn_implementation(name)
        packed = backbone(input_ids=row, position_ids=positions, use_cache=False, **packing).last_hidden_state
        expected = torch.cat([alone, alone[:, :2]], 1)
        fits = measure_difference(packed[:, :5], expected) <= find_tolerance(model)
    except (ValueError, TypeError, RuntimeError):
        pass  # transformers refuses models whose attention is more than sdpa's; a forward may take no more arguments
    finally:
        model.train(was_training)
        if not fits:
            model.set_attn_implementation(before)
    return fits
