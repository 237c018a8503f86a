"""The way back: a tokenizer trained here as its authors' checkpoint, and as a class of transformers."""

import pytest
import torch

from tests.tokenizers.released import build_small
from tests.tokenizers.test_released_weights import load
from tools import convert_checkpoint
from unimodal.tokenizers import find_family_class, pretrained
from unimodal.tokenizers.configs.registry import list_systems, read_system
from unimodal.tokenizers.pretrained.published import PUBLISHED
from unimodal.tokenizers.systems.base import SystemModule


def run(*arguments):
    convert_checkpoint.main([str(argument) for argument in arguments])


#: one system of every family whose weights were released, and one of every set of names
SMALL = [name for name in list_systems() if not read_system(name).small_like]
FAMILIES = {str(read_system(name).choose_settings(small=True)["family"]): name for name in SMALL}
RELEASED = [FAMILIES[family] for family in dict.fromkeys(row.family for row in PUBLISHED.values())]
RELEASED += ["llamagen-vq16", "ibq-16384", "open-magvit2-256", "gigatok-bl-2d", "titok-s128", "robustok"]


@pytest.mark.sweep
@pytest.mark.parametrize("system", dict.fromkeys(RELEASED))
def test_a_tokenizer_is_written_as_its_authors_checkpoint_and_read_again(system, tmp_path):
    tokenizer = build_small(system)
    tokenizer.save(tmp_path / "mine")
    run("authors", tmp_path / "mine", tmp_path / "safe")
    name = next(name for name, row in PUBLISHED.items() if row.family == tokenizer.config.family)
    assert load(name, tmp_path / "safe").sha256 == tokenizer.sha256
    run("authors", tmp_path / "mine", tmp_path / "pickled", "--pickle")
    [file] = [path for path in (tmp_path / "pickled").iterdir() if path.suffix != ".json"]
    released = PUBLISHED[name].file
    assert file.suffix != ".safetensors" and (released.endswith((file.name, ".safetensors")) or not released)
    config = tmp_path / "pickled" / "unimodal.json"
    assert load(name, tmp_path / "pickled", config=config, pickle=True).sha256 == tokenizer.sha256


def test_the_authors_settings_are_written_where_their_form_is_known():
    for name in ("llamagen-vq16", "llamagen-vq8"):
        kind = find_family_class("vqgan")
        with torch.device("meta"):
            tokenizer = kind(kind.config_class.model_validate(read_system(name).choose_settings()))
            fields = tokenizer.write_authors_config()
        again = kind.read_authors_config(fields)
        assert again.quantizer.items() >= tokenizer.config.quantizer.items()
        assert again.model_dump(exclude={"quantizer"}) == tokenizer.config.model_dump(exclude={"quantizer"})
    assert build_small("ibq-16384").write_authors_config() is None


def test_a_llamagen_vq_is_transformers_janus_vq(tmp_path):
    from transformers.models.janus.modeling_janus import JanusVQVAE

    tokenizer = build_small("llamagen-vq16")
    config = tokenizer.config.model_copy(update={"num_norm_groups": 32, "width": 32, "latent_width": 32})
    tokenizer = type(tokenizer)(config).eval()
    tokenizer.save(tmp_path / "mine")
    run("authors", tmp_path / "mine", tmp_path / "janus", "--as-janus")
    theirs = JanusVQVAE.from_pretrained(tmp_path / "janus").eval()
    size = tokenizer.config.image_size
    pictures = torch.rand(2, 3, size, size)
    codes = tokenizer.encode(pictures)
    with torch.inference_mode():
        found = theirs.encode(pictures * 2 - 1).image_tokens.view(2, -1)
        assert torch.equal(found, codes.ids[..., 0])
        painted = theirs.decode(found)
        painted = painted if painted.shape[1] == 3 else painted.permute(0, 3, 1, 2)
    torch.testing.assert_close((painted / 2 + 0.5).clamp(0, 1), tokenizer.decode(codes), atol=1e-4, rtol=1e-4)


def test_what_has_no_checkpoint_of_its_authors_says_so(tmp_path, capsys):
    from tests.tiny_networks import mimi

    mimi().save_pretrained(tmp_path / "mimi")
    pretrained.load("mimi", tmp_path / "mimi").save(tmp_path / "saved")
    tokenizer = build_small("ibq-16384")
    assert isinstance(tokenizer, SystemModule)
    tokenizer.save(tmp_path / "ibq")
    for arguments, said in [
        ((tmp_path / "saved", tmp_path / "out"), "is a MimiTokenizer, of no authors' checkpoint; these families are"),
        ((tmp_path / "ibq", tmp_path / "out", "--as-janus"), "JanusVQVAE has one codebook of vectors of length 1"),
        ((tmp_path, tmp_path / "out"), "is not a tokenizer folder"),
    ]:
        with pytest.raises(SystemExit):
            run("authors", *arguments)
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert said in line and not (tmp_path / "out").exists()
