"""Speech as content, prosody and voice: lengths, any row of codes, other voices, training, where parts come from."""

import pytest
import torch

from tests.tokenizers.test_speech_encoders import save_whisper
from tests.tokenizers.test_whisper_bottleneck import build_small as build_content
from tests.tokenizers.test_whisper_bottleneck import make_sounds
from unimodal.tokenizers import load_tokenizer
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.interface import Condition


def build_small(**changes):
    torch.manual_seed(0)
    return build_tokenizer({**read_system("whisper-codec").choose_settings(small=True), **changes}).eval()


def test_a_sound_has_a_voice_and_whole_groups_alone_and_beside_a_longer_one():
    tokenizer, sounds = build_small(), make_sounds(9600, 3)
    lengths = torch.tensor([9600, 6500, 100])
    codes = tokenizer.encode(sounds, lengths)
    assert codes.counts == [2 + 4 * 5, 2 + 3 * 5, 2 + 5] and tokenizer.tokens_per_second == 31.25
    waves = tokenizer.decode(codes)
    for row, length in enumerate(lengths):
        alone = tokenizer.encode(sounds[row : row + 1, :, :length])
        assert torch.equal(codes.row(row), alone.row(0))
        heard = tokenizer.decode(alone)
        assert heard.shape[-1] == -(-int(length) // 2560) * 2560
        assert torch.equal(waves[row, :, : heard.shape[-1]], heard[0]) and not waves[row, :, heard.shape[-1] :].any()
    assert codes.row(0)[2, 0] >= 64 > codes.row(0)[3, 0]  # prosody stands in front of its content


@pytest.mark.parametrize(
    "row", [[1], [1, 2], [1, 2, 70], [1, 2, 5], [1, 2, 5, 70, 71, 6, 7], [1, 2, 70, 5, 6, 7, 8, 9, 3]]
)
def test_any_row_of_codes_decodes_to_its_content(row):
    tokenizer = build_small()
    heard = tokenizer.decode(Codes.whole(torch.tensor([row])))
    assert heard.shape[-1] == 640 * max(1, sum(code < 64 for code in row[2:])) and heard.isfinite().all()


def test_a_code_of_prosody_holds_until_the_next_one():
    voice, content, prosody = build_small().split_row(torch.tensor([1, 2, 5, 70, 6, 7, 65, 8]))
    assert voice.tolist() == [1, 2] and content.tolist() == [5, 6, 7, 8] and prosody.tolist() == [8, 6, 6, 1]


def test_a_sound_decodes_with_the_voice_of_a_clip_or_of_a_name(tmp_path):
    tokenizer = build_small()
    codes, clip = tokenizer.encode(make_sounds(2560)), torch.sin(torch.arange(8000) / 9)[None, None] * 0.5
    other = tokenizer.decode(codes, Condition(medium=clip))
    assert not torch.equal(other, tokenizer.decode(codes))
    tokenizer.name_voice("low", clip[0])
    tokenizer.save(tmp_path)
    voice = load_tokenizer(tmp_path).find_voice("low")
    assert torch.equal(tokenizer.decode(tokenizer.change_voice(codes, voice)), other)
    with pytest.raises(ValueError, match="no voice 'high'; there are low"):
        tokenizer.find_voice("high")
    with pytest.raises(ValueError, match="not 2 codes of a voice"):
        build_small(voices={"low": (1, 16)})


def test_content_comes_from_a_trained_bottleneck_and_the_head_from_an_older_codec(tmp_path):
    save_whisper(tmp_path / "whisper")
    sizes = {"trunk_width": 16, "trunk_layers": 2, "context": 20, "lead_steps": 2, "window_frames": 32}
    content = build_content(**sizes)
    content.fill_trunk(str(tmp_path / "whisper"))
    content.save(tmp_path / "content")
    older = build_tokenizer({"family": "mel_fsq", "window_size": 512, "num_mels": 20, "width": 8, "head": "istft",
                             "head_width": 32, "head_blocks": 1, "head_expansion": 2})  # fmt: skip
    older.save(tmp_path / "older")
    tokenizer = build_small(**sizes)
    tokenizer.fill_trunk(f"{tmp_path / 'whisper'}+{tmp_path / 'content'}+{tmp_path / 'older'}")
    sound = make_sounds(2560)
    ids = tokenizer.encode(sound).ids[0, 3:, 0]
    assert torch.equal(ids, content.encode(sound).ids[0, :, 0])
    assert torch.equal(tokenizer.head.out.weight.half(), older.head.out.weight.half())
    with pytest.raises(ValueError, match="parts of other sizes"):
        build_small().fill_trunk(str(tmp_path / "content"))


def test_what_is_trained_says_what_is_made_and_what_a_trunk_hears_is_kept():
    tokenizer, sounds = build_small(), make_sounds(5120, 2)
    whole = tokenizer.train().reconstruct(sounds, torch.tensor([5120, 2000]))
    assert {"mel_error", "feature_error"} <= set(whole.numbers) and whole.decoded.shape == sounds.shape
    for part in ("down", "up", "head"):
        tokenizer.get_submodule(part).requires_grad_(False)
    tokenizer.keep_trunk(2**20)
    first, again = tokenizer.reconstruct(sounds), tokenizer.reconstruct(sounds)
    assert first.decoded is None and set(first.numbers) == {"mel_error"} and len(tokenizer.kept.rows) == 2
    assert torch.equal(first.loss, again.loss) and torch.equal(first.ids, again.ids)
    for part in ("decoder", "voice", "prosody"):
        tokenizer.get_submodule(part).requires_grad_(False)
    tokenizer.head.requires_grad_(True)
    alone = tokenizer.reconstruct(sounds)
    assert alone.ids is None and alone.decoded.shape == sounds.shape and not alone.loss
