"""What a bench leaves: the report as JSON, its table as text and its curves as a picture."""

from __future__ import annotations

from pathlib import Path

from unimodal.evaluation.tokenizer_bench.plots import draw_curves
from unimodal.evaluation.tokenizer_bench.run import BenchReport
from unimodal.evaluation.tokenizer_bench.tables import make_table
from unimodal.files import write_json, write_text_atomically


def write_bench(report: BenchReport, out: Path) -> str:
    """Writes `out`, and beside it the table (.txt) and the curves (.png). Returns the table and what was left out."""
    table = make_table(report)
    write_json(out, report.to_dict())
    write_text_atomically(out.with_suffix(".txt"), table + "\n")
    draw_curves(report, out.with_suffix(".png"))
    left_out = report.data["left_out"]
    assert isinstance(left_out, dict)
    lines = [f"left out: {name}: {why}" for name, why in left_out.items()]
    return "\n".join([table, *lines])
