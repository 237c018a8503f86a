"""Contexts that lie inside one another, side by side in threads, or around a training; calls that come in pieces."""

import contextvars
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import DynamicCache

from tests.compression.conftest import cache_name, make_method
from unimodal.compression import METHODS, Compressor
from unimodal.compression.tokens.divprune import DivPrune
from unimodal.compression.tokens.ppe import PPE
from unimodal.compression.tokens.stride import Stride
from unimodal.generation.engine import Engine

TOKEN_METHODS = [name for name in METHODS if issubclass(METHODS[name], Compressor)]


@pytest.mark.sweep
@pytest.mark.parametrize("second", TOKEN_METHODS)
def test_two_contexts_at_one_site(second, model, vocabulary, prompts, read):
    """The second is given what the first left, runs of codes counted anew; rows are what they are alone."""
    for first in ("divprune", "fastv"):
        with make_method(first, 0.6)(model, vocabulary) as outer, make_method(second, 0.3)(model, vocabulary) as inner:
            together = read(model, prompts[:3], [])
            assert outer.stats.tokens_after >= inner.stats.tokens_after
            assert torch.allclose(read(model, prompts[2:3], [])[0], together[2], atol=2e-5)


def test_merging_twice_shares_positions_out_twice(model, vocabulary, prompts, read):
    """PPE with 8 positions and then with 6: each of 24 sections keeps the position that its member had there."""
    with PPE(0.5)(model, vocabulary), PPE(0.2, num_positions=6)(model, vocabulary):
        together = read(model, prompts, [7])
        assert torch.allclose(read(model, prompts[:1], [7])[0], together[0], atol=2e-5)


@pytest.mark.sweep
@pytest.mark.parametrize("name", METHODS)
def test_an_empty_span_is_none(name, model, vocabulary, prompt, span, read):
    start, end = vocabulary.get_start_id("audio"), vocabulary.get_end_id("audio")
    row = prompt([3, start, end], span("image", 1), [5])
    with make_method(name, 0.4)(model, vocabulary) as session:
        assert torch.isfinite(read(model, [row, prompt([3])], [7])).all()
    assert session.stats.tokens_before in (0, 16)


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["stride", "tome", "fastv", "transprune", "snapkv", "h2o", "fasa", "token_sparse"])
def test_gradient_checkpointing_gives_the_same_gradients(name, make_model, vocabulary, prompts):
    model = make_model(num_layers=3).train()
    ids = torch.tensor([prompts[1]])

    def find_gradients():
        model.zero_grad()
        with make_method(name, 0.4)(model, vocabulary):
            loss = model(ids, use_cache=False).logits[0, -1].square().mean()
            loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    plain = find_gradients()
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        assert torch.allclose(find_gradients(), plain, atol=1e-6)
        model.gradient_checkpointing_disable()


def test_a_prompt_in_pieces_is_refused_where_it_cuts_a_span(model, vocabulary, prompt, span):
    """`prefill_chunk_size` that cuts no span compresses as one call does; one that does is refused in one line."""
    row = prompt([3] * 6, span("image", 1), [5] * 6)  # 8 tokens, 18 of the picture, 8 more
    ids = torch.tensor([row])
    settings = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": -1, "use_cache": True}
    with Stride(0.3)(model, vocabulary) as session:
        whole = model.generate(ids, **settings)
        with pytest.raises(ValueError, match="read in pieces.*prefill_chunk_size") as error:
            model.generate(ids, prefill_chunk_size=12, **settings)
        assert "\n" not in str(error.value)
        before = session.stats.tokens_before
        assert torch.equal(model.generate(ids, prefill_chunk_size=26, **settings), whole)
        assert session.stats.tokens_before == before + 16
    assert torch.equal(model.generate(ids, prefill_chunk_size=12, **settings), model.generate(ids, **settings))


def test_a_turn_that_goes_on_in_a_later_call_is_still_read(model, vocabulary, prompt, span):
    """A call that begins without a turn mark belongs to the turn that the last call ended in."""
    first, later = prompt([3])[:-2], span("image", 1) + prompt()[-2:]
    cache = DynamicCache(config=model.config)
    with torch.inference_mode(), Stride(0.5)(model, vocabulary) as session:
        model(torch.tensor([first]), **{cache_name(model): cache}, use_cache=True)
        out = model(torch.tensor([later]), **{cache_name(model): cache}, use_cache=True)
        assert session.stats.tokens_before == 16
        whole = model(torch.tensor([first + later]), use_cache=False).logits[0, -1]
    assert torch.allclose(out.logits[0, -1], whole, atol=1e-5)


@pytest.fixture
def switch_often():
    """Lets threads take turns a thousand times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_compress_one_model_each_in_its_own_way(model, vocabulary, prompts, read, switch_often):
    """A context belongs to the thread, or the task, that opened it: 24 calls at once, and none disturbs another."""
    ids = [torch.tensor([row]) for row in prompts[:3]]

    @torch.inference_mode()
    def say(name, row):
        if name is None:
            return model(ids[row], use_cache=False).logits
        with make_method(name, 0.4)(model, vocabulary):
            return model(ids[row], use_cache=False).logits

    names = (None, "stride", "fastv", "snapkv", "h2o", "ppe", "token_sparse", "transprune")
    cases = list(itertools.product(names, range(3)))
    expected = [say(*case) for case in cases]
    with ThreadPoolExecutor(6) as pool:
        for found, wanted in zip(pool.map(lambda case: say(*case), cases), expected, strict=True):
            assert torch.equal(found, wanted)
    assert "forward" not in vars(model.model)


def test_a_thread_inside_a_context_has_its_own(model, vocabulary, prompts):
    """A new thread does not inherit the context, unless its call is run in a copy of it; the engine follows."""
    engine = Engine(model, vocabulary)
    with ThreadPoolExecutor(1) as pool, DivPrune(0.5)(engine):
        here = contextvars.copy_context()
        assert engine.intercepted and not pool.submit(lambda: engine.intercepted).result()
        assert pool.submit(here.run, lambda: engine.intercepted).result()
    assert not engine.intercepted


def test_a_context_that_is_entered_twice_is_left_twice(model, vocabulary, prompts, read):
    session = DivPrune(0.5)(model, vocabulary)
    with session:
        once = read(model, prompts[:2], [])
        with session:
            pass
        assert torch.equal(read(model, prompts[:2], []), once)
    assert not torch.equal(read(model, prompts[:2], []), once) and "forward" not in vars(model.model)


def test_a_context_that_another_thread_left_acts_no_more(model, vocabulary, prompts, read):
    whole = read(model, prompts[:2], [])
    session = DivPrune(0.5)(model, vocabulary).__enter__()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(session.__exit__).result()
    with Stride(1.0)(model, vocabulary):
        assert torch.allclose(read(model, prompts[:2], []), whole, atol=1e-6)
