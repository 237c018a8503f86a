"""A language model reads the codes and says what they show; the loss of its words trains the tokenizer (ETT: end-to-end
vision tokenizer tuning, arXiv 2505.10562).

The language model comes as a callable, since a tokenizer knows of none.

Shapes: B batch, N positions, D width of the codes, W width of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

#: embeddings of media [B, N, W] and B captions → the next-token loss of the captions behind them, a scalar
CaptionModel = Callable[[Tensor, Sequence[str]], Tensor]


class CaptionLoss(nn.Module):
    """Codes' vectors, straight through, by an MLP of two layers into the width of the language model, and its loss."""

    def __init__(self, width: int, model_width: int, model: CaptionModel):
        super().__init__()
        self.projection = nn.Sequential(nn.Linear(width, model_width), nn.GELU(), nn.Linear(model_width, model_width))
        self.model = model

    def forward(self, values: Tensor, captions: Sequence[str]) -> Tensor:
        """values: quantized vectors [B, N, D] with a gradient to the encoder. captions: one an item → scalar."""
        if len(captions) != len(values):
            raise ValueError(f"{len(captions)} captions are given for {len(values)} items; give one for each")
        return self.model(self.projection(values), captions)
