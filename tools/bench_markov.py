"""What tokens do for a model that knows only how often each occurs, on text of a Markov source (arXiv:2404.08335).

    python tools/bench_markov.py [--order 2] [--p 0.2] [--q 0.2] [--kind bpe] [--sizes 258 272 320 512]

Trains tokenizers of growing size on the source's text and prints what a model of single tokens pays a letter on other
text, between the entropy of the letters and the source's own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from unimodal.text.markov import MarkovSource, score_unigram
from unimodal.text.reports.opened import OpenedTokenizer
from unimodal.text.trainers import KINDS, TrainingSettings, train

NUM_LINES, LENGTH = 400, 250


def run(options: argparse.Namespace) -> None:
    source = MarkovSource(options.order, options.p, options.q)
    learned, measured = source.draw(NUM_LINES, LENGTH, options.seed), source.draw(NUM_LINES, LENGTH, options.seed + 1)
    print("| rows | letters a token | bits a letter |\n|---|---|---|")
    print(f"| single letters | 1 | {score_unigram(lambda line: [ord(c) for c in line], learned, measured, 2):.3f} |")
    for size in options.sizes:
        tokenizer = OpenedTokenizer(train(learned, TrainingSettings(options.kind, size)), f"{size}")
        ids = [tokenizer.encode(line) for line in measured]
        used = len({row for line in learned for row in tokenizer.encode(line)})
        bits = score_unigram(tokenizer.encode, learned, measured, used)
        print(f"| {size:,} | {sum(map(len, measured)) / sum(map(len, ids)):.2f} | {bits:.3f} |", flush=True)
    print(f"| the source | | {source.entropy_rate:.3f} |")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--order", type=int, default=2, help="how far back the next letter looks")
    parser.add_argument("--p", type=float, default=0.2, help="of a switch behind a")
    parser.add_argument("--q", type=float, default=0.2, help="of a switch behind b")
    parser.add_argument("--kind", choices=KINDS, default="bpe")
    parser.add_argument("--sizes", type=int, nargs="+", default=[258, 264, 288, 384, 768])
    parser.add_argument("--seed", type=int, default=0)
    try:
        run(parser.parse_args(arguments))
    except ValueError as error:
        print(f"bench_markov: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
