"""Unlearning: a model that no longer says what it was taught of some rows, and says the rest as before.

After "Who's Harry Potter? Approximate Unlearning in LLMs" (arXiv 2310.02238). A reinforced model, tuned further on what
is to be forgotten, tells which continuations are of it: those that it makes more likely than the model of the start
does. What remains without them is learnt in place of the rows' own labels:

    generic = start - strength · relu(reinforced - start)         logits at each token
    labels         the likeliest row of `generic` is the label, as published
    distribution   all of softmax(generic) is

`replacements` give generic words for names that would give the subject away; the model of the start reads the rows with
them put in, and each token gets the prediction at the same place of that text. In rows of media codes nothing is
replaced.

Rows with `label: false` are forgotten. Rows with `label: true` hold what must stay: there the distribution of the start
is learnt, which the paper does without (`keep_weight: 0` or no such rows). The loss is a mean over tokens, weighted by
`loss.modality_weights`.

Shapes: B rows, N tokens, M tokens of the text with replacements, K = 1 value a token (-1 forget, 1 keep), P labelled
tokens, c of a chunk, R rows of its softmax, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils import parametrize

from unimodal.config import MAY_CHANGE, Config
from unimodal.model.attention import Packing
from unimodal.objectives.distributions import Chunk, compute_logits, differentiate_chunk, find_labelled, list_chunks
from unimodal.objectives.next_token import LossConfig, shift_labels
from unimodal.objectives.objective import LossParts, Objective, RowKind, refuse_summed, run_decoder
from unimodal.objectives.reference import StartingModel
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: ids of an expression → ids of the generic one
Replacements = Sequence[tuple[Sequence[int], Sequence[int]]]


class UnlearningConfig(Config):
    """Forget the rows with label false, and keep those with label true."""

    reinforced: Annotated[Path, MAY_CHANGE]  # folder of the model that was tuned further on what is to be forgotten
    strength: float = Field(default=5.0, ge=0)
    targets: Literal["labels", "distribution"] = "labels"
    replacements: dict[str, str] = {}  # expressions → generic ones
    keep_weight: float = Field(default=1.0, ge=0)


class UnlearningLoss(Objective):
    """See the module. reinforced: of the same vocabulary. Raises ValueError for a vocabulary of summed positions."""

    rows: ClassVar[RowKind] = "labels"
    compares_with_start: ClassVar[bool] = True

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        cfg: LossConfig | None,
        own: UnlearningConfig,
        reinforced: PreTrainedModel,
        replacements: Replacements = (),
    ) -> None:
        super().__init__(model, vocabulary, cfg)
        refuse_summed(vocabulary, "unlearning")
        self.own, self.replacements = own, replacements
        self.start = StartingModel(model)
        self._reinforced = [reinforced.requires_grad_(False).eval()]  # in a list: it is not trained, saved or split

    def forward(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        further: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        """See `Objective.forward`. values: [B, N, 1], -1 in what is forgotten and 1 in what stays."""
        assert values is not None, "unlearning needs rows with labels"
        packing, targets = Packing.from_position_ids(position_ids), shift_labels(labels, position_ids)
        tokens = find_labelled(ids, targets, self.groups)
        keeps = values[..., 0].reshape(-1)[tokens.where] > 0
        [reinforced] = self._reinforced
        with self.start.use() as model:
            plain = run_decoder(model, ids, position_ids, packing).flatten(0, 1)
            generic = plain
            if self.replacements:
                text, places, mapped = replace_expressions(ids, position_ids, self.replacements)
                generic = run_decoder(model, text, places, Packing.from_position_ids(places))[0][mapped]
            strong = run_decoder(reinforced, ids, position_ids, packing).flatten(0, 1)
            chunks, wanted = [], []
            for chunk in list_chunks(tokens, self.groups, self.cfg):
                kept, places = keeps[chunk.places, None], tokens.where[chunk.places]
                base = compute_logits(model, torch.where(kept, plain[places], generic[places]), chunk.rows)
                known = compute_logits(reinforced, strong[places], chunk.rows)
                chunks.append(chunk)
                wanted.append(self._make_target(base, known, kept))
        with parametrize.cached():
            hidden = run_decoder(self.model, ids, position_ids, packing).flatten(0, 1)
            forget = keep = hidden.sum() * 0.0
            weight, metrics = 0.0, dict.fromkeys(("forget_loss", "keep_loss", "forget_likelihood"), (0.0, 0.0))
            blocks: dict[str, tuple[float, int]] = {}
            for chunk, target in zip(chunks, wanted, strict=True):
                kept = keeps[chunk.places]
                losses = self._compare(chunk, target, hidden[tokens.where[chunk.places]])  # [c]
                media = self.weigh_groups(tokens.group[chunk.places])
                factor = media * torch.where(kept, self.own.keep_weight, 1.0)
                forget = forget + (factor * losses)[~kept].sum()
                keep = keep + (factor * losses)[kept].sum()
                weight += float(factor.sum())
                own_label = -self._score_labels(chunk, hidden[tokens.where[chunk.places]], tokens.index[chunk.places])
                for name, of, numbers in (
                    ("forget_loss", ~kept, losses), ("keep_loss", kept, losses),
                    ("forget_likelihood", ~kept, (-own_label).exp()),
                ):  # fmt: skip
                    old = metrics[name]
                    metrics[name] = (old[0] + float(numbers.detach()[of].sum()), old[1] + float(of.sum()))
                for number in tokens.group[chunk.places].unique().tolist():
                    here, name = tokens.group[chunk.places] == number, self.groups.groups[number].name
                    before = blocks.get(name, (0.0, 0))
                    blocks[name] = (before[0] + float(own_label[here].sum()), before[1] + int(here.sum()))
            total = self.touch_tables(forget + keep)
        found = ((name, pair) for name, pair in metrics.items() if pair[1])
        parts = self.describe_parts(weight, blocks, found)
        parts["terms"] = {"forget": forget, "keep": keep}
        return total, parts

    def _make_target(self, base: Tensor, known: Tensor, kept: Tensor) -> Tensor:
        """Logits of the start and of the reinforced model, [c, R] → what is learnt, probabilities [c, R]."""
        generic = base - self.own.strength * torch.relu(known - base)
        if self.own.targets == "labels":
            target = torch.zeros_like(generic).scatter_(1, generic.argmax(1, keepdim=True), 1.0)
        else:
            target = generic.softmax(1)
        return torch.where(kept, base.softmax(1), target)

    def _compare(self, chunk: Chunk, target: Tensor, states: Tensor) -> Tensor:
        """The cross-entropy of the model under the target, less what the target itself has: KL divergence, [c]."""

        def compute_divergence(logits: Tensor) -> Tensor:
            return (torch.special.xlogy(target, target) - target * logits.log_softmax(1)).sum(1)

        return differentiate_chunk(compute_divergence, self.model, states, chunk.rows)

    @torch.no_grad()
    def _score_labels(self, chunk: Chunk, states: Tensor, index: Tensor) -> Tensor:
        """The log-probability of the rows' own labels, [c]."""
        return compute_logits(self.model, states, chunk.rows).log_softmax(1).gather(1, index[:, None])[:, 0]


def replace_expressions(ids: Tensor, position_ids: Tensor, replacements: Replacements) -> tuple[Tensor, Tensor, Tensor]:
    """Put generic expressions into packed documents [B, N]: (ids [1, M], positions [1, M], places int64 [B * N]).

    places: where, in the new text, each token of the old one stands; a token of an expression stands at the same place
    of the generic one, or at its last.
    """
    flat, positions = ids.reshape(-1).tolist(), position_ids.reshape(-1).tolist()
    text: list[int] = []
    starts: list[int] = []
    places: list[int] = []
    at, begin = 0, 0
    while at < len(flat):
        if positions[at] == 0:
            begin = len(text)
        found = next(
            (
                (old, new) for old, new in replacements
                if flat[at : at + len(old)] == list(old) and 0 not in positions[at + 1 : at + len(old)]
            ),
            ((flat[at],), (flat[at],)),
        )  # fmt: skip
        old, new = found
        places += [len(text) + min(number, len(new) - 1) for number in range(len(old))]
        starts += range(len(text) - begin, len(text) - begin + len(new))
        text += new
        at += len(old)
    device = ids.device
    return (
        torch.tensor([text], device=device), torch.tensor([starts], device=device), torch.tensor(places, device=device)
    )  # fmt: skip
