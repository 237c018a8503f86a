"""Draw the next token: temperature, top-k, top-p, and noise that depends on the row alone and not on its batch.

A token is drawn as argmax(logits / temperature + Gumbel noise), which samples the softmax exactly. The noise is a hash
of (the row's seed, the number of the token in the answer, the vocabulary row). So for the same logits the same request
gives the same answer alone, in any batch, on any device, and however many rows of the vocabulary the head computes.

Shapes: R rows of the batch, K candidate rows of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from unimodal.config import Config

_MASK = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF


class SamplingConfig(Config):
    """How one modality is sampled. temperature 0 takes the likeliest token; top_k 0 and top_p 1 filter nothing.

    The first ``first_codes`` code steps of a span are drawn at ``first_temperature``. Where codes run from coarse to
    fine, a low one keeps what a picture shows likely, while its details vary.
    """

    temperature: float = Field(default=1.0, ge=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    first_codes: int = Field(default=0, ge=0)
    first_temperature: float = Field(default=0.0, ge=0)

    def choose_for_step(self, step: int) -> SamplingConfig:
        """The sampling of code step ``step`` of a span: with `first_temperature` as temperature, or without it."""
        if not self.first_codes:
            return self
        temperature = self.first_temperature if step < self.first_codes else self.temperature
        return SamplingConfig(temperature=temperature, top_k=self.top_k, top_p=self.top_p)


GREEDY = SamplingConfig(temperature=0.0)
PLAIN = SamplingConfig()  # what the model says: temperature 1, no filter


def _mix_64_bits(value: int) -> int:
    """The output function of the splitmix64 generator, on Python integers."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def make_noise_keys(seeds: Sequence[int], step: int | Sequence[int]) -> Tensor:
    """64 random bits for each row, from its seed and the number of its next token: int64 [R, 2], each below 2**32."""
    steps = [step] * len(seeds) if isinstance(step, int) else step
    keys = [_mix_64_bits(_mix_64_bits(seed & _MASK64) ^ number) for seed, number in zip(seeds, steps, strict=True)]
    return torch.tensor([[key & _MASK, key >> 32] for key in keys], dtype=torch.int64)


def _mix_32_bits(x: Tensor) -> Tensor:
    """A 32-bit hash (Wellons, "Prospecting for Hash Functions") of the low 32 bits of an int64."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def make_gumbel_noise(keys: Tensor, ids: Tensor) -> Tensor:
    """Standard Gumbel noise [R, K] for keys [R, 2] and vocabulary rows [K], fp32."""
    bits = _mix_32_bits(_mix_32_bits(ids[None, :] ^ keys[:, :1]) ^ keys[:, 1:])  # [R, K], uniform 32 bits
    # The largest noise comes from the smallest v, where fp32 is precise; v = 1 would be -inf.
    v = ((bits.to(torch.float32) + 0.5) * 2.0**-32).clamp_(max=1 - 2.0**-24)
    return v.neg_().log1p_().neg_().log_().neg_()


def filter_logits(logits: Tensor, top_k: Sequence[int], top_p: Sequence[float]) -> Tensor:
    """Set logits [R, K] outside a row's top-k or nucleus (arXiv:1904.09751) to -inf; apply the temperature before.

    Top-k first, then the smallest set of the rest whose probability reaches top_p. Ties with the last kept candidate
    are kept.
    """
    num = logits.shape[1]
    ks = [k if 0 < k < num else num for k in top_k]
    if max(ks) == num and min(ks) == num and min(top_p) >= 1:
        return logits
    width = max(ks)
    values = logits.topk(width, dim=1, sorted=True).values  # [R, width], descending
    k = torch.tensor(ks, device=logits.device)[:, None].expand(len(logits), 1)
    threshold = values.gather(1, k - 1)  # [R, 1]
    if min(top_p) < 1:
        kept = values.masked_fill(torch.arange(width, device=logits.device) >= k, -torch.inf)
        p = kept.float().softmax(1)
        nucleus = torch.tensor(list(top_p), device=logits.device, dtype=torch.float32)[:, None]
        before = p.cumsum(1) - p  # [R, width] the mass of all likelier candidates
        last = ((before < nucleus) & torch.isfinite(kept)).sum(1, keepdim=True) - 1
        threshold = torch.where(nucleus < 1, torch.maximum(threshold, values.gather(1, last.clamp(min=0))), threshold)
    return logits.masked_fill(logits < threshold, -torch.inf)


class Sampler:
    """The settings of R rows, put on the device once, so that drawing transfers nothing and never waits."""

    def __init__(self, configs: Sequence[SamplingConfig], device: torch.device | str = "cpu") -> None:
        # beyond these bounds logits / temperature overflows in fp32; at them the draw is certain, and uniform
        temperatures = [min(c.temperature, 1e30) if c.temperature >= 1e-30 else 0.0 for c in configs]
        self.top_k, self.top_p = [c.top_k for c in configs], [c.top_p for c in configs]
        self.all_greedy, self.any_greedy = not any(temperatures), min(temperatures) == 0
        self.greedy = torch.tensor([t == 0 for t in temperatures], device=device)[:, None]  # [R, 1]
        self.divisor = torch.tensor([t or 1.0 for t in temperatures], device=device)[:, None]  # [R, 1]

    def scale(self, logits: Tensor) -> Tensor:
        """logits [R, K] -> fp32 logits after temperature and filters; -inf for candidates that cannot be drawn."""
        scores = logits.float()
        return scores if self.all_greedy else filter_logits(scores / self.divisor, self.top_k, self.top_p)

    def choose(self, scores: Tensor, noise: Tensor | None) -> Tensor:
        """The candidate that each row draws, int64 [R], from `scale` [R, K] and Gumbel noise [R, K]."""
        if not self.all_greedy:
            assert noise is not None
            scores = scores + (noise.masked_fill(self.greedy, 0.0) if self.any_greedy else noise)
        return scores.argmax(1)

    def compute_probabilities(self, scores: Tensor) -> Tensor:
        """The probabilities by which `choose` draws, fp32 [R, K]: the softmax, or 1 for the likeliest if greedy."""
        if not self.any_greedy:
            return scores.softmax(1)
        certain = torch.zeros_like(scores).scatter_(1, scores.argmax(1, keepdim=True), 1.0)
        return certain if self.all_greedy else torch.where(self.greedy, certain, scores.softmax(1))


def sample(logits: Tensor, ids: Tensor, configs: Sequence[SamplingConfig] | Sampler, keys: Tensor) -> Tensor:
    """Draw one of the vocabulary rows ``ids`` [K] for every row: logits [R, K], keys [R, 2] -> int64 [R]."""
    sampler = configs if isinstance(configs, Sampler) else Sampler(configs, logits.device)
    noise = None if sampler.all_greedy else make_gumbel_noise(keys.to(logits.device), ids)
    return ids[sampler.choose(sampler.scale(logits), noise)]
