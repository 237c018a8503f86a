"""Chameleon's image tokenizer (arXiv 2405.09818): 512×512 pixels ⇄ 32×32 codes of one 8,192-value codebook.

transformers has its encoder only. The decoder of the original VQGAN (arXiv 2203.13131) is here, with the layout and the
weight names of the original `vqgan.ckpt`: give that file, or its weights as safetensors, as `decoder`. Without it,
pictures are read and not drawn.

Shapes: B batch, N codes, H and W height and width, K latent channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.files import describe_error
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, FitMode
from unimodal.tokenizers.pretrained.base import (
    build_config,
    fill_weights,
    to_plain_config,
)
from unimodal.tokenizers.pretrained.image import (
    NetworkImageConfig,
    NetworkImageTokenizer,
    check_pictures,
    read_pixel_settings,
    read_vq_checkpoint,
    resize_picture,
)
from unimodal.tokenizers.rows import check_counts, decode_rows
from unimodal.tokenizers.stored import TokenizerConfig

if TYPE_CHECKING:
    from transformers import ChameleonVQVAEConfig

RESCALE_FACTOR = 0.0078  # of an 8-bit pixel, in transformers' image processor: a little less than 2 / 255


class ChameleonTokenizerConfig(NetworkImageConfig):
    family: Literal["chameleon"] = "chameleon"
    has_decoder: bool = False

    @property
    def can_decode(self) -> bool:
        return self.has_decoder


class ChameleonTokenizer(NetworkImageTokenizer):
    """Chameleon's pictures of 512×512 pixels: 32×32 codes of an 8,192-value codebook.

    ``encode``: float [B, 3, S, S] in [0, 1] → Codes [B, (S / 16)², 1] in raster order.
    """

    config_class: ClassVar[type[TokenizerConfig]] = ChameleonTokenizerConfig
    config: ChameleonTokenizerConfig
    side: int
    no_decoder = (
        "transformers has no decoder of Chameleon's pictures; load this tokenizer with decoder=…/vqgan.ckpt from the "
        "original release"
    )

    def __init__(self, config: ChameleonTokenizerConfig):
        super().__init__(config)
        from transformers import ChameleonVQVAEConfig
        from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

        settings = build_config(ChameleonVQVAEConfig, config.network)
        self.network = ChameleonVQVAE(settings).eval()
        self.decoder = ChameleonDecoder(settings) if config.has_decoder else None
        self.factor = 2 ** (len(settings.channel_multiplier) - 1)
        self.describe(config.image_size, self.factor, settings.num_embeddings)

    @classmethod
    def from_checkpoint(cls, folder: Path, decoder: str | Path | None = None) -> Self:
        """decoder: the original `vqgan.ckpt`, or a safetensors file with its `decoder.*` weights."""
        from transformers import ChameleonConfig
        from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

        network, weights = read_vq_checkpoint(folder, ChameleonConfig, "chameleon_vqgan", ChameleonVQVAE, "Chameleon")
        own = {name.removeprefix("decoder."): w for name, w in weights.items() if name.startswith("decoder.")}
        decoder_weights = own if decoder is None else read_decoder(Path(decoder))
        tokenizer = cls(
            ChameleonTokenizerConfig(
                network=to_plain_config(network),
                image_size=network.resolution,
                has_decoder=bool(decoder_weights),
                **read_pixel_settings(folder, 1.0, 1.0, RESCALE_FACTOR),
            )
        )
        fill_weights(tokenizer.network, weights, folder)
        if tokenizer.decoder is not None:
            fill_weights(tokenizer.decoder, decoder_weights, folder if decoder is None else Path(decoder))
        return tokenizer.eval()

    def fit(self, medium: Tensor, mode: FitMode = "pad") -> Tensor:
        """The shorter side to S, then the middle S × S."""
        size, (height, width) = self.config.image_size, medium.shape[1:]
        short, long = min(height, width), max(height, width)
        other = int(size * long / short)
        small = resize_picture(medium, *((size, other) if height <= width else (other, size)), "LANCZOS")
        top, left = (small.shape[1] - size) // 2, (small.shape[2] - size) // 2
        return small[:, top : top + size, left : left + size].float() / 255

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        check_pictures(x, self.config.image_size, self.config.image_size, "Chameleon")
        ids = self.network.encode(self.scale_pixels(x)).image_tokens.view(len(x), -1)  # flat over the batch
        return Codes.whole(ids, (1, self.side, self.side))

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        check_counts(codes, self.side**2)
        return torch.stack(decode_rows(codes, self._decode_equal))

    def _decode_equal(self, ids: Tensor) -> Tensor:
        assert self.decoder is not None
        latent = self.network.quantize.embedding(ids.view(len(ids), self.side, self.side)).permute(0, 3, 1, 2)
        pixels = self.decoder(self.network.post_quant_conv(latent))
        return ((pixels + 1) / 2).clamp(0, 1)  # it was trained on pixels in [-1, 1]


class _DecoderLevel(nn.Module):
    """The residual blocks of one size [B, K, h, w], an attention behind each or none, and the way to twice the size."""

    def __init__(self, blocks: nn.ModuleList, attentions: nn.ModuleList, upsample: nn.Module | None):
        super().__init__()
        self.block, self.attn, self.doubles = blocks, attentions, upsample is not None
        if upsample is not None:
            self.upsample = nn.ModuleDict({"conv": upsample})

    def forward(self, h: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            h = block(h)
            if len(self.attn):
                h = self.attn[index](h)
        return self.upsample["conv"](F.interpolate(h, scale_factor=2.0, mode="nearest")) if self.doubles else h


class ChameleonDecoder(nn.Module):
    """The decoder of taming-transformers' VQGAN: latent [B, K, h, w] → pixels [B, 3, H, W] in about [-1, 1]."""

    def __init__(self, config: ChameleonVQVAEConfig):
        super().__init__()
        from transformers.models.chameleon.modeling_chameleon import (
            ChameleonVQVAEEncoderAttnBlock as Attention,
        )
        from transformers.models.chameleon.modeling_chameleon import (
            ChameleonVQVAEEncoderResnetBlock as Residual,
        )

        attends = config.attn_type == "vanilla"
        multipliers = list(config.channel_multiplier)
        width = config.base_channels * multipliers[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid = nn.ModuleDict()  # in this order: block_1, attn_1, block_2
        self.mid["block_1"] = Residual(config, width, width)
        self.mid["attn_1"] = Attention(width) if attends else nn.Identity()
        self.mid["block_2"] = Residual(config, width, width)
        levels: list[_DecoderLevel] = []  # coarsest first
        resolution = config.resolution // 2 ** (len(multipliers) - 1)
        for level in reversed(range(len(multipliers))):
            blocks, attentions = nn.ModuleList(), nn.ModuleList()
            for _ in range(config.num_res_blocks + 1):
                wider = config.base_channels * multipliers[level]
                blocks.append(Residual(config, width, wider))
                width = wider
                if attends and config.attn_resolutions is not None and resolution in config.attn_resolutions:
                    attentions.append(Attention(width))
            upsample = nn.Conv2d(width, width, 3, padding=1) if level else None
            resolution *= 2
            levels.append(_DecoderLevel(blocks, attentions, upsample))
        self.up = nn.ModuleList(reversed(levels))  # finest first, as the checkpoint numbers them
        self.norm_out = nn.GroupNorm(32, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        h = self.conv_in(latent)
        for module in (*self.mid.values(), *reversed(self.up)):
            h = module(h)
        return self.conv_out(F.silu(self.norm_out(h)))


def read_decoder(path: Path) -> dict[str, Tensor]:
    """The `decoder.*` weights of a `vqgan.ckpt` or safetensors file. A ckpt is read as tensors only: no code is run."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the vqgan.ckpt of the original Chameleon")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: object = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle's errors are of many kinds
        raise ValueError(f"{path} cannot be read as weights ({describe_error(error)}); download it again") from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    found = {
        name.removeprefix("decoder."): tensor.float()
        for name, tensor in state.items()
        if name.startswith("decoder.") and isinstance(tensor, Tensor)
    }
    if not found:
        raise ValueError(f"{path} has no weights named decoder.*; give the vqgan.ckpt of the original Chameleon")
    return found
