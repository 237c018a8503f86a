"""What a draw of a training document costs once its media are encoded: files opened, time, memory.

    python tools/bench_corpus.py                          # corpora of 200 and 2,000 pictures, and one large picture
    python tools/bench_corpus.py --pictures 1000 10000 --model model_cards/smol

Makes corpora of random pictures with a question and an answer each, encodes them by the tokenizers of `--model`, and
opens each again in a process of its own, as the next run of a training does. There it draws documents at random and
counts the media files that the interpreter opens (by its audit hook). `MiB` is what is resident in that process behind
the draws, libraries and tokenizers included: it should not grow with the corpus. Times are processor time, which a busy
machine stretches less than the clock. The last row is a single picture of `--side` pixels: a draw of it takes no
longer, however large its file is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SMALL_SIDE = 96  # pixels of the pictures of a corpus


def make_pictures(folder: Path, count: int, side: int) -> None:
    """Pictures of noise and `rows.jsonl`, a question and an answer about each."""
    import torch

    from unimodal.media.image import save_image

    generator = torch.Generator().manual_seed(0)
    lines = []
    for number in range(count):
        save_image(torch.rand(3, side, side, generator=generator), folder / f"{number}.png")
        asked = [{"type": "image", "path": f"{number}.png"}, {"type": "text", "text": "What is this?"}]
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": f"noise, number {number}"}]
        lines.append(json.dumps({"messages": turns}) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))


def measure(model: Path, folder: Path, draws: int) -> dict[str, float]:
    """Opens the corpus of `folder`, whose codes lie in `folder/codes` or are made now, and draws from it."""
    from unimodal.coder.media_coder import load_coder
    from unimodal.corpus.corpus import Corpus, CorpusConfig
    from unimodal.data.datasets import DatasetConfig
    from unimodal.sequence.templates.own import Template
    from unimodal.text.tokenizer import TextTokenizer

    opened = 0

    def count_opened(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal opened
        if event == "open" and isinstance(arguments[0], str) and arguments[0].endswith(".png"):
            opened += 1

    coder = load_coder(model)
    config = CorpusConfig(datasets=(DatasetConfig(path=str(folder / "rows.jsonl")),), codes=folder / "codes")
    corpus = Corpus(config, Template(coder.vocabulary, TextTokenizer.load(model)), coder)
    begun = time.process_time()
    num_encoded = corpus.encode()
    encoding_s = time.process_time() - begun
    [documents] = corpus.sets.values()
    numbers = random.Random(0).choices(range(len(documents)), k=draws)
    sys.addaudithook(count_opened)
    begun = time.process_time()
    for number in numbers:
        documents[number]
    drawing_s = time.process_time() - begun
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "encoded": num_encoded,
        "encoding_s": encoding_s,
        "opened": opened,
        "draw_ms": 1000 * drawing_s / draws,
        "mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
    }


def measure_apart(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--folder", str(folder), "--model", args.model, "--draws", str(args.draws)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="model_cards/nano", help="a model folder, whose tokenizers encode")
    parser.add_argument("--pictures", type=int, nargs="+", default=[200, 2000], help="the size of each corpus")
    parser.add_argument("--side", type=int, default=2000, help="pixels of the single picture")
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # the process that measures
    args = parser.parse_args()
    if args.folder is not None:
        print(json.dumps(measure(Path(args.model), args.folder, args.draws)))
        return
    print(f"{'pictures':>8} {'MB of files':>11} {'encoding s':>10} {'opened':>7} {'ms a draw':>9} {'MiB':>6}")
    for count, side in [*((count, SMALL_SIDE) for count in args.pictures), (1, args.side)]:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            make_pictures(folder, count, side)
            size = sum(path.stat().st_size for path in folder.glob("*.png"))
            first, next_run = (measure_apart(args, folder) for _ in range(2))
        assert first["encoded"] == count and next_run["encoded"] == 0
        print(
            f"{count:8,} {size / 1e6:11.1f} {first['encoding_s']:10.1f} {next_run['opened']:7.0f} "
            f"{next_run['draw_ms']:9.3f} {next_run['mib']:6.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
