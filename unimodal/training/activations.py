"""Activation checkpointing: keep only each block's input and compute the rest again (arXiv 1604.06174)."""

from __future__ import annotations

from torch import nn


def checkpoint_activations(model: nn.Module) -> None:
    """Turn activation checkpointing on. Raises ValueError for a model that does not support it."""
    for method in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):  # the newer name first
        target = next((m for m in model.modules() if hasattr(m, method)), None)
        if target is not None:
            getattr(target, method)({"use_reentrant": False})
            return
    raise ValueError(f"{type(model).__name__} has no activation checkpointing; turn activation_checkpointing off")
