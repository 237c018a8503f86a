"""What methods read besides the two tokenizers, from files: a donor's rows, a model of sentences, a dictionary.

Shapes: N rows of the new tokenizer, E width of a donor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from unimodal.files import describe_error, quote_path
from unimodal.model.base import load_base, silence_transformers
from unimodal.text.corpora import read_text
from unimodal.text.reports.opened import OpenedTokenizer
from unimodal.text.tokenizer import TokenizerData
from unimodal.tuning.transplant.request import Side

BATCH = 256


def read_donor_rows(name: str, new: OpenedTokenizer) -> dict[Side, Tensor]:
    """The rows [N, E] that a model has of each token of the new tokenizer, on each side; NaN for rows of no token.

    Raises ValueError for a model with another tokenizer, and as `load_base` does.
    """
    base = load_base(name)
    theirs = OpenedTokenizer(cast(TokenizerData, base.tokenizer), name).spelled
    by_bytes: dict[bytes, int] = {}
    for row in sorted(theirs):
        by_bytes.setdefault(theirs[row], row)
    missing = sum(piece not in by_bytes for piece in new.spelled.values())
    if missing:
        raise ValueError(
            f"--donor {name} lacks {missing:,} of the {len(new.spelled):,} tokens of {new.name}: not its own"
        )
    rows = torch.full((new.text.size,), -1)
    for row, piece in new.spelled.items():
        rows[row] = row if theirs.get(row) == piece else by_bytes[piece]
    tables = {"input": base.model.get_input_embeddings().weight, "output": base.model.get_output_embeddings().weight}
    found: dict[Side, Tensor] = {}
    sides: tuple[Side, Side] = ("input", "output")
    for side in sides:
        table = pad(tables[side].detach().float(), (0, 0, 0, 1), value=float("nan"))
        found[side] = table[rows]
    return found


def open_embedder(folder: str | Path) -> Callable[[Sequence[str]], Tensor]:
    """A model of sentences, by its folder or hub id: texts → meanings [n, E], the mean of an encoder's states.

    Raises ValueError, in one line, for a folder that holds none.
    """
    from transformers import AutoModel, AutoTokenizer

    try:
        with silence_transformers():
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
            model = AutoModel.from_pretrained(str(folder), trust_remote_code=False).eval().float()
    except (OSError, ImportError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"--embedder {quote_path(folder)} cannot be loaded: {describe_error(error)}") from None

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> Tensor:
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        found: list[Tensor] = [torch.zeros(0)] * len(texts)
        for first in range(0, len(order), BATCH):
            part = order[first : first + BATCH]
            given = tokenizer([texts[at] for at in part], padding=True, truncation=True, return_tensors="pt")
            states = model(**given).last_hidden_state  # [B, T, E]
            seen = given["attention_mask"][..., None].float()
            for at, meaning in zip(part, (states * seen).sum(1) / seen.sum(1).clamp_min(1e-9), strict=True):
                found[at] = meaning
        return torch.stack(found)

    return embed


def read_dictionary(path: str | Path) -> list[tuple[str, str]]:
    """Pairs of words, one a line with a tab or a space between. Raises ValueError for a file of another form."""
    pairs = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        parts = line.strip().split("\t") if "\t" in line.strip() else line.split()
        if not parts:
            continue
        if len(parts) != 2:
            raise ValueError(f"{quote_path(path)}: line {number} is no pair of words with a tab between")
        pairs.append((parts[0], parts[1]))
    if not pairs:
        raise ValueError(f"{quote_path(path)} holds no pairs of words")
    return pairs
