"""HiMTok: masks as codes from coarse to fine, without the picture."""

import pytest
import torch

from unimodal.media.files import MediaSource
from unimodal.media.limits import MediaLimits
from unimodal.media.registry import FileTarget
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system


def draw_masks(count: int, generator: torch.Generator) -> torch.Tensor:
    """Rectangles of any place and size: float [count, 1, 16, 16]."""
    low = torch.randint(0, 9, (count, 2, 1, 1), generator=generator)
    high = low + torch.randint(4, 9, (count, 2, 1, 1), generator=generator)
    rows, columns = torch.arange(16)[None, :, None], torch.arange(16)[None, None]
    inside = (rows >= low[:, 0]) & (rows < high[:, 0]) & (columns >= low[:, 1]) & (columns < high[:, 1])
    return inside[:, None].float()


def build_small():
    torch.manual_seed(0)
    return build_tokenizer(read_system("himtok").choose_settings(small=True))


@pytest.fixture(scope="session")
def tokenizer():
    return build_small().eval()


def test_a_mask_is_decoded_from_any_number_of_its_codes_alone(tokenizer):
    codes = tokenizer.encode(draw_masks(2, torch.Generator().manual_seed(2)))
    made = [tokenizer.decode(Codes.whole(codes.ids[:, :num])) for num in range(1, 7)]
    assert all(each.shape == (2, 1, 16, 16) and 0 <= each.min() <= each.max() <= 1 for each in made)
    assert len({tuple(each.flatten().tolist()) for each in made}) == 6  # every code says something
    assert tokenizer.ordered and not tokenizer.encode_conditions and not tokenizer.decode_conditions


def test_no_code_hangs_on_a_later_query(tokenizer):
    masks = draw_masks(4, torch.Generator().manual_seed(3))
    before = tokenizer.encode_tokens(masks)
    with torch.no_grad():
        kept = tokenizer.encoder.resampler.queries.clone()
        tokenizer.encoder.resampler.queries[3:] += torch.randn(3, 32)
        after = tokenizer.encode_tokens(masks)
        tokenizer.encoder.resampler.queries.copy_(kept)
    assert torch.allclose(before[:, :3], after[:, :3], atol=1e-5)
    assert not torch.allclose(before[:, 3:], after[:, 3:], atol=1e-3)


def test_a_missing_code_is_the_same_as_a_shorter_row(tokenizer):
    codes = tokenizer.encode(draw_masks(2, torch.Generator().manual_seed(4)))
    mask = codes.mask.clone()
    mask[:, 3:] = False
    short = tokenizer.decode(Codes.whole(codes.ids[:, :3]))
    assert torch.allclose(tokenizer.decode(Codes(codes.ids, mask)), short, atol=1e-5)
    with pytest.raises(ValueError, match="masks \\[B, 1, 16, 16\\] of 0 and 1; got \\(2, 3, 16, 16\\)"):
        tokenizer.encode(torch.zeros(2, 3, 16, 16))


@pytest.mark.parametrize("size", [(16, 16), (5, 13), (1, 8)])
def test_a_file_comes_back_as_it_was(size, tmp_path, own_registrations):
    from unimodal.tokenizers.more_media.masks import is_mask, load_mask, save_mask

    mask = (torch.rand(1, *size, generator=torch.Generator().manual_seed(5)) > 0.5).float()
    save_mask(mask, tmp_path / "a.pbm", None)
    data: MediaSource = (tmp_path / "a.pbm").read_bytes()
    assert is_mask(data[:64]) and torch.equal(load_mask(data, FileTarget(), MediaLimits()), mask)
    assert load_mask(data, FileTarget(picture_size=(32, 32)), MediaLimits()).shape == (1, 32, 32)
    with pytest.raises(ValueError, match="holds fewer; export it again"):
        load_mask(data[:-1], FileTarget(), MediaLimits())
