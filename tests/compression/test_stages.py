"""Methods that keep what is attended to, and merge or drop the rest, in one or several stages: rules written out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.compression.test_methods import Given
from unimodal.compression import Span
from unimodal.compression.tokens.horizon import InformationHorizon
from unimodal.compression.tokens.prumerge import PruMerge, count_outliers
from unimodal.compression.tokens.pyramiddrop import PyramidDrop
from unimodal.compression.tokens.sparsevlm import SparseVLM
from unimodal.compression.tokens.visionzip import VisionZip


@pytest.fixture
def drawn():
    """States of 16 tokens, their attention and keys."""
    draws = torch.Generator().manual_seed(0)
    return [torch.rand(shape, generator=draws) - 0.5 for shape in ((1, 16, 8), (1, 16, 4))], torch.rand(
        1, 16, generator=draws
    )


def open_span(hidden, count, layer, query, scores, keys=None):
    observer = Given({(query, layer - 1): scores, (query, layer): scores}, keys=keys)
    return Span.from_states(hidden, count, layer=layer, observer=observer)


def test_visionzip_adds_to_targets_the_mean_of_what_is_like_them(drawn):
    (hidden, keys), scores = drawn
    method = VisionZip(0.5, contextual=3 / 8)
    plan = method.plan(hidden, open_span(hidden, 8, 2, "summary", scores, keys))
    dominant = sorted(scores[0].argsort(descending=True)[:5].tolist())
    rest = [token for token in range(16) if token not in dominant]
    targets = rest[::3][:3]
    others = [token for token in rest if token not in targets]
    unit = F.normalize(keys[0], dim=-1)
    joined = {target: [] for target in targets}
    for token in others:
        joined[max(targets, key=lambda target: float(unit[token] @ unit[target]))].append(token)
    assert plan.index[0].tolist() == sorted([*dominant, *targets])
    for place, state in zip(plan.index[0].tolist(), (plan.merge @ hidden)[0], strict=True):
        expected = hidden[0, place] + (hidden[0, joined[place]].mean(0) if joined.get(place) else 0)
        assert torch.allclose(state, expected, atol=1e-6)


def test_prumerge_adds_weighted_neighbours_and_one_token_of_what_goes(drawn):
    (hidden, keys), scores = drawn
    plan = PruMerge(0.5, neighbours=3).plan(hidden, open_span(hidden, 5, 2, "summary", scores, keys))
    order = scores[0].argsort(descending=True).tolist()
    kept, extra = order[:4], order[4]
    assert plan.index[0].tolist() == sorted([*kept, extra])
    unit = F.normalize(keys[0], dim=-1)
    for place, state in zip(plan.index[0].tolist(), (plan.merge @ hidden)[0], strict=True):
        if place == extra:
            expected = (hidden[0] * scores[0, :, None])[order[4:]].sum(0)
        else:
            near = (unit @ unit[place]).masked_fill(torch.arange(16) == place, -2).topk(3).indices
            expected = hidden[0, place] + (hidden[0] * scores[0, :, None])[near].sum(0)
        assert torch.allclose(state, expected, atol=1e-5)


def test_prumerge_counts_outliers(drawn):
    (hidden, keys), scores = drawn
    scores = scores.clone()
    scores[0, [3, 9]] = 9.0
    low, high = np.percentile(scores[0].numpy(), [25, 75])
    assert count_outliers(scores[0]) == int((scores[0].numpy() > high + 1.5 * (high - low)).sum()) == 2
    span = open_span(hidden, 1, 2, "summary", scores, keys)
    assert PruMerge(0.5, adaptive=True).count_kept([span], 4) == [3] and PruMerge(0.5).count_kept([span], 4) == [8]


def test_pyramiddrop_keeps_a_half_at_each_of_three_stages(drawn):
    (hidden, _), scores = drawn
    method = PyramidDrop(0.125)
    assert [method.find_sites(num) for num in (32, 4, 2)] == [(8, 16, 24), (1, 2, 3), (1,)]
    spans = [Span.from_states(torch.zeros(1, 64, 8), 1, layer=layer) for layer in (8, 16, 24)]
    assert method.count_kept(spans, 32) == [32, 16, 8]
    plan = method.plan(hidden, open_span(hidden, 4, 1, "last", scores))
    assert plan.index[0].tolist() == sorted(scores[0].topk(4).indices.tolist())


def test_sparsevlm_recycles_the_best_of_what_goes(drawn):
    """30% of what goes, in a tenth as many means and one more; 303, 110 and 36 of 576 tokens as published."""
    (hidden, _), scores = drawn
    method = SparseVLM(0.0625)
    assert method.find_sites(32) == (2, 6, 15)
    spans = [Span.from_states(torch.zeros(1, 576, 8), 1, layer=layer) for layer in (2, 6, 15)]
    assert method.count_kept(spans, 32) == [303, 110, 36]
    assert method.count_means(576, 303) == (82, 9) and SparseVLM(0.5, recycled=0).count_means(16, 4) == (0, 0)
    plan = method.plan(hidden, open_span(hidden, 5, 1, "after", scores))
    order = scores[0].argsort(descending=True).tolist()
    source = sorted(order[4 : 4 + 4])  # int(11 * 0.3) + 1 tokens, in one mean
    assert set(order[:4]) < set(plan.index[0].tolist())
    [place] = set(plan.index[0].tolist()) - set(order[:4])
    states = dict(zip(plan.index[0].tolist(), (plan.merge @ hidden)[0], strict=True))
    assert place in source and torch.allclose(states[place], hidden[0, source].mean(0), atol=1e-6)
    assert all(torch.allclose(states[kept], hidden[0, kept]) for kept in order[:4])


def test_past_the_horizon_tokens_go_by_chance(drawn):
    (hidden, _), _ = drawn
    method = InformationHorizon(0.25)
    assert method.find_sites(32) == (0, 20)
    early, late = (Span.from_states(hidden, 4, layer=layer) for layer in (0, 20))
    assert method.count_kept([early], 32) == [8] and method.count_kept([late], 32) == [4]
    assert InformationHorizon(0.25, early=0.75).count_kept([early], 32) == [12]
    chosen = method.plan(hidden, late).index
    assert torch.equal(chosen, method.plan(torch.randn(1, 16, 8), late).index)  # nothing of the states counts
    assert not torch.equal(chosen, InformationHorizon(0.25, seed=1).plan(hidden, late).index)
