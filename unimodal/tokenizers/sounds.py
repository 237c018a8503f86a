"""Sounds of different lengths through networks that see the whole of a sound: those of one length go together.

Padding would change what such a network hears, so an item of a batch is cut to its own length first: it gives the same
codes alone and beside longer neighbours.

Shapes: B batch, T samples, N positions, G groups, D width of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from unimodal.tokenizers.codes import Codes, Latents
from unimodal.tokenizers.interface import CodingOptions, MediaTokenizer
from unimodal.tokenizers.rows import decode_rows, group_by_size


def check_sounds(x: Tensor) -> None:
    """ValueError for what is no batch of sounds of one channel."""
    if x.dim() != 3 or x.shape[1] != 1 or x.shape[2] == 0:
        raise ValueError(f"the audio tokenizer takes [B, 1, T] with T ≥ 1; got {tuple(x.shape)}")


def split_by_length(x: Tensor, lengths: Tensor | None) -> Iterator[tuple[list[int], Tensor]]:
    """A batch [B, 1, T] → for each length, the numbers of its items and their sounds [b, 1, t]."""
    check_sounds(x)
    given = [x.shape[2]] * len(x) if lengths is None else lengths.tolist()
    for length, items in group_by_size(given).items():
        yield items, x[items, :, :length]


def encode_rows(x: Tensor, lengths: Tensor | None, encode: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """What `encode`, [b, 1, t] → [b, n, …], gives for each item of a batch, those of one length together."""
    rows: dict[int, Tensor] = {}
    for items, sounds in split_by_length(x, lengths):
        rows.update(zip(items, encode(sounds.float()), strict=True))
    return [rows[item] for item in range(len(x))]


def join_waves(waves: Sequence[Tensor], lengths: Sequence[int], longest: int) -> Tensor:
    """Sounds [1, t] → [B, 1, longest] in [-1, 1]; each is cut to its length, with silence behind it."""
    out = waves[0].new_zeros(len(waves), 1, longest)
    for into, wave, length in zip(out, waves, lengths, strict=True):
        end = min(wave.shape[-1], length)
        into[:, :end] = wave[..., :end]
    return out.clamp(-1, 1)


class SoundCodes(MediaTokenizer):
    """``encode``: float [B, 1, T] in [-1, 1] → Codes [B, N, G]; ``decode`` → [B, 1, N · samples_per_code].

    A family calls `describe` once and writes `encode_equal` and `decode_equal`. A sound shorter than `fewest_samples`
    is filled up with silence.
    """

    modality: ClassVar[str] = "audio"
    samples_per_code: int
    #: what the network needs at least
    fewest_samples: int = 1

    def describe(self, codebook_sizes: tuple[int, ...], samples_per_code: int, sample_rate_hz: int) -> None:
        """Sets what the contract asks for; called once by each family."""
        self.codebook_sizes = codebook_sizes
        self.segments = (("audio", None),)
        self.samples_per_code = samples_per_code
        self.sample_rate_hz = sample_rate_hz
        self.tokens_per_second = sample_rate_hz / samples_per_code

    def encode_equal(self, x: Tensor) -> Tensor:
        """Sounds of one length, float32 [B, 1, T] → int64 [B, N, G]."""
        raise NotImplementedError(f"{type(self).__name__} writes encode_equal")

    def decode_equal(self, ids: Tensor) -> Tensor:
        """Codes of one length, int64 [B, N, G] → [B, 1, T]. An encoder alone leaves this out."""
        raise ValueError(self.no_decoder)

    def pad_equal(self, x: Tensor, published: bool) -> Tensor:
        """Sounds of one length as the network takes them, [B, 1, T]: overridden where a family pads or cuts them.
        published: by its authors' rule, where ours is another."""
        return pad_samples(x, max(self.fewest_samples, x.shape[-1]))

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        rows = encode_rows(x, lengths, lambda sounds: self.encode_equal(self.pad_equal(sounds, options.published)))
        return Codes.from_rows([row.cpu() for row in rows], order="time").to(x.device)

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        lengths = [count * self.samples_per_code for count in codes.counts]
        return join_waves(decode_rows(codes, self.decode_equal), lengths, codes.ids.shape[1] * self.samples_per_code)


def join_latents(rows: Sequence[Tensor]) -> Latents:
    """Latents [n, D] of different lengths → one batch."""
    longest = max(len(row) for row in rows)
    values = rows[0].new_zeros(len(rows), longest, rows[0].shape[-1])
    mask = torch.zeros(len(rows), longest, dtype=torch.bool, device=values.device)
    for index, row in enumerate(rows):
        values[index, : len(row)] = row
        mask[index, : len(row)] = True
    return Latents(values, mask, order="time")


def pad_samples(x: Tensor, length: int) -> Tensor:
    """Silence behind sounds [B, 1, T] up to a length."""
    return torch.nn.functional.pad(x, (0, max(0, length - x.shape[-1])))
