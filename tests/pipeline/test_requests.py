"""One request: settings check themselves, mean the same in every way in, and reach the engine; a chat's history."""

import dataclasses
import itertools
from typing import get_type_hints

import numpy as np
import pytest

from tests.tiny_model import tiny_model
from unimodal.pipeline.requests import count_answer_tokens, count_room, fit_history, prepare
from unimodal.pipeline.rows import make_row
from unimodal.pipeline.settings import AnswerChanges, AnswerSettings
from unimodal.sequence.document import Document, Text, Turn


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def ask(words="Draw a red apple."):
    return Document([Turn("user", words)])


# ---- the settings themselves


def test_the_keywords_are_the_fields():
    assert get_type_hints(AnswerChanges) == get_type_hints(AnswerSettings)
    assert {one.name for one in dataclasses.fields(AnswerSettings)} == set(AnswerChanges.__optional_keys__)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": -1.0}, "guidance -1.0 is not usable; give a number from 0 to 1,000,000"),
        ({"guidance": 1e300}, r"guidance 1e\+300 is not usable; give a number from 0 to"),
        ({"temperature": float("nan")}, "temperature nan is not usable"),
        ({"temperature": float("inf")}, "temperature inf is not usable"),
        ({"temperature": "hot"}, "temperature 'hot' is not usable"),
        ({"top_k": -1}, "top_k -1 is not usable; give a whole number"),
        ({"top_k": 2.5}, "top_k 2.5 is not usable"),
        ({"top_p": 0}, "top_p 0 is not usable; give a share above 0"),
        ({"top_p": 1.1}, "top_p 1.1 is not usable"),
        ({"tokens": 0}, "tokens 0 is not usable; give a whole number from 1 on"),
        ({"text_tokens": True}, "text_tokens True is not usable"),
        ({"seed": None}, "seed None is not usable; give a whole number"),
        ({"guidance_interval": (5, 5)}, r"guidance_interval \(5, 5\) is not usable; give two steps, first < last"),
        ({"guidance_interval": (1, 2, 3)}, "guidance_interval"),
        ({"guidance_interval": 3}, "guidance_interval 3 is not usable"),
        ({"decoder": "fast"}, "decoder 'fast' is unknown; choose jacobi, .*plain, or none"),
        ({"search": "magic"}, "search 'magic' is unknown; choose best-of-n, beam, lookahead, or none"),
        ({"search_settings": {"n": 3}}, "search_settings n need a search; choose best-of-n"),
        ({"search": "beam", "to": "text"}, "search chooses between media"),
        ({"allow": "image"}, "allow 'image' is not usable; list what may be"),
        ({"allow": ()}, r"allow \(\) is not usable"),
        ({"allow": ("text",), "to": "image"}, "to 'image' says what the answer must hold .* leave one out"),
        ({"temprature": 1.0}, "there is no setting 'temprature' of an answer; did you mean temperature?"),
        ({"smell": 1.0}, "there is no setting 'smell' of an answer; choose from to, "),
    ],
)
def test_what_no_model_could_follow_is_one_line(model, changes, message):
    ways = [
        lambda: AnswerSettings().replace(**changes),
        lambda: model.answers([ask()], **changes),
        lambda: model.chat("hello", **changes),
    ]
    for way in ways:
        with pytest.raises(ValueError, match=message) as caught:
            way()
        assert "\n" not in str(caught.value)


