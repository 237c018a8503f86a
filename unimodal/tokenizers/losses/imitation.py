"""A decoder that predicts the codes of another tokenizer of the same pictures: the first stage of TiTok (arXiv
2406.07550), whose second one trains the decoder of those codes on pixels with the encoder as it is.

Shapes: B batch, N codes of the teacher, K their values.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from unimodal.tokenizers.interface import MediaTokenizer
from unimodal.tokenizers.pretrained.checkpoint import load
from unimodal.tokenizers.registry import load_tokenizer


class CodeTeacher:
    """A tokenizer whose codes are what is to be predicted; it stays as it is."""

    def __init__(self, source: str, modality: str, num_codes: int, pickle: bool = False) -> None:
        """source: the folder of a tokenizer, or released weights as NAME=FOLDER, NAME=FILE or NAME=HUB_ID. pickle:
        these may be a pickle, of which bare tensors are read. Raises ValueError for one without a tokenizer of that
        medium with one codebook of num_codes."""
        self.source = source
        self.tokenizer: MediaTokenizer = load_teacher(source, pickle).requires_grad_(False)
        if self.tokenizer.modality != modality:
            raise ValueError(
                f"the teacher {source} is a tokenizer of {self.tokenizer.modality}, and this one of {modality}"
            )
        if self.tokenizer.codebook_sizes != (num_codes,):
            theirs = " and ".join(f"{size:,}" for size in self.tokenizer.codebook_sizes)
            raise ValueError(f"the teacher {source} has codes of {theirs}, and this tokenizer predicts {num_codes:,}")

    def __call__(self, logits: Tensor, x: Tensor) -> Tensor:
        """logits: [B, N, K] of the codes of pictures x [B, 3, H, W] → the mean cross entropy. ValueError for another
        number of codes."""
        with torch.autocast(x.device.type, enabled=False):
            ids = self.tokenizer.to(x.device).eval().encode(x).ids[..., 0].clone()
        if ids.shape != logits.shape[:2]:
            raise ValueError(f"the teacher {self.source} codes {tuple(x.shape[2:])} as {ids.shape[1]} codes, and this "
                             f"tokenizer predicts {logits.shape[1]}; give both the same patches")  # fmt: skip
        return cross_entropy(logits.float().flatten(0, 1), ids.flatten())


def load_teacher(source: str, pickle: bool = False) -> MediaTokenizer:
    """See `CodeTeacher`. Raises ValueError, in one line, for what is not there."""
    name, equals, place = source.partition("=")
    if equals and not Path(source).expanduser().exists():
        return load(name, place, pickle=True) if pickle else load(name, place)
    if not Path(source).expanduser().is_dir():
        raise ValueError(f"the teacher {source} is not there; give a tokenizer's folder, or NAME=FOLDER of "
                         "released weights")  # fmt: skip
    return load_tokenizer(Path(source).expanduser())
