"""The registry of media: what a record must say, and that its files can be told apart, written and read."""

import re
from dataclasses import replace

import pytest
import torch

from unimodal.media.access import encode_medium, load_medium, save_medium
from unimodal.media.kind import detect_kind
from unimodal.media.registry import MEDIA, FileTarget, find_medium, load_plugins, register

SHAPES = {"image": (3, 4, 4), "audio": (800,), "video": (2, 3, 4, 4)}


@pytest.mark.parametrize("name", SHAPES)
def test_every_suffix_that_can_be_saved_is_written_and_recognised(name, tmp_path):
    medium, target = torch.rand(SHAPES[name]), FileTarget(frames_per_second=8.0, sample_rate_hz=16_000)
    for suffix in MEDIA[name].saved_suffixes:
        path = tmp_path / f"a{suffix}"
        save_medium(name, medium, path)
        assert detect_kind(path) == name
        assert len(load_medium(name, path, target).shape) == len(MEDIA[name].axes)
    data, media_type = encode_medium(name, medium)
    assert detect_kind(data) == name and media_type.startswith(f"{name}/")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "text"}, "cannot be called 'text'"),
        ({"name": "A b"}, "cannot be called 'A b'"),
        ({"suffixes": ("png",)}, "'png' is no suffix"),
        ({"suffixes": ()}, "has no suffix"),
        ({"axes": "tt"}, "must be different letters"),
        ({"axes": "c", "padded": True}, "with t where it is padded"),
        ({"name": "image"}, "'image' already belongs to the medium 'image'"),
        ({"name": "smell", "part_types": ("input_audio",)}, "'input_audio' already belongs to the medium 'audio'"),
        ({"name": "smell", "ask": "draw"}, "'draw' already belongs"),
    ],
)
def test_a_record_that_cannot_be_used_is_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        register(replace(MEDIA["image"], **{"name": "other", "ask": "", **change}))
    assert list(MEDIA) == list(SHAPES)


def test_what_is_not_registered_is_one_line(monkeypatch):
    with pytest.raises(ValueError, match="the medium 'smell' is unknown; use image, audio or video") as error:
        find_medium("smell")
    assert "\n" not in str(error.value)
    monkeypatch.setenv("UNIMODAL_PLUGINS", "json, no_such_module")
    with pytest.raises(ValueError, match="UNIMODAL_PLUGINS names 'no_such_module', which cannot be imported"):
        load_plugins()