def test_settings_are_changed_and_not_spoiled():
    settings = AnswerSettings(to="image", temperature=0.5)
    assert settings.replace(seed=3) == AnswerSettings(to="image", temperature=0.5, seed=3)
    assert settings.replace() is settings and settings.seed == 0
    assert dataclasses.replace(settings, to=None).to is None
    assert AnswerSettings(allow=["text", "image"]).allow == ("text", "image")
    assert AnswerSettings(seed=np.int64(5)).seed == 5 and hash(settings) == hash(settings.replace(seed=0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.seed = 1


# ---- settings → what the engine is asked


@pytest.mark.parametrize(
    ("request_", "changed"),
    [
        ({"to": "image"}, {"image"}),
        ({"to": "text"}, {"text"}),
        ({"allow": ("text", "audio")}, {"text", "audio"}),
        ({}, {"image", "audio", "video"}),
    ],
)
def test_sampling_and_guidance_reach_what_is_asked_for(model, request_, changed):
    wanted = {"temperature": 0.31, "top_k": 7, "top_p": 0.42}
    config = prepare(model, ask(), AnswerSettings(**request_, **wanted, guidance=3.5)).config
    for name, sampling in config.sampling.items():
        own = model.sampling[name]
        expected = wanted if name in changed else {key: getattr(own, key) for key in wanted}
        assert sampling.model_dump(include=set(wanted)) == expected, name
        if name != "text":
            assert config.guidance[name] == (3.5 if name in changed else own.guidance), name
    assert (config.unconditional is not None) == (changed != {"text"})


def test_top_k_1_is_the_likeliest_token(model):
    greedy = model.generate("a red apple", to="image", temperature=0.0)
    narrow = model.generate("a red apple", to="image", temperature=1.0, top_k=1, seed=9)
    assert np.array_equal(greedy.part.codes, narrow.part.codes)
    free = model.generate("a red apple", to="image", temperature=1.0, top_k=0, seed=9)
    assert not np.array_equal(greedy.part.codes, free.part.codes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"to": "smell"}, "smell"),
        ({"allow": ("text", "smell")}, "smell"),
        ({"to": "image", "voice": "joe"}, "the voice 'joe' belongs into the words of a request"),
        ({"to": "text", "negative": "blue"}, "a negative prompt works through guidance"),
        ({"to": "image", "tokens": 9_999}, "9999 new tokens do not fit; this prompt leaves room for 1 to"),
        ({"to": "image", "tokens": 5, "shorten": True}, "5 tokens are too few: image takes at least 67"),
    ],
)
def test_what_this_model_cannot_follow_is_one_line(model, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        prepare(model, ask(), AnswerSettings(**changes))
    assert "\n" not in str(caught.value)


def test_the_limits_of_an_answer(model):
    def limits(**changes):
        config = prepare(model, ask(), AnswerSettings(**changes)).config
        return config.max_new_tokens, config.max_text_tokens

    room = count_room(model, ask(), "text")
    assert limits(to="text") == (96, 96) and limits() == (400, 96)
    assert limits(to="text", tokens=5) == (5, 96)
    assert limits(to="text", text_tokens=5) == (6, 5)
    assert limits(text_tokens=5) == (400, 5) and limits(tokens=6, text_tokens=5) == (6, 5)
    assert limits(to="text", text_tokens=10**6) == (room, room - 1)
    assert limits(to="text", tokens=10**6, shorten=True) == (room, 96)


def test_every_way_in_asks_the_engine_the_same(model, monkeypatch):
    settings = AnswerSettings(to="image", seed=4, temperature=0.9, top_p=0.8, guidance=2.5, negative="blue car")
    expected = prepare(model, ask(), settings)
    asked = []
    monkeypatch.setattr(model.engine, "generate", lambda p, c, *_: asked.extend(zip(p, c, strict=True)) or [[1]])
    monkeypatch.setattr(model, "decode_answers", lambda rows: [[type("Picture", (), {"modality": "image"})]])
    model.answers([ask()], settings)
    model.answers([ask()], dataclasses.replace(settings, seed=1), seed=4)
    model.answers([ask()], [settings])
    model.answers([ask()], settings, seeds=[4])
    model.chat("Draw a red apple.", settings=settings)
    model.generate("a red apple", settings=settings)
    model.generate("red apple", "image", settings.replace(to="audio"))
    row = make_row(model, ask(), settings)
    for prompt, config in (*asked, (row.prompt, row.config)):
        assert (prompt, config) == (expected.prompt, expected.config)
    assert len(asked) == 7 and row.compose is None


def test_seeds_count_on_from_the_settings(model, monkeypatch):
    asked = []
    monkeypatch.setattr(model.engine, "generate", lambda p, c, *_: asked.extend(c) or [[1]] * len(p))
    monkeypatch.setattr(model, "decode_answers", lambda rows: [[]] * len(rows))
    three = [ask()] * 3
    model.answers(three, AnswerSettings(to="text"))
    model.answers(three, to="text", seed=7)
    model.answers(three, [AnswerSettings(to="text", seed=seed) for seed in (5, 1, 5)])
    model.answers(three, to="text", seed=7, seeds=[2, 4, 6])
    assert [config.seed for config in asked] == [0, 1, 2, 7, 8, 9, 5, 1, 5, 2, 4, 6]
    with pytest.raises(ValueError, match="3 documents came with 2 seeds; give one for each"):
        model.answers(three, seeds=[1, 2])
    with pytest.raises(ValueError, match="3 documents came with 1 settings; give one for each"):
        model.answers(three, [AnswerSettings()])


def test_documents_may_have_settings_of_their_own(model):
    documents = [ask(), ask("what is it?"), ask("Draw a blue car, please."), ask()]
    settings = [
        AnswerSettings(to="image", seed=3, decoder="jacobi"),
        AnswerSettings(to="text", tokens=6),
        AnswerSettings(to="image", seed=1, temperature=0.0),
        AnswerSettings(to="image", seed=2, search="best-of-n", search_settings={"n": 2}),
    ]
    events = []
    together = model.answers(documents, settings, on_token=events.append)
    for document, own, outputs in zip(documents, settings, together, strict=True):
        [alone] = model.answers([document], own)
        assert [output.part for output in alone] == [output.part for output in outputs]
    for number, outputs in enumerate(together):  # events name the document, whatever its place in a batch
        [part] = [output.part for output in outputs]
        ids = [event.id for event in events if event.row == number]
        [again] = model.template.parse_answer(ids)
        assert again == part


def test_a_search_of_a_document_is_that_of_its_request(model):
    settings = AnswerSettings(to="image", seed=2, search="best-of-n", search_settings={"n": 3})
    [[found]] = model.answers([ask()], settings)
    assert found.part == model.generate("a red apple", settings=settings).part
    for wrong, message in (({"search_settings": {"m": 3}}, "best-of-n: .*'m'"), ({"to": None}, "search chooses")):
        with pytest.raises(ValueError, match=message):
            model.answers([ask()], settings, **wrong)
    for name, given in (("session", model.engine.open_session()), ("on_partial", lambda *_: None)):
        with pytest.raises(ValueError, match=f"search does not go with {name}; leave one of them out"):
            model.answers([ask()], settings, **{name: given})
    with pytest.raises(ValueError, match="decoder is not for a request that shares its batch"):
        make_row(model, ask(), AnswerSettings(to="image", decoder="plain"))


def test_generate_needs_to_know_what_to_make(model):
    with pytest.raises(ValueError, match="say what to make of the prompt"):
        model.generate("a red apple")


# ---- how much of a conversation is shown


def conversation(exchanges, words=1):
    turns = []
    for number in range(exchanges):
        turns += [Turn("user", f"question {number} " + "word " * words), Turn("assistant", f"answer {number}")]
    return [*turns, Turn("user", "the last question")]


def shown_exchanges(document):
    """How many exchanges stand before the last question, once it is sure that they are the latest ones, whole."""
    questions = [turn.text for turn in document.turns if turn.role == "user"]
    assert questions[-1] == "the last question"
    return len(questions) - 1


@pytest.fixture
def looks_back(model, monkeypatch):
    def set_limit(history_turns):
        changed = model.processor.model_copy(update={"history_turns": history_turns})
        monkeypatch.setattr(model, "processor", changed)

    return set_limit


@pytest.mark.parametrize("history_turns", [None, *range(7)])
def test_as_many_exchanges_are_shown_as_the_model_was_trained_to_see(model, looks_back, history_turns):
    looks_back(history_turns)
    for length in range(9):
        turns = conversation(length)
        document = fit_history(model, turns)
        expected = length if history_turns is None else min(length, history_turns)
        assert shown_exchanges(document) == expected
        assert list(document.turns) == turns[2 * (length - expected) :]
        system = Turn("system", "Be brief.")
        assert fit_history(model, [system, *turns]).turns == (system, *document.turns)


@pytest.mark.parametrize("to", ["text", "image", None])
def test_the_oldest_exchanges_make_room_for_the_answer(model, looks_back, to):
    """Against every way to cut, over limits of turns and of tokens: the longest that fits is shown, and is accepted."""
    seen = set()
    for history_turns, length, tokens in itertools.product((None, 0, 2, 4, 6), range(9), (None, 100, 330)):
        looks_back(history_turns)
        turns = conversation(length, words=20)
        settings = AnswerSettings(to=to, tokens=tokens)
        document = fit_history(model, turns, settings)
        needed = max(count_answer_tokens(model, to), tokens or 0)
        most = length if history_turns is None else min(length, history_turns)
        ways = [Document(turns[2 * (length - kept) :]) for kept in range(most, -1, -1)]
        assert document == next(way for way in ways if count_room(model, way, to) >= needed)
        prepare(model, document, settings)
        seen.add((most, shown_exchanges(document)))
    assert any(kept < most for most, kept in seen) and any(kept == most > 2 for most, kept in seen)


def test_limits_that_may_be_shortened_cost_no_exchange(model, looks_back):
    looks_back(None)
    turns = conversation(4, words=20)
    whole = fit_history(model, turns, AnswerSettings(to="text"))
    assert fit_history(model, turns, AnswerSettings(to="text", tokens=400, shorten=True)) == whole
    assert shown_exchanges(fit_history(model, turns, AnswerSettings(to="text", tokens=400))) < 4


def test_exchanges_begin_where_the_user_speaks_after_someone_else(model, looks_back):
    greeting = Turn("assistant", "hello, I am here")
    twice = [Turn("user", "one more thing"), Turn("user", "namely this"), Turn("assistant", "yes")]
    last = [Turn("user", "a picture"), Turn("user", "what is it?")]
    for history_turns, expected in ((None, [greeting, *twice, *last]), (0, last), (1, [*twice, *last])):
        looks_back(history_turns)
        assert list(fit_history(model, [greeting, *twice, *last]).turns) == expected
    looks_back(2)
    assert list(fit_history(model, [greeting, *twice, *last]).turns) == [greeting, *twice, *last]


def test_a_last_turn_that_is_too_long_is_told_by_prepare(model):
    turns = [*conversation(2), Turn("assistant", "yes"), Turn("user", [Text("word " * 2_000)])]
    document = fit_history(model, turns)
    assert document.turns == (turns[-1],)
    with pytest.raises(ValueError, match="the prompt is too long"):
        prepare(model, document, AnswerSettings())
