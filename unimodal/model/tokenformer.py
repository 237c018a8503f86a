"""Layers that attend to their parameters, so that a trained model is made wider: TokenFormer (arXiv 2410.23168).

Each projection of a decoder is n pairs of a key and a value in place of a matrix (Pattention):

    s = x Kᵀ,  y = gelu(τ s / ‖s‖₂) V                K [n, D_in], V [n, D_out]

Growing adds pairs. New keys are 0, so their scores are 0, the norm of all scores is what it was, gelu(0) is 0, and the
layer says exactly what it said, whatever the new values are; the next steps of training move the keys. Here τ = sqrt(n)
of the layer as it was first made and stays that. The authors' code takes sqrt(n) of the grown layer, so that at the
moment of growth all scores change by sqrt(n_new / n_old): `grow(…, published=True)`.

The trunk is a Llama whose projections of queries, keys, values and outputs are such layers, and whose MLP is one. It is
no stock class: its folder says `model_type: tokenformer_llama` in config.json, which transformers refuses to load, and
it is not exported.

Shapes: B rows, N tokens, n parameter tokens, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from unimodal.config import Config
from unimodal.files import describe_error, read_json, write_json

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedModel

MODEL_TYPE, ARCHITECTURE = "tokenformer_llama", "TokenFormerLlama"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


class PattentionSettings(Config):
    """Pairs of a key and a value in each layer, and the folder of a trained TokenFormer that is grown to these."""

    attention_tokens: int = Field(default=320, ge=1)  # of each projection of attention
    mlp_tokens: int = Field(default=1280, ge=1)
    source: Path | None = None


class Pattention(nn.Module):
    """Attention of tokens [..., D_in] to n pairs of parameters → [..., D_out].

    order: the norm before the gelu, as the authors' configurations have it, or behind it.
    """

    scale: Tensor  # [1], τ

    def __init__(
        self,
        num_in: int,
        num_out: int,
        num_tokens: int,
        order: Literal["l2_norm_gelu", "gelu_l2_norm"] = "l2_norm_gelu",
        std: float = 0.02,
    ) -> None:
        super().__init__()
        self.order = order
        self.keys = nn.Parameter(torch.randn(num_tokens, num_in) * std)
        self.values = nn.Parameter(torch.randn(num_tokens, num_out) * std)
        self.register_buffer("scale", torch.tensor([float(num_tokens) ** 0.5]))

    @property
    def num_tokens(self) -> int:
        return len(self.keys)

    def forward(self, x: Tensor) -> Tensor:
        scores = x @ self.keys.T  # [..., n]
        if self.order == "gelu_l2_norm":
            scores = F.gelu(scores)
        scores = F.normalize(scores, dim=-1) * self.scale.to(scores.dtype)
        if self.order == "l2_norm_gelu":
            scores = F.gelu(scores)
        return scores @ self.values

    @torch.no_grad()
    def grow(self, num_tokens: int, std: float = 0.02, published: bool = False) -> None:
        """Add pairs, to `num_tokens` in all. published: τ becomes sqrt(num_tokens).

        Raises ValueError for fewer than there are.
        """
        more = num_tokens - self.num_tokens
        if more < 0:
            raise ValueError(f"a layer of {self.num_tokens} parameter tokens does not shrink to {num_tokens}")
        drawn = torch.randn(more, self.values.shape[1], device=self.values.device, dtype=self.values.dtype) * std
        self.keys = nn.Parameter(torch.cat([self.keys, self.keys.new_zeros(more, self.keys.shape[1])]))
        self.values = nn.Parameter(torch.cat([self.values, drawn]))
        if published:
            self.scale.fill_(float(num_tokens) ** 0.5)


def has_pattention(model: nn.Module) -> bool:
    """Whether a model's layers attend to their parameters."""
    return any(isinstance(module, Pattention) for module in model.modules())


def use_pattention(model: LlamaForCausalLM, settings: PattentionSettings, seed: int | None = 0) -> LlamaForCausalLM:
    """Put new Pattention layers in the places of a Llama's projections and MLPs, in place; return it.

    What writes into the residual stream starts smaller by sqrt(2 · layers), as `build_nano` has it.
    """
    width, layers = int(model.config.hidden_size), model.model.layers
    std = float(model.config.initializer_range)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        for layer in layers:
            for name in PROJECTIONS:
                old = getattr(layer.self_attn, name)
                made = Pattention(old.in_features, old.out_features, settings.attention_tokens, std=std)
                setattr(layer.self_attn, name, made)
            layer.mlp = Pattention(width, width, settings.mlp_tokens, std=std)
            with torch.no_grad():
                for part in (layer.self_attn.o_proj, layer.mlp):
                    part.values.mul_((2 * len(layers)) ** -0.5)
    return model.to(model.lm_head.weight.device)


