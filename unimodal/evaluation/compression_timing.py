"""Time and memory of a prompt and of a step, measured at the decoder, for one prompt and for a batch.

The time to the first token is that of reading the prompt, including the method's own work, and of one call of the head.
Times are the best of several runs, which reduces the effect of a busy machine. Memory is the peak beside the weights:
the device's own count on CUDA, elsewhere the living storages that operations have made.

Shapes: B prompts, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from unimodal.compression import CompressionSession
from unimodal.evaluation.cached_answers import continue_greedily, count_cache_bytes
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document

BATCH = 8
STEPS = 8
REPEATS = 3


def measure_times(
    model: Unimodal, documents: Sequence[Document], session: CompressionSession | None = None
) -> dict[str, float | None]:
    """Figures of the first document alone and of a batch of `BATCH`; fewer documents come again in it, and what they
    begin with is then read and held once.

    For both: `ttft_ms` (time to the first token), `tokens_per_s`, `memory_mib`. For the first, None without a session:
    `planning_ms` (time of choosing tokens, part of `ttft_ms`) and `tokens_left_percent` of the input spans.
    """
    prompts = [model.read(model.template.render(d, add_generation_prompt=True)) for d in documents[:BATCH]]
    while len(prompts) < BATCH:
        prompts.append(prompts[len(prompts) % len(documents)])
    figures: dict[str, float | None] = {}
    for name, rows in (("1", prompts[:1]), (str(BATCH), prompts)):
        _run_once(model, rows)  # warm
        runs = [_run_once(model, rows) for _ in range(REPEATS)]
        figures[f"ttft_ms_batch_{name}"] = round(1000 * min(first for first, _ in runs), 3)
        figures[f"tokens_per_s_batch_{name}"] = round(len(rows) * STEPS / min(rest for _, rest in runs), 2)
        with watch_memory(model.engine.device) as held:
            _run_once(model, rows)
        figures[f"memory_mib_batch_{name}"] = round(held.most / 2**20, 3)
    figures["planning_ms_batch_1"] = figures["tokens_left_percent"] = None
    if session is not None:
        stats = session.stats
        before = (stats.planning_s, stats.tokens_before, stats.tokens_after)
        for _ in range(REPEATS):
            _run_once(model, prompts[:1])
        figures["planning_ms_batch_1"] = round(1000 * (stats.planning_s - before[0]) / REPEATS, 3)
        if stats.tokens_before > before[1]:
            left = (stats.tokens_after - before[2]) / (stats.tokens_before - before[1])
            figures["tokens_left_percent"] = round(100 * left, 2)
    return figures


@dataclass(frozen=True)
class FirstToken:
    """The time to the first token of a prompt against the whole model's, by the clock and by processor time, and the
    time of each further token by the clock: medians of the ratios of runs side by side, since a shared machine changes
    from minute to minute. cache: bytes that the cache holds behind the prompt, against the whole model's. rounds: pairs
    of runs."""

    wall: float
    processor: float
    step: float
    cache: float
    rounds: int


class _Reading(NamedTuple):
    """Seconds to the first token by the clock and of the processor, seconds of further tokens, bytes of the cache."""

    wall: float
    processor: float
    steps: float
    cache: float


@torch.inference_mode()
def compare_first_token(
    model: Unimodal,
    documents: Sequence[Document],
    open_method: Callable[[], AbstractContextManager[object]],
    rounds: int,
) -> FirstToken:
    """A method beside the whole model, in turns, on one prompt at a time, scoring included.

    The whole model is read by its own forward as the method is, so that only the method differs.
    """
    prompts = [model.read(model.template.render(d, add_generation_prompt=True)) for d in documents]
    ratios: list[list[float]] = []
    for number in range(rounds + 1):
        prompt = prompts[number % len(prompts)]
        sides = []
        for opened in (nullcontext, open_method):
            with opened():
                sides.append(_read_prompt(model, prompt))
        if number:  # the first round warms up
            ratios.append([own / whole for whole, own in zip(*sides, strict=True)])
    wall, processor, step, cache = (median(column) for column in zip(*ratios, strict=True))
    return FirstToken(wall, processor, step, cache, rounds)


def _read_prompt(model: Unimodal, prompt: list[int]) -> _Reading:
    from transformers import DynamicCache

    own = model.engine.model
    cache = DynamicCache(config=own.config)
    begin, used = _read_clock(own.device), time.process_time()
    last = continue_greedily(own, prompt, cache, 1, ())
    first, used = _read_clock(own.device), time.process_time() - used
    held = count_cache_bytes(cache)
    go_on = _read_clock(own.device)
    continue_greedily(own, last, cache, STEPS, ())
    return _Reading(first - begin, used, _read_clock(own.device) - go_on, held)


def measure_memory(model: Unimodal, documents: Sequence[Document]) -> float:
    """The most MiB that reading `BATCH` prompts at once and writing `STEPS` tokens to each holds beside the weights."""
    prompts = [model.read(model.template.render(d, add_generation_prompt=True)) for d in documents]
    rows = [prompts[number % len(prompts)] for number in range(BATCH)]
    with watch_memory(model.engine.device) as held:
        _run_once(model, rows)
    return round(held.most / 2**20, 3)


@torch.inference_mode()
def _run_once(model: Unimodal, prompts: list[list[int]]) -> tuple[float, float]:
    """The seconds to the first token, and those of `STEPS` more tokens."""
    engine = model.engine
    decoder, head = engine.decoder, engine.model.get_output_embeddings()
    begin = _read_clock(engine.device)
    hidden = decoder.prefill(prompts, engine.pad_id, max(map(len, prompts)) + STEPS)  # [B, D]
    ids = head(hidden).argmax(-1, keepdim=True)
    first = _read_clock(engine.device)
    for _ in range(STEPS):
        ids = head(decoder.step(ids)).argmax(-1, keepdim=True)
    return first - begin, _read_clock(engine.device) - first


def _read_clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class HeldMemory:
    """The peak of held bytes, beside those held before."""

    most: int = 0


class _StorageCount(TorchDispatchMode):
    """Counts the bytes of living storages that operations have made.

    total: the bytes of all that are noted, those that died since the last look included: only where it exceeds the peak
    are the living ones counted.
    """

    def __init__(self, held: HeldMemory) -> None:
        super().__init__()
        self.held = held
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}  # by address: views count once
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                address, size = storage.data_ptr(), storage.nbytes()
                self.total += size - (self.alive[address][1] if address in self.alive else 0)
                self.alive[address] = (StorageWeakRef(storage), size)
        if self.total > self.held.most:
            self.alive = {key: kept for key, kept in self.alive.items() if not kept[0].expired()}
            self.total = sum(size for _, size in self.alive.values())
            self.held.most = max(self.held.most, self.total)
        return result


@contextmanager
def watch_memory(device: torch.device) -> Iterator[HeldMemory]:
    """A context that measures the peak of held memory."""
    held = HeldMemory()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield held
        held.most = torch.cuda.max_memory_allocated() - before
    else:
        with _StorageCount(held):
            yield held
