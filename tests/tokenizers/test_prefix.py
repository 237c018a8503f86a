"""Prefix policies: lengths by their rule, an item's own, and both ways to drop the tail."""

import pytest
import torch

from unimodal.tokenizers.parts.prefix import (
    PrefixPolicy,
    count_before_halt,
    cut_tail,
    list_powers,
    make_halting_targets,
    make_prefix_mask,
    mask_tail,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "kind, lengths",
    [
        ("uniform", set(range(1, 17))),
        ("powers", {1, 2, 4, 8, 16}),
        ("rounded", {1, 2, 4, 8, 16}),
        ("nested", set(range(1, 17))),
    ],
)
def test_lengths_are_drawn_for_each_item_and_come_again_with_the_seed(kind, lengths):
    policy = PrefixPolicy(kind)
    kept = policy.draw(1000, 16, seeded())
    assert set(kept.tolist()) == lengths  # rows of one batch differ
    assert torch.equal(kept, policy.draw(1000, 16, seeded()))
    assert torch.equal(kept[:5], policy.draw(5, 16, seeded()))  # whatever stands beside an item
    assert set(PrefixPolicy(kind, shared=True).draw(9, 16, seeded()).unique().shape) == {1}


def test_shares_of_lengths():
    powers, rounded = (PrefixPolicy(kind).draw(20_000, 16, seeded()) for kind in ("powers", "rounded"))
    for size, share in ((1, 1 / 16), (2, 1 / 16), (4, 2 / 16), (8, 4 / 16), (16, 8 / 16)):
        assert abs(float((powers == size).float().mean()) - 1 / 5) < 0.02
        assert abs(float((rounded == size).float().mean()) - share) < 0.02
    half = PrefixPolicy("uniform", share=0.5).draw(20_000, 100, seeded())
    assert abs(float((half == 100).float().mean()) - 0.505) < 0.02


def test_a_schedule_lets_shorter_prefixes_in_one_after_another():
    policy = PrefixPolicy("nested", fewest=4, schedule=0.5)
    least = [int(policy.draw(2000, 20, seeded(), progress).min()) for progress in (0.0, 0.25, 0.5, 1.0)]
    assert least == [20, 12, 4, 4]


def test_nothing_is_dropped_without_a_policy_and_bad_numbers_are_named():
    assert PrefixPolicy().draw(3, 8) is None and PrefixPolicy("uniform", share=0.0).draw(3, 8) is None
    assert list_powers(4, 20) == [4, 8, 16, 20] and list_powers(1, 1) == [1]
    with pytest.raises(ValueError, match="at least 9 tokens, and there are 8"):
        PrefixPolicy("uniform", fewest=9).draw(3, 8)
    with pytest.raises(ValueError, match="share lies in"):
        PrefixPolicy("uniform", share=2.0)


def test_the_tail_is_cut_off_or_becomes_one_vector():
    tokens, kept, vector = torch.randn(2, 6, 3), torch.tensor([2, 4]), torch.tensor([7.0, 8.0, 9.0])
    short, mask = cut_tail(tokens, kept)
    assert short.shape == (2, 4, 3) and mask.sum(1).tolist() == [2, 4]
    assert torch.equal(short[0, :2], tokens[0, :2]) and torch.equal(short[1], tokens[1, :4])
    masked = mask_tail(tokens, kept, vector)
    assert torch.equal(masked[0, 2:], vector.expand(4, 3)) and torch.equal(masked[1, :4], tokens[1, :4])
    assert torch.equal(make_prefix_mask(kept, 6).sum(1), kept)


def test_a_model_may_choose_the_length_itself():
    halting = torch.tensor([[0.1, 0.8, 0.2, 0.9], [0.9, 0.9, 0.9, 0.9], [0.1, 0.2, 0.3, 0.75]])
    assert count_before_halt(halting).tolist() == [1, 1, 4]
    assert count_before_halt(halting, threshold=0.85, fewest=2).tolist() == [3, 2, 4]
    assert make_halting_targets(torch.tensor([1, 3]), 4).tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]
