"""Vision encoders that transformers has, as trunks whose layers can be tapped: SigLIP (arXiv 2303.15343; SigLIP 2's
models of one size have the same network), DINOv2 with registers (2309.16588), InternViT (2312.14238).

A new tower has random weights; `VisionTower.load_pretrained` takes those of a checkpoint.

Shapes: B batch, H, W height and width, N patches, D width, L layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TowerKind = Literal["siglip", "dinov2_registers", "internvit"]
#: mean and deviation of each colour that pictures in [0, 1] are scaled by
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SCALES: dict[TowerKind, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "siglip": HALVES,
    "dinov2_registers": IMAGENET,
    "internvit": IMAGENET,
}


class TowerSettings(BaseModel):
    """image_size: side that pictures are resized to. inner: width of the hidden units of a feed-forward. num_registers:
    of DINOv2. normalize_affine: whether DINOv2's last norm has its learned scale and shift (RAE leaves them out).
    layer_scale: what InternViT's scales of a layer's two halves begin with."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: TowerKind = "siglip"
    image_size: int = Field(default=224, ge=1)
    patch_size: int = Field(default=14, ge=1)
    width: int = Field(default=768, ge=1)
    num_layers: int = Field(default=12, ge=1)
    num_heads: int = Field(default=12, ge=1)
    inner: int = Field(default=3072, ge=1)
    num_registers: int = Field(default=4, ge=0)
    normalize_affine: bool = True
    layer_scale: float = 1.0

    @property
    def side(self) -> int:
        """Rows, and columns, of patches."""
        return self.image_size // self.patch_size


class VisionTower(nn.Module):
    """Pictures in [0, 1] → the patches' vectors after each layer."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, settings: TowerSettings, frozen: bool = True):
        """frozen: no weight takes a gradient."""
        super().__init__()
        if settings.width % settings.num_heads:
            raise ValueError(f"{settings.num_heads} heads do not divide a tower's width of {settings.width}")
        self.settings = settings
        self.network: nn.Module = _build_network(settings).requires_grad_(not frozen)
        if not settings.normalize_affine:
            self.network.layernorm = nn.LayerNorm(settings.width, 1e-6, elementwise_affine=False)
        for name, values in zip(("mean", "deviation"), SCALES[settings.kind], strict=True):
            self.register_buffer(name, torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)

    def prepare(self, x: Tensor) -> Tensor:
        """x: float [B, 3, H, W] in [0, 1] → resized to the tower's size (bicubic) and scaled as it was trained."""
        size = (self.settings.image_size, self.settings.image_size)
        x = x if x.shape[-2:] == size else interpolate(x, size, mode="bicubic", align_corners=False)
        return (x - self.mean) / self.deviation

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: float [B, 3, H, W] in [0, 1] → L + 1 maps [B, N, D]: the embedding, then each layer's output."""
        hidden = self.network(pixel_values=self.prepare(x), output_hidden_states=True).hidden_states
        count = self.settings.side**2
        return tuple(state[:, -count:] for state in hidden)

    def read_last(self, x: Tensor) -> Tensor:
        """x: float [B, 3, H, W] in [0, 1] → the patches after the last norm, [B, N, D]."""
        return self.network(pixel_values=self.prepare(x)).last_hidden_state[:, -(self.settings.side**2) :]

    def list_layers(self) -> list[nn.Module]:
        """The transformer layers in order."""
        layers = self.network.get_submodule("encoder.layers" if self.settings.kind == "siglip" else "encoder.layer")
        assert isinstance(layers, nn.ModuleList)
        return list(layers)

    def load_pretrained(self, folder: str | Path) -> None:
        """Takes the weights of a checkpoint of transformers; a text half is left out. Raises ValueError for a folder
        without such a network and for weights of another size."""
        from transformers import AutoModel

        try:
            network = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} holds no vision encoder ({str(error).splitlines()[0]})") from None
        state = getattr(network, "vision_model", network).state_dict()
        if not self.settings.normalize_affine:
            state = {name: tensor for name, tensor in state.items() if not name.startswith("layernorm.")}
        try:
            self.network.load_state_dict(state)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"{folder} is another tower than the settings describe: {reason}") from None


def _build_network(settings: TowerSettings) -> PreTrainedModel:
    sizes = {
        "hidden_size": settings.width, "num_hidden_layers": settings.num_layers,
        "num_attention_heads": settings.num_heads,
    }  # fmt: skip
    if settings.kind == "siglip":
        from transformers import SiglipVisionConfig, SiglipVisionModel

        return SiglipVisionModel(
            SiglipVisionConfig(
                intermediate_size=settings.inner, image_size=settings.image_size, patch_size=settings.patch_size,
                **sizes,
            )
        )  # fmt: skip
    if settings.kind == "internvit":
        from transformers import InternVLVisionConfig, InternVLVisionModel

        square = (settings.image_size, settings.image_size)
        return InternVLVisionModel(
            InternVLVisionConfig(
                intermediate_size=settings.inner, image_size=square, attention_bias=True,
                patch_size=(settings.patch_size, settings.patch_size), use_absolute_position_embeddings=True,
                layer_scale_init_value=settings.layer_scale, **sizes,
            )
        )  # fmt: skip
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    if settings.inner % settings.width:
        raise ValueError(f"DINOv2's inner width is a multiple of its width {settings.width}; got {settings.inner}")
    return Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            mlp_ratio=settings.inner // settings.width, image_size=settings.image_size,
            patch_size=settings.patch_size, num_register_tokens=settings.num_registers, **sizes,
        )
    )  # fmt: skip
