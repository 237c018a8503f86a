"""How new rows begin: one method a file, each a function from a `RowRequest` to rows [R, D].

What each is worth, by `tools/compare_initialisers.py --layers 8 --precision bfloat16 --pictures 100 --steps 30 --donor
model_cards/nano` (one seed; the first 8 layers of SmolLM2, LoRA of rank 8; 100 emoji asked about and asked for, the
losses held out over 82 other concepts; an even guess at a picture's codes is 8.3):

                   step 0: text  pictures    after 30: text  pictures    held out: text  pictures
    covariance           26.314    27.113             4.829     8.077             4.867    11.174
    mean                 27.270     8.535             7.280     6.923             6.994     8.308
    description          15.285    27.655             4.797     7.960             4.416    10.701
    codebook             15.241    25.642             4.709     7.108             4.348     9.761
    omp                  16.808    25.191             3.891     7.748             3.719     9.725

Rows that all begin as the mean guess evenly at pictures and stay behind in text; of the others matching pursuit, which
needs a model trained on the same codes, is best in words, and projected codebook vectors without one.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from unimodal.model.initialisers.codebook import codebook
from unimodal.model.initialisers.covariance import covariance
from unimodal.model.initialisers.description import description
from unimodal.model.initialisers.matching_pursuit import matching_pursuit
from unimodal.model.initialisers.mean import mean
from unimodal.model.initialisers.request import Donor, RowRequest

__all__ = ["INITIALISERS", "Donor", "RowRequest", "initialise"]


def initialise(name: str, request: RowRequest) -> Tensor:
    """The rows [R, D] of the initialiser of this name, in the base's precision. ValueError for an unknown name."""
    if name not in INITIALISERS:
        raise ValueError(f"initialiser {name!r} is unknown; use {', '.join(INITIALISERS)}")
    return INITIALISERS[name](request).to(request.table.dtype)


INITIALISERS: dict[str, Callable[[RowRequest], Tensor]] = {
    "covariance": covariance,
    "mean": mean,
    "description": description,
    "codebook": codebook,
    "omp": matching_pursuit,
}
