"""Transcripts of a model that reads speech at its codes too: when they are searched for, and that all ways agree."""

import io

import pytest
import soundfile
import torch
from torch.nn import functional

from tests.serve.conftest import lively_model, serving, wav
from unimodal.generation.composition import run_composition
from unimodal.generation.ctc_beam import compose_transcript
from unimodal.generation.search.ctc_verifier import CtcVerifier
from unimodal.model_folder.settings import CtcReading
from unimodal.pipeline.compression import compress
from unimodal.pipeline.requests import prepare
from unimodal.pipeline.settings import AnswerSettings
from unimodal.sequence.document import Audio, Document, Text, Turn

ASKED = "What is said?"


def reads_twice():
    model = lively_model()
    model.processor = model.processor.model_copy(update={"reading": CtcReading()})
    model.sampling["text"] = model.sampling["text"].model_copy(update={"temperature": 0.0})
    return model


@pytest.fixture(scope="module")
def model():
    return reads_twice()


def spoken(*codes, words=ASKED, before=()):
    return Document([*before, Turn("user", [Audio(codes=codes), Text(words)])])


@pytest.fixture
def searches(monkeypatch):
    """The prompts that a search is begun for."""
    begun = []

    def watched(engine, prompt, *settings, **more):
        begun.append(list(prompt))
        return compose_transcript(engine, prompt, *settings, **more)

    monkeypatch.setattr("unimodal.pipeline.speech_reading.compose_transcript", watched)
    return begun


def words_of(answers):
    return ["".join(output.text or "" for output in answer) for answer in answers]


def test_a_transcription_is_searched_for_and_events_tell_it(model, searches):
    heard, events, done = [], [], []
    documents = [spoken(1, 5, 5, 9), spoken(2, 2, 7), spoken(1, 5, 5, 9, words="Who is it?")]
    for to in (None, "text"):
        heard.append(words_of(model.answers(documents, to=to, on_progress=lambda *n: done.append(n))))
    assert len(searches) == 4 and heard[0][:2] == heard[1][:2]
    assert done[-1] == (3, 3) and [n for n, _ in done[:3]] == [1, 2, 3]
    for document, answer in zip(documents[:2], heard[0], strict=False):  # none depends on its neighbours
        assert words_of(model.answers([document], to="text", on_token=events.append)) == [answer]
    told = [event.id for event in events if event.index == 0]
    assert len(told) == 2 and sum(event.finished for event in events) == 2
    codes, pad = model.vocabulary.get_block_range("audio"), model.vocabulary.get_control_id("<|pad|>")
    config = prepare(model, documents[0], AnswerSettings(to="text")).config
    ids = run_composition(model.engine, compose_transcript(model.engine, searches[-2], config, codes, pad))
    assert [event.id for event in events[: len(ids)]] == ids


def test_earlier_turns_do_not_matter_to_which_sound_is_meant(model, searches):
    before = [Turn("user", [Audio(codes=[3, 3, 3])]), Turn("assistant", "hello")]
    model.answers([spoken(1, 5, 5, 9, before=before)], to="text")
    assert len(searches) == 1


def test_what_is_no_plain_transcription_is_answered_token_by_token(model, searches):
    document = spoken(1, 5, 5, 9)
    plain = words_of(model.answers([document], to="text", decoder="plain"))
    two = Document([Turn("user", [Audio(codes=[1, 2]), Audio(codes=[3, 4]), Text(ASKED)])])
    model.answers([two, Document([Turn("user", ASKED)])], to="text")
    model.answers([document], to="text", temperature=0.7)
    model.answers([document], to="image")
    with compress(model, "stride", keep=0.5):
        model.answers([document], to="text")
    other = lively_model()
    assert words_of(other.answers([document], to="text")) == plain
    assert not searches
    assert words_of(model.answers([document], to="text")) != plain  # and the search does find another


def test_the_server_gives_the_same_transcript(model, searches, tmp_path):
    (tmp_path / "a.wav").write_bytes(wav())
    expected = words_of([model.chat([Audio(path=tmp_path / "a.wav"), ASKED], to="text")])
    with serving(reads_twice()) as served:
        ask = {"model": served.name, "file": ("a.wav", wav())}
        told = [served.client().audio.transcriptions.create(**ask).text for _ in range(2)]
        assert served.idle()
    assert len(searches) == 3 and told[0] == told[1]
    assert [told[0]] == expected


