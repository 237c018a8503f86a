"""Packed, narrow and compiled weights: what is equal, what is lost, and what follows a change of the model."""

import pytest
import torch

from unimodal.generation.decoders.compiled_decoder import CompiledDecoder
from unimodal.generation.decoders.lean_decoder import LeanDecoder
from unimodal.generation.decoders.packed_decoder import PackedDecoder
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import GREEDY

PROMPTS = [[3, 4, 5, 6, 7], [8, 9], [1], [2, 3, 4, 5, 6]]


def hidden_states(decoder, steps=4):
    generator = torch.Generator().manual_seed(0)
    found = [decoder.prefill(PROMPTS, 0, 32)]
    for _ in range(steps):
        found.append(decoder.step(torch.randint(0, 30, (len(PROMPTS), 1), generator=generator)))
    return torch.stack(found)


@torch.inference_mode()
@pytest.mark.parametrize(("weights", "most"), [("float32", 1e-5), ("bfloat16", 0.02), ("int8", 0.05), ("int4", 0.3)])
def test_narrow_weights_lose_what_their_bits_say(model, weights, most):
    """The error of hidden states relative to their size, against the modules' own float32."""
    expected = hidden_states(LeanDecoder(model))
    found = hidden_states(PackedDecoder(model, weights))
    error = float((found - expected).norm() / expected.norm())
    assert error < most
    assert weights == "float32" or error > 1e-4  # they are narrower indeed


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "int4"])
def test_narrow_weights_keep_the_grammar_and_nearly_the_likelihoods(model, vocabulary, ask, weights):
    engine = Engine(model, vocabulary, weights=weights)
    config = GenerationConfig(max_new_tokens=30, force="video", guidance={"video": 2.0}, unconditional=ask(), seed=5)
    answer = engine.generate([ask([3, 4])], config)[0]
    assert vocabulary.decode_span(answer[:-1])[0] == "video"
    exact = Engine(model, vocabulary, weights="float32").compute_log_likelihood([ask([3, 4])], [answer])[0]
    assert engine.compute_log_likelihood([ask([3, 4])], [answer])[0] == pytest.approx(
        exact, abs=(0.2 if weights == "int4" else 0.05) * len(answer)
    )


def test_a_changed_model_is_packed_again(make_model, vocabulary, ask):
    model = make_model()
    engine = Engine(model, vocabulary)
    assert isinstance(engine.decoder, PackedDecoder)  # what a processor takes by itself
    config = GenerationConfig(max_new_tokens=20, force="image", sampling={"image": GREEDY})
    first = engine.generate([ask([3])], config)
    packed = engine.decoder.layers.state
    engine.generate([ask([3])], config)
    assert engine.decoder.layers.state is packed
    with torch.no_grad():
        for parameter in model.parameters():  # layers and the tied table, in place as an optimizer does
            parameter.mul_(-1.5)
    assert engine.generate([ask([3])], config) == Engine(model, vocabulary, "reference").generate([ask([3])], config)
    assert engine.generate([ask([3])], config) != first


def test_what_does_not_fit_is_refused(model, vocabulary, make_model):
    peft = pytest.importorskip("peft")
    with pytest.raises(ValueError, match="weights 'int3' are unknown; use auto, model, float32"):
        Engine(model, vocabulary, weights="int3")
    with pytest.raises(ValueError, match="kv 'int3' is unknown; use model, bfloat16, int8"):
        Engine(model, vocabulary, kv="int3")
    with pytest.raises(ValueError, match="leave kv 'int8' out"):
        Engine(model, vocabulary, compile=True, kv="int8")
    with pytest.raises(ValueError, match="settled by the LeanDecoder given"):
        Engine(model, vocabulary, LeanDecoder(model), kv="int8")
    with pytest.raises(ValueError, match="weights 'int8' goes with the lean decoder"):
        Engine(model, vocabulary, "reference", weights="int8")
    with pytest.raises(ValueError, match="compile reads the model's own weights"):
        Engine(model, vocabulary, weights="int8", compile=True)
    adapted = peft.get_peft_model(make_model(), peft.LoraConfig(r=2, target_modules=["q_proj"])).base_model.model
    with pytest.raises(ValueError, match="not a plain Linear; merge adapters first"):
        Engine(adapted, vocabulary, weights="bfloat16")
    assert type(Engine(adapted, vocabulary).decoder) is LeanDecoder


@pytest.mark.sweep("campaigns of the engine")
def test_the_step_compiles_whole_and_once(model, vocabulary, ask):
    """Traced without a break and not again for later steps; the answers are the uncompiled ones."""
    import torch._dynamo.testing

    counter = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    engine = Engine(model, vocabulary, CompiledDecoder(model, backend=counter))
    config = GenerationConfig(max_new_tokens=30, force="video", guidance={"video": 2.0}, unconditional=ask(), seed=5)
    plain = Engine(model, vocabulary, "reference").generate([ask([3, 4])], config)
    assert engine.generate([ask([3, 4])], config) == plain
    assert engine.generate([ask([3, 4])], config) == plain
    assert counter.frame_count == 1
