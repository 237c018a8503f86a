"""The executor against oracles: the stock forward on the tokens that are left, with their positions given."""

import warnings

import pytest
import torch

from tests.compression.conftest import STEPS, cache_name
from unimodal.compression import METHODS, Compressor, Plan
from unimodal.compression.kv.snapkv import SnapKV
from unimodal.compression.running.rotation import LayerRotation
from unimodal.compression.tokens.divprune import DivPrune
from unimodal.compression.tokens.fastv import FastV
from unimodal.compression.tokens.pooling import Pooling
from unimodal.compression.tokens.stride import Stride
from unimodal.compression.tokens.tome import ToMe
from unimodal.generation import make_decoder
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import GREEDY
from unimodal.model.attention import register_attention


class Fixed(Compressor):
    """Keeps the tokens it is told to."""

    judges_rows = True

    def __init__(self, index, members=None, **settings):
        super().__init__(**settings)
        self.index, self.members = index, members

    def count_kept(self, spans, num_layers):
        return [len(self.index)] * len(spans)

    def plan(self, hidden, span):
        members = None if self.members is None else torch.tensor(self.members).expand(len(hidden), -1, -1)
        return Plan(torch.tensor(self.index).expand(len(hidden), -1), members=members)


@pytest.fixture
def row(prompt, span):
    return prompt([3, 4], span("image", 1), [5])


def left(row, index):
    """Columns that go on when `index` of the picture's codes do; the picture's first code is column 5."""
    return [c for c in range(len(row)) if not 5 <= c < 21 or c - 5 in index]


@torch.inference_mode()
def stock(model, ids, positions):
    ids, positions = torch.tensor([ids]), torch.tensor([positions])
    return model(ids, attention_mask=torch.ones_like(ids), position_ids=positions).logits[0]


@pytest.mark.sweep
@pytest.mark.parametrize("attention", ["sdpa", "eager", "varlen"])
@pytest.mark.parametrize("positions", ["kept", "compacted"])
def test_pruning_is_the_stock_forward_on_what_is_left(positions, attention, model, vocabulary, row, read):
    """Positions kept: gaps stay, and decoding goes on at the original length. Compacted: counted again, behind them."""
    index = [0, 3, 4, 11]
    columns = left(row, index)
    ids = [row[c] for c in columns] + STEPS
    at = [*columns, *range(len(row), len(row) + len(STEPS))] if positions == "kept" else list(range(len(ids)))
    expected = stock(model, ids, at)[len(columns) - 1 :]
    register_attention()
    model.set_attn_implementation(attention)
    try:
        with Fixed(index, positions=positions)(model, vocabulary):
            assert torch.allclose(read(model, [row])[0], expected, atol=1e-5)
    finally:
        model.set_attn_implementation("sdpa")


def test_states_come_back_in_the_places_of_their_tokens(model, vocabulary, row):
    index = [1, 2, 9]
    columns = left(row, index)
    with torch.inference_mode(), Fixed(index)(model, vocabulary):
        hidden = model.model(torch.tensor([row])).last_hidden_state[0]
        logits = model(torch.tensor([row])).logits[0]
    assert hidden.shape[0] == len(row)
    gone = [c for c in range(len(row)) if c not in columns]
    assert (hidden[gone] == 0).all() and (hidden[columns].abs().sum(-1) > 0).all()
    assert torch.allclose(logits[columns], stock(model, [row[c] for c in columns], columns), atol=1e-5)


def test_one_source_position_repeated_is_a_kept_position(model, vocabulary, row):
    """And several are none of them: the rotary frequencies are shared out."""
    index = [2, 8]
    with torch.inference_mode():
        outs = []
        for members in (None, [[2] * 4, [8] * 4], [[2, 3, 4, 5], [8, 9, 10, 11]]):
            with Fixed(index, members)(model, vocabulary):
                outs.append(model(torch.tensor([row])).logits[0, -1])
    assert torch.allclose(outs[0], outs[1], atol=1e-6) and not torch.allclose(outs[0], outs[2], atol=1e-4)


def test_sections_of_the_rotary_table_take_their_own_position(model):
    rotary, like = model.model.rotary_emb, torch.zeros(1, 1, 8)
    rotation = LayerRotation(rotary)
    cos, sin = rotation.make_tables(like, torch.tensor([[[3, 70]]]))
    for position, part in ((3, [0, 1]), (70, [2, 3])):  # frequencies 0-1 and 2-3 of 4
        own = rotary(like, position_ids=torch.tensor([[position]]))
        at = part + [f + 4 for f in part]
        assert torch.equal(cos[0, 0, at], own[0][0, 0, at]) and torch.equal(sin[0, 0, at], own[1][0, 0, at])
    state = torch.randn(1, 2, 1, 8)
    once = rotation.rotate_by(rotation.rotate_by(state, torch.tensor([[[5]]])), torch.tensor([[[-3]]]))
    assert torch.allclose(once, rotation.rotate_by(state, torch.tensor([[[2]]])), atol=1e-5)
    assert torch.equal(rotation.split_pairs(torch.arange(8.0)), torch.tensor([[0.0, 4], [1, 5], [2, 6], [3, 7]]))


