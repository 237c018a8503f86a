"""The settings of a run of the training loop."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from unimodal.config import Config


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
    activation_checkpointing: bool = False  # keep a block's input only and compute it again: less memory, 4/3 the time
    ema_decay: float = Field(0.0, ge=0, lt=1)  # 0 keeps no average
    seed: int = 0
    threads: int = Field(0, ge=0)  # 0 leaves torch's own choice
    log_every: int = Field(50, ge=1)
    checkpoint_every_s: float = Field(120.0, gt=0)
    evaluate_every: int = Field(0, ge=0)  # steps between validations; 0: none
    patience: int = Field(0, ge=0)  # validations without a better loss before the run stops early; 0: never
    min_improvement: float = Field(0.0, ge=0)
    trackers: tuple[Literal["tensorboard", "trackio"], ...] = ()
    plot: bool = True  # draw loss.png at the end
