"""Summed positions are written as a naive loop over whole forwards writes them, in every decoder, batch and session."""

import pytest
import torch

from tests.generation.conftest import TINY
from tests.scoring import score_drawn
from unimodal.compression import METHODS
from unimodal.generation import make_decoder
from unimodal.generation.continuous import ContinuousBatch
from unimodal.generation.decoders.compiled_decoder import CompiledDecoder
from unimodal.generation.engine import Engine
from unimodal.generation.grammar import Grammar
from unimodal.generation.request import GenerationConfig, GenerationRequest
from unimodal.generation.sampling import GREEDY, SamplingConfig, make_noise_keys, sample
from unimodal.generation.search import make_search
from unimodal.model.build import build_nano
from unimodal.model.depth_decoder import DepthSettings, add_depth_decoder, embed_positions, find_depth_decoder
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

MIXED = {"text": SamplingConfig(temperature=1.3, top_k=20), "image": SamplingConfig(top_p=0.9),
         "audio": SamplingConfig(temperature=0.8, top_k=3)}  # fmt: skip
ALL_GREEDY = dict.fromkeys(("text", "image", "audio", "video"), GREEDY)


def groups(name, modality, *sizes, layout="summed"):
    return [Block(name=name, modality=modality, group=g, size=s, layout=layout) for g, s in enumerate(sizes)]


@pytest.fixture(scope="module")
def vocabulary():
    """Pictures of three codes a position, one of them certain; sounds of two and of any length; flat clips of two."""
    blocks = [*groups("image", "image", 11, 1, 7), *groups("audio", "audio", 6, 5),
              *groups("video", "video", 4, 3, layout="flat")]  # fmt: skip
    layouts = [SpanLayout("image", [Segment("image", 3)]), SpanLayout("audio", [Segment("audio")]),
               SpanLayout("video", [Segment("video", 2), Segment("video", 2)])]  # fmt: skip
    return Vocabulary.build(30, blocks, layouts, text_reserved=[0, 7])


@pytest.fixture(scope="module")
def model(vocabulary):
    control = vocabulary.get_control_id
    ids = {"pad_id": control("<|pad|>"), "bos_id": control("<|bos|>"), "eos_id": control("<|eos|>")}
    model = build_nano(vocabulary.size, TINY, seed=0, **ids)
    add_depth_decoder(model, vocabulary, DepthSettings(num_layers=2, width=16))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in find_depth_decoder(model).parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * (0.5 if parameter.dim() > 1 else 0.1)
    return model.eval()


@pytest.fixture(params=["lean", "packed", "fixed-shape", "reference"])
def engine(request, model, vocabulary):
    if request.param == "packed":
        return Engine(model, vocabulary, weights="float32")
    if request.param == "reference":
        return Engine(model, vocabulary, "reference")
    if request.param == "fixed-shape":
        return Engine(model, vocabulary, CompiledDecoder(model, backend=None))
    return Engine(model, vocabulary, "lean", weights="model")


def read_state(model, vocabulary, rows):
    """The state that scores what comes behind these rows: no cache, one pass of the depth decoder."""
    folded, begun = vocabulary.positions.fold(rows)
    width = vocabulary.positions.width
    filled = [[*one, *[-1] * (width - len(one))] for one in (p if isinstance(p, tuple) else (p,) for p in folded)]
    table = model.get_input_embeddings()
    embedded = embed_positions(table, torch.tensor([filled]))
    hidden = model.get_decoder()(inputs_embeds=embedded, use_cache=False).last_hidden_state[:, -1]
    return find_depth_decoder(model)(hidden, table(torch.tensor([begun])))[:, -1] if begun else hidden


@torch.inference_mode()
def naive(model, vocabulary, prompt, config):
    grammar = Grammar(vocabulary, config, prompt)
    state, answer = grammar.start(), []
    while not state.finished:
        hidden = read_state(model, vocabulary, [*prompt, *answer])
        scale = config.find_guidance(state.modality, grammar.count_span_steps(state))
        if scale != 1.0:
            other = read_state(model, vocabulary, [*config.unconditional, *answer])
            hidden = other + scale * (hidden - other)
        logits = model.get_output_embeddings()(hidden)[0]
        mask = torch.full_like(logits, -torch.inf)
        for start, end in grammar.list_allowed(state):
            mask[start:end] = 0
        sampling = config.sampling.get(state.modality, SamplingConfig())
        keys = make_noise_keys([config.seed], len(answer))
        answer.append(int(sample((logits + mask)[None], torch.arange(len(logits)), [sampling], keys)))
        grammar.advance(state, answer[-1])
    return answer


