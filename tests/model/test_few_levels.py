"""Weights of few levels: rows come back as they were within their steps, with and without what their levels explain."""

import pytest
import torch

from unimodal.model.few_levels import pack_rows, round_weights, unpack_rows
from unimodal.model.structured_rows import encode_levels
from unimodal.tokenizers.parts.quantizers import list_levels

LEVELS = (4, 3)


def make_rows(noise=0.1, seed=0):
    """Rows [15, 40]: 12 codes of two levels each, whose rows are sums, then 3 without features."""
    draws = torch.Generator().manual_seed(seed)
    features = torch.zeros(15, sum(LEVELS), dtype=torch.int8)
    features[:12] = encode_levels(list_levels(LEVELS), LEVELS).to(torch.int8)
    table = torch.randn(sum(LEVELS), 40, generator=draws)
    rows = features.float() @ table + noise * torch.randn(15, 40, generator=draws)
    rows[12:] += torch.randn(3, 40, generator=draws)
    return rows, features


@pytest.mark.parametrize("levels", [1, 3, 7, 31, 127])
def test_features_make_the_error_smaller(levels):
    rows, features = make_rows()
    plain, structured = (unpack_rows(pack_rows("input", rows, levels, f))["input"] for f in (None, features))
    errors = [float((found - rows)[:12].square().mean()) for found in (plain, structured)]
    assert errors[1] < 0.2 * errors[0]
    assert float((plain - rows).abs().max()) > 0


def test_rows_that_are_sums_of_their_levels_need_no_more():
    rows, features = make_rows(noise=0.0)
    packed = pack_rows("output", rows, 1, features)
    assert set(packed) == {"output", "output_scale", "output_features", "output_table"}
    torch.testing.assert_close(unpack_rows(packed)["output"][:12], rows[:12], rtol=0, atol=5e-3)


@pytest.mark.parametrize("levels", [3, 127])
def test_no_value_has_more_levels(levels):
    packed = pack_rows("input", make_rows()[0], levels)
    assert packed["input"].dtype == torch.int8 and packed["input"].abs().max() <= levels


def test_few_levels_cut_what_is_large_where_that_is_nearer():
    row = torch.cat([torch.linspace(-1, 1, 60), torch.tensor([4.0])])[None]
    found = unpack_rows(pack_rows("input", row, 3))["input"]
    by_largest = (row / (4 / 3)).round() * (4 / 3)
    assert (found - row).square().sum() < 0.5 * (by_largest - row).square().sum()


def test_rows_as_floats_come_back_as_they_are():
    rows = torch.randn(3, 4)
    assert torch.equal(unpack_rows({"input": rows, "output": rows.half()})["input"], rows)


@pytest.mark.parametrize("levels", [0, 128])
def test_other_numbers_of_levels_are_refused(levels):
    with pytest.raises(ValueError, match="1 to 127 levels"):
        pack_rows("input", torch.ones(1, 2), levels)


def test_rounded_matrices_have_so_many_levels_and_vectors_stay():
    weights = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    rounded = round_weights(weights, 15)
    assert rounded.dtype == torch.float16 and max(len(row.unique()) for row in rounded) <= 31
    assert torch.equal(round_weights(weights[0], 15), weights[0].half())
    assert torch.equal(round_weights(weights, 0), weights.half())
