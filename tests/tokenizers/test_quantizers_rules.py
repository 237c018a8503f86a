"""What each quantizer does by its definition: against the authors' formula written out, or vector-quantize-pytorch and
transformers side by side."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize, one_hot, sigmoid, softmax
from vector_quantize_pytorch import LFQ, ResidualVQ, SimVQ, VectorQuantize

from unimodal.tokenizers.parts.quantizers import (
    BernoulliQuantizer,
    BinarySphericalQuantizer,
    FactoredQuantizer,
    FiniteScalarQuantizer,
    IndexBackpropagationQuantizer,
    LookupFreeQuantizer,
    ProductQuantizer,
    ResidualQuantizer,
    ScalarBinQuantizer,
    SharedIndexQuantizer,
    SimVectorQuantizer,
    SplitQuantizer,
    VectorQuantizer,
    choose_factors,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spread(quantizer: VectorQuantizer) -> VectorQuantizer:
    torch.nn.init.normal_(quantizer.codebook)
    return quantizer


# ---- scalars and bits


@pytest.mark.parametrize("levels", [(8, 8, 8, 8), (7, 5, 5, 5, 5), (3, 4)])
def test_level_indices_are_the_mixed_radix_digits(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarQuantizer(levels)
    ids = torch.arange(quantizer.codebook_size)
    digits, total, basis = quantizer.to_levels(ids), torch.zeros_like(ids), 1
    for k, level in enumerate(levels):
        assert int(digits[:, k].max()) == level - 1
        total += digits[:, k] * basis
        basis *= level
    assert torch.equal(total, ids)


def test_bounded_scalars_keep_the_shape_of_the_ids_and_their_gradient() -> None:
    quantizer = FiniteScalarQuantizer((8, 8, 8, 8))
    ids = torch.randint(4096, (3, 5, 2))
    assert quantizer.to_values(ids).shape == (3, 5, 2, 4)
    z = torch.randn(2, 5, 4, requires_grad=True)
    quantized, ids = quantizer.quantize(z)
    assert torch.equal(quantizer.to_values(ids), quantized.detach())
    quantized.sum().backward()
    assert z.grad is not None and bool((z.grad > 0).all())  # the bound is monotonic


def test_signs_are_those_of_the_library_and_the_order_of_bits_is_a_choice():
    z, library = draw(2, 9, 6), LFQ(dim=6, codebook_size=64)
    values, ids, _ = library(z)
    most, least = LookupFreeQuantizer((6,), first_bit="most"), LookupFreeQuantizer((6,))
    assert torch.equal(most(z).ids[..., 0], ids) and torch.equal(most.look_up(ids[..., None]), values.detach())
    first = torch.full((1, 1, 6), -1.0)
    first[..., 0] = 1
    assert least(first).ids.item() == 1 and most(first).ids.item() == 32
    assert LookupFreeQuantizer((2, 4))(first).ids.flatten().tolist() == [1, 0]
    assert least(torch.zeros(1, 1, 6)).ids.item() == 0  # a value of 0 is bit 0


@pytest.mark.parametrize("pooled", [True, False])
def test_the_entropy_of_signs_is_that_of_the_authors(pooled):
    """WeTok's code: logits 2z·c / 0.01, E[p] over positions and groups; else group by group, added up."""
    z = draw(2, 9, 8) * 0.02
    codes = ((torch.arange(16)[:, None] >> torch.arange(4)) & 1).float() * 2 - 1
    logits = 2 * z.unflatten(-1, (2, 4)) @ codes.T / 0.01  # [B, N, G, C]
    p = softmax(logits, dim=-1)
    own = -(p * p.clamp(min=1e-20).log()).sum(-1)
    if pooled:
        average = p.mean((0, 1, 2))
        wanted = own.mean() + (average * (average + 1e-5).log()).sum()
    else:
        average = p.mean((0, 1))
        wanted = own.mean((0, 1)).sum() + (average * (average + 1e-5).log()).sum()
    quantizer = LookupFreeQuantizer((4, 4), commitment=0, entropy_weight=0.1, pool_groups=pooled).train()
    assert torch.allclose(quantizer(z).loss, 0.1 * wanted, atol=1e-5)
    assert float(quantizer.eval()(z).loss) == 0
    joint = LookupFreeQuantizer((4, 4), entropy_bits=(8,), commitment=0, entropy_weight=1, diversity=0).train()
    alone = LookupFreeQuantizer((4, 4), commitment=0, entropy_weight=1, diversity=0).train()
    assert torch.allclose(joint(z).loss, alone(z).loss, atol=1e-4)  # independent bits: H(p|z) adds up


