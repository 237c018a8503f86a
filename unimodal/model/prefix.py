"""Prefix tuning: a prompt that has states of its own in every layer, from a first one on (arXiv 2101.00190).

What tokens see of a prefix are its keys and values in each layer. The authors train these; here the states are trained
that a layer makes its keys and values of, as deep prompts are elsewhere (VPT, arXiv 2203.12119). So keys have the size
and rotation that the layer gives all others, and the authors' network that the prefix is computed by, which keeps their
training steady, is left out. What a trained prefix is, is the same: keys and values that do not depend on the text.

A prefix begins as the states that its first vectors have in the base, so at first it is the soft prompt of these. Its
vectors are inputs of the first layer and are trained where `first_layer` is 0; from a later layer on, they stay as they
are and are read by the layers before it.

Shapes: P tokens of the prompt, D width, L layers, F of them that are given states: all but the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unimodal.model.blocks import find_decoder_blocks
from unimodal.model.soft_prompt import SoftPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PrefixPrompt(SoftPrompt):
    """vectors: [P, D]. states: [F, P, D], of the layers from max(`begins`, 1) on. begins: the first trained layer."""

    def __init__(self, vectors: Tensor, states: Tensor, begins: int = 0) -> None:
        super().__init__(vectors)
        self.begins = begins
        self.states = nn.Parameter(states.detach().float().clone())
        self.vectors.requires_grad_(not begins)

    @property
    def first_layer(self) -> int:
        return max(self.begins, 1)

    def compute_states(self) -> Tensor:
        return self.states


def make_prefix(model: PreTrainedModel, vectors: Tensor, begins: int) -> PrefixPrompt:
    """A prefix that says what a soft prompt of these vectors [P, D] says.

    Raises ValueError for a first layer that the model does not have.
    """
    inputs = read_layer_inputs(model, vectors)
    if begins >= len(inputs):
        raise ValueError(f"prompt.prefix.first_layer is {begins}, but the base has {len(inputs)} layers, from 0 on")
    return PrefixPrompt(vectors, inputs[max(begins, 1) :], begins)


@torch.no_grad()
def read_layer_inputs(model: PreTrainedModel, vectors: Tensor) -> Tensor:
    """What each layer reads when these vectors [P, D] are the whole document, [L, P, D]."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        found.append((args[0] if args else kwargs["hidden_states"])[0].float())

    handles = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in find_decoder_blocks(model)]
    training, decoder = model.training, model.get_decoder()
    model.eval()
    try:
        decoder(inputs_embeds=vectors[None].to(decoder.device, model.dtype), use_cache=False)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return torch.stack(found)
