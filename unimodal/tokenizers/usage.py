"""How much of each codebook is used, over any number of batches.

Shapes: B batch, N positions, G groups.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import MediaTokenizer


def split_blocks(tokenizer: MediaTokenizer, codes: Codes) -> Iterator[tuple[str, Tensor]]:
    """The real ids of each block's group, `audio` and `audio.1`, int64 [n]."""
    fixed = sum(count or 0 for _, count in tokenizer.segments)
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for row in range(len(codes)):
        ids, at = codes.row(row), 0
        for name, count in tokenizer.segments:
            end = at + (len(ids) - fixed if count is None else count)
            for group in range(ids.shape[1]):
                parts[name if group == 0 else f"{name}.{group}"].append(ids[at:end, group])
            at = end
    yield from ((name, torch.cat(found).cpu()) for name, found in parts.items())


class CodebookUsage:
    """Counts of every value of each codebook; `report` says the share that occurs and the perplexity."""

    def __init__(self, tokenizer: MediaTokenizer) -> None:
        self.tokenizer = tokenizer
        self.counts: dict[str, Tensor] = {}

    def add(self, codes: Codes) -> None:
        for name, ids in split_blocks(self.tokenizer, codes):
            size = self.tokenizer.group_sizes(name.split(".")[0])[int(name.partition(".")[2] or 0)]
            self.counts[name] = self.counts.get(name, torch.zeros(size)) + torch.bincount(ids, minlength=size)

    def report(self) -> dict[str, float]:
        """`used_NAME` in [0, 1] and `perplexity_NAME`, from 1 up to the codebook's size."""
        found: dict[str, float] = {}
        for name, count in self.counts.items():
            share = count[count > 0] / count.sum()
            found[f"used_{name}"] = len(share) / len(count)
            found[f"perplexity_{name}"] = math.exp(-float((share * share.log()).sum()))
        return found
