"""X-Codec 2 (arXiv 2502.04128): speech at 16 kHz ⇄ 50 codes a second of one 65,536-value codebook.

A code says what a w2v-BERT hears and how it sounds, quantized together by finite scalar quantization. The features that
the former reads are made by transformers' own feature extractor, a clip at a time. It counts whole codes: the last
samples of a clip, up to 19 ms, have none.

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


class Xcodec2TokenizerConfig(NetworkAudioConfig):
    family: Literal["xcodec2"] = "xcodec2"


class Xcodec2Tokenizer(NetworkAudioTokenizer):
    """X-Codec 2: speech at 16 kHz, 50 codes a second of a 65,536-value codebook."""

    config_class: ClassVar[type[TokenizerConfig]] = Xcodec2TokenizerConfig
    config: Xcodec2TokenizerConfig

    def __init__(self, config: Xcodec2TokenizerConfig):
        super().__init__(config)
        from transformers import Xcodec2Config, Xcodec2FeatureExtractor, Xcodec2Model

        settings = build_config(Xcodec2Config, config.network)
        self.network = Xcodec2Model(settings).eval()
        reset_maps(module for name, module in self.network.named_modules() if not name.startswith(HEARD))
        self.features = Xcodec2FeatureExtractor(sampling_rate=settings.sampling_rate, hop_length=settings.hop_length)
        self.describe_equal(math.prod(settings.quantization_levels), settings.hop_length)

    @classmethod
    def from_checkpoint(cls, folder: Path) -> Self:
        from transformers import Xcodec2Model

        check_kind(folder, ("xcodec2",), "X-Codec 2")
        model = load_reference(Xcodec2Model, folder)
        tokenizer = cls(
            Xcodec2TokenizerConfig(
                network=to_plain_config(model.config), sample_rate_hz=model.config.sampling_rate, num_codebooks=1
            )
        )
        tokenizer.network.load_state_dict(model.state_dict())
        return tokenizer.eval()

    def encode_equal(self, x: Tensor) -> Tensor:
        if x.shape[-1] < self.samples_per_code - 1:
            raise ValueError(
                f"a sound of {x.shape[-1]} samples is shorter than one code; give at least {self.samples_per_code - 1}"
            )
        found = self.network.encode(**self.make_inputs(x))
        num = int(found.audio_codes_mask.sum(-1).max())  # the clips are of one length
        return found.audio_codes[:, 0, :num, None].long()

    def make_inputs(self, x: Tensor) -> BatchFeature:
        """What the network's `encode` reads, of sounds [B, 1, T] of one length; without a gradient to them."""
        sounds = list(x[:, 0].detach().cpu().numpy())
        return self.features(sounds, sampling_rate=self.config.sample_rate_hz, return_tensors="pt").to(x.device)

    def reconstruct_latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As the network's `forward`; its quantizer passes the gradient straight through and has no loss."""
        found = self.network.encode(**self.make_inputs(x), output_latents=True)
        return self.network.decode(latents=found.latents).audio_values, x.new_zeros(())

    def decode_equal(self, ids: Tensor) -> Tensor:
        return self.network.decode(audio_codes=ids.transpose(1, 2)).audio_values
