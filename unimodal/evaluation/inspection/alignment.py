"""Implicit alignment of media and text inside a frozen language model: how alike their tokens and their weights are.

For every depth: the length of tokens of each kind, how little they change from one layer to the next, the cosine of the
kinds' mean tokens and the median cosine of single tokens, and the overlap of the weights that they use. A weight's use
is its size times the length of its input over the tokens of a kind (Wanda, arXiv 2306.11695); the half that is used
most of each row is compared by intersection over union (Shukor and Cord, "Implicit Multimodal Alignment", arXiv
2405.16700).

The similarities (`compare_tokens`, modes "mean of tokens", "median") and the overlap (`overlap_masks`) are those of the
authors' code. Two halves chosen at random overlap by a third; what the sizes of the weights alone give is beside it:
the overlap with the inputs' lengths shuffled.

A model without media is read on texts of several kinds in the place of media.

Shapes: L layers, N tokens, D width, O and I outputs and inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from unimodal.evaluation.inspection.axes import count_in_whole_numbers, scale_by_powers
from unimodal.evaluation.inspection.forward import watch
from unimodal.evaluation.inspection.functions import find_layers
from unimodal.evaluation.inspection.opened import OpenedModel
from unimodal.evaluation.inspection.report import InspectionInput, InspectionReport, Tell
from unimodal.evaluation.inspection.texts import choose_texts
from unimodal.text.reports.report import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USED = 0.5  # of a matrix's weights, row by row, that count as used


@dataclass(eq=False)
class KindMeasures:
    """What is gathered of one kind of token. states: of each depth a list of [N, D]. lengths: matrix → the sum of the
    squares of each of its inputs, [I]."""

    states: list[list[Tensor]] = field(default_factory=list)
    lengths: dict[str, Tensor] = field(default_factory=dict)

    def add(self, states: Sequence[Tensor]) -> None:
        """states: of each depth [N, D]."""
        if not self.states:
            self.states = [[] for _ in states]
        for kept, state in zip(self.states, states, strict=True):
            kept.append(state.float().cpu())

    @property
    def depths(self) -> list[Tensor]:
        """All tokens of each depth, [N, D]."""
        return [torch.cat(kept) for kept in self.states]


def compare_tokens(one: Tensor, two: Tensor) -> dict[str, float]:
    """one [N, D], two [M, D] → the cosine of their mean tokens, and the median cosine of a token of each."""
    pairs = nn.functional.normalize(one, dim=-1) @ nn.functional.normalize(two, dim=-1).T
    means = nn.functional.cosine_similarity(one.mean(0), two.mean(0), dim=0)
    return {"mean of tokens": float(means), "median": float(pairs.median())}


def mark_used(weight: Tensor, lengths: Tensor, share: float = USED) -> Tensor:
    """weight [O, I], lengths [I] (sums of squares of the inputs) → the most used weights of each row, bool [O, I]."""
    use = weight.abs().float() * lengths.sqrt()
    count = max(1, int(use.shape[1] * share))
    return torch.zeros_like(use, dtype=torch.bool).scatter(1, use.topk(count, dim=1).indices, True)


def overlap_masks(one: Tensor, two: Tensor) -> float:
    """Intersection over union of two masks."""
    return float((one & two).sum() / (one | two).sum())


def list_matrices(layers: nn.ModuleList) -> dict[str, tuple[nn.Module, bool]]:
    """The base's matrices of all layers: name → (module, whether it stores [I, O], as GPT-2's do)."""
    found: dict[str, tuple[nn.Module, bool]] = {}
    for number, layer in enumerate(layers):
        for name, module in layer.named_modules():
            turned = type(module).__name__ == "Conv1D"
            if "lora_" not in name and (isinstance(module, nn.Linear) or turned):
                found[f"{number}.{name}"] = module, turned
    return found


def report_alignment(opened: OpenedModel, given: InspectionInput, tell: Tell) -> InspectionReport:
    """How tokens of media and of text come together inside the model; of a model of text alone, texts of several kinds.

    Reads `files` and their questions; `texts` too. Raises ValueError for a single kind of token.
    """
    kinds: dict[str, KindMeasures] = {}
    layers = find_layers(opened.decoder, int(opened.decoder.config.num_hidden_layers))
    matrices = list_matrices(layers)
    has_media = bool(given.files)
    for file in given.files:
        tell(f"reading {file.name}")
        read = opened.read_prompt(given.prompt, [file], given.answer or "-", "text")
        at = {file.modality: read.spans[0].at.tolist()}
        at["text"] = [n for n, row in enumerate(read.ids.tolist()) if row < opened.text.size and n >= read.first]
        _gather(opened, read.ids, at, kinds, matrices)
    texts = {} if has_media and not given.texts else choose_texts(given)
    for name, text in texts.items():
        tell(f"reading {name}")
        whole = opened.read_text(text, given.num_tokens)
        _gather(
            opened, whole.ids, {"text" if has_media else name: list(range(whole.first, len(whole)))}, kinds, matrices
        )
    if len(kinds) < 2:
        raise ValueError("there is one kind of token only; give media, or two texts of different kinds")
    tell("comparing weights")
    names = list(kinds)
    pairs = [(a, b) for number, a in enumerate(names) for b in names[number + 1 :]]
    depths = {name: kind.depths for name, kind in kinds.items()}
    curves = {f"{a} – {b}": [compare_tokens(x, y) for x, y in zip(depths[a], depths[b], strict=True)] for a, b in pairs}
    overlaps = _compare_weights(kinds, matrices, pairs, given.seed)
    sections: dict[str, Section] = {
        "kinds": {name: _describe_kind(depths[name]) for name in names},
        "alignment": {
            pair: {
                "mean of tokens, embeddings": rows[0]["mean of tokens"],
                "mean of tokens, all depths": float(np.mean([row["mean of tokens"] for row in rows])),
                "greatest": max(row["mean of tokens"] for row in rows),
                "at depth": int(np.argmax([row["mean of tokens"] for row in rows])),
                "median token, all depths": float(np.mean([row["median"] for row in rows])),
            }
            for pair, rows in curves.items()
        },
        **({"overlap of used weights": _describe_overlaps(overlaps)} if overlaps else {}),
    }
    arrays: dict[str, object] = {"similarity by depth": curves, "overlap by matrix": overlaps}

    def draw(figure: Figure) -> None:
        _draw(figure, depths, curves, overlaps)

    return InspectionReport(sections, draw, arrays, (12.0, 4.5))


def _gather(
    opened: OpenedModel,
    ids: Tensor,
    places: Mapping[str, Sequence[int]],
    kinds: dict[str, KindMeasures],
    matrices: Mapping[str, tuple[nn.Module, bool]],
) -> None:
    """Reads ids [N] and adds what their tokens of each kind show."""
    chosen = {name: torch.tensor(list(at)) for name, at in places.items() if len(at)}

    def measure(name: str, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().float()
        if x.dim() != 3 or x.shape[1] != len(ids):  # an expert, which sees tokens of all kinds in an order of its own
            return
        for kind, at in chosen.items():
            lengths = kinds.setdefault(kind, KindMeasures()).lengths
            squares = x[0, at.to(x.device)].square().sum(0).cpu()
            lengths[name] = lengths[name] + squares if name in lengths else squares

    with ExitStack() as stack, torch.inference_mode():
        for name, (module, _) in matrices.items():
            hook = module.register_forward_pre_hook(lambda _, inputs, name=name: measure(name, inputs))
            stack.callback(hook.remove)
        states = watch(opened.decoder, ids[None], attention=False).states
    for kind, at in chosen.items():
        kinds.setdefault(kind, KindMeasures()).add([state[0, at.to(state.device)] for state in states])


def _compare_weights(
    kinds: Mapping[str, KindMeasures],
    matrices: Mapping[str, tuple[nn.Module, bool]],
    pairs: Sequence[tuple[str, str]],
    seed: int,
) -> dict[str, dict[str, float]]:
    """Matrix → pair → overlap of the weights that both use; and beside it what the weights' sizes alone give."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, dict[str, float]] = {}
    for name, (module, turned) in matrices.items():
        if any(name not in kind.lengths for kind in kinds.values()):
            continue
        weight = module.weight.detach().cpu()
        weight = weight.T if turned else weight
        masks = {kind: mark_used(weight, measures.lengths[name]) for kind, measures in kinds.items()}
        row = {f"{a} – {b}": overlap_masks(masks[a], masks[b]) for a, b in pairs}
        first = kinds[pairs[0][0]].lengths[name]
        shuffled = mark_used(weight, first[torch.randperm(len(first), generator=generator)])
        row["shuffled inputs"] = overlap_masks(masks[pairs[0][0]], shuffled)
        found[name] = row
    return found


