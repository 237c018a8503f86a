"""nano's clip tokenizer on a picture tokenizer of another family, with fewer codes than a frame has patches."""

import pytest
import torch

from unimodal.tokenizers import load_tokenizer
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.nano.video import VideoTokenizer, VideoTokenizerConfig

SMALL = {"width": 24, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1, "conv_channels": 16}


def build_pictures(system="meaning-first-64", **changes):
    torch.manual_seed(0)
    return build_tokenizer({**read_system(system).choose_settings(small=True), **changes}).eval()


@pytest.fixture(scope="module")
def pictures():
    return build_pictures()


@pytest.fixture(scope="module")
def clips(pictures):
    torch.manual_seed(1)
    made = VideoTokenizer(VideoTokenizerConfig(image_size=32, **SMALL), pictures).eval()
    with torch.no_grad():
        made.decoder_out.weight.normal_(std=0.1)
    return made


def test_a_clip_begins_with_the_codes_of_its_first_frame(pictures, clips):
    x = torch.rand(2, 3, 9, 32, 32)
    codes = clips.encode(x)
    assert pictures.tokens_per_item == 8 and codes.ids.shape == (2, 8 + 2 * 16, 1) and codes.grid is None
    first = pictures.encode(x[:, :, 0])
    assert torch.equal(codes.ids[:, :8], first.ids)
    decoded = clips.decode(codes)
    assert decoded.shape == x.shape and torch.equal(decoded[:, :, 0], pictures.decode(first))
    assert sum(count for _, count in clips.segments) == clips.tokens_per_item == 40


def test_a_shorter_clip_of_a_batch_is_as_alone(clips):
    long, short = torch.rand(1, 3, 9, 32, 32), torch.rand(1, 3, 5, 32, 32)
    padded = torch.cat([short, torch.rand(1, 3, 4, 32, 32)], dim=2)
    together = clips.encode(torch.cat([long, padded]), lengths=torch.tensor([9, 5]))
    assert together.counts == [40, 24] and torch.equal(together.row(1), clips.encode(short).row(0))
    decoded = clips.decode(together)[1:, :, :5]
    torch.testing.assert_close(decoded, clips.decode(clips.encode(short)), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="8 and a multiple of 16 codes; got"):
        clips.decode(Codes(together.ids[:, :16], together.mask[:, :16]))


def test_what_is_trained_is_the_motion_alone_and_as_it_is_coded(pictures, clips):
    x = torch.rand(2, 3, 9, 32, 32)
    made = clips.reconstruct(x, torch.tensor([9, 5]))
    codes = clips.encode(x, torch.tensor([9, 5]))
    assert torch.equal(made.ids, codes.ids) and torch.equal(made.mask, codes.mask)
    torch.testing.assert_close(made.decoded[:1].clamp(0, 1), clips.decode(codes)[:1], atol=1e-5, rtol=0)
    made.decoded.square().mean().backward()
    assert all(parameter.grad is not None for parameter in clips.parameters())
    assert all(parameter.grad is None for parameter in pictures.parameters())


def test_saved_and_read_with_the_pictures_that_it_continues(pictures, clips, tmp_path):
    clips.save(tmp_path / "clips")
    assert load_tokenizer(tmp_path / "clips", pictures).sha256 == clips.sha256
    with pytest.raises(ValueError, match="continues the image tokenizer"):
        load_tokenizer(tmp_path / "clips", build_pictures(num_pixel=4))


@pytest.mark.parametrize("system, size, said", [
    ("meaning-first-64", 64, r"64×64 pixels do not fit a picture tokenizer of 32×32"),
    ("imagefolder-msvr10p2-4096", 32, "in one group; those of"),
])  # fmt: skip
def test_pictures_that_cannot_begin_a_clip_are_refused(system, size, said):
    pictures = build_pictures(system)
    with pytest.raises(ValueError, match=said):
        VideoTokenizer(VideoTokenizerConfig(image_size=size, **SMALL), pictures)
