"""FlowTok (arXiv 2503.10772): pictures and captions as rows of the same few continuous tokens, and a flow that carries
one to the other: no noise is drawn, and the caption is no condition.

The tokens of a picture are those of `titok_latents`. A caption's vectors, from a frozen text encoder, are projected to
as many tokens of the same width, which a contrastive loss keeps apart from those of other captions.

Shapes: B batch, N tokens, T width of a token, M vectors of a caption, W their width, D width of a transformer.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from unimodal.tokenizers.codes import Latents
from unimodal.tokenizers.interface import Condition
from unimodal.tokenizers.parts.heads.flow import FlowStep, sample_flow, spread_time
from unimodal.tokenizers.parts.trunks.flex import FlexBlock, TimeEmbedding, norm_plain
from unimodal.tokenizers.systems.base import Reconstruction
from unimodal.tokenizers.systems.flextok import FlexSize
from unimodal.tokenizers.systems.titok import TiTokLatents, TiTokLatentsConfig

NO_CAPTION = "give a Condition(features=…) of the caption for each picture"


class FlowTokConfig(TiTokLatentsConfig):
    """num_tokens: N, of pictures and captions: at least as many as a caption has vectors. caption_width: W. projector:
    the transformer that projects captions; flow: the one of the flow. steps: of the walk, where the caller names none.
    caption_kl_weight and alignment_weight: of the captions' losses."""

    family: str = "flowtok"
    caption_width: int = Field(default=768, ge=1)
    projector: FlexSize
    flow: FlexSize
    head_width: int = Field(default=64, ge=1)
    num_waves: int = Field(default=256, ge=2)
    steps: int = Field(default=25, ge=1)
    caption_kl_weight: float = Field(default=1e-4, ge=0)
    alignment_weight: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def check_heads(self) -> Self:
        """ValueError for heads that do not divide, and for a decoder that reads text as a condition."""
        for name, size in (("projector", self.projector), ("flow", self.flow)):
            if size.width % self.head_width:
                raise ValueError(f"{name}: a width of {size.width} is not whole heads of head_width {self.head_width}")
        if self.text is not None:
            raise ValueError("the caption is where the flow begins and no condition; leave text out")
        return self


class TokenFlow(nn.Module):
    """Tokens on their way and the time → the velocity: [B, N, T], [B] → [B, N, T]."""

    def __init__(self, config: FlowTokConfig):
        super().__init__()
        width = config.flow.width
        self.tokens_in = nn.Linear(config.token_width, width)
        self.positions = nn.Parameter(0.02 * torch.randn(config.num_tokens, width))
        self.time = TimeEmbedding(width, config.num_waves)
        self.blocks = nn.ModuleList([FlexBlock(width, config.head_width, 1) for _ in range(config.flow.num_layers)])
        self.out = nn.Linear(width, config.token_width)

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        x, told = self.tokens_in(tokens) + self.positions, self.time(time)
        for block in self.blocks:
            x = block(x, time=told, counts=(x.shape[1],))
        return self.out(norm_plain(x))


