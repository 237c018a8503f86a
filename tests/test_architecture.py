"""The shape of the code base: who may import whom (design rules 1-7), how long a file may be, how fast help comes."""

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "unimodal"

# the leaves: they may use each other's types and writers, nothing else of ours
LEAVES = {"config", "files", "media", "vocabulary"}
# layer → the layers it may import; its own modules and the bare package (`unimodal.__version__`) are always allowed.
# `config` and `files` are open to all. A layer that is not listed here fails the test.
MAY_IMPORT = {
    "config": LEAVES,
    "files": set(),
    "media": LEAVES,
    "vocabulary": LEAVES,
    "tokenizers": {"media"},
    "sequence": {"vocabulary"},
    "model": {"vocabulary"},
    "generation": {"model", "vocabulary", "sequence"},
    "compression": {"model", "vocabulary"},
    "data": {"media", "sequence", "vocabulary"},
    "training": set(),  # it sees batches and nn.Modules
    "pipeline": {
        *LEAVES, "tokenizers", "sequence", "model", "generation", "compression", "data", "training",
    },
    "export": {"model", "tokenizers", "vocabulary"},
    # They speak to the model through the pipeline, in the documents and media that everything shares.
    "serve": {"pipeline", "media", "sequence", "vocabulary"},
    "evaluation": {"pipeline", "media", "sequence", "vocabulary", "data"},
}  # fmt: skip
MAY_IMPORT["cli"] = set(MAY_IMPORT)
for allowed in MAY_IMPORT.values():
    allowed.update({"config", "files"})

LINE_CAPS = {"unimodal": 400, "recipes": 500, "tests": 600, "tools": 600}
EMPTY_NAMES = {"util", "utils", "helper", "helpers", "misc", "common"}
HEAVY = {"torch", "torchaudio", "transformers", "tokenizers", "peft", "xformers", "av", "scipy", "numpy", "PIL"}


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


parsed = cache(ast.parse)


def layer_of(module: str) -> str:
    """Layer of a dotted module: `unimodal.media.image` → media; `unimodal.vocabulary_x` belongs to vocabulary."""
    name = module.split(".")[1] if "." in module else ""
    return name if name in MAY_IMPORT else name.split("_")[0]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_in(source: str, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import, at any depth: a lazy import couples as much as an early one.

    `from a import b` gives `a.b`, so that `from unimodal import tokenizers` counts as `unimodal.tokenizers`.
    """
    for node in ast.walk(parsed(source)):
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


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What in this module's imports breaks the rules, one line each."""
    layer = layer_of(module)
    found = []
    for line, name in imports_in(source, module, is_package):
        top = name.split(".")[0]
        if top in {"recipes", "tools", "tests"}:
            found.append(f"{module}:{line} imports {name}: nothing imports a recipe, a tool or a test")
        elif top == "unimodal" and layer:
            other = layer_of(name)
            if other in MAY_IMPORT and other != layer and other not in MAY_IMPORT[layer]:
                found.append(f"{module}:{line} imports {name}: {layer} may import {sorted(MAY_IMPORT[layer])}")
    return found


def test_every_module_belongs_to_a_layer_of_the_design():
    modules = [module_name(path) for path in python_files("unimodal")]
    unknown = [m for m in modules if layer_of(m) and layer_of(m) not in MAY_IMPORT]
    assert unknown == [], "name the layer in MAY_IMPORT, with the layers it may import"


def test_imports_follow_the_design():
    found = []
    for path in python_files("unimodal"):
        found += violations(path.read_text(), module_name(path), path.name == "__init__.py")
    assert found == []


def test_layers_form_no_cycle_above_the_leaves():
    order: list[str] = []
    waiting = {layer: allowed - LEAVES - {layer} for layer, allowed in MAY_IMPORT.items() if layer not in LEAVES}
    while ready := [layer for layer, allowed in waiting.items() if allowed <= {*order}]:
        order += ready
        waiting = {layer: allowed for layer, allowed in waiting.items() if layer not in ready}
    assert waiting == {}


def test_model_and_tokenizers_meet_only_in_the_vocabulary():
    def reachable(layer: str) -> set[str]:
        seen, open_layers = set(), {layer}
        while open_layers:
            seen |= open_layers
            open_layers = set().union(*(MAY_IMPORT[name] for name in open_layers)) - seen
        return seen

    assert "tokenizers" not in reachable("model") | reachable("generation") | reachable("training")
    assert "model" not in reachable("tokenizers")


@pytest.mark.parametrize(
    ("module", "source", "broken"),
    [
        ("unimodal.model.build", "from unimodal.tokenizers.nano.image import ImageTokenizer", True),
        ("unimodal.model.build", "from unimodal import tokenizers", True),
        ("unimodal.model.build", "from ..tokenizers import image", True),
        ("unimodal.model.build", "def f():\n    import unimodal.tokenizers.nano.image", True),
        ("unimodal.model.build", "import importlib\nimportlib.import_module('unimodal.tokenizers')", True),
        ("unimodal.model.build", "from unimodal.vocabulary import Vocabulary", False),
        ("unimodal.model.build", "from .rows import NewRows", False),
        ("unimodal.model.build", "from unimodal import __version__", False),
        ("unimodal.tokenizers.nano.image", "from unimodal.model.build import build", True),
        ("unimodal.vocabulary", "from unimodal.sequence.document import Document", True),
        ("unimodal.training.loop", "import unimodal.data.mixture", True),
        ("unimodal.training.loop", "from unimodal.config import Config", False),
        ("unimodal.pipeline", "from unimodal.evaluation import suite", True),
        ("unimodal.cli", "from unimodal.evaluation import suite", False),
        ("unimodal.cli", "from recipes import demo", True),
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
            for line, name in imports_in(path.read_text(), module_name(path)):
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
        if path.read_text().strip() and not ast.get_docstring(parsed(path.read_text()))
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


# ---- start-up -------------------------------------------------------------------------------------------------------

HELP = ["-c", "from unimodal.cli.app import main; main()", "--help"]  # what the `unimodal` script does


def test_help_imports_nothing_heavy():
    run = subprocess.run([sys.executable, "-X", "importtime", *HELP], cwd=ROOT, capture_output=True, text=True)
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
