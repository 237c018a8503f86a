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
    fed: nn.Module | None,
    stream: TokenStream,
    tables: LayerTables,
    hook: LayerPass,
    settings: dict[str, object],
) -> Tensor:
    """Run one layer; return its states [B, N, D].

    changing: modules whose changes are added to the stream's. gated: the one whose output its gates multiply. fed: the
    one whose place the stream's `feed_forwards` take for some tokens; it computes the others alone.
    """
    # The tables hold the rotation. Pass positions without gaps: a gap would begin a packed document.
    plain = torch.arange(len(stream), device=stream.ids.device)[None]
    if hook.listens:
        settings = {**settings, "compression": hook}

    entered: list[Tensor] = []  # what came to the one that is fed, [B, N, D]

    def divide(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if find_hook() is not hook or stream.feeds is None:
            return None
        entered[:] = args[:1]
        others = args[0][stream.feeds == 0]  # [n, D]
        return ((others if len(others) else args[0][:1, 0])[None], *args[1:])

    def join(
        _: nn.Module, args: tuple[Tensor, ...], out: Tensor | tuple[Tensor, ...]
    ) -> Tensor | tuple[Tensor, ...] | None:
        if find_hook() is not hook or stream.feeds is None or not entered:
            return None
        found, whole = out[0] if isinstance(out, tuple) else out, torch.zeros_like(entered[0])
        own = stream.feeds == 0
        if bool(own.any()):
            whole = whole.index_put((own,), found.flatten(0, -2))
        for number, feed_forward in enumerate(stream.feed_forwards, 1):
            here = stream.feeds == number
            whole = whole.index_put((here,), feed_forward(entered[0][here]).to(whole.dtype))
        return (whole, *out[1:]) if isinstance(out, tuple) else whole

    def note(
        module: nn.Module,
        args: tuple[Tensor, ...],
        named: dict[str, Tensor],
        out: Tensor | tuple[Tensor, ...] | None = None,
    ) -> None:
        # Another thread's call of the same module may come here, too, and without `named` while the hook is being set.
        if find_hook() is hook:
            assert out is not None
            note_transitions(stream, tuple(entered) if entered and module is fed else args, named, out)

    def gate(
        _: nn.Module, args: tuple[Tensor, ...], out: Tensor | tuple[Tensor, ...]
    ) -> Tensor | tuple[Tensor, ...] | None:
        if find_hook() is not hook or stream.gates is None:
            return None
        factors = stream.gates[..., None]
        return (out[0] * factors, *out[1:]) if isinstance(out, tuple) else out * factors

    hooks = [] if fed is None else [fed.register_forward_pre_hook(divide), fed.register_forward_hook(join)]
    hooks += [module.register_forward_hook(note, with_kwargs=True) for module in changing]
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
