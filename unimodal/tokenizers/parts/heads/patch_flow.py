"""Pixels of each patch by a rectified flow of its own, conditioned on the patch's vector (UniFlow, arXiv 2510.10575).

The network is that of MAR's head (2406.11838).

Shapes: M patches, P numbers of a patch, K width of the condition, D width of the network.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import silu

from unimodal.tokenizers.parts.trunks.flex import TimeEmbedding

EPS = 1e-6


class ModulatedBlock(nn.Module):
    """Two layers behind a norm that the condition scales and shifts, and a gate; it begins closed."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, EPS)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(silu(condition)).chunk(3, dim=-1)
        return x + gate * self.second(silu(self.first(self.norm(x) * (1 + scale) + shift)))


class PatchFlowHead(nn.Module):
    """The velocity data − noise of patches, which begins at 0."""

    def __init__(self, numbers: int, condition_width: int, width: int, num_layers: int):
        super().__init__()
        self.time = TimeEmbedding(width, longest=10_000.0)
        self.condition, self.project = nn.Linear(condition_width, width), nn.Linear(numbers, width)
        self.blocks = nn.ModuleList(ModulatedBlock(width) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.modulation, self.out = nn.Linear(width, 2 * width), nn.Linear(width, numbers)
        for layer in (self.modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """x: float [M, P], time: [M] from 0, noise, to 1, data; condition: [M, K] → [M, P]."""
        told = self.time(time) + self.condition(condition)
        x = self.project(x)
        for block in self.blocks:
            x = block(x, told)
        shift, scale = self.modulation(silu(told)).chunk(2, dim=-1)
        return self.out(self.norm(x) * (1 + scale) + shift)
