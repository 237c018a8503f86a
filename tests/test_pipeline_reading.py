"""Transcripts of a model that reads speech at its codes too: when they are searched for, and that all ways agree."""

import pytest

from tests.serve.conftest import lively_model, serving, wav
from unimodal.generation.ctc_beam import ctc_beam_search
from unimodal.pipeline_compression import compressed
from unimodal.pipeline_folder import CtcReading
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
        return ctc_beam_search(engine, prompt, *settings, **more)

    monkeypatch.setattr("unimodal.pipeline_reading.ctc_beam_search", watched)
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
    codes, pad = model.vocabulary.block_range("audio"), model.vocabulary.control_id("<|pad|>")
    config = model._config(documents[0], len(searches[-2]), "text", 0, model._settings("text", None, None), None)
    ids = ctc_beam_search(model.engine, searches[-2], config, codes, pad)
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
    with compressed(model, "stride", keep=0.5):
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
