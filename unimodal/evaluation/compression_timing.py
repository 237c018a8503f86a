"""How long a prompt and a step take, and how much memory: measured at the decoder, alone and in a batch.

The time to the first token is reading the prompt, with whatever a method adds, and the head once. Times are the best of
several runs, so that a busy machine shows less. Memory is the most that was held at a time beside the weights: the
device's own count on CUDA, elsewhere the storages that operations have made and that are still alive.

Shapes: B prompts, D width.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document

BATCH = 8
STEPS = 8
REPEATS = 3


def timed(model: Unimodal, documents: Sequence[Document], session: Any = None) -> dict[str, float | None]:
    """Figures for the first document alone and for a batch: ttft_ms, tokens_per_s, memory_mib, planning_ms, tokens."""
    prompts = [model.read(model.template.render(d, add_generation_prompt=True)) for d in documents[:BATCH]]
    while len(prompts) < BATCH:
        prompts.append(prompts[len(prompts) % len(documents)])
    figures: dict[str, float | None] = {}
    for name, rows in (("1", prompts[:1]), (str(BATCH), prompts)):
        _once(model, rows)  # warm
        runs = [_once(model, rows) for _ in range(REPEATS)]
        figures[f"ttft_ms_batch_{name}"] = round(1000 * min(first for first, _ in runs), 3)
        figures[f"tokens_per_s_batch_{name}"] = round(len(rows) * STEPS / min(rest for _, rest in runs), 2)
        with held_memory(model.engine.device) as held:
            _once(model, rows)
        figures[f"memory_mib_batch_{name}"] = round(held.most / 2**20, 3)
    stats = getattr(session, "stats", None)
    figures["planning_ms_batch_1"] = figures["tokens_left_percent"] = None
    if stats is not None:
        before = (stats.planning_s, stats.tokens_before, stats.tokens_after)
        for _ in range(REPEATS):
            _once(model, prompts[:1])
        figures["planning_ms_batch_1"] = round(1000 * (stats.planning_s - before[0]) / REPEATS, 3)
        if stats.tokens_before > before[1]:
            left = (stats.tokens_after - before[2]) / (stats.tokens_before - before[1])
            figures["tokens_left_percent"] = round(100 * left, 2)
    return figures


@torch.inference_mode()
def _once(model: Unimodal, prompts: list[list[int]]) -> tuple[float, float]:
    """Seconds to the first token and for STEPS more."""
    engine = model.engine
    decoder, head = engine.decoder, engine.model.get_output_embeddings()
    begin = _now(engine.device)
    hidden = decoder.prefill(prompts, engine.pad_id, max(map(len, prompts)) + STEPS)  # [B, D]
    ids = head(hidden).argmax(-1, keepdim=True)
    first = _now(engine.device)
    for _ in range(STEPS):
        ids = head(decoder.step(ids)).argmax(-1, keepdim=True)
    return first - begin, _now(engine.device) - first


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class _Storages(TorchDispatchMode):
    """Counts the bytes of storages made by operations and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.alive[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: kept for key, kept in self.alive.items() if not kept[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return made


class _Held:
    most = 0


@contextmanager
def held_memory(device: torch.device) -> Iterator[Any]:
    """Yields an object whose `most` is the largest number of bytes that was held at a time, beside what was before."""
    if device.type == "cuda":
        held = _Held()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield held
        held.most = torch.cuda.max_memory_allocated() - before
        return
    with _Storages() as storages:
        yield storages
