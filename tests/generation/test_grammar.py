"""The grammar accepts exactly the well-formed answers that fit, whatever is sampled, for every row by itself."""

import itertools
import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.campaigns import examples
from unimodal.generation.grammar import Grammar, GrammarBatch
from unimodal.generation.request import GenerationConfig
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

STANDARD = Vocabulary.build(
    50,
    [
        Block(name="image", modality="image", size=4096),
        Block(name="audio", modality="audio", size=4096),
        Block(name="video", modality="video", size=4096),
    ],
    text_reserved=[0, 7],
)
# Everything unusual at once: two audio groups, a video with a part of any length and one without a mark.
ODD = Vocabulary.build(
    20,
    [
        Block(name="image", modality="image", size=16),
        Block(name="audio", modality="audio", group=0, size=8),
        Block(name="audio", modality="audio", group=1, size=5),
        Block(name="video", modality="video", size=4),
    ],
    [
        SpanLayout("image", [Segment("image", 4)]),
        SpanLayout("audio", [Segment("audio")]),
        SpanLayout(
            "video", [Segment("video", 1), Segment("image", 2, mark=False), Segment("video"), Segment("video", 3)]
        ),
    ],
)
# One row of each kind: small enough to list the whole language.
TINY = Vocabulary.build(
    1,
    [Block(name="image", modality="image", size=1), Block(name="audio", modality="audio", size=1)],
    [SpanLayout("image", [Segment("image", 1)]), SpanLayout("audio", [Segment("audio")])],
)


def make_grammar(vocabulary: Vocabulary, max_new_tokens: int, prompt: Sequence[int] = (), **limits) -> Grammar:
    return Grammar(vocabulary, GenerationConfig(max_new_tokens=max_new_tokens, **limits), prompt)


def sample(grammar: Grammar, rng: np.random.Generator, lean: float = 0.5) -> list[int]:
    """Random allowed rows until the turn ends; `lean` is how often a control is taken where there is a choice."""
    state = grammar.start()
    rows: list[int] = []
    while not state.finished:
        allowed = grammar.list_allowed(state)
        controls = grammar.vocabulary.control_range
        single = [row for start, end in allowed for row in range(max(start, controls.start), min(end, controls.stop))]
        if single and rng.random() < lean:
            row = int(rng.choice(single))
        else:
            start, end = allowed[rng.integers(len(allowed))]
            row = int(rng.integers(start, end))
        steady = grammar.count_steady(state)
        assert steady >= 1
        grammar.advance(state, row)
        if steady > 1 and not state.finished:
            assert grammar.list_allowed(state) == allowed
        rows.append(row)
    assert grammar.list_allowed(state) == () and grammar.count_steady(state) == 0
    return rows


def read(vocabulary: Vocabulary, rows: list[int]) -> tuple[list[tuple[str, np.ndarray]], int]:
    """The spans of an answer and its number of text tokens; asserts that nothing else is in it."""
    spans, texts, at = [], 0, 0
    assert rows[-1] == vocabulary.get_control_id("end_of_turn")
    while at < len(rows) - 1:
        modality = vocabulary.find_opened_medium(rows[at])
        if modality is None:
            assert vocabulary.is_text(rows[at]) and rows[at] not in vocabulary.text_reserved
            texts, at = texts + 1, at + 1
        else:
            end = rows.index(vocabulary.get_end_id(modality), at)
            spans.append(vocabulary.decode_span(rows[at : end + 1]))
            at = end + 1
    return spans, texts


MEDIA = ["image", "audio", "video"]


