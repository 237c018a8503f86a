"""KARL (arXiv 2507.07995): a picture gets as many tokens as its detail needs for a wanted error, told in one pass.

The encoder reads the wanted error beside the picture; a head gives each token the chance that it is not needed.
Training takes two passes. In the first, which asks for next to no error, so many tokens as were drawn reconstruct the
picture, with some error, and all of them are needed. In the second all tokens are read with that error wanted: the
first ones were needed and the others not, each kind being half of the head's loss, and the tokens that the head keeps
reconstruct the picture again. Errors that a first pass has reached are asked for less and less often in it. Deviations
from its authors' code (ShivamDuggal4/karl @5c1a569): codes end before the first token that is not needed, where theirs
mask each by its own probability; the number is drawn for each picture and not for the batch, from all numbers and not
from multiples of 16; pixels are predicted, not the maps of a VAE or VQGAN.

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.prefix import count_before_halt, make_halting_targets, make_prefix_mask
from unimodal.tokenizers.systems.base import Reconstruction
from unimodal.tokenizers.systems.titok import TiTokConfig, TiTokTokenizer

#: mean absolute errors that the encoder can be asked for (its authors' values)
ERRORS = (
    0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.09, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.24, 0.28, 0.32, 0.38
)  # fmt: skip
#: the largest error that the first pass asks for, and what a reached error's chance is multiplied with in each step
NEARLY_NONE, FADING = 0.04, 0.99


def measure_halting(logits: Tensor, targets: Tensor, kept: Tensor | None = None) -> Tensor:
    """The cross-entropy of tokens that are needed (target 0) plus that of tokens that are not (1), each the mean over
    its kind. logits, targets: float [B, N]; kept: bool [B, N], False where there is no token."""
    real = torch.ones_like(targets, dtype=torch.bool) if kept is None else kept
    loss = logits.new_zeros(())
    for kind in (0.0, 1.0):
        chosen = real & (targets == kind)
        if bool(chosen.any()):
            loss = loss + binary_cross_entropy_with_logits(logits[chosen], targets[chosen])
    return loss


class KarlConfig(TiTokConfig):
    """wanted_error: the mean absolute error of a picture in [0, 1] that ``encode`` asks for. threshold: of the
    probability that a token is not needed. halting_weight: of the head's loss."""

    mixer: Literal["attention"] = "attention"  # a token that halted is seen by none, which needs attention
    family: str = "karl"
    wanted_error: float = Field(default=0.05, ge=0)
    threshold: float = Field(default=0.75, gt=0, lt=1)
    halting_weight: float = 1.0


class KarlTokenizer(TiTokTokenizer):
    """Pictures ⇄ 1 to N codes, fewer where there is less to say."""

    config_class: ClassVar[type[TiTokConfig]] = KarlConfig
    config: KarlConfig

    def __init__(self, config: KarlConfig):
        super().__init__(config)
        width = config.encoder.width
        self.errors = nn.Parameter(torch.tensor(ERRORS)[:, None].repeat(1, width))
        self.halting = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 512), nn.Tanh(), nn.Linear(512, 1))
        self.chances: Tensor  # of each error in the first pass
        self.register_buffer("chances", (torch.tensor(ERRORS) <= NEARLY_NONE).float())
        self.ordered = True

    def embed_error(self, error: Tensor) -> Tensor:
        """error: float [B] → the vector of the least error that can be asked for and is no smaller, [B, 1, D]."""
        values = torch.tensor(ERRORS, device=error.device)
        chosen = torch.searchsorted(values, error.contiguous()).clamp(max=len(ERRORS) - 1)
        return self.errors[chosen].unsqueeze(1)

    def read_tokens(self, x: Tensor, error: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x: float [B, 3, H, W], error: wanted, [B] → (tokens before quantization [B, N, T], logits [B, N] that each is
        not needed). kept: bool [B, N], False where there is no token."""
        self.check_pictures(x)
        vectors = self.encoder.read(x, extra=self.embed_error(error), kept=kept)
        return self.encoder.project(vectors), self.halting(vectors).squeeze(-1)

    def measure_error(self, x: Tensor, decoded: Tensor) -> Tensor:
        """The mean absolute error of each picture [B, 3, H, W], float [B]."""
        return (x - decoded).detach().abs().mean((1, 2, 3))

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """In training both passes; `decoded` is that of the first, whose tokens are all used, and the mean squared
        error of the second is part of `loss`."""
        wanted = torch.full((len(x),), self.config.wanted_error, device=x.device)
        if not self.training:
            z, logits = self.read_tokens(x, wanted)
            quantized = self.quantizer(z)
            needed = count_before_halt(logits.sigmoid(), self.config.threshold)
            decoded = self.decode_tokens(quantized.values, make_prefix_mask(needed, z.shape[1]))
            return Reconstruction(decoded, quantized.loss, quantized.ids, quantized.numbers)
        num = self.config.num_tokens
        counts = torch.randint(1, num + 1, (len(x),), generator=generator).to(x.device)
        kept = make_prefix_mask(counts, num)
        z, logits = self.read_tokens(x, self.draw_errors(len(x), generator), kept)
        first = self.quantizer(z, kept)
        decoded = self.decode_tokens(first.values, kept)
        halting = measure_halting(logits, torch.zeros_like(logits), kept)
        reached = self.measure_error(x, decoded)
        self.fade_chances(reached)
        z, logits = self.read_tokens(x, reached)
        second = self.quantizer(z)
        halting = halting + measure_halting(logits, make_halting_targets(counts, num))
        left = make_prefix_mask(count_before_halt(logits.detach().sigmoid(), self.config.threshold), num)
        again = (self.decode_tokens(second.values, left) - x).square().mean()
        numbers = {"halting": float(halting.detach()), "second_error": float(again.detach()), **first.numbers}
        loss = first.loss + second.loss + again + self.config.halting_weight * halting
        return Reconstruction(decoded, loss, first.ids, numbers)

    def draw_errors(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """The errors that a first pass asks for, float [B]."""
        drawn = torch.multinomial(self.chances.cpu(), batch, replacement=True, generator=generator)
        return torch.tensor(ERRORS)[drawn].to(self.chances)

    def fade_chances(self, reached: Tensor) -> None:
        """Errors no smaller than the least that was reached, float [B], are asked for less often from now on."""
        self.chances[torch.tensor(ERRORS, device=reached.device) >= reached.min()] *= FADING
        self.chances /= self.chances.sum()

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        wanted = torch.full((len(x),), self.config.wanted_error, device=x.device)
        z, logits = self.read_tokens(x, wanted)
        ids = self.quantizer(z).ids
        needed = count_before_halt(logits.sigmoid(), self.config.threshold)
        mask = make_prefix_mask(needed, ids.shape[1])
        return Codes(ids * mask.unsqueeze(-1), mask, order="queries")
