"""I²-World's scene tokenizer (arXiv 2507.09144): a scene of voxels with classes as codes of three scales.

Every column of voxels becomes the classes' vectors of its heights; convolutions halve the map of columns twice; one
codebook quantizes what is left over at a quarter, a half and all of the map's sides. Decoded columns are compared with
the vectors of all classes. Of its two halves this is the one within a scene ("intra"), which needs no earlier one:
`inter` convolutions of what changes between scenes are held, as its authors' weights have them, and idle.

The network is that of lzzzzzm/II-World @083911f, mmdet3d/models/ii_world/scene_tokenizer, with whose modules it was
compared.

Shapes: B batch, X and Y sides of a scene, Z heights, D width of a code, h and w sides of the map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.quantizers import VectorQuantizer
from unimodal.tokenizers.parts.trunks.vqgan import ConvDecoder, ConvEncoder, ConvSettings
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemTokenizer

SCALES = (4, 2, 1)  # the map's sides over those of each scale


class SceneConfig(SystemConfig):
    """side: X and Y. height: Z. empty: the class that is no voxel. num_inter: see the module."""

    family: Literal["i2_world"] = "i2_world"
    side: int = Field(default=200, ge=4)
    height: int = Field(default=16, ge=1)
    num_classes: int = Field(default=18, ge=2)
    empty: int = Field(default=17, ge=0)
    class_width: int = Field(default=16, ge=1)
    codebook_size: int = Field(default=512, ge=2)
    commitment: float = Field(default=1.0, ge=0)
    num_inter: int = Field(default=4, ge=0)
    network: ConvSettings = ConvSettings(
        width=64, multipliers=(1, 2, 4), level_blocks=(2, 2, 4), extra_blocks=0, attention_levels=(2,),
        latent_width=128, downsampling="around",
    )  # fmt: skip

    @property
    def sides(self) -> tuple[int, ...]:
        """Codes of a side, of each scale."""
        return tuple(self.side // self.network.factor // scale for scale in SCALES)

    @model_validator(mode="after")
    def check_fit(self) -> Self:
        """ValueError for a side that is not whole cells of the map, and for an empty class that is not there."""
        if self.side % self.network.factor or min(self.sides) < 1:
            raise ValueError(f"side {self.side} must be 4 or more whole cells of {self.network.factor} voxels")
        if self.empty >= self.num_classes:
            raise ValueError(f"empty is class {self.empty} of {self.num_classes}")
        return self


class SceneTokenizer(SystemTokenizer):
    """Scenes ⇄ codes of three scales. ``encode``: float [B, 1, X, Y, Z], the class of every voxel (of shapes with two
    classes, 1 where it is filled) → Codes [B, N, 1]."""

    modality: ClassVar[str] = "voxels"
    takes_lengths = False
    config_class: ClassVar[type[TokenizerConfig]] = SceneConfig
    config: SceneConfig

    def __init__(self, config: SceneConfig):
        super().__init__(config)
        width, columns = config.network.latent_width, config.height * config.class_width
        self.class_embeds = nn.Embedding(config.num_classes, config.class_width)
        self.encoder, self.decoder = ConvEncoder(config.network, columns), ConvDecoder(config.network, columns)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.recover_scale_conv = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in SCALES)
        self.recover_time_conv = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(config.num_inter))
        self.quantizer = VectorQuantizer(config.codebook_size, width, commitment=config.commitment)
        self.codebook_sizes = self.quantizer.codebook_sizes
        self.tokens_per_item = sum(side * side for side in config.sides)
        self.segments, self.ordered = ((self.modality, self.tokens_per_item),), True

    def read_classes(self, x: Tensor) -> Tensor:
        """x: float [B, 1, X, Y, Z] → int64 [B, X, Y, Z]. ValueError for another size or class."""
        side, height = self.config.side, self.config.height
        if x.dim() != 5 or tuple(x.shape[1:]) != (1, side, side, height):
            raise ValueError(f"i2_world takes scenes [B, 1, {side}, {side}, {height}]; got {tuple(x.shape)}")
        classes = x[:, 0].round().long()
        if bool((classes < 0).any()) or bool((classes >= self.config.num_classes).any()):
            raise ValueError(f"a voxel has one of {self.config.num_classes} classes; got {int(classes.max())}")
        return classes

    def encode_maps(self, classes: Tensor) -> Tensor:
        """int64 [B, X, Y, Z] → maps before quantization [B, D, h, w]."""
        return self.quant_conv(self.encoder(self.class_embeds(classes).flatten(3).permute(0, 3, 1, 2)))

    def decode_maps(self, maps: Tensor) -> Tensor:
        """Sums of the scales [B, D, h, w] → logits of every voxel [B, X, Y, Z, classes]."""
        columns = self.decoder(self.post_quant_conv(maps)).permute(0, 2, 3, 1)
        return columns.unflatten(3, (self.config.height, -1)) @ self.class_embeds.weight.T

    def add_scale(self, scale: int, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The codes' vectors of a scale [B, s², D] → (what is left out of the rest, what is added to the map), each
        [B, D, h, w]."""
        side, whole = self.config.sides[scale], self.config.sides[-1]
        maps = vectors.transpose(1, 2).unflatten(2, (side, side))
        grown = interpolate(maps, size=(whole, whole), mode="bilinear", align_corners=False)
        return grown, self.recover_scale_conv[scale](grown)

    def quantize(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps [B, D, h, w] → (the sum of the scales, ids int64 [B, N, 1], loss)."""
        rest, total, ids, loss = maps, torch.zeros_like(maps), [], maps.new_zeros(())
        for scale, side in enumerate(self.config.sides):
            small = interpolate(rest, size=(side, side), mode="bilinear", align_corners=False)
            found = self.quantizer(small.flatten(2).transpose(1, 2))
            grown, added = self.add_scale(scale, found.values)
            rest, total = rest - grown, total + added
            ids.append(found.ids)
            loss = loss + found.loss / len(SCALES)
        return total, torch.cat(ids, 1), loss

    # ---- the contract

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """`decoded` is the chance that a voxel is filled, [B, 1, X, Y, Z]; `loss` holds that of the classes."""
        classes = self.read_classes(x)
        maps, ids, loss = self.quantize(self.encode_maps(classes))
        logits = self.decode_maps(maps)
        entropy = cross_entropy(logits.flatten(0, 3), classes.flatten())
        filled = 1 - logits.softmax(-1)[..., self.config.empty]
        return Reconstruction(filled[:, None], loss + entropy, ids, {"cross_entropy": float(entropy.detach())})

    def training_loss(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of classes and the codes' own losses, in place of the authors' focal and Lovász losses."""
        made = self.reconstruct(x, lengths)
        return made.loss, made.numbers

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        return Codes.whole(self.quantize(self.encode_maps(self.read_classes(x)))[1], order="coarse_to_fine")

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        """Whole scales decode; a scale that is cut off, and finer ones, are left out."""
        ends = torch.tensor([side * side for side in self.config.sides]).cumsum(0).tolist()
        if any(not ends[0] <= count <= ends[-1] for count in codes.counts):
            raise ValueError(f"a scene of i2_world is {ends[0]} to {ends[-1]} codes; got {codes.counts}")
        whole, start = self.config.sides[-1], 0
        total = self.class_embeds.weight.new_zeros(len(codes), self.quantizer.num_dims, whole, whole)
        for scale, end in enumerate(ends):
            if end > codes.ids.shape[1]:
                break
            _, added = self.add_scale(scale, self.quantizer.look_up(codes.ids[:, start:end]))
            known = codes.mask[:, start:end].all(1)[:, None, None, None]
            total, start = total + torch.where(known, added, torch.zeros_like(added)), end
        return self.decode_maps(total).argmax(-1)[:, None].float()

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> SystemConfig:
        """ValueError: their config is a program of mmdetection."""
        raise ValueError("the config of I²-World is a program; name i2-world of `unimodal tokenizers list`")
