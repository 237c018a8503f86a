"""Function tokens: the few frequent tokens that reach most features, and what is learnt behind them.

Function tokens are the most frequent ones that make up 40% of a text. In the graph of tokens and features, a token has
an edge to a feature that it activates anywhere; a few function tokens have edges to most features, and the loss lies
in the content tokens that come behind function tokens (Zhang, Lin and Li, arXiv 2510.08203).

The authors' features are those of a sparse autoencoder, which few models have. Here they are neurons: what the last
matrix of a feed-forward layer reads, active where it exceeds its mean by two standard deviations; of a layer without
such a matrix (experts in one tensor) the coordinates of its output. Frequent tokens would reach more features by their
number alone, so the table has the same number of content tokens beside them.

Shapes: P tokens of all windows, F features, D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from unimodal.evaluation.inspection.axes import write_plain_numbers
from unimodal.evaluation.inspection.opened import OpenedModel
from unimodal.evaluation.inspection.report import InspectionInput, InspectionReport, Tell
from unimodal.evaluation.inspection.texts import choose_texts
from unimodal.text.reports.report import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FUNCTION_SHARE = 0.4  # of a text's tokens
ACTIVE = 2.0  # standard deviations over its mean at which a feature is active
DEPTHS = {"shallow": 0.2, "middle": 0.5, "deep": 0.8}
MOST_WINDOWS = 12
SHOWN = 12


@dataclass(frozen=True, eq=False)
class FeatureGraph:
    """Which tokens activate which features. active: bool [P, F]. ids: int64 [P]."""

    layer: int
    ids: np.ndarray
    active: np.ndarray

    def count_reached(self, chosen: np.ndarray) -> int:
        """The number of features that these positions (bool [P]) activate."""
        return int(self.active[chosen].any(0).sum())

    def count_degrees(self, rows: Sequence[int]) -> list[int]:
        """The number of features that each token activates anywhere."""
        return [self.count_reached(self.ids == row) for row in rows]


def choose_function_tokens(ids: np.ndarray, share: float = FUNCTION_SHARE) -> list[int]:
    """The most frequent tokens that together make up `share` of ids [P], the most frequent first."""
    chosen: list[int] = []
    total = 0
    for row, count in sorted(Counter(ids.tolist()).items(), key=lambda entry: (-entry[1], entry[0])):
        if total >= share * len(ids):
            break
        chosen.append(row)
        total += count
    return chosen


def find_layers(model: nn.Module, count: int) -> nn.ModuleList:
    """The blocks of a decoder. Raises ValueError for one that has no list of them."""
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"{type(model).__name__} has no list of {count} layers to look into")


def find_reading_matrix(layer: nn.Module, width: int) -> nn.Module | None:
    """The last matrix of a layer's feed-forward part, whose inputs are its neurons; None where there is none."""
    found = None
    for name, module in layer.named_modules():
        if "attn" in name or "attention" in name.split(".")[0] or "lora_" in name or not hasattr(module, "weight"):
            continue
        shape = tuple(getattr(module.weight, "shape", ()))
        turned = type(module).__name__ == "Conv1D"  # of GPT-2: [in, out]
        if len(shape) == 2 and (shape[::-1] if turned else shape)[0] == width and shape[0] != shape[1]:
            found = module
    return found


