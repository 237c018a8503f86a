"""The transcript scored at the codes of the sound: its formula over a plain head, packed or not, and its training."""

import warnings

import pytest
import torch
from torch.nn import functional

from tests.objectives.judged import pack_documents, render
from tests.tiny_bases import BASES, make_base
from unimodal.model.attention import set_attention
from unimodal.model.rows import extend_rows
from unimodal.objectives.masked_codes import MaskedCodes
from unimodal.objectives.packed import PackedLoss
from unimodal.objectives.silence import PATIENCE
from unimodal.objectives.sinks import SinkConfig, SinkDecorrelation
from unimodal.objectives.transcript import TranscriptConfig, TranscriptReading
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

TEXT = 48
PICTURE = Block(name="image", modality="image", size=5)


@pytest.fixture
def vocabulary():
    blocks = [Block(name="voice", modality="audio", size=4), Block(name="audio", modality="audio", size=6), PICTURE]
    spans = [
        SpanLayout("audio", [Segment("voice", 2), Segment("audio", None, mark=False)]),
        SpanLayout("image", [Segment("image", 3)]),
    ]
    return Vocabulary.build(TEXT, blocks, spans, (), "0" * 64)


def make_documents(vocabulary):
    """Two sentences that are heard, one that is said, a picture that is named, a sound too short for its words."""
    start, end = vocabulary.get_start_id("audio"), vocabulary.get_end_id("audio")
    voice, audio = (vocabulary.get_block_range(name).start for name in ("voice", "audio"))
    image = vocabulary.get_block_range("image").start

    def hear(*codes):
        return [start, voice, voice + 3, *(audio + code for code in codes), end, 7]

    picture = [vocabulary.get_start_id("image"), image, image + 1, image + 2, vocabulary.get_end_id("image")]
    return [
        (hear(0, 1, 2, 3, 4), [20, 21, 21]),
        (hear(5, 4, 3), [30]),
        ([9, 20, 21], hear(0, 1, 2)[:-1]),
        (picture, [40, 41]),
        (hear(1, 1), [22, 22]),
    ]


def make_model(kind, vocabulary, seed=0):
    model = extend_rows(make_base(kind, None, seed), vocabulary.size - TEXT, freeze_base=False)
    set_attention(model, "auto")
    return model


def score_transcripts(model, vocabulary, documents):
    """Each document alone, by the model's own logits over the text rows and the padding control."""
    audio, blank = vocabulary.get_block_range("audio"), vocabulary.get_control_id("<|pad|>")
    total = 0.0
    for question, answer in documents:
        places = [at for at, row in enumerate(question) if row in audio]
        words = [row for row in answer if row < TEXT]
        if not places or not words:
            continue
        ids = torch.tensor([question + answer])
        logits = model(input_ids=ids, use_cache=False).logits[0, places][:, [*range(TEXT), blank]]
        total = total + functional.ctc_loss(
            logits.log_softmax(-1)[:, None], torch.tensor([words]), (len(places),), (len(words),),
            blank=TEXT, reduction="sum", zero_infinity=True,
        )  # fmt: skip
    return total


@pytest.mark.sweep("every base")
@pytest.mark.parametrize("kind", BASES)
def test_it_is_the_loss_of_the_model_s_own_logits_on_every_base(kind, vocabulary):
    documents = make_documents(vocabulary)
    model = make_model(kind, vocabulary)
    items = [render(question, answer) for question, answer in documents]
    expected = score_transcripts(model, vocabulary, documents)
    for length in (64, 16):  # several documents in a row, and one
        batch = [tensor.long() for tensor in pack_documents(items, length)[0]]
        plain, parts = PackedLoss(model, vocabulary)(*batch)
        found, more = TranscriptReading(PackedLoss(model, vocabulary), vocabulary, TranscriptConfig(weight=0.5))(*batch)
        assert more["weight"] == parts["weight"] and more["metrics"]["transcript"][1] == 6
        assert float(found - plain) == pytest.approx(0.5 * float(expected), rel=1e-3)
        assert set(more["terms"]) == {"objective", "transcript"}
    slopes = []
    for loss in (found - plain, 0.5 * expected):
        model.zero_grad()
        loss.backward(retain_graph=True)
        slopes.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-3, atol=1e-4 * float(slopes[1].abs().max()))


def test_validation_scores_the_objective_alone(vocabulary):
    model = make_model("llama", vocabulary)
    batch = [t.long() for t in pack_documents([render(*d) for d in make_documents(vocabulary)], 64)[0]]
    with torch.no_grad():
        plain, _ = PackedLoss(model, vocabulary)(*batch)
        found, parts = TranscriptReading(PackedLoss(model, vocabulary), vocabulary, TranscriptConfig())(*batch)
    assert torch.equal(found, plain) and "transcript" not in parts["metrics"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_lowers_it_beside_another_term(vocabulary, checkpointing):
    model = make_model("llama", vocabulary).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    reading = TranscriptReading(PackedLoss(model, vocabulary), vocabulary, TranscriptConfig())
    module = SinkDecorrelation(reading, SinkConfig(weight=0.1))
    batch = [t.long() for t in pack_documents([render(*d) for d in make_documents(vocabulary)], 64)[0]]
    optimizer, found = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(12):
        optimizer.zero_grad()
        total, parts = module(*batch)
        (total / parts["weight"]).backward()
        optimizer.step()
        found.append(parts["metrics"]["transcript"][0])
    assert found[-1] < 0.7 * found[0] and set(parts["terms"]) == {"objective", "transcript", "sinks"}


def test_what_it_cannot_read_is_refused(vocabulary):
    model = make_model("llama", vocabulary)
    with pytest.raises(ValueError, match="goes with next-token training"):
        TranscriptReading(MaskedCodes(model, vocabulary), vocabulary, TranscriptConfig())
    silent = Vocabulary.build(TEXT, [PICTURE], [SpanLayout("image", [Segment("image", 3)])], (), "0" * 64)
    with pytest.raises(ValueError, match="the vocabulary has none"):
        TranscriptReading(PackedLoss(model, silent), silent, TranscriptConfig())


def test_a_corpus_without_sounds_is_told_once(vocabulary):
    """After so many batches; never where a sound came before."""
    model = make_model("llama", vocabulary)
    picture, sound = (pack_documents([render(*make_documents(vocabulary)[at])], 16)[0] for at in (3, 0))
    picture, sound = ([tensor.long() for tensor in batch] for batch in (picture, sound))
    for first, told in ((picture, 1), (sound, 0)):
        module = TranscriptReading(PackedLoss(model, vocabulary), vocabulary, TranscriptConfig())
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for batch in (first, *[picture] * (2 * PATIENCE)):
                module(*batch)
        assert len([one for one in found if "adds nothing to such a corpus" in str(one.message)]) == told
