"""The methods by name: what each mixes, how it fills what it says nothing about, and whether it copies shared rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.tuning.transplant.helper_model import mix_by_helper
from unimodal.tuning.transplant.matching_pursuit import mix_by_pursuit
from unimodal.tuning.transplant.mean import mix_mean
from unimodal.tuning.transplant.request import Filling, RowMixture, Side, TransplantRequest
from unimodal.tuning.transplant.subwords import mix_subwords
from unimodal.tuning.transplant.tokenadapt import mix_by_meaning
from unimodal.tuning.transplant.translated_tokens import mix_translations
from unimodal.tuning.transplant.wechsel import mix_by_word_vectors
from unimodal.tuning.transplant.zett import mix_by_network


@dataclass(frozen=True)
class TransplantMethod:
    """A method of transplanting. copies: whether tokens that both tokenizers have keep the base's rows."""

    mix: Callable[[TransplantRequest], RowMixture]
    filling: Filling
    copies: bool
    by_side: Callable[[TransplantRequest, Side], RowMixture] | None = None  # of one that mixes the sides apart


class MadeRows:
    """The new text rows of a base's tables, and the number of rows that were copied, mixed and filled."""

    def __init__(self, method: str, request: TransplantRequest, copy: bool | None = None, seed: int = 0) -> None:
        """copy: whether to keep the rows of shared tokens; by default as the method was published.

        Raises ValueError for an unknown method, and for a request that lacks what the method reads.
        """
        if method not in METHODS:
            raise ValueError(f"method {method!r} is unknown; use {', '.join(METHODS)}")
        self.method, self.request, self.seed = METHODS[method], request, seed
        self.copied = dict(request.shared) if (self.method.copies if copy is None else copy) else {}
        self.copied |= request.special
        self._mixtures: dict[Side, RowMixture] = {}
        self.mixed = self.filled = 0

    def make(self, table: Tensor, side: Side = "input") -> Tensor:
        """The new rows [N, D] of one side, from the base's text rows [V, D]; computed and drawn in float32."""
        table = table.detach().float()
        rows = self._mix(side).apply(table)
        new, old = (torch.tensor(listed, dtype=torch.int64) for listed in (list(self.copied), [*self.copied.values()]))
        rows[new] = table[old]
        missing = rows.isnan().any(1).nonzero().squeeze(1)
        self.filled, self.mixed = len(missing), len(rows) - len(missing) - len(self.copied)
        rows[missing] = self._fill(table, len(missing), self.seed + (side == "output"))
        return rows

    def make_bias(self, bias: Tensor) -> Tensor:
        """The biases [N] of the new rows of a head that has some [V]: mixed as its rows are, or their mean."""
        bias = bias.detach().float()
        found = self._mix("output").apply(bias[:, None])[:, 0]
        new, old = (torch.tensor(listed, dtype=torch.int64) for listed in (list(self.copied), [*self.copied.values()]))
        found[new] = bias[old]
        return torch.where(found.isnan(), bias.mean(), found)

    def _mix(self, side: Side) -> RowMixture:
        if side not in self._mixtures:
            apart = self.method.by_side
            found = self.method.mix(self.request) if apart is None else apart(self.request, side)
            self._mixtures |= dict.fromkeys(("input", "output"), found) if apart is None else {side: found}
        return self._mixtures[side]

    def _fill(self, table: Tensor, num_rows: int, seed: int) -> Tensor:
        used = table[table.abs().sum(1) > 0]  # padded rows are often zero
        if not len(used):
            raise ValueError("the base table has only zero rows; load its weights before moving them")
        mean = used.mean(0).expand(num_rows, -1)
        if self.method.filling == "mean":
            return mean
        noise = torch.randn(num_rows, table.shape[1], generator=torch.Generator().manual_seed(seed))
        if self.method.filling == "numbers":
            return used.mean() + used.std() * noise
        return mean + used.std(0, correction=0) * noise


METHODS: dict[str, TransplantMethod] = {
    "mean": TransplantMethod(mix_mean, "mean", copies=True),
    "fvt": TransplantMethod(mix_subwords, "mean", copies=True),
    "wechsel": TransplantMethod(mix_by_word_vectors, "normal", copies=False),
    "clp": TransplantMethod(mix_by_helper, "normal", copies=True),
    "trans-tokenization": TransplantMethod(mix_translations, "mean", copies=False),
    "tokenadapt": TransplantMethod(mix_by_meaning, "numbers", copies=True),
    "omp": TransplantMethod(mix_by_pursuit, "mean", copies=True, by_side=mix_by_pursuit),
    "zett": TransplantMethod(mix_by_network, "mean", copies=False, by_side=mix_by_network),
}
