"""Trains the small form of every system of a medium on the same files for the same processor time, and compares them.

    python tools/compare_systems.py image photos --out data/systems --seconds 120
    python tools/compare_systems.py audio sounds --out data/systems --seconds 120 --seeds 3 --systems wavtokenizer-small

Each system is trained by `recipes/train_tokenizer.py` on one thread: a trial of a few steps says how many fit the
seconds of processor time, and that number is what is trained and recorded. Finished ones are kept, so an interrupted
comparison goes on. `OUT/MEDIUM.json` lists steps and seconds of each and why those that are missing could not be
trained; then `unimodal evaluate --suite tokenizers` writes `OUT/MEDIUM_bench.json` with its table and curves, on files
that no system was trained on: those of `--held-out`, by default the tenth that the recipe leaves out by name.

Small forms differ in the size of their pictures and in parameters, which the table says: it compares what a minute on a
processor buys, not the published sizes.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from unimodal.data.media_items import FileItems, is_held_out
from unimodal.files import read_json, write_json
from unimodal.tokenizers import MediaTokenizer, find_family_class
from unimodal.tokenizers.configs.registry import list_systems, read_system

ROOT = Path(__file__).resolve().parents[1]
TRIAL_STEPS = (2, 8)
ONE_HELD_OUT_OF = 10


def choose_systems(medium: str) -> list[str]:
    """One published system of each family and name whose codes can be decoded: their small forms are alike."""
    found: dict[tuple[str, str], str] = {}
    for name in list_systems():
        system = read_system(name)
        family = str(system.choose_settings(small=True)["family"])
        kind = find_family_class(family)
        if kind.modality == medium and issubclass(kind, MediaTokenizer):
            found.setdefault((system.system, family), name)
    return list(found.values())


def train(system: str, media: Path, out: Path, steps: int, seed: int, batch: int) -> tuple[float, str]:
    """Trains a small form. Returns its processor time in seconds, and what was said where it failed."""
    command = [
        sys.executable, str(ROOT / "recipes" / "train_tokenizer.py"), "--restart",
        f"--set=system={system}", "--set=small=true", f"--set=media={media}", f"--set=out={out}",
        f"--set=run={out.with_suffix('.run')}", f"--set=one_held_out_of={ONE_HELD_OUT_OF}", "--set=upscale=true",
        f"--set=batch_size={batch}", f"--set=loop.steps={steps}", f"--set=loop.seed={seed}", "--set=loop.threads=1",
        "--set=loop.plot=false", f"--set=loop.warmup_steps={min(50, steps // 4)}", "--set=workers=0",
        f"--set=loop.checkpoint_every_s={1e6}",
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    last = (done.stderr.strip().splitlines() or [""])[-1]
    shutil.rmtree(out.with_suffix(".run"), ignore_errors=True)
    return seconds, last if done.returncode else ""


def count_steps(system: str, media: Path, scratch: Path, seconds: float, batch: int) -> tuple[int, str]:
    """The steps that fit the processor time, the start of the program not counted; and why there are none."""
    times = []
    for steps in TRIAL_STEPS:
        used, failed = train(system, media, scratch, steps, 0, batch)
        shutil.rmtree(scratch, ignore_errors=True)
        if failed:
            return 0, failed
        times.append(used)
    each = max((times[1] - times[0]) / (TRIAL_STEPS[1] - TRIAL_STEPS[0]), 1e-4)
    return max(1, round(seconds / each)), ""


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("medium", choices=("image", "audio", "video"))
    parser.add_argument("media", type=Path, help="a folder of files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, help="files to compare on; by default those that are held out")
    parser.add_argument("--seconds", type=float, default=120, help="of processor time a system")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--systems", nargs="*", help="names of `unimodal tokenizers list`; by default one of each kind")
    parser.add_argument("--limit", type=int, default=100, help="files of the comparison")
    asked = parser.parse_args()
    if not asked.media.is_dir():
        parser.error(f"{asked.media} is no folder")
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / f"{asked.medium}.json"
    record = read_json(path) if path.is_file() else {}
    assert isinstance(record, dict)
    trained: list[str] = []
    for name in asked.systems or choose_systems(asked.medium):
        for seed in range(asked.seeds):
            label = name if asked.seeds == 1 else f"{name}-seed{seed}"
            folder, known = asked.out / label, record.get(label)
            same = isinstance(known, dict) and known["asked_s"] == asked.seconds and known["batch"] == asked.batch
            if not (same and (known["failed"] or folder.is_dir())):
                shutil.rmtree(folder, ignore_errors=True)
                steps, failed = count_steps(name, asked.media, asked.out / f"{label}.trial", asked.seconds, asked.batch)
                used = 0.0
                if not failed:
                    used, failed = train(name, asked.media, folder, steps, seed, asked.batch)
                known = {"system": name, "seed": seed, "asked_s": asked.seconds, "batch": asked.batch, "steps": steps,
                         "processor_s": round(used, 1), "failed": failed}  # fmt: skip
                record[label] = known
                write_json(path, record)
            print(f"{label}: " + (f"not trained: {known['failed']}" if known["failed"] else f"{known['steps']} steps"))
            if not known["failed"]:
                trained.append(f"{label}={folder}")
    if not trained:
        raise SystemExit("no system could be trained on these files")
    held_out = asked.held_out or keep_held_out(asked.media, asked.medium, asked.out / f"{asked.medium}_held_out")
    report = asked.out / f"{asked.medium}_bench.json"
    command = [sys.executable, "-m", "unimodal", "evaluate", "--suite", "tokenizers", "--data", str(held_out)]
    command += ["--limit", str(asked.limit), "--out", str(report), "--tokenizers", *trained]
    raise SystemExit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()
