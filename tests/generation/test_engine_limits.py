"""What the engine refuses and how it says so, and the decoders against the stock forward on other models."""

import pytest
import torch

from tests.tiny_bases import make_base
from unimodal.generation import engine as engine_module
from unimodal.generation.decoders.base_table import find_lean_problem
from unimodal.generation.decoders.reference_decoder import ReferenceDecoder
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import GREEDY
from unimodal.model.rows import extend_rows

PROMPTS = [[3, 4, 5, 6, 7], [8, 9], [1], [2, 3, 4, 5, 6]]


@pytest.fixture
def engine(model, vocabulary):
    return Engine(model, vocabulary)


@pytest.mark.parametrize(
    ("prompt", "config", "message"),
    [
        ([3], {"force": "video", "max_new_tokens": 10}, "max_new_tokens is 10 but the video answer takes at least 15"),
        ([3], {"force": "smell"}, "'smell' is unknown here; this model has text, image, audio, video"),
        ([3], {"max_new_tokens": 128}, "prompt of 1 tokens .* 128 exceed .* 128 positions; lower .* to 127"),
        ([3] * 130, {}, "exceed the model's 128 positions; shorten the prompt"),
        ([3], {"force": "image", "guidance": {"image": 2.0}, "max_new_tokens": 9}, "guidance needs `unconditional`"),
        ([3], {"sampling": {"sound": GREEDY}, "max_new_tokens": 9}, "names 'sound', but this model has text, image"),
        ([], {"max_new_tokens": 9}, "a prompt is empty"),
        ([1000], {"max_new_tokens": 9}, "outside the 88 rows"),
        ([-1], {"max_new_tokens": 9}, "outside the 88 rows"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_computed(engine, model, prompt, config, message):
    called = []
    hook = model.model.layers[0].register_forward_pre_hook(lambda *_: called.append(1))
    with pytest.raises(ValueError, match=message):
        engine.generate([[3], prompt], [GenerationConfig(max_new_tokens=20), GenerationConfig(**config)])
    hook.remove()
    assert not called


@pytest.mark.parametrize("guidance", [{"text": 2.0}, {"image": -1.0}])
def test_impossible_guidance_is_refused(guidance):
    with pytest.raises(ValueError, match="guidance"):
        GenerationConfig(guidance=guidance)


def test_mismatched_parts_are_refused(model, vocabulary):
    with pytest.raises(ValueError, match="2 prompts came with 1 configs"):
        Engine(model, vocabulary).generate([[3], [4]], [GenerationConfig()])
    with pytest.raises(ValueError, match="decoder 'fast' is unknown"):
        Engine(model, vocabulary, "fast")
    assert Engine(model, vocabulary).generate([]) == []


def test_a_model_with_too_few_rows_is_refused(make_model, vocabulary):
    small = make_model()
    small.resize_token_embeddings(vocabulary.size - 1)
    with pytest.raises(ValueError, match="has 87 rows, its vocabulary 88"):
        Engine(small, vocabulary)


def test_a_base_that_the_lean_step_does_not_know_falls_back_and_says_so_once(
    model, make_model, vocabulary, monkeypatch
):
    said: list[str] = []
    monkeypatch.setattr("unimodal.generation.engine.log.warning", lambda form, *values: said.append(form % values))
    engine_module._say_once.cache_clear()
    assert find_lean_problem(model) is None
    other = make_base("stablelm", None, vocab_size=vocabulary.size)
    assert "StableLmModel is none of LlamaModel" in find_lean_problem(other)
    for changes in ({"decoder": "lean"}, {"weights": "int8"}, {"kv": "int8"}, {"compile": True}):
        with pytest.raises(ValueError, match="lean decoder"):
            Engine(other, vocabulary, **changes)
    assert said == []
    Engine(model, vocabulary)
    Engine(other, vocabulary)
    engine = Engine(other, vocabulary)
    assert isinstance(engine.decoder, ReferenceDecoder)
    configs = [GenerationConfig(max_new_tokens=20, force=name, seed=3) for name in ("image", "video")]
    together = engine.generate(PROMPTS[:2], configs)
    assert together == [engine.generate([p], c)[0] for p, c in zip(PROMPTS, configs, strict=False)]
    assert len(said) == 1 and "the model's own forward, which is several times slower: StableLmModel" in said[0]
    dynamic = make_model()
    dynamic.config.rope_parameters = {**dynamic.config.rope_parameters, "rope_type": "dynamic", "factor": 2.0}
    assert "depend on the length" in find_lean_problem(dynamic)


@pytest.mark.sweep("campaigns of the engine")
def test_new_rows_and_lora_are_generated_from_as_trained(make_model, vocabulary, ask):
    """An engine over base + new rows + LoRA writes what the merged stock model writes."""
    peft = pytest.importorskip("peft")
    base = make_model(tie_embeddings=False)
    base.resize_token_embeddings(vocabulary.control_range.start)  # the text rows; controls and media are new
    extended = extend_rows(base, vocabulary.size - vocabulary.control_range.start, seed=1)
    adapted = peft.get_peft_model(
        extended, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    config = GenerationConfig(max_new_tokens=30, force="video", guidance={"video": 2.0}, unconditional=ask(), seed=5)
    written = [
        Engine(adapted.base_model.model, vocabulary, decoder).generate([ask([3, 4])], config)
        for decoder in ("lean", "reference")
    ]
    from unimodal.model.rows import merge_rows

    merged = merge_rows(adapted.merge_and_unload())
    assert written[0] == written[1] == Engine(merged, vocabulary).generate([ask([3, 4])], config)


def test_a_wrapped_head_is_run_whole(make_model, vocabulary, ask):
    """LoRA on the head must not be skipped by reading the base weight's rows."""
    peft = pytest.importorskip("peft")
    base = make_model(tie_embeddings=False)
    config = GenerationConfig(max_new_tokens=30, force="video", seed=5)
    plain = Engine(base, vocabulary).generate([ask([3, 4])], config)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False))
    with torch.no_grad():
        base.lm_head.lora_B["default"].weight.mul_(20)
    changed = Engine(adapted.base_model.model, vocabulary).generate([ask([3, 4])], config)
    merged = adapted.merge_and_unload()
    assert changed == Engine(merged, vocabulary).generate([ask([3, 4])], config) != plain


@pytest.mark.parametrize("wrong", [-1, 10**9])
def test_what_is_scored_has_rows_of_the_vocabulary(engine, wrong):
    for prompt, answer in (([wrong], [3]), ([3], [wrong]), ([3, wrong, 4], [5])):
        with pytest.raises(ValueError, match="outside the"):
            engine.compute_log_likelihood([prompt], [answer])
    with pytest.raises(ValueError, match="outside the"):
        engine.compute_next([3, wrong])
    for prompts, answers in (([[3]], []), ([], [[3]])):
        with pytest.raises(ValueError, match="give one for each"):
            engine.compute_log_likelihood(prompts, answers)


@pytest.mark.cuda
def test_cuda_writes_what_the_cpu_writes(make_model, vocabulary, ask):
    config = GenerationConfig(max_new_tokens=30, force="video", guidance={"video": 2.0}, unconditional=ask(), seed=5)
    on_cpu = Engine(make_model(), vocabulary).generate([ask([3, 4]), ask([5])], config)
    assert Engine(make_model().cuda(), vocabulary).generate([ask([3, 4]), ask([5])], config) == on_cpu
