"""A module in a folder: its config, its weights on disk, and the one hash of them that the vocabulary records."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from unimodal.files import atomic_write_bytes, atomic_write_text

#: behind the name of a matrix that is stored in 8 bits: the scales of its rows
SCALE = "_scale"


class TokenizerConfig(BaseModel):
    """Base of every tokenizer's config; ``family`` picks the class at load."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    family: str


class StoredModule(nn.Module):
    """A module of a folder: its config, its weights and their hash."""

    modality: ClassVar[str]
    config_class: ClassVar[type[TokenizerConfig]]
    #: how weights are stored; half precision, unless codes must stay those of another library's float32
    stored_dtype: ClassVar[torch.dtype] = torch.float16

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config

    @property
    def sha256(self) -> str:
        """Hash of every weight (name, shape, values as half precision), the same after save and load."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            stored = tensor.detach().cpu().contiguous()
            stored = stored.half() if stored.is_floating_point() else stored
            digest.update(f"{name}{tuple(stored.shape)}{stored.dtype}".encode())
            digest.update(stored.numpy().tobytes())
        return digest.hexdigest()

    def round_to_half(self) -> Self:
        """Rounds the weights to what is stored on disk, so that codes made now equal codes made after a load."""
        with torch.no_grad():
            for tensor in self.state_dict().values():  # what is stored: parameters and persistent buffers
                if tensor.is_floating_point():
                    tensor.copy_(tensor.to(self.stored_dtype).to(tensor.dtype))
        return self

    def save(self, folder: str | Path, in_8_bits: tuple[str, ...] = ()) -> None:
        """Writes ``config.json`` and ``model.safetensors`` (``stored_dtype``); each appears whole or not at all.

        in_8_bits: beginnings of the names of matrices to store as int8 with a ``…_scale`` for each row, in half the
        room. That rounds them: use the tokenizer as it loads.
        """
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: (tensor.detach().to(self.stored_dtype) if tensor.is_floating_point() else tensor.detach())
            .cpu()
            .contiguous()
            for name, tensor in self.state_dict().items()
        }
        for name in [n for n, tensor in state.items() if in_8_bits and n.startswith(in_8_bits) and tensor.dim() == 2]:
            scale = (state[name].float().abs().amax(1, keepdim=True) / 127).clamp_min(1e-6).half()  # [R, 1]
            state[f"{name}{SCALE}"] = scale
            state[name] = (state[name].float() / scale.float()).round().clamp(-127, 127).to(torch.int8)
        atomic_write_bytes(folder / "model.safetensors", save(state, metadata={"format": "pt"}))
        atomic_write_text(folder / "config.json", json.dumps(self.config.model_dump(mode="json"), indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads what ``save`` wrote, in float32, in eval mode."""
        return cls._load_with(folder)

    @classmethod
    def _load_with(cls, folder: str | Path, **parts: Any) -> Self:
        from safetensors.torch import load_file

        folder = Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise ValueError(f"{folder} is not a tokenizer folder: {name} is missing")
        tokenizer = cls(cls.config_class.model_validate_json((folder / "config.json").read_text()), **parts)
        stored = load_file(folder / "model.safetensors")
        for name in [name for name in stored if f"{name}{SCALE}" in stored]:
            stored[name] = (stored[name].float() * stored.pop(f"{name}{SCALE}").float()).half()
        state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in stored.items()}
        try:
            tokenizer.load_state_dict(state)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"the weights in {folder} do not fit its config.json: {reason}") from None
        return tokenizer.eval()


def stored_sha256(folder: str | Path) -> str:
    """The `sha256` of the tokenizer in `folder`, from its weights file alone: no module is built."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{folder} is not a tokenizer folder: model.safetensors is missing")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy or download it again") from None
    for name in [name for name in state if f"{name}{SCALE}" in state]:
        state[name] = (state[name].astype("float32") * state.pop(f"{name}{SCALE}").astype("float32")).astype("float16")
    digest = hashlib.sha256()
    for name, values in sorted(state.items()):
        stored = values.astype("float16") if values.dtype.kind == "f" else values
        digest.update(f"{name}{stored.shape}torch.{stored.dtype}".encode())
        digest.update(stored.tobytes())
    return digest.hexdigest()
