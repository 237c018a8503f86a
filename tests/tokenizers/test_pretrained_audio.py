"""Pretrained audio tokenizers: the codes and sounds of transformers' own classes, whatever a clip is batched with."""

import json

import pytest
import torch

from tests import tiny_networks
from unimodal.tokenizers import load_tokenizer, pretrained
from unimodal.tokenizers.codes import Codes

SETTINGS = {
    "encodec": {"bandwidth": 1.2},
    "dac": {"num_codebooks": 3},
    "mimi": {"num_codebooks": 5},
    "xcodec2": {},
    "neucodec": {},
    "xcodec": {"bandwidth": 0.5},
    "higgs_audio_v2": {"bandwidth": 0.5},
}
NUM_GROUPS = {
    "encodec": 2, "dac": 3, "mimi": 5, "xcodec2": 1, "neucodec": 1, "xcodec": 2, "higgs_audio_v2": 2
}  # fmt: skip
LENGTHS = (1700, 1003, 1700, 1280)


def reference_codes(name, network, sound):
    """[N, G] of one sound [T] by the reference class and its feature extractor."""
    with torch.inference_mode():
        if name == "encodec":
            return network.encode(sound[None, None], bandwidth=1.2).audio_codes[0, 0].T
        if name == "dac":
            from transformers import DacFeatureExtractor

            extract = DacFeatureExtractor(sampling_rate=16000, hop_length=10)
            inputs = extract(sound.numpy(), sampling_rate=16000, return_tensors="pt")
            return network.encode(inputs["input_values"], n_quantizers=3).audio_codes[0].T
        if name == "mimi":
            return network.encode(sound[None, None], num_quantizers=5).audio_codes[0].T
        if name in ("xcodec", "higgs_audio_v2"):
            whole = torch.nn.functional.pad(sound, (0, -len(sound) % 320))
            return network.encode(whole[None, None], bandwidth=0.5).audio_codes[0].T
        if name == "neucodec":
            from torchaudio.functional import resample
            from transformers import NeuCodecFeatureExtractor

            heard = resample(sound, 24000, 16000)
            inputs = NeuCodecFeatureExtractor()(heard.numpy(), sampling_rate=16000, return_tensors="pt")
            return network.encode(**inputs).audio_codes[0, :, : len(heard) // 320].T
        from transformers import Xcodec2FeatureExtractor

        inputs = Xcodec2FeatureExtractor()(sound.numpy(), sampling_rate=16000, return_tensors="pt")
        found = network.encode(**inputs)
        return found.audio_codes[0, :, found.audio_codes_mask[0].bool()].T


def reference_sound(name, network, codes):
    """[T] of the codes [N, G] of one sound by the reference class."""
    ids = codes.T[None]  # [1, G, N]
    with torch.inference_mode():
        if name == "encodec":
            return network.decode(ids[None], [None]).audio_values[0, 0]
        if name == "dac":
            return network.decode(audio_codes=ids).audio_values[0]
        return network.decode(ids).audio_values[0, 0]


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.sweep) for name in SETTINGS])
def both(request, tmp_path_factory):
    """(family, tokenizer read from a saved checkpoint, the reference network)"""
    network = getattr(tiny_networks, request.param)()
    folder = tmp_path_factory.mktemp(request.param)
    network.save_pretrained(folder)
    return request.param, pretrained.load(request.param, folder, **SETTINGS[request.param]), network


def sounds():
    noise = torch.Generator().manual_seed(3)
    x = torch.zeros(len(LENGTHS), 1, max(LENGTHS))
    for row, length in enumerate(LENGTHS):
        x[row, 0, :length] = (torch.rand(length, generator=noise) * 2 - 1) * (0.3 + 0.2 * row)
    return x, torch.tensor(LENGTHS)


def test_codes_are_the_references_alone_and_in_a_batch(both):
    name, tokenizer, network = both
    x, lengths = sounds()
    codes = tokenizer.encode(x, lengths)
    seen = set()
    for row, length in enumerate(LENGTHS):
        expected = reference_codes(name, network, x[row, 0, :length])
        assert torch.equal(codes.row(row), expected)
        assert torch.equal(tokenizer.encode(x[row : row + 1, :, :length]).row(0), expected)
        seen |= {tuple(step) for step in expected.tolist()}
    assert len(seen) >= 6  # codes that say something: equality of constants would prove nothing
    assert (codes.ids[~codes.mask] == 0).all()


def test_what_stands_behind_a_clip_does_not_matter(both):
    _, tokenizer, _ = both
    x, lengths = sounds()
    loud = torch.where(torch.arange(x.shape[2]) < lengths[:, None, None], x, torch.ones(()))
    assert torch.equal(tokenizer.encode(loud, lengths).ids, tokenizer.encode(x, lengths).ids)


