"""Measures a model with every suite and writes one report, what `unimodal evaluate --suite all` does, from settings.

    python recipes/evaluate.py [CONFIG.yaml] [--set model=model_cards/nano] [--set out=report.json] [--dry-run]

Needs the prepared data and the [eval] extra. The report is saved after every suite; suites that are left out keep what
an earlier run of the same model wrote.
"""

from __future__ import annotations

import sys
from pathlib import Path

from unimodal.config import Config
from unimodal.training.command import run_recipe


class EvaluateRecipe(Config):
    model: str | None = None  # a folder or a hub id; by default the nano that is here
    data: Path = Path("data/prepared")
    out: Path = Path("report.json")
    suites: tuple[str, ...] = ("all",)
    limit: int | None = None  # items of a suite at most; by default each suite's own number
    seed: int = 0


def run(cfg: EvaluateRecipe, dry_run: bool) -> None:
    from unimodal.cli.progress import Reporter
    from unimodal.evaluation import choose_suites, run_suites
    from unimodal.model_folder.find import find_model

    names, folder = choose_suites(cfg.suites), find_model(cfg.model)
    print(f"{folder}: {', '.join(names)} → {cfg.out}", file=sys.stderr)
    if dry_run:
        return
    with Reporter() as report:
        from unimodal.pipeline import load

        model = load(folder, on_step=report)
        for table in run_suites(names, model, cfg.data, cfg.out, cfg.limit, cfg.seed, report):
            report.clear()
            print(table, flush=True)


if __name__ == "__main__":
    run_recipe(EvaluateRecipe, run)
