"""Answers made of several rows: drafts are written side by side and judged, and the best is returned.

A composition is a generator (`Composition` of `request.py`). It yields requests for rows and is sent their ids; it
yields `PAUSE` between two short pieces of work; it returns the answer. Its caller decides where the rows are written:
`run_composition` calls an engine; a server adds them to its one batch and does the work between the batch's steps.
Closing the generator ends it where it stands.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from unimodal.compression import open_methods
from unimodal.generation.request import PAUSE, Composition, GenerationRequest, ResultT

if TYPE_CHECKING:
    from unimodal.generation.engine import Engine
    from unimodal.generation.fast.protocol import FastDecoder
    from unimodal.generation.session import GenerationSession


def run_composition(
    engine: Engine,
    composition: Composition[ResultT],
    method: FastDecoder | None = None,
    session: GenerationSession | None = None,
) -> ResultT:
    """Run a composition to its end and return its result; `Engine.generate` writes its rows.

    method, session: see `Engine.generate`. Raises ValueError for what the engine refuses.
    """
    return exhaust(step_composition(engine, composition, method, session))


def step_composition(
    engine: Engine,
    composition: Composition[ResultT],
    method: FastDecoder | None = None,
    session: GenerationSession | None = None,
) -> Generator[None, None, ResultT]:
    """`run_composition` as a generator, which yields after each piece of work."""
    try:
        rows = next(composition)
        while True:
            yield
            ids: Sequence[list[int]] = ()
            if rows:
                prompts, configs = [row.prompt for row in rows], [row.config for row in rows]
                with open_methods(rows[0].methods, engine):  # all rows of an answer have the same
                    ids = engine.generate(prompts, configs, method=method, session=session)
            rows = composition.send(ids)
    except StopIteration as end:
        result: ResultT = end.value
        return result
    finally:
        composition.close()


def exhaust(steps: Generator[object, None, ResultT]) -> ResultT:
    """Run a generator to its end and return its result."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        result: ResultT = end.value
        return result


def run_side_by_side(compositions: Sequence[Composition[ResultT]]) -> Composition[list[ResultT]]:
    """One composition of several: their rows are written together, and it returns their results.

    Of those that pause, one works at a time.
    """
    results: dict[int, ResultT] = {}
    asked: dict[int, Sequence[GenerationRequest]] = {}

    def advance(number: int, ids: Sequence[list[int]] | None) -> None:
        try:
            asked[number] = next(compositions[number]) if ids is None else compositions[number].send(ids)
        except StopIteration as end:
            results[number] = end.value
            asked.pop(number, None)

    try:
        for number in range(len(compositions)):
            advance(number, None)
        while asked:
            paused = next((number for number, rows in asked.items() if not rows), None)
            if paused is not None:
                yield PAUSE
                advance(paused, ())
                continue
            counts = {number: len(rows) for number, rows in asked.items()}
            ids = yield [row for rows in asked.values() for row in rows]
            start = 0
            for number, count in counts.items():
                advance(number, ids[start : start + count])
                start += count
        return [results[number] for number in range(len(compositions))]
    finally:
        for composition in compositions:
            composition.close()
