"""Sink, dead and alive tokens of media: which of them say something of their medium (EmbedLens, arXiv 2603.00510).

A code's embedding is held against those of all words. Tokens whose three nearest words hold one that comes back in
nearly every medium say nothing of this one: they are *sinks* where others look at them much, and *dead* otherwise. The
rest is *alive*. As a check, each group is hidden from all that follows: the answer should not miss the dead, and miss
as many alive ones.

The authors' nearest words (`find_nearest`) and their rule of three (`classify`) are as in their code. They name the
recurring words of LLaVA by hand; here those are found: words that are the nearest of a token in a share of the media,
and that are sinks where their tokens get some times the attention of all tokens of media. The control removes as many
alive tokens as there are dead ones, or all of them if they are fewer.

Shapes: M codes of a span, D width, V words, L layers, H heads, N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from unimodal.evaluation.inspection.axes import count_in_whole_numbers, shorten
from unimodal.evaluation.inspection.forward import ForwardChange, WatchedForward, list_hidden, watch
from unimodal.evaluation.inspection.opened import MediaSpan, OpenedModel, ReadSequence
from unimodal.evaluation.inspection.report import InspectionInput, InspectionReport, Tell
from unimodal.text.reports.report import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEAREST = 3  # words that are looked at
RECURRING = 0.8  # of all media in which a word is the nearest of some token
SINK_TIMES = 3.0  # the attention of a mean token of media
KINDS = ("alive", "dead", "sink")


@dataclass(frozen=True, eq=False)
class MediumMeasures:
    """One medium. nearest: the rows of words [M, 3]. received: [M], attention of what follows. lens: [L + 1, M], the
    cosine to the nearest word at every depth."""

    name: str
    read: ReadSequence
    span: MediaSpan
    embedded: Tensor  # [M, D]
    nearest: Tensor
    received: Tensor
    lens: Tensor


def find_nearest(embedded: Tensor, words: Tensor, count: int = NEAREST) -> tuple[Tensor, Tensor]:
    """embedded [M, D], words [V, D] → the nearest words by cosine: int64 [M, count], and their cosines."""
    return _find_by_direction(embedded, torch.nn.functional.normalize(words.float(), dim=-1), count)


def _find_by_direction(embedded: Tensor, directions: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`find_nearest` for words that have length 1 already."""
    cosines = torch.nn.functional.normalize(embedded.float(), dim=-1) @ directions.T
    best = cosines.max(-1, keepdim=True) if count == 1 else cosines.topk(min(count, len(directions)), dim=-1)
    return best.indices, best.values


def classify(nearest: Tensor, sinks: Sequence[int], dead: Sequence[int]) -> np.ndarray:
    """nearest int64 [M, 3] and recurring words → the kind of each token, its place in `KINDS`; a sink before dead."""
    found = np.zeros(len(nearest), dtype=int)
    for kind, words in ((1, dead), (2, sinks)):
        if len(words):
            found[torch.isin(nearest, torch.tensor(list(words))).any(-1).numpy()] = kind
    return found


def find_recurring(
    measures: Sequence[MediumMeasures], share: float = RECURRING, times: float = SINK_TIMES
) -> tuple[list[int], list[int]]:
    """The words that come back whatever the medium shows: those of sinks, and those of dead tokens."""
    counts: dict[int, int] = {}
    for one in measures:
        for word in one.nearest[:, 0].unique().tolist():
            counts[word] = counts.get(word, 0) + 1
    received = torch.cat([one.received for one in measures])
    first = torch.cat([one.nearest[:, 0] for one in measures])
    sinks: list[int] = []
    dead: list[int] = []
    for word in sorted(word for word, count in counts.items() if count >= share * len(measures)):
        is_sink = float(received[first == word].mean()) >= times * float(received.mean())
        (sinks if is_sink else dead).append(word)
    return sinks, dead


