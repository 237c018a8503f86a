"""Speech as content, prosody and voice: lengths, any row of codes, other voices, training, where parts come from."""

import pytest
import torch

from tests.tokenizers.test_speech_encoders import save_whisper
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
    assert codes.counts == [2 + 4 * 9, 2 + 3 * 9, 2 + 9] and tokenizer.tokens_per_second == 56.25
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
    assert heard.shape[-1] == 320 * max(1, sum(code < 64 for code in row[2:])) and heard.isfinite().all()


def test_a_code_of_prosody_holds_until_the_next_one():
    voice, content, prosody, places = build_small().split_row(torch.tensor([1, 2, 5, 70, 6, 7, 65, 8]))
    assert voice.tolist() == [1, 2] and content.tolist() == [5, 6, 7, 8] and prosody.tolist() == [8, 6, 6, 1]
    assert places.tolist() == [0, 0, 1, 0]


def test_a_whole_row_is_decoded_as_it_was_trained():
    tokenizer, sounds = build_small(), make_sounds(7680)
    made = tokenizer.reconstruct(sounds)
    codes = tokenizer.encode(sounds)
    assert torch.equal(codes.ids[0, 2:, 0].view(-1, 9)[:, 1:].flatten(), made.ids[0, :, 0])
    torch.testing.assert_close(tokenizer.decode(codes), made.decoded.clamp(-1, 1))


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


def test_the_trunk_is_a_whisper_and_the_head_that_of_an_older_codec(tmp_path):
    model = save_whisper(tmp_path / "whisper")
    older = build_tokenizer({"family": "mel_fsq", "window_size": 512, "num_mels": 20, "width": 8, "head": "istft",
                             "head_width": 32, "head_blocks": 1, "head_expansion": 2})  # fmt: skip
    older.save(tmp_path / "older")
    tokenizer = build_small(trunk_width=16, trunk_layers=2, context=20, lead_steps=2, window_frames=32)
    tokenizer.fill_trunk(f"{tmp_path / 'whisper'}+{tmp_path / 'older'}")
    assert torch.equal(tokenizer.trunk.encoder.conv1.weight, model.encoder.conv1.weight)
    assert torch.equal(tokenizer.head.out.weight.half(), older.head.out.weight.half())
    with pytest.raises(ValueError, match="a head of other sizes"):
        build_small(head_width=16).fill_trunk(str(tmp_path / "older"))


def test_codes_are_learnt_from_both_what_is_heard_and_the_bands():
    tokenizer, sounds = build_small().train(), make_sounds(5120, 2)
    tokenizer.reconstruct(sounds).loss.backward()
    for name in ("content.listen", "content.stem", "voice.head", "prosody.head", "decoder.out"):
        assert all(p.grad.abs().sum() > 0 for p in tokenizer.get_submodule(name).parameters()), name


def test_what_is_trained_says_what_is_made_and_what_a_trunk_hears_is_kept(tmp_path):
    tokenizer, sounds = build_small(), make_sounds(5120, 2)
    whole = tokenizer.train().reconstruct(sounds, torch.tensor([5120, 2000]))
    assert "mel_error" in whole.numbers and whole.decoded.shape == sounds.shape
    for part in ("content", "head"):
        tokenizer.get_submodule(part).requires_grad_(False)
    tokenizer.keep_trunk(2**20, tmp_path)
    first, again = tokenizer.reconstruct(sounds), tokenizer.reconstruct(sounds)
    assert first.decoded is None and set(first.numbers) == {"mel_error"} and len(tokenizer.kept.rows) == 2
    tokenizer.keep_trunk(2**20, tmp_path)
    tokenizer.hear = None  # a run that goes on finds in the folder what was heard
    assert torch.equal(tokenizer.reconstruct(sounds).loss, first.loss) and len(list(tmp_path.iterdir())) == 2
    assert torch.equal(first.loss, again.loss) and torch.equal(first.ids, again.ids)
    for part in ("decoder", "voice", "prosody"):
        tokenizer.get_submodule(part).requires_grad_(False)
    tokenizer.head.requires_grad_(True)
    alone = tokenizer.reconstruct(sounds)
    assert alone.ids is None and alone.decoded.shape == sounds.shape and not alone.loss


def test_frames_and_what_is_heard_are_exact_in_a_training_of_lower_precision():
    tokenizer, sounds = build_small(), make_sounds(5120)
    exact = tokenizer.mel(sounds[:, 0]), tokenizer.hear_items(sounds, None)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rough = tokenizer.mel(sounds[:, 0]), tokenizer.hear_items(sounds, None)[0]
    assert all(torch.equal(one, other) for one, other in zip(exact, rough, strict=True))
