"""Reference files: weights, inputs and outputs of the authors' own code at a tiny size, which no file here carries.

`$UNIMODAL_REFERENCE_FILES` names their folder; a test that needs one is skipped, saying so, where it is not set. Tests
open files by the fixture `open_reference` alone: a run of all tests names the files that passed none, and fails.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # tests of the light modules do not pay for the import of torch
    from torch import Tensor

    from unimodal.tokenizers import Codes, MediaTokenizer

VARIABLE = "UNIMODAL_REFERENCE_FILES"
STATE, PROPERTY = "state.", "reference"
#: folders of reference files whose systems are all here
KINDS = ("visual", "audio")


@dataclass(frozen=True)
class Reference:
    """One file. weights: the authors' state dict, by their names. tensors: inputs and outputs. facts: the .json."""

    name: str
    weights: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def config(self) -> dict[str, Any]:
        """The authors' config."""
        return self.facts["config"]

    def check_close(self, name: str, ours: Tensor, atol: float = 5e-5, rtol: float = 1e-4) -> None:
        """Our output is the authors' to the tolerance that the file names."""
        import torch

        torch.testing.assert_close(
            ours.float(), self.tensors[name], atol=atol, rtol=rtol, msg=lambda text: f"{self.name} {name}: {text}"
        )

    def check_equal(self, name: str, ours: Tensor) -> None:
        """Our codes are the authors' exactly."""
        theirs = self.tensors[name]
        assert ours.shape == theirs.shape, f"{self.name} {name}: {tuple(ours.shape)} for {tuple(theirs.shape)}"
        differing = int((ours.long() != theirs.long()).sum())
        assert differing == 0, f"{self.name} {name}: {differing} of {theirs.numel()} differ"


def find_reference_folder() -> Path | None:
    """The folder of reference files, if the variable names one. ValueError for one that is not there."""
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    folder = Path(named)
    if not folder.is_dir():
        raise ValueError(f"${VARIABLE} names {named}, which is no folder")
    return folder


def read_reference(folder: Path, name: str) -> Reference:
    """A reference file such as "visual/titok"."""
    from safetensors.torch import load_file

    tensors = load_file(folder / f"{name}.safetensors")
    facts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    weights, outputs = {}, {}
    for key, tensor in tensors.items():
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        (weights if key.startswith(STATE) else outputs)[key.removeprefix(STATE)] = tensor
    return Reference(name, weights, outputs, facts)


class References:
    """Which reference files passed a test; a whole run that leaves one out fails and names it."""

    def __init__(self) -> None:
        self.passed: set[str] = set()

    def pytest_configure(self, config):
        folder = find_reference_folder()
        if folder is not None:
            os.environ[VARIABLE] = str(folder.resolve())  # tests change the working directory

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            self.passed.update(value for key, value in report.user_properties if key == PROPERTY)

    def pytest_sessionfinish(self, session):
        folder, option = find_reference_folder(), session.config.option
        partial = option.keyword or option.markexpr or session.config.args != session.config.getini("testpaths")
        if folder is None or partial or os.environ.get("PYTEST_XDIST_WORKER"):
            return
        names = {f"{kind}/{path.stem}" for kind in KINDS for path in (folder / kind).glob("*.safetensors")}
        self.left_out = sorted(names - self.passed)
        if self.left_out and session.exitstatus == 0:
            session.exitstatus = 1

    def pytest_terminal_summary(self, terminalreporter):
        left_out = getattr(self, "left_out", None)
        if left_out is not None:
            said = f"{len(self.passed)} reference files of the authors' code passed a test"
            terminalreporter.write_line(said + (f"; no test passed {', '.join(left_out)}" if left_out else ""))


def encode_beyond_range(tokenizer: MediaTokenizer, x: Tensor) -> Codes:
    """The codes of a reference file's input, whose random numbers are no picture in [0, 1]: past the check of that."""
    import torch

    from unimodal.tokenizers.interface import CodingOptions

    with torch.inference_mode():
        return tokenizer.encode_batch(x, None, CodingOptions())
