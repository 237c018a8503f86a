"""TokenAdapt (arXiv:2505.09738): a new token between its own parts and the tokens that mean the like.

A model of sentences says how alike texts are. The local guess mixes the rows of the parts that the base's tokenizer
cuts a token into: the softmax of their cosines with the whole and their shares of its length are averaged, divided by
the temperature, and put through a softmax again. The global guess mixes the rows of the 3 tokens of the base that are
most alike, by the softmax of their cosines over the temperature. A row is 0.7 of the first and 0.3 of the second, or
the one that there is. Tokens that both have keep their rows; the rest is drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unimodal.tuning.transplant.pieces import spell_text
from unimodal.tuning.transplant.request import SparseMixture, TransplantRequest

GLOBAL_SHARE, NEIGHBOURS, THRESHOLD = 0.3, 3, 0.0
TEMPERATURE = 0.3 + 1e-5  # the authors add the last
CHUNK = 1024


def mix_by_meaning(request: TransplantRequest) -> SparseMixture:
    """Raises ValueError without a model of sentences."""
    if request.embed is None:
        raise ValueError(
            "method 'tokenadapt' needs a model of sentences, such as all-MiniLM-L6-v2; name it by --embedder"
        )
    old_rows = sorted(request.old.spelled)
    old_texts = [spell_text(request.old.spelled[row]) for row in old_rows]
    new_texts = {row: spell_text(request.new.spelled[row]) for row in request.unshared}
    parts = {row: request.decompose(request.new.spelled[row]) for row in new_texts}
    listed = list(dict.fromkeys([*old_texts, *new_texts.values()]))
    meanings = normalize(request.embed(listed).double(), dim=1)  # [T, E]
    place = {text: at for at, text in enumerate(listed)}
    ours = meanings[[place[text] for text in old_texts]]  # [V, E]
    nearest = _find_nearest(meanings[[place[text] for text in new_texts.values()]], ours)
    mixed: dict[int, dict[int, float]] = {}
    for at, (row, text) in enumerate(new_texts.items()):
        local = _weigh_parts(text, parts[row], request, meanings, place)
        wide = {old_rows[int(column)]: float(weight) for weight, column in zip(*nearest[at], strict=True) if weight > 0}
        share = GLOBAL_SHARE if local and wide else float(not local)
        weights = mixed.setdefault(row, {})
        for guess, part in ((local, 1 - share), (wide, share)):
            for column, weight in guess.items():
                if part:
                    weights[column] = weights.get(column, 0.0) + part * weight
    return SparseMixture.from_rows(request.num_rows, mixed)


def _weigh_parts(
    text: str, parts: list[int], request: TransplantRequest, meanings: Tensor, place: dict[str, int]
) -> dict[int, float]:
    """The local guess: row of the base → weight; {} for a token without parts."""
    if not parts:
        return {}
    texts = [spell_text(request.old.spelled[part]) for part in parts]
    cosines = meanings[[place[part] for part in texts]] @ meanings[place[text]]
    lengths = torch.tensor([len(part) / len(text) for part in texts], dtype=torch.float64)
    weights = ((cosines.softmax(0) + lengths) / 2 / TEMPERATURE).softmax(0)
    found: dict[int, float] = {}
    for part, weight in zip(parts, weights.tolist(), strict=True):
        found[part] = found.get(part, 0.0) + weight
    return found


def _find_nearest(theirs: Tensor, ours: Tensor) -> list[tuple[list[float], list[int]]]:
    """The global guess for each of the meanings [R, E]: weights, and places among the base's [V, E]."""
    found: list[tuple[list[float], list[int]]] = []
    for part in theirs.split(CHUNK):
        nearest = (part @ ours.T).topk(min(NEIGHBOURS, len(ours)), dim=1)
        weights = (nearest.values / TEMPERATURE).softmax(1) * (nearest.values >= THRESHOLD)
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-12)
        found += list(zip(weights.tolist(), nearest.indices.tolist(), strict=True))
    return found
