"""What a pretrained model loses where its prompts are merged into fewer positions (arXiv:2411.18553).

    python tools/bench_merging.py BASE test.txt [--pieces 16] [--merges 0 20 100 all] [--hypernetwork rows.safetensors]

Each piece of the text, about a kilobyte, is cut in two at a line's end or a space: the first half is the prompt, the
second is scored behind it in the base's own tokens. Prints, for each number of merges over all prompts, the positions
of the prompts, and the bits a byte of the second halves. Rows of merged units are the means of their tokens', or made
by a network of tools/train_hypernetwork.py.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from unimodal.model.front_ends.merged_prompts import MergedPrompts, Unit, merge_tokens
from unimodal.text.corpora import cut_pieces, read_lines
from unimodal.tuning.transplant.hypernetwork import RowHypernetwork, read_pieces, stack_tables
from unimodal.tuning.transplant.transplant import open_base


def cut_in_two(piece: str) -> tuple[str, str]:
    """A text cut before the space or line's end that is nearest to its middle; a text without any in the middle."""
    places = [at for at, letter in enumerate(piece) if letter.isspace() and 0 < at < len(piece) - 1]
    at = min(places, key=lambda place: abs(place - len(piece) // 2), default=len(piece) // 2)
    return piece[:at], piece[at:]


def run(options: argparse.Namespace) -> None:
    base = open_base(options.base)
    start = base.find_start(base.vocabulary)
    pieces = cut_pieces(read_lines([options.text]))[: options.pieces]
    halves = [cut_in_two(piece) for piece in pieces]
    prompts = [base.old.encode(first) for first, _ in halves]
    answers = [base.old.encode(second) for _, second in halves]
    kept = [at for at, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)) if prompt and answer]
    if not kept:
        raise ValueError(f"{options.text} has no text that can be cut in two")
    embed = None
    if options.hypernetwork is not None:
        network, rows = RowHypernetwork.load(options.hypernetwork), stack_tables(base.tables, base.num_text_rows)

        def embed(units: Sequence[Unit]) -> Tensor:
            table = base.model.get_input_embeddings().weight
            single = torch.stack([table[unit[0]] for unit in units]).float()
            made = network(*read_pieces(rows, units))[:, 0]  # [N, D]
            return torch.where(torch.tensor([len(unit) > 1 for unit in units])[:, None], made, single).to(table)

    reader = MergedPrompts(base.model, embed)
    num_bytes = sum(len(halves[at][1].encode()) for at in kept)
    print("| merges | positions | saved | bits a byte behind |\n|---|---|---|---|")
    whole = sum(len(prompts[at]) for at in kept)
    for wanted in options.merges:
        units = merge_tokens([prompts[at] for at in kept], base.old, None if wanted == "all" else int(wanted))
        nats = 0.0
        for unit, at in zip(units, kept, strict=True):
            before = [] if start is None else [(start,)]
            nats += reader.score([*before, *unit], answers[at])
        count = sum(map(len, units))
        bits = nats / math.log(2) / num_bytes
        print(f"| {wanted} | {count:,} | {1 - count / whole:.1%} | {bits:.3f} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", help="a folder or a hub id")
    parser.add_argument("text", type=Path)
    parser.add_argument("--pieces", type=int, default=16)
    parser.add_argument("--merges", nargs="+", default=["0", "20", "100", "all"], metavar="N")
    parser.add_argument("--hypernetwork", type=Path)
    options = parser.parse_args(arguments)
    try:
        if not all(wanted == "all" or wanted.isdigit() for wanted in options.merges):
            raise ValueError(f"--merges {' '.join(options.merges)}: give numbers, or all")
        if options.pieces < 1:
            raise ValueError(f"--pieces {options.pieces}: give one or more")
        run(options)
    except ValueError as error:
        print(f"bench_merging: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
