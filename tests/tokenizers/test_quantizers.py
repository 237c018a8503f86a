"""What every quantizer promises, over all of them: ids and values are inverse, autocast and padding change nothing, a
batch gives what its items give, and the gradient arrives."""

from collections.abc import Mapping

import pytest
import torch

from unimodal.tokenizers.parts.quantizers import QUANTIZERS, FiniteScalarQuantizer, Quantizer, make_quantizer

TABLE = {"kind": "vector", "codebook_size": 64, "num_dims": 6}
SIGNS = {"kind": "lookup_free", "group_bits": [6]}
SHARED = {"kind": "shared_index", "codebook_size": 64, "part_dims": [4, 2]}
SCALES = {"kind": "multi_scale", "scales": [1, 2, [2, 4]], "num_phis": 2}

#: name → settings; every kind has at least one
CASES: dict[str, Mapping[str, object]] = {
    "finite_scalar": {"kind": "finite_scalar", "levels": [8, 8, 8, 5, 5, 5]},
    "finite_scalar-even": {"kind": "finite_scalar", "levels": [4, 4, 4, 4]},
    "lookup_free": {"kind": "lookup_free", "group_bits": [6, 12]},
    "multi_scale-cosine": {**SCALES, "book": {**TABLE, "search": "cosine"}},
    "multi_scale-signs": {**SCALES, "book": SIGNS, "gains": [1, 0.7, 0.5], "normalize_latents": True},
    "multi_scale-tokenflow": {**SCALES, "book": SHARED, "num_phis": 0, "loss_of": "scales"},
    "shared_index": SHARED,
    "shared_index-raw": {**SHARED, "normalize": False, "weights": [1.0, 0.5], "entropy_weight": 0.1},
    "vector": TABLE,
    "vector-cosine": {**TABLE, "search": "cosine"},
    "vector-unit": {**TABLE, "normalize_latents": True, "normalize_codes": True},
}
every_quantizer = pytest.mark.parametrize("name", CASES)


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
    """All ids where there are at most 65,536, else 20,000 random ones; codes of several levels by their values."""
    quantizer = make(name)
    if quantizer.num_levels > 1:
        found = quantizer(draw_vectors(quantizer))
        assert found.ids.shape[1] == quantizer.count_codes(8)
        assert torch.allclose(quantizer.look_up(found.ids), found.values, atol=1e-5)
        return
    columns = [
        torch.arange(size) if size <= 65_536 else torch.randint(size, (20_000,)) for size in quantizer.codebook_sizes
    ]
    longest = max(map(len, columns))
    ids = torch.stack([column.repeat(-(-longest // len(column)))[:longest] for column in columns], dim=-1)[None]
    values = quantizer.look_up(ids)
    found = quantizer(values)
    if isinstance(quantizer, FiniteScalarQuantizer):  # it bounds what comes in; `to_ids` is the inverse
        assert torch.equal(quantizer.to_ids(values)[..., None], ids)
        return
    assert values.dtype == torch.float32 and found.ids.dtype == torch.int64
    if name != "vector-cosine":  # its rows are searched by direction alone: another row may be as near
        assert torch.equal(found.ids, ids)
    assert torch.allclose(quantizer.look_up(found.ids), found.values, atol=1e-5)


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
def test_vectors_of_another_width_are_refused(name):
    quantizer = make(name)
    with pytest.raises(ValueError, match=rf"\[B, N, {quantizer.num_dims}\]"):
        quantizer(torch.zeros(2, 8, quantizer.num_dims + 1))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kind": "vectr"}, "'vectr' is no kind of quantizer; choose from .*vector"),
        ({**TABLE, "size": 3}, "kind vector has no setting 'size'; it has codebook_size, num_dims"),
        ({"kind": "vector", "num_dims": 3}, "kind vector cannot take codebook_size: Field required"),
        ({**TABLE, "search": "nearest"}, "kind vector cannot take search: .*'cosine'"),
        ({**SCALES, "scales": [2, 1], "book": TABLE}, "kind multi_scale does not fit together: a scale is at least"),
        ({**SCALES, "book": {**TABLE, "size": 3}}, "kind vector has no setting 'size'"),
        ({**SHARED, "weights": [1.0]}, "weights are one number for each of 2 parts; got 1"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_quantizer(settings)
