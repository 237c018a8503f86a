"""The model as it was at the start, which preference and reward training compare with, without a second base.

Where only adapters are trained, the model of the start is the model with its adapters switched off: a new adapter adds
nothing yet. Where rows or weights are trained too, those alone are copied, beside the same frozen weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils import parametrize

from unimodal.model.lora import find_lora_layers, switch_lora

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def copy_trained(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model that shares what is frozen; nothing of it is trained."""
    # deepcopy's memo of what is not to be copied goes by id()
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, frozen).requires_grad_(False)


def silence_dropout(model: PreTrainedModel) -> None:
    """Takes the dropout out of a base, for as long as it lives in memory; that of adapters, which are asked for, stays.

    It may be a module (GPT-2) or a number that a module hands on (OPT, attention).
    """
    for name, module in model.named_modules():
        if "lora_" in name:
            continue
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for key, value in vars(module).items():
            if "dropout" in key and isinstance(value, float):
                setattr(module, key, 0.0)


class StartingModel(nn.Module):
    """The model of the start. Make it before the first step, and before a checkpoint is loaded.

    The base loses its dropout, as in TRL's DPOTrainer and KTOTrainer: what is compared would be the noise of both.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        silence_dropout(model)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        adapters = bool(find_lora_layers(model)) and all(".lora_" in name for name in trained)
        self.copy: PreTrainedModel | None = None if adapters else copy_trained(model)
        self._model = [model]  # in a list: its parameters are the objective's

    @contextmanager
    def use(self) -> Iterator[PreTrainedModel]:
        """The model to run, without gradients and in evaluation mode, for as long as the context is open."""
        with torch.no_grad(), parametrize.cached():
            if self.copy is not None:
                yield self.copy.eval()
                return
            [model] = self._model
            training = model.training
            model.eval()
            switch_lora(model, on=False)
            try:
                yield model
            finally:
                switch_lora(model, on=True)
                model.train(training)
