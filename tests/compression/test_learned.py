"""Methods with learned parts: the rule of each written out, and that what it learns by has a gradient."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from tests.compression.conftest import make_part
from tests.compression.test_methods import Given, planned
from unimodal.compression import Span
from unimodal.compression.distillation import compute_distillation_loss
from unimodal.compression.tokens.downsample import Downsample
from unimodal.compression.tokens.explainability import Explainability
from unimodal.compression.tokens.fit import FIT
from unimodal.compression.tokens.learned import choose_learned
from unimodal.compression.tokens.patch_summary import PatchSelectors, PatchSummary
from unimodal.compression.tokens.pmod import PMoD
from unimodal.compression.tokens.tokenpacker import RegionInjector, TokenPacker


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_tokenpacker_begins_at_downsampling_and_looks_into_each_window_alone():
    hidden = torch.randn(1, 16, 32)
    coarse = planned(Downsample(), hidden, 4).merge @ hidden
    assert torch.allclose(planned(TokenPacker(packer=RegionInjector(32)), hidden, 4).states, coarse, atol=1e-6)
    packer = make_part(TokenPacker)
    states = planned(TokenPacker(packer=packer), hidden, 4).states
    heads = [x.view(-1, 4, 8).transpose(0, 1) for x in (
        packer.norms[0](packer.query(coarse[0, :1])),
        packer.norms[1](packer.key(hidden[0, [0, 1, 4, 5]])),
        packer.norms[2](packer.value(hidden[0, [0, 1, 4, 5]])),
    )]  # fmt: skip
    weight = (heads[0] @ heads[1].transpose(1, 2) / math.sqrt(8)).softmax(-1)
    read = packer.mlp(packer.out((weight @ heads[2]).transpose(0, 1).flatten(1)))
    assert torch.allclose(states[0, :1], coarse[0, :1] + read, atol=1e-5)


def test_selectors_average_by_their_products():
    hidden, selectors = torch.randn(2, 16, 8), PatchSelectors(8, 6)
    states = planned(PatchSummary(selectors=selectors), hidden, 3).states
    share = torch.einsum("sc,bnc->bsn", selectors.vectors[:3], hidden).mul(8**-0.5).softmax(-1)
    assert torch.allclose(states, torch.einsum("bsn,bnc->bsc", share, hidden), atol=1e-6)


def test_latents_read_their_own_group():
    hidden = torch.randn(1, 16, 32)
    method = FIT(groups=4, reader=make_part(FIT))
    states = planned(method, hidden, 8).states
    changed = hidden.clone()
    changed[:, 4:8] = torch.randn(1, 4, 32)  # the second of four groups
    differ = (planned(method, changed, 8).states - states).abs().amax(-1)[0] > 1e-6
    assert differ.tolist() == [False, False, True, True, False, False, False, False]


def test_the_relevance_of_a_token_is_learned_from_the_attention_around_it():
    method = Explainability(relevance=copy.deepcopy(make_part(Explainability)))
    after, last = torch.rand(1, 16), torch.rand(1, 16)
    given = Given({("after", 0): after, ("last", 0): last})
    hidden = torch.randn(1, 16, 8)
    seen = torch.stack([x / x.mean() - 1 for x in (after, last)], 1)
    scores = method.relevance(seen)
    plan = planned(method, hidden, 5, observer=given)
    assert plan.index[0].tolist() == sorted(scores[0].topk(5).indices.tolist())
    plan.states.sum().backward()  # straight through: a score counts for its token
    kept = hidden[0, plan.index[0]].sum(-1)
    scores.sigmoid()[0, plan.index[0]].mul(kept).sum().backward(inputs=[scores])
    assert torch.equal(plan.states, hidden[:, plan.index[0]]) and method.relevance.layers[0].weight.grad.any()
    index = choose_learned(scores.detach(), 5, hidden)
    assert index.states is None and torch.equal(index.index, plan.index)


@torch.no_grad()
def test_pmod_gates_the_feed_forward_and_lets_the_others_by(make_model, vocabulary, prompts):
    """Of layer 1 of two: what goes through it, by how much, and what comes out of it, token for token."""
    model, ids = make_model(num_layers=2), torch.tensor([prompts[1]])
    method = PMoD(0.5, routers=make_part(PMoD))
    assert method.find_sites(32) == tuple(range(32))
    spans = [Span.from_states(torch.zeros(1, 100, 8), 1, layer=layer) for layer in (0, 15, 31)]
    shares = [math.cos(math.pi * layer / 31) / 2 + 0.5 for layer in (0, 15, 31)]
    assert method.count_kept(spans, 32) == [max(1, math.trunc(100 * share)) for share in shares] == [100, 52, 1]
    seen, layer = {}, model.model.layers[1]
    watches = [
        layer.register_forward_pre_hook(lambda _, args: seen.update(into=args[0])),
        layer.register_forward_hook(lambda _, args, out: seen.update(out=out)),
        layer.post_attention_layernorm.register_forward_pre_hook(lambda _, args: seen.update(residual=args[0])),
        layer.mlp.register_forward_hook(lambda _, args, out: seen.update(added=out)),
        model.model.norm.register_forward_pre_hook(lambda _, args: seen.update(end=args[0])),
    ]
    plans = []
    own, method.plan = method.plan, lambda hidden, span: plans.append((hidden, own(hidden, span))) or plans[-1][1]
    with method(model, vocabulary):
        model(ids)
    for watch in watches:
        watch.remove()
    hidden, plan = plans[-1]  # layer 0 takes all of them
    weight = 0.2 * method.routers(hidden, 1)[0].tanh() + 1
    start = prompts[1].index(vocabulary.get_start_id("image")) + 1
    kept = plan.index[0]
    assert len(plans) == 1 and len(kept) == 1 and int(kept) == int(weight.argmax())
    gates = torch.ones(seen["into"].shape[1])
    gates[start] = weight[kept[0]]  # where it stands among those that go through
    assert torch.allclose(seen["out"], seen["residual"] + gates[:, None] * seen["added"], atol=1e-6)
    expected = hidden[0] * weight[:, None]
    expected[kept] = seen["out"][0, start]
    assert torch.allclose(seen["end"][0, start : start + 16], expected, atol=1e-5)


@pytest.mark.sweep
@pytest.mark.parametrize("kind", [TokenPacker, PatchSummary, FIT, Explainability, PMoD], ids=lambda kind: kind.part)
def test_distillation_reaches_the_module_and_lowers_the_loss(kind, model, vocabulary, prompts):
    module = kind.make_part(32, 4)
    method = kind(0.4, **{kind.part: module})
    ids = torch.tensor([prompts[1]])
    valid = torch.ones_like(ids, dtype=torch.bool)
    learnt = F.pad(torch.ones(1, 4, dtype=torch.bool), (ids.shape[1] - 4, 0))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.02, weight_decay=0.0)
    losses, frozen = [], [weight.requires_grad_(False) for weight in model.parameters()]
    try:
        for _ in range(8):
            optimizer.zero_grad()
            loss, count = compute_distillation_loss(method, model, vocabulary, ids, valid, learnt)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    finally:
        for weight in frozen:
            weight.requires_grad_(True)
    assert count == 4 and any(weight.grad is not None and weight.grad.any() for weight in module.parameters())
    assert losses[-1] < losses[0] or kind is Explainability  # whose choice is made in steps
