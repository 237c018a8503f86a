"""One decoder over words and vectors: next words by likelihood, next vectors by a head (`model/continuous_media.py`).

As VL-GPT (arXiv 2312.09251) is trained: one sequence of words and of a latent tokenizer's vectors, at each position
the next one is learnt. What stands at a vector's place is read through the head's map in place of a row; where the next
token is a vector, its loss (mean squared error, 1 - cosine, or that of a flow) takes the place of the cross-entropy.

    total = sum of the words' cross-entropies + weight · sum of the vectors' losses

divided by the number of words and, `weight` times each, of vectors. The vectors come as the batch's `values`.

Shapes: B rows, N tokens, K width of a vector, P vectors that are learnt, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimodal.model.attention import Packing
from unimodal.model.continuous_media import ContinuousMedia, find_continuous_media
from unimodal.objectives.next_token import IGNORE, LossConfig, shift_labels
from unimodal.objectives.objective import LossParts, Objective
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ContinuousLoss(Objective):
    """The loss of packed documents with vectors. weight: of a vector, a word has 1.

    Raises ValueError for a model without continuous media.
    """

    def __init__(
        self, model: PreTrainedModel, vocabulary: Vocabulary, cfg: LossConfig | None = None, weight: float = 1.0
    ) -> None:
        super().__init__(model, vocabulary, cfg)
        if find_continuous_media(model) is None:
            raise ValueError("the model has no continuous media; add them (model/continuous_media.py), then train")
        if not weight > 0:
            raise ValueError(f"the weight of a vector is {weight:g}; give more than 0")
        self.weight = weight

    def forward(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        further: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        """As `Objective.forward`. values: float32 [B, N, K], the vector of each token that stands for one.

        Raises ValueError for vectors that are missing, of another width, or not finite.
        """
        assert further is None, "summed positions hold codes, not vectors"
        media = find_continuous_media(self.model)
        assert media is not None
        place = ids == media.row
        hidden = self.model.get_decoder()(
            inputs_embeds=embed_vectors(self.model, media, ids, values), position_ids=position_ids, use_cache=False,
            packing=Packing.from_position_ids(position_ids),
        ).last_hidden_state  # fmt: skip
        targets = shift_labels(labels, position_ids)
        learnt = targets == media.row
        losses = self.score(self.model, hidden, ids, targets.masked_fill(learnt, IGNORE))
        factors = {str(name): factor for name, factor in self.cfg.modality_weights.items()}
        words = losses.reduce(self.cfg.z_loss, factors)
        total, weight = self.touch_tables(words.total), words.weight
        metrics = {}
        if bool(learnt.any()):
            assert values is not None and bool(place[:, 1:][learnt[:, :-1]].all())
            found = media.compute_losses(hidden[learnt], values.roll(-1, 1)[learnt])  # [P]
            factor = self.weight * float(factors.get(media.settings.medium, 1.0))
            total, weight = total + factor * found.sum(), weight + factor * len(found)
            metrics[f"{media.settings.medium}_{media.settings.head}"] = (float(found.detach().sum()), float(len(found)))
        for parameter in media.parameters():  # those that a batch does not use take part too, since DDP waits
            total = total + 0.0 * parameter.sum()
        return total, self.describe_parts(weight, words.per_block, metrics.items())


def embed_vectors(model: PreTrainedModel, media: ContinuousMedia, ids: Tensor, values: Tensor | None) -> Tensor:
    """What the decoder reads of ids [B, N] and of the vectors [B, N, K] at some of them → [B, N, D].

    Raises ValueError for vectors that are missing, of another width, or not finite.
    """
    embedded = model.get_input_embeddings()(ids)
    place = ids == media.row
    if not bool(place.any()):
        return embedded
    width = media.settings.width
    if values is None or values.shape[-1] != width:
        given = "none" if values is None else f"those of width {values.shape[-1]}"
        raise ValueError(f"{media.settings.medium}s of this model are vectors of width {width}; the batch has {given}")
    vectors = values[place]
    if not bool(torch.isfinite(vectors).all()):
        raise ValueError(f"a batch holds vectors of {media.settings.medium}s that are not finite; encode them again")
    return embedded.masked_scatter(place[..., None], media.embed(vectors).to(embedded.dtype))
