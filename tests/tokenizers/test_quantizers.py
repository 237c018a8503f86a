"""What every quantizer promises, over all of them: ids and values are inverse, autocast and padding change nothing, a
batch gives what its items give, and the gradient arrives."""

from collections.abc import Mapping

import pytest
import torch

from unimodal.tokenizers.parts.quantizers import QUANTIZERS, FiniteScalarQuantizer, Quantizer, make_quantizer
from unimodal.tokenizers.parts.quantizers.signs import pack_bits

TABLE = {"kind": "vector", "codebook_size": 64, "num_dims": 6}
UNIT = {**TABLE, "normalize_latents": True, "normalize_codes": True}
AVERAGES = {"learned_by": "averages"}
RESIDUAL = {"kind": "residual", "books": [{**TABLE, "copies": 3}]}
PROJECTED = {"kind": "projected", "book": {**TABLE, "search": "cosine"}, "num_dims": 9}
SIGNS = {"kind": "lookup_free", "group_bits": [6]}
SHARED = {"kind": "shared_index", "codebook_size": 64, "part_dims": [4, 2]}
SCALES = {"kind": "multi_scale", "scales": [1, 2, [2, 4]], "num_phis": 2}

#: name → settings; every kind has at least one
CASES: dict[str, Mapping[str, object]] = {
    "bernoulli": {"kind": "bernoulli", "group_bits": [6, 4]},
    "bernoulli-embedded": {"kind": "bernoulli", "group_bits": [6, 4], "num_dims": 5},
    "binary_spherical": {"kind": "binary_spherical", "group_bits": [7, 7]},
    "factored": {"kind": "factored", "book": {**TABLE, "codebook_size": 60}, "sizes": [4, 15]},
    "finite_scalar": {"kind": "finite_scalar", "levels": [8, 8, 8, 5, 5, 5]},
    "finite_scalar-even": {"kind": "finite_scalar", "levels": [4, 4, 4, 4]},
    "index_backpropagation": {"kind": "index_backpropagation", "codebook_size": 40, "num_dims": 64},
    "library_residual": {"kind": "library_residual", "num_dims": 6, "codebook_size": 64, "num_levels": 3},
    "library_residual-narrow": {
        "kind": "library_residual",
        "num_dims": 8,
        "codebook_size": 64,
        "num_levels": 2,
        "code_width": 3,
    },
    "lookup_free": {"kind": "lookup_free", "group_bits": [6, 12]},
    "lookup_free-wetok": {"kind": "lookup_free", "group_bits": [4, 4, 4], "pool_groups": True},
    "lookup_free-joint": {"kind": "lookup_free", "group_bits": [2, 4], "entropy_bits": [6]},
    "multi_scale-cosine": {**SCALES, "book": {**TABLE, "search": "cosine"}},
    "multi_scale-signs": {**SCALES, "book": SIGNS, "gains": [1, 0.7, 0.5], "normalize_latents": True},
    "multi_scale-tokenflow": {**SCALES, "book": SHARED, "num_phis": 0, "loss_of": "scales", "skip": 0.2},
    "multi_scale-averages": {**SCALES, "book": {**TABLE, **AVERAGES}, "dropout": 0.5},
    "product": {"kind": "product", "parts": [{**TABLE, "copies": 2}, SIGNS]},
    "product-dualtoken": {"kind": "product", "parts": [{**RESIDUAL, "copies": 2}]},
    "product-imagefolder": {"kind": "product", "parts": [{**SCALES, "book": TABLE, "dropout": 0.5, "copies": 2}]},
    "projected": PROJECTED,
    "residual": RESIDUAL,
    "residual-shared": {"kind": "residual", "books": [{**TABLE, **AVERAGES}], "num_levels": 3},
    "residual-dropped": {**RESIDUAL, "dropout": 0.7},
    "residual-mixed": {"kind": "residual", "books": [TABLE, SIGNS]},
    "residual-dac": {"kind": "residual", "books": [{**PROJECTED, "copies": 3}], "through_levels": True, "dropout": 0.5},
    "rounded": {"kind": "rounded", "num_dims": 5},
    "scalar_bins-tokenbridge": {"kind": "scalar_bins", "num_dims": 16},
    "scalar_bins-cubid": {"kind": "scalar_bins", "num_dims": 16, "num_levels": 8, "low": -9, "high": 9},
    "shared_index": SHARED,
    "shared_index-raw": {**SHARED, "normalize": False, "weights": [1.0, 0.5], "entropy_weight": 0.1},
    "sim_vector": {**TABLE, "kind": "sim_vector"},
    "sim_vector-rotation": {**TABLE, "kind": "sim_vector", "gradient": "rotation", "frozen_dims": 9},
    "split-mimi": {"kind": "split", "semantic": TABLE, "rest": RESIDUAL, "num_dims": 7},
    "split": {"kind": "split", "semantic": TABLE, "rest": RESIDUAL},
    "strided_residual-snac": {"kind": "strided_residual", "books": [{**PROJECTED, "copies": 3}], "strides": [4, 2, 1]},
    "vector": TABLE,
    "vector-averages": {**TABLE, **AVERAGES, "dead_share": 0.1},
    "vector-cosine": {**TABLE, "search": "cosine"},
    "vector-entropy": {**TABLE, "entropy_weight": 0.1},
    "vector-kmeans": {**TABLE, "start": "kmeans", "dead_share": 0.5},
    "vector-pulled": {**UNIT, "pull_unused": True},
    "vector-rotation": {**TABLE, "gradient": "rotation"},
    "vector-unit": UNIT,
    "vector-unit-averages": {**UNIT, **AVERAGES, "start": "kmeans", "dead_share": 0.5},
}
#: quantizers whose `look_up` gives what `forward` would read differently: bounded scalars, logits of bits, sums
NO_FIXED_POINT = (
    "finite_scalar",
    "bernoulli-embedded",
    "library_residual",
    "split",
    "residual",
    "multi_scale",
    "product-",
    "projected",
    "strided_residual",
    "vector-cosine",
)
every_quantizer = pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.sweep) for name in CASES])


