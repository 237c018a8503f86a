"""Tokenizer folders: the format of their config, their one hash, the names of weights, and how they are found again."""

import inspect
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests.tokenizers.small_tokenizers import FlowTokenizer, LatentConfig, PatchLatents, make
from unimodal.tokenizers import (
    FAMILIES,
    hash_stored,
    list_families,
    load_latent_tokenizer,
    load_reader,
    load_tokenizer,
    read_tokenizer_config,
    register,
    upgrade_config,
)
from unimodal.tokenizers.nano.image import ImageTokenizer
from unimodal.tokenizers.stored import FORMAT, StoredModule, TokenizerConfig

CARDS = Path(__file__).resolve().parents[2] / "model_cards"
RELEASED = [CARDS / model / f"{name}_tokenizer" for model in ("nano", "smol") for name in ("image", "audio", "video")]


@pytest.fixture
def flow(tmp_path, monkeypatch):
    """The folder of a tokenizer of another package, registered for one test."""
    monkeypatch.setitem(FAMILIES, "test_flow", "tests.tokenizers.small_tokenizers:FlowTokenizer")
    make("flow").save(tmp_path / "flow")
    return tmp_path / "flow"


# ---- the released folders


@pytest.mark.sweep
@pytest.mark.parametrize("folder", RELEASED, ids=lambda folder: f"{folder.parent.name} {folder.name}")
def test_a_released_folder_is_format_0_and_goes_up_without_another_hash(folder, tmp_path):
    assert "format" not in json.loads((folder / "config.json").read_text())
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    before = read_tokenizer_config(copy)
    assert upgrade_config(copy) and not upgrade_config(copy)
    fields = json.loads((copy / "config.json").read_text())
    assert fields["format"] == FORMAT
    assert read_tokenizer_config(copy) == before
    vocabulary = json.loads((folder.parent / "vocabulary.json").read_text())
    medium = folder.name.removesuffix("_tokenizer")
    [recorded] = {block["sha256"] for block in vocabulary["blocks"] if block["modality"] == medium}
    assert hash_stored(copy) == hash_stored(folder) == recorded


def test_nanos_picture_weights_keep_the_names_that_their_hash_covers():
    from safetensors import safe_open

    folder = CARDS / "nano" / "image_tokenizer"
    tokenizer = ImageTokenizer.load(folder)
    with safe_open(folder / "model.safetensors", framework="np") as file:
        assert set(file.keys()) == set(tokenizer.collect_stored_state())
    assert {"encoder", "decoder", "quantizer"} <= {name for name, _ in tokenizer.named_children()}
    assert tokenizer.sha256 == hash_stored(folder)


# ---- formats and errors


def test_what_is_saved_now_says_its_format(flow):
    assert json.loads((flow / "config.json").read_text()) == {"format": FORMAT, "family": "test_flow", "frame": 8}
    assert load_tokenizer(flow).config.frame == 8 and not upgrade_config(flow)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"format": 2}, "has format 2; this unimodal reads up to 1"),
        ({"format": "new"}, "has format 'new'"),
        ({"family": 3}, "names the tokenizer family 3"),
        ({"family": "unheard_of"}, "no tokenizer family 'unheard_of'; known are .*mimi.*UNIMODAL_PLUGINS"),
        ({"frame": "wide"}, "does not hold a usable tokenizer .frame"),
        ({"extra": 1}, "does not hold a usable tokenizer .extra"),
    ],
)
def test_a_config_that_is_not_right_is_one_line(flow, fields, said):
    path = flow / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(ValueError, match=said) as caught:
        load_tokenizer(flow)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_whole_is_one_line(flow):
    weights = flow / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:40])
    with pytest.raises(ValueError, match="is damaged"):
        load_tokenizer(flow)
    weights.unlink()
    for read in (load_tokenizer, hash_stored):
        with pytest.raises(ValueError, match="model.safetensors is missing"):
            read(flow)
    (flow / "config.json").unlink()
    with pytest.raises(ValueError, match="config.json is missing"):
        load_tokenizer(flow)


def test_weights_of_another_shape_or_name_do_not_fit(flow):
    class Other(StoredModule):
        config_class = TokenizerConfig

        def __init__(self, config):
            super().__init__(config)
            self.gain = torch.nn.Parameter(torch.ones(2))

    class Renamed(Other):
        stored_names = {"gain": "loudness"}

    for kind, said in ((Other, "size mismatch"), (Renamed, "do not fit")):
        with pytest.raises(ValueError, match=said):
            kind(TokenizerConfig(family="x")).load_weights(flow)


# ---- registration


def test_a_family_is_what_its_config_names(monkeypatch):
    monkeypatch.delitem(FAMILIES, "test_flow", raising=False)
    register(FlowTokenizer)
    register(FlowTokenizer)
    assert "test_flow" in list_families() and FAMILIES["test_flow"].endswith(":FlowTokenizer")

    class Second(FlowTokenizer):
        pass

    with pytest.raises(ValueError, match="the family 'test_flow' is .*FlowTokenizer already"):
        register(Second)

    class Nameless(FlowTokenizer):
        config_class = TokenizerConfig

    with pytest.raises(ValueError, match="TokenizerConfig has no family"):
        register(Nameless)
    del FAMILIES["test_flow"]


