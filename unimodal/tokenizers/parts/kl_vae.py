"""The variational autoencoder of Stable Diffusion (arXiv 2112.10752): pictures ⇄ maps of an eighth of their sides, on
which flow decoders work. The names are those of diffusers' `AutoencoderKL`.

Shapes: B batch, C channels of a map, h and w its sides.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from unimodal.tokenizers.parts.trunks.vqgan import ConvDecoder, ConvEncoder, ConvSettings


class VaeSettings(BaseModel):
    """channels: C. width, multipliers, num_blocks and num_norm_groups: see `ConvSettings`. scale: what a map is
    multiplied with before it is used. encoder_attention: levels of the encoder with attention after every block."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    channels: int = Field(default=16, ge=1)
    scale: float = 1.0
    width: int = Field(default=128, ge=1)
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_blocks: int = Field(default=2, ge=1)
    num_norm_groups: int = Field(default=32, ge=1)
    encoder_attention: tuple[int, ...] = ()

    @property
    def factor(self) -> int:
        """Pixels of a position's side."""
        return 2 ** (len(self.multipliers) - 1)

    def choose_trunk(self, latent_width: int, attention_levels: tuple[int, ...] = ()) -> ConvSettings:
        """The settings of one side, whose maps have latent_width channels."""
        return ConvSettings(
            width=self.width,
            multipliers=self.multipliers,
            num_blocks=self.num_blocks,
            num_norm_groups=self.num_norm_groups,
            latent_width=latent_width,
            attention_levels=attention_levels,
        )


class KlVae(nn.Module):
    """Pictures in [-1, 1] → the mean of their maps, and back."""

    def __init__(self, settings: VaeSettings):
        super().__init__()
        self.settings = settings
        self.encoder = ConvEncoder(settings.choose_trunk(2 * settings.channels, settings.encoder_attention))
        self.decoder = ConvDecoder(settings.choose_trunk(settings.channels))
        self.quant_conv = nn.Conv2d(2 * settings.channels, 2 * settings.channels, 1)
        self.post_quant_conv = nn.Conv2d(settings.channels, settings.channels, 1)

    def encode(self, x: Tensor) -> Tensor:
        """x: float [B, 3, H, W] → scaled means [B, C, h, w]."""
        return self.encode_distribution(x)[0] * self.settings.scale

    def encode_distribution(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: float [B, 3, H, W] → mean and log-variance (in [-30, 20]), unscaled, [B, C, h, w] each."""
        mean, log_variance = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def decode(self, maps: Tensor) -> Tensor:
        """maps: float [B, C, h, w] → [B, 3, H, W]."""
        return self.decoder(self.post_quant_conv(maps / self.settings.scale))


def list_vae_rules(ours: str, theirs: str) -> tuple[tuple[str, str], ...]:
    """The rules of a `KeyMap` for a `KlVae` that is called `ours` here and `theirs` there."""
    side = rf"{ours}\.(encoder|decoder)\."
    return (
        (rf"{ours}\.encoder\.levels\.(\d+)\.resize\.(.*)", rf"{theirs}.encoder.down_blocks.\1.downsamplers.0.conv.\2"),
        (rf"{ours}\.decoder\.levels\.(\d+)\.resize\.(.*)", rf"{theirs}.decoder.up_blocks.\1.upsamplers.0.conv.\2"),
        *(
            (
                rf"{ours}\.{trunk}\.levels\.(\d+)\.blocks\.(\d+)\.{ending}",
                rf"{theirs}.{trunk}.{blocks}.\1.resnets.\2.{named}",
            )
            for trunk, blocks in (("encoder", "down_blocks"), ("decoder", "up_blocks"))
            for ending, named in ((r"nin_shortcut\.(.*)", r"conv_shortcut.\3"), ("(.*)", r"\3"))
        ),
        (side + r"middle\.0\.(.*)", rf"{theirs}.\1.mid_block.resnets.0.\2"),
        (side + r"middle\.1\.norm\.(.*)", rf"{theirs}.\1.mid_block.attentions.0.group_norm.\2"),
        (side + r"middle\.1\.proj_out\.(.*)", rf"{theirs}.\1.mid_block.attentions.0.to_out.0.\2"),
        (side + r"middle\.1\.([qkv])\.(.*)", rf"{theirs}.\1.mid_block.attentions.0.to_\2.\3"),
        (side + r"middle\.2\.(.*)", rf"{theirs}.\1.mid_block.resnets.1.\2"),
        (side + r"norm_out\.(.*)", rf"{theirs}.\1.conv_norm_out.\2"),
        (rf"{ours}\.(.*)", rf"{theirs}.\1"),
    )