def test_inside_layer_k_the_layers_before_keep_everything(model, vocabulary, row, read):
    with FastV(0.25, layer=2)(model, vocabulary):
        read(model, [row])
    held = [layer.keys.shape[2] for layer in read.cache.layers]
    assert held == [len(row) + 3] * 2 + [len(row) + 3 - 12] * 2
    assert read.cache.get_seq_length() == len(row) + 3  # whoever counts positions by it goes on at the original length


def test_generate_with_hugging_face(model, vocabulary, row):
    """Its own loop, greedy and with beams, asks the cache for the length; both agree with full forwards."""
    ids = torch.tensor([row])
    with torch.inference_mode(), Stride(0.3)(model, vocabulary):
        written = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=-1)[0, len(row) :].tolist()
        beams = model.generate(ids, max_new_tokens=4, num_beams=3, do_sample=False, eos_token_id=-1)
        naive = []
        for _ in range(6):
            naive.append(int(model(torch.tensor([row + naive])).logits[0, -1].argmax()))
    assert written == naive and beams.shape[1] == len(row) + 4


@pytest.mark.parametrize("decoder", ["auto", "lean", "reference"])
def test_the_engine_compresses_and_goes_back_to_its_lean_step(decoder, model, vocabulary, prompts):
    engine = Engine(model, vocabulary, decoder)
    lean = engine.decoder
    config = GenerationConfig(max_new_tokens=12, allow=("text",), min_text_tokens=11, sampling={"text": GREEDY})
    full = engine.generate(prompts, config)
    with DivPrune(0.25)(engine) as session:
        answers = engine.generate(prompts, config)
        assert session.stats.tokens_before > 2.5 * session.stats.tokens_after > 0 and session.stats.planning_s > 0
        for prompt, answer in zip(prompts, answers, strict=True):
            assert engine.generate([prompt], config)[0] == answer  # rows leave the batch, alone or together
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + answer[:4]])).logits[0, -1]
            allowed = [i for i in range(vocabulary.text_size)]
            assert allowed[int(logits[allowed].argmax())] == answer[4]
    assert answers != full and engine.decoder is lean and engine.generate(prompts, config) == full


def test_drawing_after_a_compressed_picture_is_not_disturbed(model, vocabulary, prompt, span):
    """A guided picture behind an input picture: what is drawn is read back in full at every step."""
    engine = Engine(model, vocabulary)
    row, bare = prompt([3], span("image", 1)), tuple(prompt(span("image", 1)))
    config = GenerationConfig(
        max_new_tokens=24, force="image", sampling={"image": GREEDY}, guidance={"image": 2.0}, unconditional=bare
    )
    with DivPrune(0.5)(engine):
        answer = engine.generate([row], config)[0]
        start = answer.index(vocabulary.get_start_id("image"))
        for step in (1, 7, 16):
            with torch.inference_mode():
                pair = [model(torch.tensor([p + answer[: start + step]])).logits[0, -1] for p in (row, list(bare))]
            logits = pair[1] + 2.0 * (pair[0] - pair[1])
            codes = list(vocabulary.get_block_range("image"))
            assert codes[int(logits[codes].argmax())] == answer[start + step]


def test_two_methods_at_once(model, vocabulary, prompts, read):
    """Tokens before the decoder and the cache inside it; leaving one leaves the other."""
    with DivPrune(0.5)(model, vocabulary):
        alone = read(model, prompts[:2])
        with SnapKV(0.5)(model, vocabulary):
            both = read(model, prompts[:2])
            assert torch.allclose(read(model, prompts[1:2])[0], both[1], atol=2e-5)
        assert torch.allclose(both[:, 0], alone[:, 0], atol=1e-5)  # the prompt itself is read in full
        assert not torch.allclose(both[:, 1:], alone[:, 1:], atol=1e-4)
        assert torch.equal(read(model, prompts[:2]), alone)
    assert "forward" not in vars(model.model)


def test_a_second_turn_on_the_same_cache(model, vocabulary, prompt, span):
    """Spans of the new turn are compressed too; it equals the uncached forward of both turns."""
    from transformers import DynamicCache

    first, second = prompt([3], span("image", 1)), [5, 6, *prompt(span("audio", 2), [7])[1:]]
    second = [5, 6, vocabulary.get_control_id("<|end_of_turn|>"), *second[2:]]
    with torch.inference_mode(), Pooling(0.4)(model, vocabulary) as session:
        cache = DynamicCache(config=model.config)
        out = model(torch.tensor([first]), **{cache_name(model): cache}, use_cache=True)
        out = model(torch.tensor([second]), **{cache_name(model): cache}, use_cache=True)
        assert session.stats.tokens_before == 16 + 11
        whole = model(torch.tensor([first + second])).logits[0, -1]
    assert torch.allclose(out.logits[0, -1], whole, atol=1e-5)


