"""Objectives by name, and the settings by which a recipe names them.

    objective:
      preference: {beta: 0.1}

An objective takes the place of next-token training, which is what is learnt without this section; a term, such as
`sinks`, is added to whichever it is. To add an objective: a file with its settings and its module, a field of
`ObjectiveConfig`, a line in `OBJECTIVES` and one in `unimodal/tuning/objective.py`.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from unimodal.config import MAY_CHANGE, Config
from unimodal.objectives.any_order import AnyOrderConfig, AnyOrderLoss
from unimodal.objectives.context_prompt import ContextLossConfig, ContextPromptLoss
from unimodal.objectives.distillation.student import DistillationConfig, TeacherLoss
from unimodal.objectives.grpo import GrpoConfig, GrpoLoss
from unimodal.objectives.kto import KtoConfig, KtoLoss
from unimodal.objectives.masked_codes import MaskedCodeConfig, MaskedCodes
from unimodal.objectives.mmrl import MmrlConfig, MmrlLoss
from unimodal.objectives.next_x import NextXConfig, NextXLoss
from unimodal.objectives.objective import Objective, RowKind
from unimodal.objectives.packed import PackedLoss
from unimodal.objectives.parallel_copies import ParallelCopies, ParallelCopyConfig
from unimodal.objectives.preference import PreferenceConfig, PreferenceLoss
from unimodal.objectives.prompt_transfer import PromptTransfer, PromptTransferConfig
from unimodal.objectives.restored_codes import RestoredCodeConfig, RestoredCodes
from unimodal.objectives.row_prior import RowPriorConfig
from unimodal.objectives.sinks import SinkConfig
from unimodal.objectives.token_unify import TokenUnify, TokenUnifyConfig
from unimodal.objectives.transcript import TranscriptConfig
from unimodal.objectives.unlearning import UnlearningConfig, UnlearningLoss

NEXT_TOKEN = "next_token"


class ObjectiveConfig(Config):
    """Which objective, and its settings: `preference: {}` for the defaults. Of those in `OBJECTIVES` at most one."""

    preference: PreferenceConfig | None = None
    kto: KtoConfig | None = None
    unlearning: UnlearningConfig | None = None
    grpo: GrpoConfig | None = None
    distillation: DistillationConfig | None = None
    masked_codes: MaskedCodeConfig | None = None
    context_prompt: ContextLossConfig | None = None
    prompt_transfer: PromptTransferConfig | None = None
    mmrl: MmrlConfig | None = None
    restored_codes: RestoredCodeConfig | None = None
    next_x: NextXConfig | None = None
    any_order: AnyOrderConfig | None = None
    parallel_copies: ParallelCopyConfig | None = None
    token_unify: TokenUnifyConfig | None = None
    #: added to next-token training
    transcript: TranscriptConfig | None = None
    #: added to any of them
    row_prior: RowPriorConfig | None = None
    sinks: SinkConfig | None = None
    #: every so many steps: the share of each of its terms in the gradient, at a backward pass for each
    shares_every: Annotated[int, MAY_CHANGE] = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _read_name(cls, value: object) -> object:
        """A name alone stands for the objective with its defaults."""
        if isinstance(value, str):
            return {} if value == NEXT_TOKEN else {value: {}}
        return value

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        given = self._list_given()
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; train with one, then with the other")
        return self

    def _list_given(self) -> list[str]:
        return [name for name in OBJECTIVES if name != NEXT_TOKEN and getattr(self, name) is not None]

    @property
    def name(self) -> str:
        """The name of the objective."""
        return next(iter(self._list_given()), NEXT_TOKEN)

    @property
    def own(self) -> Config | None:
        """The settings of the objective; None for next-token training, whose settings are the recipe's `loss`."""
        return getattr(self, self.name, None)

    @property
    def rows(self) -> RowKind:
        """What the rows of a dataset must hold."""
        return OBJECTIVES[self.name].rows


OBJECTIVES: dict[str, type[Objective]] = {
    NEXT_TOKEN: PackedLoss,
    "preference": PreferenceLoss,
    "kto": KtoLoss,
    "unlearning": UnlearningLoss,
    "grpo": GrpoLoss,
    "distillation": TeacherLoss,
    "masked_codes": MaskedCodes,
    "context_prompt": ContextPromptLoss,
    "prompt_transfer": PromptTransfer,
    "mmrl": MmrlLoss,
    "restored_codes": RestoredCodes,
    "next_x": NextXLoss,
    "any_order": AnyOrderLoss,
    "parallel_copies": ParallelCopies,
    "token_unify": TokenUnify,
}
