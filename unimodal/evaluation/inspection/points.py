"""Where the token that asks for a mask looks in a picture: its similarity to the picture's tokens, and points from it
(READ, arXiv 2412.17741).

READ finds that the state of `<SEG>` in the last layer is like the states of those picture tokens that show what it is
to segment, and gives the most and least similar places as points. Here the token is `<|mask_start|>` or `<|box_start|>`
of the answer or, where the answer has neither, the token that the answer is written from. The similarity is the product
of the states, as in the authors' code; the cosine, as their text calls it, is the option `cosine`. Codes in raster
order lie where they are; of others a place gets the mean of the codes that show there (`media_maps.py`).

If the model marks something, the report says how well each layer tells its pixels from the others: the area under the
ROC curve, 0.5 for chance. Every layer is looked at, the authors look at the last.

Shapes: N tokens, M codes of a picture, D width, H and W height and width, P points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate, normalize

from unimodal.evaluation.inspection.forward import watch
from unimodal.evaluation.inspection.media_maps import CodePlaces, MediaMap, draw_map, find_places
from unimodal.evaluation.inspection.opened import OpenedModel, ReadSequence
from unimodal.evaluation.inspection.report import InspectionInput, InspectionReport, Tell
from unimodal.text.reports.report import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAINT = 0.2  # of the mean influence on a place: where codes show less, they say little
ASKING = ("<|mask_start|>", "<|box_start|>")


@dataclass(frozen=True)
class PointSettings:
    """points: at most so many. above, below: of the map from 0 to 1, what is a positive and a negative point. shrink:
    the map is first made so many times smaller. The defaults are those of the authors' 7B model."""

    points: int = 30
    above: float = 0.8
    below: float = 0.2
    shrink: int = 2

    def __post_init__(self) -> None:
        if self.points < 1 or self.shrink < 1 or not 0 <= self.below < self.above <= 1:
            raise ValueError(
                f"points {self.points}, shrink {self.shrink}, below {self.below:g} and above {self.above:g}: give 1 or "
                "more of the first two, and 0 ≤ below < above ≤ 1"
            )


def compare_states(states: Tensor, query: int, at: np.ndarray, cosine: bool = False) -> Tensor:
    """How alike the state of token `query` and those of a picture's tokens are, float32 [M]. states: [N, D]."""
    states = states.float()
    if cosine:
        states = normalize(states, dim=-1)
    return states[torch.from_numpy(at)] @ states[query]


