"""The words of a sound scored at its codes too, beside any other reading of it: CTC (`ctc.py`) as a term.

    loss + weight * (CTC loss in nats, summed over the transcripts)

A pretrained base learns to transcribe from the answers alone only late: it must first find out which codes belong to
which word. The term tells it at the codes themselves (arXiv 1609.06773). It reads every document whose question holds
codes of sound and whose answer holds text; a document of several sounds is read as one. The classes are the base's own
text rows, and the padding control is the blank, so nothing is added to the model. In validation the term is left out.
That a corpus has no such document is said once, after `PATIENCE` batches.

Shapes: B rows, N tokens, K values a token, D width, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unimodal.config import Config
from unimodal.model.rows import select_head_biases, select_head_parts
from unimodal.objectives.ctc import compute_ctc_loss, find_spoken_answers, find_spoken_block
from unimodal.objectives.objective import LossParts
from unimodal.objectives.packed import PackedLoss
from unimodal.objectives.silence import SilentBatches
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TranscriptConfig(Config):
    """Read the transcript at the codes of the sound."""

    weight: float = Field(default=1.0, gt=0)
    block: str = ""  # whose codes say what is spoken; by default the first one of any length


class TranscriptReading(nn.Module):
    """Next-token training, and the term of the transcripts beside it.

    Raises ValueError for an objective of another kind, whose documents are not read once and in order, for a vocabulary
    without sounds, for one of summed positions, and for a block that is not there.
    """

    def __init__(self, main: nn.Module, vocabulary: Vocabulary, own: TranscriptConfig) -> None:
        super().__init__()
        if not isinstance(main, PackedLoss):
            raise ValueError("objective.transcript goes with next-token training; leave the other objective out")
        if "audio" not in vocabulary.media:
            raise ValueError("objective.transcript reads codes of sound, and the vocabulary has none; leave it out")
        if not vocabulary.positions.is_flat:
            raise ValueError("objective.transcript reads one code a position, and summed positions have several")
        self.main, self.own = main, own
        self.audio, self.text = find_spoken_block(vocabulary, own.block), range(vocabulary.text_size)
        self.blank = vocabulary.get_control_id("<|pad|>")
        self._states: list[Tensor] = []
        self._silent = SilentBatches("objective.transcript has found no sound that is answered in words")

    @property
    def model(self) -> PreTrainedModel:
        return self.main.model

    def forward(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        further: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        """See `Objective.forward`."""
        utterances = find_spoken_answers(ids, labels, position_ids, self.audio, self.text)
        if not torch.is_grad_enabled():  # validation scores the objective alone
            return self.main(ids, labels, position_ids, further, values)
        self._silent.count(bool(utterances))
        if not utterances:
            return self.main(ids, labels, position_ids, further, values)
        handle = self.model.get_decoder().register_forward_hook(
            lambda module, inputs, out: self._states.append(out.last_hidden_state)
        )
        try:
            with parametrize.cached():
                total, parts = self.main(ids, labels, position_ids, further, values)
                [hidden] = [state for state in self._states if state.requires_grad]
                term = self._read(hidden, utterances)
        finally:
            handle.remove()
            self._states.clear()
        parts["metrics"]["transcript"] = (float(term.detach()), float(sum(len(told) for _, told in utterances)))
        added = self.own.weight * term
        parts["terms"] = parts.get("terms", {"objective": total}) | {"transcript": added}
        return total + added, parts

    def _read(self, hidden: Tensor, utterances: list[tuple[Tensor, Tensor]]) -> Tensor:
        """hidden [B, N, D] → the summed CTC loss of the transcripts, in nats."""
        head, blank = self.model.get_output_embeddings(), range(self.blank, self.blank + 1)
        parts = [part for rows in (self.text, blank) for part in select_head_parts(head, rows)]
        biases = [bias for rows in (self.text, blank) for bias in select_head_biases(head, rows)]
        found = compute_ctc_loss(hidden, parts, utterances, biases, self.main.rule)
        assert found is not None
        return found * sum(len(told) for _, told in utterances)