def report_media(opened: OpenedModel, given: InspectionInput, tell: Tell) -> InspectionReport:
    """Sink, dead and alive tokens of two media or more of one kind.

    Settings: `layer`, whose input is held against words (0: the embeddings); `recurring`, the share of the media.
    Raises ValueError for a model without media, and for fewer than two media, or media of different kinds.
    """
    if opened.loaded is None:
        raise ValueError(f"{opened.name} reads text only, and this report is about tokens of media")
    kinds = {file.modality for file in given.files}
    if len(given.files) < 2 or len(kinds) > 1:
        raise ValueError("give two media or more, all of one kind: what comes back in them is what says nothing")
    layer, share = int(given.settings.get("layer", 0)), float(given.settings.get("recurring", RECURRING))
    measures: list[MediumMeasures] = []
    words = opened.decoder.get_input_embeddings()(opened.text_ids.to(opened.device)).detach()
    directions = torch.nn.functional.normalize(words.float(), dim=-1)
    for file in given.files:
        tell(f"reading {file.name}")
        read = opened.read_prompt(given.prompt, [file], given.answer, given.to)
        with torch.inference_mode():
            seen = watch(opened.decoder, read.ids[None])
            measures.append(_measure(opened, file.name, read, seen, directions, layer))
    sinks, dead = find_recurring(measures, share)
    tell("hiding tokens")
    found = [classify(one.nearest, sinks, dead) for one in measures]
    sections: dict[str, Section] = {
        "media": {
            "model": opened.name, "media": len(measures), "kind": next(iter(kinds)),
            "tokens": int(sum(len(kind) for kind in found)), "layer": layer,
        },
        "kinds of tokens": _describe_kinds(opened, measures, found, given.seed),
        "recurring words": {
            repr(opened.text.decode([int(opened.text_ids[word])])): _describe_word(measures, word, word in sinks)
            for word in [*sinks, *dead]
        } or {"found": "none"},
    }  # fmt: skip
    arrays: dict[str, object] = {
        one.name: {
            "kinds": [KINDS[kind] for kind in kinds_of],
            "nearest words": [[int(opened.text_ids[word]) for word in row] for row in one.nearest.tolist()],
        }
        for one, kinds_of in zip(measures, found, strict=True)
    }

    def draw(figure: Figure) -> None:
        _draw(figure, measures, found)

    return InspectionReport(sections, draw, arrays)


def _measure(
    opened: OpenedModel, name: str, read: ReadSequence, seen: WatchedForward, directions: Tensor, layer: int
) -> MediumMeasures:
    """directions: of words, [V, D], each of length 1."""
    span = read.spans[0]
    if not 0 <= layer < len(seen.states):
        raise ValueError(f"layer {layer} is not there; {opened.name} has 0 to {len(seen.states) - 1}")
    at = torch.from_numpy(span.at)
    tables = opened.decoder.get_input_embeddings()(read.ids[None])[0, at]  # before positions are added
    embedded = tables if layer == 0 else seen.states[layer][0, at]
    behind = int(span.at.max()) + 1
    weights = seen.attention[:, 0]  # [L, H, N, N]
    received = (
        weights[:, :, behind:, at].mean((0, 1, 2)) if behind < len(read) else weights[:, :, :, at].mean((0, 1, 2))
    )
    depths = [tables, *(state[0, at] for state in seen.states[1:])]
    lens = torch.stack([_find_by_direction(state, directions, 1)[1][:, 0] for state in depths])
    return MediumMeasures(
        name,
        read,
        span,
        embedded.float(),
        _find_by_direction(embedded, directions, NEAREST)[0].cpu(),
        received.cpu(),
        lens,
    )


class HidingMeter:
    """What the answer's loss a token gains, in nats, if nothing behind them sees some positions.

    The whole sequence is read once, and each choice of positions once.
    """

    def __init__(self, opened: OpenedModel, read: ReadSequence) -> None:
        self.opened, self.read = opened, read
        self._plain: Tensor | None = None
        self._found: dict[frozenset[int], float] = {}

    def measure(self, hidden: Sequence[int]) -> float:
        chosen = frozenset(hidden)
        if not chosen or self.read.answer >= len(self.read):
            return 0.0
        if self._plain is None:
            self._plain = self.opened.measure_losses(self.read.ids)
        if chosen not in self._found:
            change = ForwardChange(hidden=list_hidden(len(self.read), range(len(self.read)), sorted(chosen)))
            changed = self.opened.measure_losses(self.read.ids, change)
            self._found[chosen] = float((changed - self._plain)[self.read.answer - 1 :].mean())
        return self._found[chosen]


