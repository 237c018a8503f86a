"""The objective of a tuning recipe, made from its settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from unimodal.config import Config
from unimodal.model.adapter_files import LORA_FILE, ROWS_FILE
from unimodal.model.attention import set_attention
from unimodal.model_folder.decoder import load_decoder
from unimodal.model_folder.layout import VOCABULARY_FILE
from unimodal.objectives.grpo import GrpoConfig, GrpoLoss
from unimodal.objectives.kto import KtoConfig, KtoLoss
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.objective import Objective
from unimodal.objectives.packed import PackedLoss
from unimodal.objectives.preference import PreferenceConfig, PreferenceLoss
from unimodal.objectives.registry import OBJECTIVES, ObjectiveConfig
from unimodal.objectives.sinks import SinkDecorrelation
from unimodal.objectives.unlearning import UnlearningConfig, UnlearningLoss
from unimodal.sequence.templates.own import TEXT_PREFIX, Template
from unimodal.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHT_FILES = ("model.safetensors", LORA_FILE, ROWS_FILE)


def check_objective(settings: ObjectiveConfig, loss: LossConfig, from_nothing: bool = False) -> None:
    """Raises ValueError for settings that do not go together, before anything is computed.

    from_nothing: the model's weights are drawn, so that nothing can be compared with its start.
    """
    own = settings.own
    if from_nothing and OBJECTIVES[settings.name].compares_with_start:
        raise ValueError(
            f"objective.{settings.name} compares the model with that of the start, which knows nothing here; use it in "
            "fine-tuning"
        )
    if own is not None and loss.keep_share < 1:
        raise ValueError(
            f"loss.keep_share {loss.keep_share:g} selects tokens of next-token training, and objective.{settings.name} "
            "takes its place; leave one of them out"
        )


def make_objective(
    settings: ObjectiveConfig,
    loss: LossConfig,
    model: PreTrainedModel,
    template: Template,
) -> nn.Module:
    """The module to train, called as an `Objective`; the models that it compares with are loaded from their folders.

    Raises ValueError for settings that do not go together, and for a folder that cannot be used.
    """
    main = _make_main(settings.own, loss, model, template)
    return main if settings.sinks is None else SinkDecorrelation(main, settings.sinks)


def _make_main(own: Config | None, loss: LossConfig, model: PreTrainedModel, template: Template) -> Objective:
    vocabulary, device = template.vocabulary, next(model.parameters()).device
    if isinstance(own, PreferenceConfig):
        folders = dict(_list_folders(own))
        contrast = [load_other(name, folder, template, device) for name, folder in folders.items()]
        return PreferenceLoss(model, vocabulary, loss, own, contrast)
    if isinstance(own, GrpoConfig):
        return GrpoLoss(model, vocabulary, loss, own)
    if isinstance(own, KtoConfig):
        return KtoLoss(model, vocabulary, loss, own)
    if isinstance(own, UnlearningConfig):
        [(name, folder)] = _list_folders(own)
        encode = template.text.encode
        replacements = [
            (encode(prefix + old), encode(prefix + new))
            for old, new in own.replacements.items()
            for prefix in (TEXT_PREFIX, "")
        ]
        return UnlearningLoss(model, vocabulary, loss, own, load_other(name, folder, template, device), replacements)
    return PackedLoss(model, vocabulary, loss)


def _list_folders(own: Config | None) -> Iterator[tuple[str, Path]]:
    """The model folders that the settings of an objective name: setting, folder."""
    if isinstance(own, PreferenceConfig) and own.critical is not None:
        yield "preference.critical.right", own.critical.right
        yield "preference.critical.wrong", own.critical.wrong
    if isinstance(own, UnlearningConfig):
        yield "unlearning.reinforced", own.reinforced


def list_weight_files(settings: ObjectiveConfig) -> dict[str, Path | None]:
    """The weights that an objective reads, by name, for the identity of a run."""
    return {
        f"objective.{name} {file}": folder / file
        for name, folder in _list_folders(settings.own)
        for file in WEIGHT_FILES
    }


def load_other(name: str, folder: Path, template: Template, device: torch.device) -> PreTrainedModel:
    """A model to compare with, in evaluation mode. name: that of the setting.

    Raises ValueError for a folder without a model, and for one of another vocabulary.
    """
    if not (folder / VOCABULARY_FILE).is_file():
        raise ValueError(f"objective.{name}: {folder} has no vocabulary.json; name a model folder")
    vocabulary = read_vocabulary(folder / VOCABULARY_FILE)
    if vocabulary.to_dict() != template.vocabulary.to_dict():
        raise ValueError(
            f"objective.{name}: {folder} has another vocabulary than the model that is trained; tune both from one base"
        )
    other = load_decoder(folder, vocabulary).to(device).eval()
    set_attention(other)
    return other
