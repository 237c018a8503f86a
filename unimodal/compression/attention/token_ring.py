"""TokenRing (arXiv 2412.20501): a long text that several devices hold in parts, read as one would read it.

Every device keeps the keys and values of its part. Its queries go round the ring; where they arrive they attend to what
is there, and the output goes straight back to the device they came from, with the logarithm of the sum of its weights,
by which outputs are merged into what attention over all keys would be. So queries and outputs travel at the same time,
in two directions. A device holds an early stretch of the text and a late one (zigzag), so that causal attention costs
all the same. Queries that see nothing of a device's keys are neither computed there nor sent back.

    torchrun --nproc-per-node 4 read.py     # in it: reading = read_split(model, ids)

torch's own context parallelism (`torch.distributed.tensor.experimental.context_parallel`) runs on GPUs only: on a
processor torch 2.13 says that scaled_dot_product_flash_attention_for_cpu has no sharding strategy. This runs on both.
It reads; it has no gradient, and keeps no cache.

Shapes: B rows, H query heads, K key heads, N tokens, n tokens of a part, W devices, D width of a head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "token_ring"
ROWS = 1024  # queries whose scores are held at once
QUERIES, OUTPUTS = 1, 2  # what messages carry


@dataclass(frozen=True)
class SequenceSplit:
    """How N tokens lie on W devices: 2·W stretches of equal length, device r has the stretches r and 2·W - 1 - r.

    The last stretches may be longer than the text: positions from `num_tokens` on are padding, which no token sees.
    """

    num_tokens: int
    num_parts: int

    @property
    def stretch(self) -> int:
        return -(-self.num_tokens // (2 * self.num_parts))

    def list_positions(self, part: int) -> Tensor:
        """Positions of a device's tokens, int64 [n]."""
        first = torch.arange(self.stretch)
        return torch.cat([part * self.stretch + first, (2 * self.num_parts - 1 - part) * self.stretch + first])


@dataclass(frozen=True)
class SplitReading:
    """What one device has of a text that was read: logits [B, n, V] at positions int64 [n], in which those from
    `num_tokens` on are padding."""

    logits: Tensor
    positions: Tensor
    num_tokens: int
    group: dist.ProcessGroup | None = None

    def gather(self) -> Tensor:
        """The logits of the whole text, [B, N, V], on every device."""
        num = dist.get_world_size(self.group)
        parts = [torch.empty_like(self.logits) for _ in range(num)]
        dist.all_gather(parts, self.logits.contiguous(), group=self.group)
        split = SequenceSplit(self.num_tokens, num)
        order = torch.cat([split.list_positions(part) for part in range(num)]).argsort()
        return torch.cat(parts, 1)[:, order[: self.num_tokens].to(self.logits.device)]


@dataclass(frozen=True)
class _Ring:
    split: SequenceSplit
    group: dist.ProcessGroup | None


_RING: ContextVar[_Ring | None] = ContextVar("ring", default=None)


