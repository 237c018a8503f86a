"""Transcription by beam search over joint CTC and next-token scores.

A model trained with `objectives/ctc.py` predicts a transcript twice: by CTC at the codes of the sound, and token by
token as its answer. The answer forms sentences but skips or invents words; CTC follows the sound but spells badly.
One-pass hybrid CTC/attention decoding (Watanabe et al. 2017, "Hybrid CTC/Attention Architecture for End-to-End Speech
Recognition"; arXiv 1706.02737) searches for the transcript y with the highest

    (1 - weight) log p(y | prompt) + weight log p_CTC(y | codes)

where an unfinished y is scored by its CTC prefix probability, the sum over all transcripts that begin with it. Both
scores only fall as a transcript grows, so the search ends when no unfinished one can win.

Shapes: N tokens of a prompt, T audio codes, V text rows, H hypotheses, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimodal.generation.decoders.slot_decoders import make_twin
from unimodal.generation.request import PAUSE, Composition, GenerationConfig, GenerationStats

if TYPE_CHECKING:
    from unimodal.generation.engine import Engine


class CtcPrefixScorer:
    """CTC prefix probabilities of one utterance.

    log_probs: [T, V + 1], of each label at each time, the blank last. The state of a hypothesis, [T, 2], holds for each
    time the log-probability that the codes so far spell exactly the hypothesis, ending in its last label [:, 0] or in a
    blank [:, 1].
    """

    def __init__(self, log_probs: Tensor) -> None:
        self.labels, self.blanks = log_probs[:, :-1], log_probs[:, -1]

    def start(self) -> Tensor:
        """The state of the empty hypothesis, [1, T, 2]."""
        ends_in_blank = self.blanks.cumsum(0)
        return torch.stack([torch.full_like(ends_in_blank, -torch.inf), ends_in_blank], -1)[None]

    def score_whole(self, states: Tensor) -> Tensor:
        """States [H, T, 2] → log-probability that each hypothesis is the whole transcript, [H]."""
        return states[:, -1].logsumexp(-1)

    def extend(self, states: Tensor, last: Sequence[int | None]) -> tuple[Tensor, Tensor]:
        """Extend hypotheses by every label: prefix scores [H, V] of the longer ones, and their states [T, 2, H, V].

        states: [H, T, 2]. last: the last label of each hypothesis, None for the empty one.
        """
        num_steps, num_labels = self.labels.shape
        ready = states.logsumexp(-1)[..., None].expand(-1, -1, num_labels).clone()  # [H, T, V]
        for hypothesis, label in enumerate(last):
            if label is not None:  # a blank must stand between equal labels
                ready[hypothesis, :, label] = states[hypothesis, :, 1]
        grown = states.new_full((num_steps, 2, len(states), num_labels), -torch.inf)
        for hypothesis, label in enumerate(last):
            if label is None:
                grown[0, 0, hypothesis] = self.labels[0]
        for time in range(1, num_steps):
            before = grown[time - 1]
            grown[time, 0] = torch.logaddexp(before[0], ready[:, time - 1]) + self.labels[time]
            grown[time, 1] = torch.logaddexp(before[0], before[1]) + self.blanks[time]
        first_time = ready[:, :-1] + self.labels[1:]  # [H, T - 1, V]: the new label is said then for the first time
        return torch.cat([grown[0, 0][:, None], first_time], 1).logsumexp(1), grown


@torch.inference_mode()
def compose_transcript(
    engine: Engine,
    prompt: Sequence[int],
    config: GenerationConfig,
    codes: range,
    blank: int,
    weight: float = 0.3,
    beams: int = 8,
) -> Composition[list[int]]:
    """Transcribe the last run of ``codes`` rows in a prompt: its ids, up to and with ``<|end_of_turn|>``.

    A composition (`composition.py`) that pauses between its steps; `run_composition` runs it at once. Hypotheses split
    and die at every step, so they are streams of a decoder of their own.

    blank: the row that stood for CTC's blank in training. weight: of the CTC score, in [0, 1]. beams: hypotheses that
    are kept at each step. The config's sampling and seed are not used. Raises ValueError for a prompt without such
    codes and for what the engine refuses.
    """
    engine.prepare([prompt], [config])
    vocabulary, decoder = engine.vocabulary, make_twin(engine.decoder)
    end, num_text = vocabulary.get_control_id("<|end_of_turn|>"), vocabulary.text_size
    places = find_last_run(prompt, codes)
    if not places:
        raise ValueError("there is no sound in the prompt to transcribe")
    limit = config.max_new_tokens - 1
    if config.max_text_tokens is not None:
        limit = min(limit, config.max_text_tokens)
    engine.refresh_head()
    answer_rows = engine.head.select(((0, num_text), (end, end + 1)))
    ctc_rows = engine.head.select(((0, num_text), (blank, blank + 1)))

    first = [*engine.prompt_ids, *prompt[:1]]
    room = len(first) + len(prompt) + config.max_new_tokens
    hidden = decoder.prefill([first], engine.pad_id, room, engine.parts.begin_streams(1))[:, None]
    rest = torch.tensor([list(prompt[1:])], device=engine.device)
    states = torch.cat([hidden, decoder.step(rest, every=True)], 1)[0]  # [N, D]
    heard = engine.head.compute_logits(states[places.start : places.stop], ctc_rows).float()
    blanks = heard[:, ctc_rows.find_index(blank)]
    scorer = CtcPrefixScorer(torch.cat([heard[:, :num_text], blanks[:, None]], 1).log_softmax(-1))

    hidden = states[-1:]
    hypotheses: list[list[int]] = [[]]
    answer_scores = torch.zeros(1, device=engine.device)  # [H] log p(y | prompt)
    prefixes = scorer.start()
    best: list[int] = []
    best_score = -torch.inf
    forwards, step_tokens = 1, 0
    while True:
        yield PAUSE
        logits = engine.head.compute_logits(hidden, answer_rows).float()
        logits[:, list(vocabulary.text_reserved)] = -torch.inf
        log_probs = logits.log_softmax(-1)
        ended = answer_scores + log_probs[:, answer_rows.find_index(end)]
        whole = (1 - weight) * ended + weight * scorer.score_whole(prefixes)
        score, winner = whole.max(0)
        if float(score) > best_score or not best:
            best, best_score = [*hypotheses[int(winner)], end], float(score)
        if len(hypotheses[0]) == limit:
            break
        scores, grown = scorer.extend(prefixes, [y[-1] if y else None for y in hypotheses])
        longer = answer_scores[:, None] + log_probs[:, :num_text]
        total = (1 - weight) * longer + weight * scores  # [H, V]
        top, index = total.flatten().topk(min(beams, total.numel()))
        index = index[top > best_score]
        if not len(index):
            break
        rows, labels = index // num_text, index % num_text
        hypotheses = [[*hypotheses[h], label] for h, label in zip(rows.tolist(), labels.tolist(), strict=True)]
        answer_scores, prefixes = longer[rows, labels], grown[:, :, rows, labels].permute(2, 0, 1)
        decoder.keep(rows.tolist())
        hidden = decoder.step(labels[:, None])
        forwards, step_tokens = forwards + 1, step_tokens + len(rows)
    engine.stats = GenerationStats(forwards=forwards, prompt_tokens=len(prompt), step_tokens=step_tokens)
    return best


def find_last_run(prompt: Sequence[int], codes: range) -> range:
    """The places of the last unbroken run of these rows in a prompt; empty if there is none."""
    stop = next((place + 1 for place in reversed(range(len(prompt))) if prompt[place] in codes), 0)
    start = stop
    while start and prompt[start - 1] in codes:
        start -= 1
    return range(start, stop)
