"""Multi-frame motion: what comes next, from a model's states at the newest frame and at those before (CronusVLA).

Each frame is a document of its own; those of one sample are a group, oldest first, which stays in one row
(`corpus/motion_frames.py`). The state of each frame's last token is its motion feature (arXiv 2506.19816). As in the
authors' code, no gradient goes through the features of past frames, so that at use they can be kept from when they were
newest.

The batch's `values`, float32 [B, N, 1 + T · A], say of each token what it is: 1 the last token of a past frame, 2 that
of the newest, behind which stand the T steps that come next; 0 elsewhere.

Shapes: B rows, N tokens, S samples, M past frames, T steps, A numbers of a step, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimodal.model.attention import Packing
from unimodal.model.motion_decoder import CrossFrameDecoder
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.objective import LossParts, Objective, run_decoder
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAST, NEWEST = 1.0, 2.0


class MotionLoss(Objective):
    """The loss of a motion decoder on packed groups of frames, and of the model through it.

    draws: noises that a sample is learnt at in a step. Raises ValueError for a decoder of another width.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        decoder: CrossFrameDecoder,
        cfg: LossConfig | None = None,
        draws: int = 4,
    ) -> None:
        super().__init__(model, vocabulary, cfg)
        width = int(model.config.get_text_config().hidden_size)
        if decoder.width != width:
            raise ValueError(f"the motion decoder reads states of width {decoder.width}; the model's have {width}")
        self.decoder, self.draws = decoder, draws

    def forward(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        further: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        """As `Objective.forward`; labels are not used. Raises ValueError for groups of another number of frames."""
        features, steps = self.collect(ids, position_ids, further, values)
        past = features[:, :-1].detach()
        found = self.decoder.compute_losses(torch.cat([past, features[:, -1:]], 1), steps, self.draws)  # [S]
        total = self.touch_tables(found.sum())
        for parameter in self.decoder.parameters():
            total = total + 0.0 * parameter.sum()
        return total, self.describe_parts(
            float(len(found)), {}, {"motion": (float(found.detach().sum()), len(found))}.items()
        )

    def collect(
        self, ids: Tensor, position_ids: Tensor, further: Tensor | None, values: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """A batch → the motion features of its samples [S, M + 1, D], and the steps that follow [S, T, A]."""
        settings = self.decoder.settings
        size = 1 + settings.steps * settings.width
        if values is None or values.shape[2] != size:
            given = 0 if values is None else values.shape[2]
            raise ValueError(f"motion is learnt from {size} values a token, and the batch has {given}")
        hidden = run_decoder(self.model, ids, position_ids, Packing.from_position_ids(position_ids), further)
        kind = values[..., 0]
        features, kinds = hidden[kind > 0], kind[kind > 0]
        frames = settings.past + 1
        if len(features) % frames or not bool((kinds.view(-1, frames) == self._mark_frames(frames, kinds)).all()):
            raise ValueError(f"a sample is {frames} frames, oldest first, and the batch has others")
        steps = values[kind == NEWEST][:, 1:].unflatten(-1, (settings.steps, settings.width))
        return features.view(-1, frames, features.shape[-1]).to(self.decoder.absent.dtype), steps

    @staticmethod
    def _mark_frames(frames: int, like: Tensor) -> Tensor:
        return torch.tensor([PAST] * (frames - 1) + [NEWEST], device=like.device, dtype=like.dtype)
