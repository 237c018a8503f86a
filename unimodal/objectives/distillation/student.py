"""A student that learns from a teacher and from its own labels.

    loss = mean over tokens of (1 - share) · cross-entropy + share · (logits + hidden + relations + likelihood)

Each part is one file beside this one, with settings of its own; without any the teacher's logits are learnt. A teacher
of the same vocabulary is run on the same batch. One of another text tokenizer reads the same text in its own tokens,
and `likelihood` excludes the others. Every part weighs tokens by `loss.modality_weights`.

Shapes: B rows, N tokens, P labelled tokens, U tokens of the teacher's own reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.utils import parametrize

from unimodal.config import MAY_CHANGE, Config
from unimodal.model.attention import Packing
from unimodal.model.logits import read_logit_rule
from unimodal.model.rows import select_head_biases, select_head_parts
from unimodal.objectives.cross_entropy import compute_chunked_cross_entropy
from unimodal.objectives.distillation.hidden import HiddenConfig, HiddenMatch
from unimodal.objectives.distillation.kept_targets import KeptTargets, TargetStore
from unimodal.objectives.distillation.likelihood import LikelihoodConfig, find_chunks, match_likelihoods
from unimodal.objectives.distillation.logits import LogitsConfig, compare_top, take_top
from unimodal.objectives.distillation.relations import RelationConfig, RelationMatch
from unimodal.objectives.distributions import compute_logits, differentiate_chunk, find_labelled, list_chunks
from unimodal.objectives.next_token import LossConfig, TokenLosses, shift_labels
from unimodal.objectives.objective import LossParts, Objective, number_documents, refuse_summed, run_decoder
from unimodal.objectives.silence import SilentBatches
from unimodal.objectives.states import BlockStates
from unimodal.text.tokenizer import TextTokenizer
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DistillationConfig(Config):
    """Learn from a teacher too."""

    #: a model folder of the same vocabulary; for `likelihood` any causal language model, by folder or hub id
    teacher: str
    share: float = Field(default=0.5, gt=0, le=1)  # of what is learnt from the teacher
    logits: LogitsConfig | None = None
    hidden: HiddenConfig | None = None
    relations: RelationConfig | None = None
    likelihood: LikelihoodConfig | None = None
    #: a folder that keeps the teacher's likeliest rows of each document (`logits.top`), so that it is run once on each
    cache: Annotated[Path | None, MAY_CHANGE] = None

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        others = [name for name in ("logits", "hidden", "relations") if getattr(self, name) is not None]
        if self.likelihood is not None and others:
            raise ValueError(
                f"likelihood is for a teacher of another tokenizer, and {others[0]} for one of the same; leave one out"
            )
        if self.cache is not None:
            if self.likelihood or self.hidden or self.relations:
                raise ValueError("cache keeps the teacher's logits alone; leave it or the other parts out")
            if not self.learnt_logits.top:
                raise ValueError("cache keeps the likeliest rows; say how many by logits.top")
        return self

    @property
    def learnt_logits(self) -> LogitsConfig:
        """The settings of the logits that are learnt where nothing else is said."""
        return self.logits or LogitsConfig()


@dataclass(frozen=True)
class Teacher:
    """A teacher. text, own_text, begin: for another tokenizer, that of the teacher, that of the student, and the row
    that the teacher reads before a text. store: keeps its targets."""

    model: PreTrainedModel
    text: TextTokenizer | None = None
    own_text: TextTokenizer | None = None
    begin: int = 0
    store: TargetStore | None = None


class TeacherLoss(Objective):
    """See the module."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        cfg: LossConfig | None,
        own: DistillationConfig,
        teacher: Teacher,
    ) -> None:
        super().__init__(model, vocabulary, cfg)
        refuse_summed(vocabulary, "distillation")
        if own.likelihood is not None and self.cfg.modality_weights.get("text") == 0:
            raise ValueError(
                "objective.distillation.likelihood learns text, which loss.modality_weights gives 0; give it a weight"
            )
        self.own = own
        self._silent = SilentBatches("objective.distillation.likelihood has found no learnt text")
        teacher.model.requires_grad_(False).eval()
        self._teacher = [teacher]  # in a list: it is not trained, saved or split
        self.logits = own.learnt_logits if not (own.hidden or own.relations or own.likelihood) else own.logits
        self.kept = None if teacher.store is None else KeptTargets(teacher.store)
        mine, other = model.config, teacher.model.config
        widths = int(mine.hidden_size), int(other.hidden_size)
        blocks = int(mine.num_hidden_layers), int(other.num_hidden_layers)
        self.hidden = None if own.hidden is None else HiddenMatch(own.hidden, *blocks, *widths)
        self.relations = None if own.relations is None else RelationMatch(own.relations, *widths)
        watch = own.hidden is not None or own.relations is not None
        self._states = [BlockStates(model), BlockStates(teacher.model)] if watch else []

    def forward(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        further: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        """See `Objective.forward`. values: not used."""
        packing, [teacher] = Packing.from_position_ids(position_ids), self._teacher
        metrics: dict[str, tuple[float, float]] = {}
        states, known = [], []
        needs_teacher = self.own.likelihood is None and self.kept is None
        strong = None
        if needs_teacher:
            with torch.no_grad():
                if self._states:
                    with self._states[1].collect() as known:
                        strong = run_decoder(teacher.model, ids, position_ids, packing)
                else:
                    strong = run_decoder(teacher.model, ids, position_ids, packing)
        with parametrize.cached():
            if self._states:
                with self._states[0].collect() as states:
                    losses, hidden = self._run_student(ids, labels, position_ids, packing)
            else:
                losses, hidden = self._run_student(ids, labels, position_ids, packing)
            result = losses.reduce(self.cfg.z_loss, self.cfg.modality_weights)
            num = float(result.weight)
            terms = {"tokens": (1 - self.own.share) * result.total}
            for name, term, weight in self._list_terms(
                ids, labels, position_ids, losses, hidden, strong, states, known
            ):
                terms[name] = self.own.share * weight * num * term
                metrics[f"teacher_{name}"] = (float(term.detach()), 1.0)
            total = self.touch_tables(torch.stack(list(terms.values())).sum())
        parts = self.describe_parts(num, result.per_block, metrics.items())
        parts["terms"] = terms
        return total, parts

    def _run_student(
        self, ids: Tensor, labels: Tensor, position_ids: Tensor, packing: Packing
    ) -> tuple[TokenLosses, Tensor]:
        hidden = run_decoder(self.model, ids, position_ids, packing)
        return self.score(self.model, hidden, ids, shift_labels(labels, position_ids)), hidden

    def _list_terms(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        losses: TokenLosses,
        hidden: Tensor,
        strong: Tensor | None,
        states: list[Tensor],
        known: list[Tensor],
    ) -> list[tuple[str, Tensor, float]]:
        """(name, mean, weight) of each part. strong: the teacher's last states. states, known: of all blocks."""
        found: list[tuple[str, Tensor, float]] = []
        kept = losses.where
        if not len(kept):
            return found
        if self.logits is not None:
            term = self._compare_logits(self.logits, ids, labels, position_ids, hidden, strong)
            found.append(("logits", term, self.logits.weight))
        weights = self.weigh_modalities(losses).float()
        if self.hidden is not None and self.own.hidden is not None:
            found.append(("hidden", self.hidden(states, known, kept, weights), self.own.hidden.weight))
        if self.relations is not None:
            cfg = self.relations.cfg
            kept, weights = kept[weights > 0], weights[weights > 0]
            step = max(1, -(-len(kept) // cfg.sample))  # evenly, so that a run that goes on takes the same tokens
            chosen = torch.arange(0, len(kept), step, device=kept.device)
            documents = number_documents(position_ids)[kept]
            mine, other = (of[-1].flatten(0, 1)[kept] for of in (states, known))
            if len(chosen) > 1:
                terms = self.relations(mine, other, documents, chosen, weights)
                found.append(("relations", self.relations.weigh(terms), 1.0))
        if self.own.likelihood is not None:
            term = self._match_likelihoods(self.own.likelihood, ids, labels, position_ids, losses)
            found.append(("likelihood", term, 1.0))
        return found

    def _compare_logits(
        self,
        cfg: LogitsConfig,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        hidden: Tensor,
        strong: Tensor | None,
    ) -> Tensor:
        """The mean divergence of the labelled tokens, weighted by their media."""
        [teacher] = self._teacher
        tokens = find_labelled(ids, shift_labels(labels, position_ids), self.groups)
        flat, weights = hidden.flatten(0, 1), self.weigh_groups(tokens.group)
        if self.kept is not None:
            known, rows = self.kept.find(
                ids, labels, position_ids, tokens.where, lambda: self._take_all(ids, labels, position_ids)
            )
        total = flat.sum() * 0.0
        for chunk in list_chunks(tokens, self.groups, self.cfg):
            places = tokens.where[chunk.places]
            if self.kept is not None:
                top, which = known[chunk.places], rows[chunk.places]
            else:
                assert strong is not None
                with torch.no_grad():
                    top, which = take_top(compute_logits(teacher.model, strong.flatten(0, 1)[places], chunk.rows), cfg)

            def compare(logits: Tensor, top: Tensor = top, which: Tensor = which) -> Tensor:
                return compare_top(top, which, logits, cfg)

            each = differentiate_chunk(compare, self.model, flat[places], chunk.rows)
            total = total + (weights[chunk.places] * each).sum()
        return total / weights.sum().clamp_min(1e-6)

    @torch.no_grad()
    def _take_all(self, ids: Tensor, labels: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's likeliest rows of every labelled token: log-probabilities and rows, each [P, k]."""
        [teacher], cfg = self._teacher, self.own.learnt_logits
        tokens = find_labelled(ids, shift_labels(labels, position_ids), self.groups)
        strong = run_decoder(teacher.model, ids, position_ids, Packing.from_position_ids(position_ids)).flatten(0, 1)
        known = torch.full((len(tokens.where), cfg.top), -1e9, device=ids.device)
        rows = torch.zeros(len(tokens.where), cfg.top, dtype=torch.int64, device=ids.device)
        for chunk in list_chunks(tokens, self.groups, self.cfg):
            top, which = take_top(compute_logits(teacher.model, strong[tokens.where[chunk.places]], chunk.rows), cfg)
            known[chunk.places, : top.shape[1]] = top
            rows[chunk.places, : top.shape[1]] = which
        return known, rows

    def _match_likelihoods(
        self, cfg: LikelihoodConfig, ids: Tensor, labels: Tensor, position_ids: Tensor, losses: TokenLosses
    ) -> Tensor:
        """The mean loss of the chunks of a batch; 0 without chunks."""
        [teacher] = self._teacher
        assert teacher.text is not None and teacher.own_text is not None
        chunks = find_chunks(ids, labels, position_ids, teacher.own_text, teacher.text, teacher.begin, cfg.chunks)
        if self.training:
            self._silent.count(bool(chunks.num))
        if not chunks.num:
            return losses.loss.sum() * 0.0
        with torch.no_grad():
            packing = Packing.from_position_ids(chunks.position_ids)
            states = run_decoder(teacher.model, chunks.ids, chunks.position_ids, packing)
            head = teacher.model.get_output_embeddings()
            rows = range(int(head.weight.shape[0]))
            lost, _ = compute_chunked_cross_entropy(
                states[0, :-1], chunks.ids[0, 1:], select_head_parts(head, rows), self.cfg.max_logits,
                select_head_biases(head, rows), read_logit_rule(teacher.model),
            )  # fmt: skip
        given = chunks.other[1:] >= 0
        known = lost.new_zeros(chunks.num).index_add(0, chunks.other[1:][given], -lost[given])
        of = chunks.mine[losses.where + 1]  # a loss stands at the token before its label
        found = losses.loss.new_zeros(chunks.num).index_add(0, of[of >= 0], -losses.loss[of >= 0])
        return match_likelihoods(found, known, cfg.temperature).mean()  # chunks are text: of one weight
