"""How many files of the package a chat request and a fine-tuning step pass: each in which a function is called.

    python tools/count_files.py            # the numbers
    python tools/count_files.py --list     # and the files, in the order in which they are first entered

All are counted the second time, when everything is imported: questions in words and about a picture to `--model`, and
a step of `recipes/finetune_lora.py` on a small random base with the tokenizers of `--model`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import runpy
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = str(ROOT / "unimodal") + "/"
PICTURE = ROOT / "model_cards" / "nano" / "samples" / "picture.png"
STEPS = 2


@contextlib.contextmanager
def collect_files() -> Iterator[dict[str, str]]:
    """File of the package → the function that was first called in it, of all threads, while the block runs."""
    found: dict[str, str] = {}

    def look(frame: FrameType, event: str, argument: object) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(PACKAGE):
            found.setdefault(name.removeprefix(PACKAGE), frame.f_code.co_qualname)

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def count_words(model: Path) -> dict[str, str]:
    """The files of a question in words."""
    return count_question(model, False)


def count_picture(model: Path) -> dict[str, str]:
    """The files of a question about a picture."""
    return count_question(model, True)


def count_question(model: Path, with_picture: bool) -> dict[str, str]:
    import unimodal

    loaded = unimodal.load(model)
    question = [unimodal.Image(path=str(PICTURE)), "What is this?"] if with_picture else ["What is this?"]
    loaded.chat(question)
    with collect_files() as found:
        loaded.chat(question)
    return found


def make_base(folder: Path, model: Path) -> None:
    """A random language model of two layers that reads the text of `model`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from unimodal.text.hub_tokenizer import save_hub_tokenizer
    from unimodal.text.tokenizer import TextTokenizer
    from unimodal.vocabulary.read import read_vocabulary

    text = TextTokenizer.load(model)
    save_hub_tokenizer(folder, read_vocabulary(model / "vocabulary.json"), text, model_max_length=1024)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=text.size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def count_step(model: Path) -> dict[str, str]:
    """The files of the last step of a fine-tuning."""
    from unimodal.training.loop import Trainer

    recipe = str(ROOT / "recipes" / "finetune_lora.py")
    step, found = Trainer.train_step, {}

    def count(trainer: Trainer) -> dict[str, float | tuple[float, float]]:
        with collect_files() as passed:
            result = step(trainer)
        found.clear()
        found.update(passed)
        return result

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_base(folder / "base", model)
        rows = [
            {"messages": [{"role": "user", "content": [{"type": "image", "path": str(PICTURE)}]},
                          {"role": "assistant", "content": f"an apple, said {number} times"}]}
            for number in range(40)
        ]  # fmt: skip
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {
            "base": folder / "base", "media": model, "out": folder / "out", "run": folder / "run",
            "corpus.datasets": json.dumps([{"path": str(folder / "rows.jsonl"), "media_root": "/"}]),
            "corpus.codes": folder / "codes", "corpus.tokens_per_batch": 512, "loop.steps": STEPS,
        }  # fmt: skip
        argv, sys.argv = sys.argv, [recipe, *(f"--set={name}={value}" for name, value in settings.items())]
        Trainer.train_step = count  # type: ignore[method-assign]
        try:
            runpy.run_path(recipe, run_name="__main__")
        except SystemExit as stop:
            if stop.code:
                raise
        finally:
            Trainer.train_step, sys.argv = step, argv  # type: ignore[method-assign]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "model_cards" / "nano")
    parser.add_argument("--list", action="store_true", help="name the files, each with its first function")
    args = parser.parse_args()
    for what, count in (
        ("a question in words", count_words),
        ("a question about a picture", count_picture),
        ("a step of fine-tuning", count_step),
    ):
        found = count(args.model)
        print(f"{what} passes {len(found)} files")
        if args.list:
            print("".join(f"  {name:45s} {function}\n" for name, function in found.items()))


if __name__ == "__main__":
    main()
