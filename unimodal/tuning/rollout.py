"""Batches of answers that the model in training wrote itself, with their advantages (`objectives/grpo.py`).

A batch is made when it is asked for, by the weights of that moment: questions are drawn from the corpus, the engine
writes a group of answers to each, rewards score them, and each answer becomes a document with two values a token. The
noise of an answer depends on the seed, the number of its draw and its place in the group, so a run that goes on from a
checkpoint writes what it would have written.

Shapes: Q questions, G answers of a group, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from unimodal.coder.media_coder import MediaCoder
from unimodal.corpus.corpus import Corpus
from unimodal.data.mixture import Batches
from unimodal.data.order import mix64
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import SamplingConfig
from unimodal.model.attention import Packing
from unimodal.objectives.grpo import GrpoLoss, compute_advantages
from unimodal.objectives.row_prior import RowPrior
from unimodal.objectives.sinks import SinkDecorrelation
from unimodal.sequence.document import Document, Media, Part
from unimodal.sequence.packing import PackedBatch, pack, stack
from unimodal.sequence.templates.own import IGNORE, Rendered
from unimodal.training.checkpoint import State
from unimodal.training.distributed import Parallel, Sharded
from unimodal.training.metrics import Sums
from unimodal.training.settings import LoopConfig
from unimodal.tuning.loss import to_tensors
from unimodal.tuning.rewards import Attempt, RewardContext, Rewards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEED_MASK = (1 << 63) - 1


class Rollouts:
    """An endless source of batches, as `Trainer` takes it. `sums` holds what the last batch was worth.

    objective: the module in training, whose model writes. Raises ValueError for rewards that cannot be had and, in
    `next_batch`, for a reward that is no finite number.
    """

    def __init__(
        self, objective: GrpoLoss, corpus: Corpus, context: RewardContext, seed: int, rank: int = 0, num_ranks: int = 1
    ) -> None:
        self.objective, self.own, self.context, self.seed = objective, objective.own, context, seed
        self.template, self.length = corpus.template, corpus.cfg.length
        self.mixture = corpus.make_mixture(rank, num_ranks)
        self.before = corpus.before
        most = int(objective.model.config.max_position_embeddings)
        self.limit = min(corpus.cfg.length, most) - len(self.before)
        self.rewards = Rewards(self.own.rewards, self.own.weights)
        self.drawn = 0  # questions that this rank has drawn
        self.dealt = 0  # times that the batch was learnt from
        self.sums: Sums = {}
        self._batch: PackedBatch | None = None

    def next_batch(self) -> PackedBatch:
        """The next batch, arrays [B, N]."""
        if self._batch is None or self.dealt >= self.own.repeats:
            self._batch, self.dealt = self._roll_out(), 0
        self.dealt += 1
        return self._batch

    def state_dict(self) -> State:
        """How far the questions are, and the batch that is learnt from again, if there is one."""
        again = self._batch is not None and self.dealt < self.own.repeats
        kept = [torch.from_numpy(getattr(self._batch, field.name)) for field in fields(PackedBatch)] if again else []
        counts = {"drawn": self.drawn, "dealt": self.dealt}
        return {"mixture": self.mixture.state_dict(), **counts, "batch": kept, "sums": self.sums}

    def load_state_dict(self, state: State) -> None:
        self.mixture.load_state_dict(state["mixture"])
        self.drawn, self.dealt, self.sums = int(state["drawn"]), int(state["dealt"]), dict(state["sums"])
        self._batch = PackedBatch(*(tensor.numpy() for tensor in state["batch"])) if state["batch"] else None

    def _roll_out(self) -> PackedBatch:
        prompts, seeds, asked = [], [], []
        for _ in range(self.own.questions):
            question, reference = self._draw_question()
            for place in range(self.own.group):
                prompts.append(question.ids.tolist())
                number = self.drawn * self.mixture.num_ranks + self.mixture.rank
                seeds.append(mix64(self.seed ^ mix64(number << 16 | place)) & SEED_MASK)
                asked.append(reference)
            self.drawn += 1
        answers = self._write(prompts, seeds, asked)
        attempts = [
            Attempt(self.template.parse(prompt), self.template.parse_answer(self._close(answer)), reference)
            for prompt, answer, reference in zip(prompts, answers, asked, strict=True)
        ]
        attempts = [replace(one, question=_drop_open_answer(one.question)) for one in attempts]
        with self._use_start() as model:
            total, found = self.rewards.score(attempts, replace(self.context, model=model))
        advantages = compute_advantages(total.view(-1, self.own.group), self.own.scale_rewards).flatten().tolist()
        num = float(len(attempts))
        distinct = len({(index // self.own.group, *answer) for index, answer in enumerate(answers)})
        self.sums = {"reward": (float(total.sum()), num), "distinct": (float(distinct), num)}
        if len(found) > 1:
            self.sums |= {f"reward_{name}": (float(scores.sum()), num) for name, scores in found.items()}
        rows = [self._render(*item) for item in zip(prompts, answers, advantages, strict=True)]
        packed = pack(rows, self.length, self.template.vocabulary.get_control_id("<|pad|>"))
        return self._remember_likelihoods(stack(packed)) if self.own.repeats > 1 else stack(packed)

    def _draw_question(self) -> tuple[Rendered, tuple[Part, ...]]:
        """The next question that leaves room for an answer, and the parts of the row's own answer."""
        for _ in range(1000):
            _, group = self.mixture.next()
            question, *answers = group.split_group()
            if len(question) + self.own.max_tokens <= self.limit:
                reference: tuple[Part, ...] = ()
                if answers:
                    labels = answers[0].labels
                    reference = self.template.parse_answer(labels[labels != IGNORE])
                return question, reference
        raise ValueError(
            f"1000 questions in a row leave no room for objective.grpo.max_tokens {self.own.max_tokens} in rows of "
            f"{self.limit} tokens; lower it, or raise corpus.length"
        )

    def _write(
        self, prompts: Sequence[list[int]], seeds: Sequence[int], asked: Sequence[tuple[Part, ...]]
    ) -> list[list[int]]:
        """The ids of an answer to each prompt, by the model as it is now."""
        model, own = self.objective.model, self.own
        training = model.training
        names = ("text", *self.template.vocabulary.media)
        sampling = {name: SamplingConfig(temperature=own.temperature) for name in names}
        configs = []
        for seed, reference in zip(seeds, asked, strict=True):
            medium = own.medium or _name_medium(reference)
            force = None if medium == "text" else medium
            configs.append(
                GenerationConfig(
                    max_new_tokens=own.max_tokens, seed=seed, sampling=sampling, force=force,
                    allow=(medium,), max_spans=None if force is None else 1,
                )
            )  # fmt: skip
        try:
            return Engine(model, self.template.vocabulary).generate(prompts, configs)
        finally:
            model.train(training)

    @contextmanager
    def _use_start(self) -> Iterator[PreTrainedModel]:
        """The model of the start, to which rewards belong; the model itself if the objective keeps none."""
        start = self.objective.start
        with start.use() if start is not None else nullcontext(self.objective.model) as model:
            training = model.training
            yield model
            model.train(training)

    def _close(self, answer: list[int]) -> list[int]:
        """An answer without a span that was cut off by the limit of tokens."""
        vocabulary = self.template.vocabulary
        starts = [at for at, row in enumerate(answer) if vocabulary.find_opened_medium(row) is not None]
        if starts:
            medium = vocabulary.find_opened_medium(answer[starts[-1]])
            assert medium is not None
            if vocabulary.get_end_id(medium) not in answer[starts[-1] :]:
                return answer[: starts[-1]]
        return answer

    def _render(self, prompt: list[int], answer: list[int], advantage: float) -> Rendered:
        ids = np.array([*prompt, *answer], dtype=np.int64)
        labels = ids.copy()
        labels[: len(prompt)] = IGNORE
        rendered = Rendered(ids, labels, np.zeros(len(ids), dtype=np.uint8))
        return rendered.give_values(advantage, 0.0).fold(self.template.vocabulary.positions).put_before(self.before)

    @torch.no_grad()
    def _remember_likelihoods(self, batch: PackedBatch) -> PackedBatch:
        """The batch with the log-probability of each learnt token, where the loss looks for it."""
        ids, labels, position_ids, *further = to_tensors(batch, next(self.objective.parameters()).device)
        packing = Packing.from_position_ids(position_ids)
        losses = self.objective.compute_losses(
            self.objective.model, ids, labels, position_ids, packing, further[0] if further else None
        )
        values = batch.values.copy()
        values.reshape(-1, 2)[losses.where.cpu().numpy(), 1] = -losses.loss.cpu().numpy()
        return replace(batch, values=values)


