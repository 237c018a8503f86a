"""EnCodec (arXiv 2210.13438) and DAC (arXiv 2306.06546): sound ⇄ residual codes.

Each step has one code of every codebook, coarse to fine, as the groups of one step; codes of fewer groups decode to a
coarser sound. Sounds come at the tokenizer's own `sample_rate_hz`.

- EnCodec of 48 kHz scales every second by its loudness and stores that beside the codes; codes alone cannot give it
  back, so it is refused. Those of 24 and 32 kHz have no scales.
- DAC drops the end of a sound that is no whole number of codes: it is filled up with silence, as transformers' feature
  extractor does. Its decoder gives a few samples less than the codes stand for; they are silence.
- EnCodec of 24 kHz only looks back: it codes and decodes piece by piece. DAC and EnCodec of 32 kHz do not.

Shapes: B batch, T samples, N codes, G groups.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from unimodal.tokenizers.parts.streaming import ChainStage, PointwiseStage, Stage
from unimodal.tokenizers.pretrained.base import (
    NetworkConfig,
    NetworkTokenizer,
    build_config,
    check_kind,
    load_reference,
    to_plain_config,
)
from unimodal.tokenizers.pretrained.causal import chain_layers
from unimodal.tokenizers.pretrained.running_books import ENCODEC_BUFFERS, RunningBooks, reset_dac
from unimodal.tokenizers.sounds import SoundCodes
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.base import Reconstruction
from unimodal.tokenizers.systems.sound import ReconstructedSounds

if TYPE_CHECKING:
    from transformers import EncodecConfig

NetworkT = TypeVar("NetworkT", bound=NetworkTokenizer)


class NetworkAudioConfig(NetworkConfig):
    sample_rate_hz: int
    num_codebooks: int = Field(ge=1)


class RunningBooksConfig(NetworkAudioConfig):
    """decay: of the running averages that the books are in training; short trainings want less than 0.99."""

    decay: float = Field(default=0.99, gt=0, lt=1)


class NetworkAudioTokenizer(ReconstructedSounds, NetworkTokenizer, SoundCodes):
    """``encode``: float [B, 1, T] in [-1, 1] → Codes [B, N, G]; ``decode`` → [B, 1, N · samples_per_code]."""

    config: NetworkAudioConfig
    residual = True

    def __init__(self, config: NetworkAudioConfig):
        super().__init__(config)
        with torch.device("cpu"):  # its constants are made now, also where this network is built without storage
            importlib.import_module("torchaudio.compliance.kaldi")

    def describe_equal(self, codebook_size: int, samples_per_code: int) -> None:
        """`describe` of codebooks of one size."""
        self.describe((codebook_size,) * self.config.num_codebooks, samples_per_code, self.config.sample_rate_hz)

    def list_books(self) -> list[RunningBooks]:
        """The residual quantizers whose books are running averages."""
        return []

    def begin_books(self) -> None:
        """For a new network, whose books the first batch begins; called once by each family that has such books."""
        for books in self.list_books():
            books.forget()

    def train(self, mode: bool = True) -> Self:
        """The network stays in eval mode; the books of running averages learn in training."""
        super().train(mode)
        for books in self.list_books():
            for book in books.books:
                book.train(mode)
        return self

    def reconstruct_latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sounds of one length, [B, 1, T] → what is decoded, [B, 1, T'], with gradient, and what quantization adds to
        the loss."""
        raise ValueError(f"{self.config.family} is not trained by a loss of its own; see its source")

    def reconstruct_equal(self, x: Tensor, generator: torch.Generator | None) -> Reconstruction:
        decoded, loss = self.reconstruct_latents(x)
        return Reconstruction(decoded, loss, numbers={"commitment": float(loss.detach())})


# ---- EnCodec


class EncodecTokenizerConfig(RunningBooksConfig):
    family: Literal["encodec"] = "encodec"
    bandwidth: float  # kbit a second: picks the number of codebooks