def test_sounds_are_the_references(both):
    name, tokenizer, network = both
    x, lengths = sounds()
    codes = tokenizer.encode(x, lengths)
    decoded = tokenizer.decode(codes)
    assert decoded.shape == (len(x), 1, codes.ids.shape[1] * tokenizer.samples_per_code)
    for row in range(len(x)):
        expected = reference_sound(name, network, codes.row(row)).clamp(-1, 1)
        count = len(codes.row(row)) * tokenizer.samples_per_code
        assert count - tokenizer.samples_per_code < len(expected) <= count
        assert (decoded[row, 0, : len(expected)] - expected).abs().max() < 3e-5
        assert (decoded[row, 0, len(expected) :] == 0).all()


def test_the_contract(both):
    name, tokenizer, network = both
    assert tokenizer.modality == "audio" and not tokenizer.ordered
    assert len(tokenizer.codebook_sizes) == NUM_GROUPS[name]
    assert tokenizer.block_sizes == {"audio": tokenizer.codebook_sizes[0]}
    rate = tokenizer.config.sample_rate_hz
    codes = tokenizer.encode(torch.zeros(1, 1, 8 * tokenizer.samples_per_code))
    assert codes.ids.shape[2] == NUM_GROUPS[name] and codes.order == "time"
    assert tokenizer.tokens_per_second == rate / tokenizer.samples_per_code
    assert codes.mask.sum() == 8
    assert tokenizer.train().network.training is False


def test_a_saved_folder_gives_the_same_codes_without_its_source(both, tmp_path):
    name, tokenizer, _ = both
    tokenizer.save(tmp_path)
    x, lengths = sounds()
    for again in (load_tokenizer(tmp_path), pretrained.load(name, tmp_path)):
        assert again.sha256 == tokenizer.sha256
        assert torch.equal(again.encode(x, lengths).ids, tokenizer.encode(x, lengths).ids)
    assert json.loads((tmp_path / "config.json").read_text())["family"] == name


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["encodec", "dac", "mimi"])
def test_fewer_codebooks_decode_to_the_references_coarser_sound(name, tmp_path):
    network = getattr(tiny_networks, name)()
    network.save_pretrained(tmp_path)
    tokenizer = pretrained.load(name, tmp_path, **SETTINGS[name])
    x, _ = sounds()
    codes = tokenizer.encode(x[:1])
    coarse = Codes(codes.ids[..., :1].contiguous(), codes.mask, order="time")
    expected = reference_sound(name, network, coarse.row(0)).clamp(-1, 1)
    assert (tokenizer.decode(coarse)[0, 0, : len(expected)] - expected).abs().max() < 3e-5


def test_an_encodec_that_needs_scales_is_refused(tmp_path):
    tiny_networks.encodec(normalize=True, chunk_length_s=1.0, overlap=0.01).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"loudness.*facebook/encodec_24khz"):
        pretrained.load("encodec", tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bandwidth": 2.0}, "no bandwidth 2.0; it has 0.6, 1.2, 4.8"),
        ({"num_codebooks": 2}, "encodec has no setting 'num_codebooks'; it has bandwidth"),
    ],
)
def test_wrong_settings_are_one_line(settings, message, tmp_path):
    tiny_networks.encodec().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        pretrained.load("encodec", tmp_path, **settings)
    assert "\n" not in str(error.value)


def test_wrong_checkpoints_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="there is no pretrained tokenizer 'vqgan'; there are chameleon"):
        pretrained.load("vqgan", tmp_path)
    with pytest.raises(ValueError, match="is no folder, and not a hub id"):
        pretrained.load("mimi", tmp_path / "nothing here")
    with pytest.raises(ValueError, match="config.json is missing"):
        pretrained.load("mimi", tmp_path)
    tiny_networks.dac().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a 'dac' checkpoint; Mimi needs one of type mimi"):
        pretrained.load("mimi", tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be loaded") as error:
        pretrained.load("dac", tmp_path)
    assert "\n" not in str(error.value)
    weights.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02}")
    with pytest.raises(ValueError, match=r"pytorch_model.bin only, a pickle"):
        pretrained.load("dac", tmp_path)


def test_sounds_that_cannot_be_encoded(both):
    name, tokenizer, _ = both
    with pytest.raises(ValueError, match="takes"):
        tokenizer.encode(torch.zeros(1, 2, 100))
    with pytest.raises(ValueError, match="lengths must be"):
        tokenizer.encode(torch.zeros(1, 1, 100), torch.tensor([101]))
    size = tokenizer.codebook_sizes[0]
    with pytest.raises(ValueError, match=rf"must lie in \[0, {size}\)"):
        tokenizer.decode(Codes.from_rows([torch.full((4, len(tokenizer.codebook_sizes)), size)]))
    if name == "xcodec2":
        with pytest.raises(ValueError, match="shorter than one code; give at least 319"):
            tokenizer.encode(torch.zeros(1, 1, 318))