def record_features(model: nn.Module, layers: Sequence[int], windows: Sequence[Tensor]) -> list[Tensor]:
    """The features of these layers at every token of the windows, float32 [P, F] each."""
    blocks = find_layers(model, int(model.config.num_hidden_layers))
    with torch.no_grad():  # an adapter's table is in two parts
        width = int(model.get_input_embeddings()(windows[0][:1]).shape[-1])
    taken: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    handles = []

    def keep(layer: int, value: Tensor | tuple[Tensor, ...]) -> None:
        tensor = value[0] if isinstance(value, tuple) else value
        taken[layer].append(tensor.detach().float().reshape(-1, tensor.shape[-1]))

    for layer in layers:
        matrix = find_reading_matrix(blocks[layer], width)
        if matrix is None:
            handles.append(blocks[layer].register_forward_hook(lambda _, __, out, layer=layer: keep(layer, out)))
        else:
            handles.append(matrix.register_forward_pre_hook(lambda _, inputs, layer=layer: keep(layer, inputs)))
    try:
        with torch.inference_mode():
            for ids in windows:
                model(input_ids=ids[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    total = sum(len(ids) for ids in windows)
    for layer, values in taken.items():  # experts see some tokens only: then a matrix is not one that all go through
        if sum(len(value) for value in values) != total:
            raise ValueError(f"layer {layer} of {type(model).__name__} does not show all its tokens to one matrix")
    return [torch.cat(taken[layer]) for layer in layers]


def build_graph(layer: int, features: Tensor, ids: np.ndarray) -> FeatureGraph:
    """features [P, F] of a layer → which of them are active at which token."""
    deviation = features.std(0).clamp_min(1e-9)
    return FeatureGraph(layer, ids, ((features - features.mean(0)) / deviation > ACTIVE).cpu().numpy())


def report_functions(opened: OpenedModel, given: InspectionInput, tell: Tell) -> InspectionReport:
    """Function tokens of texts, the features they reach at three depths, and the loss behind them.

    Raises ValueError for texts of fewer than 50 tokens.
    """
    windows, starts = _cut_windows(opened, given)
    ids = np.concatenate([window.cpu().numpy()[start:] for window, start in zip(windows, starts, strict=True)])
    if len(ids) < 50:
        raise ValueError(f"the texts have {len(ids)} tokens; give at least 50")
    function = choose_function_tokens(ids)
    is_function = np.isin(ids, function)
    count = int(opened.decoder.config.num_hidden_layers)
    layers = {name: min(int(depth * count), count - 1) for name, depth in DEPTHS.items()}
    tell("recording features")
    kept = torch.cat([torch.arange(len(window)) >= start for window, start in zip(windows, starts, strict=True)])
    chosen = sorted(set(layers.values()))
    recorded = dict(zip(chosen, record_features(opened.decoder, chosen, windows), strict=True))
    graphs = {name: build_graph(layer, recorded[layer][kept], ids) for name, layer in layers.items()}
    tell("measuring losses")
    losses = _measure_pairs(opened, windows, starts, function)
    order = [row for row, _ in Counter(ids.tolist()).most_common()]
    sections: dict[str, Section] = {
        "texts": {
            "model": opened.name,
            "tokens": len(ids),
            "different tokens": len(order),
            "function tokens": len(function),
            "their share of the text": float(is_function.mean()),
        },
        "features reached": {
            f"{name} (layer {graph.layer})": _describe_reach(graph, order, is_function, given.seed)
            for name, graph in graphs.items()
        },
        "loss by what stands before → what comes": losses,
        "most frequent": {
            repr(opened.name_token(row)): {
                "count": int((ids == row).sum()),
                "features (middle)": graphs["middle"].count_degrees([row])[0],
                "function token": "yes" if row in function else "no",
            }
            for row in order[:SHOWN]
        },
    }
    degrees = {name: graph.count_degrees(order) for name, graph in graphs.items()}
    counts = Counter(ids.tolist())
    arrays: dict[str, object] = {"tokens": [opened.name_token(row) for row in order], "features": degrees}

    def draw(figure: Figure) -> None:
        _draw(figure, [counts[row] for row in order], degrees, losses)

    return InspectionReport(sections, draw, arrays, (12.0, 4.5))


def _cut_windows(opened: OpenedModel, given: InspectionInput) -> tuple[list[Tensor], list[int]]:
    """The texts as sequences of at most `num_tokens`, and where the words of each begin."""
    windows: list[Tensor] = []
    starts: list[int] = []
    for text in choose_texts(given).values():
        whole = opened.read_text(text)
        head, words = whole.ids[: whole.first], whole.ids[whole.first :]
        length = max(min(given.num_tokens, opened.max_positions) - len(head), 2)
        for begin in range(0, len(words), length):
            part = words[begin : begin + length]
            if len(part) > 1 and len(windows) < MOST_WINDOWS:
                windows.append(torch.cat([head, part]))
                starts.append(len(head))
    return windows, starts


def _measure_pairs(
    opened: OpenedModel, windows: Sequence[Tensor], starts: Sequence[int], function: Sequence[int]
) -> Section:
    names = ("content", "function")
    found: dict[tuple[int, int], list[float]] = {(a, b): [] for a in (1, 0) for b in (0, 1)}
    for ids, start in zip(windows, starts, strict=True):
        losses = opened.measure_losses(ids)[start:].tolist()
        kinds = [int(row in function) for row in ids[start:].tolist()]
        for before, after, loss in zip(kinds, kinds[1:], losses, strict=False):
            found[before, after].append(loss)
    total = sum(sum(losses) for losses in found.values())
    return {
        f"{names[before]} → {names[after]}": {
            "tokens": len(losses),
            "loss, nats": float(np.mean(losses)) if losses else 0.0,
            "share of all loss": sum(losses) / total if total else 0.0,
        }
        for (before, after), losses in found.items()
    }


def _describe_reach(graph: FeatureGraph, order: Sequence[int], is_function: np.ndarray, seed: int) -> Section:
    reached = max(graph.count_reached(np.ones(len(graph.ids), dtype=bool)), 1)
    content = np.flatnonzero(~is_function)
    number = min(int(is_function.sum()), len(content))
    drawn = np.zeros(len(graph.ids), dtype=bool)
    drawn[np.random.default_rng(seed).choice(content, number, replace=False)] = True
    return {
        "features": graph.active.shape[1],
        "active anywhere": reached,
        "by the first": graph.count_reached(graph.ids == order[0]) / reached,
        "by the ten first": graph.count_reached(np.isin(graph.ids, order[:10])) / reached,
        "by function tokens": graph.count_reached(is_function) / reached,
        "by as many content tokens": graph.count_reached(drawn) / reached,
    }


def _draw(figure: Figure, counts: Sequence[int], degrees: dict[str, list[int]], losses: Section) -> None:
    left, right = figure.subplots(1, 2)
    for name, values in degrees.items():
        left.plot(counts, values, ".", alpha=0.6, label=name)
    left.set(xscale="log", xlabel="occurrences", ylabel="features", title="features that a token activates")
    left.set_yscale("symlog", linthresh=1)  # a token may activate none
    left.set_ylim(bottom=0)
    write_plain_numbers(left.xaxis)
    write_plain_numbers(left.yaxis)
    left.legend()
    names = list(losses)
    shares = [float(row["share of all loss"]) for row in losses.values() if isinstance(row, dict)]
    right.barh(names, shares)
    right.set(title="share of all loss: what stands before → what comes")
