"""Every layout that the table in docs/training.md names, by an example of it; and every format with every medium."""

import base64
import csv
import gzip
import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from unimodal.data.datasets import DatasetConfig, open_dataset
from unimodal.media.registry import MEDIA
from unimodal.sequence.document import Text

PAGE = Path(__file__).resolve().parents[3] / "docs" / "training.md"
ASKED = [{"role": "user", "content": "what is this?"}, {"role": "assistant", "content": "an apple"}]
TYPED = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this?"}]}, ASKED[1]]
MARKED = [{"role": "user", "content": "<image>what is this?"}, ASKED[1]]
FROM = [{"from": "human", "value": "<image>\nwhat is this?"}, {"from": "gpt", "value": "an apple"}]
QUESTION = {"question": "what is this?"}


def in_lines(row, name="rows.jsonl"):
    return lambda folder: (folder / name).write_text(json.dumps(row) + "\n") and name


def with_part(part):
    content = [part, {"type": "text", "text": "what is this?"}]
    return in_lines({"messages": [{"role": "user", "content": content}, ASKED[1]]})


def encoded(folder):
    return base64.b64encode((folder / "a.png").read_bytes()).decode()


def typed_by_index(folder):
    parts = [{"index": 0, "text": None, "type": "image"}, {"index": None, "text": "what is this?", "type": "text"}]
    answer = [{"index": None, "text": "an apple", "type": "text"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    return in_lines({"messages": messages, "images": ["a.png"]})(folder)


def write_tar(folder, name, members, mode="w"):
    with tarfile.open(folder / name, mode) as tar:
        for member, content in members:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return name


def in_img2dataset(folder):
    picture = (folder / "a.png").read_bytes()
    note = json.dumps({"caption": "an apple", "url": "https://a.example/1.jpg", "key": "000000000"}).encode()
    (folder / "shards").mkdir()
    (folder / "shards" / "00000.parquet").write_bytes(b"")
    (folder / "shards" / "00000_stats.json").write_text("{}")
    members = [("000000000.jpg", picture), ("000000000.txt", b"an apple"), ("000000000.json", note)]
    write_tar(folder / "shards", "00000.tar", members)
    return "shards"


def in_classes(folder):
    (folder / "classes" / "an apple").mkdir(parents=True)
    shutil.copy(folder / "a.png", folder / "classes" / "an apple" / "1.png")
    return "classes"


def of_sounds(folder):
    (folder / "sounds" / "an apple").mkdir(parents=True)
    shutil.copy(folder / "s.wav", folder / "sounds" / "an apple" / "1.wav")
    return "sounds"


def with_metadata(folder):
    (folder / "train").mkdir()
    shutil.copy(folder / "a.png", folder / "train" / "1.png")
    (folder / "train" / "metadata.jsonl").write_text(json.dumps({"file_name": "1.png", "text": "an apple"}))
    return "train"


def beside_texts(folder):
    (folder / "beside").mkdir()
    shutil.copy(folder / "a.png", folder / "beside" / "1.png")
    (folder / "beside" / "1.txt").write_text("an apple")
    return "beside"


def in_a_table(folder):
    with (folder / "rows.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["image", "text"], ["a.png", "an apple"]])
    return "rows.csv"


def compressed(folder):
    row = {"image": "a.png", "text": "an apple"}
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    return "rows.jsonl.gz"


def pretty(folder):
    (folder / "rows.json").write_text(
        json.dumps({"version": 1, "data": [{"image": "a.png", "text": "an apple"}]}, indent=2)
    )
    return "rows.json"


def make_features(folder, name, write):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["a pear", "an apple"])}
    )
    picture = {"bytes": (folder / "a.png").read_bytes(), "path": None}
    made = datasets.Dataset.from_dict({"picture": [picture], "kind": [1]}, features=features)
    getattr(made, write)(str(folder / name))
    return name


