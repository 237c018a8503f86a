"""`unimodal tokenizers`: what there is, what a saved one gives, and how it refuses."""

import pytest

from unimodal.cli import app as cli
from unimodal.tokenizers import FAMILIES, pretrained


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["tokenizers", *arguments])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_list_has_every_family_and_its_checkpoint(capsys):
    status, out, _ = run(capsys, "list")
    head, *lines = out.splitlines()
    assert status == 0 and head.split()[:3] == ["family", "medium", "gives"]
    assert [line.split()[0] for line in lines][: len(FAMILIES)] == list(FAMILIES)
    for line in lines:
        family, medium, gives, source = line.split()[:4]
        assert medium in ("image", "audio", "video") and gives == ("features" if family == "janus_reader" else "codes")
        assert source == pretrained.SOURCES.get(family, "—")


def test_show_says_what_a_released_tokenizer_gives(capsys):
    status, out, _ = run(capsys, "show", "model_cards/nano/video_tokenizer")
    assert status == 0
    found = dict(line.split("  ", 1) for line in out.splitlines())
    found = {name: value.strip() for name, value in found.items()}
    assert found["family"] == "causal_motion_fsq" and found["codes of 'video'"] == "2 × 64, of 4,096 values"
    assert found["an item"].startswith("192 positions, 2,300 bits") and found["takes"] == "8 frames a second"
    assert found["sha256"] == "29a5018a9ba5ab4016e8d3d720ca78587edadb629b6aff6a046234f6f9f3b5bd"


def test_show_says_what_a_family_takes(capsys):
    status, out, _ = run(capsys, "show", "mimi")
    assert status == 0 and "kyutai/mimi" in out and "setting of a checkpoint  num_codebooks = None" in out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model_cards/nano", "is not the folder of a tokenizer; name one of its audio_tokenizer, image_tokenizer"),
        ("docs", "is not the folder of a tokenizer; it holds none"),
        ("unheard", "there is no tokenizer family 'unheard'; known are"),
    ],
)
def test_what_is_no_tokenizer_is_one_line(capsys, name, said):
    status, out, err = run(capsys, "show", name)
    assert status == 2 and out == "" and said in err and len(err.splitlines()) == 1
