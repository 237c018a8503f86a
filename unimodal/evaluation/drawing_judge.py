"""Which concept does a drawing show? A frozen EfficientNet-lite1 says so, which no tokenizer of nano looks through.

Shapes: P pictures, C concepts, S styles, E features.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unimodal.evaluation.shares import measure_share
from unimodal.tokenizers.readers.frozen_encoder import FrozenEncoder

SIZE = 64


class DrawingJudge:
    """Compares drawings with the pictures of all concepts, as cosines of features less their mean.

    concepts: of each its `name`, and the file of each style. styles: the keys of these files.
    """

    def __init__(self, concepts: Sequence[Mapping[str, str]], styles: Sequence[str]) -> None:
        self.names, self.num_styles = [concept["name"] for concept in concepts], len(styles)
        self.encoder = FrozenEncoder.open("lite1").eval()
        found = self._look([read_picture(concept[style]) for style in styles for concept in concepts])
        self.mean = found.mean(0)
        self.gallery = F.normalize(found - self.mean, dim=1)  # [S · C, E]

    def judge(self, drawn: Sequence[Tensor], names: Sequence[str]) -> dict[str, object]:
        """Drawings [3, 64, 64] of named concepts: how often the concept's own picture is the nearest of all, and how
        near the nearest of its own pictures is, with the standard error of that mean."""
        near = F.normalize(self._look(drawn) - self.mean, dim=1) @ self.gallery.T  # [P, S · C]
        own = [self.names.index(name) for name in names]
        hits = [int(place) % len(self.names) == row for place, row in zip(near.argmax(1), own, strict=True)]
        best = near.unflatten(1, (self.num_styles, -1)).amax(1)
        likeness = [float(best[number, row]) for number, row in enumerate(own)]
        return {
            "nearest_is_own": measure_share(hits),
            "likeness": round(statistics.mean(likeness), 3),
            "likeness_error": round(statistics.stdev(likeness) / len(likeness) ** 0.5, 3),
        }

    def measure_spread(self, drawn: Sequence[Sequence[Tensor]]) -> dict[str, object]:
        """How different several drawings of one wish are: 1 less their mean cosine with each other, over the wishes.

        drawn: of each wish two drawings [3, 64, 64] or more, of all as many. With the standard error of the mean.
        """
        near = F.normalize(torch.stack([self._look(some) for some in drawn]) - self.mean, dim=2)  # [W, n, E]
        num = near.shape[1]
        cosines = near @ near.mT
        each = (1 - (cosines.sum((1, 2)) - num) / (num * (num - 1))).tolist()
        error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else float("nan")
        return {"spread": round(statistics.mean(each), 3), "spread_error": round(error, 3)}

    @torch.inference_mode()
    def _look(self, pictures: Sequence[Tensor]) -> Tensor:
        """Pictures [3, 64, 64] → features [P, E], a mean over the picture."""
        return torch.cat([self.encoder.read_last(some).mean(1) for some in torch.stack(list(pictures)).split(16)])


def read_picture(path: str) -> Tensor:
    """A picture as [3, 64, 64] in [0, 1]."""
    with Image.open(path) as picture:
        small = picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).float() / 255
