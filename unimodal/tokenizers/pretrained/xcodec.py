"""X-Codec (arXiv 2408.17175) and Higgs Audio v2: residual codes of what a HuBERT hears and of how it sounds.

Sounds are filled up with silence to whole codes, as transformers' feature extractor does.

Shapes: B batch, T samples, N codes, G groups.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from unimodal.tokenizers.pretrained.audio import NetworkAudioTokenizer, RunningBooksConfig, wrap_network
from unimodal.tokenizers.pretrained.base import build_config, check_kind, load_reference, to_plain_config
from unimodal.tokenizers.pretrained.running_books import ENCODEC_BUFFERS, RunningBooks, reset_dac
from unimodal.tokenizers.sounds import pad_samples
from unimodal.tokenizers.stored import TokenizerConfig

if TYPE_CHECKING:
    from transformers import XcodecConfig, XcodecModel


class SemanticAcousticConfig(RunningBooksConfig):
    bandwidth: float  # kbit a second: picks the number of codebooks


class SemanticAcousticTokenizer(NetworkAudioTokenizer):
    """What both share."""

    config: SemanticAcousticConfig
    #: what it is called in messages, and the `model_type` of its checkpoints
    title: ClassVar[str]
    model_type: ClassVar[str]

    def __init__(self, config: SemanticAcousticConfig):
        super().__init__(config)
        settings_class, model_class = self.find_classes()
        settings = build_config(settings_class, config.network)
        self.network = model_class(settings).eval()
        for part in (self.network.acoustic_encoder, self.network.acoustic_decoder):
            reset_dac(part.modules())
        self.begin_books()
        self.describe_equal(settings.codebook_size, settings.hop_length)

    def list_books(self) -> list[RunningBooks]:
        return [RunningBooks(self.network.quantizer.quantizers, ENCODEC_BUFFERS, self.config.decay)]

    @classmethod
    def find_classes(cls) -> tuple[type[XcodecConfig], type[XcodecModel]]:
        """transformers' classes of the config and the network; Higgs' have the same parts."""
        raise NotImplementedError

    @classmethod
    def from_checkpoint(cls, folder: Path, bandwidth: float | None = None) -> Self:
        """bandwidth: one of the checkpoint's `target_bandwidths`, by default the largest."""
        check_kind(folder, (cls.model_type,), cls.title)
        model = load_reference(cls.find_classes()[1], folder)
        chosen = choose_bandwidth(list(model.config.target_bandwidths), bandwidth, cls.title)
        config = cls.config_class.model_validate(
            {
                "network": to_plain_config(model.config),
                "sample_rate_hz": model.config.sample_rate,
                "num_codebooks": model.quantizer.get_num_quantizers_for_bandwidth(chosen),
                "bandwidth": chosen,
            }
        )
        assert isinstance(config, SemanticAcousticConfig)
        return wrap_network(cls(config), model)

    def pad_equal(self, x: Tensor, published: bool) -> Tensor:
        return pad_samples(x, x.shape[-1] + -x.shape[-1] % self.samples_per_code)

    def encode_equal(self, x: Tensor) -> Tensor:
        codes = self.network.encode(x, bandwidth=self.config.bandwidth).audio_codes  # [B, G, N]
        return codes.transpose(1, 2)

    def decode_equal(self, ids: Tensor) -> Tensor:
        return self.network.decode(ids.transpose(1, 2)).audio_values

    def reconstruct_latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `encode` and `decode` of the network, with the gradient straight through the codes; the loss is the
        commitment. What hears the semantics stays frozen."""
        network, whole = self.network, self.pad_equal(x, False)
        heard = network.encoder_semantic(network._extract_semantic_features(whole).detach().transpose(1, 2))
        margin = network.pad
        acoustic = network.acoustic_encoder(whole)
        if acoustic.shape[-1] != heard.shape[-1]:
            acoustic = network.acoustic_encoder(pad(whole, (margin, margin)))
        z = network.fc(torch.cat([acoustic, heard], dim=1).transpose(1, 2)).transpose(1, 2)  # [B, D, N]
        (books,) = self.list_books()
        values, loss = books.quantize(z, self.config.num_codebooks)
        return network.acoustic_decoder(network.fc2(values.transpose(1, 2)).transpose(1, 2)), loss


def choose_bandwidth(offered: list[float], asked: float | None, what: str) -> float:
    """The bandwidth that was asked for, by default the largest. ValueError for one that is not offered."""
    chosen = max(offered) if asked is None else asked
    if chosen not in offered:
        raise ValueError(f"this {what} has no bandwidth {asked}; it has {', '.join(map(str, offered))}")
    return chosen


class XcodecTokenizerConfig(SemanticAcousticConfig):
    family: Literal["xcodec"] = "xcodec"


class XcodecTokenizer(SemanticAcousticTokenizer):
    """X-Codec: 50 codes a second at 16 kHz, of 1 to 8 codebooks of 1,024."""

    config_class: ClassVar[type[TokenizerConfig]] = XcodecTokenizerConfig
    config: XcodecTokenizerConfig
    title = "X-Codec"
    model_type = "xcodec"

    @classmethod
    def find_classes(cls) -> tuple[type[XcodecConfig], type[XcodecModel]]:
        from transformers import XcodecConfig, XcodecModel

        return XcodecConfig, XcodecModel


class HiggsTokenizerConfig(SemanticAcousticConfig):
    family: Literal["higgs_audio_v2"] = "higgs_audio_v2"


class HiggsTokenizer(SemanticAcousticTokenizer):
    """Higgs Audio v2: 25 codes a second at 24 kHz, of 8 codebooks of 1,024."""

    config_class: ClassVar[type[TokenizerConfig]] = HiggsTokenizerConfig
    config: HiggsTokenizerConfig
    title = "Higgs tokenizer"
    model_type = "higgs_audio_v2_tokenizer"

    @classmethod
    def find_classes(cls) -> tuple[type[XcodecConfig], type[XcodecModel]]:
        from transformers import HiggsAudioV2TokenizerConfig, HiggsAudioV2TokenizerModel

        return HiggsAudioV2TokenizerConfig, HiggsAudioV2TokenizerModel
