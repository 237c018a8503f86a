"""Codes from Whisper's encoder: padding, long sounds, the trunk's weights, features from codes."""

import pytest
import torch

from tests.tokenizers.test_speech_encoders import save_whisper
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system


def build_small(**changes):
    torch.manual_seed(0)
    return build_tokenizer({**read_system("whisper-bottleneck").choose_settings(small=True), **changes}).eval()


def make_sounds(num_samples, rows=1):
    return 0.3 * torch.randn(rows, 1, num_samples, generator=torch.Generator().manual_seed(0))


def test_a_sound_has_25_codes_a_second_alone_and_beside_a_longer_one():
    tokenizer, sounds = build_small(), make_sounds(9600, 3)
    lengths = torch.tensor([9600, 6500, 100])
    codes = tokenizer.encode(sounds, lengths)
    assert tokenizer.tokens_per_second == 25 and codes.counts == [15, 10, 1]
    for row, length in enumerate(lengths):
        assert torch.equal(codes.row(row), tokenizer.encode(sounds[row : row + 1, :, :length]).row(0))
    made = tokenizer.reconstruct(sounds, lengths)
    assert torch.equal(made.mask, codes.mask) and torch.equal(made.ids[made.mask], codes.ids[codes.mask])
    features = tokenizer.decode_features(codes)
    assert [tuple(row.shape) for row in features] == [(30, 32), (20, 32), (2, 32)]
    with pytest.raises(ValueError, match=r"decode_features\(codes\) gives them"):
        tokenizer.decode(codes)


def test_a_long_sound_is_heard_in_windows_that_lose_no_code():
    tokenizer, sounds = build_small(), make_sounds(300 * 160)
    codes = tokenizer.encode(sounds)
    assert codes.counts == [75]
    with pytest.raises(ValueError, match="at most 1.28 s long"):
        tokenizer.reconstruct(sounds)


def test_the_trunk_is_filled_from_a_whisper_and_is_never_trained(tmp_path):
    model = save_whisper(tmp_path)
    tokenizer = build_small(trunk_width=16, trunk_layers=2, context=20, lead_steps=2, window_frames=32)
    tokenizer.fill_trunk(str(tmp_path))
    assert torch.equal(tokenizer.trunk.encoder.conv1.weight, model.encoder.conv1.weight)
    tokenizer.train()
    before = {name: value.clone() for name, value in tokenizer.trunk.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], 1e-2)
    sounds, losses = make_sounds(4800, 2), []
    for _ in range(20):
        optimizer.zero_grad()
        loss, numbers = tokenizer.training_loss(sounds)
        loss.backward()
        optimizer.step()
        losses.append(numbers["feature_error"])
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.trunk.state_dict().items())
    with pytest.raises(ValueError, match="no Whisper of the sizes"):
        build_small().fill_trunk(str(tmp_path))
