"""How new rows begin: one method a file, each a function from a `RowRequest` to rows [R, D].

`tools/compare_initialisers.py` prints what each is worth on real codes.
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
