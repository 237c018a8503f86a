"""Released weights: every row of the table loads as its authors wrote it, and says what another checkpoint is."""

import json

import pytest
import torch

from tests.tokenizers.released import FILES, SMALL, build_small, clone_state, script_weights, write_checkpoint
from unimodal.tokenizers import LatentTokenizer, pretrained
from unimodal.tokenizers.pretrained.published import PUBLISHED


def load(name, *arguments, **settings):
    """By the function that is for its kind of tokens."""
    family = pretrained.checkpoint.find_family_class(PUBLISHED[name].family)
    way = pretrained.load_latents if issubclass(family, LatentTokenizer) else pretrained.load
    return way(name, *arguments, **settings)


@pytest.mark.sweep
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_released_system_loads_from_safetensors_from_a_pickle_and_from_what_was_saved(
    name, open_reference, tmp_path
):
    if name in FILES:
        file, read = FILES[name]
        wanted = read(open_reference(file if "/" in file else f"visual/{file}"))
    else:
        wanted = build_small(SMALL[name])
    settings = write_checkpoint(wanted, tmp_path / "safe")
    loaded = load(name, tmp_path / "safe", config=settings)
    assert loaded.sha256 == wanted.sha256 and not loaded.training
    row = PUBLISHED[name]
    assert (loaded.config.licence, loaded.config.origin) == (row.licence, str(tmp_path / "safe"))

    state, (root, *inner) = {row.prefix + key: value for key, value in clone_state(wanted).items()}, row.roots
    (tmp_path / "pickle").mkdir()
    torch.save({root: state if len(inner) != 1 else {inner[0]: state}, "step": 3}, tmp_path / "pickle" / "last.ckpt")
    with pytest.raises(ValueError, match="is a pickle; allow its bare tensors with pickle=True"):
        load(name, tmp_path / "pickle", config=settings)
    assert load(name, tmp_path / "pickle", config=settings, pickle=True).sha256 == wanted.sha256

    loaded.save(tmp_path / "saved")
    again = load(name, tmp_path / "saved")
    assert again.sha256 == wanted.sha256 and again.config == loaded.config
    with pytest.raises(ValueError, match="is a saved tokenizer with its own settings; leave pickle out"):
        load(name, tmp_path / "saved", pickle=True)


@pytest.mark.sweep
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_hub_id_gives_the_file_and_the_config_of_the_table(name, tmp_path, monkeypatch):
    """A folder stands in for the hub's."""
    row, asked = PUBLISHED[name], []
    monkeypatch.setattr(
        pretrained.checkpoint, "download_folder", lambda hub_id, patterns: asked.append((hub_id, patterns)) or tmp_path
    )
    if not row.hub_id:
        with pytest.raises(ValueError, match=f"are on no hub .*{row.where[:12]}.*download them and name the file"):
            load(name)
        return
    for source in (None, row.hub_id):
        if row.file and not row.file.endswith(".safetensors"):
            with pytest.raises(ValueError, match=f"{row.file} is a pickle; allow its bare tensors with pickle=True"):
                load(name, source)
            assert not asked  # before gigabytes are downloaded
        with pytest.raises(ValueError, match="has no weights|is not there; name the folder or file"):
            load(name, source, pickle=True)
        [(hub_id, patterns)] = asked
        asked.clear()
        assert hub_id == row.hub_id and (not row.file or row.file in patterns) and "*.safetensors" in patterns


def test_a_copy_of_a_hubs_repository_is_read_as_the_repository(tmp_path, monkeypatch):
    tokenizer = build_small("ibq-16384")
    torch.save({"state_dict": clone_state(tokenizer)}, tmp_path / "imagenet256_16384.ckpt")
    torch.save({}, tmp_path / "another.ckpt")
    monkeypatch.setattr(
        "unimodal.tokenizers.configs.registry.PublishedSystem.choose_settings",
        lambda system: {**(system.tokenizer or {}), **system.small},
    )
    assert pretrained.load("ibq", tmp_path, pickle=True).sha256 == tokenizer.sha256


def test_torchscript_is_read_on_request_alone(tmp_path):
    tokenizer = build_small("cosmos-di-8x8")
    settings = write_checkpoint(tokenizer, tmp_path / "safe")
    script_weights(clone_state(tokenizer)).save(str(tmp_path / "autoencoder.jit"))
    with pytest.raises(ValueError, match="holds a program; allow it with torchscript=True"):
        pretrained.load("cosmos_image", tmp_path / "autoencoder.jit", config=settings, pickle=True)
    found = pretrained.load("cosmos_image", tmp_path / "autoencoder.jit", config=settings, torchscript=True)
    assert found.sha256 == tokenizer.sha256


@pytest.mark.sweep("tokenizers at work")
def test_a_checkpoint_of_another_system_or_size_says_what_it_looks_like(tmp_path):
    titok = write_checkpoint(build_small("titok-s128"), tmp_path / "titok")
    vqgan = write_checkpoint(build_small("llamagen-vq16"), tmp_path / "llamagen")
    moto = write_checkpoint(build_small("moto"), tmp_path / "moto")
    larger = tmp_path / "larger.json"
    larger.write_text(json.dumps({**json.loads(vqgan.read_text()), "latent_width": 24}))
    llamagen = "It looks like LlamaGen VQ .vqgan., of no published size"
    for name, folder, config, said in [
        ("titok", "llamagen", titok, f"lacks .* {llamagen}"),
        ("titok", "llamagen", vqgan, f"of the family vqgan, and titok of titok. {llamagen}"),
        ("llamagen_vq", "llamagen", larger, f"of shape .* is it of another size. {llamagen}"),
        ("moto", "llamagen", moto, llamagen),
    ]:
        with pytest.raises(ValueError, match=said) as error:
            pretrained.load(name, tmp_path / folder, config=config)
        assert "\n" not in str(error.value)


@pytest.mark.sweep("tokenizers at work")
def test_a_checkpoint_of_another_published_size_is_named():
    from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
    from unimodal.tokenizers.pretrained.likeness import describe_likeness

    with torch.device("meta"):
        weights = build_tokenizer(read_system("titok-b64").choose_settings()).collect_authors_state()
    assert describe_likeness(weights) == "It looks like TiTok (titok-b64)"
    assert "like no published system" in describe_likeness({"lm_head.weight": torch.zeros(1)})


def test_weights_that_are_not_what_they_seem_are_one_line(tmp_path):
    tokenizer = build_small("llamagen-vq16")
    settings = write_checkpoint(tokenizer, tmp_path / "a")
    [file] = (tmp_path / "a").glob("*.safetensors")
    (tmp_path / "a" / "ema.safetensors").write_bytes(file.read_bytes())
    torch.save({"state_dict": print}, tmp_path / "program.ckpt")
    (tmp_path / "half.ckpt").write_bytes((tmp_path / "program.ckpt").read_bytes()[:200])
    (tmp_path / "empty").mkdir()
    for source, said in [
        ("a", "has several files with a tensor .*; name one"),
        ("program.ckpt", "is damaged, or holds more than tensors; no code of a checkpoint is run"),
        ("half.ckpt", "half.ckpt is damaged"),
        ("empty", "empty has no weights"),
        ("nowhere", "nowhere' is no folder"),
    ]:
        with pytest.raises(ValueError, match=said) as error:
            pretrained.load("llamagen_vq", tmp_path / source, config=settings, pickle=True)
        assert "\n" not in str(error.value) and len(str(error.value)) < 300
