"""Scores of a medium's codes, put back where they belong: onto the picture, along the sound, over the frames.

Codes in raster order lie where they are; those of a sound follow its time. Codes of other orders (coarse to fine, a
global code) have no place of their own: such a code counts wherever the decoded medium changes when that code alone is
another one of its block.

Legend: M codes of a span, N code steps, G groups, T frames or samples, H and W height and width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from unimodal.evaluation.inspection.opened import MediaSpan, OpenedModel
from unimodal.pipeline.rows import list_runs
from unimodal.pipeline.unimodal import Unimodal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DECODED_TOGETHER = 32
SOUND_BINS = 64  # of the frequencies of a drawn sound


@dataclass(frozen=True, eq=False)
class MediaMap:
    """A medium and the scores over it. medium: [3, H, W], [T] or [T, 3, H, W]. heat: [H, W], [T] or [T, H, W]."""

    modality: str
    medium: Tensor
    heat: np.ndarray


@dataclass(frozen=True, eq=False)
class CodePlaces:
    """Where the codes of a span lie in its medium, found once for any scores.

    runs: (first step, step behind the last, grid) of codes that lie where they are; of a sound one run over its time.
    loose, influence: code steps without a place, and where each shows, [steps, T, H, W].
    """

    modality: str
    medium: Tensor
    num_steps: int
    size: tuple[int, int, int]
    runs: list[tuple[int, int, tuple[int, int, int]]]
    loose: list[int]
    influence: np.ndarray | None

    def map(self, scores: np.ndarray) -> MediaMap:
        """Scores of the codes [M] over the medium; their sum is kept."""
        steps = scores.reshape(self.num_steps, -1).sum(1)  # [N]
        heat = np.zeros(self.size)
        for start, stop, grid in self.runs:
            heat += _stretch(steps[start:stop].reshape(grid), self.size)
        if self.influence is not None:
            heat += np.tensordot(steps[self.loose], self.influence, 1)
        if self.modality == "audio":
            return MediaMap("audio", self.medium, heat[:, 0, 0])
        return MediaMap(self.modality, self.medium, heat[0] if self.medium.dim() == 3 else heat)


def find_places(
    opened: OpenedModel, span: MediaSpan, seed: int = 0, most_decoded: int | None = None
) -> CodePlaces | None:
    """Where the codes of a span lie in its medium.

    most_decoded: codes without a place of their own, at most, for each of which a medium is decoded. None where codes
    have no place: media read through features, codes in a pattern, tokenizers that cannot decode, and more such codes.
    """
    model = opened.loaded
    if model is None or span.part.codes is None:
        return None
    codes = span.part.require_codes()
    if codes.size != len(span.at) or model.vocabulary.get_layout(span.modality).pattern is not None:
        return None
    medium = span.tensor if span.tensor is not None else _decode(model, span)
    if medium is None:
        return None
    count = len(codes)
    if span.modality == "audio":
        runs = [(0, count, (count, 1, 1))]
        return CodePlaces("audio", medium, count, (len(medium), 1, 1), runs, [], None)
    if medium.dim() < 3:  # four numbers of a box
        return None
    frames = medium if medium.dim() == 4 else medium[None]
    size = (frames.shape[0], frames.shape[2], frames.shape[3])
    placed: list[tuple[int, int, tuple[int, int, int]]] = []
    loose: list[int] = []
    for run in list_runs(
        model, span.modality, count, _find_grid(model, span, medium), _find_order(model, span, medium)
    ):
        stop = run["start"] + run["count"]
        if run["grid"] is None:
            loose += range(run["start"], stop)
        else:
            t, h, w = run["grid"]
            placed.append((run["start"], stop, (t, h, w)))
    if most_decoded is not None and len(loose) > most_decoded:
        return None
    influence = measure_influence(model, span, loose, seed) if loose else None
    if loose and (influence is None or influence.shape[1:] != size):  # it decodes to another size than it reads
        return None
    shown = None if influence is None else influence.reshape(len(loose), *size)
    return CodePlaces(span.modality, medium, count, size, placed, loose, shown)


def map_scores(
    opened: OpenedModel, span: MediaSpan, scores: np.ndarray, seed: int = 0, most_decoded: int | None = None
) -> MediaMap | None:
    """The scores [M] of a span's codes over its medium, as `find_places` finds them; None where they have no place."""
    places = find_places(opened, span, seed, most_decoded) if len(scores) == len(span.at) else None
    return None if places is None else places.map(scores)


