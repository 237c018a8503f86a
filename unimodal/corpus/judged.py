"""Documents of preference and reward training: pairs of answers, answers that are called good or bad, and questions.

A chosen answer has the value 1 at every token, a rejected or bad one -1 (`Rendered.values`), and a pair is one item to
pack. Nothing of a question is dropped: a preference is one between answers to the same words.
"""

from __future__ import annotations

import numpy as np

from unimodal.coder.features import FeatureMemory
from unimodal.corpus.documents import EncodedDocuments, RenderedDocuments
from unimodal.sequence.cutting import keep_last_answer
from unimodal.sequence.document import Document, Media
from unimodal.sequence.templates.own import Rendered, Template, join_group


class JudgedDocuments(RenderedDocuments):
    """Answers with a label, or one side of pairs. wanted: that of all; None: what each row says."""

    def __init__(
        self,
        documents: EncodedDocuments,
        chosen: np.ndarray,
        template: Template,
        limit: tuple[int, str],
        features: FeatureMemory | None = None,
        done_with_long: str = "left out",
        wanted: bool | None = None,
    ) -> None:
        super().__init__(documents, chosen, template, limit, features=features, done_with_long=done_with_long)
        self.wanted = wanted

    def hash_documents(self, rank: int = 0, num_ranks: int = 1) -> int:
        """The same with the labels of the rows: a run does not go on where an answer is called otherwise."""
        total = super().hash_documents(rank, num_ranks)
        if self.wanted is None:
            usable = [number for number in map(int, self.chosen[rank::num_ranks]) if number not in self.bad]
            total += sum(5 * self.documents.hash_document(one) for one in usable if not self.dataset.is_good(one))
        return total % 2**128

    def _render(self, document: Document, number: int, item: int, draw: int) -> Rendered:
        good = self.dataset.is_good(number) if self.wanted is None else self.wanted
        return super()._render(document, number, item, draw).give_values(1.0 if good else -1.0)


class PairedDocuments(JudgedDocuments):
    """Pairs by number. `rejected` holds the other sides, which are encoded as a set of their own.

    A pair of which one side cannot be used is left out or refused as a whole.
    """

    def __init__(
        self,
        documents: EncodedDocuments,
        rejected: EncodedDocuments,
        chosen: np.ndarray,
        template: Template,
        limit: tuple[int, str],
        row: tuple[int, str],
        features: FeatureMemory | None = None,
        done_with_long: str = "left out",
    ) -> None:
        """limit: of one side. row: of both."""
        super().__init__(documents, chosen, template, limit, features, done_with_long, wanted=True)
        self.rejected = JudgedDocuments(rejected, chosen, template, limit, features, done_with_long, wanted=False)
        self.row = row

    def open(self, number: int) -> Document | None:
        found = super().open(number)
        if found is not None and self.rejected.open(number) is None:
            self.bad[number] = self.rejected.bad[number]
            return None
        return found

    def hash_documents(self, rank: int = 0, num_ranks: int = 1) -> int:
        both = super().hash_documents(rank, num_ranks), self.rejected.hash_documents(rank, num_ranks)
        return (both[0] + 3 * both[1]) % 2**128

    def _render(self, document: Document, number: int, item: int, draw: int) -> Rendered:
        other = self.rejected.open(number)
        assert other is not None, "a pair is opened as a whole"
        sides = [super()._render(document, number, item, draw), self.rejected._render(other, number, item, draw)]
        positions = self.template.vocabulary.positions
        length = sum(positions.count(side.ids) for side in sides)
        if length > self.row[0]:
            self._tell_too_long(number, length, self.row)
        return join_group(sides)


class PromptDocuments(RenderedDocuments):
    """Questions, each as it is asked; behind it, as a document of its own, the row with its answer if it has one.

    Only the second has labels, at its last answer: it tells rewards what the row's own answer is, and validation scores
    it.
    """

    def _render(self, document: Document, number: int, item: int, draw: int) -> Rendered:
        whole = document.turns[-1].role == "assistant"
        turns = document.turns[:-1] if whole else document.turns
        question = self.template.begin_chat(Document(turns), self.system)
        medium = next((part.modality for part in document.turns[-1].parts if isinstance(part, Media)), "text")
        asked = self.template.render(question, add_generation_prompt=True, to=medium if whole else None)
        if not whole:
            return asked
        return join_group([asked, keep_last_answer(super()._render(document, number, item, draw))])
