"""Emu3's tokenizer of pictures and clips (arXiv 2409.18869): 8×8 pixels, in clips of 4 frames, a code of 32,768 values.

One network reads both. Pictures may have any size that is a multiple of 8 pixels, and are fitted by area as Emu3's own
processor does; with `image_size` they are cropped to squares, so that all have the same number of codes, as a model
that is trained on them wants. Clips are squares of `num_frames` frames.

transformers' `Emu3VQVAE.encode` crops codes to the true sizes of padded pictures. Of a clip it would crop time and
height in place of height and width: it is told a size that crops nothing.

Shapes: B batch, T frames, H and W pixels, t, h and w of the grid of codes, N codes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, JsonValue
from torch import Tensor

from unimodal.tokenizers.codes import Codes, Grid
from unimodal.tokenizers.interface import CodingOptions, FitMode
from unimodal.tokenizers.pretrained.base import (
    build_config,
    fill_weights,
    to_plain_config,
)
from unimodal.tokenizers.pretrained.image import (
    NetworkImageConfig,
    NetworkImageTokenizer,
    NetworkPixelConfig,
    read_image_processor,
    read_pixel_settings,
    read_vq_checkpoint,
    resize_picture,
)
from unimodal.tokenizers.rows import decode_rows, group_by_size
from unimodal.tokenizers.stored import TokenizerConfig

MIN_PIXELS, MAX_PIXELS = 512 * 512, 1024 * 1024  # of a picture, where its processor names no others


class Emu3TokenizerConfig(NetworkPixelConfig):
    family: Literal["emu3"] = "emu3"
    image_size: int | None = Field(default=512, ge=1)  # pixels of a square; None: by area
    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS


class Emu3Network(NetworkImageTokenizer):
    """What both tokenizers have in common: the network and the pixels and frames of a code."""

    def __init__(self, config: Emu3TokenizerConfig | Emu3VideoTokenizerConfig):
        super().__init__(config)
        from transformers import Emu3VQVAE, Emu3VQVAEConfig

        settings = build_config(Emu3VQVAEConfig, config.network)
        self.network = Emu3VQVAE(settings).eval()
        self.factor: int = self.network.spatial_scale_factor
        self.frames_per_code: int = settings.temporal_downsample_factor
        self.num_values = int(settings.codebook_size)
        size = config.image_size
        if size is not None and size % self.factor:
            raise ValueError(f"image_size {size} is no multiple of {self.factor}, the pixels of a code; choose another")

    def encode_equal(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Pictures [B, 3, H, W] or clips [B, 3, T, H, W] of one size → ids int64 [B, N], and their grid."""
        frames = self.scale_pixels(x)
        frames = frames.transpose(1, 2) if x.dim() == 5 else frames
        nothing_cropped = torch.full((len(x), 2), max(x.shape[2:]) * self.factor)
        ids = torch.stack(self.network.encode(frames, nothing_cropped).image_tokens)  # [B, h, w] or [B, t, h, w]
        time = ids.shape[1] if x.dim() == 5 else 1
        return ids.flatten(1), (time, ids.shape[-2], ids.shape[-1])