@examples(60)
@given(
    vocabulary=st.sampled_from([STANDARD, ODD]),
    budget=st.integers(1, 500),
    allow=st.none() | st.sets(st.sampled_from(["text", *MEDIA])),
    force=st.none() | st.sampled_from(["text", *MEDIA]),
    min_text=st.integers(0, 5),
    more_text=st.none() | st.integers(0, 20),
    max_spans=st.none() | st.integers(0, 3),
    min_audio=st.none() | st.integers(1, 30),
    more_audio=st.none() | st.integers(0, 30),
    seed=st.integers(0, 2**32 - 1),
)
def test_whatever_is_sampled_is_well_formed_and_fits(
    vocabulary, budget, allow, force, min_text, more_text, max_spans, min_audio, more_audio, seed
):
    max_text = None if more_text is None else min_text + more_text
    min_codes = {} if min_audio is None else {"audio": min_audio}
    max_codes = {} if more_audio is None else {"audio": (min_audio or 1) + more_audio}
    try:
        grammar = make_grammar(
            vocabulary, budget, allow=None if allow is None else tuple(allow), force=force, min_text_tokens=min_text,
            max_text_tokens=max_text, max_spans=max_spans, min_codes=min_codes, max_codes=max_codes,
        )  # fmt: skip
    except ValueError as error:
        assert "\n" not in str(error)
        return
    rng = np.random.default_rng(seed)
    for lean in (0.0, 0.5, 1.0):
        rows = sample(grammar, rng, lean=lean)
        assert len(rows) <= budget
        spans, texts = read(vocabulary, rows)
        names = [name for name, _ in spans]
        assert set(names) <= grammar.allow and (texts == 0 or "text" in grammar.allow)
        if force in MEDIA:
            assert force in names
        assert grammar.min_text_tokens <= texts <= (budget if max_text is None else max_text)
        assert len(spans) <= (budget if max_spans is None else max_spans)
        for name, codes in spans:
            if name == "audio":
                assert len(codes) >= (min_audio or 1)
                assert more_audio is None or len(codes) <= max_codes["audio"]


LANGUAGE = {
    "all": (dict(), r"(t|iIj|aA+b)*e"),
    "text only": (dict(allow=("text",)), r"t*e"),
    "some text": (dict(force="text"), r"t+e"),
    "an image": (dict(force="image"), r"iIje"),
    "a sound": (dict(force="audio"), r"aA+be"),
    "short sounds": (dict(force="audio", min_codes={"audio": 2}, max_codes={"audio": 3}), r"aA{2,3}be"),
    "an image with text": (dict(force="image", allow=("text",)), r"t*iIjt*e"),
    "a sound after an image": (dict(force="audio", allow=("image",), max_spans=2), r"((iIj)?aA+b|aA+b(iIj|aA+b))e"),
    "little text": (dict(allow=("text",), min_text_tokens=1, max_text_tokens=2), r"t{1,2}e"),
    "one span": (dict(max_spans=1), r"t*(iIj|aA+b)?t*e"),
}


@pytest.mark.parametrize("name", LANGUAGE)
@pytest.mark.parametrize("budget", [5, 7])
def test_the_language_is_exactly_the_documented_one(name, budget):
    """Every string of the pattern that fits is accepted and no other one, by listing them all."""
    settings_, pattern = LANGUAGE[name]
    c = TINY.get_control_id
    letters = {
        0: "t",
        c("image_start"): "i",
        c("image_end"): "j",
        c("audio_start"): "a",
        c("audio_end"): "b",
        c("end_of_turn"): "e",
        TINY.get_block_range("image")[0]: "I",
        TINY.get_block_range("audio")[0]: "A",
    }
    grammar = make_grammar(TINY, budget, **settings_)
    accepted, open_ = set(), [("", grammar.start())]
    while open_:
        word, state = open_.pop()
        if state.finished:
            accepted.add(word)
        for start, end in grammar.list_allowed(state):
            for row in range(start, end):
                open_.append((word + letters[row], grammar.advance(state.copy(), row)))
    pieces = ["t", "iIj", "e", *("a" + "A" * n + "b" for n in range(1, budget))]
    words = {""}
    expected = set()
    while words:
        words = {word + piece for word, piece in itertools.product(words, pieces) if len(word + piece) <= budget}
        expected |= {word for word in words if re.fullmatch(pattern, word)}
        words = {word for word in words if "e" not in word}
    assert accepted == expected and expected


