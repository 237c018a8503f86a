"""A model as the reports see it: a model folder of ours, or any causal LM of transformers with its text tokenizer.

A model folder reads prompts through its template and may hold media; a stock model reads plain text, behind what its
own tokenizer puts first.

Legend: N tokens, V rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from unimodal.evaluation.inspection.forward import ForwardChange, read_last, watch
from unimodal.files import download_folder, is_hub_id
from unimodal.model.base import PACKAGES, LoadedBase, load_base
from unimodal.model_folder.find import find_model
from unimodal.model_folder.layout import VOCABULARY_FILE
from unimodal.pipeline import Unimodal
from unimodal.pipeline.requests import prepare, render_prompt
from unimodal.pipeline.settings import AnswerSettings
from unimodal.sequence.document import Document, Media, Part, Text, Turn
from unimodal.sequence.templates.own import Rendered
from unimodal.text.tokenizer import TextTokenizer, TokenizerData

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ANSWER_TOKENS = 16  # of an answer in words that a stock model writes itself


@dataclass(frozen=True, eq=False)
class MediaSpan:
    """A medium in a sequence. at: the positions of its codes, without marks, int64 [M]. part: with codes or, for a
    model that reads features, its file. tensor: the medium as its tokenizer sees it, where it came from a file."""

    modality: str
    at: np.ndarray
    part: Media
    tensor: Tensor | None = None


@dataclass(frozen=True, eq=False)
class ReadSequence:
    """A sequence as the decoder reads it.

    ids: int64 [N]. labels: the N tokens as a reader sees them. answer: the first position of the answer; N without one.
    first: how many tokens stand before the words (a start of text, the mark of a role).
    """

    ids: Tensor
    labels: tuple[str, ...]
    spans: tuple[MediaSpan, ...] = ()
    answer: int = 0
    first: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def media(self) -> np.ndarray:
        """Whether each position is a code of a medium, bool [N]."""
        found = np.zeros(len(self), dtype=bool)
        for span in self.spans:
            found[span.at] = True
        return found


class OpenedModel:
    """A decoder and what turns words and media into its ids. loaded: the whole model, of a model folder."""

    def __init__(
        self,
        name: str,
        decoder: PreTrainedModel,
        text: TextTokenizer,
        loaded: Unimodal | None,
        start: Sequence[int] = (),
    ) -> None:
        """start: the ids that the tokenizer of a stock model puts before a text."""
        self.name, self.decoder, self.text, self.loaded = name, decoder.eval(), text, loaded
        self.start = list(start)
        if loaded is not None and not loaded.vocabulary.positions.is_flat:
            raise ValueError(f"{name} reads several codes at one position, which the reports cannot tell apart")

    @property
    def device(self) -> torch.device:
        return next(self.decoder.parameters()).device

    @cached_property
    def text_ids(self) -> Tensor:
        """The rows that plain text uses, int64 [V]."""
        if self.loaded is not None:
            ranges = self.loaded.vocabulary.text_ranges
            return torch.cat([torch.arange(part.start, part.stop) for part in ranges])
        reserved = set(self.text.reserved_ids)
        rows = min(self.text.size, int(self.decoder.get_input_embeddings().weight.shape[0]))
        return torch.tensor([row for row in range(rows) if row not in reserved])

    @property
    def max_positions(self) -> int:
        return int(getattr(self.decoder.config, "max_position_embeddings", 0) or 1 << 20)

    def name_token(self, row: int) -> str:
        """A row as a reader sees it: its text, or the string of a control or code."""
        if row < self.text.size:
            return self.text.decode([row])
        if self.loaded is None or row >= self.loaded.vocabulary.size:
            return f"<{row}>"
        return self.loaded.vocabulary.make_token_string(row)

    # ---- what is predicted

    def restrict(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits [..., T, V] → float32, with -inf for rows that are not of their target's kind (targets int64 [T]).

        A model of ours is trained and sampled among the rows of one kind: words and marks, or one block of codes. What
        it gives the others means nothing. A stock model's logits stay as they are.
        """
        logits = logits.float()
        if self.loaded is None:
            return logits
        vocabulary = self.loaded.vocabulary
        blocks = [vocabulary.find_block(row) if row < vocabulary.size else None for row in targets.tolist()]
        allowed = torch.zeros(len(blocks), logits.shape[-1], dtype=torch.bool, device=logits.device)
        for row, block in zip(allowed, blocks, strict=True):
            if block is None:
                row[self.words_and_marks.to(row.device)] = True
            else:
                row[block.start : block.start + block.size] = True
        return logits.masked_fill(~allowed, -torch.inf)

    @cached_property
    def words_and_marks(self) -> Tensor:
        """The rows that may stand in an answer of words, int64 [V]."""
        if self.loaded is None:
            return torch.arange(int(self.decoder.get_input_embeddings().weight.shape[0]))
        marks = self.loaded.vocabulary.control_range
        return torch.cat([self.text_ids, torch.arange(marks.start, marks.stop)])

    @torch.inference_mode()
    def measure_losses(self, ids: Tensor, change: ForwardChange | None = None) -> Tensor:
        """The loss of every token but the first, in nats, float32 [N - 1], for ids int64 [N]."""
        if change is None:
            logits = self.decoder(input_ids=ids[None], use_cache=False).logits
        else:
            logits = watch(self.decoder, ids[None], attention=False, change=change).logits
        return torch.nn.functional.cross_entropy(self.restrict(logits[0, :-1], ids[1:]), ids[1:], reduction="none")

    # ---- what is read

    def read_text(self, text: str, num_tokens: int | None = None) -> ReadSequence:
        """A plain text, at most `num_tokens` of it, as it stands in a prompt. Raises ValueError for an empty one."""
        if not text.strip():
            raise ValueError("there is no text to read; give some words")
        if self.loaded is not None:
            rendered = self.loaded.template.render(Document([Turn("user", [Text(text)])]))
            ids = rendered.ids.tolist()
            ids = ids[: -1 if len(ids) > 1 else None]  # the end of the turn tells nothing
        else:
            ids = [*self.start, *self.text.encode(text)]
        if not ids:
            raise ValueError(f"the tokenizer of {self.name} has no token for this text; give other words")
        first = next((at for at, row in enumerate(ids) if self._is_word(row)), 0)
        most = min(num_tokens or len(ids), self.max_positions)
        return self._make_sequence(ids[:most], first=first)

    def read_prompt(
        self, prompt: str | None, files: Sequence[Media] = (), answer: str | None = None, to: str | None = None
    ) -> ReadSequence:
        """A user's words and media, and the answer that is given or that the model writes itself, greedily.

        to: the medium of the answer. Raises ValueError for an empty prompt, an answer that is empty, and media that the
        model does not have.
        """
        if prompt is not None and not prompt.strip():
            raise ValueError("the prompt is empty; give some words")
        if answer is not None and not answer.strip():
            raise ValueError("the answer is empty; give some words, or leave it to the model")
        if self.loaded is None:
            return self._read_plain(prompt, files, answer, to)
        return self._read_document(self.loaded, prompt, files, answer, to)

    def _read_plain(
        self, prompt: str | None, files: Sequence[Media], answer: str | None, to: str | None
    ) -> ReadSequence:
        for medium in [*(file.modality for file in files), *([to] if to not in (None, "text") else [])]:
            raise ValueError(f"{self.name} reads and writes text only, and no {medium}")
        if prompt is None:
            raise ValueError("give a prompt")
        ids = [*self.start, *self.text.encode(prompt)]
        if not ids:
            raise ValueError(f"the tokenizer of {self.name} has no token for {prompt!r}; give other words")
        given = self.text.encode(answer) if answer is not None else self.write_greedily(ids, ANSWER_TOKENS)
        if answer is not None and not given:
            raise ValueError(f"the tokenizer of {self.name} has no token for the answer {answer!r}; give other words")
        self._check_length(len(ids) + len(given))
        return self._make_sequence([*ids, *given], answer=len(ids), first=len(self.start))

    def _read_document(
        self, model: Unimodal, prompt: str | None, files: Sequence[Media], answer: str | None, to: str | None
    ) -> ReadSequence:
        for file in files:
            if file.modality not in model.vocabulary.media:
                known = ", ".join(model.vocabulary.media) or "text only"
                raise ValueError(f"{self.name} has no {file.modality}; it has {known}")
        tensors = [None if self._reads_features(file) else model.coder.read_part(file) for file in files]
        parts: list[Part] = [model.coder.encode_part(file) for file in files]
        if prompt is not None:
            parts.append(Text(prompt))
        document = Document([model.user_turn(parts)])
        to = to if to is not None or answer is None else "text"
        settings = AnswerSettings(to=to or "text", temperature=0.0, guidance=1.0, text_tokens=ANSWER_TOKENS)
        prepared = prepare(model, document, settings)
        ids = prepared.prompt
        if answer is not None:
            given = model.template.text.encode(f" {answer}")
        else:
            [given] = model.engine.generate([ids], prepared.config)
        self._check_length(len(ids) + len(given))
        media = [part for part in document.parts if isinstance(part, Media)]
        rendered = render_prompt(model, document, to or "text")
        spans = [
            replace(span, part=part, tensor=tensor)
            for span, part, tensor in zip(self._find_spans(rendered, media), media, tensors, strict=True)
        ]
        written = self._find_written(model, given, len(ids))
        whole = [*ids, *given]
        first = next((at for at, row in enumerate(whole) if self._is_word(row)), 0)
        return self._make_sequence(whole, [*spans, *written], len(ids), first)

    def read_turns(self, document: Document, answer: str) -> ReadSequence:
        """A conversation whose media have codes, and the words that answer it.

        Raises ValueError for an empty answer and for a conversation that is longer than the model reads.
        """
        assert self.loaded is not None, "a stock model reads plain text; use read_prompt"
        if not answer.strip():
            raise ValueError("the answer is empty; give some words")
        rendered = render_prompt(self.loaded, document, "text")
        given = self.text.encode(f" {answer.strip()}")
        self._check_length(len(rendered) + len(given))
        spans = self._find_spans(rendered, [part for part in document.parts if isinstance(part, Media)])
        ids = self.loaded.read(rendered)
        return self._make_sequence([*ids, *given], spans, len(ids))

    def _reads_features(self, file: Media) -> bool:
        return self.loaded is not None and self.loaded.is_read_by_features(file.modality)

    def _find_spans(self, rendered: Rendered, media: Sequence[Media]) -> list[MediaSpan]:
        """The spans of a rendered prompt's media, in order; of codes, and of what stands for features."""
        assert self.loaded is not None
        vocabulary = self.loaded.vocabulary
        found: list[list[int]] = []
        open_medium = 0
        for at, (row, medium) in enumerate(zip(rendered.ids.tolist(), rendered.modality.tolist(), strict=True)):
            begins = vocabulary.find_opened_medium(row) is not None
            if medium and (begins or medium != open_medium):
                found.append([])
            open_medium = medium
            if medium and not vocabulary.is_control(row) and not vocabulary.is_text(row):
                found[-1].append(at)
        assert len(found) == len(media), "every medium of a prompt is a span"
        return [MediaSpan(part.modality, np.array(at), part) for at, part in zip(found, media, strict=True)]

    def _find_written(self, model: Unimodal, ids: Sequence[int], offset: int) -> list[MediaSpan]:
        """The media that an answer holds."""
        parts = [part for part in model.template.parse_answer(ids) if isinstance(part, Media)]
        spans: list[MediaSpan] = []
        at = [n for n, row in enumerate(ids) if row < model.vocabulary.size and model.vocabulary.find_block(row)]
        for part in parts:
            count = int(np.size(part.require_codes()))
            spans.append(MediaSpan(part.modality, np.array(at[:count]) + offset, part))
            at = at[count:]
        return spans

    def _make_sequence(
        self, ids: Sequence[int], spans: Sequence[MediaSpan] = (), answer: int | None = None, first: int = 0
    ) -> ReadSequence:
        labels = tuple(self.name_token(row) for row in ids)
        answer = len(ids) if answer is None else answer
        return ReadSequence(torch.tensor(ids, device=self.device), labels, tuple(spans), answer, first)

    def _is_word(self, row: int) -> bool:
        return row < self.text.size and row not in self.start

    def _check_length(self, length: int) -> None:
        if length > self.max_positions:
            raise ValueError(f"prompt and answer are {length} tokens; {self.name} reads at most {self.max_positions}")

    def find_start(self) -> list[int]:
        """What begins every text, without a role or a prompt."""
        if self.loaded is None:
            return self.start
        vocabulary = self.loaded.vocabulary
        return [vocabulary.get_control_id("<|bos|>")] if vocabulary.has_control("<|bos|>") else []

    # ---- what is written

    @torch.inference_mode()
    def write_greedily(self, ids: Sequence[int], count: int) -> list[int]:
        """The likeliest continuation of `count` tokens, or up to an end of text."""
        whole = list(ids)
        ends = self.decoder.config.eos_token_id
        stops = set(ends if isinstance(ends, list) else [ends])
        for _ in range(min(count, self.max_positions - len(whole))):
            so_far = torch.tensor([whole], device=self.device)
            whole.append(int(read_last(self.decoder, so_far, 1).argmax()))
            if whole[-1] in stops:
                break
        return whole[len(ids) :]


