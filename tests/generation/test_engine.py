"""The engine writes what a naive loop over full forwards writes: batched, padded, cached, guided, sliced, whatever."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.campaigns import examples
from unimodal.generation.decoders.compiled_decoder import CompiledDecoder
from unimodal.generation.engine import Engine
from unimodal.generation.grammar import Grammar
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import GREEDY, SamplingConfig, make_noise_keys, sample

MODALITIES = ("text", "image", "audio", "video")
ALL_GREEDY = dict.fromkeys(MODALITIES, GREEDY)
MIXED = {
    "text": SamplingConfig(temperature=1.3, top_k=20),
    "image": SamplingConfig(top_p=0.9),
    "audio": SamplingConfig(),
    "video": SamplingConfig(temperature=0.7),
}


@pytest.fixture(params=["lean", "packed", "fixed-shape", "reference"])
def engine(request, model, vocabulary):
    """The ways to run the decoder; "fixed-shape" is the step that is compiled on a GPU, here run as it is."""
    if request.param == "packed":
        return Engine(model, vocabulary, weights="float32")
    if request.param == "reference":
        return Engine(model, vocabulary, "reference")
    if request.param == "fixed-shape":
        return Engine(model, vocabulary, CompiledDecoder(model, backend=None))
    return Engine(model, vocabulary, "lean", weights="model")


@torch.inference_mode()
def naive(model, vocabulary, prompt, config):
    """No cache, no padding, no slices, no batch: the whole head, branches one by one, all that is not allowed
    masked."""
    grammar = Grammar(vocabulary, config, prompt)
    state, answer = grammar.start(), []
    while not state.finished:
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, -1]
        scale = 1.0 if state.modality == "text" else config.guidance.get(state.modality, 1.0)
        if scale != 1.0:
            other = model(torch.tensor([[*config.unconditional, *answer]])).logits[0, -1]
            logits = other + scale * (logits - other)
        mask = torch.full_like(logits, -torch.inf)
        for start, end in grammar.list_allowed(state):
            mask[start:end] = 0
        sampling = config.sampling.get(state.modality, SamplingConfig())
        keys = make_noise_keys([config.seed], len(answer))
        answer.append(int(sample((logits + mask)[None], torch.arange(len(logits)), [sampling], keys)))
        grammar.advance(state, answer[-1])
    return answer


def varied(ask, sampling):
    """Rows of every kind in one batch: lengths, forced media, guidance, seeds, an open span, a plain chat."""
    bare = tuple(ask())
    rows = [
        (ask([3, 4, 5]), {"force": "image", "guidance": {"image": 3.0}, "unconditional": bare}),
        (ask([9]), {"force": "audio", "max_codes": {"audio": 9}, "seed": 4}),
        (ask(range(10, 25)), {"force": "video", "guidance": {"video": 0.5}, "unconditional": bare, "seed": 5}),
        (ask([3, 4, 5]), {"allow": ("text",), "max_new_tokens": 9}),
        (ask([6, 6]), {"seed": 11}),
        (ask([3, 4, 5]), {"force": "image", "seed": 12}),
    ]
    return [p for p, _ in rows], [GenerationConfig(sampling=sampling, **{"max_new_tokens": 40, **c}) for _, c in rows]


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize("sampling", [ALL_GREEDY, MIXED], ids=["greedy", "sampled"])
def test_batched_padded_cached_and_sliced_equals_the_naive_loop(engine, model, vocabulary, ask, sampling):
    prompts, configs = varied(ask, sampling)
    answers = engine.generate(prompts, configs)
    for prompt, config, answer in zip(prompts, configs, answers, strict=True):
        assert answer == naive(model, vocabulary, prompt, config)
    assert len({tuple(answer) for answer in answers}) == len(answers)


@pytest.mark.sweep
def test_a_row_does_not_depend_on_its_neighbours(engine, ask):
    prompts, configs = varied(ask, MIXED)
    together = engine.generate(prompts, configs)
    assert [engine.generate([p], c)[0] for p, c in zip(prompts, configs, strict=True)] == together
    assert engine.generate(prompts[::-1], configs[::-1]) == together[::-1]


@pytest.mark.sweep
def test_guidance_changes_the_picture_and_follows_the_other_prompt(engine, vocabulary, ask):
    def draw(scale, other=()):
        config = GenerationConfig(
            max_new_tokens=20, force="image", sampling=ALL_GREEDY, guidance={"image": scale}, unconditional=ask(other)
        )
        return engine.generate([ask([3, 4, 5])], config)[0]

    assert draw(6.0) != draw(1.0)
    assert draw(6.0) != draw(6.0, [8, 9])
    plain = GenerationConfig(max_new_tokens=20, force="image", sampling=ALL_GREEDY)
    assert draw(0.0) == engine.generate([ask()], plain)[0]  # scale 0 is the unconditional prompt alone
    assert draw(1.0) == engine.generate([ask([3, 4, 5])], plain)[0]


@pytest.mark.parametrize(
    ("change", "streams"),
    [
        ({"guidance": {"image": 1.0}}, 1),
        ({"guidance": {"audio": 4.0}}, 1),  # of a medium that this answer cannot hold
        ({"guidance": {"image": 2.0}}, 2),
    ],
)
def test_only_guided_rows_run_a_second_branch(engine, model, ask, change, streams):
    """Counted at the model: the batch rows that its embedding sees."""
    seen = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    engine.generate([ask([3])], GenerationConfig(max_new_tokens=20, force="image", unconditional=ask(), **change))
    hook.remove()
    assert set(seen) == {streams}
    assert engine.stats.stream_counts == seen
    assert len(seen) == 1 + 6  # the prompt, then each code's step: start, end and end of turn cost nothing


def test_finished_rows_leave_the_batch(engine, ask):
    configs = [GenerationConfig(max_new_tokens=n, allow=("text",), min_text_tokens=n - 1) for n in (2, 3, 30)]
    answers = engine.generate([ask([3])] * 3, configs)
    assert [len(answer) for answer in answers] == [2, 3, 30]
    assert engine.stats.stream_counts[0] == 3 and engine.stats.stream_counts[-1] == 1
    assert engine.stats.step_tokens < 3 * 15


@pytest.mark.sweep
def test_seeds_reproduce_and_differ(engine, ask):
    config = GenerationConfig(max_new_tokens=20, force="image")
    first, again, other = (
        engine.generate([ask([3])], config.model_copy(update={"seed": seed}))[0] for seed in (1, 1, 2)
    )
    assert first == again != other
    torch.manual_seed(123)  # nothing global is read
    assert engine.generate([ask([3])], config.model_copy(update={"seed": 1}))[0] == first


@pytest.mark.sweep("campaigns of the engine")
@examples(12)
@given(st.data())
def test_no_answer_breaks_its_grammar(model, vocabulary, data):
    """Whatever is asked: spans read back, the forced medium is there, the turn ends inside the budget."""
    bos, user, end, assistant = (
        vocabulary.get_control_id(name) for name in ("<|bos|>", "<|user|>", "<|end_of_turn|>", "<|assistant|>")
    )
    prompts, configs = [], []
    for _ in range(data.draw(st.integers(1, 4))):
        prompts.append([bos, user, *data.draw(st.lists(st.integers(1, 6), max_size=6)), end, assistant])
        force = data.draw(st.sampled_from([None, *MODALITIES]))
        allow = data.draw(st.one_of(st.none(), st.just(MODALITIES)))
        configs.append(
            GenerationConfig(
                max_new_tokens=data.draw(st.integers(16, 40)),
                force=force,
                allow=allow,
                seed=data.draw(st.integers(0, 2**32)),
                sampling=dict.fromkeys(
                    MODALITIES, SamplingConfig(temperature=data.draw(st.sampled_from([0.0, 1.0, 9.0])))
                ),
                guidance=data.draw(st.sampled_from([{}, {"image": 5.0}])),
                unconditional=(bos, user, end, assistant),
            )
        )
    for config, answer in zip(configs, Engine(model, vocabulary).generate(prompts, configs), strict=True):
        assert answer[-1] == end and len(answer) <= config.max_new_tokens
        found, at = set(), 0
        while at < len(answer) - 1:
            medium = vocabulary.find_opened_medium(answer[at])
            if medium is None:
                assert vocabulary.is_text(answer[at]) and answer[at] not in vocabulary.text_reserved
                found.add("text")
                at += 1
            else:
                stop = answer.index(vocabulary.get_end_id(medium), at) + 1
                assert vocabulary.decode_span(answer[at:stop])[0] == medium
                found.add(medium)
                at = stop
        assert config.force is None or config.force in found
        if config.allow is None and config.force is not None:
            assert found == {config.force}


def test_an_open_span_is_continued(engine, vocabulary, ask):
    whole = GenerationConfig(max_new_tokens=20, force="image", sampling=ALL_GREEDY)
    answer = engine.generate([ask([3])], whole)[0]
    rest = engine.generate([ask([3], answer[:4])], whole)[0]
    assert rest == answer[4:]


@pytest.mark.sweep
def test_events_tell_the_answer_token_by_token(engine, vocabulary, ask):
    prompts, configs = varied(ask, MIXED)
    events = []
    answers = engine.generate(prompts, configs, on_token=events.append)
    assert answers == engine.generate(prompts, configs)
    for row, answer in enumerate(answers):
        mine = [event for event in events if event.row == row]
        assert [event.id for event in mine] == answer
        assert [event.index for event in mine] == list(range(len(answer)))
        assert [event.finished for event in mine] == [False] * (len(answer) - 1) + [True]
    assert [event.modality for event in events if event.row == 0] == ["image"] * 8 + ["text"]


def test_an_exception_in_the_callback_ends_the_call_and_leaves_the_engine_usable(engine, ask):
    class Stop(Exception):
        pass

    def stop(event):
        if event.index == 3:
            raise Stop

    config = GenerationConfig(max_new_tokens=20, force="image")
    with pytest.raises(Stop):
        engine.generate([ask([3])], config, on_token=stop)
    assert engine.generate([ask([3])], config) == engine.generate([ask([3])], config)


@pytest.mark.sweep
def test_stop_sequences_end_text_only(engine, ask):
    config = GenerationConfig(max_new_tokens=40, allow=("text",), min_text_tokens=30, seed=2)
    free = engine.generate([ask([3])], config)[0]
    stop = tuple(free[4:6])
    first = next(i for i in range(2, 41) if tuple(free[i - 2 : i]) == stop)
    stopped, beside = engine.generate([ask([3])] * 2, [config.model_copy(update={"stop": (stop,)}), config])
    assert stopped == free[:first] and beside == free
