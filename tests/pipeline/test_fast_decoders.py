"""What the pipeline makes of the engine: fast decoders, negative prompts, search, coarse pictures, sessions."""

import shutil

import numpy as np
import pytest

from tests.scoring import score_drawn
from tests.tiny_model import tiny_folder, tiny_model
from unimodal.cli import app as cli
from unimodal.generation.decoders.packed_decoder import PackedDecoder
from unimodal.model_folder.drafts import DRAFTS, read_drafts, write_drafts
from unimodal.model_folder.find import MODEL_VARIABLE
from unimodal.pipeline import load
from unimodal.pipeline.search import CaptionVerifier
from unimodal.sequence.document import Document, Image, Text, Turn

pytestmark = pytest.mark.sweep("the pipeline")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.sliced
@pytest.mark.parametrize("decoder", ["jacobi", "retrieval", "token-recycling"])
@pytest.mark.parametrize("to", ["image", "text"])
def test_decoders_that_keep_the_noise_make_the_same(model, to, decoder):
    plain = model.generate("a red apple", to, seed=3)
    fast = model.generate("a red apple", to, seed=3, decoder=decoder)
    assert fast.text == plain.text
    if to == "image":
        assert np.array_equal(fast.part.codes, plain.part.codes)


def test_drafts_beside_a_model_are_used_and_change_nothing(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder(), folder)
    plain_model = load(folder, device="cpu")
    plain = plain_model.generate("a red apple", "image", seed=3)
    rows = plain_model.vocabulary.encode_span("image", plain.part.codes)
    assert read_drafts(folder) == []
    write_drafts(folder, [rows, rows[:5]])
    assert read_drafts(folder) == [list(map(int, rows)), list(map(int, rows[:5]))]
    model = load(folder, device="cpu")
    assert np.array_equal(
        model.generate("a red apple", "image", seed=3, decoder="retrieval").part.codes, plain.part.codes
    )
    assert model.engine.stats.forwards < 64 / 3
    (folder / DRAFTS).write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match="is no file of drafts .*; make it again with tools/make_drafts.py"):
        load(folder, device="cpu").generate("a red apple", "image", decoder="retrieval")


@pytest.mark.parametrize("decoder", ["sjd", "coupled-sjd", "gsd", "masked"])
def test_every_decoder_draws_whole_pictures(model, decoder):
    output = model.generate("a red apple", "image", seed=3, decoder=decoder)
    assert output.part.codes.shape == (64,) and list(output.media.shape) == [3, 64, 64]


def test_zipar_refuses_ordered_codes_in_one_line(model):
    with pytest.raises(ValueError, match="codes of block 'semantic' are not in raster order"):
        model.generate("a red apple", "image", decoder="zipar")


def test_gsd_is_given_the_vectors_behind_the_codes(model):
    vectors = model.coder.get_code_vectors()
    assert {name: tuple(table.shape) for name, table in vectors.items()} == {
        "image": (16, 2),
        "audio": (16, 2),
        "video": (16, 2),
    }


def test_a_negative_prompt_takes_the_place_of_the_missing_words(model, monkeypatch):
    asked = []
    monkeypatch.setattr(model.engine, "generate", lambda prompts, configs, *_: asked.extend(configs) or [])
    monkeypatch.setattr(model, "decode_answers", lambda rows: [[]])
    document = Document([Turn("user", "draw this"), Turn("assistant", "yes"), Turn("user", "Draw a red apple.")])
    model.answers([document], to="image", negative="blue car", guidance_interval=(2, 9))
    other = Document([Turn("user", ()), Turn("assistant", "yes"), Turn("user", "Draw a blue car.")])
    assert list(asked[0].unconditional) == model.template.render(other, add_generation_prompt=True).ids.tolist()
    assert asked[0].guidance_interval == {"image": (2, 9)}
    with pytest.raises(ValueError, match="a negative prompt works through guidance, which is 1 here"):
        model.answers([document], to="image", negative="blue car", guidance=1.0)


def test_a_negative_prompt_changes_the_picture(model):
    plain, other = (
        model.generate("a red apple", "image", seed=3, guidance=6.0, temperature=0.0, negative=words)
        for words in (None, "seven trees")
    )
    assert not np.array_equal(plain.part.codes, other.part.codes)


def test_coarse_pictures_come_while_the_picture_is_written(model):
    seen = []
    documents = [Document([Turn("user", f"Draw {name}.")]) for name in ("a car", "a green tree and a red apple")]
    for decoder in (None, "jacobi"):
        seen.clear()
        outputs = model.answers(
            documents, to="image", seeds=[1, 2], decoder=decoder, on_partial=lambda *found: seen.append(found)
        )
        for number, [output] in enumerate(outputs):
            mine = [partial for document, partial in seen if document == number]
            assert [partial.num_codes for partial in mine] == [4, 8, 16, 32]
            for partial in mine:
                assert np.array_equal(partial.part.codes, output.part.codes[: partial.num_codes])
                assert list(partial.media.shape) == [3, 64, 64]


