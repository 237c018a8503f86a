"""Methods with learned parts: the rule of each written out, and that what it learns by has a gradient."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from tests.compression.conftest import make_part
from tests.compression.test_methods import Given, planned
from unimodal.compression import Span
from unimodal.compression.distillation import compute_distillation_loss
from unimodal.compression.learned import DecoderShape
from unimodal.compression.tokens import cacovid
from unimodal.compression.tokens.atp import ATP, PruningThresholds, measure_redundancy, score_lattice
from unimodal.compression.tokens.cacovid import CaCoVID, draw_combination, measure_choice
from unimodal.compression.tokens.downsample import Downsample
from unimodal.compression.tokens.explainability import Explainability
from unimodal.compression.tokens.fit import FIT
from unimodal.compression.tokens.langdc import LangDC, supervise
from unimodal.compression.tokens.learned import choose_learned
from unimodal.compression.tokens.patch_summary import PatchSelectors, PatchSummary
from unimodal.compression.tokens.pmod import PMoD
from unimodal.compression.tokens.tokenpacker import RegionInjector, TokenPacker

SHAPE = DecoderShape(32, 4, 4, 8)


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


def test_atp_keeps_what_reaches_a_threshold_of_its_scores_or_of_the_lattice():
    module = PruningThresholds()
    method = ATP(0.25, thresholds=module)
    inside, after = torch.rand(1, 16, 16), torch.rand(1, 16)
    given = Given({("after", 1): after}, inside=inside)
    span = Span.from_states(torch.randn(1, 16, 8), 1, layer=2, observer=given, num_layers=8)
    received = inside[0].mean(0)
    redundancy = (received / received.mean() + after[0] / after[0].mean()) / 2
    assert torch.allclose(measure_redundancy(span)[0], redundancy, atol=1e-6)
    lattice = score_lattice(span).view(4, 4)  # strides of 4 pixels, of 2, and of 1
    finest, middle = lattice[1, 1], lattice[0, 2]
    assert lattice[0, 0] > middle == lattice[2, 0] == lattice[2, 2] > finest == lattice[3, 0]
    assert lattice.unique().tolist() == pytest.approx([6 / 16, 13.5 / 16, 15.5 / 16])
    bounds = torch.tensor([1.2, 0.8])
    module.forward = lambda scores, share, stage: bounds.expand(len(scores), 2)
    kept = ((redundancy >= 1.2) | (lattice.flatten() >= 0.8)).nonzero()[:, 0].tolist()
    [count] = method.count_kept([span], 8)
    plan = method.plan(span.hidden, dataclasses.replace(span, count=count))
    assert 4 <= count < 16 and plan.index[0].tolist() == kept
    assert ATP(1.0, thresholds=module).count_kept([span], 8) == [16]
    del module.forward
    first = module(redundancy[None], 0.5, 0)  # as it begins: half of the share above one, half on the lattice
    assert torch.allclose(first, torch.stack([redundancy.quantile(0.75)[None], torch.tensor([0.75])], -1))


def test_atp_is_held_to_its_budget(model, vocabulary, prompts):
    ids = torch.tensor([prompts[1]])
    valid = torch.ones_like(ids, dtype=torch.bool)
    learnt = F.pad(torch.ones(1, 4, dtype=torch.bool), (ids.shape[1] - 4, 0))
    module = PruningThresholds()
    plain, _ = ATP(0.4, budget=0.0, thresholds=module).compute_loss(model, vocabulary, ids, valid, learnt)
    with torch.no_grad():
        for stage in module.stages:
            stage[2].bias -= 5  # everything stays
    method = ATP(0.4, thresholds=module)
    loss, count = method.compute_loss(model, vocabulary, ids, valid, learnt)
    loss.backward()
    assert count == 4 and float(loss.detach()) > 4 * 10 * 0.1 and float(plain.detach()) > 0
    pushed = [stage[2].bias.grad for stage in module.stages if stage[2].bias.grad is not None]
    assert pushed and all((grad <= 0).all() for grad in pushed)  # thresholds are to rise


def test_cacovid_divides_a_clip_over_its_frames_and_takes_the_best_of_each():
    policy = copy.deepcopy(make_part(CaCoVID))
    method = CaCoVID(0.25, policy=policy)
    lengths, frames = [16, 16, 16, 16], torch.tensor([[0.2, -0.1, 0.05, 0.0]])
    [budget] = method.divide(frames, lengths, 16)
    shares = (frames[0] / 0.2 * 3).softmax(-1).clamp(1 / 8, 0.5 / (4 * 0.25))  # half a mean share to half of a frame
    shares = (shares / shares.sum() * 16).round().clamp(1, 8)
    assert sum(budget) == 16 and max(abs(a - float(b)) for a, b in zip(budget, shares, strict=True)) <= 1
    assert method.divide(torch.zeros(1, 4), lengths, 16) == [[4, 4, 4, 4]] and method.divide(frames, lengths, 2)
    hidden, after = torch.randn(1, 64, 32), torch.rand(1, 64)
    span = Span.from_states(hidden, 16, lengths, "video", observer=Given({("after", 0): after}), num_layers=8)
    plan = method.plan(hidden, span)
    tokens, frames = policy(hidden, after / after.mean() - 1, lengths)
    expected = [
        16 * frame + int(at)
        for frame, count in enumerate(method.divide(frames, lengths, 16)[0])
        for at in tokens[0, 16 * frame : 16 * frame + 16].topk(count).indices
    ]
    assert plan.index[0].tolist() == sorted(expected)
    other = policy(hidden, 3 * after, lengths)[0]
    assert not torch.allclose(other, tokens)  # the question counts


def test_cacovid_draws_of_one_group_and_pushes_what_did_better():
    chances = torch.arange(12.0).softmax(-1)
    groups = [set(range(9, 12)), set(range(6, 9)), set(range(3, 6)), set(range(3))]
    for _ in range(20):
        drawn = set(draw_combination(chances, 2, 1.5).tolist())
        assert len(drawn) == 2 and any(drawn <= group for group in groups)
    scores, chosen = torch.randn(1, 6), torch.tensor([[1, 0, 0, 1, 0, 0]]).bool()
    odds = scores.sigmoid()[0]
    logs = [odds[at].log() if chosen[0, at] else (1 - odds[at]).log() for at in range(6)]
    weights = [2 / 3 if chosen[0, at] else 1 / 3 for at in range(6)]
    mean = sum(w * log for w, log in zip(weights, logs, strict=True)) / sum(weights)
    torch.testing.assert_close(measure_choice(scores, chosen)[0], mean)


@pytest.mark.sweep
def test_cacovid_learns_from_trials_what_is_rewarded(model, vocabulary, prompts, monkeypatch):
    """The reward of this test is how many of the first half of the picture go on."""
    ids = torch.tensor([prompts[1]])
    valid = torch.ones_like(ids, dtype=torch.bool)
    learnt = F.pad(torch.ones(1, 4, dtype=torch.bool), (ids.shape[1] - 4, 0))
    method = CaCoVID(0.25, trials=24, policy=CaCoVID.make_part(SHAPE))
    drawn, own = [], cacovid._TryingCaCoVID.plan
    monkeypatch.setattr(cacovid._TryingCaCoVID, "plan", lambda *asked: drawn.append(own(*asked)) or drawn[-1])
    monkeypatch.setattr(cacovid, "measure_rows", lambda *_: -(drawn[-1].index < 8).float().mean(1))
    monkeypatch.setattr(cacovid, "expect", lambda model, vocabulary, ids, valid: model(ids).logits)
    optimizer = torch.optim.AdamW(method.policy.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(5):
        optimizer.zero_grad()
        loss, count = method.compute_loss(model, vocabulary, ids, valid, learnt)
        loss.backward()
        optimizer.step()
    rewards = [float((plan.index < 8).float().mean()) for plan in drawn]
    assert count == 4 and sum(rewards[-48:]) > sum(rewards[:24]) * 2 + 4
    with method(model, vocabulary) as session, torch.no_grad():
        model(ids)
    start = prompts[1].index(vocabulary.get_start_id("image")) + 1
    assert sum(at - start < 8 for at in session.kept[0]) >= 3


def test_rewards_are_minus_the_divergence_of_a_row():
    logits = torch.randn(2, 2, 3, 5)
    learnt = torch.tensor([[0, 1, 1], [1, 0, 0]]).bool()
    nats = cacovid.measure_rows(*logits.log_softmax(-1), learnt)
    pairs = [F.kl_div(logits[1, 0, at].log_softmax(-1), logits[0, 0, at].softmax(-1), reduction="sum") for at in (1, 2)]
    torch.testing.assert_close(nats[0], torch.stack(pairs).mean())


class Speech:
    """In place of an observer: ten words, whose states are their own."""

    table = torch.eye(10, 32)

    def spell(self, states):
        return states @ self.table.T

    def embed(self, ids):
        return self.table[ids]


def test_langdc_writes_of_each_clip_until_nothing_is_left_to_say():
    captioner, speech = copy.deepcopy(make_part(LangDC)), Speech()
    clip, hidden = torch.randn(9, 32), torch.randn(1, 36, 32)
    span = Span.from_states(hidden, 1, [12, 12, 12], "video", observer=speech)
    captioner.stop.weight.data.zero_()
    captioner.stop.bias.data.fill_(-1)  # never: the bound is what stops it
    thoughts, stops = captioner.write(clip, 5, span)
    words = captioner.say(thoughts[:4]).matmul(speech.table.T).argmax(-1)
    assert stops.shape == (5,) and torch.allclose(captioner.write(clip, 3, span)[0], thoughts[:3], atol=1e-6)
    assert torch.allclose(captioner.write(clip, 5, span, torch.cat([words, words[:1]]))[0], thoughts, atol=1e-6)
    other = captioner.write(clip, 5, span, (torch.cat([words, words[:1]]) + 1) % 10)[0]
    assert torch.allclose(other[0], thoughts[0], atol=1e-6) and not torch.allclose(other[1], thoughts[1], atol=1e-3)
    assert not torch.allclose(captioner.write(torch.randn(9, 32), 3, span)[0], thoughts[:3], atol=1e-3)
    method = LangDC(0.5, frames=2, captioner=captioner)
    [count] = method.count_kept([span], 8)
    plan = method.plan(hidden, dataclasses.replace(span, count=count))
    parts = [captioner.write(hidden[0, :24], 12, span)[0], captioner.write(hidden[0, 24:], 6, span)[0]]  # by lengths
    assert count == 18 and torch.allclose(plan.states[0], captioner.project(torch.cat(parts)), atol=1e-5)
    plan.states.sum().backward()  # only the projector learns from what the decoder makes of it
    assert captioner.project[0].weight.grad.any() and captioner.read.weight.grad is None
    captioner.stop.bias.data.fill_(1)  # at once
    assert method.count_kept([span], 8) == [2] and LangDC(1.0, captioner=captioner).count_kept([span], 8) == [36]


def test_a_description_is_said_word_by_word_behind_those_before_and_ends_where_it_ends():
    captioner, words = copy.deepcopy(make_part(LangDC)), torch.tensor([5, 2, 7])
    clip = torch.randn(9, 32)
    span = Span.from_states(clip[None], 1, observer=Speech())
    thoughts, stops = captioner.write(clip, 3, span, words)
    logits = captioner.say(thoughts) @ Speech.table.T
    expected = -sum(float(logits[at].log_softmax(-1)[word]) for at, word in enumerate(words)) / 3
    chances = stops.sigmoid()
    expected -= float((1 - chances[0]).log() + (1 - chances[1]).log() + chances[2].log()) / 3
    assert float(supervise(captioner, clip, words, span)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.sweep
def test_langdc_learns_to_say_as_much_as_there_is_to_say_and_then_what_the_decoder_needs(model, vocabulary, prompts):
    """A picture whose answer has three words: so many soft tokens go on, and not the eight of the bound."""
    ids = torch.tensor([prompts[1]])
    valid = torch.ones_like(ids, dtype=torch.bool)
    learnt = F.pad(torch.ones(1, 4, dtype=torch.bool), (ids.shape[1] - 4, 0))
    method = LangDC(0.5, describing=16, captioner=LangDC.make_part(SHAPE).train())
    optimizer = torch.optim.AdamW(method.captioner.parameters(), lr=1e-2, weight_decay=0.0)
    losses, frozen = [], []
    for _ in range(32):
        before = method.captioner.say.weight.clone()
        optimizer.zero_grad()
        loss, _ = method.compute_loss(model, vocabulary, ids, valid, learnt)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        frozen.append(torch.equal(before, method.captioner.say.weight))
    assert frozen == [False] * 16 + [True] * 16 and losses[15] < losses[0] / 2 and losses[-1] < losses[16]
    with method(model, vocabulary) as session, torch.no_grad():
        model(ids)
    assert [len(kept) for kept in session.kept] == [3]


@pytest.mark.sweep
@pytest.mark.parametrize("kind", [TokenPacker, PatchSummary, FIT, Explainability, PMoD], ids=lambda kind: kind.part)
def test_distillation_reaches_the_module_and_lowers_the_loss(kind, model, vocabulary, prompts):
    module = kind.make_part(SHAPE)
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
