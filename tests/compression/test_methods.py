"""The defining property of every method on tokens, on states made for it."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from unimodal.compression import METHODS, Compressor, Span
from unimodal.compression.tokens.centerclip import CenterCLIP, find_medoids
from unimodal.compression.tokens.choosing import choose_spread_out, compute_cosines
from unimodal.compression.tokens.density import find_density_peaks
from unimodal.compression.tokens.divprune import DivPrune
from unimodal.compression.tokens.document_correlation import DocumentCorrelation, divide_budget, measure_density
from unimodal.compression.tokens.downsample import Downsample
from unimodal.compression.tokens.fastv import FastV
from unimodal.compression.tokens.globalcom import GlobalCom, compute_crop_ratios, find_crops, sum_regions
from unimodal.compression.tokens.grids import allot, average_line, find_grid, interpolate_line
from unimodal.compression.tokens.m3 import M3, number_windows
from unimodal.compression.tokens.novelty import Novelty
from unimodal.compression.tokens.pooling import Pooling
from unimodal.compression.tokens.ppe import PPE, choose_members, count_neighbours
from unimodal.compression.tokens.prefix import Prefix
from unimodal.compression.tokens.pvc import PVC, ProgressiveEncoder
from unimodal.compression.tokens.random_tokens import RandomTokens
from unimodal.compression.tokens.stride import Stride
from unimodal.compression.tokens.summary_query import SummaryQuery
from unimodal.compression.tokens.todre import ToDRE
from unimodal.compression.tokens.token_transforming import TokenTransforming
from unimodal.compression.tokens.tokenflex import FlexProjector, TokenFLEX
from unimodal.compression.tokens.tome import ToMe
from unimodal.compression.tokens.transprune import TransPrune

#: what acts before the decoder, and so plans by the states alone; the count of M3 is its own
EMBEDDING_ONLY = [
    name
    for name, method in METHODS.items()
    if issubclass(method, Compressor) and not method.is_learned and name != "m3" and 0 in method(0.5).find_sites(8)
]


class Given:
    """Attention and transitions that a test decides."""

    def __init__(self, attention=None, changed=None, keys=None, inside=None):
        self.attention, self.changed, self.keys, self.inside = attention or {}, changed, keys, inside

    def measure_attention_inside(self, span, layer):
        return self.inside

    def measure_keys(self, span, layer):
        return self.keys

    def measure_attention(self, span, query, layer):
        return self.attention[query, layer]

    def measure_transitions(self, span):
        return self.changed


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def states(num_rows=2, num=16, width=8):
    return torch.randn(num_rows, num, width)


def planned(method, hidden, count, **fields):
    return method.plan(hidden, Span.from_states(hidden, count, **fields))


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize("name", EMBEDDING_ONLY)
@pytest.mark.parametrize("count", [1, 5, 9, 15])
def test_a_plan_keeps_what_it_is_told_in_order(name, count):
    method = METHODS[name](0.5)
    for modality, segments in (("image", (16,)), ("image", (4, 12)), ("audio", (16,)), ("video", (4, 4, 8))):
        hidden = states()
        plan = planned(method, hidden, count, segments=segments, modality=modality)
        assert plan.index.shape == (2, count) and (plan.index.diff(dim=1) > 0).all()
        assert plan.index.min() >= 0 and plan.index.max() < 16
        if plan.merge is not None:
            assert plan.merge.shape == (2, count, 16)
            assert torch.allclose(plan.merge.sum(-1), torch.ones(2, count), atol=1e-5)  # rows are means
        if plan.sizes is not None:
            assert torch.allclose(plan.sizes.sum(-1), torch.full((2,), 16.0), atol=1e-4)  # no token is lost or doubled


# ---- baselines


def test_random_depends_on_seed_and_codes_only():
    hidden = states(3)
    ids = torch.tensor([range(16), range(1, 17), range(16)])

    def draw(seed):
        span = Span.from_states(hidden, 5)
        span.ids = ids
        return RandomTokens(seed=seed).plan(hidden, span).index

    first = draw(0)
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1]) and not torch.equal(first, draw(1))
    seen = torch.cat([draw(seed)[0] for seed in range(200)]).bincount(minlength=16)
    assert seen.min() > 200 * 5 / 16 * 0.6  # every token has its chance


def test_prefix_keeps_the_first_tokens_in_their_order():
    for count in (1, 5, 16):
        assert planned(Prefix(), states(), count).index.tolist() == [list(range(count))] * len(states())


def test_stride_is_even():
    assert planned(Stride(), states(), 4).index[0].tolist() == [2, 6, 10, 14]
    assert set(planned(Stride(), states(), 6).index[0].diff().tolist()) <= {2, 3}


def test_pooling_averages_squares_of_a_raster_and_stretches_of_a_line():
    hidden = states()
    raster = planned(Pooling(), hidden, 4)
    squares = F.avg_pool2d(hidden.transpose(1, 2).reshape(2, 8, 4, 4), 2).flatten(2).transpose(1, 2)
    assert torch.allclose(raster.merge @ hidden, squares, atol=1e-6) and (raster.sizes == 4).all()
    line = planned(Pooling(), hidden, 4, modality="audio")
    assert torch.allclose(line.merge @ hidden, hidden.view(2, 4, 4, 8).mean(2), atol=1e-6)
    runs = planned(Pooling(), hidden, 8, segments=(4, 12), modality="audio")
    assert (runs.merge[0, :2, 4:] == 0).all() and (runs.merge[0, 2:, :4] == 0).all()  # runs do not mix


def test_downsampling_interpolates():
    hidden = torch.arange(16.0).view(1, 16, 1)
    plan = planned(Downsample(), hidden, 4, modality="audio")
    assert plan.sizes is None
    assert torch.allclose((plan.merge @ hidden)[0, :, 0], torch.tensor([1.5, 5.5, 9.5, 13.5]))
    picture = states(1)
    small = planned(Downsample(), picture, 4).merge @ picture
    grid = picture.transpose(1, 2).reshape(1, 8, 4, 4)
    expected = F.interpolate(grid, size=(2, 2), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    assert torch.allclose(small, expected, atol=1e-5)


def test_windows():
    assert allot(10, [8, 56]) == [1, 9] and allot(5, [3, 3, 3]) == [2, 2, 1] and sum(allot(7, [1, 1, 9])) == 7
    assert find_grid(4, (4, 4)) == (2, 2) and find_grid(6, (4, 4)) == (2, 3) and find_grid(7, (8, 8)) is None
    for num, count in itertools.product((5, 16, 56), (1, 3, 5)):
        for matrix in (average_line(num, count), interpolate_line(num, count)):
            assert matrix.shape == (count, num) and torch.allclose(matrix.sum(1), torch.ones(count))


# ---- merging


def test_tome_merges_the_most_similar_pairs_first():
    hidden = torch.eye(8)[None].repeat(1, 1, 1)
    hidden[0, 5] = hidden[0, 2]  # an even and an odd place
    plan = planned(ToMe(), hidden, 7)
    assert plan.index[0].tolist() == [0, 1, 3, 4, 5, 6, 7]  # the even one went into the odd one
    assert plan.sizes[0].tolist() == [1, 1, 1, 1, 2, 1, 1]
    assert plan.merge[0, 4].tolist() == [0, 0, 0.5, 0, 0, 0.5, 0, 0]


@pytest.mark.parametrize("num", [16, 15, 9])
def test_tome_goes_on_with_the_order_of_the_round_before(num):
    """The published order, written out with lists: what was not merged, strongest tie first, then the odd ones."""
    hidden = states(1, num)
    groups = [[token] for token in range(num)]
    while len(groups) > 2:
        means = torch.stack([hidden[0, group].mean(0) for group in groups])
        even, odd = groups[::2], [list(group) for group in groups[1::2]]
        ties = compute_cosines(means[None, ::2], means[None, 1::2])[0]
        order = sorted(range(len(even)), key=lambda place: -float(ties[place].max()))
        merged = order[: min(len(groups) - 2, len(groups) // 2)]
        for place in merged:
            odd[int(ties[place].argmax())] += even[place]
        groups = [even[place] for place in order if place not in merged] + odd
    plan = planned(ToMe(), hidden, 2)
    found = [row.nonzero()[:, 0].tolist() for row in plan.merge[0]]
    assert sorted(found) == sorted(sorted(group) for group in groups)


def test_tome_weighs_by_size_over_rounds():
    """A round merges at most half, so 16 → 2 takes three; what is left is the mean of its members."""
    hidden = states(1)
    plan = planned(ToMe(), hidden, 2)
    belongs = plan.merge * plan.sizes[..., None]
    assert torch.allclose(belongs, belongs.round(), atol=1e-5)  # every member with weight 1 / size
    assert torch.allclose(belongs.sum(1), torch.ones(1, 16), atol=1e-5)
    again = ToMe().plan(hidden, Span(hidden, torch.zeros(1, 16), torch.full((1, 16), 3.0), count=2))
    assert torch.allclose(again.sizes, plan.sizes * 3) and torch.allclose(again.merge, plan.merge, atol=1e-6)


def test_tome_compares_keys_in_every_layer():
    hidden, keys = states(1), states(1, width=4)
    plan = planned(ToMe(metric="keys"), hidden, 9, layer=1, observer=Given(keys=keys))
    assert torch.equal(plan.merge, planned(ToMe(), keys, 9).merge)
    every = ToMe(0.25, metric="keys", every_layer=True)
    assert every.find_sites(4) == (1, 2, 3) and every.find_watched_layers(4) == (0, 1, 2)
    spans = [Span.from_states(states(1, num), num, layer=layer) for layer, num in ((1, 16), (2, 12), (3, 8))]
    for span in spans:
        span.original = 16
    assert [every.count_kept([span], 4)[0] for span in spans] == [12, 8, 4]
    for wrong in ({"metric": "values"}, {"metric": "keys", "layer": 0}, {"layer": -1}):
        with pytest.raises(ValueError):
            ToMe(**wrong)


def test_token_transforming_is_many_to_many_and_becomes_merging_when_cold():
    hidden = states(1)
    warm = planned(TokenTransforming(temperature=0.5), hidden, 4)
    given = warm.merge * warm.sizes[..., None]
    assert (given > 1e-4).all()  # dense: each token goes to all, each row has them all
    assert torch.allclose(given.sum(1), torch.ones(1, 16), atol=1e-5)
    cold = planned(TokenTransforming(temperature=1e-4), hidden, 4)
    given = cold.merge * cold.sizes[..., None]
    nearest = compute_cosines(hidden)[0, cold.index[0]].argmax(0)
    assert torch.equal(given[0].round(), F.one_hot(nearest, 4).T.float())


def test_m3_scales_are_nested():
    """A coarser token is the mean of finer ones, on a raster, on a line, and beside each other."""
    for segments, is_raster in (((64,), True), ((8, 56), False), ((64, 8), True), ((11,), False)):
        finer = number_windows(segments, 0, is_raster)
        assert finer.tolist() == list(range(sum(segments)))
        for scale in (1, 2, 3):
            coarser = number_windows(segments, scale, is_raster)
            for window in coarser.unique():  # windows are unions of windows
                inside = finer[coarser == window].unique()
                assert set(inside.tolist()).isdisjoint(finer[coarser != window].tolist())
            assert coarser.max() < finer.max() or len(segments) == coarser.max() + 1
            finer = coarser
    assert torch.equal(number_windows((64,), 1, True).view(8, 8)[:2, :2], torch.zeros(2, 2, dtype=torch.int64))


@pytest.mark.parametrize(("keep", "count"), [(1.0, 64), (0.5, 32), (0.3, 16), (0.25, 16), (0.13, 8)])
def test_m3_takes_the_finest_scale_that_fits(keep, count):
    hidden = states(1, 64)
    span = Span.from_states(hidden, 64, segments=(8, 56))
    assert M3(keep).count_kept([span], 4) == [count]
    if count < 64:
        plan = planned(M3(keep), hidden, count, segments=(8, 56))
        step = 64 // count
        assert torch.allclose(plan.merge @ hidden, hidden.view(1, count, step, 8).mean(2), atol=1e-6)


def test_tokenflex_pools_to_any_number_and_draws_one_for_each_step():
    hidden, generator = states(), torch.Generator().manual_seed(0)
    flex = TokenFLEX(projector=FlexProjector(8))
    for count in (2, 4, 7):
        pooled = planned(Pooling(), hidden, count)
        plan = planned(flex, hidden, count)
        assert plan.sizes is None
        assert torch.allclose(plan.states, pooled.merge @ hidden, atol=1e-6)  # an untrained projector is pooling
    drawn = [flex.draw(generator) for _ in range(60)]
    assert {d.keep for d in drawn} == {0.25, 0.5, 1.0} and all(d.projector is flex.projector for d in drawn)


def test_ppe_clusters_and_keeps_positions_of_its_last_members():
    centres = torch.eye(8)[:3] * 10
    hidden = (centres[torch.tensor([0] * 6 + [1] * 5 + [2] * 5)] + 0.1 * torch.randn(16, 8))[None]
    plan = planned(PPE(num_positions=4, counts_sizes=True), hidden, 3)
    assert plan.sizes[0].tolist() == [6, 5, 5] and planned(PPE(), hidden, 3).sizes is None
    assert plan.members[0].tolist() == [[5, 4, 3, 2], [10, 9, 8, 7], [15, 14, 13, 12]]
    index, assigned = find_density_peaks(torch.zeros(1, 6, 4), 4, 3)  # equal tokens: as many clusters as asked
    assert len(assigned.unique()) == 4 and torch.equal(assigned.gather(1, index), torch.arange(4)[None])
    assert choose_members(torch.tensor([[0, 1, 1, 0]]), 2, 5).tolist() == [[[3, 0, 3, 0, 3], [2, 1, 2, 1, 2]]]
    assert [count_neighbours(count) for count in (1, 2, 4, 5, 64)] == [1, 1, 2, 5, 5]


# ---- choosing by embeddings


def test_divprune_takes_the_farthest_from_its_nearest_chosen():
    """The greedy choice step by step; by the sum of distances others are chosen."""
    hidden = states(1, 12)
    distance = 1 - compute_cosines(hidden)[0]
    alone = distance.masked_fill(torch.eye(12, dtype=torch.bool), torch.inf)
    chosen = [int(alone.amin(1).argmax())]
    while len(chosen) < 6:
        left = [token for token in range(12) if token not in chosen]
        chosen.append(max(left, key=lambda token: float(distance[token, chosen].min())))
    assert planned(DivPrune(), hidden, 6).index[0].tolist() == sorted(chosen)
    summed = choose_spread_out(distance[None], torch.tensor(chosen[:1]), 6, torch.add)[0].tolist()
    assert summed != sorted(chosen)


def test_divprune_is_within_twice_of_the_best_spread():
    hidden = states(1, 9)
    distance = 1 - compute_cosines(hidden)[0]

    def spread(chosen):
        return min(float(distance[a, b]) for a, b in itertools.combinations(chosen, 2))

    index = planned(DivPrune(), hidden, 4).index[0].tolist()
    best = max(spread(chosen) for chosen in itertools.combinations(range(9), 4))
    worse = [spread(chosen) for chosen in itertools.combinations(range(9), 4)]
    assert spread(index) >= best / 2 and spread(index) > sorted(worse)[int(0.9 * len(worse))]
    lonely = torch.where(torch.eye(9, dtype=torch.bool), 9.0, distance).amin(0).argmax()
    assert int(lonely) in index


def test_divprune_never_keeps_a_copy_while_something_else_is_left():
    hidden = torch.eye(8)[[0, 0, 0, 1, 1, 2, 3, 3]][None]
    kept = hidden[0, planned(DivPrune(), hidden, 4).index[0]].argmax(-1)
    assert sorted(kept.tolist()) == [0, 1, 2, 3]


def test_todre_takes_the_largest_summed_distance_and_drops_all_late():
    hidden = states(1, 10)
    distance = 1 - compute_cosines(hidden)[0]
    chosen = [int(distance.sum(-1).argmax())]
    while len(chosen) < 4:
        sums = distance[chosen].sum(0)
        sums[chosen] = -1
        chosen.append(int(sums.argmax()))
    assert planned(ToDRE(), hidden, 4).index[0].tolist() == sorted(chosen)
    assert (
        ToDRE(0.5).find_sites(8) == (0, 6, 7)
        and ToDRE(1.0).find_sites(8) == (0,)
        and ToDRE(0.5, relevance=0).find_sites(8) == (0,)
    )
    late = Span.from_states(hidden, 10, layer=6)
    assert ToDRE(0.5, relevance=1.0).count_kept([late], 8) == [0] and planned(ToDRE(), hidden, 0).index.shape == (1, 0)
    for mass, count in ((0.04, 10), (0.01, 0)):  # attention of the words to ten tokens
        late.observer = Given({("after", 5): torch.full((1, 10), mass)})
        assert ToDRE(0.5, relevance=0.2).count_kept([late], 8) == [count]


def test_centerclip_keeps_medoids_of_every_segment():
    """Segments of two frames: a second frame that repeats the first adds nothing."""
    groups = torch.eye(8)[:4] * 20
    noise = torch.randn(24, 8) * 0.3
    hidden = (groups[torch.tensor([0] * 5 + [1] * 7 + [2] * 6 + [3] * 6)] + noise)[None]
    for segments, frames in (((12, 12), 1), ((6, 6, 6, 6), 2), ((6, 6, 6, 6, 24), 2)):
        whole = hidden if len(segments) < 5 else torch.cat([hidden, torch.zeros(1, 24, 8)], 1)
        count = 4 if len(segments) < 5 else 8
        plan = planned(CenterCLIP(frames=frames), whole, count, segments=segments, modality="video")
        expected = []
        for start, end in ((0, 5), (5, 12), (12, 18), (18, 24)):
            part = hidden[0, start:end]
            expected.append(start + int(torch.cdist(part, part).sum(0).argmin()))
        assert plan.index[0, :4].tolist() == expected
    still = torch.cat([hidden[:, :12], hidden[:, :12]], 1)
    kept = planned(CenterCLIP(), still, 2, segments=(12, 12), modality="video").index[0] % 12
    assert sorted(int(token >= 5) for token in kept) == [0, 1]  # one of each group, not one of each frame
    index = find_medoids(hidden, 5)[0]
    distance = torch.cdist(hidden[0], hidden[0])
    near = distance[index].argmin(0)
    for cluster, medoid in enumerate(index):  # a fixed point: no member would be the better centre
        inside = (near == cluster).nonzero()[:, 0]
        assert distance[medoid, inside].sum() <= distance[inside][:, inside].sum(0).min() + 1e-4


def test_documents_give_repeated_parts_few_tokens():
    blank = torch.ones(1, 16, 8) + 0.01 * torch.randn(1, 16, 8)
    dense = states(1)
    half = torch.cat([blank[:, :8], dense[:, :8]], 1)
    assert measure_density(blank, 0.8, 0.25) == 1 / 16 and measure_density(dense, 0.8, 0.25) == 1.0
    assert measure_density(half, 0.8, 0.25) == 0.5
    spans = [Span.from_states(h, 16) for h in (blank, dense, half)]
    counts = DocumentCorrelation(0.5).count_kept(spans, 4)
    assert counts[0] < counts[2] < counts[1] and abs(sum(counts) - 24) <= 1
    assert DocumentCorrelation(0.5).count_kept(spans[:1], 4) == [8]  # alone it has the whole budget
    assert divide_budget(30, [1, 1, 100], [16, 16, 16]) == [7, 7, 16]
    attention = torch.tensor([[1.0, 2, 3, 4] * 4]) ** 4
    fields = {"layer": 1, "observer": Given({("summary", 0): attention})}
    best = planned(DocumentCorrelation(samples=False), dense, 4, **fields).index[0]
    assert best.tolist() == [3, 7, 11, 15]
    seen = torch.zeros(16)
    for seed in range(200):  # drawn in proportion to the summary's attention
        seen[planned(DocumentCorrelation(seed=seed), dense, 1, **fields).index[0]] += 1
    share = seen.view(4, 4).sum(0) / 200
    assert torch.allclose(share, torch.tensor([1.0, 16, 81, 256]) / 354, atol=0.08)


def test_novelty_of_a_still_scene_fills_in_what_is_missing():
    """A static clip chooses over its frames what the picture chooses at once, and nothing twice."""
    scene = states(1, 12)
    clip = scene.repeat(1, 4, 1)
    chosen = planned(Novelty(), clip, 8, segments=(12,) * 4, modality="video").index[0]
    assert [int(((chosen // 12) == f).sum()) for f in range(4)] == [2] * 4  # equal shares
    places = (chosen % 12).tolist()
    assert len(set(places)) == 8
    picture = planned(Novelty(repeats=4), scene, 8).index[0]
    assert sorted(places) == picture.tolist()
    moving = torch.cat([scene, torch.cat([scene[:, :6], states(1, 6)], 1)], 1)
    index = planned(Novelty(), moving, 12, segments=(12, 12), modality="video").index[0].tolist()
    assert sum(i >= 18 for i in index) > sum(12 <= i < 18 for i in index)  # the second frame adds what is new


def test_pvc_averages_frames_that_its_encoder_made_different():
    """Untrained, a still clip says the same in every frame; an encoder that knows the frame makes them different."""
    encoder, scene = ProgressiveEncoder(8), states(1, 16)
    plain = planned(PVC(repeats=2, encoder=encoder), scene, 8)
    assert torch.allclose(plain.states[:, :4], plain.states[:, 4:], atol=1e-6)
    assert torch.allclose(plain.states[:, :4], planned(Pooling(), scene, 4).merge @ scene, atol=1e-6)
    torch.nn.init.normal_(encoder.out.weight)
    torch.nn.init.normal_(encoder.frame.weight)
    learned = planned(PVC(repeats=2, encoder=encoder), scene, 8)
    assert not torch.allclose(learned.states[:, :4], learned.states[:, 4:], atol=1e-2)
    clip = torch.cat([scene, states(1, 16)], 1)
    frames = planned(PVC(encoder=encoder), clip, 8, segments=(16, 16), modality="video").states
    changed = planned(
        PVC(encoder=encoder), clip + torch.cat([scene * 0, scene], 1), 8, segments=(16, 16), modality="video"
    )
    assert torch.allclose(frames[:, :4], changed.states[:, :4], atol=1e-5)  # causal over frames


# ---- choosing by attention


def test_fastv_keeps_what_the_last_token_attends_to():
    scores = torch.rand(2, 16)
    plan = planned(FastV(layer=3), states(), 5, layer=3, observer=Given({("last", 2): scores}))
    assert torch.equal(plan.index, scores.topk(5).indices.sort(-1).values)
    assert (
        FastV(layer=2).find_sites(7) == (2,)
        and FastV(layer=2).find_watched_layers(7) == (1,)
        and FastV().find_sites(2) == (1,)
    )
    with pytest.raises(ValueError, match="at least 1"):
        FastV(layer=0)


def test_summary_query_sums_layers_and_keeps_the_order():
    layers = {("summary", layer): torch.rand(2, 16) for layer in range(3)}
    plan = planned(SummaryQuery(layer=3), states(), 6, layer=3, observer=Given(layers))
    assert torch.equal(plan.index, sum(layers.values()).topk(6).indices.sort(-1).values)
    assert SummaryQuery(layer=3).find_watched_layers(8) == (0, 1, 2)


def test_transprune_joins_transitions_and_attention_in_stages():
    changed, attention = torch.rand(1, 16), torch.rand(1, 16)
    source = Given({("after", 2): attention}, changed)  # of the layer behind the stage
    scores = changed / changed.sum() + attention / attention.sum()  # 1 : 1
    plan = planned(TransPrune(), states(1), 5, layer=2, observer=source)
    assert torch.equal(plan.index, scores.topk(5).indices.sort(-1).values)
    plan = planned(TransPrune(attention_weight=0.0), states(1), 5, layer=2, observer=source)
    assert torch.equal(plan.index, changed.topk(5).indices.sort(-1).values)  # transitions alone are a criterion
    assert TransPrune().find_sites(32) == (7, 9, 12) and TransPrune().find_changing_layers(32) == tuple(range(6, 12))
    for keep, expected in ((0.125, [56, 40, 8]), (0.5, [59, 50, 32])):
        spans = [Span.from_states(states(1, 64), 64, layer=layer) for layer in (7, 9, 12)]
        assert [TransPrune(keep).count_kept([span], 32)[0] for span in spans] == expected


def test_transitions_are_growth_times_turn():
    """Of a module that turns one token only, and of one that lengthens one only."""
    from types import SimpleNamespace

    from unimodal.compression.running.transitions import note_transitions

    given = torch.tensor([[[1.0, 0.0]] * 4])
    stream = SimpleNamespace(valid=torch.tensor([[True, True, True, False]]), changed=None)  # the last is padding
    made = given.clone()
    made[0, 1] = torch.tensor([0.0, 1.0])
    made[0, 2] *= 3
    note_transitions(stream, (given,), {}, made)
    turn = torch.tensor([0.0, 1.0, 0.0]).softmax(0)
    assert torch.allclose(stream.changed[0], torch.cat([turn * torch.tensor([1.0, 1.0, 3.0]), torch.zeros(1)]))
    note_transitions(stream, (given,), {}, (made, None))
    assert torch.allclose(stream.changed[0, :3], 2 * turn * torch.tensor([1.0, 1.0, 3.0]))  # summed over modules


def test_globalcom_gives_crops_budgets_by_the_thumbnail():
    scores = torch.zeros(16)
    scores[[0, 1, 4, 5]] = 10.0  # the first of 2×2 crops
    thumbnail, *crops = (
        Span.from_states(states(1), 16, layer=1, observer=Given({("summary", 0): row[None]}))
        for row in (scores, *torch.rand(4, 16))
    )
    spans, method = [thumbnail, *crops], GlobalCom(0.5, grid=(2, 2))
    counts = method.count_kept(spans, 4)
    assert counts[0] == 8 and counts[1] > counts[2] == counts[3] == counts[4]
    ratios = compute_crop_ratios(0.5, torch.tensor([40.0, 0.0, 0.0, 0.0]))
    p = torch.tensor([4.0, 0, 0, 0]).softmax(0)
    assert torch.allclose(ratios, (0.5 * (1 + p - 0.25)).clamp(max=1)) and abs(float(ratios.mean()) - 0.5) < 1e-6
    assert sum_regions(scores, (2, 2)).tolist() == [40, 0, 0, 0]
    hints = method.give_hints(spans)
    whole = F.interpolate(scores.view(1, 1, 4, 4), size=(8, 8), mode="bilinear", align_corners=False)[0, 0]
    for hint, (row, column) in zip(hints[1:], ((0, 0), (0, 4), (4, 0), (4, 4)), strict=True):
        assert torch.allclose(hint[0], whole[row : row + 4, column : column + 4].flatten())
    assert (hints[0] == 0).all()
    local = crops[0].measure_attention("summary")
    plan = planned(method, states(1), 5, layer=1, observer=crops[0].observer)
    assert torch.equal(plan.index, local.topk(5).indices.sort(-1).values)


def test_a_second_picture_is_no_crop_unless_it_is_declared():
    scores = torch.rand(7, 16)
    spans = [Span.from_states(states(1), 16, layer=1, observer=Given({("summary", 0): row[None]})) for row in scores]
    assert GlobalCom(0.5).count_kept(spans, 4) == [8] * 7
    assert all((hint == 0).all() for hint in GlobalCom(0.5).give_hints(spans))
    assert find_crops(spans, (1, 2)) == [(0, [1, 2]), (3, [4, 5])]  # and one is left over
    assert find_crops(spans, (3, 3)) == []
    with pytest.raises(ValueError, match="grid is"):
        GlobalCom(grid=(0, 2))


@pytest.mark.sweep
@pytest.mark.parametrize("name", EMBEDDING_ONLY)
def test_equal_tokens_are_no_trouble(name):
    """Codes repeat: distances of nothing, ties everywhere, and still as many different tokens as asked for."""
    method = METHODS[name](0.5)
    hidden = states(1, 3)[:, [0] * 9 + [1] * 5 + [2] * 2].repeat(2, 1, 1)
    for count in (1, 7, 15):
        plan = planned(method, hidden, count)
        assert plan.index.shape == (2, count) and (plan.index.diff(dim=1) > 0).all()
        assert plan.merge is None or torch.isfinite(plan.merge).all()
