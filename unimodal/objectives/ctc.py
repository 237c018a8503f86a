"""A CTC loss at the audio codes of an utterance, over the model's own text rows.

A decoder that learns to transcribe from its answers alone must first find out which sound goes with which word. Scoring
the transcript at the audio positions as well (connectionist temporal classification, Graves et al. 2006; beside
attention as in arXiv 1609.06773) gives it that alignment from the first steps. Nothing is added to the model: the
classes are the text rows of its head, and a control row that no text uses is the blank. In a question, audio positions
carry no other loss.

Shapes: B rows, N tokens, D width, U utterances, T audio codes of the longest, C classes, L tokens of the transcripts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from unimodal.model.logits import PLAIN, LogitRule
from unimodal.objectives.cross_entropy import compute_chunked_cross_entropy
from unimodal.objectives.next_token import IGNORE
from unimodal.vocabulary import Vocabulary


def find_spoken_block(vocabulary: Vocabulary, name: str = "") -> range:
    """The rows of the codes that say what is spoken: of the block of this name, or of the first one of any length."""
    segments = vocabulary.get_layout("audio").segments
    free = [segment.block for segment in segments if segment.count is None]
    return vocabulary.get_block_range(name or (free or [segments[0].block])[0])


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


def compute_ctc_loss(
    hidden: Tensor,
    parts: Sequence[Tensor],
    utterances: list[tuple[Tensor, Tensor]],
    biases: Sequence[Tensor | None] = (),
    rule: LogitRule = PLAIN,
) -> Tensor | None:
    """The mean CTC loss in nats a transcript token; None without utterances.

    hidden: [B, N, D]. parts: the rows of the C classes, each [c, D]: the text rows and, last, the blank. utterances:
    (places of the audio codes, indices of the transcript into the text rows). biases [c] of each part, or None, and
    rule: those of the head.

    Every class takes part in the softmax, but its scores are kept for those that some transcript holds: a base has
    50,000 of them and more.
    """
    if not utterances:
        return None
    heard = hidden.reshape(-1, hidden.shape[-1])[torch.cat([places for places, _ in utterances])]  # [P, D]
    targets = torch.cat([transcript for _, transcript in utterances])  # [L]
    lengths = torch.tensor([len(places) for places, _ in utterances])
    spelled = torch.tensor([len(transcript) for _, transcript in utterances])
    blank = sum(len(part) for part in parts) - 1
    used, places = targets.unique(return_inverse=True)
    used = torch.cat([used, used.new_tensor([blank])])  # [K], in the order of the rows
    each = biases or [None] * len(parts)
    _, whole = compute_chunked_cross_entropy(heard, heard.new_zeros(len(heard)).long(), parts, biases=biases, rule=rule)
    scores = rule.apply(torch.cat([
        functional.linear(heard, part[used[inside] - first], None if bias is None else bias[used[inside] - first])
        for part, bias, first, inside in _find_rows(parts, each, used)
    ], 1))  # fmt: skip
    log_probs = scores.to(whole.dtype) - whole[:, None]  # [P, K]
    loss = functional.ctc_loss(
        torch.nn.utils.rnn.pad_sequence(list(log_probs.split(lengths.tolist()))),  # [T, U, K]
        places,
        lengths,
        spelled,
        blank=len(used) - 1,
        reduction="sum",
        zero_infinity=True,
    )
    # an utterance with too few codes for its transcript, of which equal neighbours need a blank between, counts nothing
    repeats = torch.tensor([int((told[1:] == told[:-1]).sum()) for _, told in utterances])
    readable = lengths >= spelled + repeats
    # torch's gradient is that of a softmax over what it is given: it holds the probabilities, which belong to the whole
    # softmax here, and are taken out again
    own = log_probs.exp()[readable.repeat_interleave(lengths).to(log_probs.device)].sum()
    return (loss - (own - own.detach())) / len(targets)


def _find_rows(
    parts: Sequence[Tensor], biases: Sequence[Tensor | None], used: Tensor
) -> Iterator[tuple[Tensor, Tensor | None, int, Tensor]]:
    """Of each part that holds some of the rows used [K], which ascend: the part, its bias, its first row, which [K]."""
    first = 0
    for part, bias in zip(parts, biases, strict=True):
        inside = (used >= first) & (used < first + len(part))
        if inside.any():
            yield part, bias, first, inside
        first += len(part)