class CaptionProjector(nn.Module):
    """A caption's vectors → mean and log-variance of N tokens; what is padding becomes one learned vector."""

    def __init__(self, config: FlowTokConfig):
        super().__init__()
        width = config.projector.width
        self.project = nn.Linear(config.caption_width, width)
        self.missing = nn.Parameter(0.02 * torch.randn(width))
        self.positions = nn.Parameter(0.02 * torch.randn(config.num_tokens, width))
        self.blocks = nn.ModuleList([FlexBlock(width, config.head_width) for _ in range(config.projector.num_layers)])
        self.out = nn.Linear(width, 2 * config.token_width)
        self.pooled_out = nn.Linear(config.caption_width, config.num_tokens * config.token_width)
        self.scale = nn.Parameter(torch.tensor(2.66))  # exp(2.66) is about 1 / 0.07, where CLIP begins

    def forward(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """features: [B, M, W], mask: bool [B, M] → float [B, N, T] each. ValueError for too many vectors."""
        num, count = len(self.positions), features.shape[1]
        if features.dim() != 3 or count > num or features.shape[2] != self.project.in_features:
            raise ValueError(
                f"a caption is given as up to {num} vectors of width {self.project.in_features}; "
                f"got {tuple(features.shape)}"
            )
        x = self.project(features.to(self.missing))
        if mask is not None:
            x = torch.where(mask[..., None], x, self.missing)
        x = torch.cat([x, self.missing.expand(len(x), num - count, -1)], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        mean, log_variance = self.out(norm_plain(x)).float().chunk(2, -1)
        return mean, log_variance.clamp(-30, 20)

    def compare(self, tokens: Tensor, features: Tensor, mask: Tensor | None) -> Tensor:
        """How badly each caption's tokens [B, N, T] are told from those of the others by the mean of its own vectors
        (CLIP's loss, arXiv 2103.00020): scalar."""
        real = features.new_ones(features.shape[:2]) if mask is None else mask.to(features)
        pooled = (features * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        sides = normalize(self.pooled_out(pooled.to(tokens)), dim=-1), normalize(tokens.flatten(1), dim=-1)
        logits = self.scale.exp() * sides[0] @ sides[1].T
        own = torch.arange(len(logits), device=logits.device)
        return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


class FlowTokLatents(TiTokLatents):
    """Pictures ⇄ N tokens, as `TiTokLatents`; and captions to pictures' tokens and back (``draw_tokens`` and
    ``read_tokens``). A caption is a `Condition` with features."""

    config_class: ClassVar[type[FlowTokConfig]] = FlowTokConfig
    config: FlowTokConfig

    def __init__(self, config: FlowTokConfig):
        super().__init__(config)
        self.captions, self.flow = CaptionProjector(config), TokenFlow(config)

    def project_caption(self, condition: Condition) -> Tensor:
        """The tokens of captions, float [B, N, T]: where the flow begins. ValueError for a condition without them."""
        if condition.features is None:
            raise ValueError(NO_CAPTION)
        return self.captions(condition.features, condition.features_mask)[0]

    def draw_tokens(self, condition: Condition, steps: int | None = None) -> Latents:
        """Captions → the tokens of pictures, which ``decode`` takes. The same caption gives the same picture."""
        with torch.inference_mode():
            start = self.project_caption(condition)
            made = sample_flow(self.flow, start, self.config.steps if steps is None else steps)
        return Latents(made, torch.ones(made.shape[:2], dtype=torch.bool, device=made.device), order="queries")

    def read_tokens(self, coded: Latents, steps: int | None = None) -> Tensor:
        """The tokens of pictures → those of their captions, float [B, N, T], which a text decoder reads: the same walk
        the other way."""
        num = self.config.steps if steps is None else steps
        with torch.inference_mode():
            tokens = coded.values
            for step in range(num):
                tokens = tokens + self.flow(tokens, torch.full((len(tokens),), step / num, device=tokens.device)) / num
        return tokens

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """With captions as the condition, `loss` holds what ``measure_flow`` gives too; that does not reach the
        pictures' tokens."""
        made = super().reconstruct(x, lengths, None, generator)
        if condition is None:
            return made
        loss, numbers = self.measure_flow(made.features["tokens"].detach(), condition, generator)
        return Reconstruction(made.decoded, made.loss + loss, None, {**made.numbers, **numbers}, made.features)

    def measure_flow(
        self, pictures: Tensor, condition: Condition, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """What is trained on stored tokens of pictures, float [B, N, T], and their captions: the loss of the flow and
        those of the captions' tokens, and numbers to log. ValueError for a condition without captions."""
        if condition.features is None:
            raise ValueError(NO_CAPTION)
        mean, log_variance = self.captions(condition.features, condition.features_mask)
        tokens = mean
        if self.training:
            tokens = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator).to(mean)
        time = torch.rand(len(pictures), generator=generator).to(pictures)
        t = spread_time(time, tokens)
        step = FlowStep(t * tokens + (1 - t) * pictures, time, tokens - pictures)
        flow = (self.flow(step.noisy, time) - step.target).square().mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum((1, 2)).mean()
        apart = self.captions.compare(tokens, condition.features, condition.features_mask)
        loss = flow + self.config.caption_kl_weight * divergence + self.config.alignment_weight * apart
        return loss, {"flow": float(flow.detach()), "captions": float(apart.detach())}
