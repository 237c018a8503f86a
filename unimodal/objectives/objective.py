"""What every objective has in common: a decoder and its loss as one module, which DDP and FSDP2 wrap.

An objective is called with the tensors of a packed batch and returns a summed loss with its parts. `weight` is what
the sum is divided by: the labelled tokens of next-token training, the pairs of preference training. So accumulated
batches and ranks give the step of one batch that holds them all.

Shapes: B rows, N tokens, G the most codes of a position, K values a token, P labelled tokens, S documents of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from unimodal.model.attention import Packing
from unimodal.model.depth_decoder import embed_positions, find_depth_decoder
from unimodal.model.fourier_head import find_fourier_heads, find_scoring_head
from unimodal.model.logits import read_logit_rule
from unimodal.objectives.depth_loss import compute_depth_losses
from unimodal.objectives.next_token import HeadGroups, LossConfig, TokenLosses, compute_token_losses, shift_labels
from unimodal.objectives.silence import SilentBatches
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: what the rows of a dataset hold: answers; a chosen and a rejected answer each; answers with a label; only questions
RowKind = Literal["answers", "pairs", "labels", "prompts"]


class LossParts(TypedDict):
    """What a summed loss consists of.

    weight: what to divide it by. modalities, blocks: by name, (summed cross-entropy in nats, number of tokens).
    metrics: further numbers to log, by name, (sum, count). terms: the losses that the loss is the sum of, by name, with
    their gradients; left out where there is one only.
    """

    weight: float
    modalities: dict[str, tuple[float, int]]
    blocks: dict[str, tuple[float, int]]
    metrics: dict[str, tuple[float, float]]
    terms: NotRequired[dict[str, Tensor]]


class Objective(nn.Module):
    """The base class: runs packed documents through a causal LM and gives the losses of their labelled tokens.

    model: a causal LM of transformers. cfg: how labelled positions are scored, whatever is made of it.
    """

    rows: ClassVar[RowKind] = "answers"
    compares_with_start: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel, vocabulary: Vocabulary, cfg: LossConfig | None = None) -> None:
        super().__init__()
        self.model = model
        self.cfg = cfg or LossConfig()
        self.groups, self.modalities = HeadGroups.from_vocabulary(vocabulary), vocabulary.modalities
        self.rule = read_logit_rule(model)
        self._weightless = SilentBatches("loss.modality_weights are 0 for all labels", "nothing of them is learnt")

    def forward(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        further: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        """ids, labels (aligned, -100: not scored) and position_ids, each int64 [B, N] → the summed loss and its parts.

        further: int64 [B, N, G - 1], the codes behind the first of a summed position, -1 for none. values: float32
        [B, N, K], what the objective is told of each token.
        """
        raise NotImplementedError

    def compute_losses(
        self,
        model: PreTrainedModel,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        packing: Packing,
        further: Tensor | None,
    ) -> TokenLosses:
        """The losses of the labelled tokens under `model`."""
        depth = None if further is None else find_depth_decoder(model)
        hidden = run_decoder(model, ids, position_ids, packing, further)
        targets = shift_labels(labels, position_ids)
        losses = self.score(model, hidden, ids, targets)
        if depth is None or further is None:
            return losses
        rule, cfg = self.rule, self.cfg
        return losses.join(compute_depth_losses(model, depth, hidden, targets, further, self.groups, cfg, rule))

    def score(self, model: PreTrainedModel, hidden: Tensor, ids: Tensor, targets: Tensor) -> TokenLosses:
        """The losses of the labelled tokens by the model's last states [B, N, D]; targets of `shift_labels`, [B, N]."""
        cfg, head = self.cfg, find_scoring_head(model)
        return compute_token_losses(hidden, ids, targets, head, self.groups, cfg.softmax, cfg.max_logits, self.rule)

    def weigh_modalities(self, losses: TokenLosses) -> Tensor:
        """The weight of each labelled token's medium, [P]."""
        return self.weigh_groups(losses.group).to(losses.loss.dtype)

    def weigh_groups(self, group: Tensor) -> Tensor:
        """group: int64 [P], of labels → the weight of its medium, [P]."""
        factors = [float(self.cfg.modality_weights.get(one.modality, 1.0)) for one in self.groups.groups]
        return torch.tensor(factors, device=group.device)[group]

    def touch_tables(self, total: Tensor) -> Tensor:
        """`total` plus 0 times the tables' rows: those that a batch does not score take part too, since DDP waits."""
        modules = [self.model.get_input_embeddings(), self.model.get_output_embeddings()]
        modules += [one for one in (find_depth_decoder(self.model), find_fourier_heads(self.model)) if one is not None]
        for parameter in dict.fromkeys(p for module in modules for p in module.parameters()):
            if parameter.requires_grad:
                total = total + 0.0 * parameter.sum()
        return total

    def describe_parts(
        self,
        weight: float,
        blocks: dict[str, tuple[float, int]],
        metrics: Iterable[tuple[str, tuple[float, float]]] = (),
    ) -> LossParts:
        """The parts of a loss, with its blocks summed up by medium."""
        modality_of = {group.name: group.modality for group in self.groups.groups}
        modalities = dict.fromkeys(self.modalities, (0.0, 0))
        for name, (summed, count) in blocks.items():
            old = modalities[modality_of[name]]
            modalities[modality_of[name]] = (old[0] + summed, old[1] + count)
        found = {name: pair for name, pair in modalities.items() if pair[1]}
        if self.training and found:
            self._weightless.count(any(self.cfg.modality_weights.get(name, 1.0) for name in found))
        return LossParts(weight=weight, modalities=found, blocks=blocks, metrics=dict(metrics))


def run_decoder(
    model: PreTrainedModel, ids: Tensor, position_ids: Tensor, packing: Packing, further: Tensor | None = None
) -> Tensor:
    """The last hidden states [B, N, D] of packed documents."""
    decoder = model.get_decoder()
    if further is None:
        out = decoder(input_ids=ids, position_ids=position_ids, use_cache=False, packing=packing)
    else:
        assert find_depth_decoder(model) is not None, "a vocabulary with summed positions needs a depth decoder"
        embedded = embed_positions(model.get_input_embeddings(), torch.cat([ids[..., None], further], 2))
        out = decoder(inputs_embeds=embedded, position_ids=position_ids, use_cache=False, packing=packing)
    return out.last_hidden_state


def refuse_summed(vocabulary: Vocabulary, name: str) -> None:
    """Raises ValueError for a vocabulary of which a position holds several codes."""
    if not vocabulary.positions.is_flat:
        raise ValueError(f"objective.{name} compares one distribution a position, and summed positions have several")


def number_documents(position_ids: Tensor) -> Tensor:
    """position_ids [B, N] → the number of each token's document among the S of the batch, int64 [B * N].

    The padding at the end of a row counts as one more document, which has no labels.
    """
    return (position_ids.reshape(-1) == 0).cumsum(0) - 1


def sum_documents(numbers: Tensor, documents: Tensor, num: int) -> Tensor:
    """numbers [P] of the labelled tokens and the documents int64 [P] they belong to → their sums, [num]."""
    return numbers.new_zeros(num).index_add(0, documents, numbers)
