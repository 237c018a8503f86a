"""Every registered objective, made with what it needs, and documents of the kind that it learns from.

An objective that is registered is found here with its default settings; one that needs other models or settings has an
entry in `SPECIAL`.
"""

import copy
from typing import get_args

import torch

from tests.objectives.judged import make_answers, pack_documents, render
from unimodal.objectives.distillation.student import DistillationConfig, Teacher, TeacherLoss
from unimodal.objectives.grpo import GrpoConfig, GrpoLoss
from unimodal.objectives.kto import KtoConfig, KtoLoss
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.next_x import NextXConfig, NextXLoss
from unimodal.objectives.registry import NEXT_TOKEN, OBJECTIVES, ObjectiveConfig
from unimodal.objectives.unlearning import UnlearningConfig, UnlearningLoss
from unimodal.sequence.templates.own import join_group

#: they train a soft prompt beside a base, and their documents begin with it: test_prompt_objectives.py, test_mmrl.py
OF_PROMPTS = ("context_prompt", "prompt_transfer", "mmrl")
NAMES = tuple(name for name in OBJECTIVES if name not in OF_PROMPTS)


def disturb(model, seed=7):
    """A frozen copy of other weights: a teacher, or a model that was tuned further."""
    other, noise = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
    return other


SPECIAL = {
    # the baseline compares with the answer of the neighbour in the row, by intention
    "kto": lambda *asked: KtoLoss(*asked, KtoConfig(baseline=False)),
    # with one step for each answer the loss is a constant whose gradient is not its slope
    "grpo": lambda *asked: GrpoLoss(*asked, GrpoConfig(rewards={"similarity": {}}, repeats=2, clip=0.9)),
    "unlearning": lambda model, *asked: UnlearningLoss(model, *asked, UnlearningConfig(reinforced="x"), disturb(model)),
    "distillation": lambda model, *asked: TeacherLoss(
        model, *asked, DistillationConfig(teacher="x"), Teacher(disturb(model))
    ),
    "next_x": lambda *asked: NextXLoss(*asked, NextXConfig(unit="subsample"), {"image": 2}),
}


def make_objective(name, model, vocabulary, cfg=None):
    """The objective of that name over the model."""
    cfg = cfg or LossConfig()
    if name in SPECIAL:
        return SPECIAL[name](model, vocabulary, cfg)
    if name == NEXT_TOKEN:
        return OBJECTIVES[name](model, vocabulary, cfg)
    [kind] = [one for one in get_args(ObjectiveConfig.model_fields[name].annotation) if one is not type(None)]
    return OBJECTIVES[name](model, vocabulary, cfg, kind())


def make_items(name, vocabulary, num=4, seed=0):
    """Rendered documents, or groups of them, of the rows that the objective learns from."""
    answers, rows = make_answers(vocabulary, num, seed), OBJECTIVES[name].rows
    if rows == "pairs":
        return [
            join_group([render(asked, right).give_values(1), render(asked, wrong).give_values(-1)])
            for asked, right, wrong in answers
        ]
    items = [render(asked, right) for asked, right, _ in answers]
    if rows == "labels":
        return [item.give_values(1 if number % 3 else -1) for number, item in enumerate(items)]
    if rows == "prompts":
        return [item.give_values(1.3 - number, -3.0) for number, item in enumerate(items)]
    return items


def call(module, items, length=64):
    """The summed loss and its parts of these items in rows of that length."""
    batch, values = pack_documents(items, length)
    batch = [tensor.long() for tensor in batch]
    return module(*batch, **({"values": values} if values.shape[2] else {}))
