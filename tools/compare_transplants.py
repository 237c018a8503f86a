"""What a base knows under another text tokenizer: every way of making its rows, on one text.

    python tools/compare_transplants.py BASE --tokenizer T --data test.txt [--parallel A B] [--donor M] [--embedder E]
                                        [--hypernetwork F] [--methods mean fvt …] [--bytes 20000]
                                        [--train train.txt --steps 50]

BASE, T and the other inputs are those of `unimodal text transplant`; nothing is written. Prints, of at most so many
bytes of the text, the tokens and the bits a byte of the base and of each method, with the 95 % interval over pieces of
a kilobyte. With `--steps`, the text rows alone are then trained on pieces of `--train`, the same for every method, and
the bits are measured again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from unimodal.text.corpora import cut_pieces, read_lines, read_parallel, take_bytes
from unimodal.text.reports.opened import open_tokenizer
from unimodal.tuning.transplant.hypernetwork import RowHypernetwork, stack_tables
from unimodal.tuning.transplant.inputs import open_embedder, read_dictionary, read_donor_rows
from unimodal.tuning.transplant.measure import TextCost, measure_text
from unimodal.tuning.transplant.methods import METHODS, MadeRows
from unimodal.tuning.transplant.resize import replace_tables
from unimodal.tuning.transplant.transplant import TransplantBase, TransplantPlan, open_base, plan_transplant
from unimodal.tuning.transplant.word_vectors import read_vectors

LEARNING_RATE, BATCH = 1e-3, 4
NEEDS = {
    "wechsel": "parallel",
    "trans-tokenization": "parallel",
    "clp": "donor",
    "omp": "donor",
    "tokenadapt": "embedder",
    "zett": "hypernetwork",
}


def tune_rows(base: TransplantBase, plan: TransplantPlan, lines: Sequence[str], steps: int, start: int | None) -> None:
    """Train the text rows on pieces of a text, in order; every other weight, and the rows behind them, stay."""
    model, encode, size = base.model, plan.request.new.encode, plan.request.num_rows
    model.requires_grad_(False)
    tables = {id(table.weight): table.weight for table in (model.get_input_embeddings(), model.get_output_embeddings())}
    for weight in tables.values():
        weight.requires_grad_(True)
        weight.register_hook(lambda gradient: torch.cat([gradient[:size], torch.zeros_like(gradient[size:])]))
    optimizer = torch.optim.AdamW(tables.values(), lr=LEARNING_RATE, weight_decay=0.0)
    pieces = cut_pieces(lines)
    model.train()
    for step in range(steps):
        for at in range(step * BATCH, (step + 1) * BATCH):
            ids = torch.tensor([[*([] if start is None else [start]), *encode(pieces[at % len(pieces)])]])
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            (cross_entropy(logits, ids[0, 1:]) / BATCH).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()


def write_row(name: str, cost: TextCost, made: MadeRows | None = None, tuned: TextCost | None = None) -> str:
    rows = ["", "", ""] if made is None else [f"{count:,}" for count in (len(made.copied), made.mixed, made.filled)]
    bits = [f"{cost.bits:.3f} ± {cost.interval:.3f}"]
    bits += [] if tuned is None else [f"{tuned.bits:.3f} ± {tuned.interval:.3f}"]
    if cost.num_spoilt:
        bits[0] += f" ({cost.num_spoilt} of {cost.num_pieces} pieces lose letters)"
    return f"| {' | '.join([name, *rows, f'{cost.tokens:,}', *bits])} |"


def run(options: argparse.Namespace) -> None:
    for method in options.methods:
        needed = NEEDS.get(method)
        if method not in METHODS:
            raise ValueError(f"method {method!r} is unknown; use {', '.join(METHODS)}")
        if needed and getattr(options, needed) is None and not (method == "wechsel" and options.vectors):
            raise ValueError(f"method {method!r} needs --{needed}; give it, or leave the method out of --methods")
    if options.steps and options.train is None:
        raise ValueError("--steps needs a text to train on: --train FILE")
    lines = take_bytes(read_lines(options.data), options.bytes)
    train = read_lines([options.train]) if options.train is not None else []
    new, base = open_tokenizer(options.tokenizer), open_base(options.base)
    plan = plan_transplant(base, new)
    both = read_parallel(options.parallel) if options.parallel else None
    read = [read_vectors(path) for path in options.vectors or ()]
    request = replace(
        plan.request,
        num_atoms=options.atoms,
        parallel=None if both is None else (both[0], both[1]),
        donor=None if options.donor is None else read_donor_rows(options.donor, new),
        embed=None if options.embedder is None else open_embedder(options.embedder),
        vectors=(read[0], read[1]) if read else None,
        dictionary=None if options.dictionary is None else read_dictionary(options.dictionary),
        hypernetwork=None if options.hypernetwork is None else RowHypernetwork.load(options.hypernetwork),
        base_rows=None if options.hypernetwork is None else stack_tables(base.tables, base.old.text.size),
    )
    plan = replace(plan, request=request)
    # the token before a text stays what it was, under whatever row it has now
    start = old = base.find_start(base.vocabulary)
    if plan.vocabulary is not None:
        start = base.find_start(plan.vocabulary)
    elif plan.special is not None and old is not None:
        start = plan.special.rows.get(old, next((row for row, known in request.shared.items() if known == old), None))
    print("| rows by | copied | mixed | filled | tokens | bits a byte |" + (" tuned |" if options.steps else ""))
    print("|---|---|---|---|---|---|" + ("---|" if options.steps else ""))
    before = measure_text(base.model, base.old, old, lines)
    print(write_row("the base", before), flush=True)
    for method in options.methods:
        begun = time.process_time()
        made = MadeRows(method, request, seed=options.seed)
        replace_tables(base.model, plan.make_tables(base, made))
        seconds = time.process_time() - begun
        cost = measure_text(base.model, new, start, lines)
        tuned = None
        if options.steps:
            tune_rows(base, plan, train, options.steps, start)
            tuned = measure_text(base.model, new, start, lines)
        print(write_row(f"`{method}`", cost, made, tuned), flush=True)
        print(f"{method}: {seconds:.1f} s of processor time", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", help="a folder or a hub id")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="the text that is measured")
    parser.add_argument("--bytes", type=int, help="at most so many of its bytes")
    parser.add_argument("--methods", nargs="+", default=["mean", "fvt"])
    parser.add_argument("--parallel", type=Path, nargs=2)
    parser.add_argument("--donor")
    parser.add_argument("--atoms", type=int, default=64, help="of omp")
    parser.add_argument("--embedder")
    parser.add_argument("--vectors", type=Path, nargs=2)
    parser.add_argument("--dictionary", type=Path)
    parser.add_argument("--hypernetwork", type=Path, help="of zett: what tools/train_hypernetwork.py wrote")
    parser.add_argument("--train", type=Path, help="the text that rows are trained on")
    parser.add_argument("--steps", type=int, default=0, help=f"of {BATCH} pieces each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        run(options)
    except ValueError as error:
        print(f"compare_transplants: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