def vary(vocabulary, ask, sampling):
    """Flat and summed rows in one batch: guided, of free length, continued from within a position, plain chats."""
    bare = tuple(ask())
    picture = vocabulary.encode_span("image", [[1, 0, 2], [3, 0, 4], [10, 0, 6]])
    rows = [
        (ask([3, 4, 5]), {"force": "image", "guidance": {"image": 3.0}, "unconditional": bare, "max_new_tokens": 6}),
        (ask([9]), {"force": "audio", "max_codes": {"audio": 7}, "seed": 4}),
        (ask([9, 8]), {"force": "video", "seed": 5}),
        (ask([3, *picture, 5]), {"allow": ("text",), "max_new_tokens": 9}),
        (ask([6, 6]), {"seed": 11}),
        (ask([2], picture[:6]), {"force": "image", "seed": 12, "guidance": {"image": 0.5},
                                 "unconditional": (*bare, *picture[:6])}),
        (ask([2], picture[:7]), {"force": "image", "seed": 13, "guidance": {"image": 2.0},
                                 "unconditional": bare, "guidance_interval": {"image": (0, 2)}}),
    ]  # fmt: skip
    rows[6][1]["unconditional"] = (*bare, *picture[:7])
    return [p for p, _ in rows], [GenerationConfig(sampling=sampling, **{"max_new_tokens": 30, **c}) for _, c in rows]


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize("sampling", [ALL_GREEDY, MIXED], ids=["greedy", "sampled"])
def test_any_batch_is_what_a_naive_loop_writes_for_each_row(engine, model, vocabulary, ask, sampling):
    prompts, configs = vary(vocabulary, ask, sampling)
    events = []
    answers = engine.generate(prompts, configs, on_token=events.append)
    for row, (prompt, config, answer) in enumerate(zip(prompts, configs, answers, strict=True)):
        assert answer == naive(model, vocabulary, prompt, config)
        assert [event.id for event in events if event.row == row] == answer
        assert vocabulary.positions.count(answer) <= config.max_new_tokens
    batch, found, keys = ContinuousBatch(engine), {}, []
    for prompt, config in zip(prompts, configs, strict=True):  # rows join between positions
        keys += batch.admit([GenerationRequest(prompt, config)])
        found |= {done.key: done.answer for done in batch.advance_rows()}
    while len(batch):
        found |= {done.key: done.answer for done in batch.advance_rows()}
    assert [found[key] for key in keys] == answers


def test_the_budget_is_counted_in_positions(engine, vocabulary, ask):
    config = GenerationConfig(max_new_tokens=6, force="image", sampling=ALL_GREEDY)
    [answer] = engine.generate([ask([3])], config)
    assert len(answer) == 2 + 3 * 3 + 1 and vocabulary.positions.count(answer) == 6
    assert engine.stats.step_tokens == 3, "the start and two positions: nothing behind the third is chosen"
    with pytest.raises(ValueError, match="takes at least 6; raise it to 6"):
        engine.generate([ask([3])], config.model_copy(update={"max_new_tokens": 5}))
    room = TINY.max_positions - len(ask([3]))
    with pytest.raises(ValueError, match=f"lower max_new_tokens to {room}"):
        engine.generate([ask([3])], config.model_copy(update={"max_new_tokens": room + 1}))


