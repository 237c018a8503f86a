"""The rates at which codes of sounds are decoded: residual ones at their first codebooks, others at all of them."""

from __future__ import annotations

from dataclasses import replace

from unimodal.evaluation.tokenizer_bench.store import Arrays
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import MediaTokenizer


def list_group_counts(tokenizer: MediaTokenizer) -> list[int]:
    """The numbers of groups that are decoded: all; of residual codes also 1, 2, 4, …."""
    every = len(tokenizer.codebook_sizes)
    powers = [2**power for power in range(every.bit_length()) if 2**power < every]
    return [*(powers if tokenizer.residual else []), every]


def explain_one_rate(tokenizer: MediaTokenizer) -> dict[str, str]:
    """Why codes are decoded at one rate alone; nothing where they are at several."""
    if len(list_group_counts(tokenizer)) > 1:
        return {}
    if len(tokenizer.codebook_sizes) == 1:
        return {"one_rate": "it has one codebook"}
    kind = "streams" if tokenizer.streams is not None else "codebooks"
    return {"one_rate": f"it decodes all of its {kind} together"}


def keep_groups(codes: Codes, groups: int) -> Codes:
    """The first so many groups of every position."""
    return codes if groups >= codes.ids.shape[2] else replace(codes, ids=codes.ids[..., :groups])


def choose_rate(measured: Arrays, groups: int) -> Arrays:
    """What was measured at so many groups, without that number before the names."""
    mark = f"{groups}:"
    return {name.removeprefix(mark): value for name, value in measured.items() if name.startswith(mark)}
