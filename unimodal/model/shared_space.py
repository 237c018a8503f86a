"""MMRL: representation tokens in one space that words and media share, projected into the upper layers (2503.08497).

A space of K trained tokens [K, R] belongs to no modality. For each layer from `first_layer` on, one linear map makes of
it K states for words and another K states for media; they stand in the places of the prompt, the same K first. Layers
before that keep what is known in general, as they keep their weights. `objectives/mmrl.py` adds the published term that
holds the states of answers near those of the base. The space and its maps begin as the authors' do: normal of deviation
0.02, and `nn.Linear`.

CLIP has an encoder for each modality, and a decoder is one for all. What differs from the authors' code:

    tokens are inserted at the first layer    they stand in all: before it, the rows of `text`, or <|bos|>, frozen
    each encoder sees its own K tokens        everything behind the prompt sees both
    image tokens attend to the image, and     nothing stands before a prompt, so it sees no image; as in the authors'
    their mean is a second feature with a     text encoder, whose mask is causal, answers are read by the frozen head
    projection of its own; new classes are    alone, and there is nothing to leave out for what was not learnt
    read without it

Trained, its states are fixed: it is saved and read as a `PrefixPrompt`, without the space.

Shapes: K tokens of the space, R its width, P = 2K tokens of the prompt, D width, F layers that are given states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unimodal.model.blocks import find_decoder_blocks
from unimodal.model.prompt_settings import SpaceSettings
from unimodal.model.soft_prompt import SoftPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_STD = 0.02  # the authors'


class SpacePrompt(SoftPrompt):
    """vectors: [P, D], what the layers before `first_layer` read; they are not trained. num_layers: F."""

    def __init__(self, vectors: Tensor, width: int, first_layer: int, num_layers: int, seed: int = 0) -> None:
        super().__init__(vectors)
        self.vectors.requires_grad_(False)
        self._first = first_layer
        generator = torch.Generator().manual_seed(seed)
        self.space = nn.Parameter(_STD * torch.randn(len(vectors) // 2, width, generator=generator))  # [K, R]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.words, self.media = (
                nn.ModuleList(nn.Linear(width, vectors.shape[1]) for _ in range(num_layers)) for _ in range(2)
            )

    @property
    def first_layer(self) -> int:
        return self._first

    def compute_states(self) -> Tensor:
        pairs = zip(self.words, self.media, strict=True)
        return torch.stack([torch.cat([words(self.space), media(self.space)]) for words, media in pairs])


def make_space_prompt(model: PreTrainedModel, vectors: Tensor, settings: SpaceSettings, seed: int = 0) -> SpacePrompt:
    """A prompt of a new space for this model. Raises ValueError for a first layer that the model does not have."""
    num = len(find_decoder_blocks(model))
    first = settings.first_layer or max(1, num // 2)
    if first >= num:
        raise ValueError(f"prompt.space.first_layer is {first}, but the base has {num} layers, from 0 on")
    return SpacePrompt(vectors, settings.width, first, num - first, seed)