def test_too_many_bits_for_an_entropy_are_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match="set entropy_bits to smaller groups or entropy_weight to 0"):
        LookupFreeQuantizer((20,)).train()(draw(1, 2, 20))
    with pytest.raises(ValueError, match="together 20 bits"):
        LookupFreeQuantizer((20,), entropy_bits=(9, 9))


def test_spherical_bits_are_corners_of_length_one_with_the_most_significant_first():
    quantizer = BinarySphericalQuantizer((4, 4)).train()
    z = draw(2, 9, 8, seed=1)
    found = quantizer(z)
    unit, corner = normalize(z, dim=-1), torch.where(z > 0, 1.0, -1.0) / math.sqrt(8)
    assert torch.allclose(found.values, corner, atol=1e-6)
    weights = 2 ** torch.arange(3, -1, -1)
    assert torch.equal(found.ids, ((z > 0).long().unflatten(-1, (2, 4)) * weights).sum(-1))
    # the authors' loss: analytical E[H(p|z)], H(E[p]) over groups, beta on squares added up over dimensions
    on = sigmoid(4 * unit / math.sqrt(8))
    own = -(on * on.log() + (1 - on) * (1 - on).log()).sum(-1).mean()
    codes = (((torch.arange(16)[:, None] >> torch.arange(3, -1, -1)) & 1).float() * 2 - 1) / math.sqrt(8)
    average = softmax(2 * unit.unflatten(-1, (2, 4)) @ codes.T, dim=-1).mean((0, 1))
    wanted = 0.25 * (corner - unit).square().sum(-1).mean() + 0.1 * (own + (average * average.log()).sum())
    assert torch.allclose(found.loss, wanted, atol=1e-4)


def test_bernoulli_bits_are_drawn_in_training_and_their_gradient_is_that_of_the_sigmoid():
    quantizer, z = BernoulliQuantizer((4,), temperature=0.5).train(), torch.full((1, 4000, 4), 0.3, requires_grad=True)
    found = quantizer(z, generator=torch.Generator().manual_seed(0))
    assert abs(float(found.rows.mean()) - float(sigmoid(torch.tensor(0.6)))) < 0.02
    assert torch.equal(found.values.detach(), found.rows)
    found.values.sum().backward()
    on = sigmoid(torch.tensor(0.3))
    assert torch.allclose(z.grad, (on * (1 - on)).expand_as(z), atol=1e-6)
    assert torch.allclose(found.loss, on * (1 - on))
    again = quantizer(z, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.ids, found.ids) and bool((quantizer.eval()(z).ids == 15).all())
    embedded = BernoulliQuantizer((4,), num_dims=3).eval()
    bits = (embedded.projection(draw(1, 5, 3)) > 0).float()
    assert torch.allclose(embedded(draw(1, 5, 3)).values, bits @ embedded.codebook, atol=1e-6)


# ---- tables


@pytest.mark.parametrize("search", ["euclidean", "cosine", "dot"])
def test_a_vector_becomes_the_row_that_its_search_means(search):
    quantizer, z = spread(VectorQuantizer(50, 6, search)), draw(2, 30, 6)
    rows = quantizer.codebook.detach()
    score = {
        "euclidean": -torch.cdist(z, rows),
        "cosine": torch.cosine_similarity(z.unsqueeze(2), rows, dim=-1),
        "dot": torch.einsum("bnd,cd->bnc", z, rows),
    }[search]
    found = quantizer(z)
    assert torch.equal(found.ids[..., 0], score.argmax(-1))
    assert torch.allclose(quantizer.look_up(found.ids), found.values, atol=1e-6)


