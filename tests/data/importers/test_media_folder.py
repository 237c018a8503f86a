"""What a dataset may name: files inside its folder, bytes; never files elsewhere and never the network."""

import os

import pytest

from unimodal.data.datasets import DatasetConfig, open_dataset
from unimodal.data.media_folder import MediaFolder
from unimodal.sequence.document import Image


@pytest.fixture
def place(tmp_path, media):
    """inside/pic.png, and secret.png beside the folder."""
    inside = tmp_path / "inside"
    inside.mkdir()
    picture = (media / "a.png").read_bytes()
    (inside / "pic.png").write_bytes(picture)
    (tmp_path / "secret.png").write_bytes(picture)
    (tmp_path / "inside-not").mkdir()
    (tmp_path / "inside-not" / "x.png").write_bytes(picture)
    return inside


@pytest.mark.parametrize("name", ["pic.png", "./pic.png", "sub/../pic.png", "ABSOLUTE", "file://ABSOLUTE"])
def test_files_inside_are_found(place, name):
    (place / "sub").mkdir()
    name = name.replace("ABSOLUTE", str(place / "pic.png"))
    assert os.path.samefile(MediaFolder(place).make_part(name, "image").path, place / "pic.png")


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "sub/../../secret.png",
        "ABSOLUTE",
        "file://ABSOLUTE",
        "../inside-not/x.png",
        "link.png",
        "up/secret.png",
    ],
)
def test_files_outside_are_refused(place, name):
    (place / "sub").mkdir()
    (place / "link.png").symlink_to(place.parent / "secret.png")
    (place / "up").symlink_to(place.parent)
    name = name.replace("ABSOLUTE", str(place.parent / "secret.png"))
    with pytest.raises(ValueError, match="lies outside the media folder .*, or set media_root"):
        MediaFolder(place).make_part(name, "image")


@pytest.mark.parametrize("name", ["http://a.example/x.png", "https://a.example/x.png", "s3://bucket/x.png"])
def test_urls_are_refused(place, name):
    with pytest.raises(ValueError, match="is a URL; download the media"):
        MediaFolder(place).make_part(name, "image")


def test_what_is_no_file_is_refused(place):
    for name in ("", ".", "gone.png", "pic.png/x", "a\0b"):
        with pytest.raises(ValueError):
            MediaFolder(place).make_part(name, "image")
    with pytest.raises(ValueError, match="has no bytes"):
        MediaFolder(place).make_part(b"", "image")
    with pytest.raises(ValueError, match="has no media folder; set media_root"):
        MediaFolder(None).make_part("pic.png", "image")


def test_the_folder_of_the_file_is_the_default_and_media_root_another(place):
    row = '{"image": "%s", "text": "x"}\n'
    (place / "rows.jsonl").write_text(row % "pic.png")
    opened = open_dataset(DatasetConfig(path=str(place / "rows.jsonl")))
    assert opened[0].turns[0].parts[0] == Image(path=str(place / "pic.png"))
    (place / "rows.jsonl").write_text(row % "../secret.png")
    with pytest.raises(ValueError, match="line 1: ../secret.png lies outside"):
        open_dataset(DatasetConfig(path=str(place / "rows.jsonl")))
    (place / "rows.jsonl").write_text(row % "secret.png")
    assert len(open_dataset(DatasetConfig(path=str(place / "rows.jsonl"), media_root=place.parent))) == 1


def test_hugging_face_dicts_and_bytes(place):
    folder = MediaFolder(place)
    assert (
        folder.make_part({"bytes": b"abc", "path": "../secret.png"}, "image").data == b"abc"
    )  # the path is only a name
    assert folder.make_part({"bytes": None, "path": "pic.png"}, "image").path == str(place / "pic.png")
    with pytest.raises(ValueError, match="lies outside"):
        folder.make_part({"bytes": None, "path": "../secret.png"}, "image")
    assert folder.make_part("data:text/plain,a%20b", "image").data == b"a b"
