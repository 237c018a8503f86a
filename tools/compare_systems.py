"""Trains the small form of every system of a medium on the same files for the same processor time, and compares them.

    python tools/prepare_comparison.py
    python tools/compare_systems.py image data/comparison/image/train --out data/systems \
        --held-out data/comparison/image/held_out --probe data/comparison/image/probe
    python tools/compare_systems.py audio sounds --out data/systems --seeds 3 --systems wavtokenizer-40 snac-24

Each system is trained by `recipes/train_tokenizer.py` on one thread, in a process of its own, for as many steps as fit
the seconds of processor time. What counts is the time of the steps (reading files, forward, backward, optimizer), not
that of starting. Finished ones are kept, so an interrupted comparison goes on, and a later one of other systems or
seeds at the same settings adds to it. `OUT/MEDIUM.json` lists steps, seconds and sizes of each, and why those that are
missing could not be trained; then the bench of `unimodal evaluate --suite tokenizers` writes `OUT/MEDIUM_bench.json`
with its table and curves, on files that no system was trained on: those of `--held-out`, by default the tenth that the
recipe leaves out by name. `--probe` names files in folders, for the part that trains on the codes.

Small forms differ in parameters and codes, which the table says: it compares what a minute on a processor buys, not
the published sizes. Pictures and films have one size (`--size`) where the form has no other. `CHANGED` lists what is
changed of single systems so that they can be compared at all.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import resource
import shutil
import sys
import traceback
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

import torch

from unimodal.data.media_items import FileItems, is_held_out
from unimodal.files import read_json, write_json
from unimodal.tokenizers import MediaTokenizer, find_family_class, load_tokenizer
from unimodal.tokenizers.configs.compared import CHANGED, SOUND_LOSSES, Settings
from unimodal.tokenizers.configs.facts import count_bits, describe_codes, describe_size
from unimodal.tokenizers.configs.registry import list_systems, read_system
from unimodal.tokenizers.systems.base import ReconstructingModule
from unimodal.training.command import Flags

ROOT = Path(__file__).resolve().parents[1]
RESTART = Flags(restart=True)
FIRST_GUESS = 1000  # steps
ONE_HELD_OUT_OF = 10
WARMUP_STEPS = 20
BATCH = {"image": 16, "audio": 4, "video": 8}
CROP_S = 0.5  # of a sound


def choose_systems(medium: str) -> list[str]:
    """One published system of each family and name that has codes: their small forms are alike."""
    found: dict[tuple[str, str], str] = {}
    for name in list_systems():
        system = read_system(name)
        family = str(system.choose_settings(small=True)["family"])
        kind = find_family_class(family)
        if kind.modality == medium and issubclass(kind, MediaTokenizer):
            found.setdefault((system.system, family), name)
    return list(found.values())


@cache
def load_recipe() -> ModuleType:
    """`recipes/train_tokenizer.py` as a module."""
    spec = importlib.util.spec_from_file_location("train_tokenizer", ROOT / "recipes" / "train_tokenizer.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def learns_by_decoding(system: str) -> bool:
    """Whether the recipe's losses of what is decoded train it, and no loss of its own."""
    kind = find_family_class(str(read_system(system).choose_settings(small=True)["family"]))
    return issubclass(kind, ReconstructingModule) and kind.reconstructs


def make_settings(asked: argparse.Namespace, system: str, out: Path, seed: int, size: int | None) -> dict[str, object]:
    """The settings of the recipe. size: of pictures and films; None for the form's own."""
    sizes: Settings = {} if size is None else {"sizes": [size]}
    losses: Settings = {"losses": SOUND_LOSSES} if asked.medium == "audio" and learns_by_decoding(system) else {}
    return {
        "system": system, "small": True, "media": str(asked.media), "out": out, "run": out.with_suffix(".run"),
        "one_held_out_of": ONE_HELD_OUT_OF, "held_out_items": 16, "upscale": True, "workers": 0, "crop_s": CROP_S,
        "batch_size": asked.batch or BATCH[asked.medium], **sizes, **losses, **CHANGED.get(system, {}),
        "processor_s": asked.seconds,
        "loop": {"steps": FIRST_GUESS, "seed": seed, "threads": 1, "plot": False,
                 "learning_rate": asked.learning_rate, "warmup_steps": WARMUP_STEPS, "checkpoint_every_s": 1e6,
                 "log_every": 20},
    }  # fmt: skip


