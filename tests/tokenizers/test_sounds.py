"""What systems of sounds share: an item of a batch is coded, decoded and reconstructed as it is alone."""

from typing import Literal

import pytest
import torch
from torch import nn

from unimodal.tokenizers.parts.quantizers.vector import VectorQuantizer
from unimodal.tokenizers.systems.base import Reconstruction
from unimodal.tokenizers.systems.sound import SoundConfig, SoundLatents, SoundTokenizer

LENGTHS = torch.tensor([37, 9, 37, 1])


class PatchConfig(SoundConfig):
    family: Literal["patches"] = "patches"


def reverse(x):
    """A network that hears the whole of a sound: what stands at its end comes first."""
    return x.flip(-1)


class PatchSounds(SoundTokenizer):
    config_class = PatchConfig

    def __init__(self, config):
        super().__init__(config)
        self.encoder = nn.Conv1d(1, 4, 4, stride=4)
        self.quantizer = VectorQuantizer(16, 4)
        nn.init.normal_(self.quantizer.codebook)
        self.decoder = nn.ConvTranspose1d(4, 1, 4, stride=4)
        self.describe((16,), 4, config.sample_rate_hz)
        self.fewest_samples = 4

    def pad_equal(self, x, published):
        spare = 4 - x.shape[-1] % 4 if published else -x.shape[-1] % 4
        return nn.functional.pad(x, (0, spare))

    def encode_equal(self, x):
        return self.quantizer(self.encoder(reverse(x)).transpose(1, 2)).ids

    def decode_equal(self, ids):
        return reverse(self.decoder(self.quantizer.look_up(ids).transpose(1, 2)))

    def reconstruct_equal(self, x, generator):
        made = self.quantizer(self.encoder(reverse(self.pad_equal(x, False))).transpose(1, 2))
        decoded = reverse(self.decoder(made.values.transpose(1, 2)))
        return Reconstruction(decoded, made.loss, made.ids, {"codes": float(made.ids.shape[1])}, {"h": made.values})


class PatchLatents(SoundLatents):
    config_class = PatchConfig

    def __init__(self, config):
        super().__init__(config)
        self.describe(4, 4, config.sample_rate_hz)

    def encode_equal(self, x):
        return reverse(nn.functional.pad(x, (0, -x.shape[-1] % 4))).unflatten(-1, (-1, 4))[:, 0]

    def decode_equal(self, values):
        return reverse(values.flatten(1)[:, None])


@pytest.fixture(scope="module")
def sounds():
    x = torch.rand(4, 1, 37, generator=torch.Generator().manual_seed(0)) - 0.5
    return x, LENGTHS


@pytest.mark.parametrize("kind", [PatchSounds, PatchLatents])
def test_a_padded_sound_is_coded_and_decoded_as_it_is_alone(kind, sounds):
    torch.manual_seed(0)
    tokenizer, (x, lengths) = kind(PatchConfig()).eval(), sounds
    coded = tokenizer.encode(x, lengths)
    decoded = tokenizer.decode(coded)
    assert coded.counts == [10, 3, 10, 1] and decoded.shape == (4, 1, 40)
    for row, length in enumerate(lengths.tolist()):
        alone = tokenizer.encode(x[row : row + 1, :, :length])
        assert torch.equal(alone.row(0), coded.row(row))
        wave = tokenizer.decode(alone)[0]
        torch.testing.assert_close(decoded[row, :, : wave.shape[-1]], wave)
        assert not decoded[row, :, wave.shape[-1] :].any()


def test_the_published_rule_of_lengths_is_followed_where_it_is_asked_for(sounds):
    tokenizer = PatchSounds(PatchConfig()).eval()
    x = sounds[0][..., :36]
    assert tokenizer.encode(x).counts == [9] * 4 and tokenizer.encode(x, published=True).counts == [10] * 4


def test_a_batch_of_several_lengths_is_reconstructed_item_by_item(sounds):
    torch.manual_seed(0)
    tokenizer, (x, lengths) = PatchSounds(PatchConfig()), sounds
    made = tokenizer.reconstruct(x, lengths)
    assert made.decoded.shape == x.shape and made.ids.shape == (4, 10, 1)
    assert made.numbers == {"codes": (10 + 3 + 10 + 1) / 4} and made.features["h"].shape == (4, 10, 4)
    alone = [tokenizer.reconstruct(x[row : row + 1, :, :length]) for row, length in enumerate(lengths.tolist())]
    for row, one in enumerate(alone):
        torch.testing.assert_close(made.decoded[row, :, : lengths[row]], one.decoded[0])
        assert torch.equal(made.ids[row, : one.ids.shape[1]], one.ids[0])
    torch.testing.assert_close(made.loss, torch.stack([one.loss for one in alone]).mean())
    loss, _ = tokenizer.training_loss(x, lengths)
    noisy = torch.where(torch.arange(37) < lengths[:, None, None], x, torch.rand_like(x))
    torch.testing.assert_close(tokenizer.training_loss(noisy, lengths)[0], loss)


def test_what_is_no_sound_of_one_channel_is_refused():
    tokenizer = PatchSounds(PatchConfig()).eval()
    with pytest.raises(ValueError, match=r"takes \[B, 1, T\]"):
        tokenizer.encode(torch.zeros(1, 2, 100))


def test_weights_of_another_precision_are_refused_and_sounds_of_one_are_taken():
    torch.manual_seed(0)
    sounds, latents = PatchSounds(PatchConfig()).eval(), PatchLatents(PatchConfig())
    x = torch.rand(1, 1, 37) - 0.5
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(sounds.encode(x.to(kind)).ids, sounds.encode(x.to(kind).float()).ids)
        assert latents.encode(x.to(kind)).values.dtype == torch.float32
    codes = sounds.encode(x)
    with pytest.raises(
        ValueError, match=r"weights are bfloat16, and codes are made in float32; call \.float\(\) on it"
    ):
        sounds.bfloat16().encode(x)
    with pytest.raises(ValueError, match="weights are float64"):
        sounds.double().decode(codes)


def test_samples_that_are_integers_and_several_channels_are_refused_with_what_to_give():
    sounds, x = PatchSounds(PatchConfig()).eval(), torch.rand(1, 1, 37) - 0.5
    assert sounds.encode(16 * x).ids.shape == sounds.encode(x).ids.shape  # a loud file
    with pytest.raises(ValueError, match=r"got torch.int16; x.float\(\) / 32768 of 16-bit samples"):
        sounds.encode((x * 32767).short())
    with pytest.raises(ValueError, match=r"sounds are in \[-1, 1\]; got .*: give x / 32768"):
        sounds.encode((x * 32767).round())
    with pytest.raises(ValueError, match=r"got \(1, 2, 37\); x.mean\(1, keepdim=True\) of several channels"):
        sounds.encode(x.expand(-1, 2, -1))
