"""A tokenizer's codes as a language: do they name an item, do alike items have alike messages, do symbols tell classes?

An item's *message* is its codes. In a referential game a listener is told the message of one view of an item and picks
the item among others, of which it sees the messages of other views: first by the codes themselves, the nearest message
wins, and then by a language of a few symbols that two small networks make up over the codes (`game.py`). With classes
(the names of the files' folders) the target may be another item of the class, as in within-class matching. Topographic
similarity is the rank correlation of distances between items with distances between their messages (Brighton and Kirby,
2006; arXiv 1804.03984). Classes are told from symbols by naive Bayes, each item held out once; the authors use random
forests and a translation network (Kubricht et al., arXiv 2309.06335).

Views are cut and lit a little differently; sounds are moved and quieter. Items are compared by their small pictures
(spectra, for sounds), not by a network's features.

Shapes: I items, M codes of an item, S symbols, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from unimodal.evaluation.inspection.game import GameSettings, play
from unimodal.evaluation.inspection.opened import OpenedModel
from unimodal.evaluation.inspection.report import InspectionInput, InspectionReport, Tell
from unimodal.pipeline.unimodal import Unimodal
from unimodal.sequence.document import Media
from unimodal.text.reports.report import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_ITEMS = 8
CANDIDATES = 8  # of a game: the target and seven others
VIEWS = 2  # of each side, to train on
HELD_OUT = 4  # every fourth item is not trained on


def make_view(medium: Tensor, generator: torch.Generator) -> Tensor:
    """The same thing seen otherwise: [3, H, W], [T, 3, H, W] or [T] → the same shape."""
    draw = torch.rand(4, generator=generator)
    if medium.dim() == 1:
        moved = torch.roll(medium, int((draw[0] - 0.5) * 0.1 * len(medium)))
        noise = torch.randn(medium.shape, generator=generator) * 0.003
        return (moved * (0.7 + 0.3 * draw[1]) + noise).clamp(-1, 1)
    height, width = medium.shape[-2:]
    share = 0.85 + 0.15 * float(draw[0])
    top, left = (int(float(draw[n + 1]) * (1 - share) * side) for n, side in enumerate((height, width)))
    cut = medium[..., top : top + int(share * height), left : left + int(share * width)]
    frames = cut if cut.dim() == 4 else cut[None]
    whole = nn.functional.interpolate(frames, (height, width), mode="bilinear", align_corners=False)
    lit = (whole * (0.9 + 0.2 * draw[3])).clamp(0, 1)
    return lit if medium.dim() == 4 else lit[0]


def describe_item(medium: Tensor) -> Tensor:
    """What an item is compared by: a picture of 8×8, of a sound the mean of 32 bands, as one vector."""
    if medium.dim() == 1:
        power = torch.stft(medium, 512, 256, window=torch.hann_window(512), return_complex=True).abs()
        return power[1:257].reshape(32, 8, -1).mean((1, 2)).log1p()
    frames = medium if medium.dim() == 4 else medium[None]
    return nn.functional.interpolate(frames, (8, 8), mode="area").mean(0).flatten()


def rank(values: np.ndarray) -> np.ndarray:
    """The ranks of values, equal ones sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return ((ends - counts + ends - 1) / 2)[inverse]


def measure_topography(meanings: np.ndarray, messages: np.ndarray) -> float:
    """Spearman's correlation of distances [I, I] of items and of their messages, over all pairs."""
    pairs = np.triu_indices(len(meanings), 1)
    one, two = rank(meanings[pairs]), rank(messages[pairs])
    if one.std() == 0 or two.std() == 0:
        return 0.0
    return float(np.corrcoef(one, two)[0, 1])


