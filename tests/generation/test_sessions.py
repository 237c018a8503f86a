"""A session answers what a call without it answers, and reads only what is new."""

import pytest

from unimodal.generation.decoders.compiled_decoder import CompiledDecoder
from unimodal.generation.decoders.step_decoder import StreamCache
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import GREEDY, SamplingConfig
from unimodal.generation.session import count_common

MODALITIES = ("text", "image", "audio", "video")


@pytest.fixture(params=["packed", "lean", "fixed-shape", "reference"])
def engine(request, model, vocabulary):
    if request.param in ("packed", "reference"):
        weights = "float32" if request.param == "packed" else "auto"
        return Engine(model, vocabulary, "lean" if request.param == "packed" else "reference", weights)
    if request.param == "fixed-shape":
        return Engine(model, vocabulary, CompiledDecoder(model, backend=None))
    return Engine(model, vocabulary, "lean", weights="model")


def conversation(engine, vocabulary, ask, sampling, session):
    """Three turns, text → picture → clip, each behind the whole of what was said before; all answers."""
    user, end, assistant = (vocabulary.get_control_id(n) for n in ("<|user|>", "<|end_of_turn|>", "<|assistant|>"))
    history, answers = ask([3, 4]), []
    for turn, (force, guidance) in enumerate([("text", 1.0), ("image", 2.0), ("video", 1.0)]):
        config = GenerationConfig(
            max_new_tokens=20,
            force=force,
            max_text_tokens=6,
            guidance={} if force == "text" else {force: guidance},
            unconditional=tuple(ask()),
            seed=turn,
            sampling=dict.fromkeys(MODALITIES, sampling),
        )
        answers.append(engine.generate([history], config, session=session)[0])
        history = [*history, *answers[-1], user, 9 + turn, end, assistant]
    return answers


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize("sampling", [GREEDY, SamplingConfig(temperature=0.9)], ids=["greedy", "sampled"])
def test_turns_that_share_a_cache_answer_alike(engine, vocabulary, ask, sampling):
    session = engine.open_session()
    alone = conversation(engine, vocabulary, ask, sampling, None)
    assert engine.stats.cached_tokens == 0
    read_alone = engine.stats.prompt_tokens
    assert conversation(engine, vocabulary, ask, sampling, session) == alone
    # the last turn reads the end of the answer before it and the new question
    assert engine.stats.prompt_tokens <= 2 * 9 < read_alone
    session.clear()
    assert len(session) == 0


def test_a_batch_of_unequal_prompts_takes_what_each_can(engine, ask):
    config = GenerationConfig(max_new_tokens=20, force="image", seed=3)
    prompts = [ask([3, 4, 5, 6, 2]), ask([3, 4]), ask([9])]
    session = engine.open_session()
    engine.generate([ask([3, 4, 5, 6])], config, session=session)
    assert engine.generate(prompts, config, session=session) == engine.generate(prompts, config)
    again = engine.generate(prompts, config, session=session)
    assert again == engine.generate(prompts, config)


def test_an_unfinished_span_is_continued_from_the_cache(engine, ask):
    """Text, then a picture cut in two calls: the second reads one token."""
    config = GenerationConfig(max_new_tokens=20, force="image", sampling={"image": GREEDY})
    session = engine.open_session()
    whole = engine.generate([ask([3])], config)[0]
    part = engine.generate([ask([3])], config.model_copy(update={"pause": 4}), session=session)[0]
    assert part == whole[:4]
    rest = engine.generate([[*ask([3]), *part]], config.model_copy(update={"max_new_tokens": 16}), session=session)[0]
    assert part + rest == whole
    assert engine.stats.prompt_tokens <= 2


def test_a_session_keeps_the_newest_and_no_beginnings_of_others(model, vocabulary, ask):
    engine = Engine(model, vocabulary)
    session = engine.open_session(size=2)
    config = GenerationConfig(max_new_tokens=20, force="image")
    for words in ([3], [4], [5]):
        engine.generate([ask(words)], config, session=session)
    assert len(session) == 2
    shorter, longer = StreamCache([]), StreamCache([])
    session.store([1, 2, 3], shorter)
    session.store([1, 2, 3, 4], longer)
    [prefix] = session.match([[1, 2, 3, 9]])
    assert prefix.cache is longer and prefix.num_tokens == 3 and len(session) == 2
    with pytest.raises(ValueError, match="another engine's"):
        Engine(model, vocabulary).generate([ask([3])], config, session=session)
    with pytest.raises(ValueError, match="keeps nothing"):
        engine.open_session(0)


def test_common_prefix():
    assert count_common([1, 2, 3], [1, 2, 4]) == 2
    assert count_common([], [1]) == 0 and count_common([1, 2], [1, 2, 3]) == 2


def test_what_the_prompt_holds_of_a_span_needs_no_room(model, vocabulary, ask):
    """A picture of 6 codes with 4 written: 2 codes, the end and the end of turn still come."""
    engine, config = Engine(model, vocabulary), GenerationConfig(max_new_tokens=20, force="image")
    whole = engine.generate([ask([3])], config)[0]
    begun = [*ask([3]), *whole[:5]]
    assert len(engine.generate([begun], config.model_copy(update={"max_new_tokens": 4}))[0]) == 4
    with pytest.raises(ValueError, match="max_new_tokens is 3"):
        engine.generate([begun], config.model_copy(update={"max_new_tokens": 3}))
