"""The parts of a stock decoder that the executor runs, and what differs from layer to layer.

Shapes: B rows, N tokens, D width.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.cache_utils import DynamicCache

from unimodal.compression.running.rotation import STATIC_ROPE, LayerRotation, RotaryFunction, find_rotary_function

NEEDS = "compression needs a decoder like Llama's"
FEED_FORWARDS = ("mlp", "block_sparse_moe", "feed_forward", "moe")


@dataclass(frozen=True, eq=False)
class LayerKind:
    """What layers of one kind share. window: a token sees those less than so many positions before it; None for all."""

    name: str
    window: int | None
    rotation: LayerRotation


class DecoderParts:
    """The layers, embeddings and final norm of a decoder like LlamaModel.

    kinds: one a layer. cache_name: the layers' name for the cache.
    Raises ValueError for a decoder without these parts, with layers that are not of attention, or with rotary positions
    that depend on the length.
    """

    def __init__(self, backbone: nn.Module) -> None:
        config: PretrainedConfig = backbone.config
        missing = [name for name in ("layers", "rotary_emb", "norm") if not hasattr(backbone, name)]
        if missing:
            raise ValueError(f"{type(backbone).__name__} has no {missing[0]}; {NEEDS}")
        self.backbone = backbone
        self.layers: list[nn.Module] = list(backbone.layers[: config.num_hidden_layers])
        if not all("self_attn" in dict(layer.named_children()) for layer in self.layers):
            raise ValueError(f"{type(backbone).__name__} has layers without self_attn; {NEEDS}")
        _check_rope(config)
        windows = find_layer_windows(config, len(self.layers))
        apply = find_rotary_function(self.layers[0].self_attn)
        kinds = {kind: LayerKind(*kind, self._make_rotation(kind[0], apply)) for kind in windows}
        self.kinds = [kinds[kind] for kind in windows]
        names = inspect.signature(type(self.layers[0]).forward).parameters
        self.cache_name = "cache" if "cache" in names else "past_key_values"
        scale = vars(backbone).get("embedding_multiplier", 1.0)  # Granite
        self.embedding_scale: float = float(scale)
        rope = config.to_dict().get("rope_parameters") or {}
        self.has_axes = "mrope_section" in rope  # positions in time, height and width (Qwen2-VL)

    def _make_rotation(self, kind: str, apply: RotaryFunction | None) -> LayerRotation:
        return LayerRotation(self.backbone.rotary_emb, kind, apply)

    def embed(self, ids: Tensor, embedded: Tensor | None) -> Tensor:
        """The states [B, N, D] that enter the first layer, of ids [B, N] or of the embeddings that a caller gives."""
        states = self.backbone.get_input_embeddings()(ids) if embedded is None else embedded
        return states if self.embedding_scale == 1.0 else states * self.embedding_scale

    def list_modules_of(self, index: int) -> tuple[nn.Module, nn.Module]:
        """The attention and the feed-forward module of a layer. Raises ValueError for a layer without the latter."""
        children = dict(self.layers[index].named_children())
        name = next((name for name in FEED_FORWARDS if name in children), None)
        if name is None:
            raise ValueError(f"{type(self.layers[index]).__name__} has no feed-forward that this method knows")
        return children["self_attn"], children[name]

    def find_gated(self, index: int) -> nn.Module:
        """The module of a layer whose output the feed-forward adds to the states: itself, or the norm behind it."""
        children = dict(self.layers[index].named_children())
        return children.get("post_feedforward_layernorm", self.list_modules_of(index)[1])


def find_layer_windows(config: PretrainedConfig, num_layers: int) -> list[tuple[str, int | None]]:
    """The kind and the window of every layer, whether the config names `layer_types` or, as Mistral's, only a window.

    Raises ValueError for layers of another kind.
    """
    settings = config.to_dict()  # a config has only the settings of its family
    kinds = list(settings.get("layer_types") or [])
    if not kinds:
        held = DynamicCache(config=config).layers
        windows = [vars(layer).get("sliding_window") for layer in held[:num_layers]]
        windows += [None] * (num_layers - len(windows))
        return [("full_attention" if window is None else "sliding_attention", window) for window in windows]
    if others := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        raise ValueError(f"compression needs attention in every layer; this model has {', '.join(others)}")
    window = settings.get("sliding_window")
    return [(kind, window if kind == "sliding_attention" else None) for kind in kinds[:num_layers]]


def _check_rope(config: PretrainedConfig) -> None:
    rope = config.to_dict().get("rope_parameters") or {}
    by_kind = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    for one in by_kind:
        kind = one.get("rope_type", "default")
        if kind not in STATIC_ROPE:
            raise ValueError(f"rotary positions of type {kind!r} depend on the length; compression needs fixed ones")
