"""Croc's pretraining (arXiv 2410.14332): pictures that are read with most codes replaced, and are to be restored.

Of the codes of each medium in a question a share is replaced by prompts out of a learnt pool: the one-to-one matching
of codes and prompts whose inputs lie nearest to each other (the Hungarian method), so that each code gets another
prompt. All tokens before a document's first label see each other, as if what is read were a foreign language that is
read as a whole; behind it attention is causal. Learnt are the labels, such as a caption, and what was replaced:

    loss = cross-entropy of the labels + weight · restoration, each summed over its tokens
    restoration    codes        the cross-entropy of the replaced code among its block's, at its own place
                   embeddings   10 · SmoothL1 (β = 0.01) between a projection of the state and the code's input, of
                                length 1, a mean over the D values: what the authors have for continuous features,
                                over all codes of the medium

The authors' released code takes the nearest prompt of each code, so that prompts may be taken twice: `matching:
nearest`. Their pool has 2,048 prompts and three quarters of a picture's patches are replaced. The pool serves training
alone and is not saved with the model, which stays a stock one.

Shapes: B rows, N tokens, M prompts of the pool, h hidden codes, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unimodal.config import Config
from unimodal.model.soft_prompt import find_width
from unimodal.model.windows import find_windows, make_layer_masks
from unimodal.objectives.next_token import IGNORE, LossConfig, shift_labels
from unimodal.objectives.objective import LossParts, Objective, number_documents, refuse_summed
from unimodal.objectives.silence import SilentBatches
from unimodal.objectives.spans import check_sees_ahead, find_runs
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BETA, _FACTOR = 0.01, 10.0  # of the authors' restoration


class RestoredCodeConfig(Config):
    """pool: prompts. share: of a medium's codes that are replaced."""

    pool: int = Field(default=2048, ge=1)
    share: float = Field(default=0.75, gt=0, le=1)
    matching: Literal["hungarian", "nearest"] = "hungarian"
    target: Literal["codes", "embeddings"] = "codes"
    weight: float = Field(default=1.0, gt=0)


@torch.no_grad()
def match_prompts(inputs: Tensor, pool: Tensor, matching: str = "hungarian") -> Tensor:
    """inputs [h, D] and a pool [M, D] → the prompt of each input, int64 [h].

    hungarian: all different, at the least sum of distances. Raises ValueError if the pool has fewer prompts than
    inputs, and where SciPy is missing.
    """
    distances = torch.cdist(inputs.float(), pool.float())
    if matching == "nearest":
        return distances.argmin(1)
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise ValueError("prompts are matched by SciPy; `pip install scipy`, or set matching: nearest") from None

    if len(pool) < len(inputs):
        raise ValueError(
            f"objective.restored_codes.pool has {len(pool)} prompts, and {len(inputs)} codes of a medium are replaced "
            "by different ones; enlarge it, lower share, or set matching: nearest"
        )
    return torch.from_numpy(linear_sum_assignment(distances.cpu().numpy())[1]).to(inputs.device)


