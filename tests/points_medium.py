"""A fifth medium in one file: point lists, `x y` a line, with their tokenizer, for UNIMODAL_PLUGINS to name."""

from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unimodal.files import write_text_atomically
from unimodal.media.files import open_source
from unimodal.media.registry import Medium, register
from unimodal.tokenizers import Codes, CodingOptions, MediaTokenizer, TokenizerConfig
from unimodal.tokenizers import register as register_tokenizer

SIDE = 16  # points lie on a square of so many columns and rows


def is_points(head: bytes) -> bool:
    return head.startswith(b"points\n")


def load_points(source, target, limits) -> Tensor:
    """Points [T, 2]. Raises ValueError for a file that is no list of points."""
    with open_source(source, limits.max_bytes) as opened:
        lines = opened.read(0, opened.num_bytes).decode("ascii", "replace").split("\n")
    try:
        found = torch.tensor([[int(value) for value in line.split()] for line in lines[1:] if line])
    except ValueError as error:
        raise ValueError(f"{opened.name} is a point cloud, but damaged ({error}); export it again") from None
    if found.ndim != 2 or found.shape[1] != 2 or found.min() < 0 or found.max() >= SIDE:
        raise ValueError(f"{opened.name} holds no points of 0 to {SIDE - 1}; export it again")
    return found.float()


def save_points(points: Tensor, path, rate: float | None) -> None:
    write_text_atomically(path, "points\n" + "".join(f"{int(x)} {int(y)}\n" for x, y in points.round().tolist()))


class PointConfig(TokenizerConfig):
    family: Literal["grid_points"] = "grid_points"
    side: int = SIDE


class PointTokenizer(MediaTokenizer):
    """One code a point: row · side + column."""

    modality: ClassVar[str] = "points"
    config_class: ClassVar[type[TokenizerConfig]] = PointConfig
    config: PointConfig

    def __init__(self, config: PointConfig):
        super().__init__(config)
        self.codebook_sizes = (config.side**2,)
        self.segments = (("points", None),)
        self.tokens_per_second = 1.0
        self.register_buffer("strides", torch.tensor([1, config.side]))

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        ids = (x.round().long() * self.strides[None, :, None]).sum(1)  # [B, 2, T] → [B, T]
        ends = torch.full((len(x),), x.shape[2]) if lengths is None else lengths
        mask = torch.arange(x.shape[2]) < ends[:, None]
        return Codes(torch.where(mask, ids, 0)[..., None], mask, order="time")

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        ids = codes.ids[..., 0]
        return torch.stack([ids % self.config.side, ids // self.config.side], dim=1).float()


register(
    Medium(
        name="points", noun="point cloud", suffixes=(".points",), formats=("POINTS",), ask="plot",
        sent_as=(".points", "text/plain"),
        axes="tc", padded=True, recognise=f"{__name__}:is_points", load=f"{__name__}:load_points",
        save=f"{__name__}:save_points",
    )
)  # fmt: skip
register_tokenizer(PointTokenizer)


def write_points(path: Path, points: list[tuple[int, int]]) -> Path:
    save_points(torch.tensor(points), path, None)
    return path
