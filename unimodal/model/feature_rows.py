"""Ids beyond the embedding table that stand for features of a picture or sound: continuous inputs of a decoder.

Some models read pictures as features and not as codes (Janus, arXiv 2410.13848). A decoder that is fed integers can
take them all the same: each medium that is read gets ids that nothing else ever gets, and this module, in the place of
the embedding table, looks up their rows. So batches, padding, caches and sessions need no code for features: two
pictures have different ids, and a picture that is shown again keeps its ids.

A model reads ids of features and never writes them. They are valid as long as somebody keeps their `Features`.

Shapes: S streams, P tokens, N rows of a medium, V rows of the table, D width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from itertools import count
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STRIDE = 2**16  # ids that one medium may take


class Features:
    """The features [N, D] of one medium, or a function that computes them; and the N ids that stand for them."""

    def __init__(self, rows: Tensor | Callable[[], Tensor], ids: range) -> None:
        self._rows, self.ids = rows, ids

    @property
    def rows(self) -> Tensor:
        return self._rows if isinstance(self._rows, Tensor) else self._rows()


class FeatureRows(nn.Module):
    """An embedding table of V rows, and behind them the rows of all `Features` that are still kept.

    base: a table, or a table with new rows behind it (`rows.ExtendedEmbedding`).
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.num_rows = int(base.num_embeddings if isinstance(base, nn.Embedding) else base.num_rows)
        self._kept: WeakValueDictionary[int, Features] = WeakValueDictionary()
        self._numbers = count()
        self._lock = threading.Lock()

    @property
    def weight(self) -> Tensor:
        """The table's own weight, whose width and precision features have."""
        table = self.base
        while not isinstance(table, nn.Embedding):
            table = table.base
        return table.weight

    def add(self, rows: Tensor) -> Features:
        """Give features [N, D] new ids. Keep what is returned as long as the ids are in use.

        Raises ValueError for features of another width, and for none or more than `STRIDE`.
        """
        weight = self.weight
        if rows.dim() != 2 or rows.shape[1] != weight.shape[1] or not 1 <= len(rows) <= STRIDE:
            raise ValueError(f"features {list(rows.shape)} do not fit an embedding table of width {weight.shape[1]}")
        return self._add(rows.to(weight.device, weight.dtype), len(rows))

    def add_later(self, compute_rows: Callable[[], Tensor], count: int) -> Features:
        """The same for `count` features that `compute_rows` returns, called at every read: none stay in memory."""
        return self._add(compute_rows, count)

    def _add(self, rows: Tensor | Callable[[], Tensor], count: int) -> Features:
        with self._lock:
            number = next(self._numbers)
            start = self.num_rows + number * STRIDE
            self._kept[number] = kept = Features(rows, range(start, start + count))
        return kept

    def has_ids(self, ids: Iterable[int]) -> bool:
        """Whether every id beyond the table stands for features that are still kept."""
        kept: dict[int, Features | None] = {}
        for row in ids:
            if row >= self.num_rows:
                number = (row - self.num_rows) // STRIDE
                found = kept.setdefault(number, self._kept.get(number))
                if found is None or row not in found.ids:
                    return False
        return True

    def forward(self, ids: Tensor) -> Tensor:
        """ids [S, P] → [S, P, D]. P = 1 is a step of decoding, which reads no features."""
        if ids.shape[-1] == 1:
            return self.base(ids)
        beyond = ids >= self.num_rows
        if not bool(beyond.any()):
            return self.base(ids)
        x = self.base(ids.masked_fill(beyond, 0))
        numbers = (ids - self.num_rows).div(STRIDE, rounding_mode="floor").masked_fill(~beyond, -1)
        for number in numbers[beyond].unique().tolist():
            where = numbers == number
            rows = self._kept[number].rows.to(x.device, x.dtype)
            x[where] = rows[(ids[where] - self.num_rows) % STRIDE]
        return x


def attach_feature_rows(model: PreTrainedModel) -> FeatureRows:
    """Put `FeatureRows` in the place of the model's embedding table; ids within the table give the same as before."""
    rows = FeatureRows(model.get_input_embeddings())
    model.set_input_embeddings(rows)
    return rows
