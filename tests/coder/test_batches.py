"""Media of any axes become the batches that tokenizers take, and come back."""

from dataclasses import replace

import pytest
import torch

from unimodal.coder.batches import group_by_size, split_batch, stack_media
from unimodal.media.registry import MEDIA

POINTS = replace(MEDIA["audio"], name="points", axes="tc")
CASES = {
    "image": (MEDIA["image"], [(3, 4, 5)] * 2, (2, 3, 4, 5)),
    "audio": (MEDIA["audio"], [(6,), (4,)], (2, 1, 6)),
    "video": (MEDIA["video"], [(2, 3, 4, 5)] * 2, (2, 3, 2, 4, 5)),
    "points": (POINTS, [(2, 3), (7, 3), (1, 3)], (3, 3, 7)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_batch_has_channels_first_and_comes_back(name):
    medium, shapes, expected = CASES[name]
    items = [torch.rand(shape) for shape in shapes]
    batch, lengths = stack_media(medium, items)
    assert batch.shape == expected and (lengths is None) == (not medium.padded)
    counts = [1 for _ in items] if lengths is None else lengths.tolist()
    back = split_batch(medium, batch, counts)
    assert all(torch.equal(a, b) for a, b in zip(items, back, strict=True))
    if lengths is not None:
        real = torch.arange(batch.shape[-1]) < lengths[:, None]  # [B, T]
        assert (batch.movedim(-1, 1)[~real] == 0).all()
        doubled = split_batch(medium, batch.repeat_interleave(2, dim=-1), counts)
        assert [item.shape[0] for item in doubled] == [2 * count for count in counts]


def test_only_the_padded_axis_may_differ_within_a_batch():
    assert group_by_size(MEDIA["audio"], [torch.rand(3), torch.rand(9)]) == [[0, 1]]
    pictures = [torch.rand(3, 4, 4), torch.rand(3, 4, 5), torch.rand(3, 4, 4)]
    assert group_by_size(MEDIA["image"], pictures) == [[0, 2], [1]]
    assert group_by_size(POINTS, [torch.rand(2, 3), torch.rand(5, 3), torch.rand(5, 2)]) == [[0, 1], [2]]
