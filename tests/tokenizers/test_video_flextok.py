"""VideoFlexTok: ordered codes for every step of a clip, causal in time, in chunks that share a frame."""

import pytest
import torch

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.systems.video_flextok import VideoFlexTokConfig, build_step_mask


@pytest.fixture(scope="session")
def tokenizer():
    torch.manual_seed(0)
    made = build_tokenizer(read_system("videoflextok").choose_settings(small=True)).eval()
    for p in made.decoder.parameters():  # branches of a new decoder are closed
        torch.nn.init.normal_(p, std=0.1)
    return made


def draw_clips(frames: int) -> torch.Tensor:
    return torch.rand(2, 3, frames, 8, 8, generator=torch.Generator().manual_seed(1))


def test_81_frames_in_17_frame_chunks_are_672_codes():
    config = VideoFlexTokConfig(num_tokens=32)
    assert config.stride + 1 == 17 and config.count_steps(81) * config.num_tokens == 672
    with pytest.raises(ValueError, match="1 \\+ n · 16 frames with n from 1 on.* got 80"):
        config.count_steps(80)


def test_no_code_hangs_on_a_later_frame(tokenizer):
    clips = draw_clips(13)
    ids = tokenizer.encode(clips).ids
    assert ids.shape == (2, 7 * 4, 1)
    for step, last in enumerate((0, 2, 4, 6, 8, 10)):
        changed = clips.clone()
        changed[:, :, last + 1 :] = 1 - changed[:, :, last + 1 :]
        known = (step + 1) * 4
        again = tokenizer.encode(changed).ids
        assert torch.equal(again[:, :known], ids[:, :known]) and not torch.equal(again[:, known:], ids[:, known:])
    assert torch.equal(tokenizer.encode(clips[:, :, :9]).ids, ids[:, : 5 * 4])  # a shorter clip of whole chunks


def test_registers_of_a_step_are_ordered():
    mask = build_step_mask(2, 3, 2, ordered=True)
    patches, registers = slice(3, 6), slice(8, 10)  # of step 1
    assert mask[patches, :6].all() and mask[patches, 6:8].all() and not mask[patches, registers].any()
    assert torch.equal(mask[registers, registers], torch.ones(2, 2).tril().bool()) and not mask[:3, 3:6].any()


def test_a_chunk_is_drawn_from_the_last_decoded_frame_and_a_stream_goes_on(tokenizer):
    codes = tokenizer.encode(draw_clips(13))
    clip = tokenizer.decode(codes)
    assert clip.shape == (2, 3, 13, 8, 8)
    first = tokenizer.decode(Codes.whole(codes.ids[:, : 3 * 4]))
    assert torch.allclose(clip[:, :, :5], first, atol=1e-5)  # decoded before the rest is there
    changed = codes.ids.clone()
    changed[:, : 3 * 4] = (changed[:, : 3 * 4] + 77) % 200  # another past, the same codes behind it
    assert not torch.allclose(tokenizer.decode(Codes.whole(changed))[:, :, 6:], clip[:, :, 6:], atol=1e-3)


def test_every_step_decodes_from_any_number_of_its_first_codes(tokenizer):
    codes = tokenizer.encode(draw_clips(9))
    clips = [tokenizer.decode(tokenizer.shorten(codes, num)) for num in (1, 2, 4)]
    assert torch.equal(clips[2], tokenizer.decode(codes)) and not torch.equal(clips[0], clips[1])
    spoilt = torch.where(torch.arange(codes.ids.shape[1])[None, :, None] % 4 >= 2, 0, codes.ids)
    assert torch.equal(tokenizer.decode(tokenizer.shorten(Codes.whole(spoilt), 2)), clips[1])
    with pytest.raises(ValueError, match="1 to 4 codes; got 5"):
        tokenizer.shorten(codes, 5)
    with pytest.raises(ValueError, match="1 \\+ n · 2 steps of 4 codes each; got 10"):
        tokenizer.decode(Codes.whole(codes.ids[:, :10]))
