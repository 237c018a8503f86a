"""What a bench leaves: the report as JSON, its table as text and its curves as a picture."""

from __future__ import annotations

from pathlib import Path

from unimodal.evaluation.tokenizer_bench.plots import draw_curves
from unimodal.evaluation.tokenizer_bench.settings import RECONSTRUCTION, BenchReport
from unimodal.evaluation.tokenizer_bench.tables import make_table
from unimodal.files import read_json, write_json, write_text_atomically


def write_bench(report: BenchReport, out: Path) -> str:
    """Writes `out`, and beside it the table (.txt) and, of decoded pictures, the curves (.png). Returns the table and
    what was left out. Figures of other parts that `out` holds of the same tokenizers on the same data stay."""
    found = report.to_dict()
    if out.is_file():
        _keep_other_parts(found, read_json(out))
    table = make_table(report)
    write_json(out, found)
    write_text_atomically(out.with_suffix(f".{report.part}.txt"), table + "\n")
    if report.part == RECONSTRUCTION:
        draw_curves(report, out.with_suffix(".png"))
    left_out = report.data["left_out"]
    assert isinstance(left_out, dict)
    lines = [f"left out: {why}" if name in why else f"left out: {name}: {why}" for name, why in left_out.items()]
    return "\n".join([table, *lines])


def _keep_other_parts(found: dict[str, object], before: object) -> None:
    """Adds what an earlier report says of the same tokenizers, by their hashes, and of codecs on the same data."""
    if not isinstance(before, dict) or before.get("medium") != found["medium"]:
        return
    tokenizers, earlier = found["tokenizers"], before.get("tokenizers")
    assert isinstance(tokenizers, dict)
    if not isinstance(earlier, dict) or not _have_same_data(found, before):
        return
    for label, figures in tokenizers.items():
        old = earlier.get(label)
        if isinstance(old, dict) and old.get("sha256") == figures["sha256"]:
            tokenizers[label] = {**old, **figures}
    for name in ("codecs", "judges"):
        new, old = found[name], before.get(name)
        if isinstance(new, dict) and isinstance(old, dict):
            found[name] = {**old, **new}
    found["side"] = found["side"] or before.get("side")


def _have_same_data(found: dict[str, object], before: dict[str, object]) -> bool:
    """Whether two reports are of the same items."""
    new, old = found["data"], before.get("data")
    assert isinstance(new, dict)
    return isinstance(old, dict) and new["sha256"] == old.get("sha256")
