"""Sound that is coded and decoded piece by piece: what the pieces give together is what the whole gives."""

import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from tests import tiny_networks
from tests.campaigns import is_study
from unimodal.tokenizers import pretrained
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.parts.streaming import ConvStage, TransposedStage

#: networks of transformers, with settings; systems that only look back
NETWORKS = {"mimi": {"num_codebooks": 5}, "encodec": {"bandwidth": 1.2}}
SYSTEMS = ("moss-audio", "uniaudio2-sqcodec")
every_stream = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.sweep) for name in (*NETWORKS, *SYSTEMS)]
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Tokenizers that can stream, by name."""
    made = {}
    torch.manual_seed(0)
    for name, settings in NETWORKS.items():
        folder = tmp_path_factory.mktemp(name)
        getattr(tiny_networks, name)().save_pretrained(folder)
        made[name] = pretrained.load(name, folder, **settings)
    for name in SYSTEMS:
        torch.manual_seed(0)
        made[name] = build_tokenizer(read_system(name).choose_settings(small=True)).eval()
    return made


def make_sound(rng, longest=1600):
    """A sound [t] of any length, sometimes of a few samples alone."""
    length = rng.choice([rng.randint(1, 20), rng.randint(1, longest)])
    return (torch.rand(length, generator=torch.Generator().manual_seed(rng.randint(0, 2**31))) * 2 - 1) * 0.6


def cut_anywhere(rng, x):
    """A tensor in pieces along its first dimension, some of them empty."""
    return torch.tensor_split(x, sorted(rng.randint(0, len(x)) for _ in range(rng.randint(0, 12))))


def check_codes(tokenizer, x, streamed, whole):
    """The same codes. A convolution of a piece rounds otherwise than that of the whole, by a few units of the last
    place: a step that lies between two codes, so that a change of the sound by 10⁻⁵ moves it, may fall either way."""
    assert streamed.shape == whole.shape
    differing = (streamed != whole).any(1)
    if differing.any():
        moved = [(tokenizer.encode((x * scale)[None, None]).row(0) != whole).any(1) for scale in (1 + 1e-5, 1 - 1e-5)]
        assert (differing <= (moved[0] | moved[1])).all() and int(differing.sum()) <= 1


@every_stream
def test_pieces_give_the_codes_and_the_sound_of_the_whole(name, tokenizers, campaign):
    tokenizer = tokenizers[name]
    assert tokenizer.can_stream
    for rng in campaign(slice=8, whole=200):
        x = make_sound(rng)
        codes = tokenizer.encode(x[None, None])
        streamed = torch.cat(list(tokenizer.encode_stream(cut_anywhere(rng, x))))
        check_codes(tokenizer, x, streamed, codes.row(0))
        sound = torch.cat(list(tokenizer.decode_stream(cut_anywhere(rng, codes.row(0)))))
        torch.testing.assert_close(sound, tokenizer.decode(codes)[0, 0], atol=2e-5, rtol=0)


@every_stream
def test_a_long_sound_is_coded_in_pieces_by_itself_alone_and_in_a_batch(name, tokenizers, monkeypatch):
    tokenizer = tokenizers[name]
    x = torch.rand(3, 1, 1700, generator=torch.Generator().manual_seed(2)) - 0.5
    lengths = torch.tensor([1700, 90, 1700])
    codes = tokenizer.encode(x, lengths)
    sound = tokenizer.decode(codes)
    monkeypatch.setattr(tokenizer, "longest_at_once_s", 700 / tokenizer.sample_rate_hz)
    opened = []
    monkeypatch.setattr(tokenizer, "open_encoder", lambda published: opened.append(1) or open_encoder(published))
    open_encoder = type(tokenizer).open_encoder.__get__(tokenizer)
    again = tokenizer.encode(x, lengths)
    assert len(opened) == 1 and torch.equal(again.ids, codes.ids)  # both long ones together
    torch.testing.assert_close(tokenizer.decode(again), sound, atol=1e-5, rtol=0)


@pytest.mark.sweep("tokenizers at work")
@pytest.mark.study
def test_ten_minutes_take_the_memory_of_one():
    """Resident memory while ten minutes at 24 kHz are coded and decoded, whose samples alone are 58 MB."""
    minutes, second = 10 if is_study() else 0.5, 24000
    sizes = {"hidden_size": 16, "num_filters": 2, "codebook_size": 32, "codebook_dim": 8, "upsample_groups": 16,
             "vector_quantization_hidden_dimension": 8, "num_quantizers": 4, "num_hidden_layers": 1, "head_dim": 8,
             "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    settings = {"family": "mimi", "sample_rate_hz": second, "num_codebooks": 4, "network": sizes}
    tokenizer = build_tokenizer(settings).eval()
    noise = torch.Generator().manual_seed(0)
    sound = (torch.rand(second, generator=noise) - 0.5 for _ in range(int(60 * minutes)))
    resident, samples = [], 0
    for wave in tokenizer.decode_stream(tokenizer.encode_stream(sound)):
        samples += len(wave)
        resident.append(measure_resident_mb())
    assert samples >= 60 * minutes * second
    begun = max(resident[: len(resident) // 10 + 20])
    assert max(resident) < begun + 12


def measure_resident_mb():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@every_stream
def test_sound_comes_as_soon_as_its_codes_and_streams_do_not_mix(name, tokenizers):
    tokenizer = tokenizers[name]
    frame = tokenizer.samples_per_code
    x = torch.rand(40 * frame) - 0.5
    whole = tokenizer.encode(x[None, None]).row(0)
    one, other = (tokenizer.encode_stream(iter(x.split(frame))) for _ in range(2))
    first = next(one)
    assert 1 <= len(first) < 20  # before the sound has ended
    assert torch.equal(torch.cat(list(other)), whole)
    assert torch.equal(torch.cat([first, *one]), whole)
    waves = list(tokenizer.decode_stream(whole.split(1)))
    assert len(waves[-1]) < 20 * frame and sum(map(len, waves)) == len(x)


def test_what_cannot_be_streamed_says_so(tokenizers, tmp_path):
    tiny_networks.dac().save_pretrained(tmp_path)
    whole = pretrained.load("dac", tmp_path)
    assert not whole.can_stream
    with pytest.raises(ValueError, match="the dac tokenizer needs the whole of a medium; use encode"):
        whole.encode_stream([])
    with pytest.raises(ValueError, match="the dac tokenizer needs all codes of a medium; use decode"):
        whole.decode_stream([])
    mimi = tokenizers["mimi"]
    assert list(mimi.encode_stream([])) == list(mimi.decode_stream([])) == []
    for piece in (torch.zeros(1, 5), torch.zeros(5, dtype=torch.int64), [0.0]):
        with pytest.raises(ValueError, match=r"a piece of a sound is a float tensor \[t\]"):
            list(mimi.encode_stream([piece]))
    with pytest.raises(ValueError, match="not finite"):
        list(mimi.encode_stream([torch.full((5,), torch.nan)]))
    with pytest.raises(ValueError, match=r"a piece of codes is int64 \[n, 5\]"):
        list(mimi.decode_stream([torch.zeros(5, dtype=torch.int64)]))
    with pytest.raises(ValueError, match=r"must lie in \[0, 32\)"):
        list(mimi.decode_stream([torch.full((1, 5), 32)]))


def test_any_convolution_is_that_of_the_whole(campaign):
    """Strides, dilations, paddings of every kind and both ends, and the transposed ones with cut ends."""
    for rng in campaign(slice=30, whole=2000):
        kernel, stride, dilation = rng.randint(1, 6), rng.randint(1, 4), rng.randint(1, 3)
        reach = (kernel - 1) * dilation + 1
        if reach < stride:
            continue
        x = torch.randn(1, 2, rng.randint(1, 30))
        conv = nn.Conv1d(2, 3, kernel, stride, dilation=dilation)
        right = rng.randint(0, reach - stride)
        left, mode = reach - stride - right, rng.choice(["constant", "reflect", "replicate"])
        surplus = max(kernel - stride, 0)
        begin = rng.randint(0, surplus)
        transposed = nn.ConvTranspose1d(2, 3, kernel, stride)
        with torch.inference_mode():
            checks = [(ConvStage(conv, left, right, mode), pad_like_encodec(x, conv, left, right, mode))]
            if kernel >= stride:
                raw = transposed(x)
                whole = raw[..., begin : raw.shape[-1] - (surplus - begin)]
                checks.append((TransposedStage(transposed, begin, surplus - begin), whole))
            for stage, whole in checks:
                pieces = [piece.movedim(0, -1) for piece in cut_anywhere(rng, x.movedim(-1, 0))]
                made = torch.cat([*(stage.push(piece) for piece in pieces), stage.push(x[..., :0], last=True)], -1)
                torch.testing.assert_close(made, whole)


def pad_like_encodec(x, conv, left, right, mode):
    """The convolution of the whole, with EnCodec's rule of padding as transformers writes it."""
    from transformers.models.encodec.modeling_encodec import EncodecConv1d

    ends = (left, right + -x.shape[-1] % conv.stride[0])
    return conv(EncodecConv1d._pad1d(x, ends, mode))
