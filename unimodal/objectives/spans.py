"""Spans of codes that are learnt under a mask of their own: which they are, what a token sees, and one decoder pass.

Every objective of this kind takes one run of codes of a document, as the decoders write one block at a time: what is
before it is seen as it is, what is behind it is not learnt. Everywhere else attention stays causal, so words are
learnt as ever. Only blocks that are one codebook of a fixed number of codes are so learnt; where the number is free, or
the codes of several books take turns, the codes are learnt token by token, and are so written.

What is random about a document is drawn by a generator of its own, seeded by its ids and by one number of torch's
generator a batch: it does not depend on what the document is packed with. While a model is evaluated that number is 0.

Shapes: B rows, N tokens, L codes of a span, V rows of the vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unimodal.model.windows import find_windows, make_layer_masks
from unimodal.objectives.next_token import IGNORE, HeadGroups, LossConfig, TokenLosses, shift_labels
from unimodal.objectives.objective import LossParts, Objective, number_documents
from unimodal.objectives.silence import SilentBatches
from unimodal.objectives.writing import SpanConfig
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LearntSpan:
    """A run of codes of one block that is learnt. places: int64 [L], ascending, their columns in the row.

    block: the index of its group of `HeadGroups`. generator: of all that is random about it.
    """

    row: int
    places: Tensor
    block: int
    generator: torch.Generator

    @property
    def length(self) -> int:
        return len(self.places)


def number_blocks(groups: HeadGroups, vocabulary: Vocabulary) -> Tensor:
    """`HeadGroups.group_of_row`, int64 [V], with 0 in blocks that are learnt token by token."""
    free = {segment.block for layout in vocabulary.layouts for segment in layout.segments if segment.count is None}
    found = groups.group_of_row.clone()
    for block in vocabulary.blocks:
        if block.name in free or len(vocabulary.group_blocks(block.name)) > 1:
            found[block.start : block.start + block.size] = 0
    return found


def find_runs(labels: Tensor, position_ids: Tensor, group_of_row: Tensor) -> Tensor:
    """The runs of learnt codes of one block: int64 [B, N], 1, 2, … in each row, 0 elsewhere.

    group_of_row: int64 [V], of `number_blocks`, where 0 is what is no code.
    """
    group = group_of_row.to(labels.device)[labels.clamp(min=0)]
    code = (labels != IGNORE) & (group > 0)
    group = torch.where(code, group, -1)
    begins = code.clone()
    begins[:, 1:] &= (group[:, 1:] != group[:, :-1]) | (position_ids.expand_as(labels)[:, 1:] == 0)
    return torch.where(code, begins.long().cumsum(1), 0)


def choose_spans(
    ids: Tensor,
    labels: Tensor,
    position_ids: Tensor,
    group_of_row: Tensor,
    share: float = 1.0,
    salt: int = 0,
    known: Collection[tuple[int, int]] | None = None,
) -> list[LearntSpan]:
    """One run of codes of each document that is learnt as a span; none of 1 - `share` of the documents.

    A run is chosen with a probability proportional to its length. salt: what changes the choice from batch to batch.
    known: (block, length) of the runs that count; None for all. Arguments as of `Objective.forward` and `find_runs`.
    """
    runs = find_runs(labels, position_ids, group_of_row)
    documents = number_documents(position_ids.expand_as(ids)).view_as(ids)
    spans = []
    for row in (runs > 0).any(1).nonzero()[:, 0].tolist():
        for document in documents[row][runs[row] > 0].unique().tolist():
            own = documents[row] == document
            found: list[tuple[Tensor, int]] = []
            for run in runs[row][own & (runs[row] > 0)].unique().tolist():
                places = (runs[row] == run).nonzero()[:, 0]
                block = int(group_of_row[int(ids[row, places[0]])])
                if known is None or (block, len(places)) in known:
                    found.append((places, block))
            if not found:
                continue
            generator = seed_generator(ids[row][own], salt)
            kept, at = torch.rand(2, generator=generator).tolist()
            if kept < share:
                every = [number for number, (places, _) in enumerate(found) for _ in range(len(places))]
                places, block = found[every[int(at * len(every))]]
                spans.append(LearntSpan(row, places, block, generator))
    return spans


def seed_generator(ids: Tensor, salt: int) -> torch.Generator:
    """A generator seeded by the ids [N] of a document and a number."""
    content = ids.cpu().numpy().tobytes() + salt.to_bytes(8, "little")
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(content).digest()[:7], "little"))


def list_seen(position_ids: Tensor, spans: Sequence[LearntSpan], patterns: Sequence[Tensor]) -> Tensor:
    """What each token sees, bool [B, N, N]: the past of its document, and in a span what its pattern says.

    position_ids: int64 [B, N]. patterns: bool [L, L] of each span, what each of its codes sees of them.
    """
    num, length = position_ids.shape
    documents = number_documents(position_ids).view(num, length)
    past = torch.ones(length, length, dtype=torch.bool, device=position_ids.device).tril()
    seen = (documents[:, :, None] == documents[:, None]) & past
    for span, pattern in zip(spans, patterns, strict=True):
        seen[span.row, span.places[:, None], span.places] = pattern.to(seen.device)
    return seen


def leave_out_behind(labels: Tensor, position_ids: Tensor, spans: Sequence[LearntSpan]) -> Tensor:
    """Labels [B, N] without those of the spans and of what follows a span in its document."""
    documents = number_documents(position_ids).view_as(labels)
    learnt = labels.clone()
    columns = torch.arange(labels.shape[1], device=labels.device)
    for span in spans:
        first = int(span.places[0])
        learnt[span.row, (columns >= first) & (documents[span.row] == documents[span.row, first])] = IGNORE
    return learnt


class SpanObjective(Objective):
    """The base class: checks that the base sees ahead, chooses spans, and runs the decoder under a mask of its own.

    Raises ValueError for a base that sees the past only, and for a vocabulary with summed positions or without blocks
    of a fixed number of codes. name: of the objective, for messages. mask_id: the row that stands for a hidden code;
    None is ``<|pad|>``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        cfg: LossConfig | None,
        own: SpanConfig,
        name: str,
        mask_id: int | None = None,
    ) -> None:
        super().__init__(model, vocabulary, cfg)
        if not vocabulary.positions.is_flat:
            raise ValueError(f"objective.{name} hides codes of a position each; leave `summed` out")
        check_sees_ahead(model)
        if mask_id is not None and not 0 <= mask_id < vocabulary.size:
            raise ValueError(f"mask_id is {mask_id}; it is one of the {vocabulary.size} rows of the vocabulary")
        self.share = own.share
        self.mask_id = vocabulary.get_control_id("<|pad|>") if mask_id is None else mask_id
        for module in model.get_input_embeddings().modules():
            if isinstance(module, nn.Embedding):
                module.padding_idx = None  # which keeps a row from learning, and the mask is the padding's
        self.group_of_row = number_blocks(self.groups, vocabulary)
        if not (self.group_of_row > 0).any():
            raise ValueError(
                f"objective.{name} learns blocks of one codebook and of a fixed number of codes, and the vocabulary "
                "has none; leave it out"
            )
        self._silent = SilentBatches(f"objective.{name} has found no answer with codes that it learns in a span")
        self.windows = find_windows(model.config)
        self.known: Collection[tuple[int, int]] | None = None

    def forward(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        further: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        """See `Objective.forward`."""
        assert further is None, "a vocabulary with summed positions is refused"
        position_ids = position_ids.expand_as(ids)
        spans = self.choose(ids, labels, position_ids)
        if self.training:
            self._silent.count(bool(spans))
        return self.learn(ids, labels, position_ids, spans)

    def learn(
        self, ids: Tensor, labels: Tensor, position_ids: Tensor, spans: list[LearntSpan]
    ) -> tuple[Tensor, LossParts]:
        """The loss of a batch and its parts. ids, labels, position_ids: int64 [B, N]. spans: those of `choose`."""
        raise NotImplementedError

    def choose(self, ids: Tensor, labels: Tensor, position_ids: Tensor) -> list[LearntSpan]:
        """The spans of a batch, of which each document has one at most."""
        salt = int(torch.randint(2**62, ())) if self.training else 0
        return choose_spans(ids, labels, position_ids, self.group_of_row, self.share, salt, self.known)

    def run_seen(self, ids: Tensor, position_ids: Tensor, seen: Tensor) -> Tensor:
        """The last states [B, N, D] of tokens of which each sees what `seen`, bool [B, N, N], says."""
        masks = make_layer_masks(seen, position_ids, position_ids, self.windows, self.model.dtype)
        decoder = self.model.get_decoder()
        return decoder(
            input_ids=ids, position_ids=position_ids, use_cache=False, attention_mask=masks
        ).last_hidden_state

    def score_places(
        self, states: Tensor, ids: Tensor, learnt: Tensor, position_ids: Tensor, at_own: Tensor | None = None
    ) -> TokenLosses:
        """The losses of the labels `learnt` [B, N], predicted at the place before; those of `at_own`, at their own.

        at_own: bool [B, N]; their labels are the ids.
        """
        targets, previous = shift_labels(learnt, position_ids), ids
        if at_own is not None:
            targets[:, :-1].masked_fill_(at_own[:, 1:], IGNORE)
            targets, previous = torch.where(at_own, ids, targets), torch.where(at_own, ids.roll(1, 1), ids)
        return self.score(self.model, states, previous, targets)

    def sum_up(self, losses: TokenLosses) -> tuple[Tensor, LossParts]:
        """The loss of a batch and its parts."""
        result = losses.reduce(self.cfg.z_loss, {str(name): one for name, one in self.cfg.modality_weights.items()})
        return self.touch_tables(result.total), self.describe_parts(result.weight, result.per_block)


@torch.no_grad()
def check_sees_ahead(model: PreTrainedModel) -> None:
    """Raises ValueError unless a token of the model sees a later one where a mask lets it, and only there."""
    table = model.get_input_embeddings()
    device = next(model.parameters()).device
    places = torch.arange(4, device=device)[None]
    seen = torch.ones(1, 4, 4, dtype=torch.bool, device=device).tril()
    seen[:, 1, 3] = True  # token 1 sees token 3
    mask = make_layer_masks(seen, places, places, find_windows(model.config), model.dtype)
    training = model.training
    states = []
    try:
        for last in (4, 5):
            embedded = table(torch.tensor([[1, 2, 3, last]], device=device))
            model.eval()
            decoder = model.get_decoder()
            out = decoder(inputs_embeds=embedded, position_ids=places, use_cache=False, attention_mask=mask)
            states.append(out.last_hidden_state[0])
        difference = (states[0] - states[1]).abs().amax(1)  # [4]; experts of others may round otherwise
        moved = (difference > 1e-5 * states[0].abs().max()).tolist()
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        moved = []
    finally:
        model.train(training)
    if moved[:2] != [False, True]:  # token 2 sees the change through token 1
        raise ValueError(
            f"masked codes see their whole span, and {type(model).__name__} with attention "
            f"{model.config._attn_implementation!r} sees the past only; set attention: sdpa, or objective: next_token"
        )
