"""Attribution of an answer to its prompt and to the codes of pictures, sounds and clips in it, by several methods.

    reagent      what the answer loses if a token is replaced (`reagent.py`)
    gradient     the length of the gradient of the answer's log-likelihood by a token's embedding (arXiv 1312.6034)
    input × gradient      its product with the embedding (arXiv 1605.01713)
    integrated   that product with the mean gradient on the way from an empty embedding (arXiv 1703.01365)
    attention    the mean attention that the answer pays a token, over all layers and heads
    rollout      attention followed through the layers, half of each being the layer's input (arXiv 2005.00928)

Every method is held against the model itself: how much less likely the answer becomes if a method's best fifth of
tokens is replaced, and how much if all others are (comprehensiveness and sufficiency, arXiv 1911.03429), beside the
same number of tokens at random. Shares are of the positive part of a score; the JSON has the scores themselves.

Shapes: P tokens of the prompt, T tokens of the answer, N = P + T, D width, L layers, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from unimodal.evaluation.inspection.forward import read_last, watch
from unimodal.evaluation.inspection.media_maps import MediaMap, draw_map, find_places
from unimodal.evaluation.inspection.opened import OpenedModel, ReadSequence
from unimodal.evaluation.inspection.reagent import ReagentSettings, draw_rows, list_proposals, score_by_replacing
from unimodal.evaluation.inspection.report import InspectionInput, InspectionReport, Tell
from unimodal.text.reports.report import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PATH_STEPS = 8  # of integrated gradients
MOST_TARGETS = 8  # tokens of an answer that are explained
BEST = 0.2  # of the tokens that are replaced or kept as a check
CHECKS = 2  # draws that a method's tokens are replaced by
RANDOM_TIMES = 4  # as many for tokens at random, other ones in each: what one choice loses may hang on a single token
SHOWN = 15


def score_by_gradients(opened: OpenedModel, read: ReadSequence, path_steps: int = PATH_STEPS) -> dict[str, Tensor]:
    """The gradient methods: name → scores of the prompt's tokens for the whole answer, [P]."""
    table = opened.decoder.get_input_embeddings()
    with torch.no_grad():
        embedded = table(read.ids[None])  # [1, N, D]
    found: dict[str, Tensor] = {}
    gradient = differentiate_answer(opened, read, embedded, 1.0)
    found["gradient"] = gradient.norm(dim=-1)
    found["input × gradient"] = (gradient * embedded[0, : read.answer].float()).sum(-1)
    mean = torch.stack(
        [differentiate_answer(opened, read, embedded, step / path_steps) for step in range(path_steps + 1)]
    ).mean(0)
    found["integrated"] = (mean * embedded[0, : read.answer].float()).sum(-1)
    return {name: scores.cpu() for name, scores in found.items()}


def differentiate_answer(opened: OpenedModel, read: ReadSequence, embedded: Tensor, share: float) -> Tensor:
    """The gradient of the answer's log-likelihood by the prompt's embeddings at this share of them, float32 [P, D]."""
    prompt = (embedded[:, : read.answer] * share).detach().requires_grad_(True)
    inputs = torch.cat([prompt, embedded[:, read.answer :]], 1)
    with torch.enable_grad():
        logits = opened.decoder(inputs_embeds=inputs, use_cache=False).logits[0, read.answer - 1 : -1]
        targets = read.ids[read.answer :]
        likelihood = opened.restrict(logits, targets).log_softmax(-1).gather(-1, targets[:, None]).sum()
        [gradient] = torch.autograd.grad(likelihood, prompt)
    return gradient[0].float()


def score_by_attention(opened: OpenedModel, read: ReadSequence) -> dict[str, Tensor]:
    """The attention methods: name → scores of the prompt's tokens for the whole answer, [P]."""
    with torch.inference_mode():
        weights = watch(opened.decoder, read.ids[None]).attention[:, 0].mean(1)  # [L, N, N]
    rows = slice(read.answer - 1, len(read) - 1)  # a token of the answer is written by the one before it
    flow = torch.eye(len(read), device=weights.device)
    for layer in weights:
        flow = (0.5 * layer + 0.5 * torch.eye(len(read), device=weights.device)) @ flow
    both = {"attention": weights.mean(0), "rollout": flow}
    return {name: scores[rows, : read.answer].mean(0).cpu() for name, scores in both.items()}


