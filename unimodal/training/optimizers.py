"""Optimizers and their schedule: AdamW for everything, or Muon for the hidden matrices beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypedDict, cast

import torch
from torch import Tensor, nn

from unimodal.training.processor import is_slow
from unimodal.training.settings import LoopConfig


def find_learning_rate(step: int, cfg: LoopConfig) -> float:
    """Linear warm-up, then a cosine from ``learning_rate`` to ``final_learning_rate`` at the last step."""
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (step + 1) / cfg.warmup_steps
    progress = (step - cfg.warmup_steps) / max(1, cfg.steps - cfg.warmup_steps)
    return cfg.final_learning_rate + (cfg.learning_rate - cfg.final_learning_rate) * 0.5 * (
        1 + math.cos(math.pi * min(1.0, progress))
    )


def group_parameters(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Two groups: matrices, which decay, and vectors (biases, norms), which do not. Frozen parameters are left out."""
    parameters = [p for p in parameters if p.requires_grad]
    decayed = [p for p in parameters if p.dim() >= 2]
    plain = [p for p in parameters if p.dim() < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def make_optimizers(model: nn.Module, cfg: LoopConfig, splits_weights: bool = False) -> list[torch.optim.Optimizer]:
    """AdamW for every trained parameter; or with `optimizer: muon`, Muon for linear layers and AdamW for the rest.

    Muon (Jordan et al. 2024) is scaled as in arXiv 2502.16982, so that one learning rate serves both. The head counts
    as an embedding. splits_weights: whether FSDP2 splits the weights over ranks.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    hidden: list[nn.Parameter] = []
    if cfg.optimizer == "muon":
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
        hidden = [layer.weight for layer in layers if layer.weight.requires_grad]
    chosen = set(hidden)
    groups = group_parameters([p for p in trained if p not in chosen], cfg.weight_decay)
    if hidden:  # beside a second optimizer torch's distributed checkpoint takes no empty group
        groups = [group for group in groups if group["params"]]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=cfg.learning_rate, betas=cfg.betas, fused=True)
    ]
    if hidden:
        kind = ShardedMuon if splits_weights else PlainMuon
        muon = kind(hidden, lr=cfg.learning_rate, weight_decay=cfg.weight_decay, adjust_lr_fn="match_rms_adamw")
        if cfg.precision == "bfloat16" and not is_slow("bfloat16", hidden[0].device):
            muon.processor_dtype = torch.bfloat16
        optimizers.append(muon)
    return optimizers


class PlainMuon(torch.optim.Muon):
    """torch's Muon, which iterates in bfloat16; here in `processor_dtype` where the weights are on a processor, most of
    which multiply bfloat16 tens of times slower."""

    processor_dtype = torch.float32

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        assert closure is None, "the loop computes the gradients"
        if any(p.device.type != "cpu" for group in self.param_groups for p in group["params"]):
            super().step()
            return
        for group in self.param_groups:
            assert group["nesterov"], "the default"
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight.grad))
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                gradient = weight.grad.lerp(momentum, group["momentum"])
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                add_orthogonal(weight, gradient, cast(MuonGroup, group), self.processor_dtype)


class MuonGroup(TypedDict):
    """The settings of a group of weights that are used here."""

    lr: float
    eps: float
    ns_coefficients: tuple[float, float, float]
    ns_steps: int
    adjust_lr_fn: str | None


def add_orthogonal(weight: Tensor, gradient: Tensor, group: MuonGroup, processor_dtype: torch.dtype) -> None:
    """Moves a whole matrix by one step of Muon, without momentum and decay, in place: on a processor in this type, on
    another device as torch's Muon does, in bfloat16."""
    assert group["adjust_lr_fn"] == "match_rms_adamw", "as `make_optimizers` sets it"
    if weight.device.type == "cpu":
        update = make_orthogonal(gradient, group["ns_coefficients"], group["ns_steps"], processor_dtype)
        weight.add_(update, alpha=-0.2 * group["lr"] * max(weight.shape) ** 0.5)
        return
    weight.grad = gradient
    torch.optim.Muon(
        [weight], group["lr"], weight_decay=0.0, momentum=0.0, nesterov=False, eps=group["eps"],
        ns_coefficients=group["ns_coefficients"], ns_steps=group["ns_steps"], adjust_lr_fn=group["adjust_lr_fn"],
    ).step()  # fmt: skip


def make_orthogonal(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """About the nearest orthogonal matrix, by so many quintic Newton-Schulz iterations (Jordan et al. 2024)."""
    a, b, c = coefficients
    turned = matrix.shape[0] > matrix.shape[1]
    x = matrix.float().T if turned else matrix.float()
    x = (x / x.norm().clamp_min(1e-7)).to(dtype)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if turned else x


class ShardedMuon(torch.optim.Muon):
    """Muon for weights that FSDP2 splits over ranks.

    Gradients and momentum stay split. One matrix at a time is gathered to be made orthogonal: every rank iterates on
    the whole matrix and keeps its own rows. That is one gather a matrix, where products of split matrices would
    communicate in each of the five iterations. torch's own Muon cannot write the result back into a split weight.
    """

    processor_dtype = torch.float32

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        from torch.distributed.tensor import distribute_tensor

        assert closure is None, "the loop computes the gradients"
        for group in self.param_groups:
            assert group["nesterov"], "the default"
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight.grad))
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                whole = torch.zeros(weight.shape, dtype=weight.dtype, device=momentum.device)
                whole.grad = weight.grad.lerp(momentum, group["momentum"]).full_tensor()
                add_orthogonal(whole, whole.grad, cast(MuonGroup, group), self.processor_dtype)
                update = distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update)