def _describe_kinds(
    opened: OpenedModel, measures: Sequence[MediumMeasures], found: Sequence[np.ndarray], seed: int
) -> Section:
    generator = np.random.default_rng(seed)
    meters = [HidingMeter(opened, one.read) for one in measures]
    total = sum(len(kinds) for kinds in found)
    table: Section = {}
    for number, kind in enumerate(KINDS):
        counts = [int((kinds == number).sum()) for kinds in found]
        if not sum(counts):
            table[kind] = {"tokens": 0, "share": 0.0}
            continue
        chosen = [torch.from_numpy(kinds == number) for kinds in found]
        gains, controls = [], []
        for one, kinds, meter in zip(measures, found, meters, strict=True):
            own = one.span.at[kinds == number].tolist()
            alive = one.span.at[kinds == 0]
            gains.append(meter.measure(own))
            control = generator.choice(alive, min(len(own), len(alive)), replace=False) if len(alive) else alive
            controls.append(meter.measure(control.tolist()))
        received = torch.cat([one.received[mask] for one, mask in zip(measures, chosen, strict=True)])
        table[kind] = {
            "tokens": sum(counts),
            "share": sum(counts) / total,
            "attention, × mean": float(received.mean() / torch.cat([one.received for one in measures]).mean()),
            "alike across media": _compare_media(measures, chosen),
            "loss if hidden": float(np.mean(gains)),
            "loss if as many alive are hidden": float(np.mean(controls)),
        }
    return table


def _compare_media(measures: Sequence[MediumMeasures], chosen: Sequence[Tensor]) -> float:
    """The mean cosine of tokens of this kind in different media."""
    means = [one.embedded[mask].mean(0) for one, mask in zip(measures, chosen, strict=True) if mask.any()]
    if len(means) < 2:
        return 0.0
    unit = torch.nn.functional.normalize(torch.stack(means), dim=-1)
    pairs = unit @ unit.T
    return float((pairs.sum() - pairs.trace()) / (len(means) * (len(means) - 1)))


def _describe_word(measures: Sequence[MediumMeasures], word: int, is_sink: bool) -> Mapping[str, object]:
    tokens = torch.cat([one.nearest[:, 0] == word for one in measures])
    received = torch.cat([one.received for one in measures])
    return {
        "kind": "sink" if is_sink else "dead",
        "media": sum(bool((one.nearest[:, 0] == word).any()) for one in measures),
        "tokens": int(tokens.sum()),
        "attention, × mean": float(received[tokens].mean() / received.mean()),
    }


def _draw(figure: Figure, measures: Sequence[MediumMeasures], found: Sequence[np.ndarray]) -> None:
    colours = np.array([(0.30, 0.60, 0.35), (0.75, 0.75, 0.75), (0.80, 0.25, 0.20)])
    shown = list(zip(measures, found, strict=True))[:6]
    grid = figure.add_gridspec(len(shown), 2, width_ratios=(3, 2))
    for row, (one, kinds) in enumerate(shown):
        axes = figure.add_subplot(grid[row, 0])
        axes.imshow(colours[kinds][None], aspect="auto")
        told = ": green alive, grey dead, red sink" if not row else ""
        axes.set(yticks=[], title=f"{shorten(one.name.rpartition('/')[2])}{told}")
        count_in_whole_numbers(axes, "x")
    axes.set(xlabel="token")
    axes = figure.add_subplot(grid[:, 1])
    for number, kind in enumerate(KINDS):
        lens = [one.lens[:, kinds == number].cpu() for one, kinds in zip(measures, found, strict=True)]
        together = torch.cat(lens, 1)
        if together.shape[1]:
            axes.plot(together.mean(1).numpy(), "-o", markersize=3, color=colours[number], label=kind)
    axes.set(title="cosine to the nearest word", xlabel="depth")
    count_in_whole_numbers(axes, "x")
    axes.legend()
