"""Trains the network that makes rows for any text tokenizer of a base (zero-shot tokenizer transfer, arXiv:2405.07883).

    python tools/train_hypernetwork.py BASE train.txt --out rows.safetensors [--steps 200] [--seconds S] [--mean-start]
    unimodal text transplant BASE --tokenizer T --out FOLDER --method zett --hypernetwork rows.safetensors

BASE is that of `unimodal text transplant`, and stays as it is. A step reads a few pieces of the text in the tokens of a
tokenizer that is drawn from them. The paper trains for 200,000 steps of 128 texts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from unimodal.text.corpora import cut_pieces, read_lines
from unimodal.tuning.transplant.hypernetwork import HypernetworkSettings
from unimodal.tuning.transplant.transplant import open_base
from unimodal.tuning.transplant.zett import train_hypernetwork


def run(options: argparse.Namespace) -> None:
    if not options.out.parent.is_dir():
        raise ValueError(f"--out {options.out}: there is no folder {options.out.parent}; create it first")
    settings = HypernetworkSettings(
        steps=options.steps, batch_size=options.batch, mean_start=options.mean_start, num_rows=options.rows,
        num_layers=options.layers, num_heads=options.heads, learning_rate=options.learning_rate, seed=options.seed,
    )  # fmt: skip
    lines, base = read_lines(options.text), open_base(options.base)

    done = 0

    def say(step: int, loss: float, near: float) -> None:
        nonlocal done
        done = step + 1
        if (step + 1) % options.say_every == 0:
            print(
                f"step {step + 1}: {loss:.3f} nats a byte, {near:.3f} from the base's rows", file=sys.stderr, flush=True
            )

    pieces = cut_pieces(lines, settings.piece_bytes)
    start = base.find_start(base.vocabulary)
    begun = time.process_time()
    network = train_hypernetwork(base.model, base.tables, base.old, pieces, start, settings, say, options.seconds)
    print(f"{done} steps: {time.process_time() - begun:.0f} s of processor time", file=sys.stderr)
    network.save(options.out)
    print(options.out)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", help="a folder or a hub id")
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds", type=float, help="of a processor, after which it ends sooner")
    parser.add_argument("--batch", type=int, default=8, help="texts of a step")
    parser.add_argument("--rows", type=int, default=1024, help="of a drawn tokenizer")
    parser.add_argument("--mean-start", action="store_true", help="begin at the mean of the pieces, not at the first")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--say-every", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    try:
        run(parser.parse_args(arguments))
    except ValueError as error:
        print(f"train_hypernetwork: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