def compare_messages(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Messages [I, M] and [J, M] → the share of places where they differ, [I, J]."""
    return (one[:, None] != two[None]).mean(-1)


def guess_targets(distances: np.ndarray, generator: np.random.Generator, targets: Sequence[Sequence[int]]) -> float:
    """The share of games that the nearest candidate wins, over all speakers.

    distances: [I, J] of what speaker i says to candidate j. targets: what counts as right for each speaker; the others
    are drawn from the rest. A tie counts its share.
    """
    won = []
    for speaker, right in enumerate(targets):
        others = [at for at in range(distances.shape[1]) if at not in right and at != speaker]
        if not right or not others:
            continue
        target = int(generator.choice(list(right)))
        drawn = generator.choice(others, min(CANDIDATES - 1, len(others)), replace=False)
        best = distances[speaker, [target, *drawn]]
        won.append((best[0] == best.min()) / (best == best.min()).sum())
    return float(np.mean(won)) if won else 0.0


def classify_held_out(messages: np.ndarray, classes: np.ndarray, num_values: int) -> float:
    """The share of items whose class naive Bayes tells from the other items' symbols; messages [I, S]."""
    right = []
    names = np.unique(classes)
    for item in range(len(messages)):
        rest = np.arange(len(messages)) != item
        scores = []
        for name in names:
            own = messages[rest & (classes == name)]
            counts = (own == messages[item]).sum(0)
            scores.append(np.log(len(own) + 1) + np.log((counts + 1) / (len(own) + num_values)).sum())
        right.append(names[int(np.argmax(scores))] == classes[item])
    return float(np.mean(right))


def report_codes(opened: OpenedModel, given: InspectionInput, tell: Tell) -> InspectionReport:
    """The codes of eight items or more of one kind as a language, and one that is made up over them.

    Settings: `symbols`, `values`, `steps` of the game. Raises ValueError for a model without tokenizers, for fewer
    items, and for items of several kinds.
    """
    model = opened.loaded
    if model is None:
        raise ValueError(f"{opened.name} has no tokenizer of media, whose codes this report is about")
    kinds = {file.modality for file in given.files}
    if len(given.files) < LEAST_ITEMS or len(kinds) > 1:
        raise ValueError(f"give {LEAST_ITEMS} media or more, all of one kind")
    [modality] = kinds
    if modality not in model.vocabulary.media:
        raise ValueError(f"{opened.name} has no {modality}; it has {', '.join(model.vocabulary.media)}")
    tell("encoding")
    media = [model.coder.read_part(file) for file in given.files]
    plain, speakers, listeners = _encode_views(model, modality, media, given.seed)
    classes = _find_classes(given.files)
    num_values = 1 + int(max(plain.max(), speakers.max(), listeners.max()))
    described = torch.stack([describe_item(medium) for medium in media])
    meanings = torch.cdist(described, described).numpy()
    generator = np.random.default_rng(given.seed)
    tell("playing")
    changed = {name: int(given.settings[name]) for name in ("symbols", "values", "steps") if name in given.settings}
    settings = GameSettings(**changed)
    if min(settings.symbols, settings.steps) < 1 or settings.values < 2:
        raise ValueError("symbols and steps are at least 1, values at least 2")
    held = np.arange(len(media)) % HELD_OUT == HELD_OUT - 1
    train = torch.from_numpy(np.flatnonzero(~held))
    speaker, listener = play(speakers[:, train], listeners[:, train], num_values, settings, given.seed)
    with torch.inference_mode():
        made = speaker(plain).argmax(-1).numpy()
        fits = -listener(speaker(speakers[0]), listeners[0]).numpy()
    table: dict[str, Section] = {}
    for name, messages, distances, values in (
        (
            "codes of the tokenizer",
            plain.numpy(),
            compare_messages(speakers[0].numpy(), listeners[0].numpy()),
            num_values,
        ),
        ("language made up over them", made, fits, settings.values),
    ):
        own = [[item] for item in range(len(media))]
        row: Section = {
            "symbols": messages.shape[1],
            "values used": len(np.unique(messages)),
            "different messages": len(np.unique(messages, axis=0)),
            "bits a symbol": _measure_entropy(messages),
            "topographic similarity": measure_topography(meanings, compare_messages(messages, messages)),
            f"right of {min(CANDIDATES, len(media))}": guess_targets(distances, generator, own),
            "right, items not trained on": guess_targets(
                distances, generator, [one if held[item] else [] for item, one in enumerate(own)]
            ),
        }
        if classes is not None:
            mates = [[int(at) for at in np.flatnonzero(classes == kind) if at != n] for n, kind in enumerate(classes)]
            row["right, another of the class"] = guess_targets(distances, generator, mates)
            row["class from symbols"] = classify_held_out(messages, classes, values)
        table[name] = row
    sections: dict[str, Section] = {
        "items": {
            "model": opened.name,
            "kind": modality,
            "items": len(media),
            "classes": 0 if classes is None else len(np.unique(classes)),
            "chance in a game": 1 / min(CANDIDATES, len(media)),
        },
        "languages": dict(table),
    }
    arrays: dict[str, object] = {
        "messages": {str(file.name): row.tolist() for file, row in zip(given.files, made, strict=True)}
    }

    def draw(figure: Figure) -> None:
        _draw(figure, meanings, {"codes": plain.numpy(), "made up": made})

    return InspectionReport(sections, draw, arrays, (10.0, 4.5))


def _encode_views(model: Unimodal, modality: str, media: Sequence[Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The codes of the items, int64 [I, M], and of views of them for speaker and listener, [views, I, M].

    Codes of several blocks are told apart; sounds of several lengths are cut to the shortest.
    """
    generator = torch.Generator().manual_seed(seed)
    sets = [media, *([make_view(medium, generator) for medium in media] for _ in range(2 * VIEWS))]
    coded = [model.coder.encode(modality, items) for items in sets]
    shortest = min(len(row) for rows in coded for row in rows)
    tables = []
    for rows in coded:
        # the first of them: their rows in the vocabulary tell blocks and groups apart
        whole = [np.array(model.vocabulary.encode_span(modality, row)) for row in rows]
        codes = [np.array([at for at in row.tolist() if model.vocabulary.find_block(at) is not None]) for row in whole]
        groups = len(codes[0]) // len(rows[0])
        tables.append(torch.from_numpy(np.stack([row[: shortest * groups] for row in codes])))
    values = torch.unique(torch.cat([table.flatten() for table in tables]))
    found = [torch.searchsorted(values, table) for table in tables]
    return found[0], torch.stack(found[1 : 1 + VIEWS]), torch.stack(found[1 + VIEWS :])


def _find_classes(files: Sequence[Media]) -> np.ndarray | None:
    """The folders' names as classes; None unless there are two or more with two items or more."""
    names = [Path(file.path).resolve().parent.name if file.path else "" for file in files]
    counts = [names.count(name) for name in set(names)]
    return np.array(names) if len(counts) > 1 and max(counts) > 1 else None


def _measure_entropy(messages: np.ndarray) -> float:
    """The mean entropy of a place of the messages over all items, in bits."""
    total = 0.0
    for column in messages.T:
        shares = np.unique(column, return_counts=True)[1] / len(column)
        total -= float((shares * np.log2(shares)).sum())
    return total / messages.shape[1]


def _draw(figure: Figure, meanings: np.ndarray, messages: dict[str, np.ndarray]) -> None:
    pairs = np.triu_indices(len(meanings), 1)
    for axes, (name, rows) in zip(figure.subplots(1, 2), messages.items(), strict=True):
        axes.plot(meanings[pairs], compare_messages(rows, rows)[pairs], ".", markersize=4, alpha=0.4)
        axes.set(title=f"{name}: alike items, alike messages?", xlabel="distance of items", ylabel="places that differ")
        axes.set_ylim(-0.05, 1.05)  # both languages on one scale
