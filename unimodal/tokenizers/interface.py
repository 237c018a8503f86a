"""The one contract of every media tokenizer: media in, integer codes out, and back.

A tokenizer is an ``nn.Module`` built from a pydantic config. It saves to a folder of ``config.json`` and
``model.safetensors`` and knows the hash of its weights, which the vocabulary records. ``encode`` and ``decode`` are
batched and answer row by row: an item gives the same codes alone and beside longer neighbours. Where a published rule
does not (a statistic over the batch, say), ``published=True`` follows that rule.

A family sets the attributes below and writes ``encode_batch`` and ``decode_batch``; the base class checks the arguments
of ``encode`` and ``decode`` against what the family says that it takes, and runs it as `exact` says: the codes of a
medium do not hang on autocast, nor on whether the tokenizer is still in training mode.

- `MediaTokenizer`: media ⇄ `Codes`. `LatentTokenizer`: media ⇄ `Latents`, for continuous bottlenecks.
- `MediaReader`: pictures → features that a decoder is fed in place of embedding rows; no codes, no way back.

Shapes: B batch, N positions, G groups, C channels, D width; items are [C, …]: pictures [3, H, W], sounds [1, T], clips
[3, T, H, W].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import ClassVar, Generic, Literal, Self, TypeVar

import torch
from torch import Tensor

from unimodal.media.registry import MEDIA, FileTarget
from unimodal.tokenizers.codes import Codes, Latents
from unimodal.tokenizers.exact import run_exactly
from unimodal.tokenizers.rows import check_lengths
from unimodal.tokenizers.scale import check_floats, check_scale
from unimodal.tokenizers.stored import StoredModule
from unimodal.tokenizers.streams import StreamLayout
from unimodal.tokenizers.text_settings import TextSettings

FitMode = Literal["pad", "crop", "stretch"]
CodedT = TypeVar("CodedT", Codes, Latents)


@dataclass(frozen=True)
class Condition:
    """What an encoder or a decoder is given beside the medium or its codes: one entry for each of the B items.

    text: B strings. features: float [B, M, D], with features_mask bool [B, M] where some are padding. medium: float
    [B, C, …], such as the frame before.
    """

    text: tuple[str, ...] | None = None
    features: Tensor | None = None
    features_mask: Tensor | None = None
    medium: Tensor | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which of "text", "features" and "medium" are given."""
        given = {"text": self.text, "features": self.features, "medium": self.medium}
        return tuple(name for name, value in given.items() if value is not None)

    def check_rows(self, batch: int) -> None:
        """ValueError unless there is an entry for each of `batch` items."""
        for name, value in (("text", self.text), ("features", self.features), ("medium", self.medium)):
            if value is not None and len(value) != batch:
                raise ValueError(f"the condition has {len(value)} rows of {name} for {batch} items; give one for each")


@dataclass(frozen=True)
class CodingOptions:
    """The checked arguments of ``encode`` and ``decode``; what a family does not take is None here."""

    condition: Condition | None = None
    noise: Tensor | None = None  # [B, …]; drawn where the caller gave none and the family takes it
    steps: int | None = None
    guidance: float | None = None
    published: bool = False


class MediaModule(StoredModule):
    """A stored module of one medium, and what it says of that medium."""

    modality: ClassVar[str]
    #: samples a second of sounds, frames a second of clips, None for media without time
    sample_rate_hz: int | None = None
    frames_per_second: float | None = None
    #: height and width of pictures and frames, None for any; frames that are taken of a clip's file, None for any
    picture_size: tuple[int, int] | None = None
    num_frames: int | None = None

    @property
    def rate(self) -> float | None:
        """Samples or frames a second; None for media without time."""
        return self.frames_per_second if self.sample_rate_hz is None else float(self.sample_rate_hz)

    @property
    def file_target(self) -> FileTarget:
        """The rates and sizes that a file of the medium is read at."""
        return FileTarget(self.sample_rate_hz, self.frames_per_second, self.num_frames, self.picture_size)

    def fit(self, medium: Tensor, mode: FitMode = "pad") -> Tensor:
        """A medium as its file gives it → the same as it is encoded: a uint8 picture [3, H, W] becomes float
        [3, h, w] in [0, 1]; sounds [T] and clips [T, 3, h, w], which are read at the rates and sizes above, stay.

        mode: how a picture of another shape is fitted, where the family leaves that to the model's folder. A family
        with one rule overrides this method. Raises ValueError for a picture where `picture_size` is not a square.
        """
        if medium.dtype != torch.uint8 or medium.dim() != 3:
            return medium
        if self.picture_size is None or self.picture_size[0] != self.picture_size[1]:
            raise ValueError(f"{type(self).__name__} has no square picture_size to fit to; give it a `fit` of its own")
        from unimodal.media.image import fit_image

        return fit_image(medium, self.picture_size[0], mode)