def check_tokenformer(settings: PattentionSettings | None, pushed: bool, summed: bool) -> None:
    """Raises ValueError, before anything is computed, for a TokenFormer that is to be pushed or has summed positions,
    and for a source that is none or has more parameter tokens."""
    if settings is None:
        return
    if pushed:
        raise ValueError("push sends a model of a stock class, and a TokenFormer is none; leave push or pattention out")
    if summed:
        raise ValueError("pattention and summed exclude each other; leave one of them out")
    if settings.source is not None:
        if not is_tokenformer(settings.source):
            raise ValueError(f"pattention.source: {settings.source} holds no TokenFormer")
        _read_sizes(settings.source, settings)


def _read_sizes(source: Path, settings: PattentionSettings) -> PattentionSettings:
    """The numbers of the source. ValueError where one of them is larger than that of the settings."""
    found = read_json(source / _CONFIG).get("pattention")
    if not isinstance(found, Mapping):
        raise ValueError(f"{source}/{_CONFIG} does not say how many parameter tokens its layers have; copy it again")
    sizes = PattentionSettings.model_validate(dict(found))
    for name in ("attention_tokens", "mlp_tokens"):
        have, want = getattr(sizes, name), getattr(settings, name)
        if want < have:
            raise ValueError(
                f"pattention.{name} is {want}, but {source} has {have} already; it grows and never shrinks"
            )
    return sizes


def make_tokenformer(model: LlamaForCausalLM, settings: PattentionSettings, seed: int | None = 0) -> None:
    """Give a new Llama Pattention layers, in place: new ones, or those of `settings.source`, grown.

    Raises ValueError for a source of other widths or rows.
    """
    source = settings.source
    if source is None:
        use_pattention(model, settings, seed)
        return
    smaller = load_tokenformer(source)
    use_pattention(model, _read_sizes(source, settings), seed)
    try:
        model.load_state_dict(smaller.state_dict())
    except RuntimeError as error:
        raise ValueError(f"pattention.source: {source} has other sizes: {describe_error(error, 160)}") from None
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        grow_model(model, settings)


def grow_model(model: PreTrainedModel, settings: PattentionSettings, published: bool = False) -> None:
    """Grow every layer of a TokenFormer to these numbers, in place. Raises ValueError as `Pattention.grow` does."""
    std = float(model.config.initializer_range)
    for layer in model.get_decoder().layers:
        for name in PROJECTIONS:
            getattr(layer.self_attn, name).grow(settings.attention_tokens, std, published)
        layer.mlp.grow(settings.mlp_tokens, std, published)


def save_tokenformer(folder: Path, model: PreTrainedModel) -> None:
    """Write config.json and the weights, marked as no stock class."""
    model.save_pretrained(folder)
    layer = model.get_decoder().layers[0]
    sizes = {"attention_tokens": layer.self_attn.q_proj.num_tokens, "mlp_tokens": layer.mlp.num_tokens}
    config = read_json(folder / _CONFIG)
    write_json(
        folder / _CONFIG, {**config, "model_type": MODEL_TYPE, "architectures": [ARCHITECTURE], "pattention": sizes}
    )


def is_tokenformer(folder: Path) -> bool:
    """Whether a folder holds a TokenFormer."""
    path = folder / _CONFIG
    return path.is_file() and read_json(path).get("model_type") == MODEL_TYPE


def load_tokenformer(folder: Path) -> LlamaForCausalLM:
    """The model of `save_tokenformer`, in float32 and eval mode. Raises ValueError, in one line, if it is broken."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    stored = read_json(folder / _CONFIG)
    sizes = stored.get("pattention")
    if not isinstance(sizes, Mapping):
        raise ValueError(f"{folder}/{_CONFIG} does not say how many parameter tokens its layers have; copy it again")
    plain = {name: value for name, value in stored.items() if name not in ("pattention", "model_type", "architectures")}
    plain.pop("dtype", None)
    try:
        settings = PattentionSettings.model_validate(dict(sizes))
        model = use_pattention(LlamaForCausalLM(LlamaConfig(**json.loads(json.dumps(plain)))), settings)
        state = load_file(folder / _WEIGHTS)
        if model.config.tie_word_embeddings:
            state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
        model.load_state_dict(state)
    except (KeyError, OSError, RuntimeError, TypeError, SafetensorError) as error:
        raise ValueError(f"the decoder in {folder} cannot be loaded: {describe_error(error)}") from None
    return model.float().eval()
