"""Small text through a tokenizer: what share of words and letters a reader still reads (TokBench, arXiv 2505.18142).

Words are drawn on pictures at several heights, as shares of the picture's side, so that tokenizers of different sizes
face the same task. The reader is the recogniser of rapidocr, which no tokenizer holds; it reads the originals too, and
the figure is to be read beside theirs.

Shapes: W words, S side of a picture.
"""

from __future__ import annotations

import difflib
import logging
import random
from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

HEIGHTS = (1 / 3, 1 / 5, 1 / 8, 1 / 12)  # of a capital letter's line, as a share of the side
WORDS_A_HEIGHT = 12
READ_HEIGHT = 48  # pixels of a line that the recogniser takes
WORDS = ("apple", "bread", "chair", "dance", "eagle", "flame", "grape", "house", "island", "jacket", "kettle", "lemon",
         "market", "needle", "ocean", "pencil", "quiet", "river", "silver", "table", "valley", "window")  # fmt: skip
COLORS = (((20, 20, 24), (245, 243, 236)), ((250, 250, 250), (38, 70, 110)), ((120, 16, 24), (236, 226, 196)))


class ReadLine(Protocol):
    def __call__(self, image: np.ndarray, use_det: bool, use_cls: bool, use_rec: bool) -> object: ...


class LineReader:
    """Reads one line of text. ValueError where the reader is not installed."""

    def __init__(self) -> None:
        try:
            from rapidocr import RapidOCR
        except ImportError:
            raise ValueError("the reader of small text is not installed: pip install 'unimodal[bench]'") from None
        logging.getLogger("RapidOCR").setLevel(logging.ERROR)
        self._read = cast(ReadLine, RapidOCR(params={"Global.log_level": "error"}))

    def read(self, picture: Tensor) -> str:
        """The text on a line [3, h, w] in [0, 1]."""
        scale = READ_HEIGHT / picture.shape[1]
        pixels = (picture.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
        size = (max(8, round(picture.shape[2] * scale)), READ_HEIGHT)
        line = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))[:, :, ::-1]
        found = self._read(np.ascontiguousarray(line), use_det=False, use_cls=False, use_rec=True)
        return "".join(getattr(found, "txts", None) or ())


def draw_words(side: int, height: float, seed: int) -> tuple[Tensor, list[str], list[tuple[int, int]]]:
    """Pictures of one word each: float [W, 3, S, S], the words, and the first and last row of each line."""
    rng = random.Random(f"{seed} {height:.4f}")
    font = ImageFont.load_default(size=max(6, round(height * side)))
    pictures, words, lines = [], [], []
    for number in range(WORDS_A_HEIGHT):
        ink, paper = COLORS[number % len(COLORS)]
        fitting = [word for word in WORDS if font.getlength(word) < side * 0.94] or ["ab", "on", "it", "we"]
        word = rng.choice(fitting)
        picture = Image.new("RGB", (side, side), paper)
        left, top, right, bottom = font.getbbox(word)
        x = rng.uniform(0.03 * side, max(0.03 * side, side * 0.97 - (right - left)))
        y = rng.uniform(0.03 * side, max(0.03 * side, side * 0.97 - (bottom - top)))
        ImageDraw.Draw(picture).text((x - left, y - top), word, fill=ink, font=font)
        pad = 0.25 * (bottom - top)
        pictures.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255)
        words.append(word)
        lines.append((max(0, round(y - pad)), min(side, round(y + bottom - top + pad) + 1)))
    return torch.stack(pictures), words, lines


def measure_reading(
    reader: LineReader, pictures: Tensor, words: Sequence[str], lines: Sequence[tuple[int, int]]
) -> dict[str, float]:
    """The share of words read whole and of letters read, both in [0, 1], of pictures [W, 3, S, S]."""
    read = [reader.read(picture[:, top:bottom]) for picture, (top, bottom) in zip(pictures, lines, strict=True)]
    cleaned = ["".join(letter for letter in text.lower() if letter.isalnum()) for text in read]
    letters = sum(
        sum(block.size for block in difflib.SequenceMatcher(None, word, text, autojunk=False).get_matching_blocks())
        for word, text in zip(words, cleaned, strict=True)
    )
    return {
        "words": round(sum(map(str.__eq__, words, cleaned)) / len(words), 4),
        "letters": round(letters / sum(map(len, words)), 4),
    }
