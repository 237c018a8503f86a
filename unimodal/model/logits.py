"""What a base does to the products of its head's matrix before they are logits: a factor, and a soft cap.

Granite divides by `logits_scaling`, Cohere multiplies by `logit_scale` (both after muP, arXiv 2203.03466), Gemma 2
(arXiv 2408.00118) bounds them by cap * tanh(logits / cap). Training and decoding compute the head for a few rows at a
time and never call the model's own forward for it, so they take the rule from here. `check_base` compares the rule with
the model's own logits when a base is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: settings of transformers' configs by which logits are multiplied, and those by which they are divided
FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
DIVISORS = ("logits_scaling",)
#: types of models that multiply by the name that others divide by
MULTIPLYING = ("hyperclovax",)
CAP = "final_logit_softcapping"


@dataclass(frozen=True)
class LogitRule:
    """logits = cap * tanh(scale * products / cap); without a cap, logits = scale * products."""

    scale: float = 1.0
    cap: float | None = None

    @property
    def is_plain(self) -> bool:
        return self.scale == 1.0 and self.cap is None

    def apply(self, products: Tensor) -> Tensor:
        """The head's products → logits, of any shape."""
        logits = products if self.scale == 1.0 else products * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def apply_in_place(self, products: Tensor) -> Tensor:
        """The same, written over the products, which must not need a gradient."""
        if self.scale != 1.0:
            products.mul_(self.scale)
        return products if self.cap is None else products.div_(self.cap).tanh_().mul_(self.cap)

    def differentiate(self, logits: Tensor) -> Tensor | float:
        """d logits / d products: one number, or with a cap a tensor of the logits' shape."""
        return self.scale if self.cap is None else self.scale * (1 - (logits / self.cap).square())


PLAIN = LogitRule()


def read_logit_rule(model: nn.Module) -> LogitRule:
    """The rule of a causal LM of transformers, read from its config; most are `PLAIN`."""

    def read(name: str) -> float | None:
        value = getattr(model.config, name, None)  # a config has the settings of its family only, some as properties
        return float(value) if isinstance(value, (int, float)) else None

    scale = 1.0
    for name in (*FACTORS, *DIVISORS):
        value = read(name)
        if value is not None:
            multiplies = name in FACTORS or model.config.model_type in MULTIPLYING
            scale *= value if multiplies else 1 / value
    return LogitRule(scale, read(CAP))
