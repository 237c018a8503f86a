"""Masked training of media answers: codes that are hidden in their span, predicted from all that is left of it.

A model so trained draws a medium in few passes (the fast decoder `masked`, `generation/fast/masked_parallel.py`): all
codes of a block at once, the surest are kept. As in MaskGIT (arXiv 2202.04200) and Show-o (arXiv 2408.12528) a share
cos(π/2 · r) of the codes is hidden, r uniform in [0, 1), and only hidden codes are learnt. One run of codes of a
document is chosen, since the decoder draws block by block: what is before it is seen as it is, what is behind it is not
learnt. Inside the run every code sees every other, everywhere else attention stays causal, so text is learnt as before
and stays what it was. `share` of the documents with such a run are masked, the others are learnt token by token.

A code is predicted at the place before its own, where the LM predicts it already, so that a trained LM goes on from
what it knows; ``own_place`` predicts it at its own, as both papers do. MaskGIT also smooths its labels by 0.1; Show-o
does not, nor is it done here.

A base must let a token see later ones where a mask says so. `check_sees_ahead` tries it.

Shapes: B rows, N tokens, D width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from unimodal.config import Config
from unimodal.objectives.next_token import IGNORE, LossConfig, shift_labels
from unimodal.objectives.objective import LossParts, Objective, number_documents
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MaskedCodeConfig(Config):
    """share: of the documents with codes to learn, those that are masked. schedule: of the share of codes hidden, by r
    uniform in [0, 1): cos(π/2 · r), or 1 - r. own_place: predict a code at its own place. mask_id: the row that stands
    for a hidden code, by default ``<|pad|>``.
    """

    share: float = Field(default=1.0, gt=0, le=1)
    schedule: str = Field(default="cosine", pattern="^(cosine|uniform)$")
    own_place: bool = False
    mask_id: int | None = None


def find_runs(labels: Tensor, position_ids: Tensor, group_of_row: Tensor) -> Tensor:
    """The runs of learnt codes of one block: int64 [B, N], 1, 2, … in each row, 0 elsewhere.

    group_of_row: int64 [V], of `HeadGroups`, whose group 0 is text.
    """
    code = (labels != IGNORE) & (group_of_row.to(labels.device)[labels.clamp(min=0)] > 0)
    group = torch.where(code, group_of_row.to(labels.device)[labels.clamp(min=0)], -1)
    begins = code.clone()
    begins[:, 1:] &= (group[:, 1:] != group[:, :-1]) | (position_ids.expand_as(labels)[:, 1:] == 0)
    return torch.where(code, begins.long().cumsum(1), 0)


def choose_masked(
    runs: Tensor, documents: Tensor, settings: MaskedCodeConfig, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """The run that is masked, bool [B, N], and its hidden codes, bool [B, N]; at most one run of a document.

    A run is chosen with a probability proportional to its length; at least one of its codes is hidden.
    """
    chosen, hidden = torch.zeros_like(runs, dtype=torch.bool), torch.zeros_like(runs, dtype=torch.bool)
    for row in range(len(runs)):
        for document in documents[row][runs[row] > 0].unique().tolist():
            own = ((documents[row] == document) & (runs[row] > 0)).nonzero()[:, 0]
            keep, at, ratio = torch.rand(3, generator=generator).tolist()
            if keep >= settings.share:
                continue
            run = runs[row] == runs[row, own[int(at * len(own))]]
            places = run.nonzero()[:, 0]
            part = math.cos(math.pi / 2 * ratio) if settings.schedule == "cosine" else 1 - ratio
            num = max(1, int(part * len(places)))
            order = torch.randperm(len(places), generator=generator)[:num].to(places.device)
            chosen[row] |= run
            hidden[row, places[order]] = True
    return chosen, hidden


def make_span_mask(chosen: Tensor, runs: Tensor, documents: Tensor) -> Tensor:
    """What each token sees, bool [B, 1, N, N]: the past of its document, and all of its run if that is chosen."""
    length = chosen.shape[1]
    same = documents[:, :, None] == documents[:, None]
    past = torch.ones(length, length, dtype=torch.bool, device=chosen.device).tril()
    together = (runs[:, :, None] == runs[:, None]) & chosen[:, :, None] & chosen[:, None]
    return (same & (past | together))[:, None]


class MaskedCodes(Objective):
    """Runs packed documents through a causal LM with one run of codes of each masked.

    Raises ValueError for a base that sees the past only, and for a vocabulary with summed positions.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        cfg: LossConfig | None = None,
        own: MaskedCodeConfig | None = None,
    ) -> None:
        super().__init__(model, vocabulary, cfg)
        if not vocabulary.positions.is_flat:
            raise ValueError("objective.masked_codes hides codes of a position each; leave `summed` out")
        check_sees_ahead(model)
        self.own = own or MaskedCodeConfig()
        mask = self.own.mask_id
        if mask is not None and not 0 <= mask < vocabulary.size:
            raise ValueError(f"mask_id is {mask}; it is one of the {vocabulary.size} rows of the vocabulary")
        self.mask_id = vocabulary.get_control_id("<|pad|>") if mask is None else mask

    def forward(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        further: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        """As `Objective.forward`. What is hidden is drawn from torch's own generator, which a checkpoint keeps."""
        assert further is None, "a vocabulary with summed positions is refused"
        documents = number_documents(position_ids.expand_as(ids)).reshape(ids.shape)  # [B, N]
        runs = find_runs(labels, position_ids, self.groups.group_of_row)
        chosen, hidden = choose_masked(runs, documents, self.own)
        same = documents[:, :, None] == documents[:, None]
        behind = (same.tril() & chosen[:, None]).any(2)  # the chosen run and all that follows it in its document
        learnt = torch.where(behind & ~hidden, IGNORE, labels)
        states = self.model.get_decoder()(
            input_ids=ids.masked_fill(hidden, self.mask_id), position_ids=position_ids, use_cache=False,
            attention_mask=make_span_mask(chosen, runs, documents),
        ).last_hidden_state  # fmt: skip
        targets, previous = shift_labels(learnt, position_ids), ids
        if self.own.own_place:  # hidden codes at their own places, everything else at the one before
            targets[:, :-1].masked_fill_(hidden[:, 1:], IGNORE)
            targets, previous = torch.where(hidden, ids, targets), torch.where(hidden, ids.roll(1, 1), ids)
        losses = self.score(self.model, states, previous, targets)
        result = losses.reduce(self.cfg.z_loss, {str(name): one for name, one in self.cfg.modality_weights.items()})
        return self.touch_tables(result.total), self.describe_parts(result.weight, result.per_block)


@torch.no_grad()
def check_sees_ahead(model: PreTrainedModel) -> None:
    """Raises ValueError unless a token of the model sees a later one where a mask lets it, and only there."""
    table = model.get_input_embeddings()
    device = next(model.parameters()).device
    rows = torch.tensor([[1, 2, 3, 4]], device=device)
    other = torch.tensor([[1, 2, 3, 5]], device=device)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool, device=device).tril()
    mask[..., 1, 3] = True  # token 1 sees token 3
    training = model.training
    states = []
    try:
        for ids in (rows, other):
            embedded = table(ids)
            model.eval()
            states.append(
                model.get_decoder()(inputs_embeds=embedded, use_cache=False, attention_mask=mask).last_hidden_state[0]
            )
        moved = [not torch.equal(one, two) for one, two in zip(*states, strict=True)]
    except (RuntimeError, ValueError, TypeError, IndexError):
        moved = []
    finally:
        model.train(training)
    if moved[:2] != [False, True]:  # token 2 sees the change through token 1
        raise ValueError(
            f"masked codes see their whole span, and {type(model).__name__} with attention "
            f"{model.config._attn_implementation!r} sees the past only; set attention: sdpa, or objective: next_token"
        )
