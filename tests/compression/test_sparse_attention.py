"""Sparse attention over grids: equal to dense where everything is kept, and to the authors' rules written out."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from unimodal.compression.attention import GroupedAttention, SemanticAttention
from unimodal.compression.attention.grat import find_group_pairs, link_groups, order_by_groups
from unimodal.compression.attention.replacing import attend_pairs
from unimodal.compression.attention.svg2 import Clusters, choose_clusters, cluster
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def draw(num, heads=2, batch=2, width=8):
    return [torch.randn(batch, heads, num, width) for _ in range(3)]


def attend(query, key, value, seen):
    return scaled_dot_product_attention(query, key, value, attn_mask=seen)


@pytest.mark.parametrize("pattern", ["cross", "surrounding"])
def test_grat_attends_as_its_mask_over_boxes_says(pattern):
    grid, group, before, after = (2, 4, 6), (1, 2, 2), 1, 2
    num = math.prod(grid)
    query, key, value = draw(before + num + after)
    seen = torch.ones(before + num + after, before + num + after, dtype=torch.bool)
    boxes = [
        (t // 1, row // 2, column // 2) for t in range(grid[0]) for row in range(grid[1]) for column in range(grid[2])
    ]
    for at, mine in enumerate(boxes):
        for other, theirs in enumerate(boxes):
            apart = [abs(a - b) for a, b in zip(mine, theirs, strict=True)]
            seen[before + at, before + other] = 0 in apart if pattern == "cross" else max(apart) <= 1
    with GroupedAttention(grid, group, pattern, before=before, after=after) as session:
        made = scaled_dot_product_attention(query, key, value)
        causal = scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(made, attend(query, key, value, seen), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(causal, scaled_dot_product_attention(query, key, value, is_causal=True))
    assert session.num_calls == 1


def test_grat_orders_box_by_box_and_a_single_box_along_an_axis_is_no_line():
    order = order_by_groups((4, 4), (2, 2)).reshape(4, 4)
    assert order[1].tolist() == [2, 3, 6, 7] and order.flatten().sort()[0].tolist() == list(range(16))
    linked = link_groups((1, 3, 3), "cross", 1)
    assert linked[0].tolist() == [True, True, True, True, False, False, True, False, False]
    assert link_groups((3, 3), "surrounding", 1)[4].all() and int(link_groups((3, 3), "surrounding", 1)[0].sum()) == 4


def test_svg2_keeps_clusters_until_they_have_their_share():
    queries, keys = (Clusters(torch.empty(0), torch.randn(1, 2, num, 8), torch.randint(0, 9, (1, 2, num)))
                     for num in (3, 12))  # fmt: skip
    chosen = choose_clusters(queries, keys, 8**-0.5, 0.6, 0.2)
    for head in range(2):
        for query in range(3):
            weights = [
                int(size) * math.exp(float(queries.means[0, head, query] @ mean) / math.sqrt(8))
                for mean, size in zip(keys.means[0, head], keys.sizes[0, head], strict=True)
            ]
            best = sorted(range(12), key=lambda one: -weights[one])
            kept, share = set(best[:2]), 0.0  # a fifth of the clusters in any case
            for one in best:
                if share > 0.6 * sum(weights):
                    break
                kept.add(one)
                share += weights[one]
            assert set(chosen[0, head, query].nonzero()[:, 0].tolist()) == kept


def test_svg2_clusters_by_k_means_and_attends_to_the_chosen_ones_alone():
    centres = torch.randn(1, 2, 4, 8) * 4
    x = centres[:, :, torch.arange(40) // 10] + 0.01 * torch.randn(1, 2, 40, 8)
    found = cluster(x, 4, 5)
    assert (found.labels == torch.arange(40) // 10).all() and (found.sizes == 10).all()  # as they were drawn
    torch.testing.assert_close(found.means, centres, atol=0.05, rtol=0)
    query, key, value = x, torch.randn_like(x), torch.randn_like(x)
    queries, keys = cluster(query, 4, 3), cluster(key, 6, 3)
    chosen = choose_clusters(queries, keys, 8**-0.5, 0.5, 0.0)
    pairs = chosen.gather(2, queries.labels[..., None].expand(-1, -1, -1, 6))
    seen = pairs.gather(3, keys.labels[:, :, None].expand(-1, -1, 40, -1))
    with SemanticAttention((5, 8), 4, 6, top_p=0.5, least=0.0, rounds=3):
        made = scaled_dot_product_attention(query, key, value)
    assert 0.1 < seen.float().mean() < 0.9
    torch.testing.assert_close(made, attend(query, key, value, seen), atol=1e-5, rtol=1e-4)


def test_everything_kept_is_dense_attention_and_rows_are_alone():
    query, key, value = draw(3 + 20)
    dense = scaled_dot_product_attention(query, key, value, scale=0.3)
    with SemanticAttention((4, 5), 3, 4, top_p=1.0, before=1, after=2):
        torch.testing.assert_close(scaled_dot_product_attention(query, key, value, scale=0.3), dense)
    with SemanticAttention((4, 5), 3, 4, top_p=0.4, least=0.0, before=1, after=2):
        both = scaled_dot_product_attention(query, key, value)
        torch.testing.assert_close(scaled_dot_product_attention(*(x[1:] for x in (query, key, value))), both[1:])
    assert not torch.allclose(both, scaled_dot_product_attention(query, key, value), atol=1e-3)
    with GroupedAttention((4, 5), (4, 5), before=1, after=2):  # one group
        torch.testing.assert_close(scaled_dot_product_attention(query, key, value, scale=0.3), dense)
    grouped = [query, key[:, :1], value[:, :1]]
    with GroupedAttention((4, 5), (4, 5), before=1, after=2):
        torch.testing.assert_close(
            scaled_dot_product_attention(*grouped, enable_gqa=True),
            scaled_dot_product_attention(query, *(x.expand(-1, 2, -1, -1) for x in grouped[1:])),
        )


@pytest.mark.sweep
def test_flex_attention_sees_the_same_pairs():
    query, key, value = draw(24)
    sees = find_group_pairs((4, 6), (2, 2), "cross", 1, 0, 0, "cpu")
    torch.testing.assert_close(
        attend_pairs(query, key, value, sees, None, flex=True), attend_pairs(query, key, value, sees, None)
    )
    of_query, of_key, whole = torch.randint(0, 3, (2, 2, 24)), torch.randint(0, 4, (2, 2, 24)), torch.rand(2, 2, 3, 4)

    def sees_like(item, head, at, other):
        return (whole > 0.2)[item, head, of_query[item, head, at], of_key[item, head, other]]

    torch.testing.assert_close(
        attend_pairs(query, key, value, sees_like, 0.4, flex=True), attend_pairs(query, key, value, sees_like, 0.4)
    )


def test_a_tokenizer_codes_under_it_without_a_change():
    tokenizer = build_tokenizer(read_system("seit").choose_settings(small=True)).eval()
    x = torch.rand(2, 3, 32, 32)
    before = tokenizer.encode(x)
    with GroupedAttention((8, 8), (8, 8)) as session:  # one group: all of it
        assert torch.equal(tokenizer.encode(x).ids, before.ids) and session.num_calls == 1
    with GroupedAttention((8, 8), (2, 2), "surrounding", radius=0):
        near = tokenizer.encode_tokens(x)
    changed = x.clone()
    changed[:, :, :8, :8] = 0  # the first of its boxes of patches of 4 pixels
    with torch.no_grad(), GroupedAttention((8, 8), (2, 2), "surrounding", radius=0):
        differ = (tokenizer.encode_tokens(changed) - near).abs().amax((0, 2)).unflatten(0, (8, 8)) > 1e-6
    assert differ[:2, :2].all() and int(differ.sum()) == 4
    assert torch.equal(tokenizer.encode(x).ids, before.ids)


def test_what_cannot_be_is_one_line():
    for make, message in [
        (lambda: GroupedAttention((4, 6), (3, 2)), "do not fill"),
        (lambda: GroupedAttention((4, 6), (2,)), "do not fill"),
        (lambda: GroupedAttention((4, 6), (2, 2), "ring"), "unknown"),
        (lambda: GroupedAttention((4, 6), (2, 2), "surrounding", radius=-1), "radius"),
        (lambda: GroupedAttention((0, 6), (2, 2)), "no attention"),
        (lambda: SemanticAttention((4, 6), 0), "at least 1"),
        (lambda: SemanticAttention((4, 6), top_p=0), "shares"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(ValueError, match="no full attention over 24 tokens"), GroupedAttention((4, 6), (2, 2)):
        scaled_dot_product_attention(*draw(23))
