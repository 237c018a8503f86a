"""TokenBridge: codes from any tokenizer of continuous latents, after its training (arXiv 2503.16430).

Each dimension of a latent is cut into bins by itself, so that a position has as many codes as the latent has
dimensions, and nothing is learned for it. CubiD (2603.19232) does the same to the features of a frozen encoder, with 8
bins for each of 768 dimensions.

Shapes: B batch, N positions, D dimensions of a latent, which are the groups.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, JsonValue, ValidationError
from torch import Tensor

from unimodal.files import describe_error
from unimodal.tokenizers.codes import Codes, Latents
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.quantizers import ScalarBinQuantizer
from unimodal.tokenizers.registry import find_family_class
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemLatents, SystemTokenizer


class TokenBridgeConfig(SystemConfig):
    """latents: settings of a tokenizer of latents of pictures, its family among them. num_levels: bins of a dimension.
    low, high: which values lie at ∓std_range of the normal distribution that the bins divide evenly."""

    family: Literal["tokenbridge"] = "tokenbridge"
    latents: dict[str, JsonValue]
    num_levels: int = Field(default=64, ge=2, le=65_536)
    low: float = -5.0
    high: float = 5.0
    std_range: float = Field(default=3.0, gt=0)


class TokenBridgeVideoConfig(TokenBridgeConfig):
    """The same of clips."""

    family: Literal["tokenbridge_video"] = "tokenbridge_video"  # type: ignore[assignment]


class TokenBridgeTokenizer(SystemTokenizer):
    """Pictures ⇄ D codes for each position of a continuous tokenizer: Codes [B, N, D].

    In training the continuous tokenizer is trained as it is, without bins; `fit_bins` sets them afterwards.
    """

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = TokenBridgeConfig
    config: TokenBridgeConfig

    def __init__(self, config: TokenBridgeConfig):
        super().__init__(config)
        self.latents = build_latents(config.latents, self.modality)
        self.quantizer = ScalarBinQuantizer(
            self.latents.width, config.num_levels, config.low, config.high, config.std_range
        )
        self.codebook_sizes = self.quantizer.codebook_sizes
        self.tokens_per_item = self.latents.tokens_per_item
        self.segments = ((self.modality, self.tokens_per_item),)
        self.picture_size, self.num_frames = self.latents.picture_size, self.latents.num_frames
        self.frames_per_second = self.latents.frames_per_second
        self.encode_conditions, self.decode_conditions = self.latents.encode_conditions, self.latents.decode_conditions
        self.takes_lengths = self.latents.takes_lengths
        self.decode_settings, self.text_settings = self.latents.decode_settings, self.latents.text_settings

    def name_text_network(self, network: str) -> None:
        self.latents.name_text_network(network)
        self.text_settings = self.latents.text_settings
        settings = {**self.config.latents, "text": self.latents.config.model_dump(mode="json").get("text")}
        self.config = self.config.model_copy(update={"latents": settings})

    def noise_shape(self, num_positions: int) -> tuple[int, ...]:
        return self.latents.noise_shape(num_positions)

    @torch.no_grad()
    def fit_bins(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Sets the bins of each dimension by the mean and the deviation of what media [B, C, …] are encoded to, in
        place of low and high. ValueError for a dimension that is constant."""
        latents = self.latents.encode(x, lengths)
        self.quantizer.fit(latents.values, latents.mask)

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        return self._quantize(self.latents.encode_batch(x, lengths, options))

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        """ValueError for codes of some of the dimensions only."""
        if codes.ids.shape[2] != self.latents.width:
            raise ValueError(f"a latent is {self.latents.width} codes, one a dimension; got {codes.ids.shape[2]}")
        return self.latents.decode_batch(self._look_up(codes), options)

    def _quantize(self, latents: Latents) -> Codes:
        ids = self.quantizer.to_ids(latents.values.float()) * latents.mask[..., None]
        return Codes(ids, latents.mask, latents.grid, latents.order)

    def _look_up(self, codes: Codes) -> Latents:
        values = self.quantizer.look_up(codes.ids) * codes.mask[..., None]
        return Latents(values, codes.mask, codes.grid, codes.order)

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """In training that of the continuous tokenizer; in eval mode what the codes decode to, without gradient."""
        if self.training:
            return self.latents.reconstruct(x, lengths, condition, generator)
        codes = self.encode(x, lengths, condition if self.encode_conditions else None)
        decoded = self.decode(codes, condition if self.decode_conditions else None)
        return Reconstruction(decoded, x.new_zeros(()), codes.ids)


class TokenBridgeVideo(TokenBridgeTokenizer):
    """The same for clips [B, 3, T, H, W]."""

    modality: ClassVar[str] = "video"
    config_class: ClassVar[type[TokenizerConfig]] = TokenBridgeVideoConfig


def build_latents(settings: dict[str, JsonValue], modality: str) -> SystemLatents:
    """A tokenizer of continuous latents. Raises ValueError for a family of codes, of another medium or with settings
    that it does not have."""
    family = str(settings.get("family"))
    kind = find_family_class(family)
    if not issubclass(kind, SystemLatents) or kind.modality != modality:
        raise ValueError(f"latents names the family {family}; name one of continuous latents of {modality}")
    try:
        config = kind.config_class.model_validate(settings)
    except ValidationError as error:
        raise ValueError(f"latents: {describe_error(error)}") from None
    return kind(config)