def find_points(
    similarity: Tensor, size: tuple[int, int], settings: PointSettings | None = None
) -> tuple[Tensor, Tensor]:
    """A map float [h, w] over a picture of `size` pixels (height, width) → points [P, 2], x and y, and labels [P]:
    1 positive, 0 negative, -1 between.

    Positive ones come first, the most similar first, then negative ones, the least similar first, then those between.
    Each is moved by the mean of the map around it, weighted with exp(-d²).
    """
    settings = settings or PointSettings()
    height, width = size
    h, w = (max(1, side // settings.shrink) for side in similarity.shape)
    small = _stretch_to_unit(interpolate(similarity[None, None].float(), (h, w), mode="bilinear")[0, 0])
    flat = small.flatten()
    positive, negative = flat >= settings.above, flat <= settings.below
    between = ~positive & ~negative
    order = torch.cat([
        _sort(flat, positive, descending=True), _sort(flat, negative, descending=False), between.nonzero().flatten(),
    ])[: settings.points]  # fmt: skip
    labels = torch.where(positive[order], 1, torch.where(negative[order], 0, -1))
    x = ((order % w + 0.5) * width / w).clamp(max=width - 1).floor()
    y = ((order // w + 0.5) * height / h).clamp(max=height - 1).floor()
    fine = _stretch_to_unit(interpolate(similarity[None, None].float(), size, mode="bilinear")[0, 0])
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([columns.flatten(), rows.flatten()], 1).float()  # [H·W, 2]
    distance = torch.cdist(torch.stack([x, y], 1), places).square()  # [P, H·W]
    weights = torch.softmax(fine.flatten() - distance, dim=1)
    return weights @ places, labels


def measure_separation(heat: np.ndarray, mask: np.ndarray) -> float:
    """The area under the ROC curve of telling the pixels of a mask by a map, both [H, W]; ties count a half.

    NaN for a mask of nothing or of everything.
    """
    inside, outside = np.sort(heat[mask]), np.sort(heat[~mask])
    if not len(inside) or not len(outside):
        return float("nan")
    below = np.searchsorted(outside, inside, "left") + np.searchsorted(outside, inside, "right")
    return float(below.sum() / (2 * len(inside) * len(outside)))


def find_query(read: ReadSequence) -> int:
    """The token that asks for a mask or box, or that the answer is written from."""
    asking = [at for at in range(read.answer, len(read)) if read.labels[at] in ASKING]
    return asking[0] if asking else read.answer - 1


def report_points(opened: OpenedModel, given: InspectionInput, tell: Tell) -> InspectionReport:
    """Where in the first picture the asking token looks, layer by layer.

    Settings: those of `PointSettings`, and `cosine` (1: of the states' directions). Raises ValueError for a model or a
    prompt without pictures, and for codes that have no place.
    """
    settings = PointSettings(
        **{name: given.settings[name] for name in PointSettings.__annotations__ if name in given.settings}  # type: ignore[arg-type]
    )
    tell("reading")
    read = opened.read_prompt(given.prompt, given.files, given.answer, given.to)
    pictures = [span for span in read.spans if span.modality == "image" and span.at.max() < read.answer]
    if not pictures:
        raise ValueError("there is no picture in the prompt; give one by --file")
    picture, query = pictures[0], find_query(read)
    tell("looking")
    with torch.inference_mode():
        states = [state[0] for state in watch(opened.decoder, read.ids[None], attention=False).states]
    cosine = bool(given.settings.get("cosine", 0))
    places = find_places(opened, picture, given.seed)
    if places is None:
        raise ValueError(f"the codes of {opened.name}'s pictures have no place in them, so nothing can be shown there")
    maps = [_map_means(places, compare_states(state, query, picture.at, cosine)) for state in states]
    last = maps[-1]
    size = (last.medium.shape[-2], last.medium.shape[-1])
    side = max(1, int(len(picture.at) ** 0.5))
    grid = adaptive_avg_pool2d(torch.from_numpy(last.heat)[None].float(), (side, side))[0]
    points, labels = find_points(grid, size, settings)
    mask = _find_mask(opened, read, size)
    separations = [measure_separation(one.heat, mask) for one in maps] if mask is not None else []
    sections: dict[str, Section] = {
        "answer": {
            "model": opened.name,
            "asking token": f"{query} {read.labels[query]!r}",
            "positive points": int((labels == 1).sum()),
            "negative points": int((labels == 0).sum()),
            **(_describe_mask(mask, points, labels) if mask is not None else {}),
        },
        "most similar places": {
            f"point {number + 1}": {"x": float(point[0]), "y": float(point[1])}
            for number, (point, label) in enumerate(zip(points, labels, strict=True))
            if label == 1
        },
    }
    if separations:
        sections["area under the curve"] = {
            f"after layer {layer}" if layer else "embeddings": value for layer, value in enumerate(separations)
        }
    arrays: dict[str, object] = {
        "map": last.heat.tolist(),
        "points": points.tolist(),
        "labels": labels.tolist(),
        "separations": separations,
    }

    def draw(figure: Figure) -> None:
        _draw(figure, last, points, labels, mask, separations)

    return InspectionReport(sections, draw, arrays, (12.0, 4.5))


def _stretch_to_unit(values: Tensor) -> Tensor:
    """From 0 to 1; of a constant map 0 everywhere."""
    low, high = values.aminmax()
    return (values - low) / (high - low).clamp_min(1e-12)


def _sort(values: Tensor, chosen: Tensor, descending: bool) -> Tensor:
    """The numbers of the chosen values, sorted by value."""
    numbers = chosen.nonzero().flatten()
    return numbers[values[numbers].argsort(descending=descending, stable=True)]


def _map_means(places: CodePlaces, scores: Tensor) -> MediaMap:
    """The mean score of the codes that show at each place; where next to none does, it is near the mean of all."""
    found = places.map(scores.cpu().numpy())
    evenly = places.map(np.ones(len(scores), np.float32)).heat
    weight = FAINT * float(evenly.mean())  # of the mean of all codes at every place
    means = (found.heat + weight * float(scores.mean())) / (evenly + weight)
    return MediaMap(found.modality, found.medium, means)


def _find_mask(opened: OpenedModel, read: ReadSequence, size: tuple[int, int]) -> np.ndarray | None:
    """What the answer marks first, bool [H, W]; None if it marks nothing."""
    model = opened.loaded
    marked = [span for span in read.spans if span.modality in ("mask", "box") and span.at.min() >= read.answer]
    if model is None or not marked:
        return None
    [medium] = model.coder.decode(marked[0].modality, [marked[0].part.require_codes()], [None])
    height, width = size
    if marked[0].modality == "mask":
        return (interpolate(medium[None].float(), size, mode="bilinear")[0, 0] > 0.5).cpu().numpy()
    left, top, right, bottom = medium.flatten().tolist()
    mask = np.zeros(size, bool)
    mask[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
    return mask


def _describe_mask(mask: np.ndarray, points: Tensor, labels: Tensor) -> Section:
    """Whether positive points lie in what is marked, and negative ones outside, beside the share that is marked."""
    columns = points[:, 0].round().long().clamp(0, mask.shape[1] - 1)
    rows = points[:, 1].round().long().clamp(0, mask.shape[0] - 1)
    inside = torch.from_numpy(mask)[rows, columns].float()
    found: Section = {"marked of the picture": float(mask.mean())}
    for name, label in (("positive", 1), ("negative", 0)):
        if bool((labels == label).any()):
            found[f"{name} points in what is marked"] = float(inside[labels == label].mean())
    return found


def _draw(
    figure: Figure, last: MediaMap, points: Tensor, labels: Tensor, mask: np.ndarray | None, separations: list[float]
) -> None:
    grid = figure.add_gridspec(1, 3 if separations else 2)
    picture = last.medium if last.medium.dim() == 3 else last.medium[0]
    plain = figure.add_subplot(grid[0])
    plain.imshow(picture.permute(1, 2, 0).clamp(0, 1).numpy())
    plain.set_axis_off()
    plain.set_title("picture" if mask is None else "picture, and what is marked")
    if mask is not None and mask.any() and not mask.all():
        plain.contour(mask, levels=[0.5], colors="black", linewidths=2)
    shown = figure.add_subplot(grid[1])
    draw_map(shown, MediaMap(last.modality, last.medium, last.heat - last.heat.mean()), "similarity, last layer")
    for label, colour, marker in ((1, "black", "+"), (0, "black", ".")):
        chosen = points[labels == label]
        shown.scatter(chosen[:, 0], chosen[:, 1], c=colour, marker=marker, s=60 if label else 12)
    if separations:
        axes = figure.add_subplot(grid[2])
        axes.plot(range(len(separations)), separations, marker="o")
        axes.axhline(0.5, color="grey", linestyle=":")
        axes.set(xlabel="layer", ylabel="area under the curve", ylim=(0, 1), title="tells what is marked")
