"""Draws the house: which package of `unimodal` knows which, floor by floor, from the imports of every file.

    python tools/draw_architecture.py            # writes the drawing into CONTRIBUTING.md, as Mermaid
    python tools/draw_architecture.py --check    # status 1 if the drawing there is no longer what the code says
    python tools/draw_architecture.py --table    # every pair: package → packages, with the number of importing files

An arrow leads from a package to one that it imports; an arrow that follows from others (serve → pipeline → media) is
left out. `FLOORS` and `BESIDE` are the rule; `tests/test_architecture.py` holds every import against them.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "unimodal"
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- drawing: python tools/draw_architecture.py -->\n", "<!-- end of drawing -->\n"

# Top to bottom: a package may import those on lower floors, and on its own floor only along the arrows of BESIDE.
FLOORS = (
    ("cli",),
    ("serve", "evaluation", "hub_classes", "tuning"),
    ("pipeline", "corpus"),
    ("export", "coder"),
    ("model_folder",),
    ("data", "generation"),
    ("objectives", "model", "sequence", "compression"),
    ("tokenizers", "training", "vocabulary", "text"),
    ("media",),
    ("config", "released", "files"),
)
BESIDE = {
    ("evaluation", "tuning"),  # suites that train
    ("serve", "evaluation"),  # what an answer came from, shown in the page
    ("objectives", "model"),
    ("compression", "model"),
    ("text", "vocabulary"),
    ("config", "files"),
    ("released", "files"),
}
SAYS = {
    "config": "settings as classes",
    "released": "known checkpoints, and what to do with them",
    "files": "JSON, atomic writes, downloads",
}  # single modules, drawn as rooms too


def name_module(path: Path) -> str:
    """Dotted name of a file; a package's `__init__.py` goes by the package's name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def find_package(module: str) -> str:
    """`unimodal.media.image` → media; "" for the bare package and its private modules."""
    name = module.split(".")[1] if "." in module else ""
    return "cli" if name == "__main__" else "" if name.startswith("_") else name


@cache  # of what was found: the trees themselves would keep millions of objects alive
def list_imports(source: str, module: str, is_package: bool = False) -> tuple[tuple[int, str], ...]:
    """(line, absolute dotted name) of every import, at any depth: a lazy import couples as much as an early one.

    `from a import b` gives `a.b`, so that `from unimodal import tokenizers` counts as `unimodal.tokenizers`.
    """
    return tuple(_walk_imports(source, module, is_package))


def _walk_imports(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                kept = len(parents) - node.level + is_package
                base = ".".join([*parents[:kept], *filter(None, [base])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in (
            getattr(node.func, "id", None),
            getattr(node.func, "attr", None),
        ):
            yield from ((node.lineno, str(name.value)) for name in node.args[:1] if isinstance(name, ast.Constant))


def read_sources() -> dict[str, str]:
    """Dotted name → source of every module of the package."""
    return {name_module(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def find_arrows(modules: Mapping[str, str]) -> dict[str, set[str]]:
    """module → the modules that it imports, at any depth, lazy and TYPE_CHECKING imports counted.

    `from a import b` leads to `a.b` if that is a module and else to `a`; `import a.b` is no arrow to `a/__init__.py`.
    """
    packages = {name_module(path) for path in PACKAGE.rglob("__init__.py")}
    found: dict[str, set[str]] = {}
    for module, source in modules.items():
        found[module] = set()
        for _, name in list_imports(source, module, module in packages):
            target = name if name in modules else name.rpartition(".")[0]
            if target in modules and target != module:
                found[module].add(target)
    return found


def count_package_arrows(modules: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """package → package that it imports → in how many of its files."""
    found: dict[str, dict[str, int]] = {package: {} for floor in FLOORS for package in floor}
    for module, imported in find_arrows(modules).items():
        here = find_package(module)
        for other in {find_package(name) for name in imported} - {here, ""}:
            if here:
                row = found.setdefault(here, {})
                row[other] = row.get(other, 0) + 1
    return found


def drop_implied(graph: Mapping[str, Mapping[str, int]]) -> dict[str, set[str]]:
    """The arrows that no longer way replaces (transitive reduction of a graph without circles)."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [*graph.get(start, {})]
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += graph.get(name, {})
        return seen

    return {
        name: {other for other in row if not any(other in reach(middle) for middle in row if middle != other)}
        for name, row in graph.items()
    }


def say_what(package: str) -> str:
    """The first clause of a package's docstring, in plain characters for a box."""
    path = PACKAGE / package / "__init__.py"
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "") if path.is_file() else ""
    clause = re.split(r"[.:;]( |$)", text.split("\n")[0])[0]
    return SAYS.get(package) or re.sub(r"[`\"<>\[\]]", "", clause)


def draw(graph: Mapping[str, Mapping[str, int]]) -> str:
    """The floors and their arrows as a Mermaid flowchart, in a fenced block."""
    lines = ["```mermaid", "flowchart TB"]
    for number, floor in enumerate(FLOORS):
        lines.append(f"  subgraph floor{number} [ ]")
        lines += [f'    {package}["<b>{package}</b><br/>{say_what(package)}"]' for package in floor]
        lines.append("  end")
    lines += [f"  floor{number} ~~~ floor{number + 1}" for number in range(len(FLOORS) - 1)]  # holds their order
    for package, others in drop_implied(graph).items():
        lines += [f"  {package} --> {other}" for other in sorted(others)]
    return "\n".join([*lines, "```", ""])


def replace_drawing(page: str, drawing: str) -> str:
    """The page with the drawing between its marks. Raises ValueError for a page without them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} has no lines {BEGIN.strip()} and {END.strip()}; put them where the drawing goes")
    return before + begin + drawing + end + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say whether the drawing is up to date")
    parser.add_argument("--table", action="store_true", help="print the packages that each package imports")
    args = parser.parse_args()
    graph = count_package_arrows(read_sources())
    if args.table:
        for package, row in graph.items():
            print(f"{package:13} → {', '.join(f'{name} {count}' for name, count in sorted(row.items())) or 'nothing'}")
        return
    page = PAGE.read_text(encoding="utf-8")
    drawn = replace_drawing(page, draw(graph))
    if args.check and drawn != page:
        sys.exit(f"the drawing in {PAGE.name} is not what the code says; run python tools/draw_architecture.py")
    if not args.check:
        PAGE.write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
