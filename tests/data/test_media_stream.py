"""Media alone: found in folders, datasets and tars, held out by group, cropped to sizes, read ahead and resumed."""

import io
import json
import random
import tarfile

import pytest
import torch

from unimodal.data.media_items import FileItems, ItemOptions, RowItems, is_held_out, open_media_items
from unimodal.data.media_stream import LeftOut, MediaStream, StreamPart
from unimodal.data.media_views import ViewOptions, crop_to_size
from unimodal.media.audio import save_audio
from unimodal.media.image import save_image
from unimodal.media.registry import FileTarget


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Thirty pictures of mixed sizes in three folders, one broken, one small."""
    folder = tmp_path_factory.mktemp("photos")
    rng = random.Random(0)
    for number in range(30):
        place = folder / f"person{number % 3}"
        place.mkdir(exist_ok=True)
        height, width = rng.randint(24, 60), rng.randint(24, 60)
        save_image(torch.full((3, height, width), number / 30), place / f"{number}.png")
    (folder / "person0" / "broken.png").write_bytes((folder / "person0" / "0.png").read_bytes()[:40])
    save_image(torch.rand(3, 8, 40), folder / "person1" / "small.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def make_stream(items, one_of=5, sizes=((16, 24), (24, 16)), left_out=None, **settings):
    part = StreamPart(0, items, sizes, 4, ViewOptions())
    return MediaStream(
        [part], FileTarget(), one_of, left_out=LeftOut(lambda text: None) if left_out is None else left_out, **settings
    )


def test_batches_do_not_depend_on_workers_and_go_on_where_they_were(photos):
    items = open_media_items(str(photos), "image", ItemOptions())
    alone = make_stream(items, workers=0)
    batches = [[view.medium for view in alone.next_views()] for _ in range(6)]
    assert {tuple(medium.shape) for batch in batches for medium in batch} == {(3, 16, 24), (3, 24, 16)}
    assert all(len({medium.shape for medium in batch}) == 1 for batch in batches)
    many = make_stream(items, workers=3)
    for _ in range(3):
        many.next_views()
    state = many.state_dict()
    many.next_views()
    many.load_state_dict(state)
    for batch in batches[3:]:
        for one, other in zip(batch, many.next_views(), strict=True):
            assert torch.equal(one, other.medium)
    many.close()


def test_sorted_batches_hold_the_same_items_of_like_lengths_whatever_the_workers(tmp_path):
    rng = random.Random(1)
    for number in range(24):
        save_audio(torch.full((rng.randint(100, 4000),), number / 24), tmp_path / f"{number}.wav", 16_000)
    items = open_media_items(str(tmp_path), "audio", ItemOptions())

    def read(workers, count, skip=0):
        options = ViewOptions(crop_s=9.0)
        stream = MediaStream(
            [StreamPart(0, items, (), 3, options, count)], FileTarget(sample_rate_hz=16_000), 100, workers=workers
        )
        stream.load_state_dict({"number": skip})
        batches = [[view.name for view in stream.next_views()] for _ in range(8 - skip)]
        lengths = [[len(view.medium) for view in stream.next_views()] for _ in range(4)]
        stream.close()
        return batches, lengths

    plain, wide = read(0, 1)
    batches, narrow = read(0, 4)
    assert read(2, 4)[0] == batches and read(2, 4, skip=3)[0] == batches[3:]
    for first in (0, 4):
        ours, theirs = (sum(rows[first : first + 4], []) for rows in (batches, plain))
        assert sorted(ours) == sorted(theirs) and ours != theirs
    assert sum(max(row) - min(row) for row in narrow) < sum(max(row) - min(row) for row in wide)


def test_ranks_share_an_epoch_and_all_is_seen(photos):
    items = FileItems(photos, "image")
    names = set[str]()
    for rank in range(2):
        stream = make_stream(items, workers=0, rank=rank, num_ranks=2)
        names |= {view.name for _ in range(5) for view in stream.next_views()}
    kept = [n for n in range(len(items)) if not is_held_out(items.find_group(n), 5)]
    usable = {items.describe_place(n) for n in kept} - {
        items.describe_place(n) for n in kept if items.paths[n].stem in ("broken", "small")
    }
    assert names == usable or len(usable - names) <= 2  # those whose slots fell to a bad file's place


def test_what_cannot_be_used_is_named_and_counted_and_the_rest_goes_on(photos):
    said: list[str] = []
    left_out = LeftOut(said.append)
    stream = make_stream(FileItems(photos, "image"), one_of=10**6, workers=0, left_out=left_out)
    for _ in range(20):
        stream.next_views()
    assert len(left_out) == 2 and len(said) == 2
    assert any("broken.png" in text and "damaged" in text for text in said)
    assert any("small.png: it has 8×40 pixels, fewer than" in text for text in said)
    with pytest.raises(
        ValueError, match="200 draws from [0-9]+ items gave none to train on; .*fewer than 512×512; take smaller"
    ):
        make_stream(FileItems(photos, "image"), sizes=((512, 512),), workers=0).next_views()


def test_a_group_is_never_on_both_sides(photos):
    items = FileItems(photos, "image", ItemOptions(group="folder"))
    one_of = next(n for n in range(2, 50) if 0 < sum(is_held_out(f"person{p}", n) for p in range(3)) < 3)
    stream = make_stream(items, one_of, workers=0)
    trained = {view.name.rpartition("/")[0] for _ in range(20) for view in stream.next_views()}
    held = {view.name.rpartition("/")[0] for view in stream.read_held_out(0, 99, (16, 16))}
    assert held and trained and not held & trained


def make_rows(photos, kind, folder):
    """The pictures as rows of a dataset, or as a tar: with a speaker and a caption."""
    paths = sorted(path for path in photos.rglob("*.png") if path.stem.isdigit())
    if kind == "jsonl":
        lines = [{"image": str(p.relative_to(photos)), "who": p.parent.name, "text": f"grey {p.stem}"} for p in paths]
        (photos / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(photos / "rows.jsonl")
    if kind == "messages":
        lines = []
        for path in paths:
            picture = {"type": "image", "image": str(path.relative_to(photos))}
            turns = [{"role": "user", "content": [picture]}, {"role": "assistant", "content": "grey"}]
            lines.append({"messages": turns})
        (photos / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(photos / "chat.jsonl")
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for path in paths:
            fields = json.dumps({"who": path.parent.name, "text": f"grey {path.stem}"}).encode()
            for name, content in ((f"{path.stem}.png", path.read_bytes()), (f"{path.stem}.json", fields)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(folder / "*.tar")


@pytest.mark.parametrize("kind", ["jsonl", "messages", "tar"])
def test_datasets_and_tars_are_read_as_folders_are(photos, tmp_path, kind):
    group = None if kind == "messages" else "who"
    items = open_media_items(make_rows(photos, kind, tmp_path), "image", ItemOptions(group))
    assert isinstance(items, RowItems) and len(items) == 30
    stream = make_stream(items, one_of=3, workers=2)
    views = [view for _ in range(4) for view in stream.next_views()]
    stream.close()
    assert all(view.medium.shape[0] == 3 and 0 <= view.medium.min() <= view.medium.max() <= 1 for view in views)
    if group:
        assert all(view.text.startswith("grey ") for view in views)
        number = float(views[0].text.removeprefix("grey "))
        assert abs(float(views[0].medium.mean()) - number / 30) < 0.01
        with pytest.raises(ValueError, match="group: there is no column 'speaker' in the data; it has"):
            open_media_items(make_rows(photos, kind, tmp_path), "image", ItemOptions("speaker"))
    assert items.compute_fingerprint() == items.compute_fingerprint()


def test_a_folder_without_media_says_what_it_wants(tmp_path):
    with pytest.raises(ValueError, match=r"has no picture files \(.png, .jpg, .* and no dataset"):
        open_media_items(str(tmp_path), "image", ItemOptions())
    (tmp_path / "a.png").write_bytes(b"x")
    held = next(n for n in range(1, 99) if is_held_out("a.png", n))
    with pytest.raises(ValueError, match="none is left to train on"):
        make_stream(FileItems(tmp_path, "image"), one_of=held)


@pytest.mark.parametrize("size", [(16, 16), (10, 20), (20, 10)])
def test_a_crop_has_the_shape_of_its_size_and_is_not_stretched(size):
    """A picture whose value is its x + y keeps equal slopes along both axes."""
    rng = random.Random(1)
    y, x = torch.meshgrid(torch.arange(50.0), torch.arange(80.0), indexing="ij")
    picture = ((x + y) / 128).expand(3, 50, 80)
    for generator in (rng, rng, None):
        made = crop_to_size(picture, size, ViewOptions(flip=False), generator)
        assert made.shape == (3, *size)
        inner = made[0, 3:-3, 3:-3]
        down, right = inner.diff(dim=0).mean(), inner.diff(dim=1).mean()
        assert down > 0 and torch.allclose(down, right, rtol=0.1)
    exact = crop_to_size(picture[:, : size[0], : size[1]], size, ViewOptions(flip=False), None)
    assert torch.equal(exact, picture[:, : size[0], : size[1]])


def test_captions_lie_beside_files_and_what_has_none_is_named(tmp_path):
    for number in range(4):
        save_image(torch.rand(3, 32, 32), tmp_path / f"{number}.png")
    (tmp_path / "0.txt").write_text("a cat\n")
    (tmp_path / "1.json").write_text(json.dumps({"caption": "a dog", "title": "Rex"}))
    (tmp_path / "2.json").write_text("{")
    read = open_media_items(str(tmp_path), "image", ItemOptions(captioned=True))
    assert isinstance(read, FileItems)
    assert [read.read(number)[0].text for number in range(2)] == ["a cat", "a dog"]
    for number, said in (
        (2, "2.json cannot be read as JSON"),
        (3, "has no caption: write it to 3.txt, or to 3.json under caption"),
    ):
        with pytest.raises(ValueError, match=said):
            read.read(number)
    named = open_media_items(str(tmp_path), "image", ItemOptions(columns={"text": "title"}, captioned=True))
    assert named.read(1)[0].text == "Rex"
    assert open_media_items(str(tmp_path), "image", ItemOptions()).read(2)[0].text == ""  # nothing is read for nobody
    with pytest.raises(ValueError, match="none to train on; "):
        read.paths = read.paths[2:]
        make_stream(read, one_of=10**6, workers=0).next_views()
    rows = tmp_path / "rows"
    rows.mkdir()
    save_image(torch.rand(3, 32, 32), rows / "a.png")
    (rows / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "said": "a fish"}) + "\n")
    options = ItemOptions(columns={"text": "said"}, captioned=True)
    assert open_media_items(str(rows), "image", options).read(0)[0].text == "a fish"
    with pytest.raises(ValueError, match="the row has no caption; name its column"):
        open_media_items(str(rows), "image", ItemOptions(captioned=True)).read(0)
