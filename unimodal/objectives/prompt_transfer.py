"""A soft prompt learns from another: on the same base (PANDA, arXiv 2208.10160) or on a small one (POST, 2506.16196).

    panda    cross-entropy + weight · s · Σ_labels mean((z - z_source)²)
    post     Σ_labels (1 - α) T² KL(p_source ‖ p) + α T² KL(d_source ‖ d),
             p = softmax(z / T), d = softmax((z - z_bare) / T)

z are the logits with the prompt, z_bare those without any, and the other side's are never differentiated. In PANDA the
source prompt is read by the same model; s is how like the two tasks are (`measure_likeness`), or 1. POST moves a prompt
that was tuned on a small model, which was distilled from the large one (`objective.distillation`), with public rows
alone: their labels say where to look and are not learnt. The private tuning is `prompt.private`.

The authors' PANDA divides the squared difference by the batch once more and has 0.1 · β for `weight`; here every term
is a sum over labels, which the loop divides by their number. The tokens that POST compares are a row's labelled ones;
the authors have one a row.

Shapes: B rows, N tokens, P labelled tokens, K rows of a softmax, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.utils import parametrize

from unimodal.config import Config
from unimodal.model.attention import Packing
from unimodal.model.soft_prompt import SoftPrompt, find_soft_prompt, find_width, list_prompt_ids, use_prompt
from unimodal.objectives.distributions import compute_logits, differentiate_chunk, find_labelled, list_chunks
from unimodal.objectives.next_token import IGNORE, LossConfig, shift_labels
from unimodal.objectives.objective import LossParts, Objective, refuse_summed, run_decoder
from unimodal.objectives.prompt_swap import read_with_prompt
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PromptTransferConfig(Config):
    """Learn from the prompt in `source`."""

    kind: Literal["panda", "post"] = "panda"
    #: panda: a folder with a prompt of the same base. post: a small model's folder, with its prompt
    source: Path
    weight: float = Field(default=0.1, gt=0)  # of panda's second term
    #: panda: a prompt tuned on these rows alone, by which the likeness of the tasks is measured; null: they are alike
    target: Path | None = None
    alpha: float = Field(default=0.5, ge=0, le=1)  # of post
    temperature: float = Field(default=2.0, gt=0)  # of post

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        if self.kind == "post" and self.target is not None:
            raise ValueError("target measures how like two tasks of panda are; leave it out of post")
        return self


class PromptTransfer(Objective):
    """See the module. small: the model of POST, with its prompt. prompts: of PANDA, the source's, and the target's
    where one is given.

    Raises ValueError for a model without a soft prompt, and for a prompt of another width.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        cfg: LossConfig | None,
        own: PromptTransferConfig,
        small: PreTrainedModel | None = None,
        prompts: Sequence[SoftPrompt] = (),
    ) -> None:
        super().__init__(model, vocabulary, cfg)
        refuse_summed(vocabulary, "prompt_transfer")
        prompt, width = find_soft_prompt(model), find_width(model)
        if prompt is None:
            raise ValueError("objective.prompt_transfer tunes a soft prompt; set prompt")
        for other in prompts:
            if other.vectors.shape[1] != width:
                raise ValueError(
                    f"objective.prompt_transfer: a prompt of width {other.vectors.shape[1]} does not fit a base of "
                    f"width {width}; kind=post moves prompts between bases"
                )
            other.requires_grad_(False).to(prompt.vectors.device)
        if small is not None and find_soft_prompt(small) is None:
            raise ValueError(f"objective.prompt_transfer.source: {own.source} has no soft prompt")
        self.own = own
        self._small = [] if small is None else [small.requires_grad_(False).eval()]  # in lists: they are not trained
        self._prompts = list(prompts)

    def forward(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        further: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        """See `Objective.forward`. further, values: not used."""
        with parametrize.cached():
            hidden = run_decoder(self.model, ids, position_ids, Packing.from_position_ids(position_ids))
            if self.own.kind == "post":
                return self._move(hidden, ids, labels, position_ids)
            return self._keep_knowledge(hidden, ids, labels, position_ids)

    def _keep_knowledge(
        self, hidden: Tensor, ids: Tensor, labels: Tensor, position_ids: Tensor
    ) -> tuple[Tensor, LossParts]:
        """PANDA."""
        found = self.score(self.model, hidden, ids, shift_labels(labels, position_ids)).reduce(
            self.cfg.z_loss, self.cfg.modality_weights
        )
        source, *target = (self._read_by(prompt, ids, position_ids) for prompt in self._prompts)
        like = measure_likeness(*(one[self._find_read(ids, labels)] for one in (source, target[0]))) if target else 1.0
        tokens = find_labelled(ids, self._find_targets(ids, labels, position_ids), self.groups)
        flat, term = hidden.flatten(0, 1), hidden.sum() * 0.0
        for chunk in list_chunks(tokens, self.groups, self.cfg):
            places = tokens.where[chunk.places]
            with torch.no_grad():
                known = compute_logits(self.model, source[places], chunk.rows)

            def compare(logits: Tensor, known: Tensor = known) -> Tensor:
                return (logits - known).square().mean(1)

            term = term + differentiate_chunk(compare, self.model, flat[places], chunk.rows).sum()
        total = found.total + self.own.weight * like * term
        metrics = {"transfer": (float(term.detach()), float(max(1, len(tokens.where)))), "likeness": (float(like), 1.0)}
        return self.touch_tables(total), self.describe_parts(found.weight, found.per_block, metrics.items())

    def _move(self, hidden: Tensor, ids: Tensor, labels: Tensor, position_ids: Tensor) -> tuple[Tensor, LossParts]:
        """POST."""
        [small], alpha, warm = self._small, self.own.alpha, self.own.temperature
        with torch.no_grad():
            bare = read_with_prompt(self.model, (), ids, position_ids)
            theirs = read_with_prompt(small, list_prompt_ids(small), ids, position_ids)
            theirs_bare = read_with_prompt(small, (), ids, position_ids)
        tokens = find_labelled(ids, self._find_targets(ids, labels, position_ids), self.groups)
        flat, total = hidden.flatten(0, 1), hidden.sum() * 0.0
        blocks: dict[str, tuple[float, int]] = {}
        for chunk in list_chunks(tokens, self.groups, self.cfg):
            places = tokens.where[chunk.places]
            with torch.no_grad():
                own_bare = compute_logits(self.model, bare[places], chunk.rows)
                known = compute_logits(small, theirs[places], chunk.rows)
                moved = known - compute_logits(small, theirs_bare[places], chunk.rows)

            def compare(
                logits: Tensor, own_bare: Tensor = own_bare, known: Tensor = known, moved: Tensor = moved
            ) -> Tensor:
                straight = _diverge(known, logits, warm)
                return (1 - alpha) * straight + alpha * _diverge(moved, logits - own_bare, warm)

            part = differentiate_chunk(compare, self.model, flat[places], chunk.rows).sum()
            total = total + part
            name = self.groups.groups[int(tokens.group[chunk.places[0]])].name
            summed, count = blocks.get(name, (0.0, 0))
            blocks[name] = (summed + float(part.detach()), count + len(places))
        return self.touch_tables(total), self.describe_parts(float(len(tokens.where)), blocks)

    @torch.no_grad()
    def _read_by(self, prompt: SoftPrompt, ids: Tensor, position_ids: Tensor) -> Tensor:
        """The last states at each token, [B * N, D], with another prompt on this model; 0 at those of a prompt."""
        with use_prompt(self.model, prompt):
            return read_with_prompt(self.model, tuple(prompt.ids), ids, position_ids)

    @staticmethod
    def _find_targets(ids: Tensor, labels: Tensor, position_ids: Tensor) -> Tensor:
        """Targets [B, N] without those that a prompt's last token predicts: other prompts have no such token."""
        return shift_labels(labels, position_ids).masked_fill(ids < 0, IGNORE)

    @staticmethod
    def _find_read(ids: Tensor, labels: Tensor) -> Tensor:
        """bool [B * N], the tokens whose states say what a task is: those that are learnt."""
        return ((ids >= 0) & (labels != IGNORE)).reshape(-1)


def measure_likeness(source: Tensor, target: Tensor) -> float:
    """How like two tasks are, from 0 to 1, by the states [M, D] of the same M tokens read with the prompt of each.

    The authors' metric is the cosine of the two tasks' embeddings, which prompts put into one space; the embedding of a
    task is here the mean of its last states, and a negative cosine is no likeness.
    """
    if not len(source):
        return 0.0
    return max(0.0, float(F.cosine_similarity(source.float().mean(0), target.float().mean(0), dim=0)))


def _diverge(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher ‖ student) of logits [c, K] → [c]."""
    p, q = ((one / temperature).log_softmax(1) for one in (teacher, student))
    return (p.exp() * (p - q)).sum(1) * temperature**2
