"""Structured rows: neighbours move together in training, and what is left is a stock table with the same values."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from unimodal.model.structured_rows import add_structure, encode_levels, load_rows, remove_structure
from unimodal.tokenizers.parts.quantizers import FiniteScalarQuantizer


def make() -> tuple[nn.Embedding, FiniteScalarQuantizer]:
    torch.manual_seed(0)
    quantizer = FiniteScalarQuantizer((4, 4))
    embedding = nn.Embedding(30, 6)
    features = encode_levels(quantizer.to_levels(torch.arange(16)), quantizer.levels)
    add_structure(embedding, {range(10, 26): features}, std=0.5)
    return embedding, quantizer


def test_codes_that_share_levels_begin_alike() -> None:
    embedding, quantizer = make()
    rows = embedding.weight[10:26]
    distance = torch.cdist(rows, rows)
    differing = (quantizer.to_levels(torch.arange(16))[:, None] != quantizer.to_levels(torch.arange(16))[None]).sum(-1)
    assert distance[differing == 1].mean() < distance[differing == 2].mean()


def test_the_same_seed_draws_the_same_tables_whatever_was_drawn_before() -> None:
    features = {range(10, 26): torch.eye(16)}
    first, second, other = (
        add_structure(nn.Embedding(30, 6), features, std=0.5, seed=seed).tables[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_a_gradient_for_one_code_moves_its_neighbours_and_no_other_row() -> None:
    embedding, quantizer = make()
    before = embedding.weight.detach().clone()
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    with parametrize.cached():
        embedding(torch.tensor([10])).sum().backward()
    optimizer.step()
    moved = (embedding.weight - before).detach().abs().sum(1)
    digits = quantizer.to_levels(torch.arange(16))
    near = 10 + torch.nonzero((digits == digits[0]).any(1)).squeeze(1)
    assert bool((moved[near] > 0).all())
    assert float(moved[:10].sum()) == 0 and float(moved[26:].sum()) == 0


def test_finish_leaves_a_stock_embedding_with_the_same_values() -> None:
    embedding, _ = make()
    before = embedding.weight.detach().clone()
    remove_structure(embedding)
    assert type(embedding) is nn.Embedding and isinstance(embedding.weight, nn.Parameter)
    assert torch.equal(embedding.weight, before)
    assert list(dict(embedding.named_parameters())) == ["weight"]


def test_features_must_fit_their_rows() -> None:
    embedding = nn.Embedding(10, 4)
    try:
        add_structure(embedding, {range(5, 12): torch.eye(7)})
    except ValueError as error:
        assert "do not fit rows 5…11 of 10" in str(error)
    else:
        raise AssertionError("rows beyond the table were accepted")


def test_rows_share_the_rows_of_their_words_while_they_are_trained() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(12, 4)
    add_structure(embedding, {range(8, 12): torch.eye(4)}, std=0.0, words={range(8, 12): [[0], [1, 2], [], [3, 3]]})
    free = embedding.parametrizations.weight.original
    torch.testing.assert_close(embedding.weight[8], free[0])
    torch.testing.assert_close(embedding.weight[9], (free[1] + free[2]) / 2**0.5)
    torch.testing.assert_close(embedding.weight[10], torch.zeros(4))
    embedding(torch.tensor([9])).sum().backward()
    assert free.grad is not None
    assert bool((free.grad[[1, 2]] != 0).all()) and float(free.grad[0].abs().sum()) == 0


def test_a_finished_table_can_be_structured_and_trained_again() -> None:
    embedding, quantizer = make()
    rows = torch.randn(30, 6)
    load_rows(embedding, rows)
    torch.testing.assert_close(embedding.weight, rows, atol=1e-5, rtol=0)
    words = {range(10, 26): [[1, 2], *[[3]] * 15]}
    other = nn.Embedding(30, 6)
    features = encode_levels(quantizer.to_levels(torch.arange(16)), quantizer.levels)
    shape = add_structure(other, {range(10, 26): features}, words=words)
    load_rows(other, rows)
    torch.testing.assert_close(other.weight, rows, atol=1e-5, rtol=0)
    explained = (features - features.mean(0)) @ torch.randn(features.shape[1], 6)
    load_rows(embedding, torch.cat([rows[:10], explained, rows[26:]]))  # what the structure explains is not left free
    free = embedding.parametrizations.weight.original[10:26]
    assert free.square().sum() < 0.05 * explained.square().sum()
    assert shape.tables[0].abs().sum() > 0
    with pytest.raises(ValueError, match="does not fit"):
        load_rows(other, rows[:20])
