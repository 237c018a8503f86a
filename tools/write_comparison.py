"""Writes what `tools/compare_systems.py` measured into docs/tokenizers.md: a table a medium, with the leaders by
measure. Draws the plot of the README.

    python tools/write_comparison.py --collect data/systems   # data/systems/*.json → docs/comparison/*.json, then these
    python tools/write_comparison.py                          # the page and the plot from docs/comparison/*.json
    python tools/write_comparison.py --check                  # status 1 if the page says something else

`docs/comparison/MEDIUM.json` holds, of each system, sizes, steps, seconds and the mean of every measure at its full
rate for each seed; and why those that are missing could not be trained.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from unimodal.files import read_json, write_json, write_text_atomically
from unimodal.tokenizers.configs.compared import CHANGED

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tokenizers.md"
FOLDER = ROOT / "docs" / "comparison"
PLOT = FOLDER / "systems.png"
BEGIN, END = "<!-- tables: python tools/write_comparison.py -->\n", "<!-- end of tables -->\n"
LEADERS = 3
Medium = Literal["image", "audio", "video"]


@dataclass(frozen=True)
class Measure:
    """name: in the report of the bench. title: of its column. more: whether more is better. digits: behind the
    point."""

    name: str
    title: str
    more: bool
    digits: int


PICTURES = (
    Measure("psnr_db", "PSNR, dB", True, 2),
    Measure("ssim", "SSIM", True, 3),
    Measure("perceptual_lite0", "perceptual", False, 3),
    Measure("distance_lite0", "features, lite0", False, 3),
    Measure("distance_lite2", "features, lite2", False, 3),
)
READERS = (
    Measure("linear_probe", "probe", True, 3),
    Measure("nearest_neighbour", "neighbour", True, 3),
)
MEASURES: dict[Medium, tuple[Measure, ...]] = {
    "image": (*PICTURES, Measure("rfid_like_lite2", "rFID-like, lite2", False, 2), *READERS),
    "audio": (
        Measure("mean_squared_error", "error of samples", False, 4),
        Measure("mel_distance", "mel distance", False, 3),
        Measure("stft_distance", "STFT", False, 3),
        Measure("stoi", "STOI", True, 3),
        Measure("pesq", "PESQ", True, 2),
        Measure("f0_cents", "pitch, cents", False, 0),
        Measure("dnsmos", "DNSMOS", True, 2),
        Measure("speaker_cosine", "speaker", True, 3),
        Measure("wer_moonshine", "WER, Moonshine", False, 1),
        Measure("wer_pocketsphinx", "WER, pocketsphinx", False, 1),
        *READERS,
    ),
    "video": PICTURES,
}
#: of the plot; by the error of samples silence is among the best sounds
PLOTTED: dict[Medium, str] = {"image": "psnr_db", "audio": "mel_distance", "video": "psnr_db"}
TITLES: dict[Medium, str] = {"image": "Pictures", "audio": "Sounds", "video": "Films"}
UNITS: dict[Medium, str] = {"image": "bits", "audio": "bits/s", "video": "bits"}
FEW_BITS: dict[Medium, float] = {"image": 100, "audio": 1000, "video": 200}


@dataclass
class System:
    """What is known of a system that was trained. seeds: the measures of each."""

    takes: str
    codes: str
    bits: float | None
    parameters: int
    steps: int
    processor_s: float
    seeds: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Comparison:
    """One file of docs/comparison. missing: system → why it is in no table."""

    medium: Medium
    asked_s: float
    batch: int
    items: int
    probed: int
    systems: dict[str, System]
    missing: dict[str, str]


def collect(folder: Path, medium: Medium) -> Comparison:
    """The files that the comparison wrote, as one without what the page does not show."""
    record = read_json(folder / f"{medium}.json")
    reports = {
        part: read_json(path) if (path := folder / f"{medium}_{part}.json").is_file() else {}
        for part in ("bench", "probe")
    }
    found = Comparison(medium, 0, 0, _count(reports["bench"]), _count(reports["probe"]), {}, {})
    for label, known in record.items():
        assert isinstance(known, dict)
        name = str(known["system"])
        found.asked_s, found.batch = known["asked_s"], known["batch"]
        if known["failed"]:
            found.missing[name] = str(known["failed"])
            continue
        system = found.systems.setdefault(
            name,
            System(known["takes"], known["codes"], known["bits"], known["parameters"], known["steps"],
                   known["processor_s"]),
        )  # fmt: skip
        measured = _read_measures(medium, label, reports)
        held_out = known["held_out"]
        if medium == "audio" and "mean_squared_error" in held_out and "crop_s" not in CHANGED.get(name, {}):
            measured["mean_squared_error"] = float(f"{held_out['mean_squared_error']:.4g}")  # of the same sounds
        if measured or not system.seeds:  # a further seed counts when it has been judged
            system.seeds.append(measured)
    return found


def _count(report: Mapping[str, object]) -> int:
    data = report.get("data")
    return int(str(data["items"])) if isinstance(data, dict) else 0


def _read_measures(medium: Medium, label: str, reports: Mapping[str, Mapping[str, object]]) -> dict[str, float]:
    """The means of a tokenizer at its full rate, and what readers find in its codes, to four digits."""
    values: dict[str, object] = {}
    for report in reports.values():
        tokenizers = report.get("tokenizers")
        figures = tokenizers.get(label, {}) if isinstance(tokenizers, dict) else {}
        rates, downstream = figures.get("rates"), figures.get("downstream")
        values |= rates[-1] if isinstance(rates, list) else {}
        probe = downstream.get("probe") if isinstance(downstream, dict) else None
        values |= probe if isinstance(probe, dict) else {}
    found = {}
    for measure in MEASURES[medium]:
        value = values.get(measure.name)
        value = value["mean"] if isinstance(value, dict) else value
        if isinstance(value, (int, float)):
            found[measure.name] = float(f"{value:.4g}")
    return found


# ---- what the page says


def rank(comparison: Comparison) -> list[str]:
    """Systems by the mean of their places in the measures, best first; where one has no value it stands last."""
    places: dict[str, list[int]] = {name: [] for name in comparison.systems}
    for measure in MEASURES[comparison.medium]:
        for place, name in enumerate(list_leaders(comparison, measure)):
            places[name].append(place)
    return sorted(places, key=lambda name: statistics.fmean(places[name]) if places[name] else len(places))


def list_leaders(comparison: Comparison, measure: Measure) -> list[str]:
    """Systems by a measure, best first, those without one behind."""

    def read(name: str) -> float:
        values = [seed[measure.name] for seed in comparison.systems[name].seeds if measure.name in seed]
        if not values:
            return float("inf")
        return -statistics.fmean(values) if measure.more else statistics.fmean(values)

    return sorted(comparison.systems, key=read)


def write_cell(system: System, measure: Measure) -> str:
    """The mean over seeds, and their range where there are several; a dash for what could not be measured."""
    values = [seed[measure.name] for seed in system.seeds if measure.name in seed]
    if not values:
        return "—"
    mean = f"{statistics.fmean(values):,.{measure.digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {(max(values) - min(values)) / 2:,.{measure.digits}f}"


def draw_table(comparison: Comparison) -> str:
    """The rows of a medium, the leaders in bold; behind it the leaders by measure and what is missing."""
    measures = [
        m for m in MEASURES[comparison.medium] if any(m.name in s.seeds[0] for s in comparison.systems.values())
    ]
    heads = ["system", "takes", "codes", UNITS[comparison.medium], "parameters", "steps", *(m.title for m in measures)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    best = {measure.name: list_leaders(comparison, measure)[0] for measure in measures}
    for name in rank(comparison):
        system = comparison.systems[name]
        cells = [f"`{name}`", system.takes, system.codes, "—" if system.bits is None else f"{system.bits:,.0f}",
                 f"{system.parameters:,}",
                 f"{system.steps:,}"]  # fmt: skip
        for measure in measures:
            cell = write_cell(system, measure)
            cells.append(f"**{cell}**" if best[measure.name] == name else cell)
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    few, unit = FEW_BITS[comparison.medium], UNITS[comparison.medium]
    for measure in measures:
        leaders = [n for n in list_leaders(comparison, measure) if measure.name in comparison.systems[n].seeds[0]]
        cheap = [name for name in leaders if (comparison.systems[name].bits or few + 1) <= few]
        said = ", ".join(f"`{name}`" for name in leaders[:LEADERS])
        lines.append(f"- {measure.title}: {said}" + (f"; at {few:,.0f} {unit} or fewer `{cheap[0]}`" if cheap else ""))
    if comparison.missing:
        lines += ["", "Not in the table:", ""]
        lines += [f"- `{name}`: {why}" for name, why in comparison.missing.items()]
    return "\n".join(lines) + "\n"


def draw_section(comparisons: Sequence[Comparison]) -> str:
    parts = []
    for comparison in comparisons:
        counted = f"{comparison.items} held-out files" if comparison.items else ""
        probed = f", readers on {comparison.probed} files" if comparison.probed else ""
        head = f"### {TITLES[comparison.medium]}, {comparison.asked_s:g} s a system\n\n"
        head += f"Batches of {comparison.batch}; judged on {counted}{probed}.\n\n"
        parts.append(head + draw_table(comparison))
    return "\n" + "\n".join(parts) + "\n"


def replace_section(page: str, section: str) -> str:
    """ValueError for a page without the marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} has no {BEGIN.strip()} … {END.strip()}")
    return before + begin + section + end + after


