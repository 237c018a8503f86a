"""Where a model comes from: a folder, a name, `$UNIMODAL_MODEL`, a checkout or the hub's cache."""

import pytest

from tests.tiny_model import tiny_folder
from unimodal.cli.doctor import format_models
from unimodal.model_folder import find
from unimodal.model_folder.find import MODEL_VARIABLE, find_model, list_models


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch):
    """A machine with the wheel alone: no checkout, no variable, an empty cache."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(find, "_list_card_folders", lambda: [tmp_path / "here" / "model_cards"])
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv(MODEL_VARIABLE, raising=False)


@pytest.fixture
def place(tmp_path):
    """Puts the tiny model somewhere."""

    def put(*path):
        folder = tmp_path.joinpath(*path)
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(tiny_folder(), target_is_directory=True)
        return folder

    return put


@pytest.mark.parametrize("name", ["nano", None])
def test_without_a_model_the_ways_to_one_are_named(name):
    with pytest.raises(ValueError) as refusal:
        find_model(name)
    for told in (str(refusal.value), format_models()):
        assert "\n" not in told
        assert all(way in told for way in ("--model", "owner/name", MODEL_VARIABLE, "folder of models", "checkout"))


@pytest.mark.parametrize("name", ["nano", None])
def test_a_checkout_has_nano(place, name):
    folder = place("here", "model_cards", "nano")
    assert find_model(name) == folder
    assert [(info.folder, info.origin) for info in list_models()] == [(folder, "checkout")]


@pytest.mark.parametrize("names", [["nano"], ["nano", "other"]])
def test_the_variable_names_a_folder_of_models(place, monkeypatch, tmp_path, names):
    folders = [place("models", name) for name in names]
    monkeypatch.setenv(MODEL_VARIABLE, str(tmp_path / "models"))
    assert find_model() == find_model("nano") == folders[0]
    assert find_model(names[-1]) == folders[-1]


def test_the_variable_names_one_model(place, monkeypatch):
    folder = place("models", "mine")
    monkeypatch.setenv(MODEL_VARIABLE, str(folder))
    assert find_model() == find_model("mine") == folder
    with pytest.raises(ValueError, match="'nano'"):  # another name is not that model
        find_model("nano")
    assert f"mine  {MODEL_VARIABLE}  " in format_models()


def test_of_several_models_without_nano_one_has_to_be_chosen(place, monkeypatch, tmp_path):
    only = place("models", "one")
    monkeypatch.setenv(MODEL_VARIABLE, str(tmp_path / "models"))
    assert find_model() == only
    place("models", "two")
    with pytest.raises(ValueError, match=r"\(one, two\); choose one with --model"):
        find_model()


def test_models_of_the_hubs_cache_are_listed(place):
    place("hub", "models--me--mine", "snapshots", "0123")
    assert "me/mine  hub cache  text image audio video" in format_models()
