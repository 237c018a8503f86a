"""Index backpropagation (IBQ, arXiv 2412.02692): the choice of a row is a softmax with a straight-through one-hot, so
that every row of a large table gets a gradient with each vector.

Shapes: B batch, N positions, D dimensions, C codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

from unimodal.tokenizers.parts.quantizers.entropy import measure_entropy
from unimodal.tokenizers.parts.quantizers.interface import Quantized, QuantizeOptions, average_real
from unimodal.tokenizers.parts.quantizers.table import TableQuantizer


class IndexBackpropagationQuantizer(TableQuantizer):
    """The row with the greatest raw dot product: a long row wins. p = softmax(z · rows), onehot = hard + p − sg(p).

    Loss: ‖q − z‖² (with the gradient of the softmax) + ‖sg(e) − z‖² + codebook_weight · ‖e − sg(z)‖², the mean over
    real positions, and in training entropy_weight · entropy of softmax(z · rows / temperature).
    """

    def __init__(
        self,
        codebook_size: int,
        num_dims: int,
        codebook_weight: float = 0.25,
        entropy_weight: float = 0.05,
        temperature: float = 0.01,
    ):
        super().__init__(codebook_size, num_dims, "dot", entropy_weight=entropy_weight, temperature=temperature)
        self.codebook_weight = codebook_weight
        self.codebook = nn.Parameter(torch.randn(codebook_size, num_dims))

    @property
    def rows(self) -> Tensor:
        return self.codebook.float()

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        rows = self.rows
        logits = self.measure_affinity(z, rows)
        ids = logits.argmax(-1)
        chosen = rows[ids]
        if not torch.is_grad_enabled():
            return Quantized(chosen, ids.unsqueeze(-1), self._compare(z, chosen, chosen, mask), chosen)
        soft = softmax(logits, dim=-1)
        values = chosen + (soft - soft.detach()) @ rows.detach()
        loss = self._compare(z, values, chosen, mask)
        if self.entropy_weight and self.training:
            loss = loss + self.entropy_weight * measure_entropy(logits / self.temperature, mask).make_loss()
        return Quantized(values, ids.unsqueeze(-1), loss, chosen)

    def _compare(self, z: Tensor, values: Tensor, chosen: Tensor, mask: Tensor | None) -> Tensor:
        loss = average_real((values - z).square(), mask) + average_real((chosen.detach() - z).square(), mask)
        return loss + self.codebook_weight * average_real((chosen - z.detach()).square(), mask)
