"""BEATs' tokenizer: the authors' outputs from their weights."""

import pytest
import torch

from unimodal.tokenizers import pretrained
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.systems.beats import BeatsTokenizer

NAME = "audio/beats_tokenizer"


def load(reference):
    settings = BeatsTokenizer.read_authors_config(reference.config)
    return BeatsTokenizer.from_authors(reference.weights, settings, reference.name)


def test_weights_of_the_authors_give_their_outputs(open_reference):
    reference = open_reference(NAME)
    tokenizer = load(reference)
    x = reference["input"].unsqueeze(1)
    with torch.inference_mode():
        bands = tokenizer.read_bands(x)
        reference.check_close("fbank", bands, atol=2e-3)
        reference.check_close("patch_embedding", tokenizer.patch_embedding(bands[:, None]), atol=2e-3)
        hidden = tokenizer.encode_patches(bands)
        reference.check_close("encoder_out", hidden)
        latents = tokenizer.quantize_layer(hidden)
        reference.check_close("latents", latents, atol=1e-5)
        reference.check_close("quantized", tokenizer.quantizer(latents).rows, atol=1e-5)
    codes = tokenizer.encode(x)
    reference.check_equal("codes", codes.ids.flatten())
    ragged = x[..., : int(reference["ragged_length"])]
    with torch.inference_mode():
        reference.check_close("fbank_ragged_item1", tokenizer.read_bands(ragged[1:]), atol=2e-3)
    reference.check_equal("codes_ragged", tokenizer.encode(ragged).ids.flatten())


def test_padding_is_masked_as_published_where_that_is_asked_for(open_reference):
    reference = open_reference(NAME)
    tokenizer = load(reference)
    x, lengths = reference["input"].unsqueeze(1), reference["padding_mask_valid_lengths"].long()
    codes = tokenizer.encode(x, lengths, published=True)
    theirs = reference["codes_padding_mask"].view(2, -1).long()
    assert torch.equal(codes.ids[..., 0][codes.mask], theirs[codes.mask]) and not codes.mask.all()
    with torch.inference_mode():
        bands = tokenizer.read_bands(x)
        hidden = tokenizer.encode_patches(bands, codes.mask)
        reference.check_close("latents_padding_mask", tokenizer.quantize_layer(hidden), atol=1e-5)


def test_weights_are_written_back_as_they_came(open_reference):
    reference = open_reference(NAME)
    tokenizer = load(reference)
    state = tokenizer.collect_authors_state()
    assert state.keys() == reference.weights.keys()
    read = {name for name in state if "cluster_size" not in name and "embed_avg" not in name}
    assert all(torch.equal(state[name], reference.weights[name]) for name in read)
    again = BeatsTokenizer.from_authors(state, tokenizer.config)
    assert again.sha256 == tokenizer.sha256


def test_a_sound_has_the_same_labels_alone_and_beside_a_longer_one():
    torch.manual_seed(0)
    tokenizer = build_tokenizer(read_system("beats").choose_settings(small=True)).eval()
    sounds = 0.3 * torch.randn(2, 1, 6000, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([2900, 6000])
    batch = tokenizer.encode(sounds, lengths)
    assert batch.counts == [8, 16]
    assert torch.equal(batch.row(0), tokenizer.encode(sounds[:1, :, :2900]).row(0))
    assert tokenizer.encode(torch.zeros(1, 1, 50)).counts == [8]
    with pytest.raises(ValueError, match="no decoder"):
        tokenizer.decode(batch)


def test_rows_are_directions_that_turn_toward_the_sounds_that_chose_them():
    torch.manual_seed(0)
    tokenizer = build_tokenizer(read_system("beats").choose_settings(small=True)).train()
    sounds = 0.3 * torch.randn(4, 1, 8000, generator=torch.Generator().manual_seed(0))
    tokenizer.quantizer.started.fill_(1)  # at random, and not by k-means
    with torch.no_grad():
        losses = [float(tokenizer.training_loss(sounds)[0]) for _ in range(60)]
    rows = tokenizer.quantizer.codebook
    assert losses[-1] < 0.5 * losses[0]
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(len(rows)))


def test_a_released_checkpoint_says_its_own_settings(tmp_path):
    small = read_system("beats").choose_settings(small=True)
    tokenizer = build_tokenizer({**small, "gated": False, "deep": False, "num_buckets": 0})
    theirs = {
        "input_patch_size": 16, "embed_dim": 16, "encoder_layers": 2, "encoder_embed_dim": 32, "conv_pos": 16,
        "encoder_ffn_embed_dim": 48, "encoder_attention_heads": 4, "conv_pos_groups": 4, "quant_n": 32, "quant_dim": 8,
    }  # fmt: skip
    torch.save({"cfg": theirs, "model": tokenizer.collect_authors_state()}, tmp_path / "Tokenizer_iter3.pt")
    assert pretrained.load("beats", tmp_path / "Tokenizer_iter3.pt", pickle=True).sha256 == tokenizer.sha256
    with pytest.raises(ValueError, match="is a pickle|has no config.json"):
        pretrained.load("beats", tmp_path / "Tokenizer_iter3.pt")


def test_a_long_sound_is_read_in_windows_that_lose_no_label():
    torch.manual_seed(0)
    settings = {**read_system("beats").choose_settings(small=True), "window_frames": 64, "overlap_frames": 32}
    tokenizer = build_tokenizer(settings).eval()
    sound = 0.3 * torch.randn(1, 1, 24000, generator=torch.Generator().manual_seed(0))  # 148 frames
    codes, whole = tokenizer.encode(sound), tokenizer.encode(sound, published=True)
    assert codes.counts == whole.counts == [9 * 8]
    first = tokenizer.encode(sound[..., : 63 * 160 + 400])
    assert torch.equal(codes.ids[:, :24], first.ids[:, :24]) and not torch.equal(codes.ids, whole.ids)