def test_rows_outside_the_ranges_are_refused_at_every_step():
    grammar = make_grammar(ODD, 60)
    rng = np.random.default_rng(0)
    for _ in range(20):
        state = grammar.start()
        while not state.finished:
            allowed = {row for start, end in grammar.list_allowed(state) for row in range(start, end)}
            before = state.copy()
            for row in {*rng.integers(0, ODD.size, 5).tolist(), *ODD.control_range, -1, ODD.size} - allowed:
                with pytest.raises(ValueError, match="cannot come next"):
                    grammar.advance(state, row)
            assert state == before
            grammar.advance(state, int(rng.choice(sorted(allowed))))
        with pytest.raises(ValueError):
            grammar.advance(state, 0)


def test_every_rendered_answer_is_accepted():
    """What training shows the model is never forbidden to it."""
    rng = np.random.default_rng(0)
    rows = [
        *[1, 2, 3],
        *STANDARD.encode_span("image", rng.integers(0, 4096, 64)),
        *STANDARD.encode_span("audio", rng.integers(0, 4096, 70)),
        *[4, 4],
        *STANDARD.encode_span("video", rng.integers(0, 4096, 192)),
        STANDARD.get_control_id("end_of_turn"),
    ]
    grammar = make_grammar(STANDARD, len(rows))
    state = grammar.start()
    for row in rows:
        grammar.advance(state, row)
    assert state.finished and state.remaining == 0


def test_media_steps_are_one_range_of_their_block():
    image = STANDARD.get_block_range("image")
    grammar = make_grammar(STANDARD, 100, force="image")
    state = grammar.start()
    assert grammar.list_allowed(state) == ((STANDARD.get_start_id("image"), STANDARD.get_start_id("image") + 1),)
    grammar.advance(state, STANDARD.get_start_id("image"))
    for step in range(64):
        assert state.modality == "image"
        assert grammar.list_allowed(state) == ((image.start, image.stop),)
        assert grammar.count_steady(state) == 64 - step
        grammar.advance(state, image[step])
    assert grammar.list_allowed(state) == ((STANDARD.get_end_id("image"), STANDARD.get_end_id("image") + 1),)


def test_text_steps_leave_reserved_rows_out():
    grammar = make_grammar(STANDARD, 10, allow=("text",))
    end = STANDARD.get_control_id("end_of_turn")
    assert grammar.list_allowed(grammar.start()) == ((1, 7), (8, 50), (end, end + 1))


