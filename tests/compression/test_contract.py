"""What must hold of every method, whatever it does: on random models of a few layers."""

import dataclasses
import inspect
import re

import pytest
import torch

from tests.compression.conftest import STEPS, make_method
from unimodal.compression import BASELINES, METHODS, CacheCompressor, Compressor

NAMES = list(METHODS)
TOKEN_METHODS = [name for name in NAMES if issubclass(METHODS[name], Compressor)]
CACHE_METHODS = [name for name in NAMES if issubclass(METHODS[name], CacheCompressor)]
LATE = (
    "fastv", "transprune", "todre", "pyramiddrop", "sparsevlm", "coarse_to_fine", "explainability", "frugal_prompt",
    "atp", "cacovid",
)  # fmt: skip
#: what these choose does not depend on what comes behind the span
CAUSAL = [name for name in TOKEN_METHODS if name not in LATE]
#: what merges by means, and its setting that makes sizes count
MERGING = {
    "pooling": {},
    "tome": {},
    "kmax": {},
    "token_transforming": {},
    "m3": {"counts_sizes": True},
    "ppe": {"counts_sizes": True},
}
OURS = (*BASELINES, "novelty")  # not published


def test_every_method_is_registered_once_and_says_its_source():
    assert set(BASELINES) <= set(NAMES) and len(NAMES) == len(set(METHODS.values())) == 62
    for name, method in METHODS.items():
        module = inspect.getmodule(method)
        assert module.__doc__ and method.__doc__
        assert name in OURS or "arXiv" in module.__doc__, f"{name} names no source"
        assert ("arXiv" in method.paper) == (name not in OURS)
        for number in re.findall(r"\d{4}\.\d{5}", method.paper):
            assert number in module.__doc__ and number in method.__doc__
        assert "Raises ValueError" in " ".join(method.__doc__.split()) or "raises ValueError" in method.__doc__
        assert ("kv" in module.__name__.split(".")) == issubclass(method, CacheCompressor)


@pytest.fixture(scope="module")
def full(model, prompts, read):
    """What the whole model says to the prompts."""
    return read(model, prompts)


@pytest.fixture(scope="module")
def written(model, vocabulary, prompt, span, read):
    """(rows with a picture of the model itself, or one that it is still writing; what the whole model says to them)"""
    user, end = (vocabulary.get_control_id(x) for x in ("<|user|>", "<|end_of_turn|>"))
    rows = [
        prompt([3]) + span("image", 1) + [end, user, 4, end],
        prompt([3]) + span("image", 1)[:9],
        prompt([3], span("audio", 1)[:9]),  # an open span of the user's
    ]
    return rows, read(model, rows, STEPS[:2])


@pytest.fixture(scope="module")
def full_of_qwen(qwen, prompts, read):
    return read(qwen, prompts, STEPS[:1])


@pytest.fixture(scope="module")
def two_media(model, prompts, read):
    """What the whole model says to a prompt with a picture, and to one with a picture and a sound."""
    return read(model, prompts[1:2], STEPS[:1]), read(model, prompts[:1], STEPS[:1])


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
def test_keeping_everything_changes_nothing(name, model, vocabulary, prompts, read, full):
    with make_method(name, 1.0)(model, vocabulary):
        assert torch.allclose(read(model, prompts, STEPS[:1]), full[:, :2], atol=1e-6)


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
def test_it_does_something_and_leaving_restores_the_model(name, model, vocabulary, prompts, read, full):
    before = (dict(vars(model.model)), model.config._attn_implementation, dict(model.config.to_dict()))
    with make_method(name, 0.4)(model, vocabulary):
        changed = read(model, prompts, STEPS[:1])
    assert (dict(vars(model.model)), model.config._attn_implementation, dict(model.config.to_dict())) == before
    assert torch.equal(read(model, prompts, []), full[:, :1])
    assert not torch.allclose(changed[:3], full[:3, :2], atol=1e-3)
    assert torch.allclose(changed[3], full[3, :2], atol=1e-5)  # a row without spans


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize("positions", ["kept", "compacted"])
@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_padded_batch_are_what_they_are_alone(name, positions, model, vocabulary, prompts, read, full):
    """The row without spans is what the whole model says to it. What acts on the cache acts at every step."""
    steps = STEPS[: 1 + (name in CACHE_METHODS)]
    with make_method(name, 0.4, positions=positions)(model, vocabulary):
        *together, words = read(model, prompts, steps)
        for row, found in zip(prompts, together, strict=False):
            assert torch.allclose(read(model, [row], steps)[0], found, atol=2e-5), name
    assert torch.allclose(words, full[3, : 1 + len(steps)], atol=2e-5)


