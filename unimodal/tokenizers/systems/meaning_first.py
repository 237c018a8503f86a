"""A picture ⇄ ordered codes: which known things it is like, what it shows, in levels that unseen things have too, then
how it looks.

The meaning codes come from frozen image networks (EfficientNet-lite0 and -lite1, as SEED, arXiv 2307.08041, has its
frozen encoder), fitted in closed form to tell things apart across drawing styles (`parts.meaning_levels`). In front of
them may stand ids of known things (`parts.known_things`), words for a language model, which the decoder does not read.
The pixel codes are finite scalars of a convolutional and transformer encoder. One decoder reads all; in training it is
given a random number of the first codes of some pictures (FlexTok, arXiv 2502.13967), so a prefix decodes to a coarser
picture. No training picture is kept in it.

Shapes: B batch, N codes, P ids of known things, S meaning codes, M = N - P - S pixel codes, K dimensions of a code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import islice
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.nano.efficientnet import NUM_FEATURES, STAGES, TRUNKS, load_pretrained
from unimodal.tokenizers.nano.image import ImageTokenizer
from unimodal.tokenizers.parts.known_things import KnownThings
from unimodal.tokenizers.parts.meaning_levels import MeaningLevels
from unimodal.tokenizers.parts.picture_grid import PATCH, GridDecoder, GridEncoder, GridSizes
from unimodal.tokenizers.parts.prefix import PrefixPolicy
from unimodal.tokenizers.parts.quantizers import FiniteScalarQuantizer
from unimodal.tokenizers.stored import StoredModule
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemTokenizer

PACKAGED = "efficientnet"
READ_AT_ONCE = 32  # pictures that the trunk is given while the meaning codes are fitted


class MeaningFirstConfig(SystemConfig):
    """num_semantic, semantic_levels: how many meaning codes, and their levels. num_known, known_dims: how many ids of
    known things stand before them, and the directions that these are compared along; known: their labels, which the
    fit fills in. trunks: the frozen networks, of `lite0` and `lite1`; trunk_size: pixels a side at which they look;
    trunk_stages: how many of their stages there are. num_pixel, levels: pixel codes and their scalars. prefix_share: of
    the pictures, in training, whose decoder is given the first codes only. shrinkage, known_shrinkage: of the
    discriminants."""

    family: Literal["meaning_first"] = "meaning_first"
    image_size: int = Field(default=64, ge=16)
    trunks: tuple[Literal["lite0", "lite1"], ...] = Field(default=("lite0", "lite1"), min_length=1)
    trunk_size: int = Field(default=128, ge=32)
    trunk_stages: int = Field(default=len(STAGES), ge=1, le=len(STAGES))
    num_semantic: int = Field(default=10, ge=1)
    semantic_levels: tuple[int, ...] = (4, 4, 4, 4, 4, 4)
    num_known: int = Field(default=0, ge=0)
    known_dims: int = Field(default=400, ge=1)
    known: tuple[str, ...] = ()
    num_pixel: int = Field(default=54, ge=1)
    levels: tuple[int, ...] = (8, 8, 8, 8)
    network: GridSizes = GridSizes()
    prefix_share: float = Field(default=0.3, ge=0, le=1)
    shrinkage: float = Field(default=3.0, gt=0)
    known_shrinkage: float = Field(default=1.0, gt=0)

    @property
    def grid(self) -> int:
        """Places along a side of the grid of features."""
        return self.image_size // (2 * PATCH)

    @model_validator(mode="after")
    def check_sizes(self) -> Self:
        """ValueError for a side that is no whole grid, and for heads that do not divide the width."""
        if self.image_size % (2 * PATCH):
            raise ValueError(f"image_size is {self.image_size}; it must be a multiple of {2 * PATCH}")
        if self.network.width % self.network.num_heads:
            raise ValueError(f"{self.network.num_heads} heads do not divide a width of {self.network.width}")
        return self


class MeaningFirstTokenizer(SystemTokenizer):
    """``encode``: float [B, 3, H, W] in [0, 1] → Codes [B, N, 1], the meaning codes first. Any prefix decodes."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[MeaningFirstConfig]] = MeaningFirstConfig
    stored_dtype: ClassVar[torch.dtype] = torch.float16
    config: MeaningFirstConfig
    tokens_per_item: int

    def __init__(self, config: MeaningFirstConfig):
        super().__init__(config)
        sizes = config.network
        self.trunk = nn.ModuleDict({name: TRUNKS[name](config.trunk_stages) for name in config.trunks})
        self.trunk.requires_grad_(False).to(memory_format=torch.channels_last)
        self.meaning = MeaningLevels(NUM_FEATURES * len(config.trunks), config.num_semantic, config.semantic_levels)
        self.quantizer = FiniteScalarQuantizer(config.levels)
        self.encoder = GridEncoder(sizes, config.grid, config.num_pixel, self.quantizer.num_dims)
        self.decoder = GridDecoder(sizes, config.grid, config.num_semantic, config.num_pixel)
        self.semantic_in = nn.Parameter(
            torch.randn(config.num_semantic, len(config.semantic_levels), sizes.width) * 0.02
        )
        self.pixel_in = nn.Linear(self.quantizer.num_dims, sizes.width)
        self.prefix = PrefixPolicy("uniform", 1, config.prefix_share)
        self.codebook_sizes = (self.quantizer.codebook_size,)
        self.segments = (("semantic", config.num_semantic), ("image", config.num_pixel))
        self.block_sizes = {"semantic": self.meaning.size, "image": self.quantizer.codebook_size}
        self.known: KnownThings | None = None
        if config.num_known:
            self.segments = (("known", config.num_known), *self.segments)
            self.set_known(config.known)
        self.code_levels = {"semantic": self.meaning.levels, "image": self.quantizer.levels}
        self.tokens_per_item = config.num_known + config.num_semantic + config.num_pixel
        self.picture_size = (config.image_size, config.image_size)
        self.ordered = True
        self._remembered: dict[bytes, Tensor] = {}

    # ---- what is fitted before training

    def set_known(self, names: tuple[str, ...]) -> None:
        """Room for things of these names; before the fit there are none, and every id is 0."""
        config = self.config = self.config.model_copy(update={"known": names})
        size = max(len(names), config.num_known)
        self.known = KnownThings(NUM_FEATURES * len(config.trunks), size, config.known_dims).to(
            self.meaning.mean.device
        )
        self.block_sizes = {"known": size, "semantic": self.meaning.size, "image": self.quantizer.codebook_size}
        self.code_names = {"known": names}

    def fill_trunk(self, source: str) -> None:
        """source: `efficientnet`, the weights of the packages."""
        if source != PACKAGED:
            raise ValueError(f"the trunk {source!r} is not known; there is {PACKAGED!r}")
        if self.config.trunk_stages != len(STAGES):
            raise ValueError(
                f"the trunk {source} has {len(STAGES)} stages, and trunk_stages is {self.config.trunk_stages}"
            )
        for name, trunk in self.trunk.items():
            trunk.load_state_dict(load_pretrained(name).state_dict())

    def fit_to_labels(self, labelled: Iterable[tuple[Tensor, str]]) -> None:
        """Rounds the trunk to what is stored, too: its features, and so the codes, are those after a load."""
        self.trunk.to(self.stored_dtype).float()
        device = self.meaning.mean.device
        names: dict[str, int] = {}
        features, labels, keys = [], [], []
        items = iter(labelled)
        while some := list(islice(items, READ_AT_ONCE)):
            pictures = [turn_picture(picture) for picture, _ in some]
            keys += [hash_picture(picture) for picture in pictures]
            features.append(self.extract_features(torch.stack(pictures).to(device)).cpu())
            labels += [names.setdefault(label, len(names)) for _, label in some]
        if not labels:
            raise ValueError("there are no pictures with labels to fit the meaning codes by")
        self.meaning.cpu().fit(torch.cat(features), torch.tensor(labels), self.config.shrinkage)
        self.meaning.to(self.stored_dtype).float()
        if self.known is not None:
            if len(names) < self.config.num_known:
                raise ValueError(f"num_known is {self.config.num_known}, and there are {len(names)} labels")
            self.set_known(tuple(names))
            self.known.cpu().fit(torch.cat(features), torch.tensor(labels), self.config.known_shrinkage)
            self.known.to(self.stored_dtype).float()
        self._remembered = dict(zip(keys, self.describe(torch.cat(features)), strict=True))
        self.to(device)

    def take_weights(self, other: StoredModule) -> int:
        """Every weight of the same name and shape; of a tokenizer with another number of codes, and of nano's first
        picture tokenizer, the encoder and the decoder of as many pixel codes as there are here."""
        theirs = other.state_dict()
        if isinstance(other, ImageTokenizer):
            before = 1 + other.config.num_semantic
            found = {name: value for name, value in theirs.items() if name.startswith(("encoder.", "decoder."))}
            found |= {f"trunk.lite0.{name}": value for name, value in other.trunk.state_dict().items()}
            for name in ("weight", "bias"):
                found[f"pixel_in.{name}"] = found.pop(f"decoder.pixel_in.{name}")
        elif isinstance(other, MeaningFirstTokenizer) and (
            (other.config.num_semantic, other.config.num_pixel) != (self.config.num_semantic, self.config.num_pixel)
        ):
            before, found = other.config.num_semantic, dict(theirs)
        else:
            return super().take_weights(other)
        own, first, count = self.state_dict(), self.config.num_semantic, self.config.num_pixel
        alike = min(before, first) if isinstance(other, MeaningFirstTokenizer) else 0  # meaning codes in front of both
        for name in ("encoder.mixing", "encoder.code_positions"):
            found[name] = found[name][:count]
        for name, axis in (("decoder.mixing", 1), ("decoder.code_positions", 0), ("semantic_in", 0)):
            front = own[name].narrow(axis, alike, first - alike)
            if alike:
                front = torch.cat([found[name].narrow(axis, 0, alike), front], dim=axis)
            if name != "semantic_in":
                pixel = found[name].narrow(axis, before, min(count, found[name].shape[axis] - before))
                front = torch.cat([front, pixel], dim=axis)
            found[name] = front
        taken = [name for name in own if name in found and found[name].shape == own[name].shape]
        self.load_state_dict({**own, **{name: found[name] for name in taken}})
        return len(taken)

    # ---- from pictures to codes and back

    @torch.no_grad()
    def extract_features(self, x: Tensor) -> Tensor:
        """x: [B, 3, H, W] in [0, 1] → features of the frozen trunk [B, F]."""
        size = (self.config.trunk_size, self.config.trunk_size)
        larger = interpolate(x.float(), size=size, mode="bilinear", antialias=True)
        larger = larger.contiguous(memory_format=torch.channels_last)
        return torch.cat([trunk(larger) for trunk in self.trunk.values()], dim=1)

    def describe(self, features: Tensor) -> Tensor:
        """features: [B, F] → the ids of known things and of meaning, int64 [B, P + S]."""
        ids: Tensor = self.meaning(features)
        return ids if self.known is None else torch.cat([self.known(features, self.config.num_known), ids], dim=1)

    def encode_meaning(self, x: Tensor) -> Tensor:
        """x: [B, 3, H, W] in [0, 1] → ids int64 [B, P + S]; zeros before they are fitted."""
        if not self.meaning.fitted:
            count = self.config.num_known + self.config.num_semantic
            return torch.zeros(len(x), count, dtype=torch.int64, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            return self.describe(self.extract_features(x))

    def recall_meaning(self, x: Tensor) -> Tensor:
        """``encode_meaning`` for training, where pictures come again and again, mirrored or not: a picture and its
        mirror image both have the codes of one of the two, which are made once."""
        turned = [turn_picture(picture) for picture in x.detach()]
        keys = [hash_picture(picture) for picture in turned]
        new = {key: picture for key, picture in zip(keys, turned, strict=True) if key not in self._remembered}
        if new:
            self._remembered.update(zip(new, self.encode_meaning(torch.stack(list(new.values()))).cpu(), strict=True))
        return torch.stack([self._remembered[key] for key in keys]).to(x.device)

    def decode_values(self, semantic: Tensor, values: Tensor, kept: Tensor | None = None) -> Tensor:
        """semantic: ids [B, P + S]; values: of the pixel codes, [B, M, K]; kept: bool [B, N], False where a code is not
        known, None if all are → [B, 3, H, W], not clamped."""
        named = self.config.num_known  # ids that say nothing of how a thing looks
        meaning = torch.einsum("bsk,skd->bsd", self.meaning.to_values(semantic[:, named:]), self.semantic_in)
        kept = None if kept is None else kept[:, named:]
        made: Tensor = self.decoder(torch.cat([meaning, self.pixel_in(values)], dim=1), kept)
        return made

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        self.check_size(x)
        semantic = self.recall_meaning(x) if self.training else self.encode_meaning(x)
        quantized = self.quantizer(self.encoder(x))
        kept = None
        counts = self.prefix.draw(len(x), self.tokens_per_item, generator) if self.training else None
        if counts is not None:
            kept = torch.arange(self.tokens_per_item, device=x.device) < counts.to(x.device).unsqueeze(1)
        decoded = self.decode_values(semantic, quantized.values, kept)
        ids = torch.cat([semantic.unsqueeze(-1), quantized.ids], dim=1)
        return Reconstruction(decoded, quantized.loss, ids, quantized.numbers)

    def check_size(self, x: Tensor) -> None:
        """ValueError for pictures of another size."""
        size = self.config.image_size
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ValueError(f"meaning_first takes [B, 3, {size}, {size}] in [0, 1]; got {tuple(x.shape)}")

    # ---- the contract

    def code_features(self, block: str, group: int = 0) -> Tensor | None:
        """The levels of a code, scaled to [-1, 1], and the means of known things [C, D]: rows are made of them."""
        if group or block not in self.block_sizes:
            return None
        if block == "known":
            return None if self.known is None else self.known.centres.cpu()
        if block == "image":
            return self.quantizer.make_table()
        return self.meaning.to_values(torch.arange(self.meaning.size, device=self.meaning.basis.device)).cpu()

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        self.check_size(x)
        ids = torch.cat([self.encode_meaning(x).unsqueeze(-1), self.quantizer(self.encoder(x)).ids], dim=1)
        order = "meaning, then coarse to fine" if self.known is None else "known things, meaning, then coarse to fine"
        return Codes.whole(ids, order=order)

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        """Codes [B, n ≤ N, 1] → [B, 3, H, W]; a prefix of the codes gives a coarser picture."""
        ids, kept, num = codes.ids, codes.mask, self.tokens_per_item
        if ids.shape[1] > num or not bool(kept[:, :1].all()) or bool((kept[:, 1:] > kept[:, :-1]).any()):
            raise ValueError(f"a picture is {num} codes or a prefix of them; got {codes.counts}")
        missing = num - ids.shape[1]
        ids, kept = pad(ids, (0, 0, 0, missing)), pad(kept, (0, missing))
        ids = torch.where(kept.unsqueeze(-1), ids, torch.zeros_like(ids))
        semantic, pixel = ids.split([num - self.config.num_pixel, self.config.num_pixel], dim=1)
        return self.decode_values(semantic[..., 0], self.quantizer.look_up(pixel), kept).clamp(0, 1)


def hash_picture(picture: Tensor) -> bytes:
    """A picture [3, H, W] in [0, 1] by its bytes of 8 bits a channel."""
    return hashlib.blake2b((picture * 255).round().byte().cpu().numpy().tobytes(), digest_size=16).digest()


def turn_picture(picture: Tensor) -> Tensor:
    """A picture [3, H, W] or its mirror image: the same one of the two for both."""
    return min((picture, picture.flip(-1)), key=hash_picture)