def measure_influence(model: Unimodal, span: MediaSpan, steps: list[int], seed: int = 0) -> np.ndarray | None:
    """Where each of these code steps shows in the decoded medium, [steps, T, H, W] or [steps, T]; each sums to 1.

    None for a tokenizer without a decoder.
    """
    if not model.coder.can_decode(span.modality):
        return None
    codes = span.part.require_codes()
    table = codes.reshape(len(codes), -1)
    sizes = _list_block_sizes(model, span.modality, len(codes))  # [N, G]
    generator = np.random.default_rng(seed)
    others = []
    for step in steps:
        changed = table.copy()
        changed[step] = (table[step] + generator.integers(1, np.maximum(sizes[step], 2))) % sizes[step]
        others.append(changed.reshape(codes.shape))
    found: list[np.ndarray] = []
    [plain] = model.coder.decode(span.modality, [codes], [span.part.grid])
    for start in range(0, len(others), DECODED_TOGETHER):
        batch = others[start : start + DECODED_TOGETHER]
        for medium in model.coder.decode(span.modality, batch, [span.part.grid] * len(batch)):
            change = (medium - plain).abs()
            change = change.mean(-3) if change.dim() >= 3 else change
            found.append((change if change.dim() != 2 else change[None]).numpy())
    influence = np.stack(found)
    totals = influence.reshape(len(found), -1).sum(1).reshape(-1, *[1] * (influence.ndim - 1))
    flat = np.ones_like(influence) / influence[0].size  # a code without any effect is everywhere alike
    return np.where(totals > 0, influence / np.maximum(totals, 1e-12), flat)


def _list_block_sizes(model: Unimodal, modality: str, num_steps: int) -> np.ndarray:
    """The number of values of each code, int64 [N, G]."""
    layout = model.vocabulary.get_layout(modality)
    rows: list[list[int]] = []
    for segment in layout.segments:
        count = num_steps - layout.fixed_steps if segment.count is None else segment.count
        rows += [[block.size for block in model.vocabulary.group_blocks(segment.block)]] * count
    return np.array(rows)


def _decode(model: Unimodal, span: MediaSpan) -> Tensor | None:
    """The medium of a span that the model wrote."""
    if not model.coder.can_decode(span.modality):
        return None
    [medium] = model.coder.decode(span.modality, [span.part.require_codes()], [span.part.grid])
    return medium


def _find_grid(model: Unimodal, span: MediaSpan, medium: Tensor) -> list[int] | None:
    if span.part.grid is not None:
        return [1, *span.part.grid]
    codes = model.coder.encode_batch(span.modality, [medium])
    return None if codes.grid is None else [int(side) for side in codes.grid]


def _find_order(model: Unimodal, span: MediaSpan, medium: Tensor) -> str:
    return "raster" if span.part.grid is not None else model.coder.encode_batch(span.modality, [medium]).order