def load_comparisons() -> list[Comparison]:
    paths = [FOLDER / f"{medium}.json" for medium in MEASURES]
    return [TypeAdapter(Comparison).validate_python(read_json(path)) for path in paths if path.is_file()]


# ---- the plot


def draw_plot(comparisons: Sequence[Comparison], path: Path) -> None:
    """A panel a medium: its measure over bits, the best at so many bits or fewer joined by a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(comparisons), 4.2), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, comparison in zip(figure.subplots(1, len(comparisons), squeeze=False)[0], comparisons, strict=True):
        measure = next(one for one in MEASURES[comparison.medium] if one.name == PLOTTED[comparison.medium])
        sign = -1 if measure.more else 1
        points = [
            (system.bits or 0.0, statistics.fmean(seed[measure.name] for seed in system.seeds), name)
            for name, system in comparison.systems.items()
            if system.bits and all(measure.name in seed for seed in system.seeds)
        ]
        points.sort(key=lambda point: (point[0], sign * point[1]))
        front: list[tuple[float, float, str]] = []
        for point in points:
            if not front or (point[1] > front[-1][1]) == measure.more:
                front.append(point)
        axes.plot([p[0] for p in points], [p[1] for p in points], "o", color="0.65", markersize=4)
        axes.plot([p[0] for p in front], [p[1] for p in front], "-o", color="tab:blue", markersize=5, linewidth=1.2)
        for place, (bits, value, name) in enumerate(front):
            axes.annotate(
                name, (bits, value), xytext=(4, 5 if place % 2 else -10), textcoords="offset points", fontsize=7
            )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel("bits a second" if comparison.medium == "audio" else "bits an item")
        better = "higher" if measure.more else "lower"
        axes.set_title(f"{TITLES[comparison.medium]}: {measure.title} ({better} is better)", fontsize=10)
        axes.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", type=Path, help="the folder that tools/compare_systems.py wrote to")
    parser.add_argument("--check", action="store_true", help="only compare")
    asked = parser.parse_args()
    if asked.collect:
        for medium in MEASURES:
            if (asked.collect / f"{medium}.json").is_file():
                found = TypeAdapter(Comparison).dump_python(collect(asked.collect, medium), mode="json")
                write_json(FOLDER / f"{medium}.json", found, indent=1)
    comparisons = load_comparisons()
    page = PAGE.read_text(encoding="utf-8")
    made = replace_section(page, draw_section(comparisons))
    if asked.check:
        if made != page:
            raise SystemExit("docs/tokenizers.md: the comparison is old; run python tools/write_comparison.py")
        return
    write_text_atomically(PAGE, made)
    draw_plot(comparisons, PLOT)


if __name__ == "__main__":
    main()
