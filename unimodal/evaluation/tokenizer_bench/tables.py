"""The figures of a bench as tables on the screen: one line a tokenizer or codec, at all of its codes; and of pictures
that are decoded from any number of codes one line a number of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from unimodal.evaluation.tokenizer_bench.settings import DOWNSTREAM, BenchReport

#: the measures of a column, and whether more is better
PICTURE_COLUMNS = ("psnr_db", "ssim", "perceptual_lite0", "distance_lite0", "distance_lite2", "rfid_like_lite2")
#: the measures of pictures that are shown at each number of bytes
RATE_COLUMNS = ("distance_lite0", "distance_lite2")
SOUND_COLUMNS = (
    "bits_per_second", "stoi", "pesq", "mel_distance", "stft_distance", "f0_cents", "voicing_error", "dnsmos",
    "speaker_cosine",
)  # fmt: skip


def list_rates(figures: Mapping[str, object]) -> list[Mapping[str, object]]:
    """The rates of a tokenizer or codec, cheapest first."""
    return cast(list[Mapping[str, object]], figures["rates"])


def read_figure(rate: Mapping[str, object], name: str) -> float | None:
    """The mean of a measure at a rate; None where it was not measured."""
    value = rate.get(name)
    if isinstance(value, Mapping):
        value = value["mean"]
    return float(value) if isinstance(value, (int, float)) else None


def make_table(report: BenchReport) -> str:
    """Tokenizers at their full rate; codecs at the rates of the tokenizers, beside them."""
    if report.part == DOWNSTREAM:
        return _make_downstream_table(report)
    columns = choose_columns(report)
    rows: list[Sequence[str]] = [("", "codes", "bytes", *columns)]
    for label, figures in report.tokenizers.items():
        rows.append(_make_row(label, list_rates(figures)[-1], figures["judges_that_are_its_own_parts"], columns))
    if report.originals:
        known = [read_figure(report.originals, column) for column in columns]
        rows.append(("originals", "", "", *("—" if value is None else f"{value:.4g}" for value in known)))
    full = {round(cast(float, list_rates(figures)[-1]["bytes"]), 3) for figures in report.tokenizers.values()}
    for codec, figures in report.codecs.items():
        for rate in list_rates(figures):
            if rate["budget_bytes"] in full or not rate["budget_bytes"]:  # at no bytes: the first frame of films
                reach = cast(float, rate["within_budget"])
                note = "" if reach == 1 else f" ({reach:.0%} within {rate['budget_bytes']:g})"
                rows.append(_make_row(f"{codec}{note}", rate, (), columns))
    lines = _align(rows)
    note = "* judged by a network that is a part of the tokenizer itself"
    starred = any("*" in cell for row in rows for cell in row)
    judged = "16 kHz" if report.medium == "audio" else f"{report.side} × {report.side}"
    heading = f"{report.medium}: {report.data['items']} items, judged at {judged}"
    missing = [f"{name}: {kind}" for name, kind in report.judges.items() if str(kind).startswith("not measured")]
    return "\n".join([heading, *lines, *([note] if starred else []), *missing, *_list_rate_tables(report)])


def _list_rate_tables(report: BenchReport) -> Iterator[str]:
    """Of pictures, where a tokenizer decodes any number of codes: a measure by bytes, beside what codecs reach with as
    many. In brackets: which share of pictures a codec can code that small, the others being larger."""
    ordered = {label: figures for label, figures in report.tokenizers.items() if len(list_rates(figures)) > 1}
    if report.medium != "image" or not ordered:
        return
    for column in RATE_COLUMNS:
        for label, figures in ordered.items():
            own = cast(Sequence[str], figures["judges_that_are_its_own_parts"])
            star = "*" if any(column.endswith(name) for name in own) else ""
            rows: list[Sequence[str]] = [(f"{column} at bytes", "codes", label, *report.codecs)]
            for rate in list_rates(figures):
                cells = [_write_reach(codec, cast(float, rate["bytes"]), column) for codec in report.codecs.values()]
                value = read_figure(rate, column)
                rows.append((f"{rate['bytes']:g}", f"{rate['codes']:g}", f"{value:.3f}{star}", *cells))
            yield from ("", *_align(rows))


def _write_reach(codec: Mapping[str, object], budget: float, column: str) -> str:
    """A measure of a codec within a number of bytes, with the share of pictures that it can code so small."""
    for rate in list_rates(codec):
        if abs(cast(float, rate["budget_bytes"]) - budget) < 1e-3:
            reach, value = cast(float, rate["within_budget"]), read_figure(rate, column)
            return f"{value:.3f}" + ("" if reach == 1 else f" ({reach:.0%})")
    return "—"


def choose_columns(report: BenchReport) -> tuple[str, ...]:
    """The measures of a table: those of the medium; of sounds also the word errors of each recogniser."""
    if report.medium == "image":
        return (*PICTURE_COLUMNS, *(name for name in ("lpips", "rfid") if _is_measured(report, name)))
    if report.medium == "video":
        return ("bits_per_second", *PICTURE_COLUMNS)
    named = ("utmos",) if _is_measured(report, "utmos") else ()
    return (*SOUND_COLUMNS, *named, *(f"wer_{name}" for name, kind in report.judges.items() if kind == "recogniser"))


def _is_measured(report: BenchReport, name: str) -> bool:
    return any(name in list_rates(figures)[-1] for figures in report.tokenizers.values())


def _make_row(label: str, rate: Mapping[str, object], own: object, columns: Sequence[str]) -> Sequence[str]:
    names = cast(Sequence[str], own)
    codes = rate.get("codes")
    cells = [label, "" if codes is None else f"{codes:g}", f"{rate['bytes']:g}"]
    for column in columns:
        value = read_figure(rate, column)
        star = "*" if any(column.endswith(name) for name in names) else ""
        cells.append("—" if value is None else f"{value:.4g}{star}")
    return cells


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) if number == 0 else cell.rjust(width) for number, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]


def _make_downstream_table(report: BenchReport) -> str:
    """Readers of the codes in per cent, and nats of an item under the small language model."""
    names = ("linear_probe", "nearest_neighbour", "chance")
    modelled = ("tokens_an_item", "uniform_nats", "nats_at_updates", "nats_at_tokens")
    drawn = list(dict.fromkeys(
        name for figures in report.tokenizers.values() for name in _read_part(figures, "model") if "drawn" in name
    ))  # fmt: skip
    rows: list[Sequence[str]] = [("", *names, *modelled, *drawn)]
    notes = []
    for label, figures in report.tokenizers.items():
        probe, model = _read_part(figures, "probe"), _read_part(figures, "model")
        if not probe:
            notes.append(f"{label}: probe {cast(Mapping[str, object], figures['downstream'])['probe']}")
        cells = [f"{100 * cast(float, probe[name]):.1f}%" if name in probe else "—" for name in names]
        cells += [f"{cast(float, model[name]):.4g}" if name in model else "—" for name in (*modelled, *drawn)]
        rows.append((label, *cells))
    heading = f"{report.medium}: codes of {report.data['items']} items, read and modelled"
    return "\n".join([heading, *_align(rows), *notes])


def _read_part(figures: Mapping[str, object], name: str) -> Mapping[str, object]:
    """Figures of the probe or the model; none where they were not measured."""
    found = cast(Mapping[str, object], figures["downstream"]).get(name)
    return found if isinstance(found, Mapping) else {}
