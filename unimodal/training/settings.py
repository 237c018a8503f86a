"""The settings of a run of the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from unimodal.config import MAY_CHANGE, Config

DEFAULT_BEST = "validation_loss"
Beta = Annotated[float, Field(ge=0, lt=1)]


class LoopConfig(Config):
    """How a model is trained. Settings marked `MAY_CHANGE` may be changed when a run is resumed."""

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (("steps", "epochs"),)
    called_elsewhere: ClassVar[Mapping[str, str]] = {
        "max_steps": "loop.steps",
        "num_train_epochs": "loop.epochs",
        "report_to": "loop.trackers",
        "gradient_accumulation_steps": "loop.accumulation",
        "eval_steps": "loop.evaluate_every",
        "metric_for_best_model": "loop.best_by",
        "greater_is_better": "loop.best_is",
        "logging_steps": "loop.log_every",
        "max_grad_norm": "loop.grad_clip",
        "per_device_train_batch_size": "corpus.tokens_per_batch",
        "gradient_checkpointing": "loop.activation_checkpointing",
        "bf16": "loop.precision=bfloat16",
    }

    steps: Annotated[int, MAY_CHANGE] = Field(1000, ge=0)  # 0 only beside epochs
    #: times that every document is learnt from, in place of steps; fractions are allowed
    epochs: Annotated[float | None, MAY_CHANGE] = Field(None, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    final_learning_rate: float = Field(1e-5, ge=0)
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: hidden matrices by Muon, everything else by AdamW
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: matrix products under autocast, weights in fp32
    grad_clip: float = Field(1.0, gt=0)
    #: batches of each rank in a step; may change on resume only together with the number of ranks
    accumulation: Annotated[int, MAY_CHANGE] = Field(1, ge=1)
    #: keep only the input of a block and compute the rest again: less memory, 4/3 of the time
    activation_checkpointing: Annotated[bool, MAY_CHANGE] = False
    ema_decay: float = Field(0.0, ge=0, lt=1)  # 0 keeps no average
    seed: int = Field(0, ge=-(2**63), lt=2**63)  # a 64-bit number
    threads: Annotated[int, MAY_CHANGE] = Field(0, ge=0)  # 0 leaves torch's own choice
    log_every: Annotated[int, MAY_CHANGE] = Field(50, ge=1)
    checkpoint_every_s: Annotated[float, MAY_CHANGE] = Field(120.0, gt=0)
    #: steps between numbered checkpoints, `checkpoint-500.pt`, beside the last one; 0: none
    save_steps: Annotated[int, MAY_CHANGE] = Field(0, ge=0)
    save_total_limit: Annotated[int | None, MAY_CHANGE] = Field(None, ge=1)  # the newest so many numbered ones are kept
    evaluate_every: Annotated[int, MAY_CHANGE] = Field(0, ge=0)  # steps between validations; 0: none
    #: what is best: the validation loss, or a figure of what is watched, such as picture_naming.heldout.right_percent
    best_by: Annotated[str, MAY_CHANGE] = DEFAULT_BEST
    best_is: Annotated[Literal["least", "most"], MAY_CHANGE] = "least"
    #: validations without a better loss before the run stops early; 0: never
    patience: Annotated[int, MAY_CHANGE] = Field(0, ge=0)
    min_improvement: Annotated[float, MAY_CHANGE] = Field(0.0, ge=0)
    trackers: Annotated[tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...], MAY_CHANGE] = ()
    plot: Annotated[bool, MAY_CHANGE] = True  # draw loss.png at the end

    @property
    def best_name(self) -> str:
        """What is best, in words."""
        return self.best_by.replace("_", " ")

    @model_validator(mode="before")
    @classmethod
    def _leave_out_steps(cls, values: object) -> object:
        """Set steps to 0 if only epochs are given."""
        if isinstance(values, Mapping) and values.get("epochs") is not None and "steps" not in values:
            return {**values, "steps": 0}
        return values

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        if self.epochs is not None and self.steps:
            raise ValueError(
                f"steps {self.steps} and epochs {self.epochs:g} exclude each other; set steps=0 or no epochs"
            )
        if self.epochs is None and not self.steps:
            raise ValueError("steps is 0 and no epochs are given; give one of them")
        return self

    @model_validator(mode="after")
    def _check_rates(self) -> Self:
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate {self.final_learning_rate:g} is above learning_rate {self.learning_rate:g}, and "
                "the rate would rise to it; set both"
            )
        return self

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.save_total_limit is not None and not self.save_steps:
            raise ValueError(f"save_total_limit {self.save_total_limit} is of numbered checkpoints; set save_steps")
        if self.patience and not self.evaluate_every:
            raise ValueError(
                f"patience {self.patience} counts validations, of which there are none; set evaluate_every"
            )
        return self