@pytest.mark.sweep
@pytest.mark.parametrize("name", TOKEN_METHODS)
def test_padding_behind_is_as_good_as_padding_in_front(name, model, vocabulary, prompts):
    pad, longest = vocabulary.get_control_id("<|pad|>"), max(map(len, prompts))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in prompts])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in prompts])
    with make_method(name, 0.4)(model, vocabulary), torch.inference_mode():
        together = model(ids, attention_mask=mask).logits
        for row, logits in zip(prompts[:3], together, strict=False):
            assert torch.allclose(logits[: len(row)], model(torch.tensor([row])).logits[0], atol=2e-5)


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize("positions", ["kept", "compacted"])
@pytest.mark.parametrize("name", CAUSAL)
def test_with_a_cache_as_without(name, positions, model, vocabulary, prompts, read):
    with make_method(name, 0.4, positions=positions)(model, vocabulary), torch.inference_mode():
        for row in (prompts[0], prompts[2]):  # all media
            cached = read(model, [row], STEPS[:2])[0]
            whole = model(torch.tensor([row + STEPS[:2]])).logits[0, len(row) - 1 :]
            assert torch.allclose(cached, whole, atol=2e-5)


@pytest.mark.sweep
@pytest.mark.parametrize("name", MERGING)
def test_merged_tokens_count_for_their_size(name, make_model, vocabulary, prompt, monkeypatch):
    """One layer, no positions, a span of equal codes: a merged token with log(size) is worth its copies exactly."""
    model = make_model(num_layers=1)
    model.model.rotary_emb.inv_freq.zero_()
    ids = torch.tensor([prompt([3], vocabulary.encode_span("image", [5] * 16), [6])])
    with torch.inference_mode():
        full = model(ids).logits[0, -1]
        with make_method(name, 0.3, **MERGING[name])(model, vocabulary):
            merged = model(ids).logits[0, -1]
        with make_method("stride", 0.3)(model, vocabulary):
            pruned = model(ids).logits[0, -1]
    assert torch.allclose(merged, full, atol=1e-5)
    assert not torch.allclose(pruned, full, atol=1e-3)


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
def test_what_the_model_writes_is_never_compressed(name, model, vocabulary, read, written):
    rows, full = written
    with make_method(name, 0.3)(model, vocabulary):
        assert torch.allclose(read(model, rows, STEPS[:2]), full, atol=1e-5)


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
def test_other_decoders(name, qwen, vocabulary, prompts, read, full_of_qwen):
    """Qwen3 normalises queries and keys; only what every decoder layer of this kind takes is used."""
    full = full_of_qwen
    with make_method(name, 1.0)(qwen, vocabulary):
        assert torch.allclose(read(qwen, prompts, STEPS[:1]), full, atol=1e-6)
    with make_method(name, 0.4)(qwen, vocabulary):
        together = read(qwen, prompts[:2], STEPS[:1])
        assert torch.allclose(read(qwen, prompts[1:2], STEPS[:1])[0], together[1], atol=2e-5)
    assert not torch.allclose(together, full[:2], atol=1e-3)


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
def test_only_the_named_media(name, model, vocabulary, prompts, read, two_media):
    steps = STEPS[: int(name in CACHE_METHODS)]  # what acts on the tokens is seen at once
    picture, both = (found[:, : 1 + len(steps)] for found in two_media)
    with make_method(name, 0.3, modalities=("audio",))(model, vocabulary):
        assert torch.allclose(read(model, prompts[1:2], steps), picture, atol=1e-6)
        assert not torch.allclose(read(model, prompts[:1], steps), both, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_checked(name):
    for wrong in (
        {"keep": 0},
        {"keep": 1.5},
        {"keep": -0.1},
        {"keep": float("nan")},
        {"keep": None},
        {"keep": True},
        {"modalities": ("smell",)},
        {"modalities": "image"},
        {"modalities": None},
        {"modalities": ()},
        {"positions": "lost"},
    ):
        with pytest.raises(ValueError) as caught:
            METHODS[name](**wrong)
        assert "\n" not in str(caught.value)


SETTINGS = [(name, spec.name) for name in NAMES for spec in dataclasses.fields(METHODS[name])]
ROWS = [(name, field) for name, field in SETTINGS if "tuple" in str(METHODS[name].__annotations__.get(field))]


@pytest.mark.parametrize("wrong", ["x", 3, [None], ["x"], [True], [[None, 1]], [[1, "x"]], [[0.5, [0.5]]], [[1, 2, 3]]])
@pytest.mark.parametrize(("name", "field"), ROWS)
def test_what_stands_in_a_row_is_checked_when_it_is_given(name, field, wrong):
    with pytest.raises(ValueError, match=field) as caught:
        METHODS[name](**{field: wrong})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_context_that_is_not_open_cannot_be_left(name, model, vocabulary):
    before = dict(vars(model.model))
    session = make_method(name, 0.4)(model, vocabulary)
    for _ in range(2):  # never entered; left already
        with pytest.raises(ValueError, match="is not open"):
            session.__exit__(None, None, None)
        with session:
            pass
    assert dict(vars(model.model)) == before


def test_a_method_that_judges_rows_has_to_say_so():
    """Otherwise the executor would not ask it."""
    with pytest.raises(AssertionError, match="set judges_rows = True"):

        class Forgetful(Compressor):
            def count_kept(self, spans, num_layers):
                return [1] * len(spans)


@pytest.mark.parametrize("name", ["fastv", "summary_query", "globalcom", "tome"])
def test_a_layer_that_the_model_lacks_is_refused_in_one_line(name, model, make_model, vocabulary, prompts, read):
    """And nothing is left behind; without a layer asked for, a shallow model takes its last."""
    before = dict(vars(model.model))
    with (
        pytest.raises(ValueError, match="acts before layer 4, but this model has 4, numbered from 0"),
        make_method(name, 0.4, layer=4)(model, vocabulary),
    ):
        raise AssertionError("it was let in")
    assert dict(vars(model.model)) == before
    with make_method(name, 0.4, layer=3)(model, vocabulary), make_method("stride", 0.9)(model, vocabulary):
        read(model, prompts, [])
    two = make_model(num_layers=2)
    with make_method(name, 0.4)(two, vocabulary) as session:
        read(two, prompts, [])
    assert session.stats.tokens_after < session.stats.tokens_before


@pytest.mark.parametrize("name", [name for name in NAMES if METHODS[name].is_learned])
def test_a_learned_method_refuses_without_its_module(name, model, vocabulary):
    with pytest.raises(ValueError, match="is learned; give .* trained with the decoder") as error:
        METHODS[name](0.5)(model, vocabulary).__enter__()
    assert METHODS[name].is_learned and "\n" not in str(error.value) and "forward" not in vars(model.model)


@pytest.mark.parametrize("name", ["fastv", "summary_query", "globalcom", "transprune", "document_correlation"])
def test_one_layer_is_too_few_for_what_looks_at_the_one_before(name, make_model, vocabulary):
    with pytest.raises(ValueError, match="acts before layer 1, but this model has 1, numbered from 0"):
        make_method(name, 0.4)(make_model(num_layers=1), vocabulary).__enter__()
