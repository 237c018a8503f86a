"""Frozen vision encoders: pictures → the patch features of each layer.

A vision transformer of transformers (CLIP's, SigLIP's, DINOv2, DINOv3, BEiT, ViT) by its own config, so that a saved
folder needs neither its source nor the hub, or one of the EfficientNets of nano, which has one map of features.

Shapes: B batch, L layers, N patches in raster order, E width of the encoder, h and w its grid.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from torch import Tensor, nn

from unimodal.files import describe_error, read_json
from unimodal.tokenizers.nano.efficientnet import NUM_FEATURES, TRUNKS, EfficientNetLite0, load_pretrained
from unimodal.tokenizers.pretrained.base import to_plain_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Triple = tuple[float, float, float]


class EncoderSettings(BaseModel):
    """kind: `lite0` or `lite1`, or the model_type of a vision transformer, whose config is `network`. image_size: of
    the pictures that it sees; mean, std: what their pixels are scaled by."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str
    network: dict[str, JsonValue] = {}
    image_size: int = Field(ge=8)
    mean: Triple = (0.5, 0.5, 0.5)
    std: Triple = (0.5, 0.5, 0.5)


class FrozenEncoder(nn.Module):
    """A frozen encoder. grid: (h, w). width: E. num_layers: L. ValueError for a network that has no patches."""

    mean: Tensor
    std: Tensor

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("mean", torch.tensor(settings.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(settings.std).view(1, 3, 1, 1), persistent=False)
        if settings.kind in TRUNKS:
            side = -(-settings.image_size // 32)
            self.network: nn.Module = TRUNKS[settings.kind]()
            self.grid, self.width, self.num_layers = (side, side), NUM_FEATURES, 1
        else:
            self.network, self.grid, self.width, self.num_layers = _build_transformer(settings)
        self.requires_grad_(False)
        super().train(False)

    @property
    def num_patches(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: it is frozen."""
        return super().train(False)

    @classmethod
    def open(cls, source: str, image_size: int | None = None) -> Self:
        """`lite0` or `lite1` with the weights of their package, or a folder or hub id of transformers.

        image_size: of the pictures, by default the network's own, for an EfficientNet 128. Raises ValueError, in one
        line, for weights that cannot be loaded, and for a model that is no vision transformer with patches.
        """
        if source in TRUNKS:
            encoder = cls(EncoderSettings(kind=source, image_size=image_size or 128))
            encoder.network.load_state_dict(load_pretrained(source).state_dict())
            return encoder
        from transformers import AutoConfig, AutoModel

        try:
            config = AutoConfig.from_pretrained(source)
            config = getattr(config, "vision_config", config)
            loaded = AutoModel.from_pretrained(source)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"the encoder {source!r} cannot be loaded: {describe_error(error, 200)}") from None
        mean, std = _read_scales(Path(source) / "preprocessor_config.json")
        settings = EncoderSettings(
            kind=str(config.model_type),
            network=to_plain_config(config),
            image_size=image_size or int(getattr(config, "image_size", 224)),
            mean=mean,
            std=std,
        )
        encoder = cls(settings)
        state = getattr(loaded, "vision_model", loaded).state_dict()
        own = encoder.network.state_dict()
        found = {name: state.get(name, state.get(name.removeprefix("vision_model."))) for name in own}
        missing = [name for name, value in found.items() if value is None or value.shape != own[name].shape]
        if missing:
            raise ValueError(f"the encoder {source!r} lacks {missing[0]} ({len(missing)} in all); name another")
        encoder.network.load_state_dict(found)
        return encoder

    @torch.no_grad()
    def read_layers(self, x: Tensor) -> Tensor:
        """x: [B, 3, H, W] in [0, 1] → the patch features behind each layer, float32 [L, B, N, E]."""
        size = (self.settings.image_size, self.settings.image_size)
        if x.shape[-2:] != size:
            x = nn.functional.interpolate(x, size=size, mode="bilinear", antialias=True)
        if self.settings.kind in TRUNKS:
            network = self.network
            assert isinstance(network, EfficientNetLite0)
            y = network.stem(x * (255 / 128) - (127 / 128)).clamp_(0, 6)
            for block in network.blocks:
                y = block(y)
            return network.head(y).clamp_(0, 6).flatten(2).transpose(1, 2)[None]
        states = self.network((x - self.mean) / self.std, output_hidden_states=True).hidden_states[1:]
        return torch.stack([state[:, state.shape[1] - self.num_patches :] for state in states]).float()

    @torch.no_grad()
    def read_last(self, x: Tensor) -> Tensor:
        """x: [B, 3, H, W] in [0, 1] → its output, normed where it norms it: float32 [B, N, E]."""
        if self.settings.kind in TRUNKS:
            return self.read_layers(x)[0]
        size = (self.settings.image_size, self.settings.image_size)
        if x.shape[-2:] != size:
            x = nn.functional.interpolate(x, size=size, mode="bilinear", antialias=True)
        out: Tensor = self.network((x - self.mean) / self.std).last_hidden_state
        return out[:, out.shape[1] - self.num_patches :].float()

    @torch.no_grad()
    def measure_entropies(self, x: Tensor) -> Tensor:
        """x: [B, 3, H, W] in [0, 1] → how evenly each layer attends, float32 [L]: the mean entropy of its attention
        over heads, queries and pictures, over the largest possible. ValueError for a network without attention."""
        if self.settings.kind in TRUNKS:
            raise ValueError(f"{self.settings.kind} does not attend; entropies are of vision transformers")
        before = self.network.config._attn_implementation
        self.network.set_attn_implementation("eager")  # others do not return what they attend to
        try:
            found = self.network((x - self.mean) / self.std, output_attentions=True).attentions
        finally:
            self.network.set_attn_implementation(before)
        entropies = [-(a * a.clamp_min(1e-30).log()).sum(-1).mean() / torch.tensor(a.shape[-1]).log() for a in found]
        return torch.stack(entropies).float()


def _read_scales(path: Path) -> tuple[Triple, Triple]:
    """Mean and deviation of pixels in a folder's image processor; a half where it says nothing."""
    fields = read_json(path) if path.is_file() else {}
    scales: list[Triple] = []
    for name in ("image_mean", "image_std"):
        given = fields.get(name)
        three = given if isinstance(given, list) and len(given) == 3 else [0.5] * 3
        scales.append((float(three[0]), float(three[1]), float(three[2])))
    return scales[0], scales[1]


def _build_transformer(settings: EncoderSettings) -> tuple[nn.Module, tuple[int, int], int, int]:
    """The network with random weights, its grid, width and layers."""
    from transformers import AutoConfig, AutoModel

    try:
        network = {name: value for name, value in settings.network.items() if name != "model_type"}
        config: PreTrainedConfig = AutoConfig.for_model(settings.kind, **network)
        model = AutoModel.from_config(config)
    except Exception as error:  # transformers' strict configs raise their own kinds
        raise ValueError(f"{settings.kind!r} is no encoder that transformers builds: {describe_error(error)}") from None
    patch = getattr(config, "patch_size", None)
    if not isinstance(patch, int) or settings.image_size % patch:
        raise ValueError(f"{settings.kind} has patches of {patch}; pictures of {settings.image_size} pixels do not fit")
    side = settings.image_size // patch
    return model, (side, side), int(config.hidden_size), int(config.num_hidden_layers)
