"""Tars: members grouped by key, pairs and conversations, bytes and never files, and what a broken tar says."""

import io
import json
import tarfile

import pytest

from unimodal.data.datasets import DatasetConfig, open_dataset
from unimodal.sequence.document import Audio, Document, Image, Text, Turn, Video


@pytest.fixture
def tar(tmp_path):
    """`tar({"k.txt": b"…"}, "x.tar")` → path. A value that is a TarInfo is written as it is."""

    def tar(members, name="x.tar", mode="w"):
        path = tmp_path / name
        with tarfile.open(path, mode) as file:
            for member, content in members:
                if isinstance(content, tarfile.TarInfo):
                    file.addfile(content)
                    continue
                info = tarfile.TarInfo(member)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
        return str(path)

    return tar


def opened(path, **settings):
    return open_dataset(DatasetConfig(path=path, **settings))


def packed(value):
    return json.dumps(value).encode()


def test_pairs_by_key(tar, media):
    picture, sound = (media / "a.png").read_bytes(), (media / "s.wav").read_bytes()
    found = opened(
        tar(
            [
                ("shard/0001.png", picture), ("shard/0001.txt", b"an apple\n"), ("shard/0002.wav", sound),
                ("shard/0002.txt", "grün".encode()), ("shard/0003.mp4", b"film"),
                ("shard/0003.json", packed({"caption": "x"})),
            ]
        )
    )  # fmt: skip
    assert found.format == "webdataset" and len(found) == 3
    assert found[0] == Document(
        [Turn("user", [Image(data=picture), Text("What is this?")]), Turn("assistant", "an apple")]
    )
    assert found[1].turns[0].parts[0] == Audio(data=sound) and found[1].turns[1].text == "grün"
    assert found[2].turns[0].parts[0] == Video(data=b"film")
    assert found.describe_place(1).endswith("x.tar key shard/0002")


def test_conversations_with_and_without_names(tar, media):
    """Named members are taken in the order of the names, unnamed ones in the order of the tar."""
    talk = {"conversations": [{"from": "human", "value": "<image>or<image>?"}, {"from": "gpt", "value": "both"}]}
    named = {**talk, "images": ["k2.right.png", "left.png"]}
    found = opened(
        tar(
            [
                ("k1.left.png", b"L"), ("k1.right.png", b"R"), ("k1.json", packed(talk)),
                ("k2.left.png", b"L"), ("k2.right.png", b"R"), ("k2.json", packed(named)),
            ]
        )
    )  # fmt: skip
    assert [part.data for part in found[0].turns[0].parts if isinstance(part, Image)] == [b"L", b"R"]
    assert [part.data for part in found[1].turns[0].parts if isinstance(part, Image)] == [b"R", b"L"]


def test_many_tars_are_one_dataset(tar):
    for number in range(3):
        tar([(f"{number}{k}.{kind}", b"x") for k in range(2) for kind in ("jpg", "txt")], f"part-{number}.tar")
    path = tar([], "other.bin")
    found = opened(path.replace("other.bin", "part-*.tar"))
    assert len(found) == 6 and [found.describe_place(i).rpartition("/")[2] for i in (0, 5)] == [
        "part-0.tar key 00",
        "part-2.tar key 21",
    ]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("k.png", b"x")], "no format is known for the columns images"),
        ([("k.txt", b"\xff\xfe\xfd"), ("k.png", b"x")], "k.txt is not UTF-8"),
        ([("k.json", b"{"), ("k.png", b"x")], "k.json is not JSON"),
        ([("k.json", b"[1]"), ("k.png", b"x")], "a row must be an object"),
        ([("k.txt", b"a"), ("k.png", b"x"), ("k.txt", b"b")], "two members .txt"),
        ([("k.txt", b"a"), ("k.json", packed({"text": "b"})), ("k.png", b"x")], "text is given by k.json and by"),
        ([("k.json", packed({"images": ["../../etc/passwd"], "text": "x"})), ("k.png", b"x")], "json names '../../etc"),
        ([("k.png", b"x"), ("o.txt", b"a"), ("o.png", b"x"), ("k.txt", b"a")], "two places of the tar"),
        ([("k.npy", b"x")], "no picture, sound, film, text or json among its members"),
        ([("k.png", b""), ("k.txt", b"a")], "has no bytes"),
    ],
)  # fmt: skip
def test_a_bad_sample_is_named_by_its_key(tar, members, message):
    good = [("good.png", b"x"), ("good.txt", b"fine")]
    found = opened(tar([*good, *members]), on_bad_row="skip")
    assert len(found) == len({name.partition(".")[0] for name, _ in members} - {"k"}) + 1
    assert {row.where.rpartition(" ")[2] for row in found.bad_rows} == {"k"}
    assert all(message in row.reason for row in found.bad_rows)
    with pytest.raises(ValueError, match="x.tar key k: "):
        opened(tar([*good, *members]))


