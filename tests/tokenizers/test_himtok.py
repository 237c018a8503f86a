"""HiMTok: masks as codes from coarse to fine, without the picture."""

import pytest
import torch

from tests.campaigns import is_study
from unimodal.media.files import MediaSource
from unimodal.media.limits import MediaLimits
from unimodal.media.registry import FileTarget
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system


def draw_masks(count: int, generator: torch.Generator, size: int = 16) -> torch.Tensor:
    """Rectangles of any place and size: float [count, 1, size, size]."""
    low = torch.randint(0, size // 2 + 1, (count, 2, 1, 1), generator=generator)
    high = low + torch.randint(size // 4, size // 2 + 1, (count, 2, 1, 1), generator=generator)
    rows, columns = torch.arange(size)[None, :, None], torch.arange(size)[None, None]
    inside = (rows >= low[:, 0]) & (rows < high[:, 0]) & (columns >= low[:, 1]) & (columns < high[:, 1])
    return inside[:, None].float()


def build_small(changes=None):
    torch.manual_seed(0)
    return build_tokenizer({**read_system("himtok").choose_settings(small=True), **(changes or {})})


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


@pytest.mark.sweep("tokenizers at work")
def test_a_longer_prefix_is_nearer_once_the_tail_was_dropped_in_training():
    """The first code says the half, the second the quarter."""
    size = {"width": 32, "num_layers": 1, "num_heads": 2}
    pixels = {"num_codes": 8, "channels": 8, "multipliers": [1, 1, 1], "num_blocks": 1, "num_groups": 4}
    tiny = {"image_size": 8, "patch_size": 4, "num_tokens": 2, "codebook_size": 4, "encoder": size, "decoder": size}
    tokenizer = build_small({**tiny, "pixels": pixels}).train()
    ids = (torch.arange(4)[:, None] // torch.tensor([2, 1]) % 2).repeat(2, 1).unsqueeze(-1)  # [8, 2, 1]
    masks = torch.zeros(8, 1, 8, 8)
    for mask, (row, column) in zip(masks, ids[..., 0].tolist(), strict=True):
        mask[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1
    optimizer = torch.optim.AdamW(tokenizer.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        made = tokenizer.decode_tokens(tokenizer.quantizer.look_up(ids), tokenizer.draw_kept(len(ids)))
        torch.nn.functional.binary_cross_entropy(made.clamp(1e-6, 1 - 1e-6), masks).backward()
        optimizer.step()
    tokenizer.eval()
    errors = [(tokenizer.decode(Codes.whole(ids[:, :num])) - masks).abs().mean().item() for num in (1, 2)]
    assert errors[1] < 0.75 * errors[0], errors


@pytest.mark.study
@pytest.mark.skipif(not is_study(), reason="takes a minute")
def test_rectangles_are_learned_from_coarse_to_fine():
    """Encoder, codebook and decoder together, from random weights."""
    size = {"width": 32, "num_layers": 1, "num_heads": 2}
    pixels = {"num_codes": 16, "channels": 8, "multipliers": [1, 1], "num_blocks": 1, "num_groups": 4}
    tiny = {"image_size": 8, "patch_size": 2, "num_tokens": 4, "codebook_size": 32, "encoder": size, "decoder": size}
    tokenizer, generator = build_small({**tiny, "pixels": pixels}).train(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), 1.5e-3)
    for _ in range(400):
        optimizer.zero_grad()
        tokenizer.training_loss(draw_masks(32, generator, 8))[0].backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimizer.step()
    masks = draw_masks(64, torch.Generator().manual_seed(99), 8)
    codes = tokenizer.eval().encode(masks)
    made = [tokenizer.decode(Codes.whole(codes.ids[:, :num])) for num in range(1, 5)]
    errors = [(each - masks).abs().mean().item() for each in made]
    assert errors[1] < 0.9 * errors[0] and errors[3] < 0.9 * errors[0], errors


def test_masks_do_not_all_begin_with_the_same_tokens(tokenizer):
    """Drawn as its authors' wide layers are, layers of so small a form would add next to nothing, and every mask
    would keep the same codes all through its training."""
    vectors = tokenizer.encode_tokens(draw_masks(16, torch.Generator().manual_seed(6)))
    assert vectors.std(0).mean() > 0.02 * vectors.std()


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
