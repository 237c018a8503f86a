"""The states of a decoder's blocks, collected while it runs.

Shapes: B rows, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from unimodal.model.blocks import find_decoder_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BlockStates:
    """Watches the blocks of a model from now on. only_trained: pass over what is computed without gradients."""

    def __init__(self, model: PreTrainedModel, only_trained: bool = False) -> None:
        self.only_trained = only_trained
        self._found: list[Tensor] | None = None
        for block in find_decoder_blocks(model):
            block.register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, inputs: object, output: object) -> None:
        state = output[0] if isinstance(output, tuple) else output
        assert isinstance(state, Tensor)
        if self._found is not None and (state.requires_grad or not self.only_trained):
            self._found.append(state)

    @contextmanager
    def collect(self) -> Iterator[list[Tensor]]:
        """A list that gets the state [B, N, D] of each block, in order, of what runs while the context is open.

        Blocks that are computed again in the backward pass run after it.
        """
        found: list[Tensor] = []
        self._found = found
        try:
            yield found
        finally:
            self._found = None
