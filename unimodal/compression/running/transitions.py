"""How much a module of a layer changes the tokens that go through it, for TransPrune (arXiv 2507.20630).

Shapes: B rows, N tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unimodal.compression.running.stream import TokenStream


@torch.no_grad()
def note_transitions(
    stream: TokenStream, args: tuple[Tensor, ...], named: dict[str, Tensor], out: Tensor | tuple[Tensor, ...]
) -> None:
    """Add one module's change of its input to the stream's transitions (see TransPrune).

    args, named: the module's arguments, its states [B, N, D] first or as `hidden_states`. out: its output.
    """
    before = args[0] if args else named["hidden_states"]
    after = out[0] if isinstance(out, tuple) else out
    growth = after.float().norm(dim=-1) / before.float().norm(dim=-1).clamp_min(1e-6)
    turn = 1 - nn.functional.cosine_similarity(after.float(), before.float(), dim=-1)
    weight = turn.masked_fill(~stream.valid, -torch.inf).softmax(-1).nan_to_num(0.0)  # [B, N]
    change = growth * weight
    stream.changed = change if stream.changed is None else stream.changed + change
