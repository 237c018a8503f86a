"""What a run would do: the text that `--dry-run` prints, and one step to see that it works."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from unimodal.corpus.corpus import Corpus, CorpusConfig
from unimodal.model.build import count_parameters
from unimodal.sequence.packing import PackedBatch
from unimodal.sequence.templates.own import Template
from unimodal.training.distributed import Parallel
from unimodal.training.settings import LoopConfig
from unimodal.tuning.loss import read_values, to_tensors
from unimodal.vocabulary.adopted import AdoptedVocabulary


def check_validation(
    loop: LoopConfig, corpus: CorpusConfig, watched: bool = False, measured_at_end: bool = False
) -> None:
    """Raises ValueError if validation is asked for without documents to validate on, and nothing is watched.

    Documents that are held out and never looked at are told. measured_at_end: the recipe looks at them itself.
    """
    if not loop.evaluate_every and not measured_at_end and (corpus.validation or corpus.validation_share):
        print(
            "documents are held out and never looked at: set loop.evaluate_every to validate on them", file=sys.stderr
        )
    if loop.evaluate_every and not corpus.validation and not corpus.validation_share and not watched:
        raise ValueError(
            f"loop.evaluate_every is {loop.evaluate_every} and there is nothing to validate on; set "
            "corpus.validation_share, or name corpus.validation"
        )


def count_steps(loop: LoopConfig, corpus: Corpus, parallel: Parallel) -> LoopConfig:
    """The settings with epochs turned into steps, which are printed on stderr; unchanged if no epochs are given."""
    if loop.epochs is None:
        return loop
    batches = max(parallel.gather(corpus.count_batches(loop.epochs, parallel.rank, parallel.num_ranks)))
    steps = max(1, math.ceil(round(batches, 6) / loop.accumulation))
    if parallel.is_main:
        print(f"{loop.epochs:g} epochs of {corpus.count_pass():,} documents are {steps:,} steps", file=sys.stderr)
    return loop.model_copy(update={"steps": steps, "epochs": None})


def describe_plan(model: nn.Module, template: Template, corpus: Corpus, batch: PackedBatch) -> str:
    """The text of `--dry-run`: vocabulary, parameters, memory, data, and the beginning of one packed row."""
    vocabulary = template.vocabulary
    trained = [p for p in model.parameters() if p.requires_grad]
    num_trained, num_all = sum(p.numel() for p in trained), count_parameters(model)
    frozen_bytes = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    config = model.config
    tokens = batch.ids.size
    # a block keeps about 14 widths and 3 inner widths of every token for the backward pass
    activations = 4 * tokens * config.num_hidden_layers * (14 * config.hidden_size + 3 * config.intermediate_size)
    lines = [f"vocabulary: {vocabulary.size:,} rows"]
    spans = []
    if not isinstance(vocabulary, AdoptedVocabulary):  # else they are all the other rows
        spans = [("text", vocabulary.text_range), ("controls", vocabulary.control_range)]
    for block in vocabulary.blocks:
        spans.append((f"{block.label} ({block.modality}{', summed' if block.layout == 'summed' else ''})", block.rows))
    lines += [f"  {span.start:>8,} … {span.stop - 1:>8,}  {name}" for name, span in spans]
    lines.append(f"parameters: {num_all:,}, trained {num_trained:,} ({num_trained / num_all:.1%})")
    lines.append(
        f"memory: about {(16 * num_trained + frozen_bytes + activations) / 2**20:,.0f} MiB (trained weights with "
        f"gradient and optimizer {16 * num_trained / 2**20:,.0f}, frozen {frozen_bytes / 2**20:,.0f}, activations "
        f"{activations / 2**20:,.0f})"
    )
    shares = {name: weight / sum(corpus.weights.values()) for name, weight in corpus.weights.items()}
    lines += [f"data: {name}  {corpus.counts[name]:,} documents, {share:.0%}" for name, share in shares.items()]
    used, learnt = int((batch.segment_ids > 0).sum()), int((batch.labels >= 0).sum())
    lines.append(f"a batch: {list(batch.ids.shape)} tokens, {used / tokens:.0%} filled, {learnt} of them learnt")
    lines.append(f"its first row: {spell_ids(batch.ids[0], template)}")
    return "\n".join(lines)


def spell_ids(ids: Sequence[int] | np.ndarray, template: Template, longest: int = 400) -> str:
    """Ids in readable form: text as text, controls by name, runs of codes as counts; cut after `longest` characters."""
    vocabulary = template.vocabulary
    pieces: list[str] = []
    text: list[int] = []
    runs: list[tuple[str, int]] = []

    def finish() -> None:
        if text:
            pieces.append(template.text.decode(text))
            text.clear()
        if runs:
            pieces.append(f"[{runs[0][1]} × {runs[0][0]}]")
            runs.clear()

    for row in map(int, ids):
        seen = row >= vocabulary.size  # a feature
        block = None if seen or row < 0 else vocabulary.find_block(row)
        label = "soft prompt" if row < 0 else "feature" if seen else block.label if block is not None else None
        if label is not None:
            if runs and runs[0][0] == label:
                runs[0] = (label, runs[0][1] + 1)
            else:
                finish()
                runs.append((label, 1))
        elif vocabulary.is_text(row):
            if runs:
                finish()
            text.append(row)
        else:
            finish()
            pieces.append(vocabulary.make_token_string(row) if vocabulary.is_control(row) else f"<{row}>")
        if sum(map(len, pieces)) > longest:
            return "".join(pieces)[:longest] + " …"
    finish()
    return "".join(pieces)


def try_one_step(module: nn.Module, batch: PackedBatch, device: torch.device) -> str:
    """Run one batch forward and backward; a line with its losses and its tokens a second."""
    module.train()
    began = time.monotonic()
    total, found = module(*to_tensors(batch, device), **read_values(batch, device))
    total.backward()
    seconds = time.monotonic() - began
    without = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, f"no gradient reaches {without[:3]}"
    losses = "  ".join(f"{name} {summed / count:.3f}" for name, (summed, count) in found["modalities"].items())
    mean = float(total.detach()) / max(found["weight"], 1e-12)
    return f"one step: loss {mean:.4f}  {losses}  {batch.ids.size / seconds:,.0f} tokens/s (first call, no optimizer)"
