"""All layers of a step in one call of compiled code.

`step.cpp` does what `PackedLayers` do, over weights in blocks that AVX2 reads at the pace of memory, with norms,
rotation, attention and activations between them, and no framework. Every sum is taken in one order, whatever other rows
are computed: a row does not depend on its batch to the last bit, in any kind of weights or cache.

Shapes: S streams, P tokens of a step, C positions, E width, R rotated part of a head.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimodal.generation.decoders.base_table import read_base, read_norm
from unimodal.generation.decoders.layer_weights import LayerWeights, find_packed_problem
from unimodal.generation.decoders.lean_layers import RotaryTables
from unimodal.generation.decoders.packed_layers import PackedLayers
from unimodal.generation.decoders.paged_cache import BLOCK
from unimodal.generation.decoders.step_view import StepView
from unimodal.generation.large_pages import LargePages
from unimodal.generation.native.build import load_native
from unimodal.generation.native.structures import Layer, Model, PackedProduct, Step
from unimodal.generation.native.weights import KINDS, interleave, pack_blocks, pack_vector

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 2}
_CACHES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
# Tokens of a prompt that go through the layers together: their activations stay in the processor's cache.
_PIECE = 128


def find_native_problem(model: PreTrainedModel, kv: str = "model") -> str | None:
    """Why this model or machine has no native step (one line), or None."""
    problem = find_packed_problem(model)
    if problem is not None:
        return problem
    norm = model.get_decoder().norm.weight
    if norm.device.type != "cpu":
        return "it is for the CPU"
    if kv == "model" and norm.dtype not in _CACHES:
        return f"a cache of {norm.dtype} is unknown to it"
    base = read_base(model)
    if base.head_width % 8:
        return f"its heads have a width of {base.head_width}, which is no multiple of 8"
    if len({layer.window for layer in base.layers} - {None}) > 1 or len(base.rotary_kinds) > 2:
        return "its layers have windows or rotations of several lengths"
    library, reason = load_native()
    return None if library is not None else reason


class NativeLayers(PackedLayers):
    """`PackedLayers` by compiled code. Raises ValueError where `find_native_problem` finds one."""

    def __init__(self, model: PreTrainedModel, weights: str = "float32", kv: str = "model") -> None:
        super().__init__(model, weights, kv)
        problem = find_native_problem(model, kv)
        library, _ = load_native()
        if problem is not None or library is None:
            raise ValueError(f"the native step does not fit: {problem}")
        self._library = library
        self._kept: list[Tensor] = []  # what the structures point at
        self._pages = LargePages()
        self._layers: ctypes.Array[Layer] = (Layer * 0)()
        self._model = Model()

    def pack(self, layers: list[LayerWeights]) -> None:
        self._kept, self._pages = [], LargePages()
        self._layers = (Layer * len(layers))(*map(self._make_layer, range(len(layers)), layers))
        base = self.base
        last_norm, eps = read_norm(self.backbone.norm, base.added)  # the eps of all
        self._model = Model(
            layers=self._layers,
            num_layers=len(layers),
            kind=KINDS[self.weights],
            width=len(last_norm),
            heads=base.num_heads,
            kv_heads=base.num_kv_heads,
            head_width=base.head_width,
            inner=len(layers[0].gate[0]) if layers else 0,
            whole_norms=bool(layers and base.layers[0].whole_norms),
            activation=_ACTIVATIONS[layers[0].activation] if layers else 0,
            eps=eps,
        )

    def _make_layer(self, number: int, weights: LayerWeights) -> Layer:
        parts, added = self.base.layers[number], self.base.added
        norms = {
            "attention_norm": parts.attention_norm,
            "query_norm": parts.query_norm,
            "key_norm": parts.key_norm,
            "attention_end_norm": parts.attention_end_norm,
            "mlp_norm": parts.mlp_norm,
            "mlp_end_norm": parts.mlp_end_norm,
        }
        gate_up = interleave(weights.gate[0], weights.up[0]), None
        if weights.gate[1] is not None and weights.up[1] is not None:
            gate_up = gate_up[0], interleave(weights.gate[1], weights.up[1])
        return Layer(
            qkv=self._make_product(*weights.qkv),
            out=self._make_product(*weights.out),
            gate_up=self._make_product(*gate_up),
            down=self._make_product(*weights.down),
            scaling=parts.scaling,
            cap=parts.cap or 0.0,
            residual=parts.residual,
            window=parts.window or 0,
            rotary=-1 if parts.rotary is None else parts.rotary,
            home=self.homes[number][0],
            number=self.homes[number][1],
            **{name: self._keep(read_norm(norm, added)[0]) for name, norm in norms.items() if norm is not None},
        )

    def _make_product(self, weight: Tensor, bias: Tensor | None) -> PackedProduct:
        packed = pack_blocks(weight, self.weights)
        held = None if bias is None else self._keep(pack_vector(bias))
        return PackedProduct(self._keep(packed), held, weight.shape[0], weight.shape[1])

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(self._pages.copy(tensor))
        return self._kept[-1].data_ptr()

    def run(self, x: Tensor, rotary: RotaryTables, view: StepView) -> Tensor:
        (num_streams, num_new, _), dtype = x.shape, x.dtype
        out = x.float().clone(memory_format=torch.contiguous_format)
        positions = view.spread_positions().contiguous()
        tables = [table.halves for table in rotary]
        assert int(positions.max()) < len(tables[0][0]), (positions, tables[0][0].shape)  # nothing below checks it
        cache = view.caches[0].paged.cache
        step = Step(
            streams=num_streams,
            cos=tuple(cos.data_ptr() for cos, _ in tables),
            sin=tuple(sin.data_ptr() for _, sin in tables),
            cache_kind=_CACHES[cache.data.dtype],
            threads=torch.get_num_threads(),
        )
        self._model.rotary_width = 2 * tables[0][0].shape[1]
        held = [self._point_at(view, number, step) for number in range(len(view.caches))]
        masked = any(one.seen is not None for one in view.caches)
        piece = num_new if masked else _PIECE  # a later piece finds the earlier ones in the cache
        for begin in range(0, num_new, piece):
            part = slice(begin, begin + piece)
            x, at = (t[:, part].contiguous() for t in (out, positions))
            step.x, step.num_new, step.position = x.data_ptr(), x.shape[1], at.data_ptr()
            kept = []  # alive until the call is over
            for own, seen in zip(step.held, held, strict=False):
                kept.append([t[:, part].contiguous() for t in seen[:3]])
                own.slot, own.low, own.high = (t.data_ptr() for t in kept[-1])
            self._library.run_layers(ctypes.byref(self._model), ctypes.byref(step))
            if num_new > piece:
                out[:, part] = x
        return (out if num_new > piece else x).to(dtype)

    def _point_at(self, view: StepView, number: int, step: Step) -> list[Tensor]:
        """Fill in a cache of the step; return the tensors that it points at, first what each new token writes and the
        bounds of what it sees, int64 [S, P]."""
        own, held = view.caches[number], step.held[number]
        cache = own.paged.cache
        held.cache, held.slots = cache.data.data_ptr(), cache.shape[3]
        held.scales = None if cache.scales is None else cache.scales.data_ptr()
        slots = own.numbers.contiguous()
        low, high = torch.zeros_like(slots), slots + 1
        assert own.end <= own.table.shape[1] * BLOCK, (own.end, own.table.shape)  # nothing below checks it
        if own.pads is not None:
            slots, high = slots.masked_fill(own.pads, -1), high.masked_fill(own.pads, 0)
        table = own.table * BLOCK
        held.table, held.blocks = table.data_ptr(), table.shape[1]
        kept = [slots, low, high, table]
        if own.seen is not None:
            high.fill_(own.end)
            [window] = {self.base.layers[at].window for at, (home, _) in enumerate(self.homes) if home == number} or {
                None
            }
            mask = own.build_bias(window, view.spread_positions())
            assert mask is not None
            mask = mask.float().contiguous()
            shape = mask.shape
            streams, new = torch.arange(view.num_streams) * (shape[0] > 1), torch.arange(view.num_new) * (shape[2] > 1)
            rows = (streams[:, None] * shape[2] + new).contiguous()
            held.bias, held.bias_row, held.bias_stride = mask.data_ptr(), rows.data_ptr(), shape[3]
            kept += [mask, rows]
        return kept
