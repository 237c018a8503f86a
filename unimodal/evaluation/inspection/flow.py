"""How a prompt's words reach a picture, or any answer: which tokens carry a word, what is redundant, what leaks.

After a prompt is read, each of its tokens is a state that the answer looks at. A word is *needed* as far as the answer
changes when nothing behind the words sees its states, and it *suffices* as far as the answer stays what it was when it
sees no other. One token of a word often carries it all. Words also tell each other things: an answer that changes when
a word is read as if the others were not there has that from the others, which is where things leak (Kaplan et al.,
"Follow the Flow", arXiv 2504.01137).

The authors draw pictures by a text encoder and a diffusion model and judge the pictures. A decoder has no such joint:
here states are hidden inside the one network, and the change is the mean divergence of the answer's distributions (KL,
in nats a token) from those of the whole prompt, with the answer held fixed. Where in the depth words are read is shown
by hiding them in a third of the layers.

Shapes: N tokens, T tokens of the answer, V rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimodal.evaluation.inspection.axes import shorten
from unimodal.evaluation.inspection.forward import ForwardChange, list_hidden, watch
from unimodal.evaluation.inspection.opened import OpenedModel, ReadSequence
from unimodal.evaluation.inspection.report import InspectionInput, InspectionReport, Tell
from unimodal.text.reports.report import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_WORDS = 10
THIRDS = ("early layers", "middle layers", "late layers")


@dataclass(frozen=True)
class WordPlace:
    """A word and its tokens' positions."""

    word: str
    at: tuple[int, ...]


def find_words(read: ReadSequence, is_text: Sequence[bool]) -> list[WordPlace]:
    """The words of a prompt: runs of its text tokens, cut where a token begins with a blank. A token without letters or
    digits is a word of its own."""
    words: list[tuple[str, list[int]]] = []
    last = -2
    for at in range(read.first, read.answer):
        label = read.labels[at]
        if not is_text[at] or not label.strip():
            continue
        begins = not words or at != last + 1 or label[:1].isspace() or not re.search(r"\w", label)
        if begins or not re.search(r"\w", words[-1][0]):
            words.append((label.strip(), [at]))
        else:
            words[-1] = (words[-1][0] + label, [*words[-1][1], at])
        last = at
    return [WordPlace(word, tuple(at)) for word, at in words]


def measure_divergence(plain: Tensor, changed: Tensor) -> float:
    """The mean KL of distributions from the plain ones, in nats; both logits [T, V]."""
    before, after = plain.float().log_softmax(-1), changed.float().log_softmax(-1)
    gaps = torch.where(before.isinf(), 0.0, before.exp() * (before - after))  # rows that cannot come
    return float(gaps.sum(-1).mean().clamp_min(0))


class FlowMeter:
    """Reads one sequence again and again, with states hidden.

    behind: the first position behind the words, from where they are hidden.
    """

    def __init__(self, opened: OpenedModel, read: ReadSequence, words: Sequence[WordPlace]) -> None:
        self.opened, self.read, self.words = opened, read, words
        self.behind = max(at for word in words for at in word.at) + 1
        self.rows = slice(read.answer - 1, len(read) - 1)
        with torch.inference_mode():
            logits = opened.decoder(input_ids=read.ids[None], use_cache=False).logits
            self.plain = opened.restrict(logits[0, self.rows], read.ids[read.answer :])

    def hide(self, keys: Sequence[int], layers: frozenset[int] | None = None) -> float:
        """The answer's divergence if nothing behind the words sees these."""
        return self._run(list_hidden(len(self.read), range(self.behind, len(self.read)), keys), layers)

    def isolate(self, word: WordPlace) -> float:
        """The divergence if this word is read without seeing the others."""
        others = [at for other in self.words if other != word for at in other.at]
        return self._run(list_hidden(len(self.read), word.at, others))

    def _run(self, hidden: Tensor, layers: frozenset[int] | None = None) -> float:
        with torch.inference_mode():
            change = ForwardChange(hidden=hidden, layers=layers)
            logits = watch(self.opened.decoder, self.read.ids[None], attention=False, change=change).logits
        return measure_divergence(
            self.plain, self.opened.restrict(logits[0, self.rows], self.read.ids[self.read.answer :])
        )