def test_crop_takes_back_new_tokens(model, vocabulary, row, read):
    with torch.inference_mode(), ToMe(0.3)(model, vocabulary):
        again = read(model, [row], [7, 8])
        read(model, [row], [7, 9])
        read.cache.crop(-1)
        out = model(torch.tensor([[8]]), **{cache_name(model): read.cache}, use_cache=True)
    assert torch.allclose(out.logits[0, -1], again[0, -1], atol=1e-5)


def test_an_exception_inside_restores_the_model(model, vocabulary, row):
    with pytest.raises(KeyError), FastV(0.5)(model, vocabulary):
        raise KeyError
    assert "forward" not in vars(model.model) and model.config._attn_implementation == "sdpa"
    with Fixed([5, 3])(model, vocabulary), pytest.raises(AssertionError, match="ascend"):
        model(torch.tensor([row]))
    assert model.config._attn_implementation == "sdpa"


def test_half_precision(make_model, vocabulary, prompts, read):
    model = make_model().bfloat16()
    for name in ("fastv", "tome", "ppe", "h2o", "token_sparse", "fasa"):
        with METHODS[name](0.4)(model, vocabulary):
            assert torch.isfinite(read(model, prompts).float()).all()


def test_what_cannot_be_done_is_said_in_one_line(model, qwen, vocabulary, row):
    from transformers import DynamicCache, StaticCache

    ids = torch.tensor([row])

    def fails(match, call, method=None, target=model):
        with pytest.raises(ValueError, match=match) as caught, (method or Stride(0.5))(target, vocabulary):
            call()
        assert "\n" not in str(caught.value)
        assert "forward" not in vars(target.model)

    fails("call the model with input_ids", lambda: model(inputs_embeds=torch.zeros(1, 4, 32)))
    fails("2-d attention_mask", lambda: model(ids, attention_mask=torch.zeros(1, 1, len(row), len(row))))
    fails(
        "one document a row",
        lambda: model(torch.cat([ids, ids], 1), position_ids=torch.arange(len(row)).repeat(2)[None]),
    )
    fails("output_attentions", lambda: model.model(ids, output_attentions=True))
    fails("DynamicCache", lambda: model(ids, **{cache_name(model): StaticCache(model.config, 64)}, use_cache=True))
    static = {"use_cache": True, "cache_implementation": "static"}
    fails("not a StaticCache", lambda: model.generate(ids, max_new_tokens=2, **static))
    outside = model(ids, **{cache_name(model): DynamicCache(config=model.config)}, use_cache=True)
    begun = getattr(outside, "cache", None) or outside.past_key_values
    fails("outside the compression", lambda: model(ids[:, -1:], **{cache_name(model): begun}, use_cache=True))
    inside = DynamicCache(config=model.config)
    with Stride(0.5)(model, vocabulary):
        model(ids, **{cache_name(model): inside}, use_cache=True)
    with pytest.raises(ValueError, match="filled under compression"):
        model(ids[:, -1:], **{cache_name(model): inside}, use_cache=True)
    with pytest.raises(ValueError, match="needs its vocabulary"):
        Stride(0.5)(model)
    with pytest.raises(ValueError, match="is no decoder"):
        Stride(0.5)("nano", vocabulary)
    qwen.config.layer_types[0] = "chunked_attention"
    try:
        fails("attention in every layer; this model has chunked_attention", lambda: None, target=qwen)
    finally:
        qwen.config.layer_types[0] = "full_attention"


@pytest.mark.parametrize("name", ["snapkv", "kivi", "kvzip", "fasa"])
def test_a_cache_method_without_a_cache_says_that_it_does_nothing(name, model, vocabulary, row, prompts):
    with METHODS[name](0.5)(model, vocabulary), torch.inference_mode():
        with pytest.warns(UserWarning, match="use_cache=False it does nothing"):
            model(torch.tensor([row]), use_cache=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(torch.tensor([prompts[3]]), use_cache=False)  # nothing to compress
            model(torch.tensor([row]), use_cache=True)


def test_sessions_and_fast_decoders_are_refused_inside(model, vocabulary, prompts):
    """Both read a cache that holds every token; a session is not filled with what compression left of one."""
    engine = Engine(model, vocabulary)
    session = engine.open_session()
    config = GenerationConfig(max_new_tokens=4, allow=("text",))
    with DivPrune(0.25)(engine):
        with pytest.raises(ValueError, match="a session needs the whole cache"):
            engine.generate(prompts, config, session=session)
        with pytest.raises(ValueError, match="the fast decoder .* needs the whole cache"):
            engine.generate(prompts, config, method=make_decoder("token-recycling"))
    assert len(session) == 0
    assert engine.generate(prompts, config, session=session) == engine.generate(prompts, config)
