"""`unimodal tokenizers`: what there is, what a saved one gives, and how it refuses."""

import re

import pytest
import soundfile
import torch

from tests.tiny_model import tiny_folder
from tests.tokenizers.test_whisper_codec import build_small, make_sounds
from unimodal.cli import app as cli
from unimodal.cli.tokenizers import _describe_weights
from unimodal.tokenizers import FAMILIES, LatentTokenizer, MediaReader, find_family_class, load_tokenizer, pretrained
from unimodal.tokenizers.configs.registry import list_systems, read_system
from unimodal.tokenizers.pretrained.published import PUBLISHED

pytestmark = pytest.mark.sweep("commands")


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["tokenizers", *arguments])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_list_has_every_family_and_its_checkpoint(capsys):
    status, out, _ = run(capsys, "list")
    head, *lines = out.split("\n\n")[0].splitlines()
    assert status == 0 and head.split()[:3] == ["family", "medium", "gives"]
    assert [line.split()[0] for line in lines][: len(FAMILIES)] == list(FAMILIES)
    for line in lines:
        family, medium, gives, source = line.split()[:4]
        kind = find_family_class(family)
        wanted = "latents" if issubclass(kind, LatentTokenizer) else "codes"
        assert medium == kind.modality and gives == ("features" if issubclass(kind, MediaReader) else wanted)
        assert source == pretrained.SOURCES.get(family, "—")


def test_list_has_every_published_system(capsys):
    _, out, _ = run(capsys, "list")
    head, *lines = out.split("\n\n")[1].splitlines()
    assert head.startswith("published system") and [line.split()[0] for line in lines] == list_systems()
    assert re.search(r"^llamagen-vq16 +image +codes +vqgan +LlamaGen VQ: Autoregressive Model Beats", out, re.M)


def test_show_says_what_a_published_system_is_and_what_proves_it(capsys):
    status, out, _ = run(capsys, "show", "llamagen-vq16")
    found = [tuple(part.strip() for part in line.split("  ", 1)) for line in out.splitlines()]
    assert status == 0
    for line in (
        ("family", "vqgan"), ("takes", "256×256"), ("gives", "256 of 16,384"), ("parameters", "71,883,403"),
        ("bits", "3,584 an item, 1/439 of the raw medium"), ("part", "quantizers/vector"),
        ("published figure", "rFID 2.19"), ("licence", "MIT"), ("proof", "reference file visual/llamagen-vq"),
        ("proof", "parameters counted on the authors' class"),
    ):  # fmt: skip
        assert line in found, line
    assert dict(found)["released weights"].startswith("llamagen_vq=")


def test_show_says_what_a_released_tokenizer_gives(capsys):
    status, out, _ = run(capsys, "show", "model_cards/nano/video_tokenizer")
    assert status == 0
    found = dict(line.split("  ", 1) for line in out.splitlines())
    found = {name: value.strip() for name, value in found.items()}
    assert found["family"] == "causal_motion_fsq" and found["codes of 'video'"] == "2 × 64, of 4,096 values"
    assert found["an item"].startswith("192 positions, 2,300 bits") and found["takes"] == "8 frames a second"
    assert found["sha256"] == "29a5018a9ba5ab4016e8d3d720ca78587edadb629b6aff6a046234f6f9f3b5bd"


def test_show_says_what_a_family_takes(capsys):
    status, out, _ = run(capsys, "show", "encodec")
    assert status == 0 and "facebook/encodec" in out and "setting of a checkpoint  bandwidth = None" in out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model_cards/nano", "is not the folder of a tokenizer; name one of its audio_tokenizer, image_tokenizer"),
        ("docs", "is not the folder of a tokenizer; it holds none"),
        ("README.md", "README.md is a file; name the folder of a tokenizer"),
        ("xyzzy", "there is no tokenizer family 'xyzzy'; known are"),
        ("TiTok-L33", "there is no tokenizer 'TiTok-L33'; near it are titok-l32, "),
        ("llamagen", "there is no tokenizer 'llamagen'; near it are llamagen-vq"),
    ],
)
def test_what_is_no_tokenizer_is_one_line(capsys, name, said):
    status, out, err = run(capsys, "show", name)
    assert status == 2 and out == "" and said in err and len(err.splitlines()) == 1


def test_show_names_the_released_weights_of_that_size_and_of_no_other(capsys):
    """Every published size: its own place of weights, which its family's row of released weights agrees with."""
    systems = {name: read_system(name) for name in list_systems()}
    named = {}
    for name, system in systems.items():
        if system.weights is None:
            continue
        own = system.weights
        [(what, value)] = _describe_weights(name, system)
        assert what == "released weights" and value.startswith(f"{own.load}={own.hub}") and own.file in value
        named.setdefault((own.hub, own.file), []).append(name)
    shared = {place: names for place, names in named.items() if len(names) > 1}
    assert set(shared) == {("GrayShine/WeTok", "")}  # whose repository does not say which file is which
    places = {(system.weights.load, system.weights.hub) for system in systems.values() if system.weights is not None}
    for key, _ in places:
        assert PUBLISHED[key].config or not PUBLISHED[key].hub_id or (key, PUBLISHED[key].hub_id) in places, key
    status, out, _ = run(capsys, "show", "titok-b64")
    assert status == 0 and "titok=yucornetto/tokenizer_titok_b64_imagenet" in out and "l32" not in out
    assert "none of this size are known" in run(capsys, "show", "textok")[1]


def test_a_voice_is_named_by_sounds_of_it(capsys, tmp_path):
    clips = make_sounds(5000, 2)[:, 0]
    for number, clip in enumerate(clips):
        soundfile.write(tmp_path / f"{number}.wav", clip.numpy(), 16_000, subtype="FLOAT")
    build_small().save(tmp_path / "codec", in_8_bits=("decoder.",))
    sha256, stored = load_tokenizer(tmp_path / "codec").sha256, (tmp_path / "codec" / "model.safetensors").read_bytes()
    sounds = [str(tmp_path / f"{number}.wav") for number in range(2)]
    status, out, _ = run(capsys, "name-voice", str(tmp_path / "codec"), "anna", *sounds)
    tokenizer = load_tokenizer(tmp_path / "codec")
    expected = tokenizer.encode_voice(torch.cat(list(clips))[None, None])[0]
    assert status == 0 and torch.equal(tokenizer.find_voice("anna"), expected) and tokenizer.sha256 == sha256
    assert (tmp_path / "codec" / "model.safetensors").read_bytes() == stored
    assert out.split() == ["anna:", *", ".join(map(str, expected.tolist())).split()]
    status, _, err = run(capsys, "name-voice", str(tiny_folder() / "audio_tokenizer"), "anna", sounds[0])
    assert status and "has no codes of a voice" in err