def test_an_installed_package_declares_its_family_as_an_entry_point(flow, tmp_path, monkeypatch):
    monkeypatch.delitem(FAMILIES, "test_flow")
    place = tmp_path / "somebodys-1.0.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    (place / "entry_points.txt").write_text(
        "[unimodal.tokenizers]\ntest_flow = tests.tokenizers.small_tokenizers:FlowTokenizer\n"
        "test_broken = tests.tokenizers.small_tokenizers:to_ids\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert {"test_flow", "test_broken"} <= set(list_families())
    assert isinstance(load_tokenizer(flow), FlowTokenizer)
    config = flow / "config.json"
    config.write_text(config.read_text().replace("test_flow", "test_broken"))
    with pytest.raises(ValueError, match="small_tokenizers:to_ids, which is no tokenizer class"):
        load_tokenizer(flow)
    FAMILIES.pop("test_broken", None)


def test_a_plugin_file_registers_its_family_and_a_config_never_names_code(flow, tmp_path, monkeypatch):
    monkeypatch.delitem(FAMILIES, "test_flow")
    plugin = tmp_path / "my_tokenizers.py"
    plugin.write_text(
        "from tests.tokenizers.small_tokenizers import FlowTokenizer\n"
        "from unimodal.tokenizers import register\n\nregister(FlowTokenizer)\n"
    )
    with pytest.raises(ValueError, match="no tokenizer family 'test_flow'"):
        load_tokenizer(flow)
    config = flow / "config.json"
    kept = config.read_text()
    config.write_text(kept.replace("test_flow", "tests.tokenizers.small_tokenizers:FlowTokenizer"))
    with pytest.raises(ValueError, match="no tokenizer family 'tests.tokenizers.small_tokenizers:FlowTokenizer'"):
        load_tokenizer(flow)
    config.write_text(kept)
    monkeypatch.setenv("UNIMODAL_PLUGINS", str(plugin))
    assert isinstance(load_tokenizer(flow), FlowTokenizer)
    monkeypatch.setenv("UNIMODAL_PLUGINS", str(tmp_path / "none.py"))
    with pytest.raises(ValueError, match="none.py', which cannot be imported"):
        list_families()


def test_codes_latents_and_readers_are_told_apart(flow, tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "test_latents", "tests.tokenizers.small_tokenizers:PatchLatents")
    PatchLatents(LatentConfig()).save(tmp_path / "latents")
    assert isinstance(load_latent_tokenizer(tmp_path / "latents"), PatchLatents)
    for load, folder, said in (
        (load_tokenizer, tmp_path / "latents", "gives no codes"),
        (load_latent_tokenizer, flow, "gives no latents"),
        (load_reader, flow, "holds a tokenizer, not a reader"),
    ):
        with pytest.raises(ValueError, match=said):
            load(folder)
    with pytest.raises(ValueError, match="continues no other"):
        FlowTokenizer.load(flow, load_tokenizer(flow))


# ---- the page


def test_the_page_has_every_checkpoint_and_every_word_of_the_contract():
    from unimodal.tokenizers import LatentTokenizer, MediaTokenizer, find_family_class, pretrained
    from unimodal.tokenizers.interface import MediaReader
    from unimodal.tokenizers.pretrained.base import NetworkTokenizer

    page = (CARDS.parent / "docs" / "tokenizers.md").read_text()
    cells = (tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in page.splitlines() if "`" in line)
    rows = {row[0].strip("`"): row for row in cells if len(row) == 5 and row[1] in ("image", "video", "audio")}
    assert {name: row[2].split("`")[1] for name, row in rows.items()} == pretrained.SOURCES
    for name, row in rows.items():
        kind = find_family_class(name)
        assert issubclass(kind, NetworkTokenizer) and row[1] == kind.modality
        settings = list(inspect.signature(kind.from_checkpoint).parameters)[1:]
        assert all(f"`{setting}`" in row[3] for setting in settings) and (settings or row[3] == "none")
    inherited = {name for name in dir(torch.nn.Module)} | {"config", "rate", "file_target", "collect_stored_state"}
    inherited |= {"to_stored_name", "load_weights", "stored_dtype", "no_decoder", "check_codes"}
    for kind in (MediaTokenizer, LatentTokenizer, MediaReader):
        declared = {name for name in dir(kind) if not name.startswith("_")}
        declared |= {name for base in kind.__mro__ for name in getattr(base, "__annotations__", {})}
        own = {name for name in declared if not name.startswith("_") and name not in inherited}
        missing = {name for name in own if name not in page and name not in ("num_features", "read")}
        assert not missing, missing