def test_a_step_of_averages_is_that_of_the_library():
    """Three training steps: ids, values, commitment and the table of `VectorQuantize`."""
    library = VectorQuantize(dim=6, codebook_size=20, decay=0.9, commitment_weight=0.25, threshold_ema_dead_code=0)
    ours = VectorQuantizer(20, 6, learned_by="averages", decay=0.9)
    ours.codebook.data.copy_(library._codebook.embed[0])
    ours.upkeep.begin(ours.codebook.data)
    library.train(), ours.train()
    for step in range(3):
        z = draw(2, 30, 6, seed=step)
        values, ids, loss = library(z)
        found = ours(z)
        assert torch.equal(found.ids[..., 0], ids) and torch.allclose(found.values, values, atol=1e-6)
        assert torch.allclose(found.loss, loss.sum(), atol=1e-6)
        assert torch.allclose(ours.codebook, library._codebook.embed[0], atol=1e-6)
    assert not ours.codebook.requires_grad


def test_a_start_by_k_means_takes_real_vectors_alone_and_happens_once():
    centres = draw(6, 4, seed=3) * 10
    z = (centres[torch.arange(60) % 6] + 0.01 * draw(60, 4)).reshape(2, 30, 4)
    mask = torch.ones(2, 30, dtype=torch.bool)
    mask[1, 20:] = False
    z[1, 20:] = 1000.0
    quantizer = VectorQuantizer(6, 4, start="kmeans").train()
    found = quantizer(z, mask, generator=torch.Generator().manual_seed(5))
    assert float(quantizer.codebook.detach().abs().max()) < 100
    assert float((found.values - z)[mask].abs().max()) < 30
    before = quantizer.codebook.clone()
    quantizer(draw(2, 30, 4))
    assert torch.equal(before, quantizer.codebook)


@pytest.mark.parametrize("learned_by", ["averages", "gradient"])
def test_dead_rows_come_back(learned_by):
    """Rows far from all vectors are never chosen; with dead_share they become vectors, without they stay."""
    used = {}
    for share in (0.0, 0.1):
        quantizer = VectorQuantizer(16, 4, learned_by=learned_by, decay=0.5, dead_share=share).train()
        quantizer.codebook.data[1:] = 100 + draw(15, 4)
        if quantizer.upkeep is not None:
            quantizer.upkeep.begin(quantizer.codebook.data)
        for step in range(8):
            found = quantizer(draw(2, 64, 4, seed=step), generator=torch.Generator().manual_seed(step))
        used[share] = len(found.ids.unique())
    assert used[0.0] == 1 and used[0.1] >= 14


