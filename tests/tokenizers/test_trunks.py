"""Trunks, resamplers and heads of tokenizers: shapes, masks, positions, and agreement with torch's own layers."""

import pytest
import torch

from unimodal.tokenizers.parts.heads.pixels import PatchHead
from unimodal.tokenizers.parts.resamplers import Resampler, build_query_mask, pool_scales
from unimodal.tokenizers.parts.trunks.vit import (
    Attention,
    LearnedPositions,
    PatchEmbedding,
    VisionTransformer,
    rotate_grid,
)


def test_attention_answers_as_torchs_own_with_the_same_weights():
    torch.manual_seed(0)
    ours, theirs = Attention(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    x, context = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    seen = torch.ones(5, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(ours(x, mask=seen), theirs(x, x, x, attn_mask=~seen)[0])
    torch.testing.assert_close(ours(x, context), theirs(x, context, context)[0])


def test_rotary_attention_depends_on_distances_alone_and_leaves_extra_tokens_still():
    rotation = rotate_grid((5, 5), head_width=8, num_still=1)
    q, k = torch.randn(2, 1, 1, 1, 8).unbind(0)
    turned_q, turned_k = (rotation.turn(x.expand(1, 1, 26, 8)) for x in (q, k))
    likeness = (turned_q @ turned_k.transpose(-1, -2))[0, 0]
    place = lambda row, column: 1 + 5 * row + column  # noqa: E731
    torch.testing.assert_close(likeness[place(0, 0), place(1, 2)], likeness[place(3, 2), place(4, 4)])
    assert not torch.isclose(likeness[place(0, 0), place(1, 2)], likeness[place(0, 0), place(2, 1)])
    assert torch.equal(turned_q[0, 0, 0], q[0, 0, 0])
    with pytest.raises(ValueError, match="multiple of 4"):
        rotate_grid((2, 2), head_width=6)


def test_learned_positions_resize_and_keep_those_of_the_class_token():
    positions = LearnedPositions((4, 4), 8, num_extra=1)
    other = positions((6, 3))
    assert other.shape == (19, 8) and torch.equal(other[0], positions.table[0])
    with torch.no_grad():
        positions.table[1:] = torch.arange(16.0)[:, None] // 4  # a plane by the row stays one
    by_row = positions((8, 4))[1:].reshape(8, 4, 8)
    assert (by_row[1:] > by_row[:-1]).all() and torch.allclose(by_row[:, 0], by_row[:, 3], atol=1e-5)


@pytest.mark.parametrize("rotary", [False, True])
def test_a_vision_transformer_takes_any_size_of_whole_patches(rotary):
    torch.manual_seed(0)
    trunk = VisionTransformer(8, 16, 2, 2, (4, 4), class_token=True, num_registers=2, rotary=rotary)
    assert trunk(torch.rand(2, 3, 32, 32)).shape == (2, 16, 16)
    assert trunk(torch.rand(2, 3, 16, 40)).shape == (2, 10, 16)
    x = torch.rand(1, 3, 32, 32)
    assert not torch.allclose(trunk(x), trunk(x.flip(-1))[:, :], atol=1e-4)
    with pytest.raises(ValueError, match="whole patches of 8"):
        trunk(torch.rand(1, 3, 30, 32))


@pytest.mark.parametrize("reading", ["concatenated", "cross"])
@pytest.mark.parametrize("mask", ["causal", "scales"])
def test_ordered_queries_do_not_see_later_ones(reading, mask):
    torch.manual_seed(0)
    scales = ((1, 1), (1, 2), (2, 2))
    resampler = Resampler(7, 16, 2, 2, reading, mask=mask, scales=scales).eval()
    features = torch.randn(2, 9, 16)
    before = resampler(features)
    with torch.no_grad():
        resampler.queries[3:] += torch.randn(4, 16)  # the last scale
    after = resampler(features)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:], atol=1e-3)
    seen = build_query_mask(mask, 7, [1, 2, 4])
    assert seen[1, 2] == (mask == "scales") and not seen[2, 3] and seen[6, 0]


@pytest.mark.parametrize("reading", ["concatenated", "cross"])
@pytest.mark.parametrize("start", ["learned", "pooled", "noise"])
def test_padded_features_are_not_read_and_items_do_not_meet(reading, start):
    torch.manual_seed(0)
    resampler = Resampler(5, 16, 2, 2, reading, start, scales=((1, 1), (2, 2))).eval()
    features = torch.randn(2, 12, 16)
    both = resampler(features, grid=(3, 4))
    torch.testing.assert_close(both[1:], resampler(features[1:], grid=(3, 4)))
    if start != "pooled":
        padded = torch.cat([features, torch.randn(2, 3, 16)], 1)
        real = torch.arange(15).expand(2, -1) < 12
        torch.testing.assert_close(resampler(padded, real), both)


def test_pools_are_averages_of_cells_from_coarse_to_fine():
    features = torch.arange(16.0).reshape(1, 16, 1)
    pooled = pool_scales(features, (4, 4), ((1, 1), (1, 2), (2, 2)))
    assert pooled.flatten().tolist() == [7.5, 6.5, 8.5, 2.5, 4.5, 10.5, 12.5]
    with pytest.raises(ValueError, match="are 5 queries; there are 4"):
        Resampler(4, 8, 1, 1, start="pooled", scales=((1, 1), (2, 2)))


def test_a_patch_head_undoes_the_cut_into_patches():
    torch.manual_seed(0)
    picture = torch.rand(1, 3, 8, 12)
    patches = picture.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(1, 6, 48)
    head = PatchHead(48, 4)
    with torch.no_grad():
        head.project.weight.copy_(torch.eye(48)[:, :, None, None])
        torch.nn.init.dirac_(head.refine.weight)
        for bias in (head.project.bias, head.refine.bias):
            bias.zero_()
    torch.testing.assert_close(head(patches, (2, 3)), picture)


def test_registers_stand_between_class_token_and_patches_without_a_position():
    embedding = PatchEmbedding(4, 8, (2, 2), class_token=True, num_registers=3)
    tokens = embedding(torch.rand(1, 3, 8, 8))
    assert tokens.shape == (1, 8, 8) and torch.equal(tokens[0, 1:4], embedding.registers)