def read_split(model: PreTrainedModel, ids: Tensor, group: dist.ProcessGroup | None = None) -> SplitReading:
    """The logits of a causal LM of transformers over rows of one length, ids int64 [B, N], the same on all devices of a
    group; each reads its part.

    Raises ValueError outside a process group, for a model whose attention is more than causal softmax attention, and in
    training with dropout.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            "read_split needs a process group; start the program by torchrun, and init_process_group in it"
        )
    split = SequenceSplit(ids.shape[1], dist.get_world_size(group))
    positions = split.list_positions(dist.get_rank(group)).to(ids.device)
    own = torch.where(positions < split.num_tokens, ids[:, positions.clamp(max=split.num_tokens - 1)], 0)
    with torch.no_grad(), _use_ring(model, _Ring(split, group)):
        found = model(input_ids=own, position_ids=positions.expand(len(ids), -1), use_cache=False)
    return SplitReading(found.logits, positions, split.num_tokens, group)


@contextmanager
def _use_ring(model: PreTrainedModel, ring: _Ring) -> Iterator[None]:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attend_module)
    AttentionMaskInterface.register(NAME, _make_no_mask)
    before, token = model.config._attn_implementation, _RING.set(ring)
    try:
        model.set_attn_implementation(NAME)
        yield
    finally:
        _RING.reset(token)
        model.set_attn_implementation(before)


def _make_no_mask(*_: object, **__: object) -> None:
    """Positions say who sees whom."""


def _attend_module(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    ring = _RING.get()
    if ring is None:
        raise ValueError(f"the attention {NAME} is that of read_split alone; choose sdpa for other calls")
    if dropout or softcap is not None or s_aux is not None or not getattr(module, "is_causal", True):
        raise ValueError(f"read_split has causal softmax attention alone, and {type(module).__name__} does more")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    made = attend_ring(query, key, value, ring.split, scale, sliding_window, ring.group)
    return made.transpose(1, 2).contiguous(), None


def attend_ring(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    split: SequenceSplit,
    scale: float,
    window: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Causal attention of this device's queries [B, H, n, D] over all devices' keys and values [B, K, n, D].

    window: how many positions a token sees, itself among them; None for all before it.
    """
    rank, num = dist.get_rank(group), dist.get_world_size(group)
    key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], 1) for each in (key, value))
    places = [split.list_positions(part).to(query.device) for part in range(num)]
    seen = [[_list_visible(places[asker], places[holder], window) for holder in range(num)] for asker in range(num)]
    made = make_empty(query, value.shape[-1])
    merge_rows(made, attend_block(query, key, value, seen[rank][rank], scale), seen[rank][rank].any(1))
    guest = query.contiguous()
    arriving, coming = _Message(group), None
    for step in range(1, num):  # the queries here are those of the device `step` before this one
        if coming is None:
            coming = arriving.exchange(guest, torch.empty_like(guest), (rank + 1) % num, (rank - 1) % num, QUERIES)
        guest = coming()
        coming = None
        if step + 1 < num:  # they go on while they are attended to here
            coming = arriving.exchange(guest, torch.empty_like(guest), (rank + 1) % num, (rank - 1) % num, QUERIES)
        owner, holder = (rank - step) % num, (rank + step) % num
        block = attend_block(guest, key, value, seen[owner][rank], scale)
        back = seen[rank][holder].any(1)
        expected = block.new_empty(*block.shape[:2], int(back.sum()), block.shape[3])
        merge_rows(made, arriving.exchange(block, expected, owner, holder, OUTPUTS)(), back)
    return made[..., :-1].to(query.dtype)


def _list_visible(asking: Tensor, held: Tensor, window: int | None) -> Tensor:
    """Which key a query sees, bool [n, n], by their positions."""
    apart = asking[:, None] - held[None]
    return (apart >= 0) if window is None else (apart >= 0) & (apart < window)


def make_empty(query: Tensor, width: int) -> Tensor:
    """Outputs of no keys, float32 [B, H, n, D + 1]: zeros, and in the last place the logarithm of no weight."""
    made = query.new_zeros(*query.shape[:3], width + 1, dtype=torch.float32)
    made[..., -1] = float("-inf")
    return made


def attend_block(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float) -> Tensor:
    """Outputs of the m queries that see some of the keys, with the logarithm of the sum of weights in the last place:
    float32 [B, H, m, D + 1]. visible: bool [n, n]."""
    rows, columns = visible.any(1).nonzero()[:, 0], visible.any(0).nonzero()[:, 0]
    held, values = key[:, :, columns].float(), value[:, :, columns].float()
    parts = []
    for some in rows.split(ROWS):
        scores = query[:, :, some].float() @ held.transpose(2, 3) * scale
        scores = scores.masked_fill(~visible[some][:, columns], float("-inf"))
        total = scores.logsumexp(-1, keepdim=True)
        parts.append(torch.cat([(scores - total).exp() @ values, total], -1))
    return torch.cat(parts, 2) if parts else make_empty(query, value.shape[-1])[:, :, :0]


def merge_rows(made: Tensor, block: Tensor, rows: Tensor) -> None:
    """Outputs over more keys, [B, H, m, D + 1], into those of `rows`, bool [n], of made [B, H, n, D + 1]."""
    old = made[:, :, rows]
    before, more = old[..., -1:], block[..., -1:]
    total = torch.logaddexp(before, more)
    outputs = old[..., :-1] * (before - total).exp() + block[..., :-1] * (more - total).exp()
    made[:, :, rows] = torch.cat([outputs, total], -1)


class _Message:
    """Sends a tensor to one device while another arrives, in the order of calls on every device."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group

    def exchange(self, sent: Tensor, room: Tensor, target: int, source: int, kind: int) -> _Arrival:
        """Begins; the result is called for what arrived in `room`."""
        to, of = (self._find(rank) for rank in (target, source))
        sent = sent.contiguous()
        operations = [
            dist.P2POp(dist.isend, sent, to, self.group, kind), dist.P2POp(dist.irecv, room, of, self.group, kind),
        ]  # fmt: skip
        filled = [one for one in operations if one.tensor.numel()]  # the other side knows as well that there is nothing
        return _Arrival(dist.batch_isend_irecv(filled) if filled else [], sent, room)

    def _find(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)


@dataclass
class _Arrival:
    works: list[dist.Work]
    sent: Tensor  # held until it has gone
    room: Tensor

    def __call__(self) -> Tensor:
        for work in self.works:
            work.wait()
        return self.room
