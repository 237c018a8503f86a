"""Shapes of voxels as a medium (`.binvox`), and two tokenizers without weights: blocks of 2×2×2 voxels in raster
order, and an octree, coarse to fine, that leaves empty space out (Uni-3DAR, arXiv 2503.16278). VAT and I²-World
quantize learned features instead.

A shape is float [X, Y, Z] of 0 and 1, its axes in the order of the file. Shapes: B batch, n voxels of a side.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import max_pool3d

from unimodal.files import write_bytes_atomically
from unimodal.media.files import MediaSource, open_source
from unimodal.media.limits import MediaLimits
from unimodal.media.registry import FileTarget, Medium, register
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, MediaTokenizer
from unimodal.tokenizers.registry import register as register_tokenizer
from unimodal.tokenizers.stored import TokenizerConfig

_DIMS = re.compile(rb"^dim (\d+) (\d+) (\d+)\s*$", re.MULTILINE)
_DATA = re.compile(rb"^data\n", re.MULTILINE)


# ---- files


def is_voxels(head: bytes) -> bool:
    return head.startswith(b"#binvox ")


def load_voxels(source: MediaSource, target: FileTarget, limits: MediaLimits) -> Tensor:
    """A shape as float [X, Y, Z]. Raises ValueError for a file that is none, and for more voxels than max_pixels."""
    with open_source(source, limits.max_bytes) as opened:
        data, name = opened.read(0, opened.num_bytes), opened.name
    dims, start = _DIMS.search(data), _DATA.search(data)
    if not is_voxels(data) or dims is None or start is None:
        raise ValueError(f"{name} is no binvox file; export it again")
    sides = tuple(int(side) for side in dims.groups())
    num = sides[0] * sides[1] * sides[2]
    if not 0 < num <= limits.max_pixels:
        raise ValueError(f"{name} has {num} voxels; a shape has 1 to max_pixels = {limits.max_pixels}")
    runs = np.frombuffer(data[start.end() :], np.uint8)
    values, counts = runs[0::2], runs[1::2]
    if len(runs) % 2 or int(counts.sum()) != num or values.max(initial=0) > 1:
        raise ValueError(f"{name} is a binvox file, but damaged; export it again")
    return torch.from_numpy(np.repeat(values, counts).astype(np.float32)).view(sides)


def save_voxels(shape: Tensor, path: str | Path, rate: float | None) -> None:
    """shape: float [X, Y, Z]; what is above a half is filled."""
    filled = (shape > 0.5).flatten().to(torch.uint8).cpu().numpy()
    changes = np.flatnonzero(np.diff(filled)) + 1
    runs = bytearray()
    for start, end in zip([0, *changes], [*changes, len(filled)], strict=True):
        whole, rest = divmod(int(end - start), 255)
        runs += bytes([filled[start], 255]) * whole + (bytes([filled[start], rest]) if rest else b"")
    head = f"#binvox 1\ndim {' '.join(map(str, shape.shape))}\ntranslate 0 0 0\nscale 1\ndata\n"
    write_bytes_atomically(path, head.encode() + bytes(runs))


# ---- codes


def pack_blocks(shapes: Tensor) -> Tensor:
    """Bool [..., n, n, n] → the bits of each 2×2×2 block, int64 [..., n/2, n/2, n/2]; the last axis is the lowest."""
    blocks = shapes.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).unflatten(-5, (-1, 2))
    bits = blocks.movedim((-5, -3, -1), (-3, -2, -1)).flatten(-3)
    return (bits.long() << torch.arange(7, -1, -1, device=shapes.device)).sum(-1)


def unpack_blocks(ids: Tensor) -> Tensor:
    """The inverse of ``pack_blocks``."""
    bits = (ids[..., None] >> torch.arange(7, -1, -1, device=ids.device)) & 1
    blocks = bits.bool().unflatten(-1, (2, 2, 2)).movedim((-3, -2, -1), (-5, -3, -1))  # [..., x, 2, y, 2, z, 2]
    return blocks.flatten(-2).flatten(-3, -2).flatten(-4, -3)


class VoxelConfig(TokenizerConfig):
    """side: n, a power of two."""

    family: str
    side: int = Field(default=16, ge=2)

    @field_validator("side")
    @classmethod
    def check_side(cls, side: int) -> int:
        if side & (side - 1):
            raise ValueError(f"side is {side}; choose a power of two")
        return side


class BlockConfig(VoxelConfig):
    family: Literal["voxel_blocks"] = "voxel_blocks"


class OctreeConfig(VoxelConfig):
    family: Literal["octree"] = "octree"


class VoxelTokenizer(MediaTokenizer):
    """What both share: a code is the eight voxels, or children, of a cube."""

    modality: ClassVar[str] = "voxels"
    config: VoxelConfig

    def __init__(self, config: VoxelConfig):
        super().__init__(config)
        self.codebook_sizes = (256,)
        self.code_levels = {self.modality: (2,) * 8}
        self.register_buffer("sides", torch.tensor([config.side] * 3))

    def check_shapes(self, x: Tensor) -> Tensor:
        """x: float [B, 1, n, n, n] → bool [B, n, n, n]. ValueError for another size."""
        side = self.config.side
        if tuple(x.shape[1:]) != (1, side, side, side):
            raise ValueError(f"{self.config.family} takes shapes of {side}×{side}×{side} voxels; got {tuple(x.shape)}")
        return x[:, 0] > 0.5

    def code_features(self, block: str, group: int = 0) -> Tensor | None:
        if block not in self.block_sizes or group:
            return None
        return unpack_blocks(torch.arange(256).view(256, 1, 1, 1)).flatten(1).float()


class BlockTokenizer(VoxelTokenizer):
    """(n/2)³ codes, each a block of eight voxels, in raster order."""

    config_class: ClassVar[type[BlockConfig]] = BlockConfig

    def __init__(self, config: BlockConfig):
        super().__init__(config)
        self.tokens_per_item = (config.side // 2) ** 3
        self.segments = ((self.modality, self.tokens_per_item),)

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        return Codes.whole(pack_blocks(self.check_shapes(x)).flatten(1))

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        if any(count != self.tokens_per_item for count in codes.counts):
            raise ValueError(f"a shape is {self.tokens_per_item} codes; got {codes.counts}")
        half = self.config.side // 2
        return unpack_blocks(codes.ids[..., 0].unflatten(1, (half, half, half)))[:, None].float()


class OctreeTokenizer(VoxelTokenizer):
    """A code for the whole cube, then one for every part that is not empty, level by level, each level in raster order:
    which of its eight parts are not empty. Any prefix decodes: parts that are not told apart yet are full."""

    config_class: ClassVar[type[OctreeConfig]] = OctreeConfig

    def __init__(self, config: OctreeConfig):
        super().__init__(config)
        self.segments = ((self.modality, None),)
        self.ordered = True

    @property
    def num_levels(self) -> int:
        return self.config.side.bit_length() - 1

    def list_nodes(self, shape: Tensor) -> Tensor:
        """Bool [n, n, n] → the codes of its tree, int64 [N]."""
        finer, rows = shape[None, None].float(), []
        for level in range(self.num_levels - 1, -1, -1):
            coarser = max_pool3d(finer, 2)
            told = coarser.bool() if level else torch.ones_like(coarser, dtype=torch.bool)  # the root always is
            rows.append(pack_blocks(finer.bool())[told])
            finer = coarser
        return torch.cat(rows[::-1])

    def draw_nodes(self, ids: Tensor) -> Tensor:
        """The codes of a tree, or the first of them, int64 [N] → bool [n, n, n]. What lies behind the tree's end does
        not count."""
        known = torch.ones(1, 1, 1, dtype=torch.bool, device=ids.device)
        for _ in range(self.num_levels):
            codes, num = torch.zeros(known.shape, dtype=torch.int64, device=ids.device), int(known.sum())
            taken = torch.full((num,), 255, device=ids.device)
            taken[: len(ids[:num])] = ids[:num]
            codes[known], ids = taken, ids[num:]
            known = unpack_blocks(codes)
        return known

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        return Codes.from_rows([self.list_nodes(shape) for shape in self.check_shapes(x)], order="coarse_to_fine")

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        return torch.stack([self.draw_nodes(codes.row(index)[:, 0]) for index in range(len(codes))])[:, None].float()


register(
    Medium(
        name="voxels",
        noun="shape",
        suffixes=(".binvox",),
        formats=("binvox",),
        sent_as=(".binvox", "application/octet-stream"),
        ask="shape",
        axes="xyz",
        recognise=f"{__name__}:is_voxels",
        load=f"{__name__}:load_voxels",
        save=f"{__name__}:save_voxels",
    )
)
register_tokenizer(BlockTokenizer)
register_tokenizer(OctreeTokenizer)
