"""How long the reports of `unimodal inspect` take: every one on a model that is loaded once, in seconds of a processor.

    python tools/bench_inspection.py model_cards/smol --files tests/fixtures/quickstart/*.png [--only heads media …]

Prints a row for each report as soon as it is made: what it was given, the seconds of the process, and the longest part
of it. Loading and the first words, which warm the libraries up, are not counted. The settings are the defaults.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from unimodal.evaluation.inspection import REPORTS, make_report
from unimodal.evaluation.inspection.opened import OpenedModel, open_model
from unimodal.evaluation.inspection.report import InspectionInput
from unimodal.media.kind import detect_kind
from unimodal.sequence.document import MEDIA_PARTS, Media

PROMPT = "Draw a red apple."
NUM_MEDIA = 6  # that `media` and `alignment` are shown


def list_inputs(files: Sequence[Media]) -> dict[str, tuple[InspectionInput, str]]:
    """Report → what it is given, and the same in words."""
    first = list(files[:1])
    return {
        "heads": (InspectionInput(), "its own texts"),
        "media": (InspectionInput(files=list(files[:NUM_MEDIA])), f"{len(files[:NUM_MEDIA])} files"),
        "functions": (InspectionInput(), "its own texts"),
        "attribution": (InspectionInput(files=first), "1 file"),
        "points": (InspectionInput(files=first), "1 file"),
        "flow": (InspectionInput(prompt=PROMPT, to=first[0].modality), f"{PROMPT!r} to {first[0].modality}"),
        "alignment": (InspectionInput(files=list(files[:NUM_MEDIA])), f"{len(files[:NUM_MEDIA])} files"),
        "hidden": (InspectionInput(), ""),
        "codes": (InspectionInput(files=list(files)), f"{len(files)} files"),
    }


class Stages:
    """What a report tells, and the seconds of the process until it tells the next."""

    def __init__(self) -> None:
        self.since = time.process_time()
        self.stage = "reading"
        self.seconds: dict[str, float] = {}

    def tell(self, stage: str) -> None:
        now = time.process_time()
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self.since
        self.stage, self.since = stage, now


def time_report(opened: OpenedModel, name: str, given: InspectionInput) -> tuple[float, str]:
    """Seconds of a processor for a report with its text, and its longest stage."""
    stages = Stages()
    make_report(name, opened, given, stages.tell).format()
    stages.tell("")
    longest = max(stages.seconds, key=lambda stage: stages.seconds[stage])
    return sum(stages.seconds.values()), f"{longest} {stages.seconds[longest]:.0f} s"


def run(options: argparse.Namespace) -> None:
    files = [MEDIA_PARTS[detect_kind(path)](path=path) for path in options.files]
    unknown = [name for name in options.only or () if name not in REPORTS]
    if unknown:
        raise ValueError(f"--only {unknown[0]} is unknown; choose among {', '.join(REPORTS)}")
    opened = open_model(options.model, lambda step: print(step, file=sys.stderr, flush=True))
    with torch.inference_mode():
        opened.decoder(input_ids=opened.read_text("A few words.").ids[None], use_cache=False)
    print("| report | given | seconds | the longest part |\n|---|---|---:|---|")
    for name, (given, words) in list_inputs(files).items():
        if options.only and name not in options.only:
            continue
        seconds, longest = time_report(opened, name, given)
        print(f"| `{name}` | {words} | {seconds:.0f} | {longest} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a model's folder, name or hub id")
    parser.add_argument("--files", type=Path, nargs="+", required=True, help="media; the report codes wants eight")
    parser.add_argument("--only", nargs="+", help="these reports")
    try:
        run(parser.parse_args(arguments))
    except ValueError as error:
        print(f"bench_inspection: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
