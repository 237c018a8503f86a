"""What each quantizer does by its definition, against its formula or the library's."""

import pytest
import torch

from unimodal.tokenizers.parts.quantizers import FiniteScalarQuantizer, LookupFreeQuantizer, VectorQuantizer

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
    quantized, ids = quantizer.quantize(z)
    assert torch.equal(quantizer.to_values(ids), quantized.detach())
    quantized.sum().backward()
    assert z.grad is not None and bool((z.grad > 0).all())  # the bound is monotonic


def test_ids_do_not_depend_on_autocast() -> None:
    quantizer = FiniteScalarQuantizer((8, 8, 8, 8))
    z = torch.randn(64, 8, 4)
    _, ids = quantizer.quantize(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, inside = quantizer.quantize(z)
    assert torch.equal(ids, inside)


@pytest.mark.parametrize("group_bits", [(3,), (6, 12), (8, 8, 8, 8)])
def test_every_code_of_signs_comes_back_and_the_first_bit_is_the_least(group_bits):
    quantizer = LookupFreeQuantizer(group_bits)
    ids = torch.stack([torch.randint(size, (1, 500)) for size in quantizer.codebook_sizes], dim=-1)
    values = quantizer.look_up(ids)
    assert torch.equal(quantizer(values).ids, ids)
    first = torch.full((1, 1, quantizer.num_dims), -1.0)
    first[..., 0] = 1
    assert quantizer(first).ids.flatten().tolist() == [1, *[0] * (len(group_bits) - 1)]


@pytest.mark.parametrize("search", ["euclidean", "cosine", "dot"])
def test_a_vector_becomes_the_row_that_its_search_means(search):
    quantizer = VectorQuantizer(50, 6, search)
    torch.nn.init.normal_(quantizer.codebook)
    z = torch.randn(2, 30, 6)
    rows = quantizer.codebook.detach()
    score = {
        "euclidean": -torch.cdist(z, rows),
        "cosine": torch.cosine_similarity(z.unsqueeze(2), rows, dim=-1),
        "dot": torch.einsum("bnd,cd->bnc", z, rows),
    }[search]
    found = quantizer(z)
    assert torch.equal(found.ids[..., 0], score.argmax(-1))
    assert torch.allclose(quantizer.look_up(found.ids), found.values, atol=1e-6)
