"""Low-rank adapters on the linear layers of a decoder, through peft and in place.

LoRA (arXiv 2106.09685), rank-stabilised scaling alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732) and the split of a weight
into magnitude and direction (DoRA, arXiv 2402.09353). The layers are injected into the model, which keeps its class:
whatever runs the stock model runs the adapted one. The head and the embeddings are never targets: new rows are
trained as rows (`rows.py`). An adapter over the tables that misses the new rows is the commonest defect of tuned models
of several media.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unimodal.config import Config
from unimodal.model.lora_product import accelerate_lora

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

ADAPTER = "default"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj", "query_key_value", "dense", "c_attn")


class LoraSettings(Config):
    """Which layers get an adapter, and of which kind."""

    rank: int = Field(default=16, ge=1)
    alpha: float | None = Field(default=None, gt=0)  # None: twice the rank
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all", "attention"] | tuple[str, ...] = "all"  # or the last names of linear layers
    rslora: bool = False
    dora: bool = False


def find_linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The decoder's linear layers by name: `nn.Linear`, and GPT-2's Conv1D, a linear layer with its weight transposed.

    A subclass of `nn.Linear` counts if its forward is a linear map (Falcon's is; a router of Phi-MoE is not).
    """
    from transformers.pytorch_utils import Conv1D

    def is_linear(module: nn.Module) -> bool:
        if isinstance(module, nn.Linear) and type(module).__module__.startswith("transformers.models."):
            return type(module).forward is nn.Linear.forward or _maps_linearly(module)
        return isinstance(module, (nn.Linear, Conv1D))

    return {name: module for name, module in model.get_decoder().named_modules() if is_linear(module)}


@torch.no_grad()
def _maps_linearly(layer: nn.Linear) -> bool:
    """Whether a layer with a forward of its own still returns x @ weight.T + bias."""
    probe = torch.ones(1, layer.in_features, dtype=layer.weight.dtype, device=layer.weight.device)
    mapped = layer(probe)
    return isinstance(mapped, torch.Tensor) and torch.equal(
        mapped, nn.functional.linear(probe, layer.weight, layer.bias)
    )


def list_linear_names(model: PreTrainedModel) -> list[str]:
    """The last names of the decoder's linear layers, such as q_proj and down_proj."""
    return sorted({_name_target(name) for name in find_linear_layers(model)})


def _name_target(name: str) -> str:
    """The last part of a layer's name, or the last two where the last is a number, as in a Sequential."""
    *_, before, last = ("", *name.split("."))
    return f"{before}.{last}" if last.isdigit() else last


def make_peft_config(model: PreTrainedModel, settings: LoraSettings, base_name: str = "") -> LoraConfig:
    """peft's own configuration. Raises ValueError for a target that the model does not have."""
    from peft import LoraConfig

    names = list_linear_names(model)
    if not names:
        raise ValueError(f"lora: {type(model).__name__} has no linear layers; train its new rows alone (lora: null)")
    if settings.targets == "all":
        targets = names
    elif settings.targets == "attention":
        targets = [name for name in names if name in ATTENTION]
    else:
        targets = sorted(settings.targets)
    unknown = [name for name in targets if name not in names]
    if unknown or not targets:
        missing = f"no linear layer {unknown[0]}" if unknown else "no layer of that kind"
        raise ValueError(f"lora.targets: {missing}; use {', '.join(names)}")
    layers = find_linear_layers(model)
    transposed = [name for name, layer in layers.items() if not isinstance(layer, nn.Linear)]
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha if settings.alpha is not None else 2 * settings.rank,
        lora_dropout=settings.dropout,
        target_modules=targets,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        base_model_name_or_path=base_name or None,
        fan_in_fan_out=any(_name_target(name) in targets for name in transposed),
    )


def add_lora(model: nn.Module, config: LoraConfig, seed: int = 0) -> nn.Module:
    """Inject trainable adapters in place, in float32. peft freezes the rest of the model, new rows included."""
    from peft import inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    accelerate_lora(model, ADAPTER)
    return model


def find_lora_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The adapted layers by name; empty for a model without LoRA."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def switch_lora(model: nn.Module, on: bool) -> None:
    """Switch all adapters on or off: off, the model computes what its base computes."""
    for layer in find_lora_layers(model).values():
        trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        layer.enable_adapters(on)
        for parameter in trained:  # peft freezes adapters that it switches off, and may thaw what was frozen
            parameter.requires_grad_(True)


def extract_lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors under the names that peft gives them in `adapter_model.safetensors`."""
    state = {n: p for n, p in model.state_dict().items() if ".lora_" in n}
    # peft stores …lora_A.default.weight as …lora_A.weight below its own two wrappers
    return {f"base_model.model.{name.replace(f'.{ADAPTER}', '')}": tensor for name, tensor in state.items()}


def load_lora_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what `extract_lora_state` returned. Raises ValueError for other tensors than this model's adapters have."""
    own = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" in name}
    stored = {f"base_model.model.{name.replace(f'.{ADAPTER}', '')}": name for name in own}
    if set(stored) != set(state):
        odd = sorted(set(stored) ^ set(state))
        raise ValueError(f"the adapter does not fit the base: {len(odd)} tensors differ, such as {odd[0]}")
    with torch.no_grad():
        for key, name in stored.items():
            if own[name].shape != state[key].shape:
                raise ValueError(
                    f"the adapter does not fit the base: {key} is {list(state[key].shape)}, not {list(own[name].shape)}"
                )
            own[name].copy_(state[key])


@torch.no_grad()
def merge_lora(model: nn.Module) -> nn.Module:
    """Add every adapter to its layer's weight and put the plain layers back, in place; return the model."""
    layers = find_lora_layers(model)
    for layer in layers.values():
        layer.merge(safe_merge=True)
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        if last != "base_layer":  # the inner one of two adapters on one module, as peft puts on fused experts
            setattr(model.get_submodule(parent), last, layer.get_base_layer())
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        if attribute in vars(model):
            delattr(model, attribute)
    return model
