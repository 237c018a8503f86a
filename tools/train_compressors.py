"""Trains every compressor with a learned part on one model, on pictures that are asked about: folders for the bench.

    python tools/train_compressors.py --model model_cards/nano --out data/compressors --concepts 300 --steps 150
    python tools/bench_compression.py measure --trained data/compressors --methods tokenpacker,fit … --rows FOLDER

Pictures are emoji of three training styles, from `data/raw` (`python tools/fetch_data.py`); the bench asks about
another style. `recipes/train_compressor.py` does the training, each method in `OUT/METHOD`, and says how far
from the whole model it is beside even pruning; a method whose folder is there is left as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from unimodal.compression import METHODS
from unimodal.tuning.study import PictureStudy, add_options, run_recipe

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
STYLES = ("noto", "fluent3d", "fluentflat")
LEARNED = tuple(name for name, kind in METHODS.items() if kind.is_learned)
QUESTION = {"type": "text", "text": "What is this?"}


def write_questions(study: PictureStudy) -> str:
    """A file of questions about every picture, with the names as answers; its path."""
    return study.write_rows("questions", [
        {"messages": [{"role": "user", "content": [{"type": "image", "path": concept[style]}, QUESTION]},
                      {"role": "assistant", "content": concept["name"]}]}
        for concept in study.list_pictures(STYLES) for style in STYLES
    ])  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("model_cards/nano"))
    parser.add_argument("--methods", nargs="+", choices=LEARNED, default=LEARNED)
    parser.add_argument("--keep", type=float, default=0.25)
    add_options(parser, "compressors", concepts=300)
    options = parser.parse_args(arguments)
    options.out = options.out.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    questions = write_questions(PictureStudy(RECIPES, options))
    for method in options.methods:
        if (options.out / method).exists():
            continue
        print(f"training {method}", flush=True)
        run_recipe(
            RECIPES / "train_compressor.py", f"model={options.model}", f"method={method}", f"keep={options.keep}",
            f"corpus={{datasets: [{{path: {questions}, media_root: {options.out}}}], codes: {options.out}/codes, "
            f"tokens_per_batch: {options.tokens}, batches_per_window: 4}}",
            f"out={options.out / method}", f"run={options.out / 'runs' / method}", f"loop.steps={options.steps}",
            "loop.threads=1", "loop.plot=false", "loop.checkpoint_every_s=100000",
        )  # fmt: skip


if __name__ == "__main__":
    main()