def _stretch(grid: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """A grid [t, h, w] over `size` places, by nearest cells; the sum is kept."""
    index = [np.arange(wide) * have // wide for have, wide in zip(grid.shape, size, strict=True)]
    counts = [np.maximum(np.bincount(at, minlength=have), 1) for at, have in zip(index, grid.shape, strict=True)]
    share = grid / (counts[0][:, None, None] * counts[1][None, :, None] * counts[2][None, None])
    return share[np.ix_(*index)]


def paint_map(found: MediaMap) -> np.ndarray:
    """The medium in grey with its positive heat in red, uint8 [H, W, 3]: a picture, frames side by side, or a sound's
    spectrogram with low tones at the bottom."""
    if found.modality == "audio":
        power = measure_spectrum(found.medium.flatten().float()).flip(0)  # [bins, columns]
        low, high = power.aminmax()
        grey = 1 - 0.8 * ((power - low) / (high - low).clamp_min(1e-12)).numpy()
        columns = np.linspace(0, len(found.heat), grey.shape[1] + 1).astype(int)
        sums = np.add.reduceat(np.maximum(found.heat, 0), np.minimum(columns[:-1], len(found.heat) - 1))
        heat = np.repeat(sums[None], len(grey), 0)
    else:
        frames = found.medium if found.medium.dim() == 4 else found.medium[None]
        chosen = choose_frames(len(frames))
        grey = 0.7 * np.concatenate([frames[at].mean(0).clamp(0, 1).numpy() for at in chosen], 1) + 0.3
        each = found.heat if found.heat.ndim == 3 else found.heat[None]
        heat = np.maximum(np.concatenate([each[at] for at in chosen], 1), 0)
    strength = 0.85 * (heat / max(float(heat.max()), 1e-12)) ** 0.6
    red = np.array([0.8, 0.05, 0.1])
    mixed = grey[..., None] * (1 - strength[..., None]) + red * strength[..., None]
    painted: np.ndarray = (255 * mixed).round().clip(0, 255).astype(np.uint8)
    return painted


def choose_frames(count: int) -> list[int]:
    """The numbers of at most six frames, evenly spread, the first and the last among them."""
    found: list[int] = np.unique(np.linspace(0, count - 1, min(count, 6)).round().astype(int)).tolist()
    return found


def draw_map(axes: Axes, found: MediaMap, title: str) -> None:
    """The medium, and its heat over it: a picture, a spectrogram, or the frames in a row."""
    if found.modality == "audio":
        _draw_sound(axes, found)
    else:
        frames = found.medium if found.medium.dim() == 4 else found.medium[None]
        heat = found.heat if found.heat.ndim == 3 else found.heat[None]
        chosen = choose_frames(len(frames))
        picture = np.concatenate([frames[at].permute(1, 2, 0).clamp(0, 1).numpy() for at in chosen], 1)
        over = np.concatenate([heat[at] for at in chosen], 1)
        grey = picture.mean(-1, keepdims=True).repeat(3, -1)
        axes.imshow(0.7 * grey + 0.3)
        span = max(float(np.abs(over).max()), 1e-12)
        axes.imshow(over, cmap="RdBu_r", vmin=-span, vmax=span, alpha=0.6)
        axes.set_axis_off()
    axes.set_title(title)


def _draw_sound(axes: Axes, found: MediaMap) -> None:
    samples = found.medium.flatten().float()
    shown = measure_spectrum(samples)
    axes.imshow(shown.numpy(), origin="lower", aspect="auto", cmap="Greys", extent=(0, len(samples), 0, 1))
    span = max(float(np.abs(found.heat).max()), 1e-12)
    axes.imshow(
        found.heat[None], origin="lower", aspect="auto", cmap="RdBu_r", vmin=-span, vmax=span, alpha=0.5,
        extent=(0, len(samples), 0, 1),
    )  # fmt: skip
    axes.set(yticks=[], xlabel="samples")


def measure_spectrum(samples: Tensor) -> Tensor:
    """The logarithm of a sound's power, float [bins, columns], low tones first. samples: float [T]; a sound that is
    shorter than a window is followed by silence."""
    width = 4 * SOUND_BINS
    samples = torch.nn.functional.pad(samples, (0, max(0, 2 * width - len(samples))))
    window = torch.hann_window(2 * width)
    power = torch.stft(samples, 2 * width, width // 2, window=window, return_complex=True).abs().square()
    return power[1 : width + 1].reshape(SOUND_BINS, -1, power.shape[1]).mean(1).clamp_min(1e-10).log10()
