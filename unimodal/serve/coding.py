"""Media that wait to be encoded, and codes that wait to be decoded; those of one medium share a batch.

Shapes: N codes, G groups.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

from unimodal.coder.media_coder import MediaCoder
from unimodal.serve.tickets import fail, settle, settle_with

CODED_AT_ONCE = 16
CODED_BESIDE_ROWS = 4  # in one piece of work, while rows of the batch wait for it

Given = TypeVar("Given")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Coding(Generic[Given, Result]):
    """A medium to encode, or codes to decode."""

    modality: str
    item: Given
    future: Future[Result] = field(default_factory=Future)


class CodingQueue:
    """Work that waits for a coder, oldest first. Any thread may append; one thread does the work."""

    def __init__(self, coder: MediaCoder) -> None:
        self.coder = coder
        self._encodings: deque[_Coding[Tensor, np.ndarray]] = deque()
        self._decodings: deque[_Coding[np.ndarray, Tensor]] = deque()

    def __len__(self) -> int:
        return len(self._encodings) + len(self._decodings)

    def encode(self, modality: str, medium: Tensor) -> Future[np.ndarray]:
        """A medium as the coder reads it → its codes [N] or [N, G]."""
        job: _Coding[Tensor, np.ndarray] = _Coding(modality, medium)
        self._encodings.append(job)
        return job.future

    def decode(self, modality: str, codes: np.ndarray) -> Future[Tensor]:
        """Codes [N] or [N, G] → the medium."""
        job: _Coding[np.ndarray, Tensor] = _Coding(modality, codes)
        self._decodings.append(job)
        return job.future

    def run_next(self, at_once: int) -> None:
        """Encodes or decodes the oldest item, together with at most `at_once` - 1 others of its medium."""
        if self._encodings:
            _run_together(_take_alike(self._encodings, at_once), self.coder.encode)
        elif self._decodings:
            _run_together(_take_alike(self._decodings, at_once), self.coder.decode)

    def fail(self, error: Exception) -> None:
        for encoding in self._encodings:
            fail(encoding.future, error)
        for decoding in self._decodings:
            fail(decoding.future, error)
        self._encodings.clear()
        self._decodings.clear()


def _take_alike(queue: deque[_Coding[Given, Result]], most: int) -> list[_Coding[Given, Result]]:
    """The first item of a queue and others of its medium, at most `most`, without those whose requests have gone."""
    taken: list[_Coding[Given, Result]] = []
    others: list[_Coding[Given, Result]] = []
    modality = queue[0].modality
    while queue and len(taken) < most:
        job = queue.popleft()
        if job.modality != modality:
            others.append(job)
        elif job.future.set_running_or_notify_cancel():  # False: its request has gone
            taken.append(job)
    queue.extendleft(reversed(others))
    return taken


def _run_together(
    jobs: Sequence[_Coding[Given, Result]], work: Callable[[str, Sequence[Given]], Sequence[Result]]
) -> None:
    """Codes items of one medium in one batch. If that fails, each is tried alone, so that one spoils no other."""
    if not jobs:
        return
    modality = jobs[0].modality
    try:
        results = work(modality, [job.item for job in jobs])
    except Exception:
        for job in jobs:
            settle_with(job.future, partial(_run_one, work, modality, job.item))
    else:
        for job, result in zip(jobs, results, strict=True):
            settle(job.future, result)


def _run_one(work: Callable[[str, Sequence[Given]], Sequence[Result]], modality: str, item: Given) -> Result:
    [result] = work(modality, [item])
    return result
