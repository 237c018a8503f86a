"""The one contract of every media tokenizer: media in, integer codes out, and back.

Shapes: B batch, N codes, G codebook groups, T samples or frames.

A tokenizer is an ``nn.Module`` built from a pydantic config. ``encode`` and ``decode`` are batched, padding-invariant
(an item gives the same codes alone and beside longer neighbours) and run under ``inference_mode``. It saves to a folder
of ``config.json`` and ``model.safetensors`` and knows the hash of its weights, which the vocabulary manifest records.

A ``MediaReader`` is for models that read a medium through continuous features: media in, input embeddings out.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from unimodal.tokenizers import SCALE


@dataclass(frozen=True)
class Codes:
    """Integer codes of a batch of media.

    ids: int64 [B, N, G], each in ``[0, codebook_sizes[g])``; the value behind ``mask == False`` is 0.
    mask: bool [B, N], True where a code is real.
    grid: (t, h, w) of the codes if they form a grid, else None.
    order: how the N codes are laid out, e.g. ``"raster"`` or ``"time"``.
    """

    ids: Tensor
    mask: Tensor
    grid: tuple[int, int, int] | None = None
    order: str = "raster"

    def __post_init__(self) -> None:
        if self.ids.dtype != torch.int64 or self.ids.dim() != 3:
            raise ValueError(f"Codes.ids must be int64 [B, N, G]; got {self.ids.dtype} {tuple(self.ids.shape)}")
        if self.mask.dtype != torch.bool or self.mask.shape != self.ids.shape[:2]:
            raise ValueError(f"Codes.mask must be bool {tuple(self.ids.shape[:2])}; got {tuple(self.mask.shape)}")

    def __len__(self) -> int:
        return self.ids.shape[0]

    def row(self, index: int) -> Tensor:
        """The real codes of one item, int64 [n, G]."""
        return self.ids[index][self.mask[index]]

    def to(self, device: torch.device | str) -> Codes:
        return replace(self, ids=self.ids.to(device), mask=self.mask.to(device))

    @staticmethod
    def from_rows(rows: list[Tensor], **layout: Any) -> Codes:
        """Pads a list of int64 [n] or [n, G] to one batch."""
        rows = [row.long().unsqueeze(-1) if row.dim() == 1 else row.long() for row in rows]
        num = max((row.shape[0] for row in rows), default=0)
        ids = torch.zeros(len(rows), num, rows[0].shape[1] if rows else 1, dtype=torch.int64)
        mask = torch.zeros(len(rows), num, dtype=torch.bool)
        for index, row in enumerate(rows):
            ids[index, : row.shape[0]] = row
            mask[index, : row.shape[0]] = True
        return Codes(ids, mask, **layout)


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

        from unimodal.files import atomic_write_bytes, atomic_write_text

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


class MediaTokenizer(StoredModule, ABC):
    """Media ⇄ codes. Subclasses set the class attributes and implement ``encode`` and ``decode``."""

    #: one size per group; a position may use any of them (see ``segments``)
    codebook_sizes: tuple[int, ...]
    #: (block name, count or None for any length) in sequence order: how the vocabulary lays a span out
    segments: tuple[tuple[str, int | None], ...]
    #: block name → number of values, for every block named in ``segments``
    block_sizes: dict[str, int]
    tokens_per_item: int | None = None
    tokens_per_second: float | None = None
    #: True if a prefix of the codes decodes to a coarser result
    ordered: bool = False

    @abstractmethod
    def encode(self, x: Tensor, lengths: Tensor | None = None) -> Codes:
        """x: [B, C, …] float; lengths: int64 [B] samples or frames that are real, None if all are."""

    @abstractmethod
    def decode(self, codes: Codes) -> Tensor:
        """The inverse of ``encode``, up to the loss of quantization: [B, C, …]."""


class MediaReader(StoredModule, ABC):
    """Pictures → what a decoder is fed for them, in place of embedding rows (N of width D for each)."""

    num_features: int  # N
    width: int  # D

    @abstractmethod
    def fit(self, picture: Tensor) -> Tensor:
        """uint8 [3, H, W] → float [3, h, w] in [0, 1], as the reader was trained to see it."""

    @abstractmethod
    def read(self, x: Tensor) -> Tensor:
        """Fitted pictures [B, 3, h, w] → features [B, N, D]."""