def test_coarse_pictures_need_ordered_codes(model, monkeypatch):
    monkeypatch.setattr(model.coder.get_tokenizer("image"), "ordered", False)
    with pytest.raises(ValueError, match="codes run from coarse to fine"):
        model.generate("a car", "image", on_partial=lambda *_: None)
    with pytest.raises(ValueError, match="image codes of this model are not ordered; use best-of-n or lookahead"):
        model.generate("a car", "image", search="beam")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("best-of-n", {"n": 3}),
        ("beam", {"beams": 1, "expand": 3, "stages": (4,)}),
        ("lookahead", {"expand": 2, "stages": (4,)}),
    ],
)
def test_search_gives_a_picture_that_the_model_names_no_worse(model, name, settings):
    found = model.generate("a red apple", "image", seed=3, search=name, search_settings=settings)
    again = model.generate("a red apple", "image", seed=3, search=name, search_settings=settings)
    assert np.array_equal(found.part.codes, again.part.codes)
    verifier = CaptionVerifier(model, "image", model.wording.phrase_caption("a red apple", "image"))
    rows = model.vocabulary.encode_span("image", found.part.codes)
    if name == "best-of-n":
        plain = model.generate("a red apple", "image", seed=3)
        other = model.vocabulary.encode_span("image", plain.part.codes)
        assert verifier([rows])[0] >= verifier([other])[0] - 1e-6


def test_the_verifier_is_the_likelihood_of_the_caption(model):
    """A token, through the model's own forward, among what may come next; and it takes partial pictures."""
    import torch

    verifier = CaptionVerifier(model, "image", "red apple")
    codes = model.generate("a red apple", "image", seed=3).part.codes
    rows = model.vocabulary.encode_span("image", codes)
    [seen] = model.coder.encode("image", model.coder.decode("image", [codes]))  # what the codes show, read anew
    asked = Document([Turn("user", [Image(codes=seen), Text("What is this?")])])
    whole = model.template.render(Document([*asked.turns, Turn("assistant", "red apple")])).ids
    start = len(model.template.render(asked, add_generation_prompt=True))
    with torch.inference_mode():
        logits = model.decoder(torch.from_numpy(whole)[None]).logits[0, start - 1 : -1]
    ids = whole.tolist()
    expected = float(score_drawn(logits, model.vocabulary, ids[:start], ids[start:]).mean())
    assert verifier([rows])[0] == pytest.approx(expected, abs=1e-4)
    assert verifier.read_codes(rows[:9]).tolist() == codes[:8].tolist()
    assert len(verifier([rows[:5], rows[:9]])) == 2


def test_search_goes_with_media_only(model):
    with pytest.raises(ValueError, match="search chooses between media"):
        model.generate("a red apple", "text", search="best-of-n")
    with pytest.raises(ValueError, match="search does not go with decoder; leave"):
        model.generate("a red apple", "image", search="best-of-n", decoder="sjd", on_partial=None, session=None)


@pytest.mark.parametrize(
    ("request_", "to", "caption"),
    [
        ("red apple", "image", "red apple"),
        ("a red apple.", "image", "red apple"),
        ("Draw an owl.", "image", "owl"),
        ("A clip of the sea", "video", "sea"),
        ("Say: Well, it is late!", "audio", "well it is late"),
    ],
)
def test_the_caption_is_what_the_request_is_about(model, request_, to, caption):
    assert model.wording.phrase_caption(request_, to) == caption


def test_a_session_reads_a_conversation_once(model):
    session = model.engine.open_session()
    first = Document([Turn("user", "what is this?")])
    [[answer]] = model.answers([first], to="text", tokens=8, session=session)
    later = Document([*first.turns, Turn("assistant", [answer.part]), Turn("user", "and a green tree?")])
    together = model.answers([later], to="image", seeds=[4], session=session)
    assert model.engine.stats.cached_tokens > 0
    alone = model.answers([later], to="image", seeds=[4])
    assert np.array_equal(together[0][0].part.codes, alone[0][0].part.codes)


def test_weights_are_chosen_at_load():
    narrow = load(tiny_folder(), device="cpu", weights="int8")
    assert isinstance(narrow.engine.decoder, PackedDecoder) and narrow.engine.decoder.weights == "int8"
    assert narrow.generate("a red apple", "image", seed=3).part.codes.shape == (64,)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_the_command_line_has_them_all(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(MODEL_VARIABLE, str(tiny_folder()))
    out = tmp_path / "a.png"
    words = ["generate", "a red apple", "--to", "image", "--out", str(out)]
    code, printed, _ = run(
        capsys, *words, "--decoder", "jacobi", "--negative", "a car", "--weights", "bfloat16", "--partial"
    )
    assert code == 0 and [line.split("/")[-1] for line in printed.splitlines()] == [
        "a-04.png",
        "a-08.png",
        "a-16.png",
        "a-32.png",
        "a.png",
    ]
    assert all((tmp_path / line.split("/")[-1]).is_file() for line in printed.splitlines())
    code, printed, _ = run(capsys, *words, "--search", "beam")
    assert code == 0 and printed == f"{out}\n"
    for wrong in (["--decoder", "fast"], ["--search", "magic"], ["--weights", "int3"]):
        code, printed, err = run(capsys, *words, *wrong)
        assert code == 2 and printed == "" and "is unknown; choose" in err and len(err.splitlines()) == 1
    code, _, err = run(capsys, "generate", "hello", "--to", "audio", "--out", str(tmp_path / "a.wav"), "--partial")
    assert code == 2 and "--partial is for pictures" in err