class Emu3Tokenizer(Emu3Network):
    """Emu3's pictures of any shape: a code of 32,768 values for every 8×8 pixels.

    ``encode``: float [B, 3, H, W] in [0, 1] → Codes [B, H·W / 64, 1]; `lengths` int64 [B, 2] are the heights and widths
    of pictures that are padded at the bottom and on the right.
    """

    takes_lengths = True

    config_class: ClassVar[type[TokenizerConfig]] = Emu3TokenizerConfig
    config: Emu3TokenizerConfig

    def __init__(self, config: Emu3TokenizerConfig):
        super().__init__(config)
        self.describe(config.image_size, self.factor, self.num_values)

    @classmethod
    def from_checkpoint(cls, folder: Path, image_size: int | None = 512) -> Self:
        """image_size: of the squares that pictures are cropped to; None keeps their shapes."""
        found = read_image_processor(folder)
        network, weights = read_emu3(folder)
        config = Emu3TokenizerConfig(
            network=network,
            image_size=image_size,
            min_pixels=found.min_pixels or MIN_PIXELS,
            max_pixels=found.max_pixels or MAX_PIXELS,
            **read_pixel_settings(folder, 0.5, 0.5),
        )
        tokenizer = cls(config)
        fill_weights(tokenizer.network, weights, folder)
        return tokenizer.eval()

    def fit(self, medium: Tensor, mode: FitMode = "pad") -> Tensor:
        """The size that `choose_size` says; with `image_size` the shorter side to it and the middle cropped."""
        size, (height, width) = self.config.image_size, medium.shape[1:]
        if size is None:
            return resize_picture(medium, *self.choose_size(height, width), "BICUBIC").float() / 255
        scale = size / min(height, width)
        small = resize_picture(medium, max(size, round(height * scale)), max(size, round(width * scale)), "BICUBIC")
        top, left = (small.shape[1] - size) // 2, (small.shape[2] - size) // 2
        return small[:, top : top + size, left : left + size].float() / 255

    def choose_size(self, height: int, width: int) -> tuple[int, int]:
        """Multiples of 8 near the true shape, whose area lies between `min_pixels` and `max_pixels`."""
        if max(height, width) > 200 * min(height, width):
            raise ValueError(f"a picture of {width}×{height} is over 200 times longer than wide; crop it")
        unit, least, most = self.factor, self.config.min_pixels, self.config.max_pixels
        rows, columns = round(height / unit), round(width / unit)
        if rows * columns * unit**2 > most:
            shrink = math.sqrt(height * width / most)
            rows, columns = (max(1, math.floor(side / shrink / unit)) for side in (height, width))
        elif rows * columns * unit**2 < least:
            grow = math.sqrt(least / (height * width))
            rows, columns = (math.ceil(side * grow / unit) for side in (height, width))
        return rows * unit, columns * unit

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        if x.dim() != 4 or x.shape[1] != 3 or not len(x):
            raise ValueError(f"the Emu3 tokenizer takes pictures [B, 3, H, W]; got {tuple(x.shape)}")
        sizes = [tuple(x.shape[2:])] * len(x) if lengths is None else [tuple(size) for size in lengths.tolist()]
        for size in sizes:
            if len(size) != 2 or any(s < 1 or s % self.factor for s in size) or size[0] > x.shape[2]:
                raise ValueError(f"height and width must be multiples of {self.factor} pixels; got {list(size)}")
        found: dict[int, Tensor] = {}
        grids: set[Grid] = set()
        for (height, width), items in group_by_size(sizes).items():
            ids, grid = self.encode_equal(x[items, :, :height, :width])
            found.update(zip(items, ids, strict=True))
            grids.add(grid)
        rows = [found[item].cpu() for item in range(len(x))]
        return Codes.from_rows(rows, grid=grids.pop() if len(grids) == 1 else None).to(x.device)

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        """[B, 3, H, W]. Without a grid the codes are a square; a smaller picture of a batch is padded with 0."""

        def picture(ids: Tensor) -> Tensor:
            height, width = self.find_grid(ids.shape[1], codes.grid)
            return self.network.decode(ids.view(len(ids), height, width))

        pictures = [self.unscale_pixels(pixels[None])[0] for pixels in decode_rows(codes, picture)]
        height, width = max(p.shape[1] for p in pictures), max(p.shape[2] for p in pictures)
        return torch.stack(
            [torch.nn.functional.pad(p, (0, width - p.shape[2], 0, height - p.shape[1])) for p in pictures]
        )

    def find_grid(self, count: int, grid: Grid | None) -> tuple[int, int]:
        """Rows and columns of `count` codes: the grid's where it fits, otherwise a square."""
        if grid is not None and grid[0] == 1 and grid[1] * grid[2] == count:
            return grid[1], grid[2]
        side = math.isqrt(count)
        if side * side != count:
            raise ValueError(f"{count} codes are no square picture; give their grid of rows and columns")
        return side, side


class Emu3VideoTokenizerConfig(NetworkImageConfig):
    family: Literal["emu3_video"] = "emu3_video"
    num_frames: int = Field(default=8, ge=1)  # what is taken of a file
    fps: float = Field(default=8.0, gt=0)


