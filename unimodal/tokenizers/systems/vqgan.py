"""Convolutional grid tokenizers: a convolutional encoder, a quantizer at every position of its map, and a decoder.

LlamaGen's VQ (arXiv 2406.06525), IBQ (2412.02692), Open-MAGVIT2 (2409.04410) and WeTok (2508.05599) are settings of it:

- LlamaGen: both the vectors and the rows of the codebook are brought to length 1.
- IBQ: the code is the row with the greatest plain dot product, so that a long row wins more often.
- Open-MAGVIT2: the signs of 18 channels are the code, in groups of 6 and 12 bits; no codebook is learned.
- WeTok: signs in groups of 8 bits; its generative decoder takes noise beside the code.

Pictures of any height and width are taken that the factor divides; `picture_size` is what files are fitted to.

Shapes: B batch, N positions in raster order, G groups, D quantized dimensions, Z channels of the map, h and w its
sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log2, prod
from typing import ClassVar, Literal

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.quantizers import make_quantizer
from unimodal.tokenizers.parts.split_ids import join_ids, split_ids
from unimodal.tokenizers.parts.trunks.vqgan import ConvDecoder, ConvEncoder
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemTokenizer
from unimodal.tokenizers.systems.conv_names import ConvNames, list_conv_rules
from unimodal.tokenizers.systems.conv_pictures import ConvPictureConfig
from unimodal.tokenizers.systems.key_map import KeyMap

#: the most values of one group: a language model has a row for each
LARGEST_GROUP = 2**16


class VqganConfig(ConvPictureConfig):
    """quantizer: its kind and settings, as `make_quantizer` reads
    them. project: 1×1 convolutions between the map's Z channels and the quantizer's D; without them the two are equal.
    split: the sizes of the groups that one id is given as, of which the product is the codebook's size; none for the
    id as it is. A group of more than 65,536 values must be asked for by `flat_ids`. names: what the authors call the
    weights.
    """

    family: Literal["vqgan"] = "vqgan"
    names: ConvNames = "llamagen"
    quantizer: dict[str, JsonValue]
    project: bool = True
    split: tuple[int, ...] = ()
    flat_ids: bool = False


class VqganTokenizer(SystemTokenizer):
    """Pictures float [B, 3, H, W] in [0, 1] ⇄ codes [B, h · w, G]."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = VqganConfig
    config: VqganConfig

    def __init__(self, config: VqganConfig):
        super().__init__(config)
        self.encoder, self.decoder = ConvEncoder(config), ConvDecoder(config)
        self.quantizer = make_quantizer(config.quantizer)
        self.quant_conv: nn.Module = nn.Identity()
        self.post_quant_conv: nn.Module = nn.Identity()
        width = self.quantizer.num_dims
        if config.project:
            self.quant_conv = nn.Conv2d(config.latent_width, width, 1)
            self.post_quant_conv = nn.Conv2d(width, config.latent_width, 1)
        elif width != config.latent_width:
            raise ValueError(
                f"the quantizer takes {width} dimensions and latent_width is {config.latent_width}: make them equal, "
                "or set project: true"
            )
        self.codebook_sizes = check_group_sizes(self.quantizer.codebook_sizes, config.split, config.flat_ids)
        side = config.side
        self.picture_size = (config.image_size, config.image_size)
        self.tokens_per_item = side**2
        count = self.quantizer.count_codes(side**2)
        if count != side**2:
            raise ValueError(
                f"a quantizer of kind {config.quantizer['kind']} gives {count} codes for a map of {side**2} positions; "
                "this family has codes at each position"
            )
        self.segments = (("image", self.tokens_per_item),)
        self.columns = {"image": side}
        self.decode_settings = frozenset({"noise"} if config.noise else ())

    @classmethod
    def find_key_map(cls, config: SystemConfig) -> KeyMap:
        assert isinstance(config, VqganConfig)
        rules = (*list_conv_rules(config, config.names), (r"quantizer\.codebook", "quantize.embedding.weight"))
        if config.names == "llamagen":
            return KeyMap(rules, ignored=(r"quantize\.codebook_used",))
        ignored = (r"loss\..*", r"model_ema\.(decay|num_updates)")
        return KeyMap(rules, ignored, averages="model_ema.")

    # ---- pictures to maps, maps to pictures

    def embed(self, x: Tensor) -> Tensor:
        """x: float [B, 3, H, W] in [0, 1] → vectors before the quantizer [B, N, D].

        Raises ValueError for pictures whose sides the factor does not divide, or that have a single position where the
        decoder's norms need the deviation over several.
        """
        factor = self.config.factor
        if x.dim() != 4 or x.shape[1] != 3 or not len(x) or x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(f"pictures are [B, 3, H, W] with sides that {factor} divides; got {tuple(x.shape)}")
        if x.shape[2] * x.shape[3] < factor**2 * (1 + self.config.adaptive_norm):
            raise ValueError(f"a picture of {x.shape[2]}×{x.shape[3]} pixels is too small; its positions are {factor}²")
        return self.quant_conv(self.encoder(x * 2 - 1)).flatten(2).transpose(1, 2)

    def paint(self, vectors: Tensor, grid: tuple[int, int], noise: Tensor | None = None) -> Tensor:
        """Quantized vectors [B, N, D] on a grid of h rows and w columns → float [B, 3, H, W] about [0, 1].

        noise: [B, N, Z], of the generative decoder.
        """
        maps = [None if part is None else part.transpose(1, 2).unflatten(2, grid) for part in (vectors, noise)]
        assert maps[0] is not None
        return (self.decoder(self.post_quant_conv(maps[0]), maps[1]) + 1) / 2

    def find_grid(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of codes of pictures [B, 3, H, W]."""
        return x.shape[2] // self.config.factor, x.shape[3] // self.config.factor

    # ---- the contract

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        ids = self.quantizer(self.embed(x)).ids
        if self.config.split:
            ids = split_ids(ids[..., 0], self.config.split)
        return Codes.whole(ids, (1, *self.find_grid(x)))

    def decode_batch(self, coded: Codes, options: CodingOptions) -> Tensor:
        side = self.config.side
        grid = (side, side) if coded.grid is None else coded.grid[1:]
        if any(count != prod(grid) for count in coded.counts) or coded.ids.shape[2] != len(self.codebook_sizes):
            raise ValueError(
                f"a picture is {grid[0]}×{grid[1]} codes in {len(self.codebook_sizes)} groups; got {coded.counts} "
                f"codes in {coded.ids.shape[2]}"
            )
        ids = coded.ids[:, : prod(grid)]
        if self.config.split:
            ids = join_ids(ids, self.config.split).unsqueeze(-1)
        return self.paint(self.quantizer.look_up(ids), grid, options.noise).clamp(0, 1)

    def check_codes(self, codes: Codes) -> None:
        """ValueError for codes outside of their groups, at every position of a picture of any size."""
        if codes.ids.shape[2] == len(self.codebook_sizes) and len(codes):
            for ids, size in zip(codes.ids[codes.mask].T, self.codebook_sizes, strict=True):
                if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < size:
                    raise ValueError(f"image codes must lie in [0, {size}); got {int(ids.min())}…{int(ids.max())}")
        else:
            super().check_codes(codes)

    def noise_shape(self, num_positions: int) -> tuple[int, ...]:
        return (num_positions, self.config.latent_width) if self.config.noise else super().noise_shape(num_positions)

    def code_features(self, block: str, group: int = 0) -> Tensor | None:
        """The codebook's rows, or the signs of a group's codes; None where one id is split in several."""
        return None if self.config.split else super().code_features(block, group)

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """features: `codes` [B, N, D], the quantized vectors."""
        z = self.embed(x)
        quantized = self.quantizer(z)
        noise = None
        if self.config.noise:
            noise = torch.randn(z.shape, generator=generator, device=None if generator is None else generator.device)
            noise = noise.to(z)
        decoded = self.paint(quantized.values, self.find_grid(x), noise)
        features = {"codes": quantized.values}
        return Reconstruction(decoded, quantized.loss, quantized.ids, quantized.numbers, features)

    # ---- what its authors write

    def write_authors_config(self) -> dict[str, object] | None:
        """LlamaGen's arguments of `VQModel`; None for weights of other authors."""
        config, quantizer = self.config, self.config.quantizer
        if config.names != "llamagen" or quantizer.get("kind") != "vector":
            return None
        fields = {
            "ch": config.width,
            "encoder_ch_mult": list(config.multipliers),
            "decoder_ch_mult": list(config.multipliers),
            "num_res_blocks": config.num_blocks,
            "z_channels": config.latent_width,
            "group_norm_groups": config.num_norm_groups,
            "image_size": config.image_size,
            "codebook_size": quantizer["codebook_size"],
            "codebook_embed_dim": quantizer["num_dims"],
            "codebook_l2_norm": quantizer.get("normalize_codes", False),
            "commit_loss_beta": quantizer.get("commitment", 0.25),
            "entropy_loss_ratio": quantizer.get("entropy_weight", 0.0),
        }
        again = type(self)(self.read_authors_config(fields))  # it may have settings that these arguments cannot say
        same = {name: tensor.shape for name, tensor in again.state_dict().items()}
        return fields if same == {name: tensor.shape for name, tensor in self.state_dict().items()} else None

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> VqganConfig:
        """LlamaGen's arguments of `VQModel`, or a YAML of SEED-Voken (IBQ, Open-MAGVIT2) or WeTok."""
        whole = AuthorsFields(fields)
        found = whole.open("model", "init_args")
        if found.has("ddconfig"):
            data = whole.open("data", "init_args", "train", "params", "config")
            return _read_voken(found, whole.open("model").take_text("class_path", ""), data.take_integer("size", 0))
        if not found.has("codebook_embed_dim"):
            raise ValueError("the config is neither LlamaGen's, nor IBQ's, nor Open-MAGVIT2's, nor WeTok's")
        multipliers = found.take_integers("encoder_ch_mult", (1, 1, 2, 2, 4))
        if found.take_integers("decoder_ch_mult", multipliers) != multipliers:
            raise ValueError("encoder_ch_mult and decoder_ch_mult differ; this network has one list for both")
        unit = found.take_flag("codebook_l2_norm", True)
        return VqganConfig(
            width=found.take_integer("ch", 128),
            multipliers=multipliers,
            num_blocks=found.take_integer("num_res_blocks", 2),
            attention_levels=(len(multipliers) - 1,),
            latent_width=found.take_integer("z_channels", 256),
            num_norm_groups=found.take_integer("group_norm_groups", 32),
            quantizer={
                "kind": "vector",
                "codebook_size": found.take_integer("codebook_size", 16384),
                "num_dims": found.take_integer("codebook_embed_dim", 8),
                "normalize_latents": unit,
                "normalize_codes": unit,
                "commitment": found.take_number("commit_loss_beta", 0.25),
                "entropy_weight": found.take_number("entropy_loss_ratio", 0.0),
            },
            image_size=found.take_integer("image_size", 256),
        )


def check_group_sizes(sizes: tuple[int, ...], split: tuple[int, ...], flat_ids: bool) -> tuple[int, ...]:
    """The sizes of a quantizer's groups, or those of `split`. Raises ValueError for a split of another size, and for a
    group of more than 65,536 values that is not asked for."""
    if split and prod(split) != prod(sizes):
        raise ValueError(f"split {split} is {prod(split)} values and the codebook has {prod(sizes)}")
    if split and len(sizes) > 1:
        raise ValueError(f"the quantizer gives {len(sizes)} codes at a position; leave split {split} out")
    found = split or sizes
    if max(found) > LARGEST_GROUP and not flat_ids:
        raise ValueError(
            f"a group has {max(found):,} values, more than {LARGEST_GROUP:,}: give it in smaller groups (split, or "
            "group_bits of a lookup-free quantizer), or set flat_ids: true for the authors' one id"
        )
    return found


def _read_voken(found: AuthorsFields, kind: str, image_size: int) -> VqganConfig:
    """A config with `ddconfig`: IBQ's where it names attn_resolutions, else Open-MAGVIT2's or WeTok's. kind: the class
    that the config is of; image_size: of the pictures that it was trained on, 0 where it does not say."""
    network = found.open("ddconfig")
    multipliers = network.take_integers("ch_mult", (1, 2, 4, 8))
    width, size = network.take_integer("ch", 128), found.take_integer("n_embed", 0)
    num_blocks, latent_width = network.take_integer("num_res_blocks", 2), network.take_integer("z_channels", 256)
    groups, weights = found.take_integer("group_norm_groups", 32), found.open("lossconfig", "params")
    if "video" in kind:
        raise ValueError(f"the config is that of {kind}, of clips; this family reads pictures")
    if network.has("attn_resolutions"):
        attended = network.take_integers("attn_resolutions", ())
        resolution, entropy = network.take_integer("resolution", 256), found.take_flag("use_entropy_loss", False)
        return VqganConfig(
            names="taming",
            width=width,
            multipliers=multipliers,
            num_blocks=num_blocks,
            attention_levels=tuple(level for level in range(len(multipliers)) if resolution >> level in attended),
            latent_width=latent_width,
            num_norm_groups=groups,
            quantizer={
                "kind": "index_backpropagation",
                "codebook_size": size,
                "num_dims": found.take_integer("embed_dim", 256),
                "codebook_weight": found.take_number("beta", 0.25),
                "entropy_weight": weights.take_number("entropy_loss_weight", 0.05) if entropy else 0.0,
                "temperature": found.take_number("entropy_temperature", 0.01),
            },
            split=_split_evenly(size),
            image_size=image_size or resolution,
        )
    bits = round(log2(size))
    if 2**bits != size:
        raise ValueError(f"n_embed {size} is no power of 2; lookup-free codes are bits")
    whole_bits: tuple[int, ...] = (bits,) * found.take_integer("num_codebooks", 1)
    group_bits = whole_bits
    if found.take_flag("token_factorization", False):
        group_bits = found.take_integers("factorized_bits", (9, 9))
    elif 2**bits > LARGEST_GROUP:
        group_bits = (bits // 3, bits - bits // 3)  # (6, 12) of 18, as Open-MAGVIT2's generator reads them
    return VqganConfig(
        names="magvit2",
        width=width,
        multipliers=multipliers,
        num_blocks=num_blocks,
        extra_blocks=0,
        middle_blocks=num_blocks,
        middle_attention=False,
        latent_width=latent_width,
        num_norm_groups=groups,
        downsampling="around",
        upsampling="shuffle",
        adaptive_norm=True,
        block_biases=False,
        last_kernel=1,
        noise=found.take_flag("gan_decoder", False),
        project=False,
        quantizer={
            "kind": "lookup_free",
            "group_bits": list(group_bits),
            "commitment": weights.take_number("commit_weight", 0.25),
            "entropy_weight": weights.take_number("codebook_weight", 0.1),
            "diversity": found.take_number("batch_maximization_weight", 1.0),
            "entropy_bits": list(whole_bits),
            "pool_groups": len(whole_bits) > 1,
        },
        image_size=image_size or network.take_integer("resolution", 256),
    )


def _split_evenly(size: int) -> tuple[int, ...]:
    """The sizes of two groups that a large codebook's id is split in: powers of 2, near one another; none if small."""
    if size <= LARGEST_GROUP:
        return ()
    first = 2 ** round(log2(size) / 2)
    if size % first:
        raise ValueError(f"a codebook of {size} values does not split into groups of {first}")
    return first, size // first
