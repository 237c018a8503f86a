"""Optimizers and their schedule: AdamW for everything, or Muon for the hidden matrices beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from unimodal.training.loop import LoopConfig


def learning_rate_at(step: int, cfg: LoopConfig) -> float:
    """Linear warm-up, then a cosine from ``learning_rate`` to ``final_learning_rate`` at the last step."""
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (step + 1) / cfg.warmup_steps
    progress = (step - cfg.warmup_steps) / max(1, cfg.steps - cfg.warmup_steps)
    return cfg.final_learning_rate + (cfg.learning_rate - cfg.final_learning_rate) * 0.5 * (
        1 + math.cos(math.pi * min(1.0, progress))
    )


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices are decayed; biases, norms and other vectors are not; frozen ones are left out."""
    parameters = [p for p in parameters if p.requires_grad]
    decayed = [p for p in parameters if p.dim() >= 2]
    plain = [p for p in parameters if p.dim() < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def make_optimizers(model: nn.Module, cfg: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW for every trained parameter, or Muon (Jordan et al. 2024; scaled as in arXiv 2502.16982, so that one
    learning rate serves both) for the weights of linear layers and AdamW for embeddings, convolutions and the rest."""
    trained = [p for p in model.parameters() if p.requires_grad]
    hidden: list[nn.Parameter] = []
    if cfg.optimizer == "muon":
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
        hidden = [layer.weight for layer in layers if layer.weight.requires_grad]
        if any(hasattr(weight, "placements") for weight in hidden):
            raise ValueError("optimizer muon needs whole matrices and cannot train a sharded model; use adamw")
    chosen = {id(p) for p in hidden}
    groups = parameter_groups([p for p in trained if id(p) not in chosen], cfg.weight_decay)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=cfg.learning_rate, betas=cfg.betas, fused=True)
    ]
    if hidden:
        muon = torch.optim.Muon(
            hidden, lr=cfg.learning_rate, weight_decay=cfg.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        optimizers.append(muon)
    return optimizers
