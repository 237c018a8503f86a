"""NeuCodec (arXiv 2509.09550): X-Codec 2 whose decoder speaks at 24 kHz; 50 codes a second of 65,536 values.

Its encoder hears 16 kHz. A tokenizer has one rate: ours takes 24 kHz, as it gives, and resamples on the way in.
Features are made by transformers' own extractor, a clip at a time. It adds a sample of silence and fills up the last
code; `audio_codes_mask` then counts whole codes of what was there.

Shapes: B batch, T samples, N codes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from torch import Tensor

from unimodal.tokenizers.pretrained.audio import NetworkAudioConfig, NetworkAudioTokenizer
from unimodal.tokenizers.pretrained.base import build_config, check_kind, load_reference, to_plain_config
from unimodal.tokenizers.pretrained.running_books import reset_maps
from unimodal.tokenizers.stored import TokenizerConfig

if TYPE_CHECKING:
    from transformers import BatchFeature

#: how the names begin of what hears the semantics and stays as it is
HEARD = "semantic_encoder"


class NeucodecTokenizerConfig(NetworkAudioConfig):
    family: Literal["neucodec"] = "neucodec"


class NeucodecTokenizer(NetworkAudioTokenizer):
    """NeuCodec: speech at 24 kHz."""

    config_class: ClassVar[type[TokenizerConfig]] = NeucodecTokenizerConfig
    config: NeucodecTokenizerConfig

    def __init__(self, config: NeucodecTokenizerConfig):
        super().__init__(config)
        from transformers import NeuCodecConfig, NeuCodecFeatureExtractor, NeuCodecModel

        settings = build_config(NeuCodecConfig, config.network)
        self.network = NeuCodecModel(settings).eval()
        reset_maps(module for name, module in self.network.named_modules() if not name.startswith(HEARD))
        self.heard_rate_hz = settings.input_sampling_rate
        self.heard_per_code = settings.encoder_hop_length
        self.features = NeuCodecFeatureExtractor(sampling_rate=self.heard_rate_hz, hop_length=self.heard_per_code)
        self.describe_equal(math.prod(settings.quantization_levels), settings.hop_length)

    @classmethod
    def from_checkpoint(cls, folder: Path) -> Self:
        from transformers import NeuCodecModel

        check_kind(folder, ("neucodec",), "NeuCodec")
        model = load_reference(NeuCodecModel, folder)
        tokenizer = cls(
            NeucodecTokenizerConfig(
                network=to_plain_config(model.config),
                sample_rate_hz=model.config.output_sampling_rate,
                num_codebooks=1,
            )
        )
        tokenizer.network.load_state_dict(model.state_dict())
        return tokenizer.eval()

    def encode_equal(self, x: Tensor) -> Tensor:
        heard = self.resample(x)
        if heard.shape[-1] < self.heard_per_code:
            raise ValueError(
                f"a sound of {x.shape[-1]} samples is shorter than one code; give at least {self.samples_per_code}"
            )
        found = self.network.encode(**self.make_inputs(heard))
        return found.audio_codes[:, 0, : heard.shape[-1] // self.heard_per_code, None].long()

    def resample(self, x: Tensor) -> Tensor:
        """[B, 1, T] → [B, T'] at the rate that the encoder hears."""
        from torchaudio.functional import resample

        heard: Tensor = resample(x[:, 0], self.config.sample_rate_hz, self.heard_rate_hz)
        return heard

    def make_inputs(self, heard: Tensor) -> BatchFeature:
        """What the network's `encode` reads, of sounds [B, T'] of one length; without a gradient to them."""
        sounds = list(heard.detach().cpu().numpy())
        return self.features(sounds, sampling_rate=self.heard_rate_hz, return_tensors="pt").to(heard.device)

    def reconstruct_latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As the network's `forward`; its quantizer passes the gradient straight through and has no loss."""
        found = self.network.encode(**self.make_inputs(self.resample(x)), output_latents=True)
        return self.network.decode(latents=found.latents).audio_values, x.new_zeros(())

    def decode_equal(self, ids: Tensor) -> Tensor:
        return self.network.decode(audio_codes=ids.transpose(1, 2)).audio_values