def make(name: str) -> Quantizer:
    """The quantizer of a case, in eval mode, its tables spread out so that neighbours are far apart."""
    torch.manual_seed(0)
    quantizer = make_quantizer(CASES[name]).eval()
    for key, parameter in quantizer.named_parameters():
        if "codebook" in key:
            torch.nn.init.normal_(parameter)
    return quantizer


def draw_vectors(quantizer: Quantizer, batch: int = 3) -> torch.Tensor:
    """[B, 8, D]"""
    return torch.randn(batch, 8, quantizer.num_dims, generator=torch.Generator().manual_seed(1))


def test_every_kind_has_a_case():
    assert {case["kind"] for case in CASES.values()} == set(QUANTIZERS)


@every_quantizer
def test_every_id_comes_back(name):
    """All ids of each group where there are at most 65,536, else 20,000 random ones."""
    quantizer = make(name)
    if name.startswith(NO_FIXED_POINT):
        ids = quantizer(draw_vectors(quantizer, 50)).ids
        assert ids.shape[1] == quantizer.count_codes(8)
    else:
        ids = list_ids(quantizer)
        values = quantizer.look_up(ids)
        assert values.dtype == torch.float32
        found = quantizer(values)
        assert found.ids.dtype == torch.int64 and torch.equal(found.ids, ids)
        assert torch.allclose(found.values, values, atol=1e-5)
    values = quantizer.look_up(ids)
    assert torch.equal(quantizer.look_up(ids), values)
    assert len(ids.flatten(0, 1).unique(dim=0)) <= len(values.flatten(0, 1).unique(dim=0)) or quantizer.num_levels > 1


