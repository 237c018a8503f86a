"""Hugging Face features: Image and Audio columns as bytes and paths, Parquet, saved datasets, talk in Arrow."""

import subprocess
import sys

import pytest

datasets = pytest.importorskip("datasets")

from unimodal.data.arrow_rows import ArrowRows  # noqa: E402
from unimodal.data.datasets import DatasetConfig, open_dataset  # noqa: E402
from unimodal.sequence.document import Audio, Image, Text  # noqa: E402


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def made(columns, **features):
    kinds = datasets.Features({name: features.get(name, datasets.Value("string")) for name in columns})
    return datasets.Dataset.from_dict(columns, features=kinds)


def test_image_and_audio_columns_are_found_by_their_type(media):
    """Whatever they are called, and as bytes: nothing is decoded, so no torchcodec is needed."""
    picture, sound = (media / "a.png").read_bytes(), (media / "s.wav").read_bytes()
    columns = {"foto": [{"bytes": picture, "path": None}] * 2, "caption": ["an apple", "a pear"]}
    found = open_dataset(
        DatasetConfig(path="pets", format="huggingface"), ArrowRows(made(columns, foto=datasets.Image()), "pets")
    )
    assert found.format == "pairs" and found[1].turns[0].parts == (Image(data=picture), Text("What is this?"))
    assert found.describe_place(1) == "pets row 2"
    columns = {"speech": [{"bytes": sound, "path": "x.wav"}], "transcription": ["hello"]}
    talk = datasets.Dataset.from_dict(columns).cast_column("speech", datasets.Audio())
    found = open_dataset(DatasetConfig(path="talk"), ArrowRows(talk, "talk"))
    assert found[0].turns[0].parts[0] == Audio(data=sound) and found[0].turns[1].text == "hello"


def test_classes_are_called_by_their_names(media):
    picture = {"bytes": (media / "a.png").read_bytes(), "path": None}
    columns = {"img": [picture] * 3, "fine": [1, 0, -1]}
    features = {"img": datasets.Image(), "fine": datasets.ClassLabel(names=["pear", "apple"])}
    rows = ArrowRows(made(columns, **features), "pets")
    found = open_dataset(DatasetConfig(path="pets", on_bad_row="skip"), rows)
    assert [document.turns[1].text for document in found] == ["apple", "pear"]
    assert "none of the columns text" in found.bad_rows[0].reason  # -1: not known
    columns |= {"coarse": [0, 0, 0]}
    features |= {"coarse": datasets.ClassLabel(names=["fruit"])}
    rows = ArrowRows(made(columns, **features), "pets")
    with pytest.raises(ValueError, match="no format is known for the columns coarse, fine, image"):
        open_dataset(DatasetConfig(path="pets"), rows)
    found = open_dataset(DatasetConfig(path="pets", columns={"label": "coarse"}), rows)
    assert found[0].turns[1].text == "fruit"


def test_parquet_keeps_conversations_and_lists_of_images(media, tmp_path):
    """Arrow gives every struct all keys; absent ones are None and must not count as media of a part."""
    picture = (media / "a.png").read_bytes()
    typed = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "an apple"}]},
    ]
    rows = [{"messages": typed, "images": [{"bytes": picture, "path": None}]}] * 3
    features = datasets.Features(
        {
            "messages": [
                {
                    "role": datasets.Value("string"),
                    "content": [{"type": datasets.Value("string"), "text": datasets.Value("string")}],
                }
            ],
            "images": [datasets.Image()],
        }
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "x.parquet")
    found = open_dataset(DatasetConfig(path=str(tmp_path / "x.parquet")))
    assert found.format == "trl" and len(found) == 3
    assert found[2].turns[0].parts == (Image(data=picture), Text("what?"))
    assert found.describe_place(2).endswith("x.parquet row 3")


def test_saved_datasets_and_their_splits(media, tmp_path):
    columns = {"image": [str(media / "a.png")], "text": ["an apple"]}
    data = made(columns, image=datasets.Image())
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "two")
    data.save_to_disk(tmp_path / "one")
    for name, split in (("one", "train"), ("two", "test")):
        found = open_dataset(DatasetConfig(path=str(tmp_path / name), split=split, media_root=media))
        part = found[0].turns[0].parts[0]
        assert part.data == (media / "a.png").read_bytes() or part.path == str(media / "a.png")
    with pytest.raises(ValueError, match="has no split 'dev'; it has train, test: set split"):
        open_dataset(DatasetConfig(path=str(tmp_path / "two"), split="dev"))
    with pytest.raises(ValueError, match="one has no splits, so split 'dev' would choose nothing"):
        open_dataset(DatasetConfig(path=str(tmp_path / "one"), split="dev"))


def test_a_row_without_its_picture_is_named(media, tmp_path):
    columns = {"image": [{"bytes": (media / "a.png").read_bytes(), "path": None}, None], "text": ["an apple", "lost"]}
    made(columns, image=datasets.Image()).to_parquet(tmp_path / "x.parquet")
    found = open_dataset(DatasetConfig(path=str(tmp_path / "x.parquet"), on_bad_row="skip"))
    assert len(found) == 1 and found.bad_rows[0].where.endswith("x.parquet row 2")
    assert found.bad_rows[0].reason.startswith("there is no image, audio or video")


def test_files_that_are_not_parquet_and_names_that_are_not_there(tmp_path):
    made({"prompt": ["a"], "completion": ["b"]}).select([]).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="none.parquet") as caught:
        open_dataset(DatasetConfig(path=str(tmp_path / "none.parquet")))
    assert "generating the dataset" not in str(caught.value)
    (tmp_path / "x.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match="x.parquet is not a usable Parquet file") as caught:
        open_dataset(DatasetConfig(path=str(tmp_path / "x.parquet")))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="'nobody/nothing' is no file here and cannot be loaded"):
        open_dataset(DatasetConfig(path="nobody/nothing", format="huggingface"))


def test_without_the_package_parquet_says_what_to_install(tmp_path):
    """In a fresh process where the import fails, and JSON works as before."""
    made({"prompt": ["a"], "completion": ["b"]}).select([]).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="none.parquet") as caught:
        open_dataset(DatasetConfig(path=str(tmp_path / "none.parquet")))
    assert "generating the dataset" not in str(caught.value)
    (tmp_path / "x.parquet").write_bytes(b"no")
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    program = f"""
import sys
sys.modules["datasets"] = None
from unimodal.data.datasets import DatasetConfig, open_dataset
print(len(open_dataset(DatasetConfig(path={str(tmp_path / "x.jsonl")!r}))))
open_dataset(DatasetConfig(path={str(tmp_path / "x.parquet")!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "1\n"
    assert done.stderr.splitlines()[-1].endswith(
        "needs the package datasets; install it with pip install 'unimodal[train]'"
    )
