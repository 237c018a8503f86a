"""A model folder in memory: all that answering needs, without any way of asking.

`requests.py` says what the engine is asked; `search.py` and `speech_reading.py` answer some requests by searches.
`Unimodal` is a loaded model with all of this behind a few methods.

Legend: N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

from unimodal.coder.features import FeatureMemory
from unimodal.coder.media_coder import MediaCoder
from unimodal.coder.outputs import Output
from unimodal.generation.engine import Engine
from unimodal.model_folder.decoder import load_decoder
from unimodal.model_folder.layout import VOCABULARY_FILE
from unimodal.model_folder.settings import MediumSettings, read_processor, read_sampling
from unimodal.model_folder.wording import Wording
from unimodal.sequence.document import Document, Text
from unimodal.sequence.templates.open import open_template
from unimodal.sequence.templates.own import Rendered, Template
from unimodal.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoadedModel:
    """A decoder with its template, its media tokenizers and the engine that runs it.

    sampling: how the tokens of each modality are chosen, unless a request says otherwise; a medium that is left out
    gets the defaults of `MediumSettings`, and text is greedy. weights, compile, kv: see `Engine`. draft_heads: the
    folder of the heads for the fast decoder of that name, where it is not the model's own.
    """

    def __init__(
        self,
        folder: Path,
        decoder: PreTrainedModel,
        template: Template,
        coder: MediaCoder,
        sampling: Mapping[str, MediumSettings] | None = None,
        weights: str = "auto",
        compile: bool = False,
        kv: str = "model",
        draft_heads: Path | None = None,
    ) -> None:
        self.draft_heads = draft_heads
        self.folder, self.decoder, self.template, self.coder = folder, decoder, template, coder
        self.vocabulary, self.processor = template.vocabulary, coder.processor
        own = {name: MediumSettings() for name in self.vocabulary.media} | dict(sampling or {})
        self.sampling = {"text": MediumSettings(temperature=0.0)} | own
        reads = any(self.is_read_by_features(modality) for modality in self.vocabulary.media)
        self.features = FeatureMemory(decoder, coder) if reads else None
        self.engine = Engine(decoder, self.vocabulary, weights=weights, compile=compile, kv=kv)
        #: the media that it can write: those whose tokenizer came with its decoder
        self.writable = tuple(name for name in self.vocabulary.media if coder.can_decode(name))
        self.max_positions = self.engine.max_positions

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        device: str | None = None,
        on_step: Callable[[str], None] = lambda step: None,
        weights: str = "auto",
        compile: bool = False,
        kv: str = "model",
        draft_heads: Path | None = None,
    ) -> Self:
        """The model in a folder that `find_model` has found. Raises ValueError, in one line, for a broken folder."""
        on_step("loading the model")
        vocabulary = read_vocabulary(folder / VOCABULARY_FILE)
        processor = read_processor(folder)
        template = open_template(processor.template, vocabulary, folder)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        coder = MediaCoder(folder, vocabulary, processor, device, on_step)
        decoder, sampling = load_decoder(folder, vocabulary).to(device), read_sampling(folder)
        return cls(folder, decoder, template, coder, sampling, weights, compile, kv, draft_heads)

    def is_read_by_features(self, modality: str) -> bool:
        """Whether this medium is read through continuous features instead of codes."""
        return modality in self.vocabulary.media and self.vocabulary.get_layout(modality).features is not None

    @property
    def wording(self) -> Wording:
        """The words in which the model was trained to be asked."""
        return self.processor.wording

    def add_system_turn(self, document: Document, to: str | None = None) -> Document:
        """Puts the model's own system turn, if it has one, before a document without one, unless a medium is asked
        for.
        """
        return document if to in self.vocabulary.media else document.add_system(self.processor.system)

    def read(self, rendered: Rendered) -> list[int]:
        """The ids [N] of a rendered prompt; media that are read through features have the ids of their features."""
        return rendered.ids.tolist() if self.features is None else self.features.fill_prompt(rendered)

    def decode_answers(self, rows: Sequence[Sequence[int]]) -> list[list[Output]]:
        """Answers as ids → their parts in order, with media decoded, all of one modality at once."""
        answers = [self.template.parse_answer(row) for row in rows]
        outputs = [[Output(part) for part in answer] for answer in answers]
        for modality in self.vocabulary.media:
            places, parts = [], []
            for number, answer in enumerate(answers):
                for place, part in enumerate(answer):
                    if not isinstance(part, Text) and part.modality == modality:
                        places.append((number, place))
                        parts.append(part)
            if not parts:
                continue
            media = self.coder.decode(modality, [part.require_codes() for part in parts], [part.grid for part in parts])
            rate = self.coder.get_rate(modality)
            for (number, place), part, medium in zip(places, parts, media, strict=True):
                outputs[number][place] = Output(part, medium, rate)
        return outputs
