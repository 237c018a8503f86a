"""A CTC loss at the audio codes of an utterance, over the model's own text rows.

A decoder that learns to transcribe from its answers alone must first find out which sound goes with which word. Scoring
the transcript at the audio positions as well (connectionist temporal classification, Graves et al. 2006; beside
attention as in arXiv 1609.06773) gives it that alignment from the first steps. Nothing is added to the model: the
classes are the text rows of its head, and a control row that no text uses is the blank. In a question, audio positions
carry no other loss.

Shapes: B rows, N tokens, D width, U utterances, T audio codes of the longest, C classes, L tokens of the transcripts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from unimodal.objectives.next_token import IGNORE


def find_spoken_answers(
    ids: Tensor, labels: Tensor, position_ids: Tensor, audio: range, text: range
) -> list[tuple[Tensor, Tensor]]:
    """The utterances whose transcript is the answer: (places of the audio codes, ids of the transcript), each int64.

    ids, labels (-100: given, not learnt) and position_ids [B, N] hold packed documents, each from position 0 on. Places
    are those of the B*N flattened tokens. An utterance is a run of given audio codes with labelled text ids behind it.
    """
    flat, wanted = ids.reshape(-1), labels.reshape(-1)
    starts = (position_ids.reshape(-1) == 0).nonzero().flatten().tolist() + [flat.numel()]
    heard = (flat >= audio.start) & (flat < audio.stop) & (wanted == IGNORE)
    told = (wanted >= text.start) & (wanted < text.stop)
    found = []
    for first, last in zip(starts, starts[1:], strict=False):
        places = heard[first:last].nonzero().flatten() + first
        transcript = wanted[first:last][told[first:last]]
        if len(transcript) and len(places) >= len(transcript):
            found.append((places, transcript))
    return found


def find_spoken_requests(
    ids: Tensor, labels: Tensor, position_ids: Tensor, audio: range, words_of: Callable[[Tensor], Tensor | None]
) -> list[tuple[Tensor, Tensor]]:
    """The utterances that are the answer: (places of the audio codes, ids of the words), each int64.

    Arguments as for ``find_spoken_answers``. words_of: audio rows [T] of a whole utterance → ids of its words, or None
    where they are unknown (the request itself may hold other words too). Scored like a transcript, the words teach a
    decoder to know at every code how far it has come in the sentence.
    """
    flat, wanted = ids.reshape(-1), labels.reshape(-1)
    starts = (position_ids.reshape(-1) == 0).nonzero().flatten().tolist() + [flat.numel()]
    spoken = (wanted >= audio.start) & (wanted < audio.stop)
    found = []
    for first, last in zip(starts, starts[1:], strict=False):
        places = spoken[first:last].nonzero().flatten() + first
        words = words_of(flat[places]) if len(places) else None
        if words is not None and 0 < len(words) <= len(places):
            found.append((places, words))
    return found


def compute_ctc_loss(hidden: Tensor, rows: Tensor, utterances: list[tuple[Tensor, Tensor]]) -> Tensor | None:
    """The mean CTC loss in nats a transcript token; None without utterances.

    hidden: [B, N, D]. rows: [C, D], the text rows and, last, the blank. utterances: (places of the audio codes, indices
    of the transcript into the text rows).
    """
    if not utterances:
        return None
    lengths = torch.tensor([len(places) for places, _ in utterances])
    targets = torch.cat([transcript for _, transcript in utterances])  # [L]
    logits = functional.linear(hidden.reshape(-1, hidden.shape[-1])[torch.cat([p for p, _ in utterances])], rows)
    log_probs = torch.nn.utils.rnn.pad_sequence(list(logits.float().log_softmax(-1).split(lengths.tolist())))  # [T,U,C]
    total = functional.ctc_loss(
        log_probs,
        targets,
        lengths,
        torch.tensor([len(transcript) for _, transcript in utterances]),
        blank=len(rows) - 1,
        reduction="sum",
        zero_infinity=True,  # an utterance with too few codes for its transcript counts nothing
    )
    return total / len(targets)