def test_links_are_refused(tar):
    link = tarfile.TarInfo("k.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(ValueError, match="key k: k.png is a link or a device"):
        opened(tar([("k.txt", b"a"), ("k.png", link)]))


def test_members_that_are_not_read_are_counted(tar):
    members = [("a.jpg", b"x"), ("a.txt", b"t"), ("a.cls", b"3"), ("b.jpg", b"x"), ("b.txt", b"t"), ("b.cls", b"4")]
    found = opened(tar([*members, (".DS_Store", b"")]))
    assert len(found) == 2 and dict(found.ignored) == {"cls": 2, ".DS_Store": 1}


def test_compressed_tars_are_read_and_broken_ones_refused(tar, tmp_path):
    members = [("a.jpg", b"x" * 5000), ("a.txt", b"t")]
    for name, mode in (("x.tar.gz", "w:gz"), ("x.tgz", "w:gz"), ("gz.tar", "w:gz"), ("x.tar.bz2", "w:bz2")):
        found = opened(tar(members, name, mode))
        assert found[0].turns[0].parts[0] == Image(data=b"x" * 5000) and found.describe_place(0).endswith(
            f"{name} key a"
        )
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "x.tar.gz").read_bytes()[:80])
    with pytest.raises(ValueError, match="cut.tar.gz cannot be unpacked .*; copy it again"):
        opened(str(tmp_path / "cut.tar.gz"))
    tar(members)
    (tmp_path / "cut.tar").write_bytes((tmp_path / "x.tar").read_bytes()[:2000])
    with pytest.raises(ValueError, match="cut.tar"):
        opened(str(tmp_path / "cut.tar"))


def test_img2dataset_shards_as_they_come(tar, tmp_path, media):
    """A picture, its caption twice, its address: that is a note, and the statistics are no rows."""
    note = {
        "caption": "an apple", "url": "https://a.example/x.jpg", "key": "000000000", "status": "success",
        "error_message": None, "width": 12, "height": 12, "exif": "{}", "sha256": "ab",
    }  # fmt: skip
    picture = (media / "a.png").read_bytes()
    for shard in range(2):
        key = f"0000{shard}0000"
        tar([(f"{key}.jpg", picture), (f"{key}.txt", b"an apple"), (f"{key}.json", packed(note))], f"0000{shard}.tar")
        (tmp_path / f"0000{shard}.parquet").write_bytes(b"of img2dataset")
        (tmp_path / f"0000{shard}_stats.json").write_text("{}")
    found = opened(str(tmp_path))
    assert len(found) == 2 and found[1] == Document(
        [Turn("user", [Image(data=picture), Text("What is this?")]), Turn("assistant", "an apple")]
    )
    other = [("k.jpg", picture), ("k.txt", b"an apple"), ("k.json", packed(note | {"caption": "a pear"}))]
    with pytest.raises(ValueError, match="key k: text and caption of the columns"):
        opened(tar(other, "other.tar"))
