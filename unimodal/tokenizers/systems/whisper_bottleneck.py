"""Speech codes from a frozen speech recogniser's encoder: what Whisper (arXiv 2212.04356) hears, in finite scalars.

Two steps of 20 ms become one code of four scalars through a light network; the same, turned round, rebuilds the
encoder's features from the codes. It is trained by that and, with `losses: {spelling: 1}`, by what is said: a trunk
that knows many voices gives codes that spell voices which the training never heard. It has no way back to sound.

Shapes: B batch, T samples, W width of the trunk, N codes, D width between.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import gelu

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import Condition
from unimodal.tokenizers.parts.quantizers.interface import average_real
from unimodal.tokenizers.rows import decode_rows
from unimodal.tokenizers.systems.base import Reconstruction
from unimodal.tokenizers.systems.whisper_hearing import WhisperHearing, WhisperHearingConfig


class WhisperBottleneckConfig(WhisperHearingConfig):
    """width, num_layers: of the light networks. feature_weight: of the rebuilt features."""

    family: Literal["whisper_bottleneck"] = "whisper_bottleneck"
    width: int = Field(default=256, ge=1)
    num_layers: int = Field(default=2, ge=0)
    feature_weight: float = Field(default=1.0, ge=0)

    @property
    def can_decode(self) -> bool:
        return False


class StepNetwork(nn.Module):
    """Residual convolutions over five steps, between two linear layers."""

    def __init__(self, inputs: int, width: int, outputs: int, num_layers: int):
        super().__init__()
        self.enter, self.leave = nn.Linear(inputs, width), nn.Linear(width, outputs)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(num_layers + 1))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv1d(width, width, 5, padding=2, groups=width), nn.Conv1d(width, width, 1))
            for _ in range(num_layers)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, N, inputs], mask: bool [B, N] → [B, N, outputs]; padding is never heard."""
        real = mask.unsqueeze(-1)
        h = self.enter(x)
        for norm, layer in zip(self.norms, self.layers, strict=False):
            h = h + gelu(layer((norm(h) * real).transpose(1, 2)).transpose(1, 2))
        return self.leave(self.norms[-1](h))


class WhisperBottleneckTokenizer(WhisperHearing):
    """Speech of 16 kHz → 25 codes a second.

    ``encode``: float [B, 1, T] → Codes [B, N, 1]. There is no ``decode``: see `decode_features`.
    """

    config_class: ClassVar[type[WhisperBottleneckConfig]] = WhisperBottleneckConfig
    no_decoder = (
        "these codes stand for a speech encoder's features, not for sound: decode_features(codes) gives them, and a "
        "speech synthesizer makes sound of them"
    )
    config: WhisperBottleneckConfig

    def __init__(self, config: WhisperBottleneckConfig):
        super().__init__(config)
        joined = config.steps_per_code * config.trunk_width
        self.down = StepNetwork(joined, config.width, len(config.levels), config.num_layers)
        self.up = StepNetwork(len(config.levels), config.width, joined, config.num_layers)

    def encode_equal(self, x: Tensor) -> Tensor:
        joined = self.hear_windows(x)
        whole = torch.ones(joined.shape[:2], dtype=torch.bool, device=joined.device)
        return self.quantizer(self.down(joined, whole)).ids

    def decode_features(self, codes: Codes) -> list[Tensor]:
        """What the trunk heard, rebuilt from each item's codes: [N · steps_per_code, W], as `hear` gives it."""
        self.check_codes(codes)

        def decode(ids: Tensor) -> Tensor:
            whole = torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device)
            made = self.up(self.quantizer.look_up(ids), whole)
            return made.unflatten(2, (self.config.steps_per_code, -1)).flatten(1, 2)

        with torch.inference_mode():
            return decode_rows(codes, decode)

    # ---- training

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """The codes' scalars as the features "codes", for the spelling loss; nothing is decoded. loss: the squared
        error of the rebuilt features. ValueError for sounds of more than one window."""
        joined, mask = self.hear_items(x, lengths)
        made = self.quantizer(self.down(joined, mask), mask)
        error = average_real((self.up(made.values, mask) - joined).square(), mask)
        numbers = {"feature_error": float(error.detach()), **made.numbers}
        return Reconstruction(None, self.config.feature_weight * error, made.ids, numbers, {"codes": made.values}, mask)
