"""Checks of an unknown decoder by running it: a few tokens in the executor and in the decoder's own forward.

Shapes: B rows, H heads, N tokens, W head width, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from unimodal.compression.running.contracts import CacheMethod
from unimodal.compression.running.decoder_parts import NEEDS, DecoderParts, LayerKind
from unimodal.compression.running.interception import AttentionOutput, LayerAttention, hook_attention
from unimodal.model.comparison import find_tolerance, measure_difference

NUM_TOKENS = 6
SHIFT = 5  # positions by which the second run is moved
#: a layer is run once and gives states [B, N, D]: (index of the layer, states, positions [B, N], cache) → states
LayerRunner = Callable[[int, Tensor, Tensor, DynamicCache], Tensor]


@dataclass(eq=False)
class _Recorder:
    """The `AttentionHook` that notes every call."""

    calls: list[LayerAttention] = field(default_factory=list)

    def attend(self, attention: LayerAttention) -> AttentionOutput:
        self.calls.append(attention)
        return attention.compute()


@torch.no_grad()
def check_forward(parts: DecoderParts, forward: Callable[..., object]) -> None:
    """Raises ValueError for a decoder whose own forward does more than `forward`, which runs its layers in turn."""
    backbone = parts.backbone
    device = next(backbone.parameters()).device
    ids = torch.arange(1, NUM_TOKENS + 1, device=device)[None] % backbone.config.vocab_size
    expected = type(backbone).forward(backbone, input_ids=ids, use_cache=False).last_hidden_state
    try:
        found = forward(input_ids=ids, use_cache=False).last_hidden_state  # type: ignore[attr-defined]
        fits = measure_difference(found, expected) <= find_tolerance(backbone)
    except (AttributeError, RuntimeError, TypeError):
        fits = False
    if not fits:
        raise ValueError(f"{type(backbone).__name__} does more than the layers of Llama's; {NEEDS}")


@torch.no_grad()
def check_attention(parts: DecoderParts, run_layer: LayerRunner) -> None:
    """Finds out how each layer turns its keys (`LayerRotation`), for methods that look into the attention.

    Raises ValueError for layers whose attention is not one call over the keys and values that the cache holds, and for
    keys that cannot be turned to another position.
    """
    backbone, name = parts.backbone, type(parts.backbone).__name__
    parameter = next(backbone.parameters())
    noise = torch.Generator().manual_seed(0)
    states = torch.randn(1, NUM_TOKENS, backbone.config.hidden_size, generator=noise).to(parameter)
    places = torch.arange(NUM_TOKENS, device=parameter.device)[None]
    still: dict[LayerKind, LayerKind] = {}  # kinds → the same without positions
    for index, kind in enumerate(parts.kinds):
        pair: list[LayerAttention] = []
        for shift in (0, SHIFT):
            recorder, cache = _Recorder(), DynamicCache()
            with hook_attention(recorder):
                run_layer(index, states, places + shift, cache)
            held = cache.layers[index].keys if index < len(cache.layers) else None
            if len(recorder.calls) != 1 or held is None or not torch.equal(held, recorder.calls[0].key):
                raise ValueError(
                    f"{name} attends to other keys than its cache holds; use a method that acts on tokens before the "
                    "decoder, such as divprune"
                )
            pair.append(recorder.calls[0])
        own, moved = (call.key for call in pair)
        offset = torch.full((1, 1, NUM_TOKENS), SHIFT, device=own.device)
        if measure_difference(own, moved) <= find_tolerance(backbone) / 10:
            parts.kinds[index] = still.setdefault(kind, LayerKind(kind.name, kind.window, kind.rotation.stop()))
        elif measure_difference(kind.rotation.rotate_by(own, offset), moved) > find_tolerance(backbone):
            raise ValueError(f"{name} turns its keys in a way that this method does not know; {NEEDS}")


def check_cache(cache: object) -> None:
    """Raises ValueError for a cache that cannot lose entries."""
    if cache is not None and (not isinstance(cache, Cache) or cache.is_compileable):
        name = type(cache).__name__
        raise ValueError(f"compression needs a DynamicCache, not a {name}; leave cache_implementation out")


def warn_without_cache(methods: Sequence[CacheMethod], num: int) -> None:
    """Warns where a call of `num` tokens keeps no cache, in which a method would act."""
    for method in methods:
        chooses = method.acts == "select" and method.count_chunk(num) is None
        if method.keep < 1 and (chooses or method.acts in ("evict", "store", "replay")):
            name = type(method).__name__
            warnings.warn(f"{name} acts on the cache, and with use_cache=False it does nothing", stacklevel=2)


def check_call(ids: Tensor | None, mask: Tensor | None, settings: dict[str, object]) -> None:
    """Raises ValueError for a call that cannot be compressed; removes from settings what is only checked."""
    if ids is None:
        raise ValueError("compression finds spans by their ids; call the model with input_ids")
    if mask is not None and (isinstance(mask, dict) or mask.ndim != 2):
        raise ValueError("compression makes the masks itself; give a 2-d attention_mask, or none")
    settings.pop("return_dict", None)
    if settings.pop("packing", None) is not None:
        raise ValueError("compression takes one document a row; unpack the rows first")
    for name in ("output_attentions", "output_hidden_states"):
        if settings.pop(name, None):
            raise ValueError(f"{name} is not available under compression: layers hold different tokens")


def check_together(open_here: list[CacheMethod], method: CacheMethod) -> None:
    """Raises ValueError for a cache method that does not go with those that are open."""
    for other in open_here:
        names = f"{type(other).__name__} and {type(method).__name__}"
        for kinds, do in ((("select", "prefill"), "choose what to attend to"), (("store",), "pack entries")):
            if other.acts in kinds and method.acts in kinds:
                raise ValueError(f"{names} both {do}; leave the other's context first")
        if "mix" in (other.acts, method.acts):
            raise ValueError(
                f"{names} do not go together: one computes the attention itself; leave the other's context first"
            )
        if "replay" in (other.acts, method.acts) and {other.acts, method.acts} <= {"replay", "evict"}:
            raise ValueError(f"{names} cannot both evict: one ranks the entries of all layers together")
        if "store" in (other.acts, method.acts) and "compacted" in (other.positions, method.positions):
            raise ValueError(f"{names}: packed keys cannot be moved; use positions='kept'")
        for name in ("scope", "modalities", "positions"):
            mine, theirs = vars(method)[name], vars(other)[name]
            if mine != theirs:
                raise ValueError(f"{names} differ in {name}, {theirs!r} and {mine!r}; give both the same")
