"""Search finds what the verifier likes, at the cost that it promises, and the same again with the same seed."""

import pytest

from unimodal.generation.composition import run_composition, run_side_by_side
from unimodal.generation.engine import Engine
from unimodal.generation.request import PAUSE, GenerationConfig, GenerationRequest
from unimodal.generation.search import make_search
from unimodal.generation.search.base import Candidate, rank_answers


@pytest.fixture
def engine(model, vocabulary):
    return Engine(model, vocabulary)


@pytest.fixture
def request_(ask):
    return ask([3, 4, 5]), GenerationConfig(
        max_new_tokens=20, force="image", seed=7, guidance={"image": 1.3}, unconditional=tuple(ask())
    )


def rank(answers, verifier, at_once=None):
    """Scored at once, without a row being written."""
    return run_composition(None, rank_answers(answers, verifier, at_once))


def likes(vocabulary):
    """Counts the codes in the lower half of the block: a score that a partial answer has too."""
    rows = vocabulary.get_block_range("image")

    def verifier(answers):
        return [sum(row in rows and row - rows.start < len(rows) // 2 for row in answer) for answer in answers]

    return verifier


@pytest.mark.parametrize(
    ("name", "settings", "most_tokens"),
    [
        ("best-of-n", {"n": 8}, 8 * 9),
        ("beam", {"beams": 2, "expand": 4, "stages": (2, 4)}, 8 * 3 + 8 * 2 + 8 * 4),
        ("lookahead", {"beams": 1, "expand": 4, "stages": (2, 4)}, 4 * 9 + 4 * 6 + 4 * 4),
    ],
)
def test_search_beats_a_single_answer_within_its_budget(engine, vocabulary, request_, name, settings, most_tokens):
    prompt, config = request_
    verifier = likes(vocabulary)
    found = make_search(name, **settings).run(engine, prompt, config, verifier)
    single = engine.generate([prompt], config)[0]
    assert vocabulary.decode_span(found.answer[:-1])[0] == "image"
    assert found.score == verifier([found.answer])[0] > verifier([single])[0]
    assert found.score == max(candidate.score for candidate in found.candidates)
    assert found.num_tokens <= most_tokens
    assert make_search(name, **settings).run(engine, prompt, config, verifier).answer == found.answer


def test_the_first_candidate_is_the_plain_answer(engine, vocabulary, request_):
    prompt, config = request_
    found = make_search("best-of-n", n=3).run(engine, prompt, config, likes(vocabulary))
    assert engine.generate([prompt], config)[0] in [candidate.answer for candidate in found.candidates]
    assert len({tuple(candidate.answer) for candidate in found.candidates}) == 3


def test_beams_are_continued_and_not_rewritten(engine, vocabulary, request_):
    """Whatever the last scores, a whole answer begins with a partial one that the verifier kept."""
    prompt, config = request_
    seen, verifier = [], likes(vocabulary)

    def watched(answers):
        seen.append([list(answer) for answer in answers])
        return verifier(answers)

    make_search("beam", beams=1, expand=3, stages=(3,)).run(engine, prompt, config, watched)
    assert [len(answer) for answer in seen[0]] == [4] * len(seen[0])
    best = rank(seen[0], verifier)[0].answer
    assert all(answer[:4] == best for answer in seen[1])


def test_what_cannot_be_searched_is_refused(engine, vocabulary, request_):
    prompt, config = request_
    verifier = likes(vocabulary)
    with pytest.raises(ValueError, match="search 'magic' is unknown; choose best-of-n, beam, lookahead"):
        make_search("magic")
    with pytest.raises(ValueError, match="search needs a forced medium"):
        make_search("best-of-n").run(engine, prompt, GenerationConfig(max_new_tokens=20), verifier)
    with pytest.raises(ValueError, match=r"stages \(4, 9\) must ascend between 0 and the 6 codes"):
        make_search("beam", stages=(4, 9)).run(engine, prompt, config, verifier)
    audio = config.model_copy(update={"force": "audio", "guidance": {}})
    with pytest.raises(ValueError, match="no fixed run of codes to search in stages; use best-of-n"):
        make_search("lookahead").run(engine, prompt, audio, verifier)
    assert make_search("best-of-n", n=2).run(engine, prompt, audio, verifier).candidates
    with pytest.raises(ValueError, match="1 scores for 2 answers"):
        rank([[1], [2]], lambda answers: [0.0])


def test_ranking_drops_copies_and_keeps_the_order_of_equals():
    scores = {1: 0.0, 2: 1.0, 3: 0.0}
    for at_once in (None, 1, 2):
        assert rank([[1], [2], [1], [3]], lambda answers: [scores[one] for [one] in answers], at_once) == [
            Candidate([2], 1.0),
            Candidate([1], 0.0),
            Candidate([3], 0.0),
        ]


def test_compositions_side_by_side_share_their_rows_and_work_one_at_a_time():
    """Rows that are asked for at the same time are written together; of two that pause, one works a turn."""
    asked, worked = [], []

    def compose(name, rounds):
        for number in range(rounds):
            [ids] = yield [GenerationRequest([name], GenerationConfig(seed=number))]
            assert ids == [name, number]
            yield PAUSE
            worked.append((name, number))
        return name

    together = run_side_by_side([compose(1, 2), compose(2, 1), compose(3, 0)])
    rows = next(together)
    try:
        while True:
            asked.append([(*row.prompt, row.config.seed) for row in rows])
            rows = together.send([list(row) for row in asked[-1]])
    except StopIteration as end:
        assert end.value == [1, 2, 3]
    assert asked == [[(1, 0), (2, 0)], [], [], [(1, 1)], []] and worked == [(1, 0), (2, 0), (1, 1)]


def test_closing_a_composition_ends_all_that_it_runs():
    ended = []

    def compose(name):
        try:
            yield PAUSE
        finally:
            ended.append(name)

    together = run_side_by_side([compose(1), compose(2)])
    next(together)
    together.close()
    assert ended == [1, 2]
