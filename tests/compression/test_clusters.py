"""Methods that cluster, route by regions, or bring tokens back, each against its rule written out."""

import pytest
import torch
import torch.nn.functional as F

from tests.compression.conftest import make_method
from tests.compression.test_methods import Given, planned
from unimodal.compression import Span
from unimodal.compression.kv.biformer import score_regions
from unimodal.compression.tokens.clca import CLCA
from unimodal.compression.tokens.coarse_to_fine import CoarseToFine, find_tiles
from unimodal.compression.tokens.diffrate import DiffRate, sum_rates
from unimodal.compression.tokens.dtop import DToP
from unimodal.compression.tokens.kmax import KMaX
from unimodal.compression.tokens.token_clustering import TokenClustering, lay_out
from unimodal.compression.tokens.vflowopt import (
    VFlowOpt,
    draw_shares,
    measure_code_entropy,
    order_by_cells,
    rate_by_global_tokens,
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_diffrate_drops_the_last_and_merges_the_next_into_what_is_like_them():
    hidden, scores = torch.randn(1, 12, 8), torch.rand(1, 12)
    given = Given({("summary", 1): scores})
    method = DiffRate(0.5, rates=((1.0, 1.0), (0.75, 0.5), (0.5, 0.25)))
    spans = [Span.from_states(hidden, 6, layer=layer, num_layers=4, observer=given) for layer in (1, 2, 3)]
    assert method.count_kept(spans, 4) == [12, 6, 3] and DiffRate(0.25).count_kept(spans, 4) == [9, 6, 3]
    plan = method.plan(hidden, spans[1])
    order = scores[0].argsort(descending=True).tolist()
    kept, merged = order[:6], order[6:9]  # 12 * 0.75 are left behind dropping
    unit = F.normalize(hidden[0], dim=-1)
    groups, sizes = {token: [token] for token in kept}, dict.fromkeys(kept, 1.0)
    for token in merged:
        target = max(kept, key=lambda other: float(unit[token] @ unit[other]))
        groups[target].append(token)
        sizes[target] += float(unit[token] @ unit[target])
    for place, state, size in zip(plan.index[0].tolist(), (plan.merge @ hidden)[0], plan.sizes[0], strict=True):
        assert torch.allclose(state, hidden[0, groups[place]].mean(0), atol=1e-6)
        assert float(size) == pytest.approx(max(1.0, sizes[place]), abs=1e-5)


def test_diffrate_finds_rates_that_cost_no_more(model, vocabulary, prompts):
    """Each part goes where it costs least, so the found rates cost no more than all of it in one layer."""
    from unimodal.compression.tokens.calibration import measure_drift

    found = DiffRate(0.5).calibrate(model, vocabulary, prompts[1:2], steps=1)
    assert found.rates[-1][1] == pytest.approx(0.5)
    costs = [measure_drift(DiffRate(0.5, rates=sum_rates(going)), model, vocabulary, prompts[1:2])
             for going in ([[0.5, 0], [0, 0], [0, 0]], [[0, 0], [0, 0], [0, 0.5]])]  # fmt: skip
    assert measure_drift(found, model, vocabulary, prompts[1:2]) <= min(costs)
    with pytest.raises(ValueError, match="at least one"):
        DiffRate(0.5).calibrate(model, vocabulary, [])
    with pytest.raises(ValueError, match="this model needs 3"), DiffRate(rates=((1.0, 0.5),))(model, vocabulary):
        pass


def test_kmax_gives_each_token_to_its_best_centre():
    groups = torch.eye(8)[:3] * 5
    hidden = (groups[torch.arange(12) // 4] + 0.1 * torch.randn(12, 8))[None]
    plan = planned(KMaX(), hidden, 3)
    assert plan.sizes[0].tolist() == [4, 4, 4]
    assert torch.allclose(plan.merge @ hidden, hidden.view(1, 3, 4, 8).mean(2), atol=1e-5)
    hidden = torch.randn(1, 16, 8)
    assigned = planned(KMaX(iterations=1), hidden, 4).merge[0].argmax(0)
    first = F.normalize(hidden[0, [2, 6, 10, 14]], dim=-1)
    assert torch.equal(assigned, (F.normalize(hidden[0], dim=-1) @ first.T).argmax(-1))  # one centre a token


def test_token_clustering_is_soft_k_means_near_home_and_rebuilds_by_distance():
    """One iteration written out on a raster of 4 x 4 with 2 x 2 clusters, of which all are near; then the way back."""
    hidden = torch.randn(1, 16, 8) * 2
    method = TokenClustering(0.25, iterations=1, temperature=0.1, nearest=2)
    assert method.find_sites(8) == (2,) and method.find_end(8) == 6 and TokenClustering(0.5).find_end(1) == 1
    plan = planned(method, hidden, 4, num_layers=8)
    grid = hidden[0].view(4, 4, 8)
    centres = torch.stack([grid[y : y + 2, x : x + 2].reshape(4, 8).mean(0) for y in (0, 2) for x in (0, 2)])
    share = (-0.1 * (hidden[0, :, None] - centres).square().sum(-1)).softmax(1)  # [16, 4], of a token over clusters
    clusters = (share.T @ hidden[0]) / share.sum(0)[:, None]
    assert torch.allclose((plan.merge @ hidden)[0], clusters, atol=1e-5)
    weight = torch.exp(-0.1 * (hidden[0, :, None] - clusters).square().sum(-1))
    weight[weight < weight.topk(2, -1).values[:, -1:]] = 0
    assert torch.allclose(plan.back.taken[0], weight / weight.sum(-1, keepdim=True), atol=1e-5)
    assert plan.back.site == 6 and (plan.back.own == 0).all()
    _, index, near = lay_out((64, 8), 18, True, 0)  # 16 squares, and 2 stretches of a line: each its own
    assert len(index.unique()) == 18 and (near.sum(0) == 1).all()
    assert lay_out((64,), 16, True, 1)[2].sum(1).view(4, 4).tolist()[0] == [16, 24, 24, 16]


def test_what_comes_back_is_what_was_planned(model, vocabulary, prompts):
    """Behind the site the states are those that `back` makes of what went through the layers between."""
    method = TokenClustering(0.3, cluster_at=0.25, rebuild_at=0.5)  # clusters in layer 1 alone
    ids, seen, outs = torch.tensor([prompts[1]]), {}, {}
    layers = model.model.layers
    watches = [layers[1].register_forward_hook(lambda _, args, out: outs.update(one=out)),
               layers[2].register_forward_pre_hook(lambda _, args: seen.update(two=args[0]))]  # fmt: skip
    plans = []
    own, method.plan = method.plan, lambda hidden, span: plans.append(own(hidden, span)) or plans[-1]
    with torch.inference_mode(), method(model, vocabulary) as session:
        logits = model(ids, use_cache=True).logits
    for watch in watches:
        watch.remove()
    [plan] = plans
    start = prompts[1].index(vocabulary.get_start_id("image")) + 1
    assert seen["two"].shape[1] == ids.shape[1] and outs["one"].shape[1] == ids.shape[1] - 11
    rebuilt = plan.back.taken[0] @ outs["one"][0, start : start + 5]
    assert torch.allclose(seen["two"][0, start : start + 16], rebuilt, atol=1e-6)
    assert torch.equal(seen["two"][0, :start], outs["one"][0, :start])  # and the others as they were
    assert torch.equal(seen["two"][0, start + 16 :], outs["one"][0, start + 5 :])
    assert session.stats.tokens_after == session.stats.tokens_before == 16 and torch.isfinite(logits).all()


def test_others_may_drop_what_is_to_come_back(model, vocabulary, prompts, read):
    """A method between the two sites: what it drops stays away, padded rows are what they are alone."""
    for positions in ("kept", "compacted"):
        clustering = TokenClustering(0.5, cluster_at=0.25, rebuild_at=0.75)
        between = make_method("fastv", 0.4, positions=positions)
        with clustering(model, vocabulary), between(model, vocabulary) as session:
            together = read(model, prompts[:3], [7])
            assert session.stats.tokens_after < session.stats.tokens_before
            assert torch.allclose(read(model, prompts[1:2], [7])[0], together[1], atol=2e-5)


def test_coarse_tokens_choose_the_tiles_that_are_read():
    assert find_tiles(0, 0, 16, (1, 1), (2, 2)) == {0} and find_tiles(0, 15, 16, (1, 1), (2, 2)) == {3}
    assert find_tiles(3, 0, 4, (2, 2), (4, 4)) == {10} and find_tiles(0, 4, 9, (1, 1), (2, 2)) == {0, 1, 2, 3}
    method = CoarseToFine(0.5, levels=((2, 2), (4, 4)), layer=1)
    scores = [torch.rand(1, 16) for _ in range(21)]
    scores[0][0, [0, 1, 4, 5]] = 9.0  # the whole's tokens look at the first tile
    scores[1][0, [2, 3, 6, 7]] = 9.0  # and that tile's at its right upper quarter
    spans = [Span.from_states(torch.zeros(1, 16, 8), 8, layer=1, observer=Given({("after", 0): s})) for s in scores]
    counts = method.count_kept(spans, 4)
    assert counts[0] == 8 and counts[1:5] == [0] * 4  # the whole stays, levels between are only looked at
    assert [number for number, count in enumerate(counts[5:]) if count] == [1]
    assert CoarseToFine(0.5).count_kept(spans, 4) == [8] * 21  # no pyramid was declared
    assert method.count_kept(spans[:20], 4) == [8] * 20  # pictures that fill none are none


def test_vflowopt_rates_by_global_tokens_and_recycles_neighbours():
    attention = torch.rand(1, 16, 16)
    received = attention[0].mean(0)
    chosen = received > 1.1 * received.mean()
    assert torch.allclose(rate_by_global_tokens(attention, 1.1)[0], attention[0, chosen].mean(0), atol=1e-6)
    assert torch.allclose(rate_by_global_tokens(attention, 9.0)[0], received, atol=1e-6)  # none is global: all are
    hidden = torch.randn(1, 16, 8)
    fields = {"layer": 1, "num_layers": 8, "observer": Given(inside=attention)}
    plan = planned(VFlowOpt(threshold=1.1, cell=2), hidden, 8, **fields)  # 16 / 2² recycled, 4 kept
    kept = rate_by_global_tokens(attention, 1.1)[0].topk(4).indices.tolist()
    rest = sorted(set(range(16)) - set(kept), key=lambda token: (token // 8, token % 4 // 2, token))
    groups = {token: [token] for token in kept} | {rest[i]: rest[i : i + 3] for i in range(0, 12, 3)}
    assert plan.index[0].tolist() == sorted(groups)
    for place, state in zip(plan.index[0].tolist(), (plan.merge @ hidden)[0], strict=True):
        assert torch.allclose(state, hidden[0, groups[place]].mean(0), atol=1e-6)
    later = planned(VFlowOpt(threshold=1.1, cell=2), hidden, 8, **{**fields, "layer": 3})
    assert later.merge is None and later.index[0].tolist() == sorted(
        rate_by_global_tokens(attention, 1.1)[0].topk(8).indices.tolist()
    )


def test_vflowopt_knows_the_entropy_of_codes_and_keeps_the_mean_number_of_tokens():
    ids = torch.tensor([[5, 5, 5, 5, 5, 5, 1, 2, 3]])
    entropy = measure_code_entropy(ids, (9,), True)[0]
    assert float(entropy[0]) == pytest.approx(0, abs=1e-6)  # 2 × 2 of one code
    counts = torch.tensor([6.0, 1, 1, 1]) / 9
    assert float(entropy[4]) == pytest.approx(float(-(counts * counts.log2()).sum()), abs=1e-5)
    assert order_by_cells((16,), True, 2).view(4, 4)[0].unique().numel() == 2
    sites = (1, 3, 5)
    for draw in (0.0, 0.4, 0.99):
        one, two, three = draw_shares(0.25, sites, draw)
        assert 1 >= one >= two - 1e-9 and two >= three - 1e-9 and three == 0.25
        assert one * 2 + two * 2 == pytest.approx((0.25 ** (1 / 3) + 0.25 ** (2 / 3)) * 2)


def test_vflowopt_is_calibrated_by_the_drift_of_the_answer(model, vocabulary, prompts):
    from unimodal.compression.tokens.calibration import measure_drift

    method = VFlowOpt(0.4)
    found = method.calibrate(model, vocabulary, prompts[1:2], trials=3)
    drifts = [measure_drift(each, model, vocabulary, prompts[1:2]) for each in (method, found)]
    assert drifts[1] <= drifts[0] and found.keep == 0.4


def test_biformer_routes_to_regions_by_their_mean_keys():
    asked, keys = torch.randn(1, 2, 4), torch.randn(1, 2, 10, 4)
    number = (torch.arange(10) // 4)[None, None]
    scores = score_regions(asked, keys, torch.ones(1, 1, 10, dtype=torch.bool), number)
    for head in range(2):
        for token in range(10):
            region = keys[0, head, token // 4 * 4 : token // 4 * 4 + 4].mean(0)
            assert float(scores[0, head, token]) == pytest.approx(float(asked[0, head] @ region), abs=1e-5)


class Sure(Given):
    """A head whose confidence and classes a test decides."""

    def __init__(self, sure, kind):
        super().__init__()
        self.sure = (torch.tensor([sure]), torch.tensor([kind]))

    def measure_confidence(self, span):
        return self.sure


def test_dtop_lets_sure_tokens_leave_and_keeps_the_surest_of_each_class():
    observer = Sure([0.99, 0.98, 0.97, 0.5, 0.96, 0.2], [7, 7, 7, 7, 8, 8])
    hidden = torch.randn(1, 6, 8)
    span = Span.from_states(hidden, 6, layer=2, num_layers=4, observer=observer)
    method = DToP(0.5, threshold=0.95, each=2)
    assert method.find_sites(24) == (12, 18) and method.count_kept([span], 4) == [5]
    assert DToP(0.5, threshold=0.95, each=0).count_kept([span], 4) == [2]
    assert planned(method, hidden, 5, layer=2, num_layers=4, observer=observer).index[0].tolist() == [0, 1, 3, 4, 5]
    plan = planned(method, hidden, 3, layer=2, num_layers=4, observer=observer)  # then the unsure, then the surest
    assert plan.index[0].tolist() == [1, 4, 5] and plan.back.site == 4
    assert plan.back.own[0].tolist() == [1, 0, 1, 1, 0, 0]


@torch.no_grad()
def test_what_left_early_says_what_the_head_said_when_it_left(model, vocabulary, prompts):
    ids, seen = torch.tensor([prompts[1]]), {}
    watch = model.model.layers[2].register_forward_pre_hook(
        lambda _, args: seen.update({"states": seen.get("states", args[0])})
    )
    with DToP(0.99)(model, vocabulary) as session:  # all layers see all: what the head would say there
        model(ids)
    with DToP(0.4)(model, vocabulary) as session:
        logits = model(ids).logits
    watch.remove()
    start = prompts[1].index(vocabulary.get_start_id("image")) + 1
    early = model.lm_head(model.model.norm(seen["states"]))[0, start : start + 16]
    best = early.softmax(-1).max(-1)
    left = (logits[0, start : start + 16] - early).abs().amax(-1) < 1e-5
    stayed = [place - start for place in session.kept[0]]
    assert 16 - int(left.sum()) >= len(stayed) and len(stayed) == 6 and not left[stayed].any()
    assert len(best.indices.unique()) > 1 and session.stats.tokens_after == 16


def test_clca_brings_the_means_of_the_layers_between_back(model, vocabulary, prompts):
    hidden, scores = torch.randn(1, 16, 8), torch.rand(1, 16)
    method = CLCA(0.5)
    assert method.find_sites(8) == (2, 3, 4, 5) and method.find_end(8) == 6
    spans = [Span.from_states(hidden, 1, layer=layer, num_layers=8) for layer in (2, 3, 4, 5)]
    assert method.count_kept(spans, 8) == [7, 6, 5, 4]  # with four means, eight again
    plan = planned(method, hidden, 7, layer=2, num_layers=8, observer=Given({("summary", 1): scores}))
    order = scores[0].argsort(descending=True)
    assert plan.index[0].tolist() == sorted(order[:7].tolist())
    assert plan.back.own[0].nonzero()[:, 0].tolist() == [int(order[7])]  # the others do not come back
    assert torch.allclose(plan.back.states[0, 0], hidden[0].mean(0), atol=1e-6)
    with torch.no_grad(), method(model, vocabulary) as session:  # layers 1 and 2 of 4 are between
        model(torch.tensor([prompts[1]]), use_cache=True)
    assert session.stats.tokens_after == 8
