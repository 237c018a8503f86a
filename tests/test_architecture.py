"""The shape of the code base: who may import whom, how long a file may be, how fast help comes."""

import ast
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tools.draw_architecture import (
    BESIDE,
    FLOORS,
    count_package_arrows,
    draw,
    find_arrows,
    find_package,
    list_imports,
    name_module,
    read_sources,
    replace_drawing,
)

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "unimodal"

NEVER = {("model", "tokenizers"), ("tokenizers", "model")}  # the vocabulary is their only meeting point
MAY_IMPORT = {
    package: {lower for floor in FLOORS[number + 1 :] for lower in floor}
    | {other for one, other in BESIDE if one == package}
    for number, floor in enumerate(FLOORS)
    for package in floor
}
# Modules of the top folder: `import unimodal` prepares torchaudio and names what is loaded when it is asked for.
ROOT_MODULES = {"__init__", "__main__", "_torchaudio", "_version", "config", "files", "released"}

LINE_CAPS = {"unimodal": 400, "recipes": 500, "tests": 600, "tools": 600}
NO_PARTICIPLES = {"embed", "feed", "need", "seed"}  # verbs that end as participles do
CONTRACTS = {"training_loss"}  # a noun that the contract of tokenizers fixes
EMPTY_NAMES = {"util", "utils", "helper", "helpers", "misc", "common"}
HEAVY = {"torch", "torchaudio", "transformers", "tokenizers", "peft", "xformers", "av", "scipy", "numpy", "PIL"}


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@dataclass(frozen=True)
class Facts:
    """What the tests ask of a module: its classes, and its functions that are named by a participle."""

    has_docstring: bool
    classes: tuple[str, ...]
    participles: tuple[str, ...]


