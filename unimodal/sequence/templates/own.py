"""Documents ⇄ ids. One template for training, chat and the server, and its exact inverse.

    <|bos|> <|user|> what is this? <|image_start|> … <|image_end|> <|end_of_turn|>
          <|assistant|> an apple <|end_of_turn|>

Every text is written with one space before it, so that its first word has the same piece as inside a sentence;
`parse` takes that space off again, and every other character survives. Each text is encoded by itself and media come as
integers, so nothing a user types can become a control or media row.

Labels (not shifted) are the ids of the assistant's turns, their end-of-turn included, and -100 elsewhere, and in turns
with `learn=False`; the `<|assistant|>` mark itself is given, not learnt. `modality` is 0 for text and turn marks, and
1, 2, 3 for every token of an image, audio or video span, its start, frame marks and end included.

A medium whose layout has features (`vocabulary.FeatureSpan`) is read through them, also one that the model wrote in an
earlier turn: its span holds placeholders, without labels. In the last answer it is written, by its codes.

Legend: N tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unimodal.sequence.document import MEDIA_PARTS, Document, Media, Part, Text, Turn
from unimodal.text.tokenizer import TextTokenizer
from unimodal.vocabulary import ROLES, Vocabulary
from unimodal.vocabulary.layout import FeatureSpan
from unimodal.vocabulary.positions import NOTHING, PositionMap

IGNORE = -100
TEXT_PREFIX = " "


@dataclass(frozen=True)
class Rendered:
    """A document as the decoder sees it; slicing it gives another one."""

    ids: np.ndarray  # int64 [N]
    labels: np.ndarray  # int64 [N], -100 outside answers, not shifted
    modality: np.ndarray  # uint8 [N], index into the vocabulary's `modalities`
    read: tuple[Media, ...] = ()  # media that are read through features, in the order of their placeholders
    #: int64 [N, G - 1], the codes behind the first of a summed position, -1 for none; None: a row is a position
    further: np.ndarray | None = None
    #: float32 [N, K], what an objective is told of each token beside its label; None: nothing
    values: np.ndarray | None = None
    #: where further documents of a group begin, which stay in one row with the first (`join_group`)
    starts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> Rendered:
        assert not self.read, "a medium that is read through features cannot be cut"
        assert not self.starts, "a group of documents is split, not cut"
        return self._cut(part)

    def _cut(self, part: slice) -> Rendered:
        further, values = (None if array is None else array[part] for array in (self.further, self.values))
        return Rendered(self.ids[part], self.labels[part], self.modality[part], further=further, values=values)

    def give_values(self, *numbers: float) -> Rendered:
        """The document with the same values at every token."""
        return replace(self, values=np.tile(np.array(numbers, dtype=np.float32), (len(self), 1)))

    def split_group(self) -> list[Rendered]:
        """The documents of a group, apart; media that are read through features stay with the group."""
        if not self.starts:
            return [self]
        return [self._cut(slice(*bounds)) for bounds in itertools.pairwise((0, *self.starts, len(self)))]

    def put_before(self, ids: Sequence[int]) -> Rendered:
        """The document with these ids before it, and before each document of a group; nothing is learnt of them."""
        if not len(ids):
            return self
        if self.starts:
            return replace(join_group([one.put_before(ids) for one in self.split_group()]), read=self.read)
        num = len(ids)
        further = None if self.further is None else np.pad(self.further, ((num, 0), (0, 0)), constant_values=NOTHING)
        return replace(
            self,
            ids=np.concatenate([np.array(ids, dtype=self.ids.dtype), self.ids]),
            labels=np.pad(self.labels, (num, 0), constant_values=IGNORE),
            modality=np.pad(self.modality, (num, 0)),
            further=further,
            values=None if self.values is None else np.pad(self.values, ((num, 0), (0, 0)), mode="edge"),
        )

    def fold(self, positions: PositionMap) -> Rendered:
        """The document with the rows of a summed position at one place: what is packed and trained on.

        `ids` and `labels` then hold the first code of such a position; the others are learnt where that one is.
        """
        if positions.is_flat or self.further is not None:
            return self
        if self.starts:
            return replace(join_group([one.fold(positions) for one in self.split_group()]), read=self.read)
        first, further = positions.fold_array(self.ids)
        values = None if self.values is None else self.values[first]
        return replace(
            self, ids=self.ids[first], labels=self.labels[first], modality=self.modality[first], further=further,
            values=values,
        )  # fmt: skip


def join_group(documents: Sequence[Rendered]) -> Rendered:
    """Documents that an objective compares, as one item to pack: they stay in one row, and do not see each other."""
    ends = list(itertools.accumulate(map(len, documents)))

    def join(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
        given = [array for array in arrays if array is not None]
        assert len(given) in (0, len(arrays)), "the documents of a group have the same arrays"
        return np.concatenate(given) if given else None

    return Rendered(
        np.concatenate([one.ids for one in documents]),
        np.concatenate([one.labels for one in documents]),
        np.concatenate([one.modality for one in documents]),
        tuple(medium for one in documents for medium in one.read),
        join([one.further for one in documents]),
        join([one.values for one in documents]),
        tuple(ends[:-1]),
    )


def check_text_tokenizer(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    """Raises ValueError unless the vocabulary was built with this text tokenizer."""
    if text.size > vocabulary.text_size:
        raise ValueError(f"the text tokenizer has {text.size} rows but the vocabulary only {vocabulary.text_size}")
    if vocabulary.text_sha256:
        vocabulary.check_hashes({"text": text.sha256})


class Template:
    """Renders documents with one vocabulary and one text tokenizer."""

    def __init__(self, vocabulary: Vocabulary, text: TextTokenizer) -> None:
        check_text_tokenizer(vocabulary, text)
        self.vocabulary, self.text = vocabulary, text
        self._bos = vocabulary.get_control_id("<|bos|>")
        self._eos = vocabulary.get_control_id("<|eos|>")
        self._pad = vocabulary.get_control_id("<|pad|>")
        self._end_of_turn = vocabulary.get_control_id("<|end_of_turn|>")
        self._role_ids = {role: vocabulary.get_control_id(f"<|{role}|>") for role in ROLES}
        self._roles = {row: role for role, row in self._role_ids.items()}

    # ---- document → ids

    def begin_chat(self, document: Document, system: str) -> Document:
        """A document to train on, with the system words that a checkpoint's chats always began with; ours have none."""
        return document

    def render(self, document: Document, add_generation_prompt: bool = False, to: str | None = None) -> Rendered:
        """The ids of a document, their labels and modalities.

        add_generation_prompt: end with `<|assistant|>`, ready for an answer. to: the modality of the answer, which in
        other formats changes the prompt. Raises ValueError for media without codes.
        """
        ids: list[int] = [self._bos]
        answer: list[tuple[int, int]] = []
        media: list[tuple[int, int, int]] = []
        read: list[Media] = []
        seen: list[tuple[int, int]] = []
        for number, turn in enumerate(document.turns, start=1):
            ids.append(self._role_ids[turn.role])
            begin = len(ids)
            writes = turn.role == "assistant" and number == len(document.turns) and not add_generation_prompt
            for part in turn.canonicalize().parts:
                features = None if isinstance(part, Text) or writes else self._find_features(part)
                if features is not None and isinstance(part, Media):
                    read.append(part)
                    seen.append((len(ids), len(ids) + features.count + 2))
                    modality, rows = (
                        self.vocabulary.modality_index[part.modality],
                        self._write_placeholders(part, features),
                    )
                else:
                    modality, rows = self._encode_part(part)
                media.append((len(ids), len(ids) + len(rows), modality))
                ids += rows
            ids.append(self._end_of_turn)
            if turn.is_learnt:
                answer.append((begin, len(ids)))
        if add_generation_prompt:
            ids.append(self._role_ids["assistant"])
        array = np.array(ids, dtype=np.int64)  # [N]
        labels = np.full(len(ids), IGNORE, dtype=np.int64)
        for begin, end in answer:
            labels[begin:end] = array[begin:end]
        for begin, end in seen:
            labels[begin:end] = IGNORE
        modality_of = np.zeros(len(ids), dtype=np.uint8)
        for begin, end, modality in media:
            modality_of[begin:end] = modality
        return Rendered(array, labels, modality_of, tuple(read))

    def render_unconditional(self, document: Document, negative: Document | None, to: str | None) -> Rendered:
        """The unconditional prompt of guidance: `negative`, or the document without its words."""
        other = document.drop_text() if negative is None else negative
        return self.render(other, add_generation_prompt=True, to=to)

    def _encode_part(self, part: Part) -> tuple[int, list[int]]:
        """The index of a part's modality, and its rows of the vocabulary."""
        if isinstance(part, Text):
            return 0, self.text.encode(TEXT_PREFIX + part.text)
        rows = self.vocabulary.encode_span(part.modality, part.require_codes(), part.grid)
        return self.vocabulary.modality_index[part.modality], rows

    def _find_features(self, part: Media) -> FeatureSpan | None:
        """How a medium is read, where it is not read by its codes."""
        return self.vocabulary.get_layout(part.modality).features if part.modality in self.vocabulary.media else None

    def _write_placeholders(self, part: Media, features: FeatureSpan) -> list[int]:
        start, end = self.vocabulary.get_start_id(part.modality), self.vocabulary.get_end_id(part.modality)
        return [start, *[features.row] * features.count, end]

    # ---- ids → document

    def parse(self, ids: Sequence[int] | np.ndarray) -> Document:
        """The inverse of `render`. The last turn may be open; padding and `<|eos|>` at the end are ignored.

        Raises ValueError for ids that are not a rendered document: a span cut off, text outside a turn.
        """
        rows = np.asarray(ids, dtype=np.int64)
        at = 1 if len(rows) and rows[0] == self._bos else 0
        turns: list[Turn] = []
        while at < len(rows) and rows[at] not in (self._eos, self._pad):
            role = self._roles.get(int(rows[at]))
            if role is None:
                raise ValueError(f"token {at} is row {int(rows[at])}; a turn must begin with a role")
            parts, at = self._parse_parts(rows, at + 1)
            if at < len(rows) and rows[at] == self._end_of_turn:
                at += 1
            elif at < len(rows) and rows[at] not in (self._eos, self._pad):
                raise ValueError(f"token {at} is {self.vocabulary.make_token_string(int(rows[at]))} inside a turn")
            turns.append(Turn(role, parts))
        return Document(turns)

    def parse_answer(self, ids: Sequence[int] | np.ndarray) -> tuple[Part, ...]:
        """The parts of generated ids, which begin behind `<|assistant|>` and end with the turn or earlier."""
        return tuple(self._parse_parts(np.asarray(ids, dtype=np.int64), 0)[0])

    def _parse_parts(self, rows: np.ndarray, at: int) -> tuple[list[Part], int]:
        """The parts from index `at` up to the first turn mark, and the index of that mark."""
        parts: list[Part] = []
        while at < len(rows):
            row = int(rows[at])
            modality = self.vocabulary.find_opened_medium(row)
            if modality is not None:
                ends = np.flatnonzero(rows[at:] == self.vocabulary.get_end_id(modality))
                if not len(ends):
                    raise ValueError(f"the {modality} span that begins at token {at} has no end")
                end = at + int(ends[0]) + 1
                features = self.vocabulary.get_layout(modality).features
                if features is not None and features.row in rows[at:end]:
                    raise ValueError(f"the {modality} at token {at} was read through features, which ids do not hold")
                _, codes = self.vocabulary.decode_span(rows[at:end].tolist())
                parts.append(MEDIA_PARTS[modality](codes=codes))
                at = end
            elif self.vocabulary.is_text(row):
                beyond = np.flatnonzero(rows[at:] >= self.vocabulary.text_size)
                end = at + int(beyond[0]) if len(beyond) else len(rows)
                parts.append(Text(self.text.decode(rows[at:end]).removeprefix(TEXT_PREFIX)))
                at = end
            else:
                break
        return parts, at