class RestoredCodes(Objective):
    """See the module.

    Raises ValueError for a base that sees the past only, and for a vocabulary with summed positions.
    """

    def __init__(
        self, model: PreTrainedModel, vocabulary: Vocabulary, cfg: LossConfig | None, own: RestoredCodeConfig
    ) -> None:
        super().__init__(model, vocabulary, cfg)
        refuse_summed(vocabulary, "restored_codes")
        check_sees_ahead(model)
        self.windows = find_windows(model.config)
        self.own, width = own, find_width(model)
        self._silent = SilentBatches("objective.restored_codes has found no question with codes")
        with torch.no_grad():
            rows = model.get_input_embeddings()(torch.arange(vocabulary.size, device=next(model.parameters()).device))
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(own.pool, width, generator=generator).to(rows.device)
        self.pool = nn.Parameter(rows.float().mean(0) + noise * rows.float().std(0))  # like the inputs that it replaces
        self.project = nn.Linear(width, width).to(rows.device) if own.target == "embeddings" else None

    def forward(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        further: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        """As `Objective.forward`. What is replaced is drawn from torch's own generator, which a checkpoint keeps."""
        with parametrize.cached():
            documents = number_documents(position_ids.expand_as(ids)).reshape(ids.shape)  # [B, N]
            asked = find_questions(labels, documents)
            runs = self._find_read_runs(ids, labels, position_ids)
            hidden = choose_replaced(runs, self.own.share)
            if self.training:
                self._silent.count(bool(hidden.any()))
            table = self.model.get_input_embeddings()
            known = table(ids)
            states = self.model.get_decoder()(
                inputs_embeds=self._replace(known, runs, hidden), position_ids=position_ids, use_cache=False,
                attention_mask=self._make_masks(asked, documents, position_ids),
            ).last_hidden_state  # fmt: skip
            losses = self.score(self.model, states, ids, shift_labels(labels, position_ids))
            found = losses.reduce(self.cfg.z_loss, self.cfg.modality_weights)
            term, count = self._restore(states, ids, known, runs, hidden)
            total = found.total + self.own.weight * term + 0.0 * self.pool.sum()
        metrics = [("restored", (float(term.detach()), float(max(1, count))))]
        return self.touch_tables(total), self.describe_parts(found.weight, found.per_block, metrics)

    def _make_masks(self, asked: Tensor, documents: Tensor, position_ids: Tensor) -> Tensor | dict[str, Tensor]:
        """The decoder's masks, under which the tokens of a question, bool [B, N], see each other too."""
        same = documents[:, :, None] == documents[:, None]
        past = torch.ones(same.shape[1:], dtype=torch.bool, device=same.device).tril()
        seen = same & (past | (asked[:, :, None] & asked[:, None]))
        places = position_ids.expand_as(documents)
        return make_layer_masks(seen, places, places, self.windows, self.model.dtype)

    def _find_read_runs(self, ids: Tensor, labels: Tensor, position_ids: Tensor) -> Tensor:
        """The runs of codes that are read and not learnt, int64 [B, N], 0 elsewhere."""
        in_vocabulary = (ids >= 0) & (ids < self.groups.vocab_size) & (labels == IGNORE)
        return find_runs(torch.where(in_vocabulary, ids, IGNORE), position_ids, self.groups.group_of_row)

    def _replace(self, known: Tensor, runs: Tensor, hidden: Tensor) -> Tensor:
        """The inputs [B, N, D] with prompts in the places of the hidden codes."""
        given = known.clone()
        for row in range(len(runs)):
            for run in runs[row][hidden[row]].unique().tolist():
                places = ((runs[row] == run) & hidden[row]).nonzero()[:, 0]
                chosen = match_prompts(known[row, places], self.pool, self.own.matching)
                given[row, places] = self.pool[chosen].to(given.dtype)
        return given

    def _restore(self, states: Tensor, ids: Tensor, known: Tensor, runs: Tensor, hidden: Tensor) -> tuple[Tensor, int]:
        """The summed loss of what was replaced, and over how many tokens."""
        if self.project is None:
            losses = self.score(self.model, states, ids.roll(1, 1), torch.where(hidden, ids, IGNORE))
            return losses.loss.sum(), len(losses.where)
        read = runs > 0
        wanted = F.normalize(known[read].detach().float(), dim=1)
        term = F.smooth_l1_loss(self.project(states[read].float()), wanted, beta=_BETA, reduction="none").mean(1).sum()
        return _FACTOR * term, int(read.sum())


def find_questions(labels: Tensor, documents: Tensor) -> Tensor:
    """bool [B, N], the tokens before the first label of their document; documents: int64 [B, N], by number."""
    flat = documents.reshape(-1)
    places = torch.arange(len(flat), device=flat.device)
    first = torch.full((int(flat.max()) + 1,), len(flat), dtype=torch.int64, device=flat.device)
    learnt = (labels != IGNORE).reshape(-1)
    first.scatter_reduce_(0, flat[learnt], places[learnt], "amin")
    return (places < first[flat]).view_as(labels)


def choose_replaced(runs: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
    """Some codes of each run, at least one: bool [B, N]. runs: int64 [B, N], 0 for none."""
    hidden = torch.zeros_like(runs, dtype=torch.bool)
    for row in range(len(runs)):
        for run in runs[row][runs[row] > 0].unique().tolist():
            places = (runs[row] == run).nonzero()[:, 0]
            num = max(1, round(share * len(places)))
            order = torch.randperm(len(places), generator=generator)[:num].to(places.device)
            hidden[row, places[order]] = True
    return hidden
