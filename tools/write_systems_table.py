"""Writes the table of published tokenizers into docs/tokenizers.md, from their YAML files and the networks themselves.

    python tools/write_systems_table.py            # writes it
    python tools/write_systems_table.py --check    # status 1 if the page says something else

Every published size is built on the meta device; that takes a minute for all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from unimodal.files import write_text_atomically
from unimodal.tokenizers.configs.facts import collect_facts
from unimodal.tokenizers.configs.registry import PublishedSystem, list_systems, read_system

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tokenizers.md"
BEGIN, END = "<!-- table: python tools/write_systems_table.py -->\n", "<!-- end of table -->\n"
HEADS = ("published system", "parts", "takes", "codes", "bits", "ratio", "parameters", "proof", "licence")


def describe_system(system: PublishedSystem) -> dict[str, str]:
    """The cells of a system by their heads."""
    facts = collect_facts(system)
    settings = system.choose_settings(facts.small)
    note = " (small form)" if facts.small else ""
    return {
        "published system": f"`{system.name}`",
        "parts": ", ".join([f"`{settings['family']}`", *facts.parts]),
        "takes": facts.size + note,
        "codes": facts.codes,
        "bits": "—" if facts.bits is None else f"{facts.bits:,.0f}",
        "ratio": "—" if facts.ratio is None else f"{facts.ratio:,.0f}",
        "parameters": f"{facts.parameters:,}",
        **describe_text(system),
    }


def describe_text(system: PublishedSystem) -> dict[str, str]:
    """The cells that its YAML file says alone: which proofs there are, by their marks, and the licence."""
    marks = [mark for mark in "CDP" if any(count.mark == mark for count in system.parameters)]
    proofs = [*(f"`{name}`" for name in system.reference), *(["count " + ", ".join(marks)] if marks else [])]
    proofs += ["property"] if system.property else []
    return {"proof": "; ".join(proofs) or "none", "licence": system.licence or "—"}


def write_row(cells: dict[str, str]) -> str:
    return "| " + " | ".join(cells[head].replace("|", "¦") for head in HEADS) + " |\n"


def draw_table() -> str:
    head = "| " + " | ".join(HEADS) + " |\n" + "|---" * len(HEADS) + "|\n"
    return head + "".join(write_row(describe_system(read_system(name))) for name in list_systems())


def replace_table(page: str, table: str) -> str:
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} has no {BEGIN.strip()} … {END.strip()}")
    return before + begin + table + end + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare")
    args = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    made = replace_table(page, draw_table())
    if args.check and made != page:
        raise SystemExit("docs/tokenizers.md: the table of systems is old; run python tools/write_systems_table.py")
    if made != page:
        write_text_atomically(PAGE, made)


if __name__ == "__main__":
    main()
