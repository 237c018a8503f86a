"""New rows at the mean of the base's rows, with a little noise so that training can tell them apart.

Hewitt (2021), as in `covariance.py`: from the mean, the new rows change the base's predictions least. Noise
of a tenth of the base's spread in each direction makes the rows differ; a head cannot tell equal rows apart.
"""

from __future__ import annotations

from torch import Tensor

from unimodal.model.initialisers.request import RowRequest

NOISE = 0.1


def repeat_mean(request: RowRequest) -> Tensor:
    """New rows [R, D]: the base's mean plus noise."""
    used = request.list_used()
    noise = request.draw_noise(request.num_rows, used.shape[1])
    return used.mean(0) + NOISE * used.std(0, correction=0) * noise
