"""Codes of several scales: the authors' loop written out, prefixes of whole scales, dropout drawn for every item."""

import pytest
import torch
from torch.nn.functional import interpolate, normalize

from unimodal.tokenizers.parts.quantizers import (
    LookupFreeQuantizer,
    MultiScaleQuantizer,
    SharedIndexQuantizer,
    VectorQuantizer,
)
from unimodal.tokenizers.parts.quantizers.multi_scale import assign_phis

SCALES = [1, 2, 3, 4]


def make_table(search: str = "cosine") -> VectorQuantizer:
    table = VectorQuantizer(64, 6, search)
    torch.nn.init.normal_(table.codebook)
    return table


def draw_map(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 16, 6, generator=torch.Generator().manual_seed(seed))


def test_the_sum_and_its_loss_are_those_of_the_loop_of_var():
    """Yu et al.'s and Tian et al.'s loop: the rest is averaged down, searched, enlarged, convolved, added, subtracted;
    the loss compares the sum after each scale."""
    torch.manual_seed(0)
    quantizer, z = MultiScaleQuantizer(make_table(), SCALES), draw_map()
    rows = quantizer.book.codebook.detach()
    wanted = z.transpose(1, 2).reshape(3, 6, 4, 4)
    rest, total, loss, ids = wanted.clone(), torch.zeros_like(wanted), 0.0, []
    with torch.no_grad():
        for level, side in enumerate(SCALES):
            small = interpolate(rest, size=(side, side), mode="area").permute(0, 2, 3, 1).reshape(-1, 6)
            found = (normalize(small, dim=-1) @ normalize(rows, dim=-1).T).argmax(1)
            added = rows[found].reshape(3, side, side, 6).permute(0, 3, 1, 2)
            added = interpolate(added, size=(4, 4), mode="bicubic") if side < 4 else added
            added = 0.5 * added + 0.5 * torch.nn.Conv2d.forward(quantizer.phis[level], added)
            total, rest = total + added, rest - added
            loss += 1.25 * (total - wanted).square().mean() / 4
            ids.append(found.reshape(3, -1))
    found = quantizer(z)
    assert torch.equal(found.ids[..., 0], torch.cat(ids, 1))
    assert torch.allclose(found.values, total.flatten(2).transpose(1, 2), atol=1e-5)
    assert torch.allclose(found.loss, loss, atol=1e-5)


def test_phis_are_chosen_by_their_place():
    """VAR's ten scales and four convolutions as its code assigns them; scale 2, at 2/9, lies between two ticks."""
    assert assign_phis(10, 4) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert assign_phis(4, 4) == [0, 1, 2, 3] and assign_phis(5, 1) == [0] * 5 and assign_phis(5, 0) == []


def test_tokenflow_subtracts_rows_of_length_one():
    quantizer = MultiScaleQuantizer(SharedIndexQuantizer(32, (4, 2)), [1, 4], num_phis=0, loss_of="scales")
    found = quantizer(draw_map())
    first = quantizer.look_up(found.ids[:, :1])
    assert torch.allclose(first[..., :4].norm(dim=-1), torch.ones(3, 16), atol=1e-5)
    left = draw_map() - first
    last = quantizer.book(left)
    assert torch.equal(last.ids, found.ids[:, 1:])
    smallest = quantizer.book(draw_map().mean(1, keepdim=True))
    assert torch.allclose(found.loss, (smallest.loss + last.loss) / 2, atol=1e-5)


def test_sign_codes_have_the_gain_of_their_scale():
    quantizer = MultiScaleQuantizer(LookupFreeQuantizer((6,)), [1, 4], num_phis=0, gains=[0.4, 0.2])
    ids = quantizer(draw_map()).ids
    scales = quantizer.look_up_scales(ids)
    assert torch.allclose(scales[0].abs(), torch.full((3, 16, 6), 0.4))
    assert torch.allclose((scales[1] - scales[0]).abs(), torch.full((3, 16, 6), 0.2))


def test_the_entropy_of_sign_codes_is_that_of_single_bits_of_what_is_left():
    """XQ-GAN's code: p = σ(−4·x·gain) over the whole map, x what the scales before left; sums over bits."""
    signs = LookupFreeQuantizer((6,), entropy_weight=0.1, temperature=1.0, entropy_bits=[1] * 6)
    quantizer = MultiScaleQuantizer(signs, [1, 4], num_phis=0, gains=[0.4, 0.2], commitment=0).train()
    z, wanted = draw_map(), 0.0
    totals = quantizer.look_up_scales(quantizer(z).ids)
    for level, left in enumerate((z, z - totals[0])):
        p = torch.sigmoid(-4 * left * (0.4, 0.2)[level])
        own = -(p * p.log() + (1 - p) * (1 - p).log()).sum(-1).mean()
        average = p.mean((0, 1))
        all_ = -(average * average.log() + (1 - average) * (1 - average).log()).sum()
        wanted += ((totals[level] - z).square().mean() + 0.1 * (own - all_)) / 2
    assert torch.allclose(quantizer(z).loss, wanted, atol=1e-4)


def test_whole_scales_decode_and_a_part_of_one_does_not():
    quantizer = MultiScaleQuantizer(make_table(), SCALES)
    ids = quantizer(draw_map()).ids
    scales = quantizer.look_up_scales(ids)
    for level, count in enumerate((1, 5, 14, 30)):
        assert torch.allclose(quantizer.look_up(ids[:, :count]), scales[level], atol=1e-6)
    with pytest.raises(ValueError, match="1, 5, 14, 30 positions; got 6"):
        quantizer.look_up(ids[:, :6])
    assert quantizer.make_next_inputs(ids).shape == (3, 29, 6)
    assert torch.allclose(quantizer.make_next_inputs(ids)[:, -16:], scales[2])  # the last scale is the map's own


@pytest.mark.parametrize("loss_of", ["sum", "scales"])
def test_items_keep_scales_of_their_own(loss_of):
    quantizer = MultiScaleQuantizer(make_table(), SCALES, dropout=1.0, fewest_kept=2, loss_of=loss_of)
    kept = quantizer.draw_kept(200, torch.Generator().manual_seed(0))
    assert set(kept.tolist()) == {2, 3, 4}
    chosen = torch.tensor([1, 3, 4])
    found = quantizer(draw_map(), kept=chosen)
    scales = quantizer.look_up_scales(quantizer(draw_map(), kept=torch.full((3,), 4)).ids)
    for row, count in enumerate(chosen):
        assert torch.allclose(found.rows[row], scales[count - 1, row], atol=1e-5)
    with pytest.raises(ValueError, match="from 1 to 4 for each of 3"):
        quantizer(draw_map(), kept=torch.tensor([0, 1, 2]))


def test_a_scale_is_left_out_of_some_items_and_never_the_first():
    quantizer = MultiScaleQuantizer(make_table(), SCALES, skip=0.5, loss_of="scales").train()
    skipped = quantizer._draw_skipped(300, torch.Generator().manual_seed(0))
    assert set(skipped.tolist()) == {-1, 1, 2, 3}
    assert set(quantizer.eval()._draw_skipped(300, None).tolist()) == {-1}


def test_maps_of_another_size_and_masks_within_a_map_are_refused():
    quantizer = MultiScaleQuantizer(make_table(), SCALES)
    with pytest.raises(ValueError, match="4×4 = 16 positions; got 9"):
        quantizer(torch.zeros(1, 9, 6))
    with pytest.raises(ValueError, match="real or padding as a whole"):
        quantizer(draw_map(), torch.arange(48).reshape(3, 16) > 3)
