"""How media are coded whatever surrounds the call: in float32, as a finished tokenizer, without gradients.

A tokenizer that is still being trained drops codebooks and layers at random and moves its codebooks by what it sees,
and autocast rounds what stands between two codes to either side: neither may change what a medium's codes are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def _check_precision(module: nn.Module) -> None:
    """ValueError for weights that are not float32: codes would be others than those of the saved tokenizer."""
    kind = next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), torch.float32)
    if kind != torch.float32:
        name = str(kind).removeprefix("torch.")
        raise ValueError(f"the tokenizer's weights are {name}, and codes are made in float32; call .float() on it")


@contextmanager
def run_exactly(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Inference mode, in which no autocast changes a precision and the module is in eval mode; afterwards each of its
    parts is in the mode that it had. ValueError for weights that are not float32."""
    _check_precision(module)
    trained = [part for part in module.modules() if part.training] if module.training else []
    autocast = device.type != "meta" and torch.is_autocast_enabled(device.type)
    for part in trained:
        part.training = False
    try:
        with torch.inference_mode():
            if not autocast:
                yield
            else:
                with torch.autocast(device.type, enabled=False):
                    yield
    finally:
        for part in trained:
            part.training = True