def report_attribution(opened: OpenedModel, given: InspectionInput, tell: Tell) -> InspectionReport:
    """What of a prompt an answer comes from, over its words and over its media.

    Settings: `draws`, `most_steps`, `replaced`, `kept`, `among` of ReAGent, and `checks`. Raises ValueError for an
    empty prompt, media that the model lacks, an answer of nothing, and fewer than one check.
    """
    checks = int(given.settings.get("checks", CHECKS))
    if checks < 1:
        raise ValueError(f"checks {checks}: give one or more")
    tell("reading")
    read = _shorten(opened.read_prompt(given.prompt, given.files, given.answer, given.to))
    if len(read) == read.answer:
        raise ValueError("the model answers nothing; give --answer")
    proposals = list_proposals(opened, read)
    if not any(rows is not None for rows in proposals):
        raise ValueError("the prompt holds marks only; give some words or a medium")
    tell("replacing tokens")
    changed = {name: given.settings[name] for name in ReagentSettings.__annotations__ if name in given.settings}
    reagent = score_by_replacing(opened, read, ReagentSettings(**changed), given.seed)  # type: ignore[arg-type]
    scores: dict[str, Tensor] = {"reagent": reagent.scores.mean(0)}
    tell("differentiating")
    scores |= score_by_gradients(opened, read)
    try:
        scores |= score_by_attention(opened, read)
    except ValueError as error:  # a model without attention has the other methods
        tell(str(error))
    tell("checking")
    shares = {name: to_shares(values) for name, values in scores.items()}
    sections: dict[str, Section] = {
        "answer": {
            "model": opened.name,
            "answer": _join(opened, read.ids[read.answer :].tolist()),
            "likelihood a token": math.exp(_measure_likelihood(opened, read, read.ids[None])),
            "forwards of reagent": reagent.steps,
            "ended for": f"{reagent.ended} of {len(read) - read.answer} tokens",
        },
        "greatest shares": _describe_tokens(read, shares, proposals),
        **({"shares of media": _describe_spans(read, shares)} if read.spans else {}),
        "log-likelihood lost a token": _check_methods(opened, read, scores, proposals, given.seed, checks),
    }
    places = [find_places(opened, span, given.seed) for span in read.spans]
    maps = {
        name: [
            None if found is None else found.map(values[torch.from_numpy(span.at)].numpy())
            for span, found in zip(read.spans, places, strict=True)
        ]
        for name, values in shares.items()
        if name in ("reagent", "integrated", "attention")
    }
    arrays: dict[str, object] = {
        "tokens": list(read.labels[: read.answer]),
        "scores": {name: values.tolist() for name, values in scores.items()},
        "reagent as published": reagent.published.tolist(),
    }

    def draw(figure: Figure) -> None:
        _draw(figure, read, shares, maps)

    return InspectionReport(sections, draw, arrays, (12.0, 7.0 if read.spans else 4.0))


def to_shares(scores: Tensor) -> Tensor:
    """The positive part of scores [P], as shares that sum to 1; zero where none is positive."""
    positive = scores.clamp_min(0)
    return positive / positive.sum().clamp_min(1e-12)


def _shorten(read: ReadSequence) -> ReadSequence:
    """The sequence with at most `MOST_TARGETS` tokens of the answer."""
    length = min(len(read), read.answer + MOST_TARGETS)
    spans = tuple(span for span in read.spans if span.at.max(initial=0) < read.answer)
    return ReadSequence(read.ids[:length], read.labels[:length], spans, read.answer, read.first)


def _join(opened: OpenedModel, rows: list[int]) -> str:
    """Rows as one reads them: words decoded together, everything else by its name."""
    if all(row < opened.text.size for row in rows):
        return opened.text.decode(rows)
    return " ".join(opened.name_token(row) for row in rows)


def _describe_tokens(read: ReadSequence, shares: Mapping[str, Tensor], proposals: list[Tensor | None]) -> Section:
    order = shares["reagent"].argsort(descending=True).tolist()
    chosen = [at for at in order if proposals[at] is not None][:SHOWN]
    return {
        f"{at} {read.labels[at]!r}": {name: float(values[at]) for name, values in shares.items()}
        for at in sorted(chosen)
    }