class EncodecTokenizer(NetworkAudioTokenizer):
    """EnCodec without scales: 24 kHz (75 codes a second), or MusicGen's 32 kHz (50)."""

    config_class: ClassVar[type[TokenizerConfig]] = EncodecTokenizerConfig
    config: EncodecTokenizerConfig

    def __init__(self, config: EncodecTokenizerConfig):
        super().__init__(config)
        from transformers import EncodecConfig, EncodecModel

        settings = build_config(EncodecConfig, config.network)
        _check_encodec(settings)
        self.network = EncodecModel(settings).eval()
        self.begin_books()
        self.describe_equal(settings.codebook_size, settings.hop_length)

    def list_books(self) -> list[RunningBooks]:
        return [RunningBooks(self.network.quantizer.layers, ENCODEC_BUFFERS, self.config.decay)]

    @classmethod
    def from_checkpoint(cls, folder: Path, bandwidth: float | None = None) -> Self:
        """bandwidth: one of the checkpoint's `target_bandwidths`, by default 6 kbit/s or the one next to it."""
        from transformers import EncodecModel

        check_kind(folder, ("encodec",), "EnCodec")
        model = load_reference(EncodecModel, folder)
        _check_encodec(model.config)
        offered = model.config.target_bandwidths
        chosen = min(offered, key=lambda value: abs(value - 6.0)) if bandwidth is None else bandwidth
        if chosen not in offered:
            raise ValueError(f"this EnCodec has no bandwidth {bandwidth}; it has {', '.join(map(str, offered))}")
        config = EncodecTokenizerConfig(
            network=to_plain_config(model.config),
            sample_rate_hz=model.config.sampling_rate,
            num_codebooks=min(
                model.config.num_quantizers, model.quantizer.get_num_quantizers_for_bandwidth(float(chosen))
            ),
            bandwidth=chosen,
        )
        return wrap_network(cls(config), model)

    def encode_equal(self, x: Tensor) -> Tensor:
        codes = self.network.encode(x, bandwidth=self.config.bandwidth).audio_codes  # [1, B, G, N]
        return codes[0].transpose(1, 2)

    def decode_equal(self, ids: Tensor) -> Tensor:
        return self.network.decode(ids.transpose(1, 2)[None], [None]).audio_values

    def reconstruct_latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (books,) = self.list_books()
        values, loss = books.quantize(self.network.encoder(x), self.config.num_codebooks)
        return self.network.decoder(values), loss

    @property
    def can_stream(self) -> bool:
        return bool(self.network.config.use_causal_conv)  # not MusicGen's of 32 kHz

    def open_encoder(self, published: bool) -> Stage:
        def quantize(latents: Tensor) -> Tensor:
            return self.network.quantizer.encode(latents, self.config.bandwidth).permute(1, 2, 0)

        return ChainStage([chain_layers(self.network.encoder.layers), PointwiseStage(quantize, self.make_no_codes())])

    def open_decoder(self, published: bool) -> Stage:
        def look_up(ids: Tensor) -> Tensor:
            return self.network.quantizer.decode(ids.permute(2, 0, 1))

        latents = torch.zeros(1, self.network.config.hidden_size, 0, device=self.network.device)
        return ChainStage([PointwiseStage(look_up, latents), chain_layers(self.network.decoder.layers)])


def _check_encodec(config: EncodecConfig) -> None:
    if config.normalize or config.chunk_length_s is not None:
        raise ValueError(
            "this EnCodec stores a loudness for every chunk beside its codes, which codes alone cannot give back; use "
            "one without, such as facebook/encodec_24khz"
        )
    if config.audio_channels != 1:
        raise ValueError(f"this EnCodec has {config.audio_channels} channels; only mono is supported")


# ---- DAC


class DacTokenizerConfig(NetworkAudioConfig):
    family: Literal["dac"] = "dac"


class DacTokenizer(NetworkAudioTokenizer):
    """DAC: 50 codes a second at 16 kHz, 75 at 24, 86 at 44.1, of up to 12, 32 or 9 codebooks."""

    config_class: ClassVar[type[TokenizerConfig]] = DacTokenizerConfig
    config: DacTokenizerConfig

    def __init__(self, config: DacTokenizerConfig):
        super().__init__(config)
        from transformers import DacConfig, DacModel

        settings = build_config(DacConfig, config.network)
        self.network = DacModel(settings).eval()
        reset_dac(self.network.modules())
        self.describe_equal(settings.codebook_size, settings.hop_length)

    @classmethod
    def from_checkpoint(cls, folder: Path, num_codebooks: int | None = None) -> Self:
        """num_codebooks: the first so many, by default all."""
        from transformers import DacModel

        check_kind(folder, ("dac",), "DAC")
        model = load_reference(DacModel, folder)
        config = DacTokenizerConfig(
            network=to_plain_config(model.config),
            sample_rate_hz=model.config.sampling_rate,
            num_codebooks=choose_codebooks(num_codebooks, model.config.n_codebooks, model.config.n_codebooks),
        )
        return wrap_network(cls(config), model)

    def encode_equal(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.pad(x, (0, -x.shape[-1] % self.samples_per_code))
        codes = self.network.encode(x, n_quantizers=self.config.num_codebooks).audio_codes  # [B, G, N]
        return codes.transpose(1, 2)

    def decode_equal(self, ids: Tensor) -> Tensor:
        return self.network.decode(audio_codes=ids.transpose(1, 2)).audio_values[:, None]

    def reconstruct_latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of both losses are the authors'."""
        x = torch.nn.functional.pad(x, (0, -x.shape[-1] % self.samples_per_code))
        values, _, _, commitment, codebook = self.network.quantizer(
            self.network.encoder(x), n_quantizers=self.config.num_codebooks
        )
        own = self.network.config
        added = own.commitment_loss_weight * commitment + own.codebook_loss_weight * codebook  # of each item
        return self.network.decoder(values), added.mean()


def choose_codebooks(asked: int | None, default: int, most: int) -> int:
    """How many codebooks are used. ValueError for more than there are."""
    if asked is not None and not 1 <= asked <= most:
        raise ValueError(f"num_codebooks is {asked}; this checkpoint has 1 to {most}")
    return default if asked is None else asked


def wrap_network(tokenizer: NetworkT, model: nn.Module) -> NetworkT:
    """The tokenizer with the weights of a model that is read already."""
    tokenizer.network.load_state_dict(model.state_dict())
    return tokenizer.eval()
