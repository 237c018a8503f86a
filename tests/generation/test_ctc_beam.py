"""The joint search against every transcript there is, and its CTC half against every alignment there is."""

import itertools
import math

import pytest
import torch

from unimodal.generation.composition import run_composition
from unimodal.generation.ctc_beam import CtcPrefixScorer, compose_transcript, find_last_run
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig

GREEDY = {"sampling": {"text": {"temperature": 0.0}}, "allow": ("text",)}


def by_alignments(log_probs):
    """{transcript: log-probability}, by adding up every path of labels and blanks."""
    num_steps, num_classes = log_probs.shape
    found = {}
    for path in itertools.product(range(num_classes), repeat=num_steps):
        labels = tuple(label for label, _ in itertools.groupby(path) if label != num_classes - 1)
        score = float(sum(log_probs[time, label] for time, label in enumerate(path)))
        found[labels] = math.exp(score) + found.get(labels, 0.0)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_prefix_and_whole_probabilities_are_those_of_all_alignments(seed):
    draws = torch.Generator().manual_seed(seed)
    log_probs = (2 * torch.randn(5, 4, generator=draws, dtype=torch.float64)).log_softmax(-1)
    every = by_alignments(log_probs)
    scorer = CtcPrefixScorer(log_probs)
    states, hypotheses = scorer.start(), [()]
    for _ in range(4):
        for hypothesis, score in zip(hypotheses, scorer.score_whole(states).exp().tolist(), strict=True):
            assert score == pytest.approx(every.get(hypothesis, 0.0), abs=1e-12)
        scores, grown = scorer.extend(states, [h[-1] if h else None for h in hypotheses])
        for row, hypothesis in enumerate(hypotheses):
            for label in range(3):
                longer = (*hypothesis, label)
                begins = sum(p for labels, p in every.items() if labels[: len(longer)] == longer)
                assert float(scores[row, label].exp()) == pytest.approx(begins, abs=1e-12)
        hypotheses = [(*hypothesis, label) for hypothesis in hypotheses for label in range(3)]
        states = grown.permute(2, 3, 0, 1).flatten(0, 1)


@pytest.fixture
def heard(vocabulary, ask):
    """A prompt whose user turn holds a sound of 5 codes."""
    audio = vocabulary.get_block_range("audio")
    start, end = (vocabulary.get_control_id(name) for name in ("<|audio_start|>", "<|audio_end|>"))
    codes = [audio.start + code for code in (3, 3, 7, 1, 10)]
    return ask([start, *codes, end, 5, 9])


def score_transcripts(model, vocabulary, prompt, transcripts, weight):
    """The scores of whole transcripts of one length, by the model's own forward and torch's CTC loss."""
    end, pad = vocabulary.get_control_id("<|end_of_turn|>"), vocabulary.get_control_id("<|pad|>")
    audio = vocabulary.get_block_range("audio")
    rows = [row for row in vocabulary.text_range if row not in vocabulary.text_reserved] + [end]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *words] for words in transcripts])).logits.float()  # [S, T, V]
    told = logits[:, len(prompt) - 1 :][..., rows].log_softmax(-1)
    targets = torch.tensor([[rows.index(row) for row in [*words, end]] for words in transcripts])
    told = told.gather(2, targets[..., None]).sum((1, 2))
    places = [place for place, row in enumerate(prompt) if row in audio]
    log_probs = logits[:, places][..., [*vocabulary.text_range, pad]].log_softmax(-1).transpose(0, 1)
    num, length = len(transcripts), len(transcripts[0])
    loss = torch.nn.functional.ctc_loss(
        log_probs, torch.tensor(transcripts, dtype=torch.long).view(num, length), torch.full((num,), len(places)),
        torch.full((num,), length), blank=vocabulary.text_size, reduction="none",
    )  # fmt: skip
    return ((1 - weight) * told - weight * loss).tolist()


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize("weight", [0.3, 0.95])
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_the_best_of_all_transcripts(make_model, vocabulary, heard, seed, weight):
    model = make_model(seed)
    engine = Engine(model, vocabulary)
    config = GenerationConfig(**GREEDY, max_new_tokens=8, max_text_tokens=2)
    audio, pad = vocabulary.get_block_range("audio"), vocabulary.get_control_id("<|pad|>")
    end = vocabulary.get_control_id("<|end_of_turn|>")
    found = run_composition(engine, compose_transcript(engine, heard, config, audio, pad, weight, beams=30))
    rows = [row for row in vocabulary.text_range if row not in vocabulary.text_reserved]
    lengths = [[[]], [[row] for row in rows], [[a, b] for a in rows for b in rows]]
    every = [words for transcripts in lengths for words in transcripts]
    scores = [s for transcripts in lengths for s in score_transcripts(model, vocabulary, heard, transcripts, weight)]
    assert found == [*every[max(range(len(every)), key=scores.__getitem__)], end]
    assert engine.stats.forwards <= 3
    assert weight < 0.5 or len(found) == 3  # where CTC decides, two words are found and not the empty transcript


def test_all_decoders_find_the_same(make_model, vocabulary, heard):
    audio, pad = vocabulary.get_block_range("audio"), vocabulary.get_control_id("<|pad|>")
    config = GenerationConfig(**GREEDY, max_new_tokens=12, max_text_tokens=11)
    lengths = []
    for seed in range(6):
        model = make_model(seed)
        engines = [Engine(model, vocabulary, decoder=name) for name in ("reference", "lean", "auto")]
        found = [run_composition(e, compose_transcript(e, heard, config, audio, pad, 0.95, 3)) for e in engines]
        assert found[0] == found[1] == found[2] and found[0][-1] == vocabulary.get_control_id("<|end_of_turn|>")
        lengths.append(len(found[0]))
    assert max(lengths) > 2, "no transcript of two words was compared"


def test_the_last_sound_is_the_one_that_is_written_down(make_model, vocabulary, ask, heard):
    audio, pad = vocabulary.get_block_range("audio"), vocabulary.get_control_id("<|pad|>")
    assert find_last_run([1, 50, 51, 2, 52, 53, 3], range(50, 60)) == range(4, 6)
    assert find_last_run([50], range(50, 60)) == range(1) and not find_last_run([1, 2], range(50, 60))
    engine = Engine(make_model(), vocabulary)
    config = GenerationConfig(**GREEDY, max_new_tokens=8)
    with pytest.raises(ValueError, match="no sound in the prompt"):
        run_composition(engine, compose_transcript(engine, ask([4, 5]), config, audio, pad))
    with pytest.raises(ValueError, match="positions"):
        run_composition(engine, compose_transcript(engine, heard * 12, config, audio, pad))