#: layout, as the table calls it → what writes one row of it into a folder with media and returns its name
LAYOUTS = {
    "TRL, OpenAI: messages": in_lines({"messages": TYPED, "images": ["a.png"]}),
    "TRL: prompt and completion": in_lines({"prompt": "what is this?", "completion": "an apple", "image": "a.png"}),
    "TRL: parts with an index": typed_by_index,
    "messages as a JSON text": in_lines({"messages": json.dumps(TYPED), "images": '["a.png"]'}),
    "LLaVA": in_lines({"id": "0", "image": "a.png", "conversations": FROM}),
    "ShareGPT": in_lines({"images": ["a.png"], "conversations": FROM}),
    "LLaMA-Factory": in_lines({"messages": MARKED, "images": ["a.png"]}),
    "Alpaca": in_lines({"instruction": "what is this?", "input": "<image>", "output": "an apple", "images": ["a.png"]}),
    "ms-swift": in_lines({"query": "what is this?", "response": "an apple", "images": ["a.png"]}),
    "The Cauldron": in_lines({"images": ["a.png"], "texts": [{"user": "what is this?", "assistant": "an apple"}]}),
    "OBELICS": in_lines({"images": ["a.png", None], "texts": [None, "an apple"]}),
    "question and answer": in_lines({"image": "a.png", **QUESTION, "answer": "an apple"}),
    "VQAv2: answers": in_lines({"image": "a.png", **QUESTION, "answers": ["a pear", "an apple", "an apple"]}),
    "captions": in_lines({"image": "a.png", "caption": "an apple"}),
    "classes": in_lines({"image": "a.png", "label": "an apple"}),
    "imagefolder, audiofolder": with_metadata,
    "ImageFolder: a folder a class": in_classes,
    "AudioFolder: a folder a class": of_sounds,
    "media beside texts": beside_texts,
    "WebDataset": lambda folder: write_tar(folder, "x.tar", [("1.png", (folder / "a.png").read_bytes()),
                                                             ("1.txt", b"an apple")]),
    "WebDataset, compressed": lambda folder: write_tar(folder, "x.tar.gz", [("1.png", (folder / "a.png").read_bytes()),
                                                                            ("1.txt", b"an apple")], "w:gz"),
    "img2dataset": in_img2dataset,
    "JSON, pretty or wrapped": pretty,
    "JSON lines, compressed": compressed,
    "CSV": in_a_table,
    "Parquet": lambda folder: make_features(folder, "x.parquet", "to_parquet"),
    "a saved dataset": lambda folder: make_features(folder, "saved", "save_to_disk"),
    "films by frames": in_lines({"video": ["a.png", "b.png"], **QUESTION, "answer": "an apple"}),
    "sounds by samples": in_lines({"audio": {"array": [0.0, 0.1], "sampling_rate": 8000}, "text": "an apple"}),
    "bytes in base64": lambda folder: in_lines({"image": {"bytes": encoded(folder)}, "text": "an apple"})(folder),
    "parts in base64": lambda folder: with_part({"type": "image", "base64": encoded(folder)})(folder),
    "data URLs": lambda folder: with_part(
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(folder)}"}})(folder),
    "codes": with_part({"type": "image", "codes": [1, 2, 3]}),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_the_table_is_read(tmp_path, media, name):
    shutil.copytree(media, tmp_path, dirs_exist_ok=True)
    found = open_dataset(DatasetConfig(path=str(tmp_path / LAYOUTS[name](tmp_path))))
    [document] = found
    assert [part.text for part in document.turns[-1].parts if isinstance(part, Text)] == ["an apple"]
    assert sum(not isinstance(part, Text) for part in document.parts) == 1
    assert found[0] == document and found.num_bad == 0


def test_the_table_names_these_layouts():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index(next(line for line in lines if line.startswith("| layout |")))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(line.split("|")[1].strip())
    assert rows == list(LAYOUTS)


FILES = {"image": "a.png", "audio": "s.wav", "video": "v.gif"}
#: format → its row about one medium
ROWS = {
    "trl": lambda kind, file: {"messages": [{"role": "user", "content": [{"type": kind, "path": file}]}, ASKED[1]]},
    "llava": lambda kind, file: {kind: file, "conversations": mark(FROM, kind)},
    "sharegpt": lambda kind, file: {f"{kind}s": [file], "conversations": mark(FROM, kind)},
    "llama_factory": lambda kind, file: {f"{kind}s": [file], "messages": mark(MARKED, kind)},
    "ms_swift": lambda kind, file: {f"{kind}s": [file], "query": "what is this?", "response": "an apple"},
    "cauldron": lambda kind, file: {f"{kind}s": [file], "texts": [{"user": "what?", "assistant": "an apple"}]},
    "interleaved": lambda kind, file: {f"{kind}s": [None, file], "texts": ["an apple", None]},
    "pairs": lambda kind, file: {kind: file, "text": "an apple"},
}


def mark(messages, kind):
    return json.loads(json.dumps(messages).replace("<image>", f"<{kind}>"))


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ROWS)
def test_every_format_takes_every_medium(documents, media, name, kind):
    found = documents([ROWS[name](kind, FILES[kind])], format=name)[0]
    [part] = [part for part in found.parts if not isinstance(part, Text)]
    assert (part.modality, part.path) == (kind, str(media / FILES[kind]))
    gone = f"gone-{FILES[kind]}"
    with pytest.raises(ValueError, match=rf"rows.jsonl line 1: .*{gone} is not in .*; check the path") as caught:
        documents([ROWS[name](kind, gone)], format=name)
    assert "\n" not in str(caught.value)


def test_the_media_are_those_of_the_registry():
    assert list(FILES) == list(MEDIA)
