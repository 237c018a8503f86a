"""Mimi (Moshi, arXiv 2410.00037): speech at 12.5 codes a second; the first codebook is distilled from speech features.

The network is transformers' own. It only looks back, so that sound is coded and decoded piece by piece. Where the
authors' code (moshi) differs from transformers', ``published=True`` follows theirs:

- A sound that is no whole number of codes: moshi fills it up with silence first, transformers at every convolution, so
  that the last code may differ.
- Streaming: moshi keeps the keys of exactly `sliding_window` steps and writes those of a piece before it reads, so that
  the first steps of a piece look back less far than in one call, once the window is full (after 10 s of the released
  weights). Ours keeps what the whole would see.

Shapes: B batch, T samples, N codes, G groups, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from unimodal.tokenizers.parts.streaming import BlockStage, ChainStage, PointwiseStage, Stage
from unimodal.tokenizers.pretrained.audio import (
    NetworkAudioTokenizer,
    RunningBooksConfig,
    choose_codebooks,
    wrap_network,
)
from unimodal.tokenizers.pretrained.authors import read_authors_weights
from unimodal.tokenizers.pretrained.base import build_config, check_kind, load_reference, to_plain_config
from unimodal.tokenizers.pretrained.causal import MimiTransformerStage, chain_layers, open_layer
from unimodal.tokenizers.pretrained.mimi_names import collect_for_authors, fill_from_authors, read_mimi_config
from unimodal.tokenizers.pretrained.running_books import MIMI_BUFFERS, RunningBooks, reset_maps
from unimodal.tokenizers.sounds import pad_samples
from unimodal.tokenizers.stored import TokenizerConfig

#: what moshi's repositories call Mimi's weights
AUTHORS_FILE = "tokenizer-*.safetensors"


class MimiTokenizerConfig(RunningBooksConfig):
    family: Literal["mimi"] = "mimi"


class MimiTokenizer(NetworkAudioTokenizer):
    """Kyutai's Mimi: 12.5 codes a second at 24 kHz; the first codebook is distilled from speech features."""

    config_class: ClassVar[type[TokenizerConfig]] = MimiTokenizerConfig
    config: MimiTokenizerConfig

    def __init__(self, config: MimiTokenizerConfig):
        super().__init__(config)
        from transformers import MimiConfig, MimiModel

        settings = build_config(MimiConfig, config.network)
        self.network = MimiModel(settings).eval()
        reset_maps(self.network.modules())
        self.begin_books()
        self.describe_equal(settings.codebook_size, settings.frame_size)

    def list_books(self) -> list[RunningBooks]:
        """Those of meaning, and those of sound."""
        quantizer = self.network.quantizer
        both = (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer)
        return [RunningBooks(part.layers, MIMI_BUFFERS, self.config.decay) for part in both]

    @classmethod
    def from_checkpoint(cls, folder: Path, num_codebooks: int | None = None) -> Self:
        """A folder of transformers, or one with moshi's own file (tokenizer-….safetensors). num_codebooks: the first so
        many, by default 8 as in Moshi."""
        from transformers import MimiModel

        own = sorted(folder.glob(AUTHORS_FILE))
        if own:
            return cls.from_authors(read_authors_weights(own[0]), num_codebooks=num_codebooks, source=str(own[0]))
        check_kind(folder, ("mimi",), "Mimi")
        model = load_reference(MimiModel, folder)
        if model.encoder is None or model.decoder is None:
            raise ValueError(f"{folder} holds half of a Mimi; a tokenizer needs its encoder and its decoder")
        most = model.config.num_quantizers
        config = MimiTokenizerConfig(
            network=to_plain_config(model.config),
            sample_rate_hz=model.config.sampling_rate,
            num_codebooks=choose_codebooks(num_codebooks, min(8, most), most),
        )
        return wrap_network(cls(config), model)

    @classmethod
    def from_authors(
        cls,
        weights: Mapping[str, Tensor],
        fields: Mapping[str, object] | None = None,
        num_codebooks: int | None = None,
        source: str = "the checkpoint",
    ) -> Self:
        """A tokenizer with weights under the names of the authors' code. fields: the settings of their loader, by
        default those of the released weights. MisfitError for weights of another network."""
        from transformers import MimiConfig

        settings = MimiConfig(**read_mimi_config(fields or {}))
        most = settings.num_quantizers
        tokenizer = cls(
            MimiTokenizerConfig(
                network=to_plain_config(settings),
                sample_rate_hz=settings.sampling_rate,
                num_codebooks=choose_codebooks(num_codebooks, min(8, most), most),
            )
        )
        fill_from_authors(tokenizer.network, weights, source)
        return tokenizer.eval()

    def collect_authors_state(self) -> dict[str, Tensor]:
        """The weights under the names of the authors' code."""
        return collect_for_authors(self.network)

    def pad_equal(self, x: Tensor, published: bool) -> Tensor:
        return pad_samples(x, -(-x.shape[-1] // self.samples_per_code) * self.samples_per_code) if published else x

    def encode_equal(self, x: Tensor) -> Tensor:
        codes = self.network.encode(x, num_quantizers=self.config.num_codebooks).audio_codes  # [B, G, N]
        return codes.transpose(1, 2)

    def decode_equal(self, ids: Tensor) -> Tensor:
        return self.network.decode(ids.transpose(1, 2)).audio_values

    def reconstruct_latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both quantizers code the same latents, each with maps of its own to the width of the books."""
        quantizer, latents = self.network.quantizer, self.network.encoder(x).latents
        semantic = quantizer.num_semantic_quantizers
        parts = (
            (quantizer.semantic_residual_vector_quantizer, semantic),
            (quantizer.acoustic_residual_vector_quantizer, self.config.num_codebooks - semantic),
        )
        total, losses = torch.zeros_like(latents), []
        for (part, count), books in zip(parts, self.list_books(), strict=True):
            if count:
                narrow = latents if part.input_proj is None else part.input_proj(latents)
                values, loss = books.quantize(narrow, count)
                total = total + (values if part.output_proj is None else part.output_proj(values))
                losses.append(loss * count / self.config.num_codebooks)
        return self.network.decoder(total).audio_values, torch.stack(losses).sum()

    @property
    def can_stream(self) -> bool:
        return bool(self.network.config.use_causal_conv)

    def open_encoder(self, published: bool) -> Stage:
        def quantize(latents: Tensor) -> Tensor:
            return self.network.quantizer.encode(latents, self.config.num_codebooks).permute(1, 2, 0)

        encoder = self.network.encoder
        stages: list[Stage] = [BlockStage(self.samples_per_code)] if published else []
        return ChainStage(
            [
                *stages,
                chain_layers(encoder.encoder_seanet.layers),
                MimiTransformerStage(encoder.encoder_transformer, ring=published),
                open_layer(encoder.downsample),
                PointwiseStage(quantize, self.make_no_codes()),
            ]
        )

    def open_decoder(self, published: bool) -> Stage:
        def look_up(ids: Tensor) -> Tensor:
            return self.network.quantizer.decode(ids.transpose(1, 2))

        decoder = self.network.decoder
        return ChainStage(
            [
                PointwiseStage(look_up, torch.zeros(1, self.network.config.hidden_size, 0, device=self.network.device)),
                open_layer(decoder.upsample),
                MimiTransformerStage(decoder.decoder_transformer, ring=published),
                chain_layers(decoder.decoder_seanet.layers),
            ]
        )
