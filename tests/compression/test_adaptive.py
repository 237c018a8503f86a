"""Methods that keep every token and change what it costs, or what is left of it: ACM and STILL, by their formulas."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from tests.compression.conftest import make_part
from unimodal.compression.kv.still import STILL, FeatureMaps, measure_saliency
from unimodal.compression.learned import DecoderShape
from unimodal.compression.running.attention_rows import AttentionRule
from unimodal.compression.running.cache_executor import index_slots
from unimodal.compression.running.look import Look
from unimodal.compression.running.slots import SlotLayer, Slots
from unimodal.compression.tokens.acm import ACM, GateChoice, hold, label

SHAPE = DecoderShape(32, 4, 4, 8)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_acm_gives_each_token_the_sum_of_its_first_learners(make_model, vocabulary, prompts):
    """In the place of the feed-forward, which sees the other tokens alone; and only learners that act see a token."""
    model, ids = make_model(num_layers=2), torch.tensor([prompts[1]])
    modules = copy.deepcopy(make_part(ACM))
    start = prompts[1].index(vocabulary.get_start_id("image")) + 1
    seen, own, norm = {}, model.model.layers[1].mlp, model.model.layers[1].post_attention_layernorm
    watches = [
        norm.register_forward_hook(lambda _, args, out: seen.update(into=out)),
        norm.register_forward_pre_hook(lambda _, args: seen.update(residual=args[0])),
        own.gate_proj.register_forward_hook(lambda _, args, out: seen.update(rest=args[0])),
        model.model.norm.register_forward_pre_hook(lambda _, args: seen.update(end=args[0])),
    ]
    asked = [0] * 4
    for number, learner in enumerate(modules.get_layer(1).enter):

        def count(_, args, out, number=number):
            asked[number] += len(args[0])

        learner.register_forward_hook(count)
    with ACM(0.5, modules=modules)(model, vocabulary), torch.no_grad():
        model(ids)
    for watch in watches:
        watch.remove()
    layer, x = modules.get_layer(1), seen["into"][0, start : start + 16]
    number = layer.gate(x).argmax(-1)
    parts = [F.gelu(x @ w.weight.T + w.bias) @ v.weight.T for w, v in zip(layer.enter, layer.leave, strict=True)]
    brought = torch.stack([sum(parts[: int(n)], torch.zeros(16, 32))[at] for at, n in enumerate(number)])
    assert torch.allclose(
        seen["end"][0, start : start + 16], seen["residual"][0, start : start + 16] + brought, atol=1e-5
    )
    assert len(set(number.tolist())) > 1 and asked[:4] == [int((number > at).sum()) for at in range(4)]
    others = torch.cat([seen["into"][0, :start], seen["into"][0, start + 16 :]])
    assert torch.equal(seen["rest"][0], others)  # the decoder's own is not computed for the picture
    assert torch.allclose(seen["end"][0, :start], (seen["residual"][0] + own(seen["into"])[0])[:start], atol=1e-5)


def test_the_number_of_learners_is_where_a_further_one_brings_too_little():
    target = torch.tensor([[8.0, 0.0]]).expand(4, 2)
    brought = [[0, 4, 7, 7.1, 7.2], [0, 7, 7.1, 7.2, 8], [0, 0.1, 4, 8, 8], [0, 4, 6, 7, 7.5]]  # errors of 8 − these
    sums = torch.stack([torch.tensor(brought), torch.zeros(4, 5)], -1)
    assert label(sums, target, 1.2).tolist() == [3, 2, 1, 4]


def test_acm_is_held_to_its_budget_to_all_choices_and_to_differences():
    chosen = F.one_hot(torch.tensor([0, 1, 4, 4, 2, 2]), 5).float()  # two layers, of rows 3 and 7
    choices = [GateChoice(0, torch.tensor([3, 3, 7]), chosen[:3]), GateChoice(1, torch.tensor([3, 7, 7]), chosen[3:])]
    costs = (0 + 1 + 4 + 4 + 2 + 2) / 6 / 4
    entropies = [math.log(2), 0, 0, 0]  # of rows 3 and 7 in layer 0, then in layer 1
    spread = abs((0 + 1 + 4) / 3 / 5 - (4 + 2 + 2) / 3 / 5)
    expected = 0.1 * abs(costs - 0.3) - 0.05 * sum(entropies) / 4 / math.log(5) - 0.05 * 2 * (2 * spread / 4)
    assert float(hold(choices, 0.3)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.sweep
def test_acm_learns_in_three_phases(model, vocabulary, prompts):
    """To imitate, then how many learners are worth it, then to answer as the whole model does, within the budget."""
    ids = torch.tensor([prompts[1]])
    valid = torch.ones_like(ids, dtype=torch.bool)
    learnt = F.pad(torch.ones(1, 4, dtype=torch.bool), (ids.shape[1] - 4, 0))
    method = ACM(0.25, imitating=12, gating=8, modules=ACM.make_part(SHAPE).train())
    optimizer = torch.optim.AdamW(method.modules.parameters(), lr=1e-2, weight_decay=0.0)
    losses, moved = [], []
    for _ in range(26):
        before = [weight.clone() for weight in method.modules.layers[0].gate.parameters()]
        optimizer.zero_grad()
        loss, count = method.compute_loss(model, vocabulary, ids, valid, learnt)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()) / count)
        gates = zip(before, method.modules.layers[0].gate.parameters(), strict=True)
        moved.append(any(not torch.equal(old, new) for old, new in gates))
    assert moved == [False] * 12 + [True] * 14 and int(method.modules.steps) == 26
    assert losses[11] < 0.7 * losses[0] and losses[19] < losses[12] and math.isfinite(losses[-1])


def look_at(num=40, heads=2, width=4, before=0):
    """One head of keys for two of queries, all entries evictable but the first and the last."""
    free = torch.ones(1, 1, num, dtype=torch.bool)
    free[..., 0] = free[..., -1] = False
    valid, places = torch.ones(1, num, dtype=torch.bool), torch.arange(num)[None, None]
    slots = Slots(valid, places, free, torch.zeros(1, dtype=torch.int64))
    layer = SlotLayer()
    layer.slots = slots
    query, keys, values = (torch.randn(1, n, num, width) for n in (heads, 1, 1))
    return Look(query, keys, values, slots, layer, AttentionRule(width**-0.5), None, before == 0)


def attend_exactly(look, maps, chunk, kept):
    """STILL's attention written out, query by query. kept: int64 [H], the entries of each old chunk that stay exact."""
    out = torch.zeros(look.query.shape[2], 2, 4)
    for head in range(2):
        q, k, v = look.query[0, head], look.keys[0, 0], look.values[0, 0]
        layer = maps.layers[0]

        def phi(x, map, head=head):
            u = map.mirror[head] / map.mirror[head].norm()
            turned = map.matrix[head] @ (x - 2 * (x @ u) * u)
            turned = turned / turned.norm() * x.norm()
            return torch.cat([turned.softmax(0), (-turned).softmax(0)])

        for at in range(len(q)):
            far = [j for j in range(at + 1) if j // chunk <= at // chunk - 2 and j not in kept and j > 0]
            near = [j for j in range(at + 1) if j not in far]
            logits = torch.stack([q[at] @ k[j] / 2 for j in near])
            weight = (logits - logits.max()).exp()
            told = (
                torch.stack([phi(q[at], layer.queries) @ phi(k[j], layer.keys) for j in far]) if far else q.new_zeros(0)
            )
            gate = (q[at] @ layer.gate[head]).sigmoid()
            said = (weight[:, None] * v[near]).sum(0) + gate * (told[:, None] * v[far]).sum(0)
            out[at, head] = said / (weight.sum() + told.sum() + 1e-6)
    return out


@torch.no_grad()
def test_still_keeps_what_stands_out_and_the_rest_as_a_state():
    chunk, look = 8, look_at()
    maps = FeatureMaps(DecoderShape(8, 1, 2, 4))
    method = STILL(0.25, chunk=chunk, maps=maps)
    saliency = measure_saliency(look, chunk)[0]  # [H, L]
    for head, at in ((0, 3), (1, 21)):
        window = list(range(max(0, at - chunk + 1), at + 1))
        logits = torch.stack([look.query[0, head, at] @ look.keys[0, 0, j] / 2 for j in window])
        p, q = logits.softmax(0), torch.cat([logits[:-1].softmax(0) / (1 + 1 / chunk), torch.tensor([1 / chunk])])
        assert float(saliency[head, at]) == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-5)
    mean = saliency.mean(0)
    kept = set()
    for first in range(0, 40, chunk):
        free = [j for j in range(first, first + chunk) if 0 < j < 39]
        kept |= set(sorted(free, key=lambda j: -float(mean[j]))[: round(len(free) * 0.25)])
    out, gone, told = method.mix(look)
    assert torch.allclose(out[0], attend_exactly(look, maps, chunk, kept), atol=1e-5)
    assert gone[0, 0].nonzero()[:, 0].tolist() == [j for j in range(1, 24) if j not in kept]
    # the same, once those entries are gone
    index, valid = index_slots(~gone)
    look.layer.keys, look.layer.values = look.keys, look.values
    look.layer.evict(index, look.slots.take(index, valid))
    look.state.summary = told
    step = look_at(len(index[0, 0]))
    step.query, step.keys, step.values = look.query[:, :, -1:], look.layer.keys, look.layer.values
    step.layer, step.slots, step.first, step.reads = look.layer, look.layer.slots, False, False
    look.state.score = look.state.score[..., :-1]  # as if the last one were new
    again, gone, _ = method.mix(step)
    assert torch.allclose(again[0, 0], out[0, -1], atol=1e-5) and not gone.any()


@pytest.mark.sweep
def test_still_learns_to_attend_as_the_decoder_did(model, vocabulary, prompts):
    ids = torch.tensor([prompts[2]])
    valid, learnt = torch.ones_like(ids, dtype=torch.bool), torch.ones_like(ids, dtype=torch.bool)
    method = STILL(0.1, maps=FeatureMaps(SHAPE))
    optimizer = torch.optim.AdamW(method.maps.parameters(), lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss, count = method.compute_loss(model, vocabulary, ids, valid, learnt)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()) / count)
    assert losses[-1] < 0.8 * losses[0]
    wrong = STILL(0.1, maps=FeatureMaps(DecoderShape(32, 4, 8, 4)))
    with pytest.raises(ValueError, match=r"8 heads of 4 values; the model has 4 of 8"), wrong(model, vocabulary):
        model(ids)
