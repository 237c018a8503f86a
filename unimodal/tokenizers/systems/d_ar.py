"""D-AR (Diffusion via Autoregressive Models): codes in the order of a flow's steps; the first ones draw a preview.

At each time the decoder reads one window of the codes alone, the first ones where all is noise and the last ones at the
end. Decoding takes one step a window; where only a prefix of the codes is known it stops behind the last whole window
and gives the picture that the velocity points at there. Deviations from its authors' code, of which only this order is
shown: finite scalars in place of a codebook of 16,384, FlexTok's transformers in place of a causal one and SiT, plain
Euler steps in place of Adams', no shift of the times.

Shapes: B batch, N codes, K quantized dimensions, C channels, h and w sides of the map.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.heads.flow import draw_flow_step
from unimodal.tokenizers.systems.base import Reconstruction
from unimodal.tokenizers.systems.flextok import FlexTokConfig, FlexTokTokenizer


class DArConfig(FlexTokConfig):
    """steps: of the flow, and windows of the codes; they divide num_tokens."""

    family: str = "d_ar"
    steps: int = Field(default=8, ge=1)
    guidance: float = 1.0

    @property
    def window(self) -> int:
        """Codes of one window."""
        return self.num_tokens // self.steps

    @model_validator(mode="after")
    def check_windows(self) -> Self:
        """ValueError for codes that do not fall into whole windows, and for guidance, which is not part of it."""
        if self.num_tokens % self.steps:
            raise ValueError(f"num_tokens {self.num_tokens} are no whole windows of {self.steps} steps")
        if self.guidance != 1:
            raise ValueError(f"guidance is {self.guidance}; the windows are read without, leave it out")
        return self


class DArTokenizer(FlexTokTokenizer):
    """Pictures or maps ⇄ up to N codes, a window for each step of the flow."""

    config_class: ClassVar[type[FlexTokConfig]] = DArConfig
    config: DArConfig

    def __init__(self, config: DArConfig):
        super().__init__(config)
        self.decode_settings = frozenset({"noise"})

    def find_window(self, time: Tensor) -> Tensor:
        """time: float [B], 1 where all is noise → the codes that are read there, bool [B, N]."""
        steps, window = self.config.steps, self.config.window
        start = ((1 - time) * steps + 0.5).floor().clamp(max=steps - 1).long().unsqueeze(1) * window
        place = torch.arange(self.config.num_tokens, device=time.device)
        return (place >= start) & (place < start + window)

    def find_velocity(self, noisy: Tensor, time: Tensor, values: Tensor) -> Tensor:
        """noisy: [B, C, h, w], time: [B], values: quantized [B, N, K] → velocity [B, C, h, w]."""
        return self.decoder(noisy, time, values, self.find_window(time))

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        maps = self.to_maps(x)
        quantized = self.quantizer(self.encoder(maps))
        step = draw_flow_step(maps, generator)
        velocity = self.find_velocity(step.noisy, step.time, quantized.values)
        flow = (velocity - step.target).square().mean()
        numbers = {"flow": float(flow.detach()), **quantized.numbers}
        return Reconstruction(self.to_media(step.estimate(velocity)), flow, quantized.ids, numbers)

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        steps, window, num = self.config.steps, self.config.window, self.config.num_tokens
        if not all(window <= count <= num for count in codes.counts):
            raise ValueError(f"a picture of d_ar is {window} to {num} codes, {window} a step; got {codes.counts}")
        assert options.noise is not None
        values = self.quantizer.look_up(nn.functional.pad(codes.ids, (0, 0, 0, num - codes.ids.shape[1])))
        known = codes.mask.sum(1) // window  # steps whose window is whole
        x = options.noise
        drawn = torch.zeros_like(x)
        for step in range(int(known.max())):
            time = torch.full((len(x),), 1 - step / steps, device=x.device)
            velocity = self.find_velocity(x, time, values)
            last = (known == step + 1)[:, None, None, None]
            drawn = torch.where(last, x - (1 - step / steps) * velocity, drawn)
            x = x - velocity / steps
        made = self.to_media(drawn)
        return made if self.config.medium == "maps" else made.clamp(0, 1)
