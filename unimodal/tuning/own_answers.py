"""Rendered documents → requests, and what a model itself answers to them: data for what must guess its next tokens.

A request is a document up to its last answer. The model's own settings of sampling decide how it answers; guidance is
off, since a rendered document does not say what to guide away from.

Shapes: N tokens of a document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unimodal.data.mixture import DocumentSet
from unimodal.data.order import shuffle_numbers
from unimodal.files import open_atomic_path
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import SamplingConfig
from unimodal.model_folder.settings import MediumSettings
from unimodal.sequence.packing import PackedBatch
from unimodal.sequence.templates.own import IGNORE, Rendered
from unimodal.vocabulary import Vocabulary

TOGETHER = 32  # answers that are written in one batch
MOST_TEXT = 96  # tokens of an answer in words
MOST_CODES = 256  # code steps of a medium of free length


@dataclass(frozen=True)
class OwnRequest:
    """prompt: ids. medium: what the answer begins with, or "text"."""

    prompt: list[int]
    medium: str


def split_documents(batches: Iterable[PackedBatch]) -> Iterator[Rendered]:
    """The documents of packed batches."""
    for batch in batches:
        for ids, labels, modality, segments in zip(
            batch.ids, batch.labels, batch.modality, batch.segment_ids, strict=True
        ):
            for segment in range(1, int(segments.max()) + 1):
                chosen = segments == segment
                yield Rendered(ids[chosen], labels[chosen], modality[chosen])


def find_request(document: Rendered, vocabulary: Vocabulary) -> OwnRequest | None:
    """The request of a document's last answer; None for a document without answers."""
    learnt = np.flatnonzero(document.labels != IGNORE)
    if not len(learnt) or learnt[-1] < 1:
        return None
    gaps = np.flatnonzero(document.labels[: learnt[-1]] == IGNORE)
    start = int(gaps[-1]) + 1 if len(gaps) else 0
    if not start:
        return None
    first = int(document.ids[start])
    media = {vocabulary.get_start_id(name): name for name in vocabulary.media}
    return OwnRequest(document.ids[:start].tolist(), media.get(first, "text"))


def make_request_config(
    request: OwnRequest, vocabulary: Vocabulary, sampling: Mapping[str, MediumSettings], most: int, seed: int
) -> GenerationConfig:
    """What the engine is asked. most: positions of the model."""
    medium, room = request.medium, most - len(request.prompt)
    own = {
        name: SamplingConfig.model_validate(settings.model_dump(exclude={"guidance"}))
        for name, settings in ({"text": MediumSettings(temperature=0.0)} | dict(sampling)).items()
    }
    if medium == "text":
        return GenerationConfig(max_new_tokens=min(room, MOST_TEXT), allow=("text",), sampling=own, seed=seed)
    free = any(segment.count is None for segment in vocabulary.get_layout(medium).segments)
    needed = vocabulary.count_span_rows(medium, MOST_CODES if free else None) + 1
    return GenerationConfig(max_new_tokens=min(room, needed), force=medium, sampling=own, seed=seed)


def write_own_answers(
    engine: Engine,
    sets: Sequence[DocumentSet],
    sampling: Mapping[str, MediumSettings],
    num: int,
    seed: int,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Rendered]:
    """``num`` documents of the sets, chosen at random, with the model's own answer in place of the last one.

    Fewer where the sets hold fewer requests. Raises ValueError if they hold none.
    """
    vocabulary = engine.vocabulary
    places = [(one, number) for one in sets for number in range(len(one))]
    asked: list[OwnRequest] = []
    for index in shuffle_numbers(len(places), seed).tolist():
        one, number = places[index]
        request = find_request(one[number], vocabulary)
        if request is not None and engine.max_positions > len(request.prompt):
            asked.append(request)
        if len(asked) == num:
            break
    if not asked:
        raise ValueError("own_answers: no document of the corpus has an answer; name other datasets")
    asked.sort(key=lambda request: (request.medium, len(request.prompt)))  # little padding
    documents: list[Rendered] = []
    for start in range(0, len(asked), TOGETHER):
        part = asked[start : start + TOGETHER]
        configs = [
            make_request_config(request, vocabulary, sampling, engine.max_positions, seed + start + number)
            for number, request in enumerate(part)
        ]
        answers = engine.generate([request.prompt for request in part], configs)
        documents += [join_answer(request, answer, vocabulary) for request, answer in zip(part, answers, strict=True)]
        on_progress(len(documents), len(asked))
    return documents


def join_answer(request: OwnRequest, answer: Sequence[int], vocabulary: Vocabulary) -> Rendered:
    """A request and its answer as a document; the answer is learnt."""
    ids = np.array([*request.prompt, *answer], dtype=np.int64)
    labels = ids.copy()
    labels[: len(request.prompt)] = IGNORE
    blocks = [vocabulary.find_block(row) if row < vocabulary.size else None for row in ids.tolist()]
    names = [vocabulary.modality_index["text" if block is None else block.modality] for block in blocks]
    return Rendered(ids, labels, np.array(names, dtype=np.uint8))


def store_documents(path: Path, documents: Sequence[Rendered]) -> None:
    """Write documents as one `.npz` file, whole or not at all."""
    with open_atomic_path(path) as place, place.open("wb") as file:
        np.savez_compressed(
            file,
            lengths=np.array([len(document) for document in documents]),
            ids=np.concatenate([document.ids for document in documents]),
            labels=np.concatenate([document.labels for document in documents]),
            modality=np.concatenate([document.modality for document in documents]),
        )


def read_documents(path: Path) -> list[Rendered]:
    """The documents of `store_documents`."""
    with np.load(path) as held:
        ends = np.cumsum(held["lengths"])[:-1]
        parts = [np.split(held[name], ends) for name in ("ids", "labels", "modality")]
    return [Rendered(*each) for each in zip(*parts, strict=True)]
