"""Let torchaudio be imported beside a build of torch that its compiled extension was not made for.

PyPI's torchaudio links CUDA: beside a CPU build of torch, `import torchaudio` raises OSError, and transformers then
fails too. All that this project uses of it (resampling, filter banks, Griffin-Lim) is pure Python. `prepare()` puts a
finder before Python's own that knows one module only, `torchaudio._extension`. When that module is imported, the real
one is run; if it cannot load its library, its flags say so (`_IS_…_AVAILABLE = False`) and the import goes on. What
needs the library then raises a RuntimeError with the reason. Nothing is imported before torchaudio itself is.

Without `import unimodal`, transformers loads no model in such an environment. `find_problem` says whether this is one,
and `name_fitting` which torchaudio fits; `unimodal doctor` and `tools/fit_torchaudio.py` use them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

EXTENSION = "torchaudio._extension"
_problems: list[str] = []  # why the extension did not load, where it did not


def prepare() -> None:
    """Install the finder; calling it again does nothing."""
    if not any(isinstance(finder, _ExtensionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ExtensionFinder())  # type: ignore[arg-type]  # a finder by its one method


def find_problem() -> str | None:
    """Why torchaudio's extension does not load beside this torch; None where it does. Imports both.

    Raises ImportError where there is no torchaudio.
    """
    importlib.import_module("torchaudio")
    return _problems[0] if _problems else None


def name_fitting(torch: str, torchaudio: str) -> str:
    """The requirement of a torchaudio of this version that is built as this torch is: `2.13.0+cpu` and `2.11.1` →
    `torchaudio==2.11.1+cpu`."""
    _, _, build = torch.partition("+")
    version = torchaudio.partition("+")[0]
    return f"torchaudio=={version}+{build}" if build else f"torchaudio=={version}"


class _ExtensionFinder:
    """Finds `torchaudio._extension` where Python does, and wraps its loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != EXTENSION:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _ExtensionLoader(spec.loader)  # type: ignore[assignment]  # a loader by its methods
        return spec


class _ExtensionLoader:
    """Runs the real module; on failure leaves a module whose flags are False."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:  # get_source, get_filename, …: whatever tools ask of a loader
        return getattr(self._real, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        try:
            self._real.exec_module(module)
        except (OSError, ImportError, RuntimeError, AttributeError) as error:
            from unimodal.files import describe_error

            _problems.append(describe_error(error))
            _stand_in(module, _problems[-1])


def _stand_in(module: ModuleType, reason: str) -> None:
    """Answer every `_IS_…` flag of `module` with False and every `fail_if_no_…` decorator with one that raises."""

    def fail(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def unavailable(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(
                f"torchaudio's {function.__name__} needs its compiled extension, which did not load ({reason}); "
                "install the torchaudio build that matches this torch"
            )

        return unavailable

    def missing(name: str) -> Any:
        if name.startswith("_IS_"):
            return False
        if name.startswith("fail_if_no_"):
            return fail
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

    for name in [n for n in vars(module) if n.startswith(("_IS_", "fail_if_no_"))]:
        delattr(module, name)  # what the real module had set before it failed
    vars(module)["__getattr__"] = missing
