"""A language model reads the codes and says what they show; the loss of its words trains the tokenizer (ETT: end-to-end
vision tokenizer tuning, arXiv 2505.10562).

The language model comes as a callable, since a tokenizer knows of none; `HubCaptionModel` is one of transformers.

Shapes: B batch, N positions, D width of the codes, W width of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

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


class HubCaptionModel:
    """A frozen causal language model of transformers: what it loses on captions behind the media, a mean over their
    tokens, each caption ended as the model ends its texts. The gradient passes through it to the media."""

    def __init__(self, folder: str | Path):
        """Raises ValueError for a folder without such a model and its text tokenizer."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            network = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
            self.text = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} holds no language model ({str(error).splitlines()[0]})") from None
        self.network: nn.Module = network.eval().requires_grad_(False)
        self.embedding: nn.Module = network.get_input_embeddings()
        self.width = int(network.get_input_embeddings().weight.shape[1])

    def __call__(self, media: Tensor, captions: Sequence[str]) -> Tensor:
        """media: [B, N, W], captions: B texts → scalar. ValueError for a caption without a token."""
        self.network.to(media.device)
        end = self.text.eos_token_id
        rows = [self.text.encode(caption, add_special_tokens=False) for caption in captions]
        if not all(rows):
            raise ValueError("there is an empty caption; give every item a text")
        tokens = [torch.tensor(row if end is None else [*row, end], device=media.device) for row in rows]
        labels = pad_sequence(tokens, batch_first=True, padding_value=-100)
        embedded = torch.cat([media, self.embedding(labels.clamp(min=0)).to(media)], 1)
        mask = torch.cat([labels.new_ones(media.shape[:2]), (labels >= 0).long()], 1)
        logits = self.network(inputs_embeds=embedded, attention_mask=mask).logits[:, media.shape[1] - 1 : -1]
        return cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)
