"""The structures of `step.cpp`, field by field."""

from __future__ import annotations

import ctypes

_Pointer, _Whole, _Real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


def _list_fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class PackedProduct(ctypes.Structure):
    _fields_ = [*_list_fields(_Pointer, "weight bias"), *_list_fields(_Whole, "rows cols")]


class Layer(ctypes.Structure):
    _fields_ = [
        *_list_fields(PackedProduct, "qkv out gate_up down"),
        *_list_fields(_Pointer, "attention_norm query_norm key_norm attention_end_norm mlp_norm mlp_end_norm"),
        *_list_fields(_Real, "scaling cap residual unused"),
        *_list_fields(_Whole, "window rotary home number"),
    ]


class Model(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(Layer)),
        *_list_fields(
            _Whole, "num_layers kind width heads kv_heads head_width inner rotary_width whole_norms activation"
        ),
        ("last_norm", _Pointer),
        *_list_fields(_Real, "eps unused"),
    ]


class StepCache(ctypes.Structure):
    _fields_ = [
        *_list_fields(_Pointer, "cache scales"),
        *_list_fields(_Whole, "slots"),
        *_list_fields(_Pointer, "table"),
        *_list_fields(_Whole, "blocks"),
        *_list_fields(_Pointer, "slot low high bias bias_row"),
        *_list_fields(_Whole, "bias_stride"),
    ]


class Step(ctypes.Structure):
    _fields_ = [
        ("x", _Pointer),
        *_list_fields(_Whole, "streams num_new"),
        ("cos", _Pointer * 2),
        ("sin", _Pointer * 2),
        *_list_fields(_Pointer, "position"),
        ("held", StepCache * 2),
        *_list_fields(_Whole, "cache_kind threads"),
    ]
