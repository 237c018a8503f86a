"""How new rows begin: one method a file, each a function from a `RowRequest` to rows [R, D].

How they compare, by `tools/compare_initialisers.py --layers 8 --precision bfloat16 --pictures 100 --steps 30 --donor
model_cards/nano` (one seed; the first 8 layers of SmolLM2, LoRA of rank 8; 100 emoji asked about and asked for, the
held-out losses over 82 other concepts, in nats a token; an even guess at a picture's codes costs 8.3):

                   step 0: text  pictures    after 30: text  pictures    held out: text  pictures
    covariance           26.314    27.113             4.829     8.077             4.867    11.174
    mean                 27.270     8.535             7.280     6.923             6.994     8.308
    description          15.285    27.655             4.797     7.960             4.416    10.701
    codebook             15.241    25.642             4.709     7.108             4.348     9.761
    omp                  16.808    25.191             3.891     7.748             3.719     9.725

Rows that all begin at the mean guess evenly at pictures and stay behind in text. Of the others, matching pursuit is
best in text, but needs a donor trained on the same codes; without a donor, projected codebook vectors are best.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from unimodal.model.initialisers.codebook import project_codebook
from unimodal.model.initialisers.covariance import draw_by_covariance
from unimodal.model.initialisers.description import average_words
from unimodal.model.initialisers.matching_pursuit import transplant_rows
from unimodal.model.initialisers.mean import repeat_mean
from unimodal.model.initialisers.request import Donor, RowRequest

__all__ = ["INITIALISERS", "Donor", "RowRequest", "initialise"]


def initialise(name: str, request: RowRequest) -> Tensor:
    """First values [R, D] of new rows by the initialiser of this name, in the base's precision.

    Raises ValueError for an unknown name and for what the initialiser refuses.
    """
    if name not in INITIALISERS:
        raise ValueError(f"initialiser {name!r} is unknown; use {', '.join(INITIALISERS)}")
    return INITIALISERS[name](request).to(request.table.dtype)


INITIALISERS: dict[str, Callable[[RowRequest], Tensor]] = {
    "covariance": draw_by_covariance,
    "mean": repeat_mean,
    "description": average_words,
    "codebook": project_codebook,
    "omp": transplant_rows,
}