@cache  # each file is parsed once for all tests
def read_facts(source: str) -> Facts:
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name not in CONTRACTS:
            is_property = any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
            first = node.name.lstrip("_").split("_")[0]
            if first.endswith(("ed", "ing")) and first not in NO_PARTICIPLES and not is_property:
                found.append(node.name)
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    return Facts(bool(ast.get_docstring(tree)), tuple(classes), tuple(found))


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What in this module's imports breaks the rules, one line each."""
    layer = find_package(module)
    found = []
    for line, name in list_imports(source, module, is_package):
        top = name.split(".")[0]
        if top in {"recipes", "tools", "tests"}:
            found.append(f"{module}:{line} imports {name}: nothing imports a recipe, a tool or a test")
        elif top == "unimodal" and layer:
            other = find_package(name)
            allowed = MAY_IMPORT.get(layer, set()) - {other for one, other in NEVER if one == layer}
            if other in MAY_IMPORT and other != layer and other not in allowed:
                found.append(f"{module}:{line} imports {name}: {layer} may import {sorted(allowed)}")
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module: each is a circle of files, or several that touch."""
    forward: list[str] = []  # in the order of leaving, depth first
    seen: set[str] = set()
    for root in graph:
        stack = [(root, iter(sorted(graph[root])))] if root not in seen else []
        seen.add(root)
        while stack:
            module, rest = stack[-1]
            step = next((name for name in rest if name not in seen), None)
            if step is None:
                forward.append(module)
                stack.pop()
            else:
                seen.add(step)
                stack.append((step, iter(sorted(graph[step]))))
    importers: dict[str, set[str]] = {module: set() for module in graph}
    for module, imported in graph.items():
        for name in imported:
            importers[name].add(module)
    components, placed = [], set()
    for root in reversed(forward):
        component, waiting = [], [root]
        while waiting:
            module = waiting.pop()
            if module not in placed:
                placed.add(module)
                component.append(module)
                waiting += importers[module]
        if len(component) > 1:
            components.append(sorted(component))
    return components


def test_no_files_import_each_other_in_a_circle():
    assert circles(find_arrows(read_sources())) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("unimodal.files", "def f():\n    from unimodal.media import image"),
        ("unimodal.vocabulary.layout", "if TYPE_CHECKING:\n    from unimodal.vocabulary.vocabulary import Vocabulary"),
        ("unimodal.generation.head", "from unimodal.generation.engine import Engine"),
        ("unimodal.compression.plan", "import unimodal.compression.running.executor"),
        ("unimodal.coder.media_coder", "from unimodal.pipeline import load"),
        ("unimodal.vocabulary.vocabulary", "from . import Vocabulary"),
    ],
)
def test_the_circle_check_sees_every_form(module, line):
    modules = read_sources()
    modules[module] += f"\n{line}\n"
    [circle] = circles(find_arrows(modules))
    assert module in circle


def test_contributing_draws_the_house_that_stands():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert replace_drawing(page, draw(count_package_arrows(read_sources()))) == page, (
        "python tools/draw_architecture.py"
    )


def test_every_package_stands_on_a_floor():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages | {"config", "files", "released"} == set(MAY_IMPORT), "name the package in FLOORS"
    assert {path.stem for path in PACKAGE.glob("*.py")} <= ROOT_MODULES, "a module belongs in a package"


def test_imports_follow_the_design():
    found = []
    for path in python_files("unimodal"):
        found += violations(path.read_text(), name_module(path), path.name == "__init__.py")
    assert found == []


def test_the_floors_allow_no_circle_of_packages():
    graph = {package: allowed - {package} for package, allowed in MAY_IMPORT.items()}
    assert circles(graph) == []


def test_model_and_tokenizers_meet_only_in_the_vocabulary():
    """No module of one is reached from the other, along whatever imports."""
    graph = find_arrows(read_sources())

    def reach(start: str) -> set[str]:
        seen, waiting = set(), [module for module in graph if module.split(".")[1:2] == [start]]
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += graph[module]
        return {module.split(".")[1] for module in seen if "." in module}

    assert "tokenizers" not in reach("model") | reach("generation") | reach("training") | reach("objectives")
    assert "model" not in reach("tokenizers") | reach("vocabulary")


@pytest.mark.parametrize(
    ("module", "source", "broken"),
    [
        ("unimodal.model.build", "from unimodal.tokenizers.nano.image import ImageTokenizer", True),
        ("unimodal.model.build", "from unimodal import tokenizers", True),
        ("unimodal.model.build", "from ..tokenizers.nano import image", True),
        ("unimodal.model.build", "def f():\n    import unimodal.tokenizers.nano.image", True),
        ("unimodal.model.build", "import importlib\nimportlib.import_module('unimodal.tokenizers')", True),
        ("unimodal.model.build", "from unimodal.vocabulary import Vocabulary", False),
        ("unimodal.model.build", "from .rows import NewRows", False),
        ("unimodal.model.build", "from unimodal import __version__", False),
        ("unimodal.tokenizers.nano.image", "from unimodal.model.build import build", True),
        ("unimodal.vocabulary", "from unimodal.sequence.document import Document", True),
        ("unimodal.training.loop", "import unimodal.data.mixture", True),
        ("unimodal.sequence.document", "from unimodal.model.rows import NewRows", True),
        ("unimodal.evaluation.asking", "from unimodal.tuning.plan import plan", False),
        ("unimodal.training.loop", "from unimodal.config import Config", False),
        ("unimodal.pipeline.unimodal", "from unimodal.evaluation import suite", True),
        ("unimodal.cli.app", "from unimodal.evaluation import suite", False),
        ("unimodal.cli.app", "from recipes import demo", True),
        ("unimodal", "from unimodal import _torchaudio", False),
    ],
)
def test_the_import_check_sees_every_form(module, source, broken):
    assert bool(violations(source, module)) is broken


def test_nothing_imports_a_recipe_or_a_tool():
    found = []
    for folder in ("recipes", "tools"):
        for path in python_files(folder):
            siblings = {other.stem for other in path.parent.glob("*.py")}  # a script's own folder is on its path
            for line, name in list_imports(path.read_text(), name_module(path)):
                if name.split(".")[0] in siblings | {"recipes", "tools", "tests"}:
                    found.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert found == [], "what two scripts share belongs in the package"


def test_no_file_is_too_long():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for folder in LINE_CAPS
        for path in python_files(folder)
    }
    found = {name: length for name, length in lengths.items() if length > LINE_CAPS[name.split("/")[0]]}
    assert found == {}, f"split them by what they are about; the caps are {LINE_CAPS}"


def test_no_file_has_a_name_that_says_nothing():
    found = [
        str(path.relative_to(ROOT))
        for folder in LINE_CAPS
        for path in (ROOT / folder).rglob("*")
        if path.stem in EMPTY_NAMES and (path.is_dir() or path.suffix == ".py")
    ]
    assert found == []


def test_every_module_says_what_it_is_for():
    found = [
        str(path.relative_to(ROOT))
        for folder in ("unimodal", "recipes", "tools")
        for path in python_files(folder)
        if (source := path.read_text()).strip() and not read_facts(source).has_docstring
    ]
    assert found == [], "a module begins with its idea and, for a published method, its source"


def test_every_script_that_the_makefile_runs_exists():
    words = (ROOT / "Makefile").read_text().split()
    scripts = {word for word in words if word.startswith(("tools/", "recipes/"))}
    assert "recipes/demo.py" in scripts
    assert sorted(script for script in scripts if not (ROOT / script).is_file()) == []


def test_the_notice_names_every_package_that_is_fetched():
    from tools.fetch_data import PACKAGES

    notice = (ROOT / "NOTICE").read_text().split()
    names = {word.strip(",.;:()") for word in notice}
    assert sorted(package.name for package in PACKAGES if package.name not in names) == []


# ---- words ----------------------------------------------------------------------------------------------------------


def test_functions_are_verbs():
    """Functions and methods; properties may be participles."""
    found = {module: names for module, source in read_sources().items() if (names := read_facts(source).participles)}
    assert found == {}, "a function is named by a verb: encode_row for coded, fit_history for fitting"


def test_the_check_of_names_sees_functions_methods_and_closures():
    source = (
        "class A:\n    @property\n    def made(self): ...\n    def told(self): ...\n    async def _coded_row(self): ..."
    )
    assert read_facts(source + "\ndef fit():\n    def fitting(): ...").participles == ("_coded_row", "fitting")


def test_no_two_classes_have_one_name():
    places: dict[str, list[str]] = {}
    for module, source in read_sources().items():
        for name in read_facts(source).classes:
            places.setdefault(name, []).append(module)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}, "one name, one thing"


# ---- start-up -------------------------------------------------------------------------------------------------------

HELP = ["-c", "from unimodal.cli.app import main; main()", "--help"]  # what the `unimodal` script does


def test_help_imports_nothing_heavy():
    """Not even what `$UNIMODAL_PLUGINS` names: here a medium with its tokenizer, which needs torch."""
    environ = {**os.environ, "UNIMODAL_PLUGINS": "tests/points_medium.py"}
    command = [sys.executable, "-X", "importtime", *HELP]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environ)
    assert run.returncode == 0, run.stderr[-2000:]
    imported = {line.split("|")[-1].strip() for line in run.stderr.splitlines() if line.startswith("import time:")}
    assert "unimodal.cli.app" in imported
    assert sorted({name.split(".")[0] for name in imported} & HEAVY) == []


def test_help_starts_in_half_a_second():
    """Best of five in processor time: the wall clock of an idle machine, measurable on a busy one."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = subprocess.run([sys.executable, *HELP], cwd=ROOT, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run.returncode == 0, run.stderr[-2000:]
        assert "chat" in run.stdout and "generate" in run.stdout
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if times[-1] < 0.5:
            break
    assert min(times) < 0.5, f"seconds of each start: {times}"
