"""The attack that fails only when compressed, method by method, and the cheapest defence that held, on any model.

    python tools/bench_attacks.py measure --model model_cards/nano --data data/prepared --rows attack_rows
    python tools/bench_attacks.py write --rows attack_rows --out attacks.md

`unimodal/evaluation/compression_attack.py` says what the attack does and what the defences are. A row is a method and a
share, and a file of its own, so that an interrupted run goes on. Intervals are Wilson's at 95%.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from unimodal.evaluation.compression import METHOD_NAMES
from unimodal.evaluation.compression_attack import DEFENCES, AttackedPictures, Outcome, attack
from unimodal.evaluation.prepared import Pictures
from unimodal.evaluation.shares import find_interval
from unimodal.files import read_json_as, write_json, write_text_atomically
from unimodal.pipeline import Unimodal, load
from unimodal.pipeline.compression import compress


def measure(model: Unimodal, asked: argparse.Namespace) -> None:
    """Attack every method that has no row yet."""
    asked.rows.mkdir(parents=True, exist_ok=True)
    pictures: AttackedPictures | None = None

    def open_config(method: str, keep: float) -> Callable[[], AbstractContextManager[object]]:
        return lambda: compress(model, method, keep=keep)

    for keep in asked.keeps:
        for method in asked.methods or METHOD_NAMES:
            path = asked.rows / f"{method}_{keep:g}.json"
            if path.exists():
                continue
            if pictures is None:
                pictures = AttackedPictures(model, Pictures.load(asked.data), asked.pictures, asked.seed)
            outcome = attack(pictures, method, keep, open_config, asked.strength / 255, asked.queries)
            write_json(path, asdict(outcome))
            print(f"{path.stem}: clean {sum(outcome.clean)}, attacked {sum(outcome.attacked)} of {len(pictures)}; "
                  f"{outcome.find_cheapest() or 'no defence held'}", flush=True)  # fmt: skip


def write(rows: Path, out: Path, name: str) -> None:
    """The page with the table of what is there. name: of the model. ValueError where nothing is."""
    found = [read_json_as(Outcome, path) for path in sorted(rows.glob("*.json"))]
    if not found:
        raise ValueError(f"{rows} has no rows; measure some first")
    found.sort(key=lambda one: (-one.keep, METHOD_NAMES.index(one.method) if one.method in METHOD_NAMES else 0))
    heads = ["method", "kept", "clean %", "changed at random %", "attacked %", "whole model, attacked %", "gap",
             *DEFENCES, "cheapest that held"]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for one in found:
        shares = [format_share(right) for right in (one.clean, one.random, one.attacked, one.whole)]
        tried = [f"{percent(one.defended[name]):.0f}; {percent(one.kept[name]):.0f}" for name in DEFENCES]
        cells = [one.method, f"{one.keep:g}", *shares, f"{one.gap:+.0f}", *tried, one.find_cheapest() or "none"]
        lines.append(f"| {' | '.join(cells)} |")
    first = found[0]
    head = (
        f"{len(first.clean)} pictures that the whole model names; every pixel changed by at most "
        f"{255 * first.strength:g} of 255, {first.queries} tries; 95% intervals. *Gap*: by how many points more the "
        "attack costs the compressed model than the whole one. Defences: right on attacked pictures; on clean ones. "
        "A defence held if the attacked pictures are named right nine times for ten that the method names clean. "
        "`check` read "
        + ", ".join(f"{100 * one.again[0]:.0f}% of the attacked again for {one.method} {one.keep:g}" for one in found)
        + "."
    )
    title = f"# Attacks on {name} that only compression fails"
    command = "Made by `python tools/bench_attacks.py write`; `measure` goes on with what is missing."
    write_text_atomically(out, "\n".join([title, "", head, "", *lines, "", command]) + "\n")


def percent(right: Sequence[bool]) -> float:
    return 100 * sum(right) / len(right)


def format_share(right: Sequence[bool]) -> str:
    low, high = find_interval(sum(right) / len(right), len(right))
    return f"{percent(right):.0f} ({100 * low:.0f}–{100 * high:.0f})"


def read_names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("measure", "write"))
    parser.add_argument("--rows", type=Path, required=True, help="the folder of what is measured")
    parser.add_argument("--model", default="model_cards/nano")
    parser.add_argument("--data", type=Path, default=Path("data/prepared"))
    parser.add_argument("--methods", type=read_names, default=(), help="by default every one that needs no training")
    parser.add_argument("--keeps", type=lambda text: tuple(map(float, read_names(text))), default=(0.25,))
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--queries", type=int, default=16, help="changes that are tried on each picture")
    parser.add_argument("--strength", type=float, default=8, help="the largest change of a pixel, of 255")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("attacks.md"))
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.methods if name not in METHOD_NAMES]:
        parser.error(f"--methods {unknown[0]}: choose from {', '.join(METHOD_NAMES)}")
    if not all(0 < keep < 1 for keep in asked.keeps) or min(asked.pictures, asked.queries) < 1:
        parser.error("--keeps are shares between 0 and 1; --pictures and --queries at least 1")
    if not 0 < asked.strength <= 255:
        parser.error("--strength is above 0 and at most 255")
    try:
        write(asked.rows, asked.out, Path(asked.model).name) if asked.work == "write" else measure(
            load(asked.model), asked
        )
    except ValueError as error:
        print(f"bench_attacks: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
