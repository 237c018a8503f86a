"""The training loop: warm-up and cosine, clipping, EMA, exact resume, and a stop that loses nothing.

A batch source is any object with ``next_batch()``, ``state_dict()`` and ``load_state_dict(state)``; a loss function
takes ``(batch, step)`` and returns a scalar loss and a dict of numbers to log. Interrupting (Ctrl-C or SIGTERM) saves
a checkpoint and ends with ``Interrupted``; the same command goes on from there, loss by loss the same as a run that
was never stopped.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from unimodal.config import Config
from unimodal.training.checkpoint import load_checkpoint, random_state, save_checkpoint, set_random_state
from unimodal.training.metrics import MetricsLog


class BatchSource(Protocol):
    def next_batch(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class LoopConfig(Config):
    steps: int = Field(1000, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    final_learning_rate: float = Field(1e-5, ge=0)
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: hidden matrices by Muon, everything else by AdamW
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: matrix products under autocast, weights in fp32
    grad_clip: float = Field(1.0, gt=0)
    accumulation: int = Field(1, ge=1)
    ema_decay: float = Field(0.0, ge=0, lt=1)  # 0 keeps no average
    seed: int = 0
    threads: int = Field(0, ge=0)  # 0 leaves torch's own choice
    log_every: int = Field(50, ge=1)
    checkpoint_every_s: float = Field(120.0, gt=0)


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is saved."""


def learning_rate_at(step: int, cfg: LoopConfig) -> float:
    """Linear warm-up, then a cosine from ``learning_rate`` to ``final_learning_rate`` at the last step."""
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (step + 1) / cfg.warmup_steps
    progress = (step - cfg.warmup_steps) / max(1, cfg.steps - cfg.warmup_steps)
    return cfg.final_learning_rate + (cfg.learning_rate - cfg.final_learning_rate) * 0.5 * (
        1 + math.cos(math.pi * min(1.0, progress))
    )


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices are decayed; biases, norms and other vectors are not."""
    parameters = list(parameters)
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


class Trainer:
    """One run in one folder. ``run`` trains to the end of ``cfg.steps``, from the folder's checkpoint if there is
    one."""

    def __init__(
        self,
        model: nn.Module,
        batches: BatchSource,
        loss: Callable[[Any, int], tuple[Tensor, dict[str, float]]],
        cfg: LoopConfig,
        folder: Path,
        on_log: Iterable[Callable[[dict[str, Any]], None]] = (),
    ):
        if cfg.threads:
            torch.set_num_threads(cfg.threads)
        torch.manual_seed(cfg.seed)
        self.model, self.batches, self.loss, self.cfg, self.folder = model, batches, loss, cfg, folder
        self.on_log = list(on_log)
        self.optimizers = make_optimizers(model, cfg)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.ema = [p.detach().clone() for p in self.parameters] if cfg.ema_decay else None
        self.metrics = MetricsLog(folder)
        self.step = 0
        self._stop = False

    # -- state ------------------------------------------------------------------------------------------------------
    def save(self) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "ema": self.ema,
            "random": random_state(),
            "batches": self.batches.state_dict(),
        }
        save_checkpoint(self.folder, state)

    def resume(self) -> bool:
        """Takes up the folder's checkpoint, if there is one; True if it did."""
        state = load_checkpoint(self.folder)
        if state is None:
            return False
        try:
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"the checkpoint in {self.folder} is of another model: {reason}") from None
        if self.ema is not None and state["ema"] is not None:
            for average, saved in zip(self.ema, state["ema"], strict=True):
                average.copy_(saved)
        set_random_state(state["random"])
        self.batches.load_state_dict(state["batches"])
        self.step = state["step"]
        self.metrics.cut_after(self.step)
        return True

    def use_ema(self) -> None:
        """Copies the averaged weights into the model (for evaluation and export, at the end)."""
        if self.ema is not None:
            with torch.no_grad():
                for parameter, average in zip(self.parameters, self.ema, strict=True):
                    parameter.copy_(average)

    # -- the loop ---------------------------------------------------------------------------------------------------
    def train_step(self) -> dict[str, float]:
        """One optimizer step over ``accumulation`` batches; returns the numbers to log."""
        rate = learning_rate_at(self.step, self.cfg)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
        logged: dict[str, float] = {}
        for _ in range(self.cfg.accumulation):
            batch = self.batches.next_batch()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cfg.precision == "bfloat16"):
                loss, numbers = self.loss(batch, self.step)
            (loss / self.cfg.accumulation).backward()
            for name, value in {"loss": float(loss.detach()), **numbers}.items():
                logged[name] = logged.get(name, 0.0) + value / self.cfg.accumulation
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.cfg.grad_clip)
        if not torch.isfinite(norm):
            raise ValueError(
                f"the gradient is not finite at step {self.step}; lower learning_rate ({self.cfg.learning_rate})"
            )
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        if self.ema is not None:
            decay = min(self.cfg.ema_decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters], 1 - decay)
        return {**logged, "grad_norm": float(norm), "learning_rate": rate}

    def run(self) -> None:
        """Trains until the last step; raises ``Interrupted`` if it was asked to stop before."""
        if self.resume():
            print(f"resumed {self.folder} at step {self.step}", file=sys.stderr, flush=True)
        previous = {number: signal.signal(number, self._ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        saved_at = logged_at = time.monotonic()
        try:
            self.model.train()
            while self.step < self.cfg.steps:
                self.metrics.add(self.train_step())
                now = time.monotonic()
                if self.step % self.cfg.log_every == 0 or self.step == self.cfg.steps:
                    seconds = (now - logged_at) / self.cfg.log_every
                    self._report(self.metrics.flush(step=self.step, seconds_per_step=round(seconds, 4)), seconds)
                    logged_at = now
                if self._stop:
                    self.save()
                    raise Interrupted(f"stopped at step {self.step}; run the same command to go on")
                if now - saved_at > self.cfg.checkpoint_every_s:
                    self.save()
                    saved_at = time.monotonic()
            self.save()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _ask_to_stop(self, *_: Any) -> None:
        if self._stop:  # asked twice: do not wait for the step
            raise KeyboardInterrupt
        self._stop = True

    def _report(self, record: dict[str, Any], seconds_per_step: float) -> None:
        left_min = (self.cfg.steps - self.step) * seconds_per_step / 60
        numbers = "  ".join(f"{k} {v:.4g}" for k, v in record.items() if k not in ("step", "seconds_per_step"))
        print(
            f"step {self.step}/{self.cfg.steps}  {numbers}  {seconds_per_step:.2f} s/step  {left_min:.1f} min left",
            file=sys.stderr,
            flush=True,
        )
        for callback in self.on_log:
            callback(record)