def make_batches(
    module: nn.Module, corpus: Corpus, media: MediaCoder | None, loop: LoopConfig, parallel: Parallel
) -> Batches | Rollouts:
    """The batches of a rank: of the corpus, or, for an objective that learns from the model's own answers, of those.

    Raises ValueError for settings that such an objective cannot have.
    """
    objective = module
    while isinstance(objective, (SinkDecorrelation, RowPrior)):
        objective = objective.main
    if not isinstance(objective, GrpoLoss):
        return corpus.make_batches(parallel.rank, parallel.num_ranks, whole_passes=loop.epochs is not None)
    if loop.epochs is not None:
        raise ValueError("loop.epochs counts passes over answers, and objective.grpo writes its own; give loop.steps")
    if isinstance(parallel, Sharded):
        raise ValueError("objective.grpo writes with the whole model; train it by finetune_lora.py, or in one process")
    questions = {} if media is None else dict(media.processor.wording.questions)
    context = RewardContext(objective.model, corpus.template, media, questions)
    return Rollouts(objective, corpus, context, loop.seed, parallel.rank, parallel.num_ranks)


def _drop_open_answer(question: Document) -> Document:
    """The question without the empty turn in which the answer is written."""
    last = question.turns[-1]
    return Document(question.turns[:-1]) if last.role == "assistant" and not last.parts else question


def _name_medium(reference: Sequence[Part]) -> str:
    """The medium of a row's own answer, or text. Raises ValueError for a row without an answer."""
    if not reference:
        raise ValueError("the rows have no answers to tell what is to be written; set objective.grpo.medium")
    return next((part.modality for part in reference if isinstance(part, Media)), "text")
