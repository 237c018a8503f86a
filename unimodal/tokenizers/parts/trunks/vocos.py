"""The trunk of Vocos (arXiv 2306.00814): ConvNeXt blocks at one rate, which an inverse-STFT head follows.

WavTokenizer (arXiv 2408.16532) puts residual blocks and one head of attention in front of them.

Shapes: B batch, C channels in, D width, N frames.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention, silu

from unimodal.tokenizers.parts.heads.spectrum import SpectrumHead, SpectrumPadding

EPSILON = 1e-6


class VocosSettings(BaseModel):
    """Trunk and head. channels_in: C. inner_width: of the blocks' linear layers. num_conditions: rows that every norm
    chooses its scale and shift from, 0 for plain norms. attended: WavTokenizer's blocks in front, with norms in
    num_groups groups. window_size, hop, padding: of the head's inverse STFT."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    channels_in: int = Field(default=100, ge=1)
    width: int = Field(default=512, ge=1)
    inner_width: int = Field(default=1536, ge=1)
    num_layers: int = Field(default=8, ge=1)
    num_conditions: int = Field(default=0, ge=0)
    attended: bool = False
    num_groups: int = Field(default=32, ge=1)
    window_size: int = Field(default=1024, ge=2)
    hop: int = Field(default=256, ge=1)
    padding: SpectrumPadding = "center"


class ChosenLayerNorm(nn.Module):
    """A layer norm on [B, N, D] whose scale and shift are those of one of several conditions."""

    def __init__(self, num_conditions: int, width: int):
        super().__init__()
        self.scale, self.shift = nn.Embedding(num_conditions, width), nn.Embedding(num_conditions, width)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, condition: int) -> Tensor:
        x = layer_norm(x, x.shape[-1:], eps=EPSILON)
        return x * self.scale.weight[condition] + self.shift.weight[condition]


class PlainLayerNorm(nn.LayerNorm):
    """The same without conditions."""

    def forward(self, x: Tensor, condition: int = 0) -> Tensor:
        return super().forward(x)


def make_norm(settings: VocosSettings) -> nn.Module:
    """The norm of a trunk."""
    if settings.num_conditions:
        return ChosenLayerNorm(settings.num_conditions, settings.width)
    return PlainLayerNorm(settings.width, eps=EPSILON)


class VocosBlock(nn.Module):
    """[B, D, N] → the same shape."""

    def __init__(self, settings: VocosSettings):
        super().__init__()
        width = settings.width
        self.dwconv = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = make_norm(settings)
        self.pwconv1, self.pwconv2 = nn.Linear(width, settings.inner_width), nn.Linear(settings.inner_width, width)
        self.gamma = nn.Parameter(self.pwconv1.weight.new_full((width,), 1 / settings.num_layers))

    def forward(self, x: Tensor, condition: int) -> Tensor:
        h = self.norm(self.dwconv(x).transpose(1, 2), condition)
        return x + (self.gamma * self.pwconv2(nn.functional.gelu(self.pwconv1(h)))).transpose(1, 2)


class FrontBlock(nn.Module):
    """A residual block on [B, D, N] before the ConvNeXt ones."""

    def __init__(self, width: int, num_groups: int):
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(num_groups, width, eps=EPSILON) for _ in range(2))
        self.conv1, self.conv2 = (nn.Conv1d(width, width, 3, padding=1) for _ in range(2))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        return x + self.conv2(self.dropout(silu(self.norm2(h))))


class FrontAttention(nn.Module):
    """One head of attention over all frames, added to [B, D, N]."""

    def __init__(self, width: int, num_groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, width, eps=EPSILON)
        self.q, self.k, self.v, self.proj_out = (nn.Conv1d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).transpose(1, 2) for layer in (self.q, self.k, self.v))  # [B, N, D]
        return x + self.proj_out(scaled_dot_product_attention(q, k, v).transpose(1, 2))


class VocosTrunk(nn.Module):
    """[B, C, N] → [B, N, D]."""

    def __init__(self, settings: VocosSettings):
        super().__init__()
        width, groups = settings.width, settings.num_groups
        self.embed = nn.Conv1d(settings.channels_in, width, 7, padding=3)
        self.norm = make_norm(settings)
        self.blocks = nn.ModuleList(VocosBlock(settings) for _ in range(settings.num_layers))
        self.final_layer_norm = nn.LayerNorm(width, eps=EPSILON)
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.front = nn.Sequential()
        if settings.attended:
            self.front.extend(FrontBlock(width, groups) for _ in range(2))
            self.front.append(FrontAttention(width, groups))
            self.front.extend(FrontBlock(width, groups) for _ in range(2))
            self.front.append(nn.GroupNorm(groups, width, eps=EPSILON))

    def forward(self, x: Tensor, condition: int = 0) -> Tensor:
        h = self.front(self.embed(x))
        h = self.norm(h.transpose(1, 2), condition).transpose(1, 2)
        for block in self.blocks:
            h = block(h, condition)
        return self.final_layer_norm(h.transpose(1, 2))


class VocosDecoder(nn.Module):
    """Trunk and head: [B, C, N] → [B, 1, T]."""

    def __init__(self, settings: VocosSettings):
        super().__init__()
        self.backbone = VocosTrunk(settings)
        self.head = SpectrumHead(settings.width, settings.window_size, settings.hop, settings.padding)

    def forward(self, x: Tensor, condition: int = 0) -> Tensor:
        return self.head(self.backbone(x, condition))[:, None]
