"""Reports as text for a terminal and as one HTML page; both from the same sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from unimodal.text.reports.report import Section

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: .5em 0 2em; } th { text-align: left; }
th, td { padding: .15em .9em .15em 0; vertical-align: top; border-bottom: 1px solid #ddd; }
td { font-variant-numeric: tabular-nums; }
td i { display: block; height: .35em; background: #4a7bd0; }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #ddd; } th, td { border-color: #444; } }
"""


def format_value(value: object) -> str:
    """A value as both layouts write it: three places of what is no whole number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def list_rows(section: Mapping[str, object]) -> list[list[str]]:
    """A section as rows of cells; of a table the first row is the heads."""
    tables = {name: value for name, value in section.items() if isinstance(value, Mapping)}
    if not tables:
        return [[name, format_value(value)] for name, value in section.items() if value != []]
    heads = list(dict.fromkeys(str(head) for value in tables.values() for head in value))
    rows = [["", *heads]]
    for name, value in tables.items():
        rows.append([name, *(format_value(value[head]) if head in value else "" for head in heads)])
    return rows


def format_rows(rows: Sequence[Sequence[str]]) -> str:
    """Cells in columns, two spaces between them."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def format_report(report: Mapping[str, Section]) -> str:
    """A report for a terminal."""
    parts = []
    for name, section in report.items():
        rows = list_rows(section)
        if rows:
            indented = "\n".join(f"  {line}" for line in format_rows(rows).splitlines())
            parts.append(f"{name}\n{indented}")
    return "\n\n".join(parts)


def write_html(title: str, report: Mapping[str, Section]) -> str:
    """A report as a page of its own, without scripts; shares, and numbers of a table, have bars."""
    parts = [f"<h1>{escape(title)}</h1>"]
    for name, section in report.items():
        parts.append(f"<h2>{escape(name)}</h2>\n<table>")
        tables = {key: value for key, value in section.items() if isinstance(value, Mapping)}
        if tables:
            heads = list(dict.fromkeys(str(head) for value in tables.values() for head in value))
            most = {head: max(_read_number(value.get(head)) for value in tables.values()) for head in heads}
            parts.append("<tr><th></th>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>")
            for key, value in tables.items():
                cells = "".join(_write_cell(value.get(head, ""), most[head]) for head in heads)
                parts.append(f"<tr><th>{escape(key)}</th>{cells}</tr>")
        else:
            for key, plain in section.items():
                is_share = isinstance(plain, float) and 0 <= plain <= 1
                parts.append(f"<tr><th>{escape(key)}</th>{_write_cell(plain, 1.0 if is_share else 0.0)}</tr>")
        parts.append("</table>")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _read_number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _write_cell(value: object, most: float) -> str:
    share = _read_number(value) / most if most > 0 else 0.0
    bar = f'<i style="width:{10 * min(share, 1):.2f}em"></i>' if share > 0 else ""
    return f"<td>{escape(format_value(value))}{bar}</td>"