def test_the_last_tokens_of_a_budget_close_the_answer():
    end_of_turn, audio = STANDARD.get_control_id("end_of_turn"), STANDARD.get_block_range("audio")
    grammar = make_grammar(STANDARD, 9, force="audio")
    state = grammar.start()
    grammar.advance(state, STANDARD.get_start_id("audio"))
    for _ in range(6):
        grammar.advance(state, audio[0])
    assert grammar.list_allowed(state) == ((STANDARD.get_end_id("audio"), STANDARD.get_end_id("audio") + 1),)
    grammar.advance(state, STANDARD.get_end_id("audio"))
    assert grammar.list_allowed(state) == ((end_of_turn, end_of_turn + 1),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(max_new_tokens=66, force="image"), "is 66 but the image answer takes at least 67; raise it to 67"),
        (dict(max_new_tokens=196, force="video"), "takes at least 197"),
        (dict(max_new_tokens=30, force="audio", min_codes={"audio": 40}), "takes at least 43"),
        (dict(max_new_tokens=0), "greater than 0"),
        (dict(max_new_tokens=1, force="text"), "text answer takes at least 2"),
        (dict(max_new_tokens=99, force="smell"), "'smell' is unknown here; this model has text, image, audio, video"),
        (dict(max_new_tokens=99, allow=()), "allow is empty"),
        (dict(max_new_tokens=99, force="image", max_spans=0), "max_spans is 0"),
        (dict(max_new_tokens=99, allow=("image",), min_text_tokens=1), "fewer are allowed"),
        (dict(max_new_tokens=99, force="image", max_codes={"image": 32}), "always has 64 codes"),
        (
            dict(max_new_tokens=99, min_codes={"audio": 9}, max_codes={"audio": 8}),
            "at least 9 codes but max_codes is 8",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused_up_front(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_grammar(STANDARD, **arguments)
    if "at least 67" in message:
        make_grammar(STANDARD, 67, force="image")


def test_a_span_left_open_by_the_prompt_is_continued():
    rows = STANDARD.encode_span("video", np.arange(192))
    for cut in (1, 30, 65, 66, 100, 195):
        prefix = [3, 4, *rows[:cut]]
        need = len(rows) - cut + 1
        grammar = make_grammar(STANDARD, need, prefix, allow=("text",))
        answer = sample(grammar, np.random.default_rng(cut))
        assert len(answer) == need
        modality, codes = STANDARD.decode_span([*rows[:cut], *answer[:-1]])
        given_codes = [row for row in rows[1:cut] if not STANDARD.is_control(row)]
        assert modality == "video" and (codes[: len(given_codes)] == np.arange(len(given_codes))).all()
        with pytest.raises(ValueError, match="takes|no room"):
            make_grammar(STANDARD, need - 1, prefix, allow=("text",)).start()
    assert make_grammar(STANDARD, 5, [3, *rows, 4]).start() == make_grammar(STANDARD, 5).start()
    with pytest.raises(ValueError, match="malformed"):
        make_grammar(STANDARD, 300, [*rows[:10], 3]).start()


def test_an_open_span_of_the_forced_medium_counts_as_it():
    prefix = STANDARD.encode_span("audio", [1, 2, 3])[:-1]
    answer = sample(make_grammar(STANDARD, 20, prefix, force="audio"), np.random.default_rng(0))
    assert answer.count(STANDARD.get_end_id("audio")) == 1 and STANDARD.get_start_id("audio") not in answer
    answer = sample(make_grammar(STANDARD, 120, prefix, force="image"), np.random.default_rng(0))
    assert answer.index(STANDARD.get_end_id("audio")) < answer.index(STANDARD.get_start_id("image"))


def test_rows_of_a_batch_are_independent():
    """A batch of different rules gives each row what it gives alone, finished neighbours or not."""
    grammars = [
        make_grammar(STANDARD, 40, allow=("text",)),
        make_grammar(STANDARD, 90, force="image"),
        make_grammar(STANDARD, 250, force="video"),
        make_grammar(STANDARD, 60, force="audio", max_codes={"audio": 20}),
        make_grammar(STANDARD, 300),
        make_grammar(ODD, 50, force="audio"),
    ]
    alone = [sample(grammar, np.random.default_rng(i)) for i, grammar in enumerate(grammars)]
    batch, given_rows = GrammarBatch(grammars), [list(rows) for rows in alone]
    singles = [grammar.start() for grammar in grammars]
    while not batch.finished.all():
        groups = batch.group_rows()
        ranges_of = {row: ranges for ranges, rows in groups for row in rows}
        assert sorted(row for _, rows in groups for row in rows) == np.flatnonzero(~batch.finished).tolist()
        assert len({ranges for ranges, _ in groups}) == len(groups)
        assert batch.count_steady() >= 1
        ids = []
        for index, (grammar, state) in enumerate(zip(grammars, singles, strict=True)):
            assert ranges_of.get(index, ()) == grammar.list_allowed(state)
            assert batch.states[index] == state
            ids.append(given_rows[index].pop(0) if given_rows[index] else -1)
            if ids[-1] >= 0:
                grammar.advance(state, ids[-1])
                batch.grammars[index].advance(batch.states[index], ids[-1])
    assert not any(given_rows) and batch.count_steady() == 0 and batch.group_rows() == []


def test_equal_states_share_one_tuple_of_ranges():
    grammar = make_grammar(STANDARD, 300)
    first, second = grammar.start(), grammar.start()
    assert grammar.list_allowed(first) is grammar.list_allowed(second)
    for state in (first, second):
        grammar.advance(state, STANDARD.get_start_id("image"))
    assert grammar.list_allowed(first) is grammar.list_allowed(second)


def test_a_text_only_vocabulary_needs_no_media():
    vocabulary = Vocabulary.build(5, [])
    grammar = make_grammar(vocabulary, 4)
    state = grammar.start()
    for row in (0, 4, 2):
        grammar.advance(state, row)
    end = vocabulary.get_control_id("end_of_turn")
    assert grammar.list_allowed(state) == ((end, end + 1),)
