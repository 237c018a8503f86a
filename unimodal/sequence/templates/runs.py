"""The base of converted checkpoints' formats: runs of text and marks, each run encoded as one string.

Such a checkpoint was trained on whole prompts between special tokens: `USER: ` and the words behind it are one string
to its tokenizer. So a format here is a list of runs; adjacent texts are joined before they are encoded, except where an
answer begins. Every run of text is encoded as plain text, so text can never become a mark or a code.

Legend: N tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unimodal.sequence.document import MEDIA_PARTS, Document, Media, Part, Text
from unimodal.sequence.templates.own import IGNORE, Rendered, Template, check_text_tokenizer
from unimodal.text.tokenizer import TextTokenizer
from unimodal.vocabulary import Vocabulary


@dataclass(frozen=True)
class Run:
    """A stretch of a rendered document: text, or rows that are no text.

    content: text, or rows of the vocabulary. answer: whether it belongs to an answer. modality: an index into the
    vocabulary's `modalities`. read: the medium that its placeholders stand for. learn: False for an answer without
    labels; the ids are the same.
    """

    content: str | list[int]
    answer: bool = False
    modality: int = 0
    read: Media | None = None
    learn: bool = True


ParsedItem = str | int | Media  # an item of a parsed sequence: text, the row of a control, or a medium


class RunTemplate(Template):
    """A checkpoint's own format; a subclass writes its runs and reads them back."""

    #: written before the words of a text answer, and removed when it is parsed
    answer_prefix = ""

    def __init__(self, vocabulary: Vocabulary, text: TextTokenizer) -> None:
        check_text_tokenizer(vocabulary, text)
        self.vocabulary, self.text = vocabulary, text
        self._bos = vocabulary.get_control_id("<|bos|>")
        self._pad = vocabulary.get_control_id("<|pad|>")
        self._end_of_turn = vocabulary.get_control_id("<|end_of_turn|>")

    @abstractmethod
    def write_runs(self, document: Document, prompt: bool, to: str | None) -> Iterator[Run]:
        """The runs of a canonical document; with `prompt`, up to the beginning of an answer of modality `to`."""

    @abstractmethod
    def read_document(self, items: Sequence[ParsedItem]) -> Document:
        """The inverse of `write_runs`, for the items behind the first mark. Raises ValueError for another format."""

    def begin_chat(self, document: Document, system: str) -> Document:
        """Add the checkpoint's own system turn to documents that are answered in words, as in its training."""
        answers = [part for turn in document.turns if turn.role == "assistant" for part in turn.parts]
        return document.add_system(system) if all(isinstance(part, Text) for part in answers) else document

    def render(self, document: Document, add_generation_prompt: bool = False, to: str | None = None) -> Rendered:
        ids: list[int] = []
        learnt: list[bool] = []
        modality: list[int] = []
        read: list[Media] = []

        def add(rows: list[int], run: Run) -> None:
            ids.extend(rows)
            learnt.extend([run.answer and run.learn] * len(rows))
            modality.extend([run.modality] * len(rows))
            if run.read is not None:
                read.append(run.read)

        held: Run | None = None  # text that the next run may be joined to
        for run in [Run([self._bos]), *self.write_runs(document.canonicalize(), add_generation_prompt, to), Run([])]:
            if isinstance(run.content, str) and held is not None and held.answer == run.answer:
                held = replace(held, content=f"{held.content}{run.content}")
                continue
            if held is not None:
                add(self.text.encode(str(held.content)), held)
            held = run if isinstance(run.content, str) else None
            if not isinstance(run.content, str):
                add(run.content, run)
        array = np.array(ids, dtype=np.int64)  # [N]
        labels = np.where(np.array(learnt, dtype=bool), array, IGNORE)
        return Rendered(array, labels, np.array(modality, dtype=np.uint8), tuple(read))

    def parse(self, ids: Sequence[int] | np.ndarray) -> Document:
        items = self.split_items(ids)
        return self.read_document(items[1:] if items and items[0] == self._bos else items)

    def parse_answer(self, ids: Sequence[int] | np.ndarray) -> tuple[Part, ...]:
        parts: list[Part] = []
        for item in self.split_items(ids):
            if isinstance(item, int):
                break
            parts.append(Text(item.removeprefix(self.answer_prefix)) if isinstance(item, str) else item)
        return tuple(parts)

    def split_items(self, ids: Sequence[int] | np.ndarray) -> list[ParsedItem]:
        """Rows → texts, controls and media, in order, without padding at the end."""
        rows = np.asarray(ids, dtype=np.int64)
        while len(rows) > 1 and rows[-1] == self._pad:
            rows = rows[:-1]
        vocabulary, at = self.vocabulary, 0
        items: list[ParsedItem] = []
        while at < len(rows):
            row = int(rows[at])
            modality = vocabulary.find_opened_medium(row)
            end = at + 1
            if modality is not None:
                ends = np.flatnonzero(rows[at:] == vocabulary.get_end_id(modality))
                if not len(ends):
                    raise ValueError(f"the {modality} span that begins at token {at} has no end")
                end = at + int(ends[0]) + 1
                features = vocabulary.get_layout(modality).features
                if features is not None and features.row in rows[at:end]:
                    raise ValueError(f"the {modality} at token {at} was read through features, which ids do not hold")
                _, codes, grid = vocabulary.read_span(rows[at:end].tolist())
                items.append(MEDIA_PARTS[modality](codes=codes, grid=grid))
            elif vocabulary.is_text(row):
                while end < len(rows) and vocabulary.is_text(int(rows[end])):
                    end += 1
                items.append(self.text.decode(rows[at:end]))
            elif vocabulary.is_control(row):
                items.append(row)
            else:
                raise ValueError(f"token {at} is row {row}, which this model's format does not use")
            at = end
        return items

    def make_media_run(self, part: Media, answer: bool = False, learn: bool = True) -> Run:
        """The run of a medium's span. Raises ValueError for a medium without codes."""
        rows = self.vocabulary.encode_span(part.modality, part.require_codes(), part.grid)
        return Run(rows, answer, self.vocabulary.modality_index[part.modality], learn=learn)

    def make_features_run(self, part: Media) -> Run:
        """The run of placeholders of a medium that is read through features."""
        features = self.vocabulary.get_layout(part.modality).features
        assert features is not None
        rows = [self.vocabulary.get_start_id(part.modality), *[features.row] * features.count]
        return Run(
            [*rows, self.vocabulary.get_end_id(part.modality)],
            False,
            self.vocabulary.modality_index[part.modality],
            part,
        )