class Emu3VideoTokenizer(Emu3Network):
    """Emu3's clips: a code of 32,768 values for every 8×8 pixels of four frames.

    ``encode``: float [B, 3, T, H, W] in [0, 1], T a multiple of 4 → Codes [B, T/4 · H/8 · W/8, 1]; `lengths` int64 [B]
    are the frames that are real.
    """

    modality: ClassVar[str] = "video"
    config_class: ClassVar[type[TokenizerConfig]] = Emu3VideoTokenizerConfig
    config: Emu3VideoTokenizerConfig

    def __init__(self, config: Emu3VideoTokenizerConfig):
        super().__init__(config)
        if config.num_frames % self.frames_per_code:
            raise ValueError(f"num_frames {config.num_frames} is no multiple of {self.frames_per_code}; choose another")
        self.describe(config.image_size, self.factor, self.num_values, config.num_frames // self.frames_per_code)
        self.frames_per_second, self.num_frames = config.fps, config.num_frames

    @classmethod
    def from_checkpoint(cls, folder: Path, image_size: int = 256, num_frames: int = 8, fps: float = 8.0) -> Self:
        """image_size, num_frames and fps: of the clips that are taken of files."""
        network, weights = read_emu3(folder)
        config = Emu3VideoTokenizerConfig(
            network=network,
            image_size=image_size,
            num_frames=num_frames,
            fps=fps,
            **read_pixel_settings(folder, 0.5, 0.5),
        )
        tokenizer = cls(config)
        fill_weights(tokenizer.network, weights, folder)
        return tokenizer.eval()

    def fit(self, medium: Tensor, mode: FitMode = "pad") -> Tensor:
        """A clip [T, 3, S, S], which is read at the sizes of the config, stays as it is."""
        if medium.dim() != 4:
            raise ValueError("the Emu3 video tokenizer takes clips; load the family emu3 for pictures")
        return medium

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        step, unit = self.frames_per_code, self.factor
        if x.dim() != 5 or x.shape[1] != 3 or not len(x) or any(side < 1 or side % unit for side in x.shape[3:]):
            raise ValueError(
                f"the Emu3 video tokenizer takes clips [B, 3, T, H, W] with H and W multiples of {unit}; "
                f"got {tuple(x.shape)}"
            )
        frames = [x.shape[2]] * len(x) if lengths is None else lengths.tolist()
        if len(frames) != len(x) or any(not 1 <= count <= x.shape[2] or count % step for count in frames):
            raise ValueError(f"clips must have a multiple of {step} frames, at most {x.shape[2]}; got {frames}")
        found: dict[int, Tensor] = {}
        for count, items in group_by_size(frames).items():
            found.update(zip(items, self.encode_equal(x[items, :, :count])[0], strict=True))
        grid = (max(frames) // step, x.shape[3] // unit, x.shape[4] // unit)
        rows = [found[item].cpu() for item in range(len(x))]
        return Codes.from_rows(rows, grid=grid, order="time+raster").to(x.device)

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        """[B, 3, T, H, W]. Without a grid the frames are squares of `image_size`; a shorter clip ends in black."""
        side = self.config.image_size // self.factor
        height, width = (side, side) if codes.grid is None else codes.grid[1:]

        def clip(ids: Tensor) -> Tensor:
            if ids.shape[1] % (height * width):
                raise ValueError(f"a clip is a multiple of {height * width} codes; got {ids.shape[1]}")
            return self.network.decode(ids.view(len(ids), -1, height, width)).transpose(1, 2)  # [B, 3, T, H, W]

        clips = [self.unscale_pixels(pixels[None])[0] for pixels in decode_rows(codes, clip)]
        longest = max(c.shape[1] for c in clips)
        return torch.stack([torch.nn.functional.pad(c, (0, 0, 0, 0, 0, longest - c.shape[1])) for c in clips])


def read_emu3(folder: Path) -> tuple[dict[str, JsonValue], dict[str, Tensor]]:
    """The network's config and weights in a checkpoint of Emu3 or of its tokenizer alone."""
    from transformers import Emu3Config, Emu3VQVAE

    network, weights = read_vq_checkpoint(folder, Emu3Config, "emu3_vqgan", Emu3VQVAE, "Emu3")
    return to_plain_config(network), weights
