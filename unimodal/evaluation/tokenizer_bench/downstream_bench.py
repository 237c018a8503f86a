"""The downstream part of a bench: codes of every tokenizer of one medium, read and modelled alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import numpy as np
import torch

from unimodal.evaluation.suite import ReportProgress
from unimodal.evaluation.tokenizer_bench.coded_items import CodedItems, encode_items, join_coded
from unimodal.evaluation.tokenizer_bench.downstream import (
    ModelPlan,
    draw_codes,
    probe_codes,
    split_items,
    train_language_model,
)
from unimodal.evaluation.tokenizer_bench.entries import Entry
from unimodal.evaluation.tokenizer_bench.items import BenchItems
from unimodal.evaluation.tokenizer_bench.picture_judges import measure_kernel_distance, open_judges
from unimodal.evaluation.tokenizer_bench.pictures import decode_pictures
from unimodal.evaluation.tokenizer_bench.settings import (
    DEFAULT_SIDE,
    DOWNSTREAM,
    PART,
    VERSION,
    BenchReport,
    BenchSettings,
)
from unimodal.evaluation.tokenizer_bench.store import Arrays, PartStore
from unimodal.tokenizers.codes import Codes

DRAWN = 32  # pictures of the language model that are judged


def run_downstream(
    entries: Sequence[Entry], items: BenchItems, settings: BenchSettings, report: ReportProgress
) -> BenchReport:
    """What codes are good for, of tokenizers of one medium of any kind."""
    store = PartStore(settings.parts)
    chunks = [range(start, min(start + PART, len(items))) for start in range(0, len(items), PART)]
    found: dict[str, dict[str, object]] = {}
    for entry in entries:
        tokenizer = entry.tokenizer
        subject = json.dumps([VERSION, items.sha256, "codes", tokenizer.sha256])
        parts = []
        for chunk in chunks:
            report(f"{entry.label}: coding", chunk.start, len(items))
            parts.append(store.find_or_measure(subject, str(chunk.start), partial(encode_items, entry, items, chunk)))
        coded = join_coded(parts)
        if not coded.rows:
            first = next(iter(items.left_out.items()), ("", "there are no files"))
            raise ValueError(f"none of {len(items)} files can be read: {first[0]}: {first[1]}")
        figures: dict[str, object] = {"items": len(coded.rows)}
        try:
            figures["probe"] = probe_codes(tokenizer, coded)
        except ValueError as error:
            figures["probe"] = f"not measured: {error}"
        if settings.plan.updates or settings.plan.tokens:
            report(f"{entry.label}: a language model of its codes", 0, None)
            subject = json.dumps([subject, asdict(settings.plan)])
            measure = partial(_model_codes, entry, coded, settings.plan, report)
            measured = store.find_or_measure(subject, "model", measure)
            figures["model"] = {name: float(value) for name, value in measured.items()}
        found[entry.label] = {"family": tokenizer.config.family, "sha256": tokenizer.sha256, "downstream": figures}
    data: dict[str, object] = {
        "path": str(settings.data), "sha256": items.sha256, "items": len(items), "left_out": dict(items.left_out)
    }  # fmt: skip
    plan: dict[str, object] = {"language_model": asdict(settings.plan)}
    return BenchReport(entries[0].tokenizer.modality, data, settings.seed, None, plan, found, part=DOWNSTREAM)


def _model_codes(entry: Entry, coded: CodedItems, plan: ModelPlan, report: ReportProgress) -> Arrays:
    """Figures of the language model; of pictures also how far what it draws is from those held out, as sets."""
    tokenizer = entry.tokenizer

    def tell(done: int, of: int) -> None:
        report(f"{entry.label}: training a language model", done, of)

    model, figures = train_language_model(tokenizer, coded, plan, tell)
    if tokenizer.modality == "image":
        real, _ = split_items(coded.rows, plan)
        count = min(DRAWN, len(real))
        alike = len({row.shape for row in coded.rows}) == 1 and tokenizer.can_decode
        if alike and count > 1 and not tokenizer.decode_conditions:
            shape = (coded.rows[0].shape[0], coded.rows[0].shape[1])
            drawn = draw_codes(model, tokenizer, shape, count, plan.seed)
            side = max(tokenizer.picture_size or (DEFAULT_SIDE, DEFAULT_SIDE))
            pictures = [
                decode_pictures(tokenizer, Codes.whole(ids), side, ()) for ids in (drawn, torch.stack(real[:count]))
            ]
            for judge in open_judges():
                features = [judge.extract(part) for part in pictures]
                figures[f"drawn_kid_like_{judge.name}"] = measure_kernel_distance(features[1], features[0])
    return {name: np.array(value) for name, value in figures.items()}
