"""Sinks, massive activations, value drains, residual peaks, and heads that are active or dormant.

A *sink* is a token that others look at whatever it says: the importance of a key is the mean attention of the queries
behind it, and it is a sink for a head where that exceeds 0.3 (Gu et al., arXiv 2410.10781). Its values are short and
its residual long, and heads that look at nothing else are *dormant* on a text and may be active on another (Guo et al.,
"Active-Dormant Attention Heads", arXiv 2410.13835). Activations are *massive* where they exceed 100 and a thousand
times the median of their layer (Sun et al., arXiv 2402.17762); in all sinks they lie in the same features, and sinks
inside a sequence are alike to its first token ("Mitigating Attention Sinks and Massive Activations in Audio-Visual
Speech Recognition with LLMs").

What differs: a key is judged by the queries behind it that can see it (a window hides keys from later ones), and only
where there are `LEAST_QUERIES` of them, so that the last tokens are none.

Shapes: L layers, H query heads, K key/value heads, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimodal.evaluation.inspection.axes import count_in_whole_numbers, say_in_plot, scale_by_powers
from unimodal.evaluation.inspection.forward import ForwardChange, WatchedForward, watch
from unimodal.evaluation.inspection.opened import OpenedModel, ReadSequence
from unimodal.evaluation.inspection.report import InspectionInput, InspectionReport, Tell
from unimodal.evaluation.inspection.texts import choose_texts
from unimodal.text.reports.report import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SINK_WEIGHT = 0.3  # of a head's attention that makes a key its sink
SINK_HEADS = 0.05  # of all heads whose sink a token must be to be listed
DORMANT = 0.7  # of a head's attention on sinks, or on the first token: the head is dormant
MASSIVE, MASSIVE_RATIO = 100.0, 1000.0
LEAST_QUERIES = 4
MOST_SINKS, MOST_HEADS, MOST_ACTIVATIONS = 6, 4, 8


@dataclass(frozen=True, eq=False)
class TextMeasures:
    """What is measured on one text. sinks: positions, the strongest first."""

    read: ReadSequence
    received: Tensor  # [L, H, N], the mean attention of the queries behind each key; 0 where they are too few
    lengths: Tensor  # [L, N], of the stream that enters each layer
    states: Tensor  # [L, N, D]
    values: Tensor | None  # [L, K, N], lengths of values
    sinks: list[int]

    @property
    def shares(self) -> Tensor:
        """The share of heads whose sink each token is, [N]."""
        return (self.received > SINK_WEIGHT).float().mean((0, 1))

    def measure_dormancy(self, weights: Tensor) -> Tensor:
        """The attention that each head puts on sinks, or on the first token where there is none, [L, H].

        weights: [L, H, N, N], of which the queries behind the first sink count.
        """
        places = self.sinks or [0]
        return weights[:, :, min(places) + 1 :, places].sum(-1).mean(-1)


def measure_received(weights: Tensor, visible: Tensor) -> Tensor:
    """weights [L, H, N, N], visible bool [L, N, N] → the mean attention that each key gets of the queries behind it
    that see it, [L, H, N]."""
    behind = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).tril(-1)
    seen = (visible & behind)[:, None]  # [L, 1, N, N]
    counts = seen.sum(2)  # [L, 1, N]
    received = (weights * seen).sum(2) / counts.clamp_min(1)
    return received.masked_fill(counts < LEAST_QUERIES, 0.0)


def measure_text(read: ReadSequence, seen: WatchedForward) -> TextMeasures:
    """What one watched forward of one sequence shows."""
    weights = seen.attention[:, 0]  # [L, H, N, N]
    received = measure_received(weights, seen.visible[:, 0])
    states = torch.stack([state[0].float() for state in seen.states[:-1]])  # [L, N, D]
    found = [call.values[0].float().norm(dim=-1) for call in seen.calls if call.values is not None]
    alike = len({value.shape[0] for value in found}) == 1 and len(found) == len(seen.calls)
    shares = (received > SINK_WEIGHT).float().mean((0, 1))
    order = sorted(range(len(read)), key=lambda at: (-float(shares[at]), -float(received[:, :, at].mean())))
    sinks = [at for at in order if float(shares[at]) >= SINK_HEADS]
    return TextMeasures(read, received, states.norm(dim=-1), states, torch.stack(found) if alike else None, sinks)


def list_massive(states: Tensor) -> list[tuple[int, int, int, float, float]]:
    """states [L, N, D] → (layer, token, feature, value, times the layer's median) of the greatest activations.

    Each token and feature once, at its greatest layer; the greatest multiples first.
    """
    medians = states.abs().flatten(1).median(1).values.clamp_min(1e-9)  # [L]
    ratios = states.abs() / medians[:, None, None]
    best = ratios.max(0)  # [N, D]
    chosen = best.values.flatten().topk(min(MOST_ACTIVATIONS, best.values.numel())).indices.tolist()
    found = []
    for index in chosen:
        token, feature = divmod(index, states.shape[2])
        layer = int(best.indices[token, feature])
        found.append(
            (layer, token, feature, float(states[layer, token, feature]), float(ratios[layer, token, feature]))
        )
    return found


def report_heads(opened: OpenedModel, given: InspectionInput, tell: Tell) -> InspectionReport:
    """Sinks, massive activations and dormant heads, over one text or several.

    Reads `texts`, the prompt, or texts of its own. Raises ValueError for a model without attention weights and for
    texts of fewer tokens than can be judged.
    """
    measured: dict[str, TextMeasures] = {}
    dormancy: dict[str, Tensor] = {}
    for name, text in choose_texts(given).items():
        tell(f"reading {name}")
        read = opened.read_text(text, given.num_tokens)
        if len(read) <= LEAST_QUERIES:
            raise ValueError(f"{name} has {len(read)} tokens; give at least {LEAST_QUERIES + 1}")
        with torch.inference_mode():
            seen = watch(opened.decoder, read.ids[None])
        measured[name] = measure_text(read, seen)
        dormancy[name] = measured[name].measure_dormancy(seen.attention[:, 0])
    tell("silencing heads")
    silenced, losses = _measure_silenced(opened, measured, dormancy)
    layers, heads = next(iter(dormancy.values())).shape
    sections: dict[str, Section] = {
        "model": {
            "model": opened.name,
            "layers": int(layers),
            "heads a layer": int(heads),
            "tokens read": [f"{name} {len(text.read)}" for name, text in measured.items()],
            "heads dormant": [f"{name} {int((on >= DORMANT).sum())}" for name, on in dormancy.items()],
        },
        "sinks": _describe_sinks(measured) or {"found": "none"},
        "greatest activations": _describe_activations(measured),
        "features of sinks": _describe_features(measured),
        "heads that differ between texts": _describe_heads(silenced, dormancy, losses),
    }
    arrays: dict[str, object] = {
        "dormancy": {name: on.tolist() for name, on in dormancy.items()},
        "sinks": {name: {str(at): float(text.shares[at]) for at in text.sinks} for name, text in measured.items()},
    }

    def draw(figure: Figure) -> None:
        _draw(figure, measured, dormancy)

    return InspectionReport({name: part for name, part in sections.items() if part}, draw, arrays)


def _measure_silenced(
    opened: OpenedModel, measured: Mapping[str, TextMeasures], dormancy: Mapping[str, Tensor]
) -> tuple[list[tuple[int, int]], dict[tuple[int, int], dict[str, float]]]:
    """The heads that differ most between the texts, or look most at sinks in one; and what silencing each adds to the
    loss. Empty losses where the model's heads cannot be silenced."""
    stacked = torch.stack(list(dormancy.values()))  # [texts, L, H]
    ranks = stacked.amax(0) - stacked.amin(0) if len(stacked) > 1 else stacked[0]
    chosen = ranks.flatten().topk(min(MOST_HEADS, ranks.numel())).indices.tolist()
    places = [divmod(index, ranks.shape[1]) for index in chosen]
    added: dict[tuple[int, int], dict[str, float]] = {}
    try:
        for name, text in measured.items():
            plain = float(opened.measure_losses(text.read.ids).mean())
            for place in places:
                changed = opened.measure_losses(text.read.ids, ForwardChange(silenced=frozenset({place})))
                added.setdefault(place, {})[name] = float(changed.mean()) - plain
    except ValueError:  # its attention is code of its own
        added = {}
    return places, added


def _describe_sinks(measured: Mapping[str, TextMeasures]) -> Section:
    table: Section = {}
    for name, text in measured.items():
        others = [at for at in range(len(text.read)) if at not in text.sinks]
        for at in text.sinks[:MOST_SINKS]:
            peak = int(text.lengths[:, at].argmax())
            row: dict[str, object] = {
                "share of heads": float(text.shares[at]),
                "attention": float(text.received[:, :, at].mean()),
            }
            if others:
                row["residual, × median"] = float(
                    (text.lengths[:, at] / text.lengths[:, others].median(1).values).max()
                )
                if text.values is not None:
                    ratio = text.values[:, :, at] / text.values[:, :, others].mean(-1).clamp_min(1e-9)
                    row["value, × mean"] = float(ratio.mean())
            row["cosine to first"] = float(torch.cosine_similarity(text.states[peak, at], text.states[peak, 0], dim=0))
            table[f"{name} {at} {text.read.labels[at]!r}"] = row
    return table


def _describe_activations(measured: Mapping[str, TextMeasures]) -> Section:
    table: Section = {}
    found = [(name, *entry) for name, text in measured.items() for entry in list_massive(text.states)]
    for name, layer, token, feature, value, ratio in sorted(found, key=lambda entry: -entry[5])[:MOST_ACTIVATIONS]:
        text = measured[name]
        massive = abs(value) >= MASSIVE and ratio >= MASSIVE_RATIO
        table[f"{name} {token} {text.read.labels[token]!r} feature {feature}"] = {
            "enters layer": layer,
            "value": value,
            "× median": ratio,
            "massive": "yes" if massive else "no",
            "a sink": "yes" if token in text.sinks else "no",
        }
    return table


def _describe_features(measured: Mapping[str, TextMeasures]) -> Section:
    """Whether the three greatest features of all sinks are the same: their mean intersection over union."""
    tops = []
    for text in measured.values():
        for at in text.sinks[:MOST_SINKS]:
            peak = int(text.lengths[:, at].argmax())
            tops.append(frozenset(text.states[peak, at].abs().topk(min(3, text.states.shape[2])).indices.tolist()))
    pairs = [(one, two) for number, one in enumerate(tops) for two in tops[number + 1 :]]
    if not pairs:
        return {}
    shared = sorted(frozenset.intersection(*tops))
    overlap = sum(len(one & two) / len(one | two) for one, two in pairs) / len(pairs)
    return {"sinks": len(tops), "mean overlap of their three greatest": overlap, "in all of them": shared}


def _describe_heads(
    places: list[tuple[int, int]],
    dormancy: Mapping[str, Tensor],
    added: Mapping[tuple[int, int], Mapping[str, float]],
) -> Section:
    table: Section = {}
    for layer, head in places:
        row: dict[str, object] = {f"sinks, {name}": float(on[layer, head]) for name, on in dormancy.items()}
        row |= {f"loss if silenced, {name}": value for name, value in added.get((layer, head), {}).items()}
        table[f"layer {layer} head {head}"] = row
    return table


def _draw(figure: Figure, measured: Mapping[str, TextMeasures], dormancy: Mapping[str, Tensor]) -> None:
    shown = list(measured)[:3]
    grid = figure.add_gridspec(2, 6)
    width = 6 // len(shown)
    maps = []
    for number, name in enumerate(shown):
        maps.append(figure.add_subplot(grid[0, number * width : (number + 1) * width]))
        image = maps[-1].imshow(dormancy[name].cpu().numpy(), vmin=0, vmax=1, aspect="auto", cmap="magma")
        maps[-1].set(title=f"attention on sinks: {name}", xlabel="head", ylabel="layer")
        count_in_whole_numbers(maps[-1], "both")
    figure.colorbar(image, ax=maps, fraction=0.04)  # of all of them, which stay equally wide
    text = measured[shown[0]]
    axes = figure.add_subplot(grid[1, :2])
    axes.bar(range(len(text.read)), text.shares.cpu().numpy(), width=1.0)
    title = f"whose sink a token is: {shown[0]}"
    axes.set(title=title, xlabel="token", ylabel="share of heads", ylim=(0, 1))
    if not text.sinks:
        say_in_plot(axes, "no token is a sink")
    axes = figure.add_subplot(grid[1, 2:4])
    others = [at for at in range(len(text.read)) if at not in text.sinks]
    for at in text.sinks[:3]:
        axes.plot(text.lengths[:, at].cpu().numpy(), "-o", markersize=3, label=f"{at} {_escape(text.read.labels[at])}")
    if others:
        axes.plot(
            text.lengths[:, others].median(1).values.cpu().numpy(), "--", color="grey", label="median of the others"
        )
    axes.set(title="residual that enters a layer", xlabel="layer", ylabel="length")
    scale_by_powers(axes)
    count_in_whole_numbers(axes, "x")
    axes.legend(fontsize=7)
    axes = figure.add_subplot(grid[1, 4:])
    if text.values is not None and text.sinks and others:
        for at in text.sinks[:3]:
            ratio = text.values[:, :, at] / text.values[:, :, others].mean(-1).clamp_min(1e-9)
            axes.plot(ratio.mean(1).cpu().numpy(), "-o", markersize=3, label=f"{at} {_escape(text.read.labels[at])}")
        axes.axhline(1, color="grey", linestyle="--")
        axes.set(ylim=(0, None))
        count_in_whole_numbers(axes, "x")
        axes.legend(fontsize=7)
    else:
        axes.set(xticks=[], yticks=[])
        say_in_plot(axes, "no token is a sink" if not text.sinks else "values cannot be seen")
    axes.set(title="length of values, × mean of the others", xlabel="layer")


def _escape(label: str) -> str:
    """A token for matplotlib, which reads text between dollar signs as mathematics."""
    return repr(label).replace("$", r"\$")
