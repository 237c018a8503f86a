"""What differs between the layers of stock bases, so that one step serves them all.

The layers of these bases are attention and a gated MLP on a residual stream. They differ in where norms stand, in norms
of queries and keys, in biases, rotation, windows, caps and factors. A base's row of `BASES` names what its modules do
not say themselves; the rest is read off the modules and the config. `lean_layers.py` runs the modules,
`packed_layers.py` and `unimodal/generation/native` copies of their weights.

Shapes: H query heads, K key/value heads, D head width, E width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from unimodal.model.tokenformer import has_pattention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Types of rotary tables that do not depend on the length of the sequence.
_STATIC_ROPE = ("default", "linear", "llama3", "yarn", "proportional")


@dataclass(frozen=True)
class Base:
    """How a base differs from Llama.

    layer: the class of its layers. norms: the modules before attention, behind it, before the MLP, behind it; None
    where there is none. added: what its norms add to their weights.
    """

    layer: str
    norms: tuple[str | None, str | None, str | None, str | None] = (
        "input_layernorm",
        None,
        "post_attention_layernorm",
        None,
    )
    added: float = 0.0


_GEMMA_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
#: class of a stock decoder → its layers
BASES = {
    "LlamaModel": Base("LlamaDecoderLayer"),
    "MistralModel": Base("MistralDecoderLayer"),
    "Qwen2Model": Base("Qwen2DecoderLayer"),
    "Qwen3Model": Base("Qwen3DecoderLayer"),
    "GemmaModel": Base("GemmaDecoderLayer", added=1.0),
    "Gemma2Model": Base("Gemma2DecoderLayer", _GEMMA_NORMS, added=1.0),
    "Gemma3TextModel": Base("Gemma3DecoderLayer", _GEMMA_NORMS, added=1.0),
    "SmolLM3Model": Base("SmolLM3DecoderLayer"),
    "Phi3Model": Base("Phi3DecoderLayer"),
    "Olmo2Model": Base("Olmo2DecoderLayer", (None, "post_attention_layernorm", None, "post_feedforward_layernorm")),
    "GraniteModel": Base("GraniteDecoderLayer"),
}


def find_lean_problem(model: PreTrainedModel) -> str | None:
    """Why this model needs the reference decoder (one line), or None."""
    backbone = model.get_decoder()
    name = type(backbone).__name__
    if name not in BASES or not type(backbone).__module__.startswith("transformers."):
        return f"{name} is none of {', '.join(BASES)}"
    if any(type(layer).__name__ != BASES[name].layer for layer in backbone.layers):
        return "a decoder layer has been replaced"
    if has_pattention(model):
        return "its layers attend to their parameters"
    for kind in _find_rope_types(model):
        if kind not in _STATIC_ROPE:
            return f"rotary positions of type {kind!r} depend on the length"
    return None


def _find_rope_types(model: PreTrainedModel) -> list[str]:
    settings = model.get_decoder().config.rope_parameters
    one_each = [part for part in settings.values() if isinstance(part, dict)]  # of every type of layer
    return [part["rope_type"] for part in one_each or [settings]]


@dataclass(frozen=True, eq=False)
class LayerParts:
    """The modules and numbers of one layer. A norm is None where there is none.

    whole_norms: whether queries and keys are normed over all heads together. cap: of the scores, or None. residual: the
    factor of what is added to the stream. window: how many tokens a token sees, itself included; None is all. rotary:
    the number of its rotary table; None for no rotation.
    """

    attention: nn.Module
    mlp: nn.Module
    attention_norm: nn.Module | None
    attention_end_norm: nn.Module | None
    mlp_norm: nn.Module | None
    mlp_end_norm: nn.Module | None
    query_norm: nn.Module | None
    key_norm: nn.Module | None
    whole_norms: bool
    scaling: float
    cap: float | None
    residual: float
    window: int | None
    rotary: int | None

    @property
    def act(self) -> nn.Module:
        """The activation of the MLP."""
        mlp = self.mlp
        return mlp.act_fn if hasattr(mlp, "act_fn") else mlp.activation_fn


@dataclass(frozen=True, eq=False)
class BaseParts:
    """What a step needs of a stock base. Raises ValueError for one that it does not know (`find_lean_problem`).

    rotary_kinds: an entry for each rotary table: the argument that chooses it, or None. embedding_factor: of the
    embedded tokens, beyond what the table does itself.
    """

    layers: list[LayerParts]
    rotary_kinds: list[str | None]
    num_heads: int
    num_kv_heads: int
    head_width: int
    added: float
    embedding_factor: float

    @property
    def has_windows(self) -> bool:
        return any(layer.window is not None for layer in self.layers)


def read_base(model: PreTrainedModel) -> BaseParts:
    """The parts of a stock base."""
    problem = find_lean_problem(model)
    if problem is not None:
        raise ValueError(f"the lean decoder does not fit this model ({problem}); use decoder='reference'")
    backbone = model.get_decoder()
    config, base = backbone.config, BASES[type(backbone).__name__]
    windows = _find_layer_windows(model)
    kinds: list[str | None] = [None]
    if any(isinstance(part, dict) for part in config.rope_parameters.values()):
        kinds = list(dict.fromkeys(config.layer_types))
    layers = []
    for number, layer in enumerate(backbone.layers[: config.num_hidden_layers]):
        attention = layer.self_attn
        norms = [None if name is None else getattr(layer, name) for name in base.norms]
        query_norm = getattr(attention, "q_norm", None)
        rotates = bool(getattr(attention, "use_rope", True))
        layers.append(
            LayerParts(
                attention,
                layer.mlp,
                attention_norm=norms[0],
                attention_end_norm=norms[1],
                mlp_norm=norms[2],
                mlp_end_norm=norms[3],
                query_norm=query_norm,
                key_norm=getattr(attention, "k_norm", None),
                whole_norms=query_norm is not None and len(query_norm.weight) != attention.head_dim,
                scaling=float(attention.scaling),
                cap=getattr(attention, "attn_logit_softcapping", None),
                residual=float(getattr(layer, "residual_multiplier", 1.0)),
                window=windows[number],
                rotary=None if not rotates else kinds.index(config.layer_types[number]) if kinds != [None] else 0,
            )
        )
    return BaseParts(
        layers,
        kinds,
        config.num_attention_heads,
        config.num_key_value_heads,
        int(backbone.layers[0].self_attn.head_dim),
        base.added,
        float(getattr(config, "embedding_multiplier", 1.0)),
    )


def _find_layer_windows(model: PreTrainedModel) -> list[int | None]:
    from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

    config = model.get_decoder().config
    found = [
        int(layer.sliding_window) if isinstance(layer, DynamicSlidingWindowLayer) else None
        for layer in DynamicCache(config=config).layers
    ]
    return found or [None] * config.num_hidden_layers


def read_norm(norm: nn.Module, added: float) -> tuple[Tensor, float]:
    """The weight that a norm multiplies by, float32, and its epsilon."""
    eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    return norm.weight.detach().float() + added, float(eps)