def _describe_spans(read: ReadSequence, shares: Mapping[str, Tensor]) -> Section:
    table: Section = {}
    media = np.zeros(read.answer, dtype=bool)
    for number, span in enumerate(read.spans):
        media[span.at] = True
        table[f"{span.modality} {number + 1}"] = {
            name: float(values[torch.from_numpy(span.at)].sum()) for name, values in shares.items()
        }
    words = torch.from_numpy(~media)
    table["words and marks"] = {name: float(values[words].sum()) for name, values in shares.items()}
    return table


@torch.inference_mode()
def _measure_likelihood(opened: OpenedModel, read: ReadSequence, ids: Tensor) -> float:
    """The mean log-likelihood of a token of the answer, over ids int64 [R, N]."""
    targets = read.ids[read.answer :]
    logits = read_last(opened.decoder, ids.to(opened.device), len(targets) + 1)[:, :-1]
    return float(
        opened.restrict(logits, targets)
        .log_softmax(-1)
        .gather(-1, targets[None, :, None].expand(len(ids), -1, 1))
        .mean()
    )


def _check_methods(
    opened: OpenedModel,
    read: ReadSequence,
    scores: Mapping[str, Tensor],
    proposals: list[Tensor | None],
    seed: int,
    checks: int,
) -> Section:
    """What the answer loses if the best fifth of the tokens is replaced, and if the other four fifths are.

    checks: draws of replacements for each, which are averaged.
    """
    generator = torch.Generator().manual_seed(seed)
    free = torch.tensor([rows is not None for rows in proposals])
    count = max(1, round(BEST * int(free.sum())))
    plain = _measure_likelihood(opened, read, read.ids[None])
    ids = read.ids.cpu()
    drawn = draw_rows(proposals, checks, generator)
    at_random = draw_rows(proposals, RANDOM_TIMES * checks, generator)

    def lose(replaced: Tensor, drawn: Tensor) -> float:
        rows = ids.expand(len(drawn), -1).clone()
        rows[:, : read.answer] = torch.where(replaced & free, drawn, ids[: read.answer])
        return plain - _measure_likelihood(opened, read, rows)

    ranked = {name: (values.expand(checks, -1), drawn) for name, values in scores.items()}
    ranked["random"] = torch.rand(len(at_random), read.answer, generator=generator), at_random
    table: Section = {}
    for name, (values, proposed) in ranked.items():
        best = values.masked_fill(~free, -torch.inf).topk(count, dim=-1).indices  # [R, count]
        chosen = torch.zeros(values.shape, dtype=torch.bool).scatter(1, best, True)
        table[name] = {
            "its best fifth replaced": lose(chosen, proposed),
            "all but its best fifth": lose(~chosen, proposed),
        }
    return table


def _draw(
    figure: Figure, read: ReadSequence, shares: Mapping[str, Tensor], maps: Mapping[str, list[MediaMap | None]]
) -> None:
    shown = {name: [found for found in row if found is not None] for name, row in maps.items()}
    with_media = any(shown.values())
    grid = figure.add_gridspec(2 if with_media else 1, 1, height_ratios=(2, 3)[: 1 + with_media])
    axes = figure.add_subplot(grid[0])
    table = torch.stack(list(shares.values()))
    image = axes.imshow(table.numpy(), aspect="auto", cmap="Reds", vmin=0)
    axes.set_yticks(range(len(shares)), list(shares))
    if read.answer <= 80:
        names = [label.replace("$", r"\$") for label in read.labels[: read.answer]]
        axes.set_xticks(range(read.answer), names, rotation=90, fontsize=7)
    answer = "".join(read.labels[read.answer :]).replace("$", r"\$")
    axes.set_title(f"share of the answer {answer!r}")
    figure.colorbar(image, ax=axes)
    if not with_media:
        return
    methods = [name for name in shown if shown[name]]
    inner = grid[1].subgridspec(len(shown[methods[0]]), len(methods))
    for column, name in enumerate(methods):
        for row, found in enumerate(shown[name]):
            draw_map(figure.add_subplot(inner[row, column]), found, f"{name}: {found.modality} {row + 1}")
