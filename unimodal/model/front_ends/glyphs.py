"""Tokens read as frozen pictures of their letters (Bochkov 2025, "Emergent Semantics Beyond Token Embeddings",
arXiv:2507.04886).

The row of a token on the input side is a picture of its text, drawn once, reduced to the decoder's width by principal
components and never trained; a head of its own scores. What tokens mean is left to the layers. A token that is no whole
character is drawn as its bytes in hexadecimal, and white space as the signs of Unicode for it, so that all can be told
apart. Letters that the font lacks look alike: give a font that has them.

Shapes: V rows, S pixels a side, D width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from unimodal.model.build import NanoConfig
from unimodal.model.front_ends.ids import TokenFrontEnd
from unimodal.text.reports.opened import OpenedTokenizer

SIDE = 32  # pixels; a text is drawn in one line and squeezed into them
_SIZE = 24  # of the font, in pixels
_VISIBLE = {" ": "␣", "\n": "␤", "\t": "␉", "\r": "␍"}


def name_piece(piece: bytes) -> str:
    """What is drawn of a token."""
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return piece.hex()
    return "".join(_VISIBLE.get(letter, letter) for letter in text)


def draw_texts(texts: list[str], font: str | None = None) -> Tensor:
    """Pictures of texts, float [V, S · S] in [0, 1]. font: the file of a font; by default Pillow's own.

    Raises ValueError for a font that cannot be read.
    """
    from PIL import Image, ImageDraw, ImageFont

    try:
        face = ImageFont.load_default(_SIZE) if font is None else ImageFont.truetype(font, _SIZE)
    except OSError:
        raise ValueError(f"{font} is no font that can be read") from None
    drawn = []
    for text in texts:
        left, top, right, bottom = (round(place) for place in face.getbbox(text or " "))
        width = max(right - min(left, 0), 1)
        picture = Image.new("L", (width, max(bottom, _SIZE)))
        ImageDraw.Draw(picture).text((0, 0), text, fill=255, font=face)
        drawn.append(torch.from_numpy(np.array(picture.resize((SIDE, SIDE)), np.float32).reshape(-1)) / 255)
    return torch.stack(drawn)


def reduce_pictures(pictures: Tensor, width: int) -> Tensor:
    """Pictures [V, P] by their first principal components, as rows [V, D] of unit variance on the whole."""
    centred = pictures - pictures.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    found = centred @ axes[:width].T
    rows = torch.zeros(len(pictures), width)
    rows[:, : found.shape[1]] = found
    return rows / rows.std().clamp_min(1e-6)


class GlyphFrontEnd(TokenFrontEnd):
    """Frozen pictures in, a trained head out."""

    pictures: Tensor

    def __init__(self, tokenizer: OpenedTokenizer, sizes: NanoConfig, font: str | None = None, seed: int = 0) -> None:
        super().__init__(tokenizer, sizes.model_copy(update={"tie_embeddings": False}), seed)
        names = [""] + [name_piece(tokenizer.spelled.get(row, b"")) for row in range(tokenizer.text.size)]
        self.register_buffer("pictures", reduce_pictures(draw_texts(names, font), self.width))
        # the decoder's own table is not read: it takes no memory and is not trained
        self.lm.set_input_embeddings(nn.Embedding(1, self.width).requires_grad_(False))

    def embed(self, rows: Tensor) -> Tensor:
        return self.pictures[rows]
