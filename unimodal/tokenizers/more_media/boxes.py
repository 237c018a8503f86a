"""Boxes in pictures as a medium (`.box`: one line of text), and a tokenizer without weights: a box as four ordered
codes, its sides on a grid of bins (Pix2Seq, arXiv 2109.10852).

    box 0.25 0.125 0.5 0.75

A box is float [4]: left, top, right, bottom, as shares of the picture's width and height.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from unimodal.files import write_text_atomically
from unimodal.media.files import MediaSource, open_source
from unimodal.media.limits import MediaLimits
from unimodal.media.registry import FileTarget, Medium, register
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, MediaTokenizer
from unimodal.tokenizers.registry import register as register_tokenizer
from unimodal.tokenizers.stored import TokenizerConfig

#: order of the codes → places of the sides in left, top, right, bottom
ORDERS = {"yxyx": (1, 0, 3, 2), "xyxy": (0, 1, 2, 3)}
FILLED = 64  # features of a code, at most
MOST_BYTES = 1000  # of a file


def is_box(head: bytes) -> bool:
    return head.startswith(b"box ")


def load_box(source: MediaSource, target: FileTarget, limits: MediaLimits) -> Tensor:
    """A box, float [4]. Raises ValueError for a file that is none and for a box that does not lie in its picture."""
    with open_source(source, limits.max_bytes) as opened:
        name = opened.name
        words = opened.read(0, min(opened.num_bytes, MOST_BYTES)).decode("utf-8", "replace").split()
    try:
        left, top, right, bottom = sides = [float(word) for word in words[1:]]
    except ValueError:
        raise ValueError(f"{name} is no box; write `box LEFT TOP RIGHT BOTTOM`, shares of the picture") from None
    if words[0] != "box" or not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1):
        shown = " ".join(words)[:60]
        raise ValueError(f"{name} holds {shown!r}; a box is 0 ≤ left ≤ right ≤ 1 and 0 ≤ top ≤ bottom ≤ 1")
    return torch.tensor(sides)


def save_box(box: Tensor, path: str | Path, rate: float | None) -> None:
    write_text_atomically(path, f"box {' '.join(f'{side:.6g}' for side in box.tolist())}\n")


class BoxConfig(TokenizerConfig):
    """num_bins: of each side; Pix2Seq has 2,000 for photographs. order: in which the sides are written, as Pix2Seq top,
    left, bottom, right."""

    family: Literal["box_sides"] = "box_sides"
    num_bins: int = Field(default=65, ge=2, le=65_536)
    order: Literal["yxyx", "xyxy"] = "yxyx"


class BoxTokenizer(MediaTokenizer):
    """Boxes ⇄ four codes: a side at the share s is round(s · (bins - 1)). ``encode``: [B, 1, 4]; sides that are decoded
    in the wrong order are exchanged."""

    modality: ClassVar[str] = "box"
    config_class: ClassVar[type[BoxConfig]] = BoxConfig
    config: BoxConfig

    def __init__(self, config: BoxConfig):
        super().__init__(config)
        self.codebook_sizes = (config.num_bins,)
        self.segments = ((self.modality, 4),)
        self.tokens_per_item = 4
        self.register_buffer("num_bins", torch.tensor(config.num_bins))

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        if x.dim() != 3 or tuple(x.shape[1:]) != (1, 4):
            raise ValueError(f"a box is left, top, right and bottom, [B, 1, 4]; got {tuple(x.shape)}")
        if float(x.min()) < 0 or float(x.max()) > 1:
            raise ValueError(f"the sides of a box are shares from 0 to 1; got {float(x.min()):g} to {float(x.max()):g}")
        sides = x[:, 0, list(ORDERS[self.config.order])]
        ids = (sides * (self.config.num_bins - 1)).round().long()
        return Codes.whole(ids, order=self.config.order)

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        if set(codes.counts) != {4}:
            raise ValueError(f"a box is 4 codes; got {codes.counts}")
        written = codes.ids[..., 0].float() / (self.config.num_bins - 1)  # [B, 4]
        sides = torch.empty_like(written)
        sides[:, list(ORDERS[self.config.order])] = written
        near, far = sides[:, :2], sides[:, 2:]
        return torch.cat([torch.minimum(near, far), torch.maximum(near, far)], 1)[:, None]

    def code_features(self, block: str, group: int = 0) -> Tensor | None:
        """How full each of `FILLED` steps is: the further bins are apart, the further are their vectors."""
        if block not in self.block_sizes or group:
            return None
        steps = min(self.config.num_bins - 1, FILLED)
        places = torch.linspace(0, steps, self.config.num_bins)[:, None]
        return (places - torch.arange(steps)).clamp(0, 1)


register(
    Medium(
        name="box",
        noun="box",
        suffixes=(".box",),
        formats=("BOX",),
        sent_as=(".box", "text/plain"),
        ask="locate",
        axes="s",
        recognise=f"{__name__}:is_box",
        load=f"{__name__}:load_box",
        save=f"{__name__}:save_box",
    )
)
register_tokenizer(BoxTokenizer)