def _describe_kind(depths: Sequence[Tensor]) -> Section:
    steps = [
        float(nn.functional.cosine_similarity(one, two, dim=-1).median())
        for one, two in zip(depths, depths[1:], strict=False)
    ]
    middle = depths[len(depths) // 2]
    return {
        "tokens": len(depths[0]),
        "length, embeddings": float(depths[0].norm(dim=-1).mean()),
        "length, middle": float(middle.norm(dim=-1).mean()),
        "alike to the next layer": float(np.mean(steps)) if steps else 1.0,
        "alike among themselves, middle": compare_tokens(middle, middle)["median"],
    }


def _describe_overlaps(overlaps: Mapping[str, Mapping[str, float]]) -> Section:
    columns = list(next(iter(overlaps.values())))
    values = {column: [row[column] for row in overlaps.values()] for column in columns}
    return {
        column: {"matrices": len(found), "mean": float(np.mean(found)), "least": min(found), "most": max(found)}
        for column, found in values.items()
    }


def _draw(
    figure: Figure,
    depths: Mapping[str, Sequence[Tensor]],
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    overlaps: Mapping[str, Mapping[str, float]],
) -> None:
    left, middle, right = figure.subplots(1, 3)
    for name, states in depths.items():
        left.plot([float(state.norm(dim=-1).mean()) for state in states], "-o", markersize=3, label=name)
    left.set(title="length of tokens", xlabel="depth")
    scale_by_powers(left)
    left.legend(fontsize=7)
    for pair, rows in curves.items():
        middle.plot([row["mean of tokens"] for row in rows], "-o", markersize=3, label=pair)
    middle.set(title="cosine of mean tokens", xlabel="depth")
    middle.legend(fontsize=7)
    for column in next(iter(overlaps.values()), {}):
        by_layer: dict[int, list[float]] = {}
        for name, row in overlaps.items():
            by_layer.setdefault(int(name.split(".")[0]), []).append(row[column])
        style = "--" if column.startswith("shuffled") else "-o"
        right.plot(
            list(by_layer), [float(np.mean(row)) for row in by_layer.values()], style, markersize=3, label=column
        )
    right.set(title="overlap of used weights", xlabel="layer", ylim=(0, 1))
    right.legend(fontsize=7)
    for axes in (left, middle, right):
        count_in_whole_numbers(axes, "x")
