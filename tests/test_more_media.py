"""The further media that come with the package pass through all of it: file → codes → document → decoder → file."""

import importlib
import sys

import pytest
import torch

from tests.tiny_model import NANO_WORDING, tiny_folder, tiny_tokenizers
from unimodal.media.registry import MEDIA
from unimodal.model.build import NanoConfig, build_nano
from unimodal.model_folder.settings import MediumLimits, MediumSettings, ProcessorConfig
from unimodal.model_folder.write import save_model
from unimodal.pipeline import load
from unimodal.sequence.document import MEDIA_PARTS, Document, Turn
from unimodal.text.tokenizer import TextTokenizer
from unimodal.tokenizers.codes import Codes
from unimodal.vocabulary import make_media_vocabulary


def make_drawing(plugin, path):
    path.write_text('<svg viewBox="0 0 63 63"><path d="M1 2L30 40C1 1 2 2 3 3Z"/></svg>', encoding="utf-8")
    return plugin.PathTokenizer(plugin.PathConfig())


def make_shape(plugin, path):
    shape = torch.zeros(8, 8, 8)
    shape[2:5, 1:4, 3:8] = 1
    plugin.save_voxels(shape, path, None)
    return plugin.OctreeTokenizer(plugin.OctreeConfig(side=8))


@pytest.mark.parametrize(
    ("plugin", "of", "make", "suffix"),
    [("svg_paths", "svg", make_drawing, ".svg"), ("voxels", "voxels", make_shape, ".binvox")],
)
def test_a_further_medium_is_read_rendered_and_written(
    own_registrations, monkeypatch, tmp_path, plugin, of, make, suffix
):
    name = f"unimodal.tokenizers.more_media.{plugin}"
    MEDIA.pop(of, None)  # of another test's
    monkeypatch.setenv("UNIMODAL_PLUGINS", name)
    sys.modules.pop(name, None)
    file = tmp_path / f"a{suffix}"
    tokenizer = make(importlib.import_module(name), file).eval()
    medium = tokenizer.modality
    torch.manual_seed(0)
    text = TextTokenizer.load(tiny_folder())
    tokenizers = {**tiny_tokenizers(), medium: tokenizer}
    vocabulary = make_media_vocabulary(tokenizers.values(), text.size, text.reserved_ids, text.sha256)
    sizes = NanoConfig(
        hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2, intermediate_size=16, max_positions=512
    )
    control = vocabulary.get_control_id
    decoder = build_nano(
        vocabulary.size, sizes, pad_id=control("<|pad|>"), bos_id=control("<|bos|>"), eos_id=control("<|end_of_turn|>")
    )
    wording = NANO_WORDING.model_copy(update={"questions": {**NANO_WORDING.questions, medium: "What is this?"}})
    processor = ProcessorConfig(limits={medium: MediumLimits(codes=24)}, wording=wording)
    save_model(tmp_path / "five", decoder, vocabulary, text, tokenizers, processor, {"text": MediumSettings()})
    model = load(tmp_path / "five", device="cpu")
    document = Document([model.user_turn([MEDIA_PARTS[medium](path=str(file))]), Turn("assistant", "a thing")])
    rendered = model.template.render(document)
    assert model.template.parse(rendered.ids) == document.canonicalize()
    drawn = model.generate("a thing", to=medium, seed=3, tokens=30)
    drawn.save(tmp_path / f"b{suffix}")
    if drawn.media.any():  # random weights may draw nothing
        assert model.tokenize(tmp_path / f"b{suffix}").modality == medium
    known = torch.from_numpy(model.tokenize(file).codes).long().view(1, -1)
    assert torch.equal(tokenizer.encode(tokenizer.decode(Codes.whole(known))).ids[..., 0], known)