@pytest.mark.sweep
def test_a_pause_within_a_position_goes_on_and_a_session_reads_nothing_twice(engine, vocabulary, ask):
    prompt, config = ask([3, 4]), GenerationConfig(max_new_tokens=6, force="image", sampling=MIXED, seed=3)
    session = engine.open_session()
    for pause in (1, 3, 4, 9):
        [begun] = engine.generate([prompt], config.model_copy(update={"pause": pause}), session=session)
        assert len(begun) == pause
        rest = {"max_new_tokens": 6 - vocabulary.positions.count(begun), "sampling": ALL_GREEDY}
        changed = config.model_copy(update=rest)
        [plain] = engine.generate([[*prompt, *begun]], changed)
        assert engine.generate([[*prompt, *begun]], changed, session=session) == [plain]
        assert vocabulary.decode_span([*begun, *plain][:-1])[0] == "image"
    [whole] = engine.generate([prompt], config, session=session)
    behind = [*prompt, *whole, *ask([5])[1:]]
    words = GenerationConfig(max_new_tokens=5, allow=("text",), sampling=ALL_GREEDY)
    expected = engine.generate([behind], words)
    assert engine.generate([behind], words, session=session) == expected
    assert engine.stats.cached_tokens >= len(prompt) + 3


@pytest.mark.sweep
def test_log_likelihood_is_that_of_the_steps(engine, model, vocabulary, ask):
    prompts = [ask([3, 4]), ask([2])]
    config = GenerationConfig(max_new_tokens=30, force="image", seed=2)
    answers = engine.generate(prompts, config)
    answers[1] = answers[1][:6]  # within a position
    for prompt, answer, score in zip(prompts, answers, engine.compute_log_likelihood(prompts, answers), strict=True):
        with torch.inference_mode():
            states = [read_state(model, vocabulary, [*prompt, *answer[:n]]) for n in range(len(answer))]
            logits = model.get_output_embeddings()(torch.cat(states))
        assert score == pytest.approx(float(score_drawn(logits, vocabulary, prompt, answer).sum()), abs=1e-3)


def test_no_group_takes_a_code_of_another(model, vocabulary, ask):
    engine = Engine(model, vocabulary)
    prompts = [ask([n % 6 + 8]) for n in range(20)]
    configs = [GenerationConfig(max_new_tokens=40, force=("image", "audio")[n % 2], seed=n) for n in range(20)]
    for config, answer in zip(configs, engine.generate(prompts, configs), strict=True):
        modality, codes = vocabulary.decode_span(answer[:-1])
        assert modality == config.force
        assert vocabulary.encode_span(modality, codes) == answer[:-1]


def test_searches_write_summed_answers(model, vocabulary, ask):
    engine = Engine(model, vocabulary)
    config = GenerationConfig(max_new_tokens=6, force="image", seed=2)
    for search in (make_search("best-of-n", n=3), make_search("lookahead", beams=1, expand=2, stages=(2,))):
        found = search.run(engine, ask([3]), config, lambda answers: [float(sum(answer)) for answer in answers])
        assert vocabulary.decode_span(found.answer[:-1])[0] == "image"
        assert found.score == max(candidate.score for candidate in found.candidates)
    judged = []
    beam = make_search("beam", beams=1, expand=2, stages=(1, 2))
    beam.run(engine, ask([3]), config, lambda answers: [judged.append(len(one)) or 0.0 for one in answers])
    assert judged[:2] == [4, 4] and set(judged) == {4, 7, 12}, "whole steps are judged"


def test_what_cannot_read_positions_says_so(model, vocabulary, ask):
    engine = Engine(model, vocabulary)
    config = GenerationConfig(max_new_tokens=6, force="image")
    with pytest.raises(ValueError, match="fast decoder .* guesses one code a token, .* use the plain decoder"):
        engine.generate([ask([3])], config, method=make_decoder("jacobi"))
    with (
        METHODS["divprune"](keep=0.5)(model, vocabulary),
        pytest.raises(ValueError, match="compression follows single codes"),
    ):
        engine.generate([ask([3])], config)
    other = GenerationConfig(max_new_tokens=6, force="image", guidance={"image": 2.0}, unconditional=tuple(ask()))
    start = [vocabulary.get_start_id("image"), vocabulary.get_block_range("image").start]
    with pytest.raises(ValueError, match="must end within a summed position with the same codes"):
        engine.generate([[*ask([3]), *start]], other)
    bare = build_nano(vocabulary.size, TINY, pad_id=0, bos_id=0, eos_id=0)
    with pytest.raises(ValueError, match="summed positions, but the model no depth decoder"):
        Engine(bare, vocabulary)