def train(asked: argparse.Namespace, system: str, out: Path, seed: int, log: Path) -> dict[str, object]:
    """Trains a small form for the processor time. Returns what is known of it then."""
    recipe = load_recipe()
    with open(log, "w", encoding="utf-8", buffering=1) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    try:
        size: int | None = None if asked.medium == "audio" else asked.size
        try:
            recipe.run(recipe.TokenizerRecipe.model_validate(make_settings(asked, system, out, seed, size)), RESTART)
        except (ValueError, RuntimeError, AssertionError):
            if size is None:
                raise
            recipe.run(recipe.TokenizerRecipe.model_validate(make_settings(asked, system, out, seed, None)), RESTART)
        record = read_json(out / "recipe.json")
    except (ValueError, OSError, RuntimeError, AssertionError) as error:
        traceback.print_exc()
        return {"failed": " ".join(str(error).split()) or type(error).__name__}
    finally:
        shutil.rmtree(out.with_suffix(".run"), ignore_errors=True)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"failed": "", **{name: record[name] for name in ("steps", "processor_s", "held_out")},
            "all_s": round(usage.ru_utime + usage.ru_stime, 1), **describe(out)}  # fmt: skip


def describe(folder: Path) -> dict[str, object]:
    """Size, codes, bits and parameters of a trained tokenizer."""
    tokenizer = load_tokenizer(folder)
    return {
        "takes": describe_size(tokenizer), "codes": " + ".join(describe_codes(tokenizer)),
        "bits": count_bits(tokenizer), "parameters": sum(p.numel() for p in tokenizer.parameters()),
        "decodes": tokenizer.can_decode,
    }  # fmt: skip


def train_apart(asked: argparse.Namespace, system: str, out: Path, seed: int) -> dict[str, object]:
    """`train` in a process of its own, so that one that ends badly does not end the comparison. It is forked, which
    costs less than to import everything anew."""
    load_recipe()
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_train_and_send, args=(theirs, asked, system, out, seed, out.with_suffix(".log")))
    process.start()
    theirs.close()
    try:
        found: dict[str, object] = ours.recv()
    except EOFError:
        found = {"failed": "the process ended without a word"}
    process.join()
    return found


def _train_and_send(pipe: Connection, asked: argparse.Namespace, system: str, out: Path, seed: int, log: Path) -> None:
    pipe.send(train(asked, system, out, seed, log))


def keep_held_out(media: Path, medium: str, into: Path) -> Path:
    """A folder of links to the files that the recipe holds out."""
    items = FileItems(media, medium)
    for index, path in enumerate(items.paths):
        if is_held_out(items.find_group(index), ONE_HELD_OUT_OF):
            link = into / path.relative_to(media)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(path.resolve())
    return into


