"""A module in a folder: its config, its weights on disk, and the one hash of them that the vocabulary records."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Self, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from unimodal.files import describe_error, read_json, write_bytes_atomically, write_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
#: the version of config.json; files without one are the released form, 0
FORMAT = 1
#: behind the name of a matrix that is stored in 8 bits: the scales of its rows
SCALE = "_scale"
SMALLEST_ROW = 16  # values of a row that has a scale


class TokenizerConfig(BaseModel):
    """Base of every tokenizer's config; ``family`` picks the class at load."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    family: str

    @property
    def can_decode(self) -> bool:
        """False in the config of a tokenizer that only encodes."""
        return True


ConfigT = TypeVar("ConfigT", bound=TokenizerConfig)


class StoredModule(nn.Module):
    """A module of a folder: its config, its weights and their hash."""

    config_class: ClassVar[type[TokenizerConfig]]
    #: how weights are stored; half precision, unless codes must stay those of another library's float32
    stored_dtype: ClassVar[torch.dtype] = torch.float16
    #: how names of weights begin in the module → how they begin on disk, where the two differ
    stored_names: ClassVar[Mapping[str, str]] = {}

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config

    @classmethod
    def to_stored_name(cls, name: str) -> str:
        """The name that a weight of the module is stored and hashed under."""
        prefix = max((start for start in cls.stored_names if name.startswith(start)), key=len, default="")
        return cls.stored_names.get(prefix, "") + name.removeprefix(prefix)

    def collect_stored_state(self) -> dict[str, Tensor]:
        """The weights and persistent buffers by the names that they have on disk, in `stored_dtype`."""
        return {
            self.to_stored_name(name): (tensor.to(self.stored_dtype) if tensor.is_floating_point() else tensor)
            .detach()
            .cpu()
            .contiguous()
            for name, tensor in self.state_dict().items()
        }

    @property
    def sha256(self) -> str:
        """Hash of every weight (name on disk, shape, values in half precision), the same after save and load."""
        return _hash((name, tensor.numpy()) for name, tensor in self.collect_stored_state().items())

    def round_to_half(self) -> Self:
        """Rounds the weights to what is stored on disk, so that codes made now equal codes made after a load."""
        with torch.no_grad():
            for tensor in self.state_dict().values():  # what is stored: parameters and persistent buffers
                if tensor.is_floating_point():
                    tensor.copy_(tensor.to(self.stored_dtype).to(tensor.dtype))
        return self

    def round_to_8_bits(self, in_8_bits: tuple[str, ...]) -> Self:
        """Rounds the weights that `save` would store in 8 bits to what is stored."""
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                if is_stored_in_8_bits(self.to_stored_name(name), tensor, in_8_bits):
                    levels, scale = _round_rows(tensor.to(self.stored_dtype).float())
                    tensor.copy_((levels.float() * scale.float()).half())
        return self

    def take_weights(self, other: StoredModule) -> int:
        """Takes from another tokenizer every weight of the same name and shape; returns how many. ValueError where
        there is none."""
        own, theirs = self.state_dict(), other.state_dict()
        taken = [name for name, value in own.items() if name in theirs and theirs[name].shape == value.shape]
        if not taken:
            raise ValueError(f"{other.config.family} has no weight in common with {self.config.family}")
        self.load_state_dict({**own, **{name: theirs[name] for name in taken}})
        return len(taken)

    def save(self, folder: str | Path, in_8_bits: tuple[str, ...] = ()) -> None:
        """Writes ``config.json`` and ``model.safetensors``; each appears whole or not at all.

        in_8_bits: beginnings of the names of matrices and kernels to store as int8 with a ``…_scale`` for each row, in
        half the room. That rounds them: use the tokenizer as it loads, or `round_to_8_bits` before.
        """
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = self.collect_stored_state()
        for name in [n for n, tensor in state.items() if is_stored_in_8_bits(n, tensor, in_8_bits)]:
            state[name], state[f"{name}{SCALE}"] = _round_rows(state[name].float())
        write_bytes_atomically(folder / WEIGHTS, save(state, metadata={"format": "pt"}))
        self.save_config(folder)

    def save_config(self, folder: str | Path) -> None:
        """Writes ``config.json`` alone, of a folder whose weights are these."""
        _write_fields(Path(folder), self.config.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads what ``save`` wrote, in float32, in eval mode. Raises ValueError, in one line, for anything else."""
        return cls(read_config(cls.config_class, folder)).load_weights(folder)

    def load_weights(self, folder: str | Path) -> Self:
        """Takes the weights in ``folder``, in float32, and goes to eval mode. ValueError where they do not fit."""
        stored = _read_arrays(Path(folder))
        state: dict[str, Tensor] = {}
        for name in self.state_dict():
            array = stored.pop(self.to_stored_name(name), None)
            if array is not None:
                tensor = torch.from_numpy(array)
                state[name] = tensor.float() if tensor.is_floating_point() else tensor
        state.update({name: torch.from_numpy(array) for name, array in stored.items()})  # named in the error
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"the weights in {folder} do not fit its config.json: {reason}") from None
        return self.eval()


def is_stored_in_8_bits(name: str, tensor: Tensor, in_8_bits: tuple[str, ...]) -> bool:
    """Whether a weight has one of these beginnings, and rows that are worth a scale."""
    is_matrix = tensor.is_floating_point() and tensor.dim() > 1 and tensor[0].numel() >= SMALLEST_ROW
    return bool(in_8_bits) and name.startswith(in_8_bits) and is_matrix


def _round_rows(weights: Tensor) -> tuple[Tensor, Tensor]:
    """weights: float32 [R, …] → int8 [R, …] of -127 to 127, and what a level of each row is, float16 [R, 1, …]."""
    rows = tuple(range(1, weights.dim()))
    scale = (weights.abs().amax(rows, keepdim=True) / 127).clamp_min(1e-6).half()
    return (weights / scale.float()).round().clamp(-127, 127).to(torch.int8), scale


def hash_stored(folder: str | Path) -> str:
    """The `sha256` of the module in `folder`, from its weights file alone: no module is built."""
    return _hash(_read_arrays(Path(folder)).items())


# ---- config.json


def read_fields(folder: str | Path) -> dict[str, object]:
    """The fields of a folder's config.json in today's format, without its `format`.

    Raises ValueError, in one line, for a folder without one and for one that a newer version wrote.
    """
    return _read_versioned(Path(folder))[1]


def _read_versioned(folder: Path) -> tuple[int, dict[str, object]]:
    """The format of a config.json, and its fields."""
    path = folder / CONFIG
    if not path.exists():
        raise ValueError(f"{folder} is not a tokenizer folder: {CONFIG} is missing")
    fields = read_json(path)
    version = fields.pop("format", 0)
    if not isinstance(version, int) or not 0 <= version <= FORMAT:
        raise ValueError(f"{path} has format {version!r}; this unimodal reads up to {FORMAT}: install a newer one")
    return version, fields  # formats 0 and 1 have the same fields


def read_config(config_class: type[ConfigT], folder: str | Path) -> ConfigT:
    """The config in a folder. Raises ValueError, in one line, for one that is not of this class."""
    fields = read_fields(folder)
    try:
        return config_class.model_validate(fields)
    except ValidationError as error:
        raise ValueError(
            f"{folder} does not hold a usable tokenizer ({describe_error(error)}); take it from the model again"
        ) from None


def upgrade_config(folder: str | Path) -> bool:
    """Writes a folder's config.json in today's format; False where it has that already. Weights and hash stay."""
    version, fields = _read_versioned(Path(folder))
    if version == FORMAT:
        return False
    _write_fields(Path(folder), fields)
    return True


def _write_fields(folder: Path, fields: Mapping[str, object]) -> None:
    write_json(folder / CONFIG, {"format": FORMAT, **fields})


# ---- model.safetensors


def _read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The stored weights, those in 8 bits back in half precision."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / WEIGHTS
    if not path.is_file():
        raise ValueError(f"{folder} is not a tokenizer folder: {WEIGHTS} is missing")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy or download it again") from None
    for name in [name for name in state if f"{name}{SCALE}" in state]:
        state[name] = (state[name].astype("float32") * state.pop(f"{name}{SCALE}").astype("float32")).astype("float16")
    return state


def _hash(weights: Iterable[tuple[str, np.ndarray]]) -> str:
    digest = hashlib.sha256()
    for name, values in sorted(weights, key=lambda item: item[0]):
        stored = values.astype("float16") if values.dtype.kind == "f" else values
        digest.update(f"{name}{stored.shape}torch.{stored.dtype}".encode())
        digest.update(stored.tobytes())
    return digest.hexdigest()
