"""Finite scalar quantization: ids and values are inverse over the whole codebook, and the gradient goes straight
through."""

import pytest
import torch

from unimodal.tokenizers.parts.quantizers import FiniteScalarQuantizer

LEVELS = [(8, 8, 8, 8), (4, 4, 4, 4, 4, 4), (7, 5, 5, 5, 5), (3, 4)]


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_round_trips(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarQuantizer(levels)
    ids = torch.arange(quantizer.codebook_size)
    values = quantizer.to_values(ids)
    assert torch.equal(quantizer.to_ids(values), ids)
    assert len(values.unique(dim=0)) == quantizer.codebook_size
    assert values.abs().max() <= 1


@pytest.mark.parametrize("levels", LEVELS)
def test_level_indices_are_the_mixed_radix_digits(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarQuantizer(levels)
    ids = torch.arange(quantizer.codebook_size)
    digits = quantizer.to_levels(ids)
    basis, total = 1, torch.zeros_like(ids)
    for k, level in enumerate(levels):
        assert int(digits[:, k].max()) == level - 1
        total += digits[:, k] * basis
        basis *= level
    assert torch.equal(total, ids)


def test_values_keep_the_shape_of_the_ids() -> None:
    quantizer = FiniteScalarQuantizer((8, 8, 8, 8))
    ids = torch.randint(4096, (3, 5, 2))
    assert quantizer.to_values(ids).shape == (3, 5, 2, 4)
    assert torch.equal(quantizer.to_ids(quantizer.to_values(ids)), ids)


def test_the_gradient_goes_straight_through() -> None:
    quantizer = FiniteScalarQuantizer((8, 8, 8, 8))
    z = torch.randn(2, 5, 4, requires_grad=True)
    quantized, ids = quantizer(z)
    assert torch.equal(quantizer.to_values(ids), quantized.detach())
    quantized.sum().backward()
    assert z.grad is not None and bool((z.grad > 0).all())  # the bound is monotonic


def test_ids_do_not_depend_on_autocast() -> None:
    quantizer = FiniteScalarQuantizer((8, 8, 8, 8))
    z = torch.randn(64, 8, 4)
    _, ids = quantizer(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, inside = quantizer(z)
    assert torch.equal(ids, inside)
