"""Likeness to the row's own answer: the cosine of the mean codebook vectors of both, from -1 to 1.

For media whose tokenizer has vectors for its codes (`code_features`). The mean over codes tells what is shown and not
where.

Shapes: N codes, F features of a code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unimodal.config import Config
from unimodal.sequence.document import Media
from unimodal.tuning.rewards.reward import Attempt, RewardContext, find_medium_part

LEAST = -1.0  # of an answer without a medium


class SimilaritySettings(Config):
    pass


class SimilarityReward:
    def __init__(self, cfg: SimilaritySettings) -> None:
        self._vectors: dict[str, Tensor] = {}

    def __call__(self, attempts: Sequence[Attempt], context: RewardContext) -> list[float]:
        scores = []
        for attempt in attempts:
            reference = find_medium_part(attempt.reference)
            if reference is None:
                raise ValueError("the reward similarity compares with the row's own answer, and this row has none")
            medium = attempt.medium
            if medium is None or medium.modality != reference.modality:
                scores.append(LEAST)
                continue
            means = [self._compute_mean(part, context) for part in (medium, reference)]
            scores.append(float(torch.cosine_similarity(*means, dim=0)))
        return scores

    def _compute_mean(self, part: Media, context: RewardContext) -> Tensor:
        """The mean vector [F] of the codes of a medium, of its last blocks where it has several."""
        assert context.media is not None
        vectors = self._vectors.get(part.modality)
        if vectors is None:
            tokenizer = context.media.get_tokenizer(part.modality)
            found = tokenizer.code_features(tokenizer.segments[-1][0])
            if found is None:
                raise ValueError(f"the reward similarity needs codes with vectors; those of {part.modality} have none")
            vectors = self._vectors[part.modality] = found.detach().float().cpu()
        codes = torch.from_numpy(part.require_codes().copy()).reshape(len(part.require_codes()), -1)[:, 0]
        return vectors[codes.clamp(max=len(vectors) - 1)].mean(0)
