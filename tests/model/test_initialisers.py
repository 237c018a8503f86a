"""Each initialiser does what its paper says: distributions kept, neighbours kept, descriptions and donors used."""

import pytest
import torch

from unimodal.model.initialisers import INITIALISERS, Donor, RowRequest, initialise
from unimodal.model.initialisers.matching_pursuit import fit_sparse_combination

V, D, R = 600, 24, 80


@pytest.fixture
def table():
    g = torch.Generator().manual_seed(0)
    mixing = torch.randn(D, D, generator=g)
    rows = torch.randn(V, D, generator=g) @ mixing + 3.0  # correlated directions
    rows[550:] = 0  # padding
    return rows


def request(table, **known):
    return RowRequest(table, R, **known)


def donor(table, num_anchors=200):
    """A donor space that is a rotation of the base's: what is sparse in one is the same in the other."""
    g = torch.Generator().manual_seed(5)
    rotation = torch.linalg.qr(torch.randn(D, D, generator=g)).Q
    anchor_rows = torch.arange(num_anchors)
    picks = torch.stack([torch.randperm(num_anchors, generator=g)[:3] for _ in range(R)])
    weights = torch.rand(R, 3, generator=g)
    weights = weights / weights.sum(1, keepdim=True)
    truth = torch.einsum("rk,rkd->rd", weights, table[picks])
    return Donor(truth @ rotation, table[anchor_rows] @ rotation, anchor_rows), truth


@pytest.mark.parametrize("name", sorted(INITIALISERS))
def test_rows_differ_are_finite_and_follow_the_seed(table, name):
    known = {
        "features": {range(V, V + 16): torch.randn(16, 5, generator=torch.Generator().manual_seed(1))},
        "words": {V + 20: [3, 4], V + 21: [3, 4]},
        "donor": donor(table)[0],
    }
    rows = initialise(name, request(table, **known))
    assert rows.shape == (R, D) and rows.dtype == table.dtype and bool(rows.isfinite().all())
    assert len(rows.unique(dim=0)) == R, "rows that are equal cannot be told apart"
    assert torch.equal(rows, initialise(name, request(table, **known)))
    if name != "omp":
        assert not torch.equal(rows, initialise(name, request(table, **known, seed=1)))
    assert float(rows.norm(dim=1).max()) < 3 * float(table.norm(dim=1).max())


def test_covariance_has_the_mean_and_covariance_of_the_used_rows(table):
    rows = INITIALISERS["covariance"](RowRequest(table, 40_000))
    used = table[:550]
    torch.testing.assert_close(rows.mean(0), used.mean(0), rtol=0, atol=0.15)
    expected, found = torch.cov(used.T, correction=0), torch.cov(rows.T)
    assert float((found - expected).norm() / expected.norm()) < 0.05


def test_covariance_of_a_base_with_fewer_rows_than_width():
    base = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    rows = INITIALISERS["covariance"](RowRequest(base, 5000))
    outside = (
        rows - rows.mean(0) - (rows - rows.mean(0)) @ torch.linalg.pinv(base - base.mean(0)) @ (base - base.mean(0))
    )
    assert float(outside.abs().max()) < 1e-3, "nothing outside the span of the base's rows"


def test_mean_stays_near_the_mean(table):
    rows = INITIALISERS["mean"](request(table))
    spread = table[:550].std(0)
    assert bool(((rows - table[:550].mean(0)).abs() < 0.6 * spread).all())


def test_description_is_the_mean_of_its_words(table):
    rows = INITIALISERS["description"](request(table, words={V + 2: [10, 11, 12], V + 3: [7]}))
    spread = table[:550].std(0)
    assert bool(((rows[2] - table[[10, 11, 12]].mean(0)).abs() < 0.6 * spread).all())
    nearest = (rows[3] - table[:550]).norm(dim=1).argmin()
    assert int(nearest) == 7
    with pytest.raises(ValueError, match="is described but the new rows are 600 to 679"):
        INITIALISERS["description"](request(table, words={5: [1]}))
    with pytest.raises(ValueError, match="give rows of the base's words"):
        INITIALISERS["description"](request(table, words={V: [V + 1]}))


def test_codebook_keeps_neighbours_and_the_spread_of_the_base(table):
    """Codes on a line: the correlation of distances between rows with distances between codes is high."""
    wide = torch.randn(V, 256, generator=torch.Generator().manual_seed(0))
    codes = torch.linspace(-1, 1, R)[:, None] * torch.ones(1, 4)
    rows = INITIALISERS["codebook"](RowRequest(wide, R, features={range(V, V + R): codes}))
    near, far = torch.pdist(rows), torch.pdist(codes)
    assert float(torch.corrcoef(torch.stack([near, far]))[0, 1]) > 0.7
    assert 0.5 < float(rows.std() / wide.std()) < 2
    with pytest.raises(ValueError, match="80 codebook vectors do not fit the new rows 600 to 609"):
        INITIALISERS["codebook"](RowRequest(wide, R, features={range(V, V + 10): codes}))


def test_matching_pursuit_carries_sparse_combinations_over(table):
    given, truth = donor(table)
    rows = INITIALISERS["omp"](request(table, donor=given))
    error = (rows - truth).norm(dim=1) / truth.norm(dim=1)
    assert float(error.median()) < 0.05
    some = given.rows.clone()
    some[5] = float("nan")  # the donor does not have it
    partly = INITIALISERS["omp"](request(table, donor=Donor(some, given.anchors, given.anchor_rows)))
    assert bool(partly.isfinite().all())
    with pytest.raises(ValueError, match="needs a donor"):
        INITIALISERS["omp"](request(table))


def test_sparse_combination_picks_the_parts_and_never_twice():
    anchors = torch.eye(8)
    target = torch.zeros(1, 8)
    target[0, [1, 4, 6]] = torch.tensor([3.0, -2.0, 1.0])
    chosen, weights = fit_sparse_combination(target, anchors, 4)
    assert chosen[0, :3].tolist() == [1, 4, 6] and len(set(chosen[0].tolist())) == 4
    torch.testing.assert_close(weights[0], torch.tensor([3.0, -2.0, 1.0, 0.0]), rtol=0, atol=1e-4)


def test_an_unknown_name_is_refused(table):
    with pytest.raises(ValueError, match="initialiser 'zeros' is unknown; use covariance, mean, description"):
        initialise("zeros", request(table))
