"""A teacher's distributions: forward and reverse divergence, and the generalized Jensen-Shannon divergence.

    forward    KL(teacher ‖ student)                                          (arXiv 1503.02531)
    reverse    KL(student ‖ teacher)                                          (MiniLLM, 2306.08543)
    jsd        β KL(teacher ‖ m) + (1 - β) KL(student ‖ m), m = β teacher + (1 - β) student     (GKD, 2306.13649)

Values are those of TRL's `generalized_jsd_loss`, of which `forward` is beta 0 and `reverse` is beta 1. The softmax of a
media code runs over the rows that the grammar allows, in teacher and student alike. With `top` above 0 the teacher is
known by its likeliest rows alone, and all others are one class: the divergence is then at most the whole one, and equal
to it where `top` takes all rows.

Shapes: c positions, K rows, k kept rows.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from unimodal.config import Config


class LogitsConfig(Config):
    kind: Literal["forward", "reverse", "jsd"] = "forward"
    beta: float = Field(default=0.5, gt=0, lt=1)  # of jsd
    temperature: float = Field(default=1.0, gt=0)
    top: int = Field(default=0, ge=0)  # rows of the teacher that are kept; 0: all
    weight: float = Field(default=1.0, gt=0)


def compute_divergence(teacher: Tensor, student: Tensor, cfg: LogitsConfig) -> Tensor:
    """Log-probabilities [c, K] of both, at the same temperature → the divergence of each position, [c]."""
    if cfg.kind == "forward":
        return _diverge(teacher, student)
    if cfg.kind == "reverse":
        return _diverge(student, teacher)
    mixed = torch.logaddexp(teacher + math.log(cfg.beta), student + math.log(1 - cfg.beta))
    return cfg.beta * _diverge(teacher, mixed) + (1 - cfg.beta) * _diverge(student, mixed)


def _diverge(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of log-probabilities [c, K] → [c]."""
    return (p.exp() * (p - q)).sum(1)


def take_top(logits: Tensor, cfg: LogitsConfig) -> tuple[Tensor, Tensor]:
    """A teacher's logits [c, K] → (log-probabilities of its likeliest rows [c, k], which rows, int64 [c, k])."""
    kept = logits.shape[1] if not cfg.top else min(cfg.top, logits.shape[1])
    found = (logits.float() / cfg.temperature).log_softmax(1).topk(kept, 1)
    return found.values, found.indices


def compare_top(known: Tensor, rows: Tensor, logits: Tensor, cfg: LogitsConfig) -> Tensor:
    """`take_top` of the teacher and the student's logits [c, K] → the divergence of each position, [c]."""
    student = (logits / cfg.temperature).log_softmax(1)
    teacher, student = known.to(student), student.gather(1, rows.to(student.device))
    if rows.shape[1] < logits.shape[1]:
        teacher, student = (torch.cat([one, _sum_rest(one)], 1) for one in (teacher, student))
    return compute_divergence(teacher, student, cfg)


def _sum_rest(kept: Tensor) -> Tensor:
    """The log-probability of everything else, [c, 1]."""
    rest = 1 - kept.exp().sum(1, keepdim=True)
    return rest.clamp_min(1e-7).log()
