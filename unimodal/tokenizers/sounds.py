"""Sounds of different lengths through networks that see the whole of a sound: those of one length go together.

Padding would change what such a network hears, so an item of a batch is cut to its own length first: it gives the same
codes alone and beside longer neighbours.

Shapes: B batch, T samples, N positions, G groups, D width of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from unimodal.tokenizers.codes import Codes, Latents
from unimodal.tokenizers.exact import run_exactly
from unimodal.tokenizers.interface import CodingOptions, MediaTokenizer
from unimodal.tokenizers.parts.streaming import Stage
from unimodal.tokenizers.rows import decode_rows, group_by_size
from unimodal.tokenizers.scale import check_scale


def check_sounds(x: Tensor) -> None:
    """ValueError for what is no batch of sounds of one channel."""
    if x.dim() != 3 or x.shape[1] != 1 or x.shape[2] == 0:
        advice = "; x.mean(1, keepdim=True) of several channels" if x.dim() == 3 and x.shape[1] > 1 else ""
        raise ValueError(f"the audio tokenizer takes [B, 1, T] with T ≥ 1; got {tuple(x.shape)}{advice}")


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


class SoundLengths:
    """How many samples a network takes and gives, by the codes. A sound shorter than `fewest_samples` is filled up with
    silence."""

    samples_per_code: int
    #: what the network needs at least
    fewest_samples: int = 1
    #: a longer sound is coded and decoded in pieces, where the network can stream: memory does not grow with it
    longest_at_once_s: float = 60.0

    def pad_equal(self, x: Tensor, published: bool) -> Tensor:
        """Sounds of one length as the network takes them, [B, 1, T]: overridden where a family pads or cuts them.
        published: by its authors' rule, where ours is another."""
        return pad_samples(x, max(self.fewest_samples, x.shape[-1]))

    def count_samples(self, num_codes: int) -> int:
        """How many samples so many codes stand for."""
        return num_codes * self.samples_per_code


class SoundCodes(SoundLengths, MediaTokenizer):
    """``encode``: float [B, 1, T] in [-1, 1] → Codes [B, N, G]; ``decode`` → [B, 1, N · samples_per_code].

    A family calls `describe` once and writes `encode_equal` and `decode_equal`.
    """

    modality: ClassVar[str] = "audio"

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

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        def encode(sounds: Tensor) -> Tensor:
            pieces = self._cut_long(sounds, -1, 1)
            if len(pieces) == 1 or options.published:
                return self.encode_equal(self.pad_equal(sounds, options.published))
            stage, nothing = self.open_encoder(published=False), sounds[..., :0]
            return join_pieces([*(stage.push(piece) for piece in pieces), stage.push(nothing, last=True)], 1)

        rows = encode_rows(x, lengths, encode)
        return Codes.from_rows([row.cpu() for row in rows], order="time").to(x.device)

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        def decode(ids: Tensor) -> Tensor:
            pieces = self._cut_long(ids, 1, self.samples_per_code)
            if len(pieces) == 1:
                return self.decode_equal(ids)
            stage, nothing = self.open_decoder(published=False), ids[:, :0]
            return join_pieces([*(stage.push(piece) for piece in pieces), stage.push(nothing, last=True)], -1)

        lengths = [self.count_samples(count) for count in codes.counts]
        return join_waves(decode_rows(codes, decode), lengths, self.count_samples(codes.ids.shape[1]))

    def _cut_long(self, x: Tensor, dim: int, samples: int) -> tuple[Tensor, ...]:
        """Steps of so many samples each, whole or, where they are too many and the network can stream, in pieces."""
        at_once = int(self.longest_at_once_s * (self.sample_rate_hz or 1)) // samples
        return x.split(max(1, at_once // 4), dim) if self.can_stream and x.shape[dim] > at_once else (x,)

    # ---- piece by piece

    def open_encoder(self, published: bool) -> Stage:
        """Sound [1, 1, t] → codes int64 [1, n, G], of one stream; of families that can stream."""
        raise NotImplementedError(f"{type(self).__name__} writes open_encoder")

    def open_decoder(self, published: bool) -> Stage:
        """Codes int64 [1, n, G] → sound [1, 1, t], of one stream; of families that can stream."""
        raise NotImplementedError(f"{type(self).__name__} writes open_decoder")

    def encode_stream(self, pieces: Iterable[Tensor], published: bool = False) -> Iterator[Tensor]:
        if not self.can_stream:
            return super().encode_stream(pieces, published)
        checked = (self._check_piece(piece) for piece in pieces)
        return run_pieces(self, self.open_encoder(published), checked, self._make_silence())

    def decode_stream(self, pieces: Iterable[Tensor], published: bool = False) -> Iterator[Tensor]:
        if not self.can_stream or not self.can_decode:
            return super().decode_stream(pieces, published)
        checked = (self._check_codes_piece(piece) for piece in pieces)
        waves = run_pieces(self, self.open_decoder(published), checked, self.make_no_codes())
        return (wave[0].clamp(-1, 1) for wave in waves)

    def make_no_codes(self) -> Tensor:
        """int64 [1, 0, G]"""
        return self._make_silence().new_zeros(1, 0, len(self.codebook_sizes), dtype=torch.int64)

    def _make_silence(self) -> Tensor:
        return next(self.parameters()).new_zeros(1, 1, 0)

    def _check_piece(self, piece: Tensor) -> Tensor:
        """A piece as the network takes it, [1, 1, t]. ValueError for what is no sound."""
        if not isinstance(piece, Tensor) or piece.dim() != 1 or not piece.is_floating_point():
            shape = f"{piece.dtype} {tuple(piece.shape)}" if isinstance(piece, Tensor) else type(piece).__name__
            raise ValueError(f"a piece of a sound is a float tensor [t]; got {shape}")
        check_scale(piece, self.modality)
        return piece[None, None].to(self._make_silence())

    def _check_codes_piece(self, piece: Tensor) -> Tensor:
        """A piece of codes as the network takes it, [1, n, G]. ValueError for what are no codes."""
        if not isinstance(piece, Tensor) or piece.dim() != 2 or piece.dtype != torch.int64:
            shape = f"{piece.dtype} {tuple(piece.shape)}" if isinstance(piece, Tensor) else type(piece).__name__
            raise ValueError(f"a piece of codes is int64 [n, {len(self.codebook_sizes)}]; got {shape}")
        self.check_codes(Codes.whole(piece[None]))
        return piece[None].to(self._make_silence().device)


def join_pieces(pieces: Sequence[Tensor], dim: int) -> Tensor:
    """Pieces of one batch behind each other, without the empty ones, which may have another batch."""
    return torch.cat([piece for piece in pieces if piece.numel()], dim)


def run_pieces(tokenizer: nn.Module, stage: Stage, pieces: Iterable[Tensor], nothing: Tensor) -> Iterator[Tensor]:
    """What a stage of a tokenizer makes of pieces [1, …] and, behind the last, of `nothing`, without the leading 1;
    nothing empty."""

    def push(piece: Tensor, last: bool = False) -> Tensor:
        with run_exactly(tokenizer, nothing.device):  # not over a yield: the caller's code runs there
            return stage.push(piece, last)[0]

    for piece in pieces:
        made = push(piece)
        if made.numel():
            yield made
    made = push(nothing, last=True)
    if made.numel():
        yield made


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
