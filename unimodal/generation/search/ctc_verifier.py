"""A verifier of speech: how probable its words are given the codes of an utterance, by CTC.

A model trained with `objectives/ctc.py` predicts words at the codes of speech. On its own speech this finds most words
that were skipped, repeated or slurred. The next-token score of the same words finds fewer, since it can guess a word
from those before it.

Shapes: B utterances, N tokens of the longest prompt, T codes of the longest utterance, V text rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from unimodal.generation.engine import Engine


class CtcVerifier:
    """Scores answers by log p_CTC(words | codes), in nats a token; -inf if there are too few codes for the words.

    write_question: answer → ids of a prompt that asks for its transcript, in the words of the training. words: ids of
    the words. codes: the rows of audio codes. blank: the row that stood for CTC's blank in training.
    """

    def __init__(
        self,
        engine: Engine,
        write_question: Callable[[list[int]], list[int]],
        words: Sequence[int],
        codes: range,
        blank: int,
    ) -> None:
        self.engine, self.write_question, self.words = engine, write_question, list(words)
        self.codes, self.blank = codes, blank

    @torch.inference_mode()
    def __call__(self, answers: Sequence[list[int]]) -> list[float]:
        engine, num_text = self.engine, self.engine.vocabulary.text_size
        said = [[row for row in answer if row in self.codes] for answer in answers]
        scores = [float("-inf")] * len(answers)
        judged = [index for index, rows in enumerate(said) if rows]
        if not judged or not self.words:
            return scores
        prompts = [torch.tensor(self.write_question(answers[index])) for index in judged]
        ids = pad_sequence(prompts, batch_first=True, padding_value=engine.pad_id)  # [B, N], padded on the right
        engine.refresh_head()
        classes = engine.head.select(((0, num_text), (self.blank, self.blank + 1)))
        begun = [[*engine.prompt_ids, *row] for row in ids[:, :1].tolist()]
        room, prefixes = len(begun[0]) + ids.shape[1], engine.parts.begin_streams(len(begun))
        first = engine.decoder.prefill(begun, engine.pad_id, room, prefixes)[:, None]
        hidden = torch.cat([first, engine.decoder.step(ids[:, 1:].to(engine.device), every=True)], 1)
        is_code = (ids >= self.codes.start) & (ids < self.codes.stop)
        read = []
        for row, places in zip(hidden, is_code, strict=True):
            logits = engine.head.compute_logits(row[places.to(row.device)], classes).float()
            blank = logits[:, classes.find_index(self.blank)]
            read.append(torch.cat([logits[:, :num_text], blank[:, None]], 1).log_softmax(-1))
        lost = functional.ctc_loss(
            pad_sequence(read),  # [T, B, V + 1]
            torch.tensor([self.words] * len(read), device=engine.device),
            torch.tensor([len(log_probs) for log_probs in read]),
            torch.tensor([len(self.words)] * len(read)),
            blank=num_text,
            reduction="none",
        )
        for index, nats in zip(judged, lost.tolist(), strict=True):
            scores[index] = -nats / len(self.words)
        return scores
