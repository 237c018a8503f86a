"""How much of its base's text a tuned model has forgotten: perplexity of held-out text before and after, and answers.

Definitions of WordNet and paragraphs of a novel by Jane Austen are scored as plain text; neither is in any corpus of
ours. Both models are scored over the text rows that they share, the tuned model also over its whole vocabulary. A model
without a base (trained from scratch) is reported alone.

Shapes: N tokens, V rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from unimodal.data.plain_text import read_definitions, read_paragraphs
from unimodal.evaluation.asking import join_texts
from unimodal.evaluation.prepared import sample
from unimodal.evaluation.suite import ReportProgress, Suite
from unimodal.model_folder.decoder import load_base_of
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document, Turn

DEFAULT_LIMIT = 100
MAX_TOKENS = 128
QUESTIONS = (
    "What is the capital of Spain?", "How many legs does a dog have?", "What is the opposite of big?",
    "What do cows drink?", "Name three colors.", "What is a hammer used for?",
)  # fmt: skip


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress) -> dict[str, object]:
    raw = data_folder.parent / "raw"
    limit = limit or DEFAULT_LIMIT
    texts = {}
    for name, listed in (
        ("wordnet", [f"{word}: {meaning}" for word, meaning in read_definitions(raw, "test")]),
        ("austen", read_paragraphs(raw, "test")),
    ):
        chosen = sample(np.arange(len(listed)), limit, seed)
        texts[name] = [model.template.text.encode(listed[row])[:MAX_TOKENS] for row in chosen]
    base = load_base_of(model.folder)
    num_text = model.vocabulary.text_size
    figures: dict[str, object] = {}
    for name, streams in texts.items():
        streams = [ids for ids in streams if len(ids) > 1]
        found: dict[str, float] = {"texts": len(streams), "tokens": sum(len(ids) - 1 for ids in streams)}
        if base is not None:
            report(f"{name}: the base", 0, 2)
            found["perplexity_before"] = compute_perplexity(base, streams, num_text)
        report(f"{name}: the tuned model", 1, 2)
        found["perplexity_after"] = compute_perplexity(model.decoder, streams, num_text)
        found["perplexity_after_over_all_rows"] = compute_perplexity(model.decoder, streams, model.vocabulary.size)
        if base is not None:
            found["ratio"] = round(found["perplexity_after"] / found["perplexity_before"], 3)
        figures[name] = found
    documents = [Document([Turn("user", question)]) for question in QUESTIONS]
    answers = model.answers(documents, to="text")
    figures["answers"] = [
        {"asked": question, "answer": join_texts(answer)} for question, answer in zip(QUESTIONS, answers, strict=True)
    ]
    return figures


@torch.inference_mode()
def compute_perplexity(model: nn.Module, streams: Sequence[Sequence[int]], num_rows: int) -> float:
    """The perplexity of texts: exp of the mean negative log-probability of all tokens but the first of each.

    streams: ids of texts, each of at least two tokens. num_rows: the softmax is over the first so many rows.
    """
    total, count = 0.0, 0
    device = next(model.parameters()).device
    for ids in streams:
        row = torch.tensor([list(ids)], device=device)
        logits = model(input_ids=row, use_cache=False).logits[0, :-1, :num_rows].float()  # [N - 1, V]
        total += float(nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum"))
        count += len(ids) - 1
    return round(math.exp(total / max(count, 1)), 3)


SUITE = Suite(run)
