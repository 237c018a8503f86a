"""Open-MAGVIT2's tokenizer of clips: the published sizes, causal convolutions, the authors' names."""

import pytest
import torch

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.parts.trunks.vqgan_video import CausalConv, ClipDoubleSize
from unimodal.tokenizers.systems.vqgan_video import VqganVideoConfig, VqganVideoTokenizer


def build(**changes: object) -> VqganVideoTokenizer:
    torch.manual_seed(0)
    tokenizer = build_tokenizer({**read_system("open-magvit2-video").choose_settings(small=True), **changes})
    assert isinstance(tokenizer, VqganVideoTokenizer)
    return tokenizer.eval()


def test_17_frames_of_128_pixels_are_5_times_16_times_16_codes_and_back():
    with torch.device("meta"):
        tokenizer = build_tokenizer(read_system("open-magvit2-video").choose_settings())
        maps = tokenizer.embed(torch.rand(1, 3, 17, 128, 128))
        assert maps.shape == (1, 18, 5, 16, 16)
        assert tokenizer.paint(maps.flatten(2).transpose(1, 2), (5, 16, 16)).shape == (1, 3, 17, 128, 128)
    assert tokenizer.tokens_per_item == 5 * 16 * 16 and tokenizer.codebook_sizes == (64, 4096)


def test_a_convolution_sees_no_later_frame_and_the_first_step_becomes_one_frame():
    torch.manual_seed(0)
    conv, double = CausalConv(2, 3, 3, (2, 2, 2)), ClipDoubleSize(2, in_time=True)
    clip = torch.rand(1, 2, 9, 4, 4)
    later = clip.clone()
    later[:, :, 5:] += 1
    same = conv(clip)[:, :, :3], conv(later)[:, :, :3]  # steps 0, 1, 2 are frames 0, 2, 4
    assert torch.equal(*same) and not torch.equal(conv(clip)[:, :, 3:], conv(later)[:, :, 3:])
    assert conv(clip).shape[2] == 5 and double(torch.rand(1, 2, 5, 2, 2)).shape == (1, 2, 9, 4, 4)
    assert double(torch.rand(1, 2, 1, 2, 2)).shape[2] == 1


def test_clips_of_different_lengths_have_the_codes_that_they_have_alone_and_other_sizes_are_kept():
    tokenizer = build()
    clips = torch.rand(3, 3, 5, 16, 24)
    codes = tokenizer.encode(clips, torch.tensor([5, 3, 5]))
    assert codes.grid == (3, 4, 6) and codes.counts == [72, 48, 72]
    assert torch.equal(codes.row(1), tokenizer.encode(clips[1:2, :, :3]).row(0))
    decoded = tokenizer.decode(codes)
    assert decoded.shape == clips.shape and not decoded[1, :, 3:].any()
    short = Codes.whole(codes.row(1)[None], (2, 4, 6))
    assert torch.allclose(tokenizer.decode(short)[0], decoded[1, :, :3], atol=1e-5)
    for wrong, message in [
        (torch.rand(1, 3, 4, 16, 16), "1 \\+ a multiple of 2 frames; got 4"),
        (torch.rand(1, 3, 5, 18, 16), "sides that 4 divides"),
        (torch.rand(1, 3, 1, 4, 4), "a single position"),
    ]:
        with pytest.raises(ValueError, match=message):
            tokenizer.encode(wrong)


def test_the_weights_have_the_authors_names_and_their_config_is_read():
    tokenizer = build()
    state = tokenizer.collect_authors_state()
    for name in [
        "encoder.conv_in.conv_1.weight",
        "encoder.down.0.downsample.conv_1.bias",
        "encoder.mid_block.0.norm1.weight",
        "encoder.down.1.block.0.nin_shortcut.conv_1.weight",
        "decoder.adaptive.2.gamma.weight",
        "decoder.up.2.upsample.conv1.conv_1.weight",
        "decoder.up.0.block.0.conv2.conv_1.weight",
    ]:
        assert name in state, name
    averages = {"model_ema." + name.replace(".", ""): tensor for name, tensor in state.items()}
    shifted = {name: tensor + 1 for name, tensor in state.items()}
    extra = {"loss.discriminator.weight": torch.zeros(1), "model_ema.decay": torch.zeros(())}
    again = VqganVideoTokenizer.from_authors({**shifted, **averages, **extra}, tokenizer.config)
    assert again.sha256 == tokenizer.sha256
    network = {"z_channels": 18, "resolution": 128, "ch": 128, "ch_mult": [1, 2, 2, 4], "num_res_blocks": 4}
    arguments = {"ddconfig": network, "n_embed": 262144, "embed_dim": 18}
    data = {"init_args": {"train": {"params": {"config": {"size": 128, "sequence_length": 17}}}}}
    found = VqganVideoTokenizer.read_authors_config({"model": {"init_args": arguments}, "data": data})
    published = VqganVideoConfig.model_validate(read_system("open-magvit2-video").choose_settings())
    assert found.model_copy(update={"quantizer": published.quantizer}) == published
    assert found.quantizer.items() >= published.quantizer.items()