def list_ids(quantizer: Quantizer) -> torch.Tensor:
    """[1, N, G]: every id of each group, or 20,000 random ones; shorter groups begin again."""
    sizes = quantizer.codebook_sizes
    columns = [torch.arange(size) if size <= 65_536 else torch.randint(size, (20_000,)) for size in sizes]
    longest = max(map(len, columns))
    return torch.stack([column.repeat(-(-longest // len(column)))[:longest] for column in columns], dim=-1)[None]


@pytest.mark.parametrize("levels", [(8, 8, 8, 8), (4, 4, 4, 4, 4, 4), (7, 5, 5, 5, 5), (3, 4), (8, 8, 8, 5, 5, 5)])
def test_every_id_of_bounded_scalars_comes_back_by_their_inverse(levels):
    quantizer = FiniteScalarQuantizer(levels)
    ids = torch.arange(quantizer.codebook_size)
    assert torch.equal(quantizer.to_ids(quantizer.to_values(ids)), ids)


def test_every_id_of_embedded_bits_comes_back_by_their_bits():
    quantizer = make("bernoulli-embedded")
    ids = list_ids(quantizer)
    assert torch.equal(pack_bits(quantizer.to_bits(ids), (6, 4), "least"), ids)


@every_quantizer
def test_ids_do_not_depend_on_autocast(name):
    quantizer = make(name)
    z = draw_vectors(quantizer, 64)
    alone = quantizer(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = quantizer(z)
        assert torch.equal(alone.ids, inside.ids)
        assert inside.values.dtype == inside.loss.dtype == torch.float32
        assert torch.equal(quantizer.look_up(alone.ids), quantizer.look_up(inside.ids))
    assert torch.equal(quantizer.look_up(inside.ids), quantizer.look_up(alone.ids))


@every_quantizer
@pytest.mark.parametrize("training", [False, True])
def test_what_is_padded_changes_nothing(name, training):
    """Ids and values of what is real, the loss and every running number are those of the items alone."""
    quantizer = make(name).train(training)
    z, mask = draw_vectors(quantizer), torch.ones(3, 8, dtype=torch.bool)
    mask[2] = False  # a whole item, so that maps can be tried too
    padded = torch.where(mask[..., None], z, 100.0)
    alone = quantizer(z[:2], generator=torch.Generator().manual_seed(2))
    state = {key: value.clone() for key, value in quantizer.state_dict().items()}
    again = make(name).train(training)
    beside = again(padded, mask, generator=torch.Generator().manual_seed(2))
    assert torch.equal(beside.ids[:2], alone.ids)
    assert torch.allclose(beside.values[:2], alone.values, atol=1e-6)
    assert torch.allclose(beside.loss, alone.loss, atol=1e-6)
    for key, value in again.state_dict().items():
        assert torch.allclose(value, state[key], atol=1e-6), key


@every_quantizer
def test_a_batch_gives_what_its_items_give(name):
    quantizer = make(name)
    z = draw_vectors(quantizer)
    together = quantizer(z)
    for row in range(3):
        assert torch.equal(quantizer(z[row : row + 1]).ids, together.ids[row : row + 1])


@every_quantizer
def test_the_gradient_reaches_vectors_and_tables(name):
    quantizer = make(name).train()
    z = draw_vectors(quantizer).requires_grad_()
    found = quantizer(z, generator=torch.Generator().manual_seed(2))
    (found.values.sum() + found.loss).backward()
    assert z.grad is not None and bool((z.grad.abs().sum(-1) > 0).all())
    for key, parameter in quantizer.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, key


@every_quantizer
def test_values_are_what_look_up_gives_for_the_ids(name):
    quantizer = make(name)
    found = quantizer(draw_vectors(quantizer))
    assert torch.allclose(found.values, found.rows, atol=1e-6)
    assert torch.allclose(found.values, quantizer.look_up(found.ids), atol=1e-5)
    for ids, size in zip(found.ids.flatten(0, 1).T, quantizer.codebook_sizes, strict=True):
        assert 0 <= int(ids.min()) <= int(ids.max()) < size
    for group, size in enumerate(quantizer.codebook_sizes):
        table = quantizer.make_table(group)
        assert table is None or len(table) == size


@every_quantizer
def test_training_goes_on_exactly_from_what_is_saved(name):
    quantizer, again = make(name).train(), make(name).train()
    quantizer(draw_vectors(quantizer), generator=torch.Generator().manual_seed(2))
    again.load_state_dict(quantizer.state_dict())
    for each in (quantizer, again):
        each(draw_vectors(quantizer, 4), generator=torch.Generator().manual_seed(3))
    for key, value in quantizer.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@every_quantizer
def test_a_published_size_is_built_without_memory(name):
    with torch.device("meta"):
        quantizer = make_quantizer(CASES[name])
    assert all(parameter.is_meta for parameter in quantizer.parameters())
    assert quantizer.codebook_sizes == make_quantizer(CASES[name]).codebook_sizes


@every_quantizer
def test_vectors_of_another_width_are_refused(name):
    quantizer = make(name)
    with pytest.raises(ValueError, match=rf"\[B, N, {quantizer.num_dims}\]"):
        quantizer(torch.zeros(2, 8, quantizer.num_dims + 1))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kind": "vectr"}, "'vectr' is no kind of quantizer; choose from .*vector"),
        ({**TABLE, "size": 3}, "kind vector has no setting 'size'; it has codebook_size, num_dims"),
        ({"kind": "finite_scalar", "levels": [8, 1]}, r"levels are \[8, 1\]; give each dimension 2 or more"),
        ({"kind": "vector", "num_dims": 3}, "kind vector needs a codebook_size; set it"),
        ({**TABLE, "search": "nearest"}, "kind vector cannot take the search 'nearest': .*'cosine'"),
        ({**SCALES, "scales": [2, 1], "book": TABLE}, "kind multi_scale does not fit together: a scale is at least"),
        ({**SCALES, "book": {**TABLE, "size": 3}}, "kind vector has no setting 'size'"),
        ({**SHARED, "weights": [1.0]}, "weights are one number for each of 2 parts; got 1"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_quantizer(settings)
