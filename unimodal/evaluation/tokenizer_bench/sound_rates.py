"""The rates at which codes of sounds are decoded: residual ones at their first codebooks, streams that
refine each other at the first of them, others at all."""

from __future__ import annotations

from dataclasses import replace

from unimodal.evaluation.tokenizer_bench.store import Arrays
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import MediaTokenizer


def list_group_counts(tokenizer: MediaTokenizer) -> list[int]:
    """The numbers of groups that are decoded: all, and those of each coarser result."""
    return [*(len(groups) for groups in tokenizer.coarser_groups), len(tokenizer.codebook_sizes)]


def explain_one_rate(tokenizer: MediaTokenizer) -> dict[str, str]:
    """Why codes are decoded at one rate alone; nothing where they are at several."""
    if len(list_group_counts(tokenizer)) > 1:
        return {}
    if len(tokenizer.codebook_sizes) == 1:
        return {"one_rate": "it has one codebook"}
    kind = "streams" if tokenizer.streams is not None else "codebooks"
    return {"one_rate": f"it decodes all of its {kind} together"}


def keep_groups(tokenizer: MediaTokenizer, codes: Codes, groups: int) -> Codes:
    """The so many groups of every position that decode by themselves."""
    whole = groups >= codes.ids.shape[2]
    return codes if whole else replace(codes, ids=codes.ids[..., list(tokenizer.find_groups(groups))])


def choose_rate(measured: Arrays, groups: int) -> Arrays:
    """What was measured at so many groups, without that number before the names."""
    mark = f"{groups}:"
    return {name.removeprefix(mark): value for name, value in measured.items() if name.startswith(mark)}
