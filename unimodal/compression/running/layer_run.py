"""One layer of a stock decoder, run on the tokens of a stream with its tables and its hook.

Shapes: B rows, N tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unimodal.compression.running.forward_pass import LayerPass, LayerTables
from unimodal.compression.running.interception import find_hook, hook_attention
from unimodal.compression.running.stream import TokenStream
from unimodal.compression.running.transitions import note_transitions


def run_layer(
    layer: nn.Module,
    changing: tuple[nn.Module, ...],
    gated: nn.Module | None,
    stream: TokenStream,
    tables: LayerTables,
    hook: LayerPass,
    settings: dict[str, object],
) -> Tensor:
    """Run one layer; return its states [B, N, D].

    changing: modules whose changes are added to the stream's. gated: the one whose output its gates multiply.
    """
    # The tables hold the rotation. Pass positions without gaps: a gap would begin a packed document.
    plain = torch.arange(len(stream), device=stream.ids.device)[None]
    if hook.listens:
        settings = {**settings, "compression": hook}

    def note(
        _: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], out: Tensor | tuple[Tensor, ...] | None = None
    ) -> None:
        # Another thread's call of the same module may come here, too, and without `named` while the hook is being set.
        if find_hook() is hook:
            assert out is not None
            note_transitions(stream, args, named, out)

    def gate(
        _: nn.Module, args: tuple[Tensor, ...], out: Tensor | tuple[Tensor, ...]
    ) -> Tensor | tuple[Tensor, ...] | None:
        if find_hook() is not hook or stream.gates is None:
            return None
        factors = stream.gates[..., None]
        return (out[0] * factors, *out[1:]) if isinstance(out, tuple) else out * factors

    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in changing]
    hooks += [] if gated is None else [gated.register_forward_hook(gate)]
    try:
        with hook_attention(hook if hook.listens else None):
            return layer(
                stream.hidden,
                attention_mask=tables.mask,
                position_ids=plain,
                position_embeddings=tables.rotary,
                **settings,
            )
    finally:
        for module_hook in hooks:
            module_hook.remove()
