"""The objective of a tuning recipe, made from its settings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from unimodal.coder.media_coder import MediaCoder
from unimodal.config import Config
from unimodal.corpus.record_cache import KEY_BYTES, RecordCache
from unimodal.model.adapter_files import LORA_FILE, ROWS_FILE
from unimodal.model.attention import set_attention
from unimodal.model.base import load_base
from unimodal.model.prompt_files import WEIGHTS_PATH, read_soft_prompt
from unimodal.model.soft_prompt import find_soft_prompt, list_prompt_ids
from unimodal.model_folder.decoder import load_decoder
from unimodal.model_folder.layout import VOCABULARY_FILE
from unimodal.objectives.any_order import AnyOrderConfig, AnyOrderLoss
from unimodal.objectives.context_prompt import ContextLossConfig, ContextPromptLoss
from unimodal.objectives.distillation.student import DistillationConfig, Teacher, TeacherLoss
from unimodal.objectives.grpo import GrpoConfig, GrpoLoss
from unimodal.objectives.kto import KtoConfig, KtoLoss
from unimodal.objectives.masked_codes import MaskedCodeConfig, MaskedCodes
from unimodal.objectives.mmrl import MmrlConfig, MmrlLoss
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.next_x import NextXConfig, NextXLoss
from unimodal.objectives.objective import Objective
from unimodal.objectives.packed import PackedLoss
from unimodal.objectives.parallel_copies import ParallelCopies, ParallelCopyConfig
from unimodal.objectives.preference import PreferenceConfig, PreferenceLoss
from unimodal.objectives.prompt_transfer import PromptTransfer, PromptTransferConfig
from unimodal.objectives.registry import OBJECTIVES, ObjectiveConfig
from unimodal.objectives.restored_codes import RestoredCodeConfig, RestoredCodes
from unimodal.objectives.row_prior import RowPrior
from unimodal.objectives.sinks import SinkDecorrelation
from unimodal.objectives.token_unify import TokenUnify, TokenUnifyConfig
from unimodal.objectives.transcript import TranscriptReading
from unimodal.objectives.unlearning import UnlearningConfig, UnlearningLoss
from unimodal.sequence.templates.own import TEXT_PREFIX, Template
from unimodal.text.tokenizer import TextTokenizer, TokenizerData
from unimodal.training.identity import hash_files
from unimodal.vocabulary import Vocabulary, read_vocabulary

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
    media: MediaCoder | None = None,
) -> nn.Module:
    """The module to train, called as an `Objective`; the models that it compares with are loaded from their folders.

    media: the tokenizers, which know the columns of their rasters.

    Raises ValueError for settings that do not go together, and for a folder that cannot be used.
    """
    prompt = find_soft_prompt(model)
    plain = settings.own is settings.sinks is settings.transcript is None and loss.keep_share == 1
    if prompt is not None and prompt.private is not None and not plain:
        raise ValueError(
            "prompt.private hides documents whose losses depend on no other, those of plain next-token training; "
            "leave objective and loss.keep_share out"
        )
    main = _make_main(settings.own, loss, model, template, media)
    made: nn.Module = main
    if settings.transcript is not None:
        made = TranscriptReading(main, template.vocabulary, settings.transcript)
    if settings.sinks is not None:
        made = SinkDecorrelation(made, settings.sinks)
    return made if settings.row_prior is None else RowPrior(made, model, settings.row_prior)


def _make_main(
    own: Config | None, loss: LossConfig, model: PreTrainedModel, template: Template, media: MediaCoder | None
) -> Objective:
    vocabulary, device = template.vocabulary, next(model.parameters()).device
    length = len(list_prompt_ids(model))
    if isinstance(own, PreferenceConfig):
        folders = dict(_list_folders(own))
        contrast = [load_other(name, folder, template, device, length) for name, folder in folders.items()]
        return PreferenceLoss(model, vocabulary, loss, own, contrast)
    if isinstance(own, DistillationConfig):
        return TeacherLoss(model, vocabulary, loss, own, _load_teacher(own, loss.softmax, template, device, length))
    if isinstance(own, GrpoConfig):
        return GrpoLoss(model, vocabulary, loss, own)
    if isinstance(own, MaskedCodeConfig):
        return MaskedCodes(model, vocabulary, loss, own)
    if isinstance(own, NextXConfig):
        return NextXLoss(model, vocabulary, loss, own, _list_columns(media, vocabulary))
    if isinstance(own, AnyOrderConfig):
        return AnyOrderLoss(model, vocabulary, loss, own)
    if isinstance(own, ParallelCopyConfig):
        return ParallelCopies(model, vocabulary, loss, own)
    if isinstance(own, TokenUnifyConfig):
        return TokenUnify(model, vocabulary, loss, own)
    if isinstance(own, KtoConfig):
        return KtoLoss(model, vocabulary, loss, own)
    if isinstance(own, RestoredCodeConfig):
        return RestoredCodes(model, vocabulary, loss, own)
    if isinstance(own, ContextLossConfig):
        return ContextPromptLoss(model, vocabulary, loss, own)
    if isinstance(own, MmrlConfig):
        return MmrlLoss(model, vocabulary, loss, own)
    if isinstance(own, PromptTransferConfig):
        if own.kind == "panda":
            places = [own.source, *([own.target] if own.target is not None else [])]
            return PromptTransfer(
                model, vocabulary, loss, own, prompts=[read_soft_prompt(one, or_itself=True) for one in places]
            )
        small = load_other("prompt_transfer.source", own.source, template, device, prompt=None)
        return PromptTransfer(model, vocabulary, loss, own, small)
    if isinstance(own, UnlearningConfig):
        [(name, folder)] = _list_folders(own)
        encode = template.text.encode
        replacements = [
            (encode(prefix + old), encode(prefix + new))
            for old, new in own.replacements.items()
            for prefix in (TEXT_PREFIX, "")
        ]
        return UnlearningLoss(
            model, vocabulary, loss, own, load_other(name, folder, template, device, length), replacements
        )
    return PackedLoss(model, vocabulary, loss)


def _list_columns(media: MediaCoder | None, vocabulary: Vocabulary) -> dict[str, int]:
    """Block → codes in a row, of the media whose tokenizers write rasters."""
    columns = [] if media is None else [media.get_tokenizer(medium).columns for medium in vocabulary.media]
    return {block: count for part in columns for block, count in part.items()}


def _load_teacher(
    own: DistillationConfig, softmax: str, template: Template, device: torch.device, prompt: int
) -> Teacher:
    """Raises ValueError for a teacher that cannot be loaded, or whose vocabulary is another where it must not be."""
    if own.likelihood is None:
        model = load_other("distillation.teacher", Path(own.teacher), template, device, prompt)
        if own.cache is None:
            return Teacher(model)
        weights = hash_files([Path(own.teacher) / file for file in _list_weights(Path(own.teacher))])
        logits = own.learnt_logits
        return Teacher(model, store=FolderStore(own.cache, f"{weights} {logits.top} {logits.temperature} {softmax}"))
    if prompt:
        raise ValueError("distillation.likelihood compares texts, and a soft prompt is none; leave one of them out")
    base = load_base(own.teacher)
    text = TextTokenizer(cast(TokenizerData, base.tokenizer))
    begin = base.model.config.bos_token_id
    if begin is None:
        begin = base.model.config.eos_token_id
    begin = begin[0] if isinstance(begin, list) else begin
    model = base.model.to(device).eval()
    set_attention(model)
    return Teacher(model, text, template.text, int(begin or 0))


class FolderStore:
    """The targets of a teacher in a folder (`corpus/record_cache.py`). of: what decides them beside the document."""

    def __init__(self, folder: Path, of: str) -> None:
        self._records, self._of = RecordCache(folder), of.encode()

    def find(self, key: bytes) -> bytes | None:
        found = self._records.get(self._make_key(key))
        return None if found is None else found[1]

    def keep(self, key: bytes, record: bytes) -> None:
        self._records.add(self._make_key(key), record)

    def _make_key(self, key: bytes) -> bytes:
        return hashlib.sha256(self._of + key).digest()[:KEY_BYTES]


def _list_folders(own: Config | None) -> Iterator[tuple[str, Path]]:
    """The model folders that the settings of an objective name: setting, folder."""
    if isinstance(own, PreferenceConfig) and own.critical is not None:
        yield "preference.critical.right", own.critical.right
        yield "preference.critical.wrong", own.critical.wrong
    if isinstance(own, DistillationConfig):
        yield "distillation.teacher", Path(own.teacher)
    if isinstance(own, UnlearningConfig):
        yield "unlearning.reinforced", own.reinforced
    if isinstance(own, PromptTransferConfig):
        yield "prompt_transfer.source", own.source
        if own.target is not None:
            yield "prompt_transfer.target", own.target


def list_weight_files(settings: ObjectiveConfig) -> dict[str, Path | None]:
    """The weights that an objective reads, by name, for the identity of a run."""
    return {
        f"objective.{name} {file}": folder / file
        for name, folder in _list_folders(settings.own)
        for file in _list_weights(folder)
    }


def _list_weights(folder: Path) -> tuple[str, ...]:
    return (*WEIGHT_FILES, WEIGHTS_PATH) if (folder / WEIGHTS_PATH).is_file() else WEIGHT_FILES


def load_other(
    name: str, folder: Path, template: Template, device: torch.device, prompt: int | None = 0
) -> PreTrainedModel:
    """A model to compare with, in evaluation mode. name: that of the setting. prompt: the length of the soft
    prompt of the model that is trained, whose batches this one reads; None: it reads them with its own.

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
    own = len(list_prompt_ids(other))
    if prompt is not None and own != prompt:
        raise ValueError(
            f"objective.{name}: {folder} has a soft prompt of {own} tokens, and the model in training {prompt}: "
            "they read the same batches; tune with as long a prompt, or with none"
        )
    set_attention(other)
    return other