def open_model(name: str | None, tell: Callable[[str], None] = lambda text: None) -> OpenedModel:
    """The model in a folder, under a hub id, or of a release by its name.

    A folder or hub repository with a vocabulary is a model of ours; any other is a stock causal LM. Raises ValueError,
    in one line, for what is neither.
    """
    if name is not None and _is_stock(name):
        tell("loading the model")
        return open_base(load_base(name, check=False))
    loaded = Unimodal.from_folder(find_model(name), on_step=tell)
    return OpenedModel(loaded.folder.name, loaded.decoder, loaded.template.text, loaded)


def open_base(base: LoadedBase) -> OpenedModel:
    """A loaded stock model. Raises ValueError if its tokenizer cannot be read."""
    from tokenizers import Tokenizer

    start = Tokenizer.from_str(json.dumps(base.tokenizer)).encode("").ids
    text = TextTokenizer(cast(TokenizerData, base.tokenizer))  # transformers has read it
    return OpenedModel(base.name, base.model, text, None, start)


def _is_stock(name: str) -> bool:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return not (folder / VOCABULARY_FILE).is_file() and not (folder / "base.json").is_file()
    if name in PACKAGES:
        return True
    return is_hub_id(name) and not (download_folder(name, ["*.json"], "model ") / VOCABULARY_FILE).is_file()