def test_the_threshold_of_dead_rows_grows_with_the_positions_of_a_step():
    """Equal use, with few or many positions: nothing dies."""
    for positions in (16, 1600):
        quantizer = spread(VectorQuantizer(16, 4, dead_share=0.5, decay=0.0)).train()
        before = quantizer.codebook.clone()
        quantizer(before.detach().repeat(positions // 16, 1)[None])
        assert torch.equal(quantizer.codebook, before)


def test_unused_rows_are_pulled_as_titok_pulls_them():
    quantizer = spread(VectorQuantizer(8, 4, normalize_latents=True, normalize_codes=True, pull_unused=True)).train()
    rows, z = quantizer.codebook.detach().clone(), draw(1, 20, 4)
    ids = quantizer(z).ids.flatten()
    use = 0.01 * one_hot(ids, 8).float().mean(0)
    by = torch.exp(-(use * 8 * 10) / (1 - 0.99) - 1e-3)[:, None]
    nearest = torch.cdist(normalize(z[0], dim=-1), normalize(rows, dim=-1)).argmin(0)
    assert torch.allclose(quantizer.codebook, rows * (1 - by) + z[0][nearest] * by, atol=1e-5)


def test_the_rotation_trick_keeps_the_values_and_turns_the_gradient():
    """R·‖e‖/‖z‖ with R the turn from z to e: the gradient is what a product by that matrix gives."""
    straight, turned = spread(VectorQuantizer(9, 3)), VectorQuantizer(9, 3, gradient="rotation")
    turned.load_state_dict(straight.state_dict())
    z, pull = draw(1, 4, 3).requires_grad_(), draw(1, 4, 3, seed=2)
    found = turned(z)
    assert torch.allclose(found.values, straight(z).values, atol=5e-6)
    (found.values * pull).sum().backward()
    for vector, row, gradient, of_value in zip(z[0].detach(), found.rows[0], z.grad[0], pull[0], strict=True):
        u, q = normalize(vector, dim=0), normalize(row.detach(), dim=0)
        middle = normalize(u + q, dim=0)
        turn = torch.eye(3) - 2 * torch.outer(middle, middle) + 2 * torch.outer(q, u)
        assert torch.allclose(turn @ u, q, atol=1e-5)
        assert torch.allclose(gradient, turn.T @ of_value * row.norm() / vector.norm(), atol=1e-4)


def test_sim_vq_is_that_of_the_library():
    library = SimVQ(dim=6, codebook_size=40, frozen_codebook_dim=5)
    ours = SimVectorQuantizer(40, 6, gradient="rotation", frozen_dims=5).train()
    ours.table.load_state_dict(library.state_dict())
    theirs, mine = draw(2, 9, 6).requires_grad_(), draw(2, 9, 6).requires_grad_()
    values, ids, loss = library(theirs)
    found = ours(mine)
    assert torch.equal(found.ids[..., 0], ids) and torch.allclose(found.values, values, atol=1e-6)
    assert torch.allclose(found.loss, loss, atol=1e-6)
    for value, cost in ((values, loss), (found.values, found.loss)):
        (value.square().sum() + cost).backward()
    assert torch.allclose(mine.grad, theirs.grad, atol=1e-5)
    assert torch.allclose(ours.table.code_transform.weight.grad, library.code_transform.weight.grad, atol=1e-5)


def test_index_backpropagation_is_the_formula_of_its_authors():
    """onehot = hard + softmax − sg(softmax); three distances; the entropy of logits / 0.01; all rows get a gradient."""
    quantizer = IndexBackpropagationQuantizer(12, 5, entropy_weight=0.05).train()
    z = (draw(2, 7, 5) * 0.3).requires_grad_()
    found = quantizer(z)
    (found.values.square().sum() + found.loss).backward()
    theirs, table = z.detach().clone().requires_grad_(), quantizer.codebook.detach().clone().requires_grad_()
    logits = theirs @ table.T
    soft = softmax(logits, dim=-1)
    hard = one_hot(logits.argmax(-1), 12).float()
    values, chosen = (hard - soft.detach() + soft) @ table, hard @ table
    p = softmax(logits / 0.01, dim=-1)
    average = p.mean((0, 1))
    entropy = -(p * p.clamp(min=1e-20).log()).sum(-1).mean() + (average * (average + 1e-5).log()).sum()
    loss = mse_loss(values, theirs) + mse_loss(chosen.detach(), theirs) + 0.25 * mse_loss(chosen, theirs.detach())
    loss = loss + 0.05 * entropy
    (values.square().sum() + loss).backward()
    assert torch.equal(found.ids[..., 0], logits.argmax(-1)) and torch.allclose(found.values, values, atol=1e-5)
    assert torch.allclose(found.loss, loss, atol=1e-5)
    assert torch.allclose(z.grad, theirs.grad, atol=1e-4)
    assert torch.allclose(quantizer.codebook.grad, table.grad, atol=1e-4)
    assert bool((quantizer.codebook.grad.abs().sum(-1) > 0).all())


def test_one_index_is_least_in_the_sum_of_both_distances():
    quantizer, z = SharedIndexQuantizer(30, (4, 2), weights=(1.0, 0.5)), draw(2, 9, 6)
    meaning, looks = (normalize(table, dim=-1) for table in quantizer.codebooks)
    distance = torch.cdist(normalize(z[..., :4], dim=-1), meaning).square()
    distance = distance + 0.5 * torch.cdist(normalize(z[..., 4:], dim=-1), looks).square()
    found = quantizer(z)
    assert torch.equal(found.ids[..., 0], distance.argmin(-1))
    assert torch.allclose(quantizer.look_up_part(found.ids, 1), looks[found.ids[..., 0]], atol=1e-6)


# ---- combinations


def test_residual_codes_are_those_of_the_library():
    library = ResidualVQ(dim=6, num_quantizers=3, codebook_size=32, threshold_ema_dead_code=0).eval()
    ours = ResidualQuantizer([VectorQuantizer(32, 6) for _ in range(3)]).eval()
    for level, layer in enumerate(library.layers):
        ours.book(level).codebook.data.copy_(layer._codebook.embed[0])
    z = draw(2, 9, 6)
    values, ids, _ = library(z)
    found = ours(z)
    assert torch.equal(found.ids, ids) and torch.allclose(found.values, values, atol=1e-6)
    assert torch.allclose(ours.look_up(ids), library.get_output_from_indices(ids), atol=1e-6)


def test_a_prefix_of_residual_codes_decodes_and_more_is_nearer():
    torch.manual_seed(0)
    z = draw(4, 50, 6)
    quantizer = ResidualQuantizer([VectorQuantizer(64, 6, start="kmeans") for _ in range(4)]).train()
    quantizer(z)
    ids = quantizer.eval().requires_grad_(False)(z).ids
    errors = [float((quantizer.look_up(ids[..., :count]) - z).square().mean()) for count in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True) and errors[3] < 0.5 * errors[0]
    with pytest.raises(ValueError, match="codes of 4 books; got 5"):
        quantizer.look_up(torch.zeros(1, 3, 5, dtype=torch.int64))


def test_items_keep_levels_of_their_own_and_teach_no_others():
    quantizer = ResidualQuantizer([VectorQuantizer(8, 3, learned_by="averages") for _ in range(3)], dropout=1.0).train()
    assert set(quantizer.draw_kept(100, torch.Generator().manual_seed(0)).tolist()) == {1, 2, 3}
    before = [quantizer.book(level).upkeep.counts.clone() for level in range(3)]
    found = quantizer(draw(2, 5, 3), kept=torch.tensor([1, 2]))
    kept = quantizer.eval()(draw(2, 5, 3), kept=torch.tensor([1, 2]))
    assert torch.equal(found.ids[..., 0], kept.ids[..., 0])
    assert [not torch.equal(quantizer.book(level).upkeep.counts, before[level]) for level in range(3)] == [1, 1, 0]
    steps = quantizer.look_up_levels(kept.ids)
    assert torch.allclose(kept.rows[0], steps[0, 0]) and torch.allclose(kept.rows[1], steps[1, 1], atol=1e-6)


def test_a_shared_book_learns_once_from_all_levels():
    """DualToken's and RQ-VAE's codebook: one table, one step of averages over the residues of every level."""
    table = spread(VectorQuantizer(8, 3, learned_by="averages", decay=0.5))
    table.upkeep.begin(table.codebook.data)
    quantizer = ResidualQuantizer([table], num_levels=2).train()
    z, rows = draw(1, 20, 3), table.codebook.detach().clone()
    found = quantizer(z)
    left = z - rows[found.ids[..., 0]]
    assert torch.equal(found.ids[..., 1], torch.cdist(left, rows).argmin(-1))
    assert torch.allclose(table.upkeep.counts, 0.5 + 0.5 * found.ids.flatten().bincount(minlength=8))
    assert sum(name.endswith("codebook") for name in quantizer.state_dict()) == 1


def test_a_product_is_its_parts_side_by_side_and_they_keep_the_same_levels():
    parts = [spread(VectorQuantizer(16, 4)), LookupFreeQuantizer((3,))]
    z = draw(2, 9, 7)
    found, first, second = ProductQuantizer(parts)(z), parts[0](z[..., :4]), parts[1](z[..., 4:])
    assert torch.equal(found.ids, torch.cat([first.ids, second.ids], -1))
    assert torch.allclose(found.loss, (first.loss + second.loss) / 2)
    pair = [ResidualQuantizer([VectorQuantizer(8, 3) for _ in range(3)], dropout=1.0) for _ in range(2)]
    dual = ProductQuantizer(pair)
    assert dual.num_levels == 3 and dual.draw_kept(5).shape == (5,)
    with pytest.raises(ValueError, match="all 6 groups; got 3"):
        dual.look_up(torch.zeros(1, 1, 3, dtype=torch.int64))


def test_a_split_is_that_of_mimi():
    from transformers import MimiConfig
    from transformers.models.mimi.modeling_mimi import MimiSplitResidualVectorQuantizer

    config = MimiConfig(codebook_size=16, codebook_dim=4, vector_quantization_hidden_dimension=4, hidden_size=6,
                        num_quantizers=4, num_semantic_quantizers=1)  # fmt: skip
    theirs = MimiSplitResidualVectorQuantizer(config).eval()
    halves = (theirs.semantic_residual_vector_quantizer, theirs.acoustic_residual_vector_quantizer)
    for half in halves:
        for layer in half.layers:
            layer.codebook.embed_sum.normal_()
    ours = SplitQuantizer(*(ResidualQuantizer([VectorQuantizer(16, 4) for _ in half.layers]) for half in halves), 6)
    maps = ((ours.semantic_in, ours.semantic_out), (ours.rest_in, ours.rest_out))
    for half, part, (into, out) in zip(halves, (ours.semantic, ours.rest), maps, strict=True):
        into.weight.data.copy_(half.input_proj.weight[..., 0])
        out.weight.data.copy_(half.output_proj.weight[..., 0])
        for level, layer in enumerate(half.layers):
            part.book(level).codebook.data.copy_(layer.codebook.embed)
    z = draw(2, 9, 6)
    codes = theirs.encode(z.transpose(1, 2))  # [G, B, N]
    found = ours.eval()(z)
    assert torch.equal(found.ids, codes.permute(1, 2, 0))
    for count in (1, 2, 4):
        wanted = theirs.decode(codes[:count].transpose(0, 1)).transpose(1, 2)
        assert torch.allclose(ours.look_up(found.ids[..., :count]), wanted, atol=1e-5)


@pytest.mark.parametrize("levels, bound", [(64, 5.0), (8, 9.0)])
def test_bins_of_scalars_stand_for_their_means(levels, bound):
    """TokenBridge's code: equal probabilities, cut off at 3 deviations, (φ(a) − φ(b)) / (Φ(b) − Φ(a)), the nearest."""
    quantizer = ScalarBinQuantizer(3, levels, -bound, bound)
    normal = torch.distributions.Normal(0.0, 1.0)
    borders = normal.icdf(torch.linspace(0, 1, levels + 1)).clamp(-3, 3)
    density = normal.log_prob(borders).exp()
    means = (density[:-1] - density[1:]) / (normal.cdf(borders[1:]) - normal.cdf(borders[:-1]))
    assert torch.allclose(quantizer.make_table()[:, 0], means / 3 * bound, atol=1e-3)
    z = draw(2, 50, 3) * bound / 2
    assert torch.equal(quantizer(z).ids, (z[..., None] - quantizer.make_table()[:, 0]).abs().argmin(-1))
    assert quantizer(torch.tensor([[[-99.0, 0.01, 99.0]]])).ids.flatten().tolist() == [0, levels // 2, levels - 1]


def test_bins_are_fitted_to_real_data_and_are_then_used_alike():
    z = draw(4, 5000, 2) * torch.tensor([3.0, 0.1]) + torch.tensor([10.0, -2.0])
    quantizer, mask = ScalarBinQuantizer(2, 16), torch.ones(4, 5000, dtype=torch.bool)
    mask[3] = False
    z[3] = 1e6
    quantizer.fit(z, mask)
    found = quantizer(z)
    for group in range(2):
        share = found.ids[:3, :, group].flatten().bincount(minlength=16) / 15000
        assert float((share - 1 / 16).abs().max()) < 0.02
    error = (found.values - z)[:3].square().mean((0, 1)) / torch.tensor([9.0, 0.01])
    assert float(error.max()) < 0.03
    with pytest.raises(ValueError, match="differ in every dimension"):
        quantizer.fit(torch.zeros(1, 5, 2))


def test_a_large_code_is_split_in_groups_and_joined():
    flat = LookupFreeQuantizer((18,), entropy_weight=0)
    pair, z = FactoredQuantizer(flat, (64, 4096)), draw(2, 9, 18)
    assert torch.equal(pair(z).ids, LookupFreeQuantizer((6, 12), entropy_weight=0)(z).ids)
    assert torch.equal(pair(z).ids[..., 0] + 64 * pair(z).ids[..., 1], flat(z).ids[..., 0])
    with pytest.raises(ValueError, match="multiply to 262144"):
        FactoredQuantizer(flat, (6, 12))


def test_factors_are_few_and_near_each_other():
    assert choose_factors(262_144) == (512, 512) and choose_factors(64_000) == (64_000,)
    assert choose_factors(2**40, 4096) == (1024, 1024, 1024, 1024)
    with pytest.raises(ValueError, match="prime factor 65537, above 65536"):
        choose_factors(2 * 65_537)
