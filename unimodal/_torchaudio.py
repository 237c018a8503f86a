"""Let torchaudio be imported beside a build of torch that its compiled extension was not made for.

PyPI's torchaudio links CUDA: beside a CPU build of torch, `import torchaudio` raises OSError, and transformers then
fails too. All that this project uses of it (resampling, filter banks, Griffin-Lim) is pure Python. `prepare()` puts a
finder before Python's own that knows one module only, `torchaudio._extension`. When that module is imported, the real
one is run; if it cannot load its library, its flags say so (`_IS_…_AVAILABLE = False`) and the import goes on. What
needs the library then raises a RuntimeError with the reason. Nothing is imported before torchaudio itself is.

Without `import unimodal`, transformers loads no model in such an environment. `find_problem` says whether this is one,
and `name_fitting_version` which torchaudio fits; `unimodal doctor` and `tools/fit_torchaudio.py` use them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import NoReturn, ParamSpec, TypeVar

EXTENSION = "torchaudio._extension"
P = ParamSpec("P")
T = TypeVar("T")
_problems: list[str] = []  # why the extension did not load, where it did not


def prepare() -> None:
    """Install the finder; calling it again does nothing."""
    if not any(isinstance(finder, _ExtensionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ExtensionFinder())


def find_problem() -> str | None:
    """Why torchaudio's extension does not load beside this torch; None where it does. Imports both.

    Raises ImportError where there is no torchaudio.
    """
    importlib.import_module("torchaudio")
    return _problems[0] if _problems else None


def name_fitting_version(torch: str, torchaudio: str) -> str:
    """The pip requirement of this torchaudio version in the build of this torch.

    `2.13.0+cpu` and `2.11.1` → `torchaudio==2.11.1+cpu`.
    """
    _, _, build = torch.partition("+")
    version = torchaudio.partition("+")[0]
    return f"torchaudio=={version}+{build}" if build else f"torchaudio=={version}"


class _ExtensionFinder(MetaPathFinder):
    """Finds `torchaudio._extension` where Python does, and wraps its loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != EXTENSION:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _ExtensionLoader(spec.loader)
        return spec


class _ExtensionLoader(Loader):
    """Runs the real module; on failure leaves a module whose flags are False."""

    def __init__(self, real: Loader) -> None:
        self._real = real

    def __getattr__(self, name: str) -> object:  # get_source, get_filename, …: whatever tools ask of a loader
        return getattr(self._real, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        try:
            self._real.exec_module(module)
        except (OSError, ImportError, RuntimeError, AttributeError) as error:
            from unimodal.files import describe_error

            _problems.append(describe_error(error))
            _replace_content(module, _problems[-1])


def _replace_content(module: ModuleType, reason: str) -> None:
    """Make every `_IS_…` flag of `module` False and every `fail_if_no_…` decorator one that raises RuntimeError."""

    def fail(function: Callable[P, T]) -> Callable[P, NoReturn]:
        @functools.wraps(function)
        def raise_reason(*args: P.args, **kwargs: P.kwargs) -> NoReturn:
            raise RuntimeError(
                f"torchaudio's {function.__name__} needs its compiled extension, which did not load ({reason}); "
                "install the torchaudio build that matches this torch"
            )

        return raise_reason

    def find_attribute(name: str) -> object:
        if name.startswith("_IS_"):
            return False
        if name.startswith("fail_if_no_"):
            return fail
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

    for name in [n for n in vars(module) if n.startswith(("_IS_", "fail_if_no_"))]:
        delattr(module, name)  # what the real module had set before it failed
    vars(module)["__getattr__"] = find_attribute
