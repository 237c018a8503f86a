"""A reader of pictures, learnt through a language model that answers about what it reads.

The reader's frozen part has looked at every picture before; its trained part, from one linear map (LiMBeR, arXiv
2209.15162) to the fusion of two encoders (CoME-VL, 2604.03231), makes the embeddings that stand at the picture's
placeholders. The loss is the cross-entropy of the labelled tokens, and its gradient reaches the reader through the
model, frozen or not.

The batch's `values`, float32 [B, N, 1], say which picture a placeholder is of: its number from 1 on, 0 elsewhere.

Shapes: B rows, N tokens, P pictures of a batch, F features of a picture, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from unimodal.model.attention import Packing
from unimodal.objectives.next_token import LossConfig, shift_labels
from unimodal.objectives.objective import LossParts, Objective
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: numbers of pictures, from 0 → what the frozen part saw of them, tensors with P rows each
FindSeen = Callable[[Sequence[int]], tuple[Tensor, ...]]


class TrainedReader(Protocol):
    """What is learnt of a reader. num_features: F."""

    num_features: int

    def map(self, seen: tuple[Tensor, ...]) -> Tensor:
        """What the frozen part saw of P pictures → their embeddings [P, F, D], with a gradient."""

    def parameters(self) -> object: ...


class ReaderLoss(Objective):
    """The next-token loss of packed documents whose pictures are read. reader: a module that is a `TrainedReader`."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        reader: nn.Module,
        find_seen: FindSeen,
        cfg: LossConfig | None = None,
    ) -> None:
        super().__init__(model, vocabulary, cfg)
        self.reader, self.find_seen = reader, find_seen

    def forward(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        further: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        """As `Objective.forward`. values: see above."""
        assert further is None and values is not None, "pictures are read in flat vocabularies, by their numbers"
        hidden = self.model.get_decoder()(
            inputs_embeds=self.embed(ids, values), position_ids=position_ids, use_cache=False,
            packing=Packing.from_position_ids(position_ids),
        ).last_hidden_state  # fmt: skip
        losses = self.score(self.model, hidden, ids, shift_labels(labels, position_ids))
        factors = {str(name): factor for name, factor in self.cfg.modality_weights.items()}
        found = losses.reduce(self.cfg.z_loss, factors)
        total = self.touch_tables(found.total)
        for parameter in self.reader.parameters():  # a batch without pictures goes too, since DDP waits
            if parameter.requires_grad:
                total = total + 0.0 * parameter.sum()
        return total, self.describe_parts(found.weight, found.per_block)

    def embed(self, ids: Tensor, values: Tensor) -> Tensor:
        """ids [B, N] and the numbers of their pictures [B, N, 1] → what the decoder reads, [B, N, D]."""
        embedded = self.model.get_input_embeddings()(ids)
        number = values[..., 0].round().long()  # [B, N]
        place = number > 0
        if not bool(place.any()):
            return embedded
        chosen, which = number[place].unique(return_inverse=True)  # the placeholders of a row run through its pictures
        reader: TrainedReader = self.reader  # type: ignore[assignment]
        mapped = reader.map(tuple(one.to(embedded.device) for one in self.find_seen((chosen - 1).tolist())))
        count = reader.num_features
        assert len(which) % count == 0, "a picture stands as often as it has features"
        feature = torch.arange(len(which), device=ids.device) % count  # spans are whole and follow each other
        return embedded.masked_scatter(place[..., None], mapped[which, feature].to(embedded.dtype))
