"""ReAGent: how much each token of a prompt matters for each token of an answer, from forwards alone.

Tokens of the prompt are replaced at random, and the score of a replaced token gains what the answer's probability loses
by it; that of a kept token loses the same. It ends when the answer stays among the likeliest tokens though all but the
best tokens are replaced (Zhao and Shan, arXiv 2402.00794).

The update (`update_scores`) and the end (`stays_likely`) are as in the authors' code, whose proposals come from RoBERTa
or, as here, uniformly from the vocabulary (codes from their own block). What differs: all tokens of the answer are
scored by the same forwards, with the answer itself never replaced; marks are never replaced; several draws are made
between two looks at the end, and some before the first (`draws=1, least_steps=1` is the published way).

Shapes: R draws, P tokens of the prompt, T tokens of the answer, N = P + T, V rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.evaluation.inspection.forward import read_last
from unimodal.evaluation.inspection.opened import OpenedModel, ReadSequence


@dataclass(frozen=True)
class ReagentSettings:
    """replaced: share of the tokens that a draw replaces. kept: tokens that stay when the end is looked for. among: the
    answer must be one of so many likeliest tokens. draws: in one forward. least_steps, most_steps: forwards of draws,
    at least before the end is looked for, and at most."""

    replaced: float = 0.3
    kept: int = 5
    among: int = 3
    draws: int = 8
    least_steps: int = 4
    most_steps: int = 16

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("kept", "among", "draws", "least_steps", "most_steps")}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} {count}: give one or more")
        if not 0 < self.replaced <= 1:
            raise ValueError(f"replaced {self.replaced:g}: give a share, more than 0, up to 1")


@dataclass(frozen=True, eq=False)
class ReagentScores:
    """scores: [T, P], the mean update of each draw; published: [T, P], the softmax of their sum. steps: forwards."""

    scores: Tensor
    published: Tensor
    steps: int
    ended: int


def list_proposals(opened: OpenedModel, read: ReadSequence) -> list[Tensor | None]:
    """What may stand in the place of each token of the prompt: words for a word, codes of its block for a code.

    None for marks, which stay.
    """
    proposals: list[Tensor | None] = []
    words = opened.text_ids
    codes = {int(at) for span in read.spans for at in span.at}
    for at, row in enumerate(read.ids[: read.answer].tolist()):
        if at in codes and opened.loaded is not None:
            block = opened.loaded.vocabulary.find_block(row) if row < opened.loaded.vocabulary.size else None
            proposals.append(None if block is None else torch.arange(block.start, block.start + block.size))
        elif at >= read.first and row < opened.text.size and row not in opened.start:
            proposals.append(words)
        else:
            proposals.append(None)
    return proposals


def draw_rows(proposals: Sequence[Tensor | None], count: int, generator: torch.Generator) -> Tensor:
    """int64 [count, P]: a proposal for every token of the prompt, -1 for those that stay."""
    columns = [
        torch.full((count,), -1) if rows is None else rows[torch.randint(len(rows), (count,), generator=generator)]
        for rows in proposals
    ]
    return torch.stack(columns, 1)


def update_scores(replaced: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The update of a draw: replaced bool [R, P], the answer's probabilities before [T], after [R, T] → [R, T, P]."""
    delta = (before - after)[:, :, None]  # [R, T, 1]
    signed = torch.where(replaced[:, None], delta, -delta)
    return torch.logit((signed * 0.5 + 0.5).clamp(1e-6, 1 - 1e-6))


def stays_likely(logits: Tensor, targets: Tensor, among: int) -> Tensor:
    """logits [T, V], targets int64 [T] → whether each target is one of the `among` likeliest rows, bool [T]."""
    best = logits.topk(min(among, logits.shape[-1]), dim=-1).indices
    return (best == targets[:, None]).any(-1)


@torch.inference_mode()
def score_by_replacing(
    opened: OpenedModel, read: ReadSequence, settings: ReagentSettings | None = None, seed: int = 0
) -> ReagentScores:
    """The scores of a prompt's tokens for each token of the answer behind it."""
    settings = settings or ReagentSettings()
    generator = torch.Generator().manual_seed(seed)
    proposals = list_proposals(opened, read)
    free = torch.tensor([rows is not None for rows in proposals])
    targets = read.ids[read.answer :].cpu()
    prompt = read.ids[: read.answer].cpu()
    before = _read_answer(opened, prompt[None], targets)[0].softmax(-1).gather(-1, targets[:, None])[:, 0]  # [T]
    total = torch.rand(len(targets), len(prompt), generator=generator)
    open_targets = torch.ones(len(targets), dtype=torch.bool)
    count = torch.zeros(len(targets), 1)
    steps = 0
    while steps < settings.most_steps and open_targets.any():
        steps += 1
        drawn = draw_rows(proposals, settings.draws, generator)
        replaced = (torch.rand(drawn.shape, generator=generator) < settings.replaced) & free
        logits = _read_answer(opened, torch.where(replaced, drawn, prompt), targets)  # [R, T, V]
        after = logits.softmax(-1).gather(-1, targets[None, :, None].expand(len(logits), -1, 1))[..., 0]
        total[open_targets] += update_scores(replaced, before, after).sum(0)[open_targets]
        count[open_targets] += settings.draws
        if steps < settings.least_steps:
            continue
        likely = _look_for_end(
            opened, prompt, targets, total[open_targets], proposals, settings, generator, open_targets
        )
        open_targets = open_targets.masked_scatter(open_targets, ~likely)
    total[:, ~free] = -torch.inf
    mean = torch.where(free, total / count.clamp_min(1), torch.zeros(()))
    return ReagentScores(mean, total.softmax(-1).nan_to_num(0.0), steps, int((~open_targets).sum()))


def _look_for_end(
    opened: OpenedModel,
    prompt: Tensor,
    targets: Tensor,
    total: Tensor,
    proposals: Sequence[Tensor | None],
    settings: ReagentSettings,
    generator: torch.Generator,
    chosen: Tensor,
) -> Tensor:
    """Whether the chosen targets (bool [T]) stay likely if all but their best tokens are replaced, bool [chosen].

    total: the scores of these targets, [chosen, P].
    """
    free = torch.tensor([rows is not None for rows in proposals])
    best = total.masked_fill(~free, -torch.inf).topk(min(settings.kept, len(prompt)), dim=-1).indices
    replaced = free.expand(len(total), -1).scatter(1, best, False)
    rows = torch.where(replaced, draw_rows(proposals, len(total), generator), prompt)  # [chosen, P]
    logits = _read_answer(opened, rows, targets)[torch.arange(len(total)), chosen.nonzero()[:, 0]]
    return stays_likely(logits, targets[chosen], settings.among)


def _read_answer(opened: OpenedModel, prompts: Tensor, targets: Tensor) -> Tensor:
    """prompts int64 [R, P] → the logits of the answer's tokens behind each, float32 [R, T, V]."""
    ids = torch.cat([prompts, targets.expand(len(prompts), -1)], 1).to(opened.device)
    return opened.restrict(read_last(opened.decoder, ids, len(targets) + 1)[:, :-1], targets).cpu()
