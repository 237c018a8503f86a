"""The lean step over rearranged copies of the weights: fewer and larger operations, and fewer bytes.

The time of a decoding step is spent on reading weights, so the copies may be narrower than the model (`products.py`
says how). All lose a little except float32, which differs in the order of rounding only; `tools/measure_narrow.py`
measures how much. In the copies, query, key and value are one product, gate and up another.

On a processor with AVX2 and a C++ compiler `NativeLayers` do the same faster (`unimodal/generation/native`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.generation.decoders.layer_weights import find_packed_problem, read_layer
from unimodal.generation.decoders.lean_layers import LeanLayers, RotaryTables
from unimodal.generation.decoders.products import PRODUCTS, Product
from unimodal.generation.decoders.step_view import StepView
from unimodal.generation.head import WeightState, read_weight_state
from unimodal.generation.kinds import WEIGHTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unimodal.generation.decoders.layer_weights import LayerWeights

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def check_weights(weights: str, device: torch.device) -> None:
    """Raises ValueError for weights that are unknown, or that this device does not support."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights {weights!r} are unknown; use {', '.join(WEIGHTS)}")
    if weights in ("int8", "int4") and device.type != "cpu":
        raise ValueError(f"{weights} weights are for the CPU; use bfloat16 on a GPU")


class PackedLayers(LeanLayers):
    """`LeanLayers` over copies of the weights, which `refresh` makes, and makes again when the model has changed.

    weights: of `WEIGHTS`. Raises ValueError for another name, and for weights that this model or this machine does not
    support.
    """

    def __init__(self, model: PreTrainedModel, weights: str = "float32", kv: str = "model") -> None:
        check_weights(weights, model.get_decoder().norm.weight.device)
        super().__init__(model, kv)
        problem = find_packed_problem(model)
        if problem is not None:
            raise ValueError(f"weights {weights!r} need a packed copy, but {problem}")
        self.weights = weights
        self._packed_of: WeightState | None = None

    @property
    def state(self) -> WeightState | None:
        """The state of the weights that were copied."""
        return self._packed_of

    @torch.no_grad()
    def refresh(self) -> bool:
        modules = [*self.backbone.layers[: len(self.base.layers)], self.backbone.norm]
        now = read_weight_state(p for module in modules for p in module.parameters())
        if now == self._packed_of:
            return False
        self.pack([read_layer(layer) for layer in self.base.layers])
        self._packed_of = now
        return True

    def pack(self, layers: list[LayerWeights]) -> None:
        """Make the copies."""
        make = PRODUCTS[self.weights]
        self.packed: list[dict[str, Product]] = []
        self._activation = _ACTIVATIONS[layers[0].activation] if layers else F.silu
        for layer in layers:
            biases = layer.gate[1], layer.up[1]
            bias = None if biases[0] is None or biases[1] is None else torch.cat(biases)
            self.packed.append(
                {
                    "qkv": make(*layer.qkv),
                    "out": make(*layer.out),
                    "gate_up": make(torch.cat([layer.gate[0], layer.up[0]]), bias),
                    "down": make(*layer.down),
                }
            )

    def run(self, x: Tensor, rotary: RotaryTables, view: StepView) -> Tensor:
        return super().run(x.float(), rotary, view).to(x.dtype)

    def project(self, number: int, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.split_heads(self.packed[number]["qkv"](h))

    def project_out(self, number: int, h: Tensor) -> Tensor:
        return self.packed[number]["out"](h)

    def run_mlp(self, number: int, h: Tensor) -> Tensor:
        gate, up = self.packed[number]["gate_up"](h).chunk(2, -1)
        return self.packed[number]["down"](self._activation(gate).mul_(up))