def test_a_reading_needs_usable_settings():
    for wrong in ({"weight": 0.0}, {"weight": 1.0}, {"beams": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CtcReading(**wrong)


# ---- speech that is said several times


def says(sayings=4, temperature=1.0):
    model = lively_model()
    model.processor = model.processor.model_copy(update={"reading": CtcReading(sayings=sayings)})
    model.sampling["audio"] = model.sampling["audio"].model_copy(update={"temperature": temperature})
    return model


def codes_of(answer):
    return next(output.part.codes.tolist() for output in answer if output.modality == "audio")


def ctc_score(model, codes, words):
    """log p_CTC(words | codes) a token, one utterance by itself through the stock decoder."""
    asked = Document([Turn("user", [Audio(codes=codes), Text(ASKED)])])
    prompt = model.template.render(asked, add_generation_prompt=True).ids
    hidden = model.decoder.get_decoder()(torch.tensor(prompt)[None].long(), use_cache=False).last_hidden_state[0]
    block, pad = model.vocabulary.get_block_range("audio"), model.vocabulary.get_control_id("<|pad|>")
    at = [place for place, row in enumerate(prompt.tolist()) if row in block]
    rows = [*range(model.vocabulary.text_size), pad]
    log_probs = (hidden[at] @ model.decoder.get_output_embeddings().weight[rows].T).float().log_softmax(-1)
    told = model.template.render(Document([*asked.turns, Turn("assistant", words)])).labels.tolist()
    wanted = [label for label in told if 0 <= label < model.vocabulary.text_size]
    lost = functional.ctc_loss(
        log_probs[:, None], torch.tensor([wanted]), [len(at)], [len(wanted)], blank=len(rows) - 1, reduction="sum"
    )
    return -float(lost) / len(wanted)


def test_of_several_sayings_the_one_is_given_whose_codes_spell_the_words_best():
    model, events = says(), []
    document = Document([Turn("user", "Say: hi")])
    [answer] = model.answers([document], to="audio", seeds=[3], on_token=events.append)
    with torch.inference_mode():
        tried = [
            codes_of(model.answers([document], to="audio", seeds=[3 + (number << 32)], decoder="plain")[0])
            for number in range(4)
        ]
        scores = [ctc_score(model, codes, "hi") for codes in tried]
    assert len({tuple(codes) for codes in tried}) > 1 and len(set(scores)) > 1
    assert codes_of(answer) == tried[max(range(4), key=scores.__getitem__)]
    block = model.vocabulary.get_block_range("audio")
    assert [event.id - block.start for event in events if event.id in block] == codes_of(answer)
    assert [event.finished for event in events] == [False] * (len(events) - 1) + [True]
    assert {event.modality for event in events} == {"audio"}


def test_the_verifier_scores_a_batch_as_each_alone_and_knows_what_cannot_be_said():
    model = says()
    block = model.vocabulary.get_block_range("audio")
    start = next(row for row in range(model.vocabulary.size) if row not in block)

    def shown(answer):
        heard = Audio(codes=[row - block.start for row in answer if row in block])
        return model.template.render(
            Document([Turn("user", [heard, Text(ASKED)])]), add_generation_prompt=True
        ).ids.tolist()

    told = model.template.render(Document([Turn("user", "x"), Turn("assistant", "hi ho")])).labels.tolist()
    words = [label for label in told if 0 <= label < model.vocabulary.text_size]
    verifier = CtcVerifier(model.engine, shown, words, block, model.vocabulary.get_control_id("<|pad|>"))
    answers = [[start, *(block.start + code for code in codes)] for codes in ([1, 5, 5, 9, 2, 7, 3], [4] * 12, [6])]
    together = verifier([*answers, [start]])
    assert together[2:] == [float("-inf")] * 2  # too few codes, and none
    assert together[:2] == pytest.approx([verifier([answer])[0] for answer in answers[:2]], abs=1e-4)
    with torch.inference_mode():
        assert together[0] == pytest.approx(ctc_score(model, [1, 5, 5, 9, 2, 7, 3], "hi ho"), abs=1e-4)


@pytest.mark.parametrize(
    ("model", "request_words"),
    [
        (says(sayings=1), "Say: hi"),
        (says(temperature=0.0), "Say: hi"),
        (lively_model(), "Say: hi"),
        (says(), "hum a tune"),
    ],
    ids=["once", "greedy", "no reading", "other words"],
)
def test_all_else_is_said_once(model, request_words, monkeypatch):
    monkeypatch.setattr("unimodal.pipeline.speech_reading.BestOfN", None)
    document = Document([Turn("user", request_words)])
    [answer] = model.answers([document], to="audio", seeds=[1])
    assert codes_of(answer) == codes_of(model.answers([document], to="audio", seeds=[1], decoder="plain")[0])


def test_with_compression_speech_is_said_once(monkeypatch):
    model = says()
    monkeypatch.setattr("unimodal.pipeline.speech_reading.BestOfN", None)
    with compress(model, "stride", keep=0.5):
        model.answers([Document([Turn("user", "Say: hi")])], to="audio")


def test_the_server_says_what_the_pipeline_says():
    model = says()
    expected = model.generate("hi", to="audio", seed=5)
    with serving(model) as served:
        body = {"input": "hi", "voice": "default", "response_format": "wav", "seed": 5}
        answer = served.post("/v1/audio/speech", body)
        assert answer.status_code == 200 and served.idle()
    samples, _ = soundfile.read(io.BytesIO(answer.content), dtype="float32")
    torch.testing.assert_close(torch.from_numpy(samples), expected.media, atol=1e-3, rtol=0)
