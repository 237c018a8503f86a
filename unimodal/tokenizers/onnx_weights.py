"""The weights in an ONNX file, and the nodes that use them, read without the package onnx.

An ONNX file is a protocol buffer: fields of a number, a kind and a value. Only those of weights and of names are read;
nothing of the program is run. Numbers of fields are those of onnx.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

#: ONNX's numbers of types that weights have
TYPES: Mapping[int, str] = {1: "float32", 6: "int32", 7: "int64", 10: "float16", 11: "float64"}
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class OnnxNode:
    """One operation: what it reads, by name."""

    name: str
    kind: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class OnnxGraph:
    """nodes: in their order. weights: by the names that nodes read them by, float ones in float32."""

    nodes: tuple[OnnxNode, ...]
    weights: Mapping[str, Tensor]


def read_onnx(path: Path) -> OnnxGraph:
    """Raises ValueError, in one line, for a file that is none, and for one whose weights lie in a file beside it."""
    try:
        graphs = [value for number, value in read_fields(memoryview(path.read_bytes())) if number == 7]
        if len(graphs) != 1 or not isinstance(graphs[0], memoryview):
            raise ValueError("it has no graph")
        nodes, weights = [], {}
        for number, value in read_fields(graphs[0]):
            if number == 1 and isinstance(value, memoryview):
                nodes.append(_read_node(value))
            elif number == 5 and isinstance(value, memoryview):
                name, tensor = _read_tensor(value)
                weights[name] = tensor
    except (ValueError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no ONNX file that can be read ({error}); download it again") from None
    return OnnxGraph(tuple(nodes), weights)


def read_fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: number, and an integer or bytes."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        if kind == BYTES:
            size, at = _read_varint(data, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"a field is of kind {kind}")
        if at + size > len(data):
            raise ValueError("it ends within a field")
        yield number, data[at : at + size]
        at += size


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """An integer of seven bits a byte, the low ones first, and where it ends."""
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number has more than 64 bits")


def _read_node(data: memoryview) -> OnnxNode:
    inputs, name, kind = [], "", ""
    for number, value in read_fields(data):
        if number in (1, 3, 4) and isinstance(value, memoryview):
            text = bytes(value).decode()
            if number == 1:
                inputs.append(text)
            elif number == 3:
                name = text
            else:
                kind = text
    return OnnxNode(name, kind, tuple(inputs))


def _read_tensor(data: memoryview) -> tuple[str, Tensor]:
    """Name and values; these lie as raw bytes or, of float32, as packed numbers."""
    sizes: list[int] = []
    name, dtype, raw, packed = "", 0, b"", b""
    for number, value in read_fields(data):
        if isinstance(value, int):
            if number == 1:
                sizes.append(value)
            elif number == 2:
                dtype = value
            elif number == 14 and value:
                raise ValueError("its weights lie in a file beside it")
        elif number == 1:
            sizes += _read_packed(value)
        elif number == 4:
            packed += bytes(value)
        elif number == 8:
            name = bytes(value).decode()
        elif number == 9:
            raw = bytes(value)
    if dtype not in TYPES or not (raw or (packed and TYPES[dtype] == "float32")):
        return name, torch.zeros(0)  # texts, flags, lists of integers: no weights
    array = np.frombuffer(raw or packed, dtype=TYPES[dtype]).reshape(sizes).copy()
    tensor = torch.from_numpy(array)
    return name, tensor.float() if tensor.is_floating_point() else tensor


def _read_packed(data: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(data):
        value, at = _read_varint(data, at)
        values.append(value)
    return values
