"""Checkpoints as their authors wrote them: flat tensors under their names, from safetensors or, on request, pickles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.ckpt", "*.jit")
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
    files = [source] if source.is_file() else _find_files(source)
    found: dict[str, Tensor] = {}
    for path in files:
        found.update(_read_file(path, pickle, torchscript, roots))
    taken = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
    if not taken:
        raise ValueError(f"{source} has no tensor whose name begins with {prefix}; name another file")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in taken.items()}


def _find_files(folder: Path) -> list[Path]:
    """The weights in a folder, safetensors before all else. ValueError for none, and for several of another kind."""
    for pattern in WEIGHT_FILES:
        files = sorted(folder.glob(pattern))
        if len(files) > 1 and pattern != "*.safetensors":
            raise ValueError(f"{folder} has {len(files)} files {pattern}; name the file to read")
        if files:
            return files
    raise ValueError(f"{folder} has no weights ({', '.join(WEIGHT_FILES)}); name the folder or file of a checkpoint")


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
            raise ValueError(f"{path} is no TorchScript archive ({str(error).splitlines()[0]})") from None
    if path.suffix == ".jit":
        raise ValueError(f"{path} is a TorchScript archive, which holds a program; allow it with torchscript=True")
    if not pickle:
        raise ValueError(f"{path} is a pickle; allow its bare tensors with pickle=True (no code of it is run)")
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch errors of many kinds
        raise ValueError(f"{path} cannot be read as bare tensors ({str(error).splitlines()[0]})") from None
    return _find_tensors(content, path, roots)


def _find_tensors(content: object, path: Path, roots: Sequence[str]) -> Mapping[str, Tensor]:
    """The dictionary of tensors within what was saved."""
    if isinstance(content, Mapping):
        for root in roots:
            if isinstance(content.get(root), Mapping):
                return _find_tensors(content[root], path, roots)
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise ValueError(f"{path} holds no weights under {', '.join(roots)} or at its top")
