"""Checkpoints as their authors wrote them: flat tensors under their names, from safetensors or, on request, pickles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.ckpt", "*.jit", "*.onnx")
PICKLES = (".bin", ".pth", ".pt", ".ckpt")
#: where authors keep the weights within what they saved; the first that is there holds
ROOTS = ("ema", "model", "state_dict")


def read_authors_weights(
    source: Path, pickle: bool = False, torchscript: bool = False, roots: Sequence[str] = ROOTS, prefix: str = ""
) -> dict[str, Tensor]:
    """The tensors of a file, or of the only weights in a folder, in float32 where they are floating point.

    pickle: read a pickled file, as bare tensors (no code of it is run). torchscript: read a TorchScript archive, which
    holds a program: only its weights are taken, but loading runs its deserialiser. roots: names of a dictionary within
    the file that holds the weights. prefix: kept is what begins so, without it.
    Raises ValueError, in one line, for what is not there, not allowed or damaged.
    """
    found: dict[str, Tensor] = {}
    for path in find_weight_files(source):
        read = _read_file(path, pickle, torchscript, roots)
        twice = sorted(found.keys() & read.keys())
        if twice:
            raise ValueError(f"{source} has several files with a tensor {twice[0]}, {path.name} among them; name one")
        found.update(read)
    taken = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
    if not taken:
        raise ValueError(f"{source} has no tensor whose name begins with {prefix}; name another file")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in taken.items()}


def find_weight_files(source: Path) -> list[Path]:
    """A file of weights, or those in a folder, safetensors before all else. ValueError for none, and for several of
    another kind."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ValueError(f"{source} is not there; name the folder or file of a checkpoint")
    folder = source
    for pattern in WEIGHT_FILES:
        files = sorted(folder.glob(pattern))
        if len(files) > 1 and pattern != "*.safetensors":
            raise ValueError(f"{folder} has {len(files)} files {pattern}; name the file to read")
        if files:
            return files
    raise ValueError(f"{folder} has no weights ({', '.join(WEIGHT_FILES)}); name the folder or file of a checkpoint")


def read_authors_settings(source: Path, root: str) -> Mapping[str, object]:
    """The authors' settings that lie beside the weights in a pickled file, under `root`; no code of it is run.
    Raises ValueError where there are none."""
    path = find_weight_files(source)[0]
    content = _read_pickle(path) if path.suffix in PICKLES else None
    settings = content.get(root) if isinstance(content, Mapping) else None
    if not isinstance(settings, Mapping):
        raise ValueError(f"{path} holds no settings under {root}; name a config of `unimodal tokenizers list`")
    return {str(name): value for name, value in settings.items()}


def _read_file(path: Path, pickle: bool, torchscript: bool, roots: Sequence[str]) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}); download it again") from None
    if torchscript:
        try:
            return torch.jit.load(str(path), map_location="cpu").state_dict()
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0].partition(". ")[0]
            raise ValueError(f"{path} is no TorchScript archive ({reason})") from None
    if path.suffix == ".onnx":
        raise ValueError(f"{path} is an ONNX file, and this system was not released as one; name another")
    if path.suffix == ".jit":
        raise ValueError(f"{path} is a TorchScript archive, which holds a program; allow it with torchscript=True")
    if not pickle:
        raise ValueError(f"{path} is a pickle; allow its bare tensors with pickle=True (no code of it is run)")
    return _find_tensors(_read_pickle(path), path, roots)


def _read_pickle(path: Path) -> object:
    """What was saved, of bare tensors and plain values."""
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:  # its advice is to run the code
        raise ValueError(
            f"{path} is damaged, or holds more than tensors; no code of a checkpoint is run: save its state dict alone"
        ) from None
    except Exception as error:  # zip and torch errors of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise ValueError(f"{path} is damaged ({reason}), or no checkpoint; download it again") from None
    return content


def _find_tensors(content: object, path: Path, roots: Sequence[str]) -> Mapping[str, Tensor]:
    """The dictionary of tensors within what was saved."""
    if isinstance(content, Mapping):
        for root in roots:
            if isinstance(content.get(root), Mapping):
                return _find_tensors(content[root], path, roots)
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if not tensors:  # several dictionaries side by side, joined under their names
            tensors = {
                f"{part}.{name}": value
                for part, inner in content.items()
                if isinstance(inner, Mapping)
                for name, value in inner.items()
                if isinstance(value, Tensor)
            }
        if tensors:
            return tensors
    raise ValueError(f"{path} holds no weights under {', '.join(roots)} or at its top")