def report_flow(opened: OpenedModel, given: InspectionInput, tell: Tell) -> InspectionReport:
    """Which words of a prompt its answer comes from, and by which of their tokens.

    Raises ValueError for a prompt without words and for a model in whose attention nothing can be hidden.
    """
    if given.prompt is None:
        raise ValueError("give a prompt, whose words are followed")
    tell("reading")
    read = opened.read_prompt(given.prompt, given.files, given.answer, given.to)
    if len(read) == read.answer:
        raise ValueError("the model answers nothing; give --answer")
    words = find_words(read, [row < opened.text.size for row in read.ids.tolist()])[:MOST_WORDS]
    if not words:
        raise ValueError("the prompt holds no words")
    meter = FlowMeter(opened, read, words)
    every = [at for word in words for at in word.at]
    nothing = meter.hide(every)
    count = int(opened.decoder.config.num_hidden_layers)
    thirds = [frozenset(range(count * part // 3, count * (part + 1) // 3)) for part in range(3)]
    table: dict[str, dict[str, object]] = {}
    for number, word in enumerate(words):
        tell(f"following {word.word}")
        alone = _measure_alone(meter, every, word.at, nothing)
        row: dict[str, object] = {"needed, KL": meter.hide(word.at), "suffices": alone}
        parts = {at: _measure_alone(meter, every, (at,), nothing) for at in word.at} if len(word.at) > 1 else {}
        carrier = max(parts, key=lambda at: parts[at]) if parts else word.at[0]
        row["carried by"] = repr(read.labels[carrier])
        row["of it"] = 1.0 if not parts or alone <= 0 else min(parts[carrier] / alone, 1.0)
        row["from other words, KL"] = meter.isolate(word) if len(words) > 1 else 0.0
        row |= _measure_thirds(meter, word, thirds)
        table[f"{number} {word.word}"] = row
    spans = [span.modality for span in read.spans if span.at.min(initial=1 << 30) >= read.answer]
    sections: dict[str, Section] = {
        "answer": {
            "model": opened.name,
            "prompt": given.prompt,
            "answer": f"{len(read) - read.answer} tokens" + (f" of {', '.join(spans)}" if spans else ""),
            "KL without any word": nothing,
            "words that are redundant": [
                word.word
                for word, row in zip(words, table.values(), strict=True)
                if float(str(row["needed, KL"])) < 0.05 * nothing
            ],
        },
        "words": dict(table),
    }

    def draw(figure: Figure) -> None:
        _draw(figure, table, nothing)

    return InspectionReport(sections, draw, {}, (12.0, 4.5))


def _measure_alone(meter: FlowMeter, every: Sequence[int], kept: Sequence[int], nothing: float) -> float:
    """The share of the words' effect that is left if only these tokens are seen; 1 is all of it."""
    if nothing <= 0:
        return 1.0
    return 1 - meter.hide([at for at in every if at not in kept]) / nothing


def _measure_thirds(meter: FlowMeter, word: WordPlace, thirds: Sequence[frozenset[int]]) -> dict[str, float]:
    """The divergence if a word is hidden in a third of the layers; none where layers cannot be told apart."""
    try:
        return {
            f"{name}, KL": meter.hide(word.at, layers) for name, layers in zip(THIRDS, thirds, strict=True) if layers
        }
    except ValueError:  # attention of a family's own code, which takes one mask for all layers
        return {}


def _draw(figure: Figure, table: dict[str, dict[str, object]], nothing: float) -> None:
    left, middle, right = figure.subplots(1, 3)
    names = [shorten(name) for name in table]
    places = range(len(names))
    left.barh(places, [float(str(row["needed, KL"])) for row in table.values()])
    left.set(title="needed: KL if hidden", yticks=places, yticklabels=names)
    middle.barh(places, [float(str(row["suffices"])) for row in table.values()], color="tab:green")
    middle.set(title="suffices: share that it carries alone", yticks=places, yticklabels=[])
    thirds = [name for name in (f"{third}, KL" for third in THIRDS) if all(name in row for row in table.values())]
    start = [0.0] * len(names)
    for name in thirds:
        values = [float(str(row[name])) for row in table.values()]
        right.barh(places, values, left=start, label=name.removesuffix(", KL"))
        start = [a + b for a, b in zip(start, values, strict=True)]
    right.set(title="where it is read: KL if hidden there", yticks=places, yticklabels=[])
    if thirds:
        right.legend(fontsize=7)
    for axes in (left, middle, right):
        axes.invert_yaxis()