class MediaCodec(MediaModule, ABC, Generic[CodedT]):
    """What tokenizers of codes and of latents share: the arguments of ``encode`` and ``decode``, and their checks."""

    #: what ``encode`` gives and ``decode`` takes
    coded: ClassVar[type[Codes] | type[Latents]]
    #: the kinds of `Condition` that each side reads: "text", "features", "medium"
    encode_conditions: frozenset[str] = frozenset()
    decode_conditions: frozenset[str] = frozenset()
    #: those of them that it can do without
    optional_conditions: frozenset[str] = frozenset()
    #: whether items of several lengths are encoded together; None: those of media with time are, pictures not
    takes_lengths: bool | None = None
    #: of a family that reads features of a text: how many vectors, and of which text model
    text_settings: TextSettings | None = None
    #: what else ``decode`` takes: "noise", "steps", "guidance"
    decode_settings: frozenset[str] = frozenset()
    #: why ``decode`` refuses, of a family whose config says ``can_decode`` False
    no_decoder: str = "this tokenizer only encodes: it has no decoder"

    # ---- what a family writes

    @abstractmethod
    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> CodedT:
        """``encode`` with checked options and lengths; the shape of x is the family's to check."""

    def decode_batch(self, coded: CodedT, options: CodingOptions) -> Tensor:
        """``decode`` with checked options and codes that lie in their blocks; how many an item must have is the
        family's to check. An encoder alone leaves this out."""
        raise ValueError(self.no_decoder)

    def name_text_network(self, network: str) -> None:
        """Sets which text model `text_settings` and the config name, for a family that reads features of a text."""

    def noise_shape(self, num_positions: int) -> tuple[int, ...]:
        """The shape of the noise that one item of so many positions is decoded with; of families that take noise."""
        raise ValueError(f"{type(self).__name__} decodes without noise")

    def training_loss(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
        """x: float [B, C, …] → (scalar loss with gradient, numbers to log): what `recipes/train_tokenizer.py` trains
        by. ValueError for a family that is trained in another way."""
        raise ValueError(f"{self.config.family} is not trained by a loss of its own; see its recipe or its source")

    # ---- what others call

    @property
    def can_decode(self) -> bool:
        """False for a tokenizer that only encodes."""
        return self.config.can_decode

    def encode(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        published: bool = False,
    ) -> CodedT:
        """Media → codes or latents.

        x: float [B, C, …], of any float type; pictures and frames in [0, 1]. lengths: int64 [B], samples or frames
        that are real; None if all are. condition: what the encoder reads beside the medium. published: follow the
        published rule where it is not row by row.
        Raises ValueError for shapes, values and arguments that the family does not take.
        """
        x = self._check_media(x)
        self._check_condition(condition, self.encode_conditions, len(x), "encode")
        if lengths is not None:
            medium = MEDIA.get(self.modality)
            timed = medium is None or "t" in medium.axes
            check_lengths(lengths, x, timed if self.takes_lengths is None else self.takes_lengths, self.config.family)
        with run_exactly(self, x.device):
            return self.encode_batch(x, lengths, CodingOptions(condition, published=published))

    def decode(
        self,
        codes: CodedT,
        condition: Condition | None = None,
        noise: Tensor | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        published: bool = False,
    ) -> Tensor:
        """The inverse of ``encode``, up to the loss of quantization: float [B, C, …].

        condition: what the decoder reads beside the codes. noise: what a generative decoder begins from, as
        ``draw_noise`` gives it; by default that of seed 0 in every row. steps: of a flow or diffusion decoder.
        guidance: how much more a conditional decoder follows the codes or the condition than without them.
        Raises ValueError for codes and arguments that the family does not take.
        """
        if not self.can_decode:
            raise ValueError(self.no_decoder)
        if not isinstance(codes, self.coded):
            advice = "; Codes.whole(ids) makes them of ids [B, N] or [B, N, G]" if self.coded is Codes else ""
            raise ValueError(f"decode takes {self.coded.__name__}, as encode gives them; got a {type(codes).__name__}"
                             f"{advice}")  # fmt: skip
        if min(codes.counts, default=0) < 1:
            raise ValueError("there is an item without codes; give every item at least one")
        self.check_codes(codes)
        self._check_condition(condition, self.decode_conditions, len(codes), "decode")
        given = {"noise": noise, "steps": steps, "guidance": guidance}
        for name, value in given.items():
            if value is not None and name not in self.decode_settings:
                raise ValueError(f"the {self.config.family} tokenizer decodes without {name}; leave it out")
        if steps is not None and steps < 1:
            raise ValueError(f"steps is {steps}; give at least 1")
        if guidance is not None and not (isfinite(guidance) and guidance >= 0):
            raise ValueError(f"guidance {guidance} is not usable; give a number from 0 on")
        with run_exactly(self, codes.mask.device):
            if "noise" in self.decode_settings:
                noise = self.draw_noise(codes, [0] * len(codes)) if noise is None else noise
            return self.decode_batch(codes, CodingOptions(condition, noise, steps, guidance, published))

    def check_codes(self, codes: CodedT) -> None:
        """ValueError for codes that the family cannot have given."""

    def draw_noise(self, codes: CodedT, seeds: Sequence[int]) -> Tensor:
        """Normal noise [B, …] for ``decode``, a seed for each item, 0 past the end of the shorter ones.

        An item's noise depends on its seed and its own length alone. Raises ValueError for a family without noise and
        for another number of seeds.
        """
        if len(seeds) != len(codes):
            raise ValueError(f"{len(seeds)} seeds are given for {len(codes)} items; give one for each")
        rows = [
            torch.randn(self.noise_shape(count), generator=torch.Generator().manual_seed(seed))
            for count, seed in zip(codes.counts, seeds, strict=True)
        ]
        longest = [max(sides) for sides in zip(*(row.shape for row in rows), strict=True)]
        noise = torch.zeros(len(rows), *longest)
        for into, row in zip(noise, rows, strict=True):
            into[tuple(slice(side) for side in row.shape)] = row
        return noise.to(codes.mask.device)

    def _check_media(self, x: Tensor) -> Tensor:
        """Media in float32. ValueError for what is no batch of finite floats on the medium's scale."""
        check_floats(x)
        if not x.numel():
            raise ValueError(f"there is nothing to encode in a tensor of shape {tuple(x.shape)}")
        check_scale(x, self.modality)
        return x.float()

    def _check_condition(self, condition: Condition | None, taken: frozenset[str], batch: int, side: str) -> None:
        if condition is None:
            return
        if not isinstance(condition, Condition):
            raise ValueError(f"the condition is a {type(condition).__name__}; give a Condition(text=…, features=…)")
        for kind in condition.kinds:
            if kind not in taken:
                reads = f"reads {', '.join(sorted(taken))} only" if taken else "takes no condition"
                raise ValueError(f"the {self.config.family} tokenizer {reads} to {side}; leave {kind} out")
        condition.check_rows(batch)


class MediaTokenizer(MediaCodec[Codes]):
    """Media ⇄ codes."""

    coded = Codes
    #: the medium whose tokenizer this one continues, as clips continue the codes of pictures; `load` is given that
    continues: ClassVar[str | None] = None
    #: values of each of the G groups
    codebook_sizes: tuple[int, ...]
    #: (block name, count or None for any length) in the order of the sequence: how the vocabulary lays a span out
    segments: tuple[tuple[str, int | None], ...]
    #: whether `<|frame|>` stands before each of its own segments but the first of a span
    frame_marks: bool = False
    #: positions of an item, of media of one size; or positions a second
    tokens_per_item: int | None = None
    tokens_per_second: float | None = None
    ordered: bool = False  # True if a prefix of the codes decodes to a coarser result
    #: how many codes the shortest prefix has that an ordered tokenizer decodes
    shortest_prefix: int = 1
    #: True if the first of several groups decode by themselves to a coarser result, as residual codes do
    residual: bool = False
    #: how the groups or positions are made of several streams; None for one stream
    streams: StreamLayout | None = None
    #: block name → columns, of blocks whose codes are a picture in raster order
    columns: Mapping[str, int] = {}
    #: block name → levels of each dimension, of blocks whose code is a tuple of scalars (dimension 0 fastest)
    code_levels: Mapping[str, tuple[int, ...]] = {}
    #: blocks whose codes are known items and not values along which neighbours are alike (nearest training pictures)
    exemplar_blocks: frozenset[str] = frozenset()
    code_names: Mapping[str, tuple[str, ...]] = {}  # block name → labels, where its codes stand for labelled things

    @cached_property
    def block_sizes(self) -> dict[str, int]:
        """Block name → number of values, for every block named in ``segments``; set it where they differ."""
        return {name: self.codebook_sizes[0] for name, _ in self.segments}

    def group_sizes(self, block: str) -> tuple[int, ...]:
        """Values of each group of a block: the codebooks where there are several, else the block's own size."""
        return self.codebook_sizes if len(self.codebook_sizes) > 1 else (self.block_sizes[block],)

    @property
    def coarser_groups(self) -> tuple[tuple[int, ...], ...]:
        """Which groups decode by themselves to a coarser result, fewest first, no two of one number: of residual codes
        the first 1, 2, 4, …; overridden by streams that refine each other."""
        every = len(self.codebook_sizes) if self.residual else 0
        return tuple(tuple(range(2**power)) for power in range(16) if 2**power < every)

    def find_groups(self, count: int) -> tuple[int, ...]:
        """Which groups codes of so many groups hold: those of a coarser result, else the first."""
        return next((groups for groups in self.coarser_groups if len(groups) == count), tuple(range(count)))

    def check_codes(self, codes: Codes) -> None:
        """ValueError unless every real code lies in its block. Fewer groups, and fewer positions, are allowed."""
        groups, every = codes.ids.shape[2], len(self.codebook_sizes)
        if not 1 <= groups <= every:
            raise ValueError(f"{self.modality} codes come in {every} groups; got {groups}")
        free, at = max(0, codes.ids.shape[1] - sum(count or 0 for _, count in self.segments)), 0
        for name, count in self.segments:
            place = slice(at, at + (free if count is None else count))
            at = place.stop
            sizes = [self.group_sizes(name)[group] for group in self.find_groups(groups)]
            for ids, size in zip(codes.ids[:, place][codes.mask[:, place]].T, sizes, strict=True):
                if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < size:
                    raise ValueError(f"{name} codes must lie in [0, {size}); got {int(ids.min())}…{int(ids.max())}")

    def code_features(self, block: str, group: int = 0) -> Tensor | None:
        """The vectors of a block's codes, float [size, K] on the CPU, near ones for codes that are alike; None where
        there are none."""
        return None

    @property
    def can_stream(self) -> bool:
        """Whether ``encode_stream`` and ``decode_stream`` are there: of networks that only look back."""
        return False

    def encode_stream(self, pieces: Iterable[Tensor], published: bool = False) -> Iterator[Tensor]:
        """One sound that arrives in pieces of any lengths, float [t] each → its codes int64 [n, G], as soon as they are
        known: together those of ``encode``. The memory does not grow with the sound.

        published: as the authors' own streaming codes it, where that is not what their ``encode`` gives. Raises
        ValueError where `can_stream` is False.
        """
        raise ValueError(f"the {self.config.family} tokenizer needs the whole of a medium; use encode")

    def decode_stream(self, pieces: Iterable[Tensor], published: bool = False) -> Iterator[Tensor]:
        """Codes that arrive in pieces, int64 [n, G] each → sound, float [t] each, as soon as it is known: together
        that of ``decode``. published and errors as of ``encode_stream``."""
        raise ValueError(f"the {self.config.family} tokenizer needs all codes of a medium; use decode")

    def extract_features(self, x: Tensor) -> Tensor | None:
        """Features [B, F] to compare media [B, C, …] by, of a tokenizer with a frozen trunk inside; else None."""
        return None

    @classmethod
    def load(cls, folder: str | Path, continued: MediaTokenizer | None = None) -> Self:
        """Reads what ``save`` wrote.

        continued: the tokenizer of the medium that ``continues`` names, for a family that has one. Raises ValueError,
        in one line, for a folder that is not whole.
        """
        if continued is not None:
            raise ValueError(f"the tokenizer in {folder} continues no other; load it without one")
        return super().load(folder)


class LatentTokenizer(MediaCodec[Latents]):
    """Media ⇄ continuous latents of a fixed width: for autoregressive models with continuous heads."""

    coded = Latents
    width: int  # D
    tokens_per_item: int | None = None
    tokens_per_second: float | None = None

    def check_codes(self, codes: Latents) -> None:
        """ValueError for latents of another width, and for real ones that are not finite."""
        if codes.values.shape[-1] != self.width:
            raise ValueError(f"the {self.config.family} tokenizer has latents of width {self.width}; got those of "
                             f"width {codes.values.shape[-1]}")  # fmt: skip
        if not bool(codes.values[codes.mask].isfinite().all()):
            raise ValueError("the latents hold numbers that are not finite")


class MediaReader(MediaModule, ABC):
    """Pictures → what a decoder is fed for them, in place of embedding rows (N of width D for each)."""

    num_features: int  # N
    width: int  # D

    @abstractmethod
    def read(self, x: Tensor) -> Tensor:
        """Fitted pictures [B, 3, h, w] → features [B, N, D]."""
