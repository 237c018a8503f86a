"""Adapted layers in one product: peft's own forward and its gradients, on every stock base, and when not to."""

import copy

import pytest
import torch

from tests.tiny_bases import BASES, make_base
from unimodal.model.lora import ADAPTER, LoraSettings, add_lora, find_lora_layers, make_peft_config, switch_lora
from unimodal.model.lora_product import _Forward, accelerate_lora, multiply_adapted

NOISE = 0.05


def make_adapted(name, dtype=torch.float32, **settings):
    model = make_base(name, None).to(dtype).requires_grad_(False)
    add_lora(model, make_peft_config(model, LoraSettings(rank=3, **settings)))
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in find_lora_layers(model).values():
            if ADAPTER in layer.lora_B:  # else its effect would be zero
                weight = layer.lora_B[ADAPTER].weight
                weight.copy_(NOISE * torch.randn(weight.shape, generator=draws))
    return model.eval()


def take_away(model):
    """The same model with peft's own forward."""
    plain = copy.deepcopy(model)
    for layer in find_lora_layers(plain).values():
        vars(layer).pop("forward", None)
    return plain


def run(model, ids):
    logits = model(input_ids=ids, use_cache=False).logits.float()
    model.zero_grad()
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.sweep("every base")
@pytest.mark.parametrize("name", BASES)
def test_every_base_computes_what_peft_computes(name):
    model = make_adapted(name)
    ids = torch.randint(3, 45, (2, 12), generator=torch.Generator().manual_seed(0))
    (logits, gradients), (expected, theirs) = run(model, ids), run(take_away(model), ids)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == theirs.keys() and gradients
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs[key], rtol=1e-3, atol=1e-5 * float(theirs[key].abs().max() + 1))


def test_the_linear_layers_of_a_llama_all_run_it():
    model = make_adapted("llama")
    assert all(isinstance(layer.forward, _Forward) for layer in find_lora_layers(model).values())


def test_under_autocast_it_is_as_near_to_the_exact_result_as_peft():
    model = make_adapted("llama", torch.bfloat16)
    exact = copy.deepcopy(take_away(model)).float()
    ids = torch.randint(3, 45, (2, 12), generator=torch.Generator().manual_seed(0))
    _, reference = run(exact, ids)
    errors = []
    for one in (model, take_away(model)):
        with torch.autocast("cpu", torch.bfloat16):
            _, found = run(one, ids)
        errors.append(sum(float((found[key] - reference[key]).square().sum()) for key in reference) ** 0.5)
    assert errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize("settings", [{"dora": True}, {"dropout": 0.1}])
def test_layers_that_need_more_keep_peft_s_forward(settings):
    model = make_adapted("llama", **settings)
    assert not any(isinstance(layer.forward, _Forward) for layer in find_lora_layers(model).values())


def test_switched_off_merged_and_second_adapters_run_as_peft_runs_them():
    from peft import inject_adapter_in_model

    model = make_adapted("llama")
    second = make_peft_config(make_base("llama", None), LoraSettings(rank=2))
    ids = torch.randint(3, 45, (1, 9), generator=torch.Generator().manual_seed(0))
    plain, adapted = take_away(model), model(input_ids=ids).logits
    switch_lora(model, False), switch_lora(plain, False)
    off = model(input_ids=ids).logits
    assert torch.equal(off, plain(input_ids=ids).logits) and not torch.allclose(off, adapted)
    switch_lora(model, True), switch_lora(plain, True)
    torch.testing.assert_close(model(input_ids=ids).logits, adapted)
    for layer in find_lora_layers(model).values():
        layer.merge()
    torch.testing.assert_close(model(input_ids=ids).logits, adapted, rtol=1e-4, atol=1e-5)
    for layer in find_lora_layers(model).values():
        layer.unmerge()
    inject_adapter_in_model(second, model, adapter_name="second")
    for layer in find_lora_layers(model).values():
        layer.set_adapter(["second"])
    torch.testing.assert_close(model(input_ids=ids).logits, off, rtol=1e-4, atol=1e-5)  # its B is zero


def test_a_copy_runs_its_own_weights():
    model = make_adapted("llama")
    other = copy.deepcopy(model)
    ids = torch.randint(3, 45, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in find_lora_layers(other).values():
            layer.lora_B[ADAPTER].weight.zero_()
    switch_lora(model, False)
    torch.testing.assert_close(other(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5,), (2, 3), (0,)])
def test_value_and_slope_of_one_layer(bias, shape):
    draws = torch.Generator().manual_seed(2)
    x, a, b = (torch.randn(s, generator=draws).double().requires_grad_() for s in ((*shape, 6), (2, 6), (4, 2)))
    weight, more = torch.randn(4, 6, generator=draws).double(), torch.randn(4, generator=draws).double()
    add = more if bias else None
    found = multiply_adapted(x, weight, add, a, b, 1.5)
    torch.testing.assert_close(found, x @ weight.T + (more if bias else 0) + 1.5 * x @ a.T @ b.T)
    assert torch.autograd.gradcheck(lambda *given: multiply_adapted(given[0], weight, add, *given[1:], 1.5), (x, a, b))


def test_nothing_is_sped_up_without_adapters():
    assert accelerate_lora(make_base("llama", None), ADAPTER) == 0


@pytest.mark.parametrize("part", ["base_layer", "lora_A.default", "lora_B.default"])
def test_hooks_on_the_parts_of_a_layer_are_called(part):
    model, seen = make_adapted("llama"), []
    layer = next(iter(find_lora_layers(model).values()))
    ids = torch.randint(3, 45, (1, 9), generator=torch.Generator().manual_seed(0))
    expected = model(input_ids=ids).logits
    handle = layer.get_submodule(part).register_forward_hook(lambda module, inputs, out: seen.append(out.shape))
    torch.testing.assert_close(model(input_ids=ids).logits, expected)
    handle.remove()
    assert len(seen) == 1


def test_without_gradients_it_is_peft_to_the_bit():
    model = make_adapted("llama")
    ids = torch.randint(3, 45, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, take_away(model)(input_ids=ids).logits)
