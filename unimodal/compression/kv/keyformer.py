"""Keyformer (arXiv 2403.09054): attention summed as in H2O, but by a Gumbel-softmax at a rising temperature.

Dropped entries leave their attention to the rest. Noise on the logits, and a temperature that rises from 1 to 2 over
the answer, keep the choice from settling on the first winners. The noise of an entry depends on the seed, its head and
its position: a row gets the same alone and in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.kv.method import CacheCompressor
from unimodal.compression.running.attention_rows import compute_logits
from unimodal.compression.running.look import Look


@dataclass
class Keyformer(CacheCompressor):
    """Keep the entries with the most attention under noise and a rising temperature (Keyformer, arXiv 2403.09054).

    scores [B, K, L]: attention summed over all queries of the prompt and of every step behind it.
    recent: entries among this many newest slots stay before all others. first, last: temperatures at the prompt and
    from `steps` answer tokens on. seed: of the noise. Raises ValueError for what `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "Keyformer, arXiv 2403.09054"

    recent: int = 8
    steps: int = 128
    first: float = 1.0
    last: float = 2.0
    seed: int = 0
    at_every_step: ClassVar[bool] = True

    def score(self, look: Look) -> Tensor:
        layer, num = look.layer, look.query.shape[2]
        done = 0 if look.first else num + (int(layer.memory["steps"]) if "steps" in layer.memory else 0)
        warmth = self.first + (self.last - self.first) * min(done / self.steps, 1.0)
        logits = compute_logits(look.query, look.keys, look.scaling)  # [B, H, Q, L]
        logits = (
            logits
            + look.slots.make_bias(torch.float32, logits.shape[1])[:, :, None]
            + self._draw_noise(look)[:, :, None]
        )
        later = torch.arange(logits.shape[-1], device=logits.device) > look.find_newest(num)[..., None]  # [B, Q, L]
        probs = (logits / warmth).masked_fill(later[:, None], -torch.inf).softmax(-1).nan_to_num(0.0)
        probs = probs * look.slots.valid[:, None, -num:, None]
        received = look.average_groups(probs.sum(2))
        if layer.score is not None and not look.first:
            received = received + F.pad(layer.score, (0, received.shape[-1] - layer.score.shape[-1]))
        layer.score = received
        layer.memory["steps"] = torch.tensor(done)
        return received

    def _draw_noise(self, look: Look) -> Tensor:
        """Gumbel noise [B, H, L] by head and position."""
        positions = look.slots.positions  # [B, K or 1, L]
        longest = 1 << int(positions.max() + 1).bit_length()
        num_heads = look.query.shape[1]
        generator = torch.Generator().manual_seed(self.seed)
        uniform = torch.rand(longest, num_heads, generator=generator).clamp(1e-9, 1 - 1e-7)  # rows: same at any length
        table = -torch.log(-torch.log(uniform)).T.to(positions.device)  # [H, positions]
        spread = positions.repeat_interleave(num_heads // positions.shape[1], 1).expand(-1, num_heads, -1)
        return table.expand(len(positions), -1, -1).gather(-1, spread.clamp(min=0))