def compare(asked: argparse.Namespace, trained: dict[str, Path], part: str) -> None:
    """Runs a part of the bench. Raises ValueError where it fails."""
    from unimodal.evaluation.tokenizer_bench.downstream import ModelPlan
    from unimodal.evaluation.tokenizer_bench.entries import open_entries
    from unimodal.evaluation.tokenizer_bench.run import run_bench
    from unimodal.evaluation.tokenizer_bench.settings import DOWNSTREAM, BenchSettings
    from unimodal.evaluation.tokenizer_bench.write import write_bench

    probed = part == DOWNSTREAM
    data = asked.probe if probed else asked.held_out
    data = data or keep_held_out(asked.media, asked.medium, asked.out / f"{asked.medium}_held_out")
    out = asked.out / f"{asked.medium}_{'probe' if probed else 'bench'}.json"
    settings = BenchSettings(
        data, out.with_suffix(".parts"), asked.probe_limit if probed else asked.limit, legibility=False, part=part,
        plan=ModelPlan(updates=asked.model_updates, tokens=0), recognisers=tuple(asked.recognisers),
        workers=asked.workers,
    )  # fmt: skip

    def report(label: str, done: int, of: int | None) -> None:
        if not done:
            print(label, file=sys.stderr, flush=True)

    torch.set_num_threads(1)
    entries = open_entries([f"{label}={folder}" for label, folder in trained.items()])
    print(write_bench(run_bench(entries, settings, report), out), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("medium", choices=("image", "audio", "video"))
    parser.add_argument("media", type=Path, help="a folder of files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, help="files to compare on; by default those that are held out")
    parser.add_argument("--probe", type=Path, help="files in a folder for each label; by default there is no such part")
    parser.add_argument("--seconds", type=float, default=60, help="of processor time a system")
    parser.add_argument("--batch", type=int, help="16 pictures, 4 half seconds of sound or 8 films")
    parser.add_argument("--size", type=int, default=32, help="pixels of pictures and films")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--systems", nargs="*", help="names of `unimodal tokenizers list`; by default one of each kind")
    parser.add_argument("--limit", type=int, default=100, help="files of the comparison")
    parser.add_argument("--probe-limit", type=int, default=400, help="files of the part that trains on the codes")
    parser.add_argument("--model-updates", type=int, default=0, help="of a language model of the codes; 0: none")
    parser.add_argument("--recognisers", nargs="*", default=["moonshine"], help="who reads speech; pocketsphinx too")
    parser.add_argument("--workers", type=int, default=2, help="processes that judge")
    parser.add_argument("--only-train", action="store_true", help="leave the comparison for another time")
    asked = parser.parse_args()
    if not asked.media.is_dir():
        parser.error(f"{asked.media} is no folder")
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / f"{asked.medium}.json"
    record = read_json(path) if path.is_file() else {}
    settings = {"asked_s": asked.seconds, "batch": asked.batch or BATCH[asked.medium],
                "learning_rate": asked.learning_rate}  # fmt: skip
    for name in asked.systems or choose_systems(asked.medium):
        for seed in range(asked.seeds):
            label = name if seed == 0 else f"{name}-seed{seed}"
            folder, known = asked.out / asked.medium / label, record.get(label)
            same = isinstance(known, dict) and {key: known.get(key) for key in settings} == settings
            assert known is None or isinstance(known, dict)
            if known is None or not same or not (known["failed"] or folder.is_dir()):
                shutil.rmtree(folder, ignore_errors=True)
                folder.parent.mkdir(exist_ok=True)
                known = {"system": name, "seed": seed, **settings, **train_apart(asked, name, folder, seed)}
                record[label] = known
                write_json(path, record)
            says = f"not trained: {known['failed']}" if known["failed"] else f"{known['steps']} steps"
            print(f"{label}: {says}", flush=True)
    if asked.only_train:
        return
    trained, decoding = dict[str, Path](), dict[str, Path]()
    for label, known in record.items():  # those of earlier calls too: what was judged already is not judged again
        assert isinstance(known, dict)
        folder = asked.out / asked.medium / label
        if not known["failed"] and folder.is_dir() and {key: known.get(key) for key in settings} == settings:
            trained[label] = folder
            if known["decodes"]:
                decoding[label] = folder
    if not trained:
        raise SystemExit("no system could be trained on these files")
    if decoding:
        compare(asked, decoding, "reconstruction")
    if asked.probe:
        compare(asked, trained, "downstream")


if __name__ == "__main__":
    main()
