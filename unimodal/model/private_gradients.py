"""Gradients of a soft prompt that hide each document: clipped one by one, summed, and noised (DP-SGD, 1607.00133).

The gradient of a document is what reaches the prompt's vectors where that document reads them, so those of all
documents of a packed batch come from one backward pass. Each is shortened to the length `clip`; to their sum comes
Gaussian noise of the deviation noise · clip in every element. The loss of a document has to depend on no other
document, as that of next-token training does, and nothing but the prompt may be trained.

What is hidden is the prompt. The log of losses is not, nor is the number of labelled tokens that a step's gradient is
divided by. The noise is drawn by the system's entropy and never from the run's seed, with which it could be taken off
again; so a private run that goes on after a stop is not the run that was not stopped.

Shapes: B rows, N tokens, D width, S documents.
"""

from __future__ import annotations

import math
import secrets

import torch
from pydantic import Field
from torch import Tensor

from unimodal.config import Config


class PrivacySettings(Config):
    """clip: the longest gradient of a document. noise: deviation of the noise, in lengths of `clip`."""

    clip: float = Field(default=1.0, gt=0)
    noise: float = Field(default=1.0, ge=0)


def bound_epsilon(noise: float, passes: float, delta: float) -> float:
    """An ε for which a prompt tuned by so many passes over the documents is (ε, δ)-differentially private.

    A document is in one batch of a pass, so each pass is one Gaussian mechanism for it: ρ = 1 / (2 noise²) in zero-
    concentrated privacy, they add up, and ε = ρ + 2 sqrt(ρ ln(1 / δ)) (arXiv 1605.02065, propositions 1.3 and 1.6).
    Nothing is taken off for the batches being drawn at random. inf without noise. Raises ValueError for a δ that is not
    between 0 and 1.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta:g}; it lies between 0 and 1, well below one over the number of documents")
    if noise == 0:
        return math.inf
    rho = passes / (2 * noise**2)
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


class PrivateGradients:
    """Changes the gradients of watched tensors."""

    def __init__(self, cfg: PrivacySettings) -> None:
        self.cfg = cfg

    def watch(self, vectors: Tensor, prompted: Tensor, begins: Tensor) -> None:
        """vectors [B, N, D] as documents read them; prompted, begins: bool [B, N], prompts and their first tokens."""
        numbers = (begins.reshape(-1).cumsum(0) - 1).clamp(min=0)
        numbers = torch.where(prompted.reshape(-1), numbers, -1)  # -1: reads no prompt
        vectors.register_hook(lambda gradient: self.privatise(gradient, numbers))

    def privatise(self, gradient: Tensor, numbers: Tensor) -> Tensor:
        """The gradient [B, N, D] with that of each document clipped and the noise added to one document's.

        numbers: int64 [B * N], the document of each token, -1 for none.
        """
        flat = gradient.reshape(-1, gradient.shape[-1]).float()
        reads = numbers >= 0
        if not bool(reads.any()):
            return gradient
        of = numbers.clamp(min=0)
        squares = flat.square().sum(1) * reads
        lengths = squares.new_zeros(int(numbers.max()) + 1).index_add(0, of, squares).sqrt()  # [S]
        kept = (self.cfg.clip / lengths.clamp(min=1e-12)).clamp(max=1.0)
        flat = flat * (kept[of] * reads)[:, None]
        if self.cfg.noise:
            generator = torch.Generator().manual_seed(secrets.randbits(63))
            first = (numbers == int(numbers.max())).nonzero().squeeze(1)  # one whole prompt
            drawn = torch.randn(len(first), flat.shape[1], generator=generator) * (self.cfg.noise * self.cfg.clip)
            flat = flat.index_add(0, first, drawn.to(flat))
        return flat.view_as(gradient).to(gradient.dtype)
