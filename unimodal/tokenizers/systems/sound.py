"""What published systems of sounds have in common: lengths, and a reconstruction of items of different lengths.

A family writes ``encode_equal``, ``decode_equal`` and ``reconstruct_equal`` for sounds of one length; see
`unimodal.tokenizers.sounds`.

Shapes: B batch, T samples, N positions, G groups, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from unimodal.tokenizers.codes import Codes, Latents
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.rows import decode_rows, pad_media
from unimodal.tokenizers.sounds import (
    SoundCodes,
    SoundLengths,
    encode_rows,
    join_latents,
    join_waves,
    pad_samples,
    split_by_length,
)
from unimodal.tokenizers.systems.base import (
    ReconstructingModule,
    Reconstruction,
    SystemConfig,
    SystemLatents,
    SystemModule,
    SystemTokenizer,
)


class SoundConfig(SystemConfig):
    sample_rate_hz: int = Field(default=16000, gt=0)


class ReconstructedSounds(ReconstructingModule):
    """A tokenizer of sounds, of codes or of latents, that is trained by what it makes of them."""

    def reconstruct_equal(self, x: Tensor, generator: torch.Generator | None) -> Reconstruction:
        """``reconstruct`` of sounds of one length, float [B, 1, T]; what is decoded may be longer or shorter."""
        raise ValueError(f"the {self.config.family} tokenizer has no decoder to reconstruct by")

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """decoded: [B, 1, T], 0 past the end of an item; loss and numbers are means over the items; mask: of their
        codes."""
        parts = [
            (items, sounds.shape[-1], self.reconstruct_equal(sounds, generator))
            for items, sounds in split_by_length(x, lengths)
        ]
        decoded: dict[int, Tensor] = {}
        ids: dict[int, Tensor] = {}
        features: dict[str, dict[int, Tensor]] = {}
        loss, numbers = x.new_zeros(()), dict.fromkeys(parts[0][2].numbers, 0.0)
        for items, length, made in parts:
            share = len(items) / len(x)
            if made.decoded is not None:
                decoded.update(zip(items, pad_samples(made.decoded[..., :length], x.shape[-1]), strict=True))
            loss = loss + made.loss * share
            for name, value in made.numbers.items():
                numbers[name] += value * share
            if made.ids is not None:
                ids.update(zip(items, made.ids, strict=True))
            for name, values in made.features.items():
                features.setdefault(name, {}).update(zip(items, values, strict=True))
        order = range(len(x))
        codes = Codes.from_rows([ids[item].cpu() for item in order]).to(x.device) if ids else None
        return Reconstruction(
            torch.stack([decoded[item] for item in order]) if decoded else None,
            loss,
            None if codes is None else codes.ids,
            numbers,
            {name: pad_media([rows[item] for item in order]) for name, rows in features.items()},
            None if codes is None else codes.mask,
        )

    def training_loss(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
        """Mean squared error over the samples that are real, and the system's own losses."""
        made = self.reconstruct(x, lengths)
        if made.decoded is None:
            return made.loss, {"loss": float(made.loss.detach()), **made.numbers}
        real = torch.full((len(x),), x.shape[-1]) if lengths is None else lengths
        counted = (torch.arange(x.shape[-1]) < real.cpu()[:, None]).to(x.device)[:, None]
        error = ((made.decoded - x) * counted).square().sum() / counted.sum()
        return error + made.loss, {"mean_squared_error": float(error.detach()), **made.numbers}


class SoundSystem(ReconstructedSounds, SystemModule):
    """A published system of sounds, of codes or of latents."""

    config: SoundConfig


class SoundTokenizer(SoundSystem, SystemTokenizer, SoundCodes):
    """A published system of codes of sounds."""

    def join_values(self, found: Sequence[Tensor], x: Tensor, lengths: Tensor | None) -> Tensor:
        """Where ``reconstruct`` takes sounds of one length together, each lot called the quantizer as often; 0 past the
        end of the shorter ones."""
        lots = [items for items, _ in split_by_length(x, lengths)]
        if len(found[-1]) == len(x):
            return super().join_values(found, x, lengths)
        calls = len(found) // len(lots)
        rows: dict[int, Tensor] = {}
        for number, items in enumerate(lots, 1):
            rows.update(zip(items, found[number * calls - 1], strict=True))
        return pad_media([rows[item] for item in range(len(x))])


class SoundLatents(SoundSystem, SystemLatents, SoundLengths):
    """A published system of continuous latents of sounds: [B, 1, T] ⇄ [B, N, D]."""

    modality: ClassVar[str] = "audio"

    def describe(self, width: int, samples_per_code: int, sample_rate_hz: int) -> None:
        """Sets what the contract asks for; called once by each family."""
        self.width, self.samples_per_code, self.sample_rate_hz = width, samples_per_code, sample_rate_hz
        self.tokens_per_second = sample_rate_hz / samples_per_code

    def encode_equal(self, x: Tensor) -> Tensor:
        """Sounds of one length, float32 [B, 1, T] → float [B, N, D]."""
        raise NotImplementedError(f"{type(self).__name__} writes encode_equal")

    def decode_equal(self, values: Tensor) -> Tensor:
        """Latents of one length, float [B, N, D] → [B, 1, T]."""
        raise ValueError(self.no_decoder)

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Latents:
        return join_latents(
            encode_rows(x, lengths, lambda sounds: self.encode_equal(self.pad_equal(sounds, options.published)))
        )

    def decode_batch(self, coded: Latents, options: CodingOptions) -> Tensor:
        lengths = [self.count_samples(count) for count in coded.counts]
        return join_waves(decode_rows(coded, self.decode_equal), lengths, self.count_samples(coded.values.shape[1]))
