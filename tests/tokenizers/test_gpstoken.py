"""GPSToken: a picture as Gaussians in the plane, more of them where there is more detail."""

import pytest
import torch

from unimodal.tokenizers.codes import Latents
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.parts.entropy_split import split_regions
from unimodal.tokenizers.parts.heads.splat import splat_gaussians
from unimodal.tokenizers.systems.gpstoken import move_gaussians, place_gaussians, pool_regions


def draw_picture() -> torch.Tensor:
    """Noise on the left, one colour on the right: float [3, 32, 32]."""
    picture = torch.full((3, 32, 32), 0.5)
    picture[:, :, :16] = torch.rand(3, 32, 16, generator=torch.Generator().manual_seed(0))
    return picture


@pytest.fixture(scope="session")
def tokenizer():
    torch.manual_seed(0)
    return build_tokenizer(read_system("gpstoken-m128").choose_settings(small=True)).eval()


@pytest.mark.sweep
@pytest.mark.parametrize("num_regions", [1, 2, 7, 16])
def test_regions_cover_the_picture_and_are_smaller_where_there_is_detail(num_regions):
    regions = split_regions(draw_picture(), num_regions, least=4)
    covered = torch.zeros(32, 32)
    for row, column, rows, columns in regions:
        covered[row : row + rows, column : column + columns] += 1
    assert len(regions) == num_regions and (covered == 1).all()
    if num_regions >= 7:
        assert sum(column < 16 for _, column, _, _ in regions) > num_regions * 0.6
    with pytest.raises(ValueError, match="is 64 regions of at most 5 pixels a side; 65 are asked for"):
        split_regions(draw_picture(), 65, least=4)


def test_more_tokens_lie_where_there_is_more_detail(tokenizer):
    picture = draw_picture()
    coded = tokenizer.encode(torch.stack([picture, picture.flip(2)]))
    left = (coded.values[..., 3] < 0).sum(1)
    assert coded.values.shape == (2, 8, 13) and left[0] >= 6 and left[1] <= 2


def test_a_gaussian_is_a_peak_of_its_own_shape_and_has_a_gradient():
    gaussian = torch.tensor([[[0.2, 0.4, 0.0, 0.5, -0.5]]], requires_grad=True)
    drawn = splat_gaussians(gaussian, torch.tensor([[[2.0, -1.0]]]), (41, 41), reach=3)
    made = drawn.detach()
    row, column = divmod(int(made[0, 0].argmax()), 41)
    assert (
        (row, column) == (10, 30)
        and made[0, 0].max() == pytest.approx(2)
        and torch.allclose(made[:, 1], -made[:, 0] / 2)
    )
    assert made[0, 0, 10, 34] == pytest.approx(2 * 2.718281828**-0.5, rel=1e-4)  # 0.2 across: one deviation
    assert made[0, 0, 18, 30] == pytest.approx(2 * 2.718281828**-0.5, rel=1e-4)  # 0.4 down
    assert made[0, 0, 10, 40] != 0 and made[0, 0, 10, 0] == 0  # it ends
    drawn[0, 0, 10, 34].backward()
    assert gaussian.grad is not None and (gaussian.grad[0, 0, [0, 3]] > 0).all()
    moved = splat_gaussians(gaussian.detach() + torch.tensor([0, 0, 0, 0.1, 0]), torch.ones(1, 1, 1), (41, 41), 3)
    assert int(moved[0, 0].argmax()) == 10 * 41 + 32


def test_a_new_network_leaves_gaussians_where_the_regions_are(tokenizer):
    picture = draw_picture()
    regions = split_regions(picture, 8, least=4)
    placed = place_gaussians(regions, 32)
    assert torch.allclose(tokenizer.encode(picture[None]).values[0, :, :5], placed, atol=1e-5)
    moved = move_gaussians(placed, torch.full_like(placed, 9.0))
    assert (moved[:, :2] < 1).all() and (moved[:, 2:].abs() <= 1).all() and (moved > placed).all()


def test_a_region_is_read_at_its_own_place():
    maps = torch.arange(16.0).expand(1, 16, 16)
    pooled = pool_regions(maps, [(0, 4, 9, 9)], 4)
    assert torch.allclose(pooled[0, 0], torch.tensor([4.5, 6.5, 8.5, 10.5]).expand(4, 4))  # columns 3.5 to 11.5


def test_any_number_of_tokens_decodes_in_any_order(tokenizer):
    coded = tokenizer.encode(draw_picture()[None])
    turned = Latents(coded.values.flip(1), coded.mask)
    assert torch.allclose(tokenizer.decode(turned), tokenizer.decode(coded), atol=1e-5)
    mask = coded.mask.clone()
    mask[:, 5:] = False
    short = tokenizer.decode(Latents(coded.values[:, :5], coded.mask[:, :5]))
    assert torch.allclose(tokenizer.decode(Latents(coded.values * mask[..., None], mask)), short, atol=1e-5)
