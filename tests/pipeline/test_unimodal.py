"""The whole flow through a tiny model: real files, codes, rows and tokenizers; only the answers are nonsense."""

import json
import shutil

import numpy as np
import pytest
import torch

from tests.tiny_model import MAX_AUDIO_CODES, MAX_POSITIONS, tiny_folder, tiny_model, tiny_tokenizers
from unimodal.media.audio import save_audio
from unimodal.media.image import save_image
from unimodal.media.video import save_video
from unimodal.model_folder.find import MODEL_VARIABLE, describe_model, find_model, list_models
from unimodal.model_folder.layout import REQUIRED
from unimodal.model_folder.write import save_model
from unimodal.pipeline import MediaCodes, load
from unimodal.pipeline.requests import count_room
from unimodal.sequence.document import Audio, Document, Image, Text, Turn, Video
from unimodal.tokenizers import FAMILIES, hash_stored, load_tokenizer

pytestmark = pytest.mark.sweep("the pipeline")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One small file of each medium, by modality."""
    folder = tmp_path_factory.mktemp("files")
    generator = torch.Generator().manual_seed(1)
    save_image(torch.rand(3, 40, 70, generator=generator), folder / "a.png")
    save_audio(0.3 * torch.sin(torch.arange(9_001) * 0.2), folder / "a.wav", 16_000)
    save_video(torch.rand(5, 3, 32, 32, generator=generator), folder / "a.gif", 8)
    return {"image": folder / "a.png", "audio": folder / "a.wav", "video": folder / "a.gif"}


@pytest.fixture
def copy(tmp_path):
    """A copy of the model folder to spoil."""
    return shutil.copytree(tiny_folder(), tmp_path / "copy")


# ---- making media and answering


@pytest.mark.parametrize(
    ("to", "shape", "rate"),
    [("image", [3, 64, 64], None), ("audio", None, 16_000), ("video", [9, 3, 64, 64], 8)],
)
def test_generate_gives_the_medium_and_the_same_for_the_same_seed(model, to, shape, rate):
    output = model.generate("a red apple", to, seed=3)
    assert output.modality == to and output.rate == rate
    if to == "audio":
        assert output.media.shape == (512 * len(output.part.codes),) and len(output.part.codes) <= MAX_AUDIO_CODES
    else:
        assert list(output.media.shape) == shape
        assert float(output.media.min()) >= 0 and float(output.media.max()) <= 1
    again, other = model.generate("a red apple", to, seed=3), model.generate("a red apple", to, seed=4)
    assert again.part == output.part and torch.equal(again.media, output.media)
    assert other.part != output.part


def test_generated_text_is_text_alone(model):
    output = model.generate("hello", "text", tokens=5)
    assert output.modality == "text" and output.media is None
    assert len(model.template.text.encode(output.text)) <= 6


def test_many_requests_answer_as_each_alone(model):
    documents = [Document([Turn("user", text)]) for text in ("draw a cat", "x", "a picture of seven old men, please")]
    together = model.answers(documents, to="image", seeds=[5, 6, 7])
    for document, seed, outputs in zip(documents, [5, 6, 7], together, strict=True):
        [alone] = model.answers([document], to="image", seeds=[seed])
        assert [o.part for o in alone] == [o.part for o in outputs]
        assert torch.allclose(alone[0].media, outputs[0].media, atol=1e-5)


def test_progress_counts_requests_and_tokens_are_told(model):
    seen, events = [], []
    documents = [Document([Turn("user", str(i))]) for i in range(18)]
    model.answers(documents, to="text", tokens=2, on_progress=lambda *at: seen.append(at), on_token=events.append)
    assert seen == [(16, 18), (18, 18)]
    assert {event.modality for event in events} == {"text"}


def test_media_without_words_get_the_trained_question(model, files):
    turn = model.user_turn([Image(path=files["image"])])
    assert [type(part) for part in turn.parts] == [Image, Text]
    assert turn.parts[0].codes.shape == (64,) and turn.text == model.wording.ask("image")
    turn = model.user_turn(["", Audio(path=files["audio"])])
    assert turn.text == "What is said?"
    turn = model.user_turn(["and this?", Video(path=files["video"])])
    assert turn.text == "and this?" and turn.parts[1].codes.shape == (192,)


def test_chat_answers_in_any_order_of_parts_with_history(model, files):
    first = model.chat([Image(path=files["image"]), "What is this?"], to="text", tokens=4)
    history = [model.user_turn([Image(path=files["image"])]), Turn("assistant", [o.part for o in first])]
    second = model.chat("and now?", history=history, to="text", tokens=4)
    assert all(output.modality == "text" for output in [*first, *second])
    assert count_room(model, Document(history)) < MAX_POSITIONS - 64


def test_text_that_spells_a_media_token_stays_text(model):
    words = "please <|image_0003|> and <|user|> <|image_start|>"
    document = Document([model.user_turn(words)])
    ids = model.template.render(document).ids
    inside = ids[2:-1]  # between <|bos|><|user|> and <|end_of_turn|>
    assert (inside < model.vocabulary.text_size).all()
    assert model.template.parse(ids) == document


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        (
            "word " * 10_000,
            {},
            "the prompt is too long: it is [0-9,]+ tokens, and this model reads at most 445 before its answer",
        ),
        ("a cat", {"tokens": 10}, "10 tokens are too few: image takes at least 67"),
        ("a cat", {"tokens": 9_999}, "9999 new tokens do not fit"),
        ("a cat", {"guidance": -1.0}, "guidance -1.0 is not usable"),
        ("a cat", {"guidance": float("nan")}, "guidance nan"),
        ("a cat", {"voice": "joe"}, "a voice speaks"),
        ("  ", {}, "the prompt is empty"),
    ],
)
def test_requests_that_do_not_fit_are_one_line(model, prompt, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        model.generate(prompt, "image", **settings)
    assert "\n" not in str(caught.value)


def test_a_medium_the_model_lacks_and_an_empty_turn_are_refused(model):
    with pytest.raises(ValueError, match="smell"):
        model.generate("a rose", "smell")
    with pytest.raises(ValueError, match="nothing to answer"):
        model.chat([])


def test_guidance_compares_with_the_prompt_without_its_words(model, files, monkeypatch):
    asked = []
    monkeypatch.setattr(model.engine, "generate", lambda prompts, configs, *_: asked.extend(configs) or [])
    monkeypatch.setattr(model, "decode_answers", lambda rows: [[]])
    turn = model.user_turn(["draw this in blue", Image(path=files["image"])])
    model.answers([Document([turn])], to="image", seeds=[0])
    bare = Document([Turn("user", [turn.parts[1]])])
    assert list(asked[0].unconditional) == model.template.render(bare, add_generation_prompt=True).ids.tolist()
    assert asked[0].guidance["image"] == 2.0  # the model's own, from generation_config.json
    model.answers([Document([turn])], to="image", seeds=[0], guidance=1.0)
    assert asked[1].unconditional is None and asked[1].guidance["image"] == 1.0
    model.answers([Document([turn])], to="text", seeds=[0])
    assert asked[2].unconditional is None and asked[2].allow is None and asked[2].sampling["text"].temperature == 0


def test_a_sound_longer_than_the_model_hears_is_refused(model, tmp_path):
    save_audio(torch.zeros(40_000), tmp_path / "long.wav", 16_000)
    with pytest.raises(ValueError, match=r"long.wav lasts 2.5 s; this model hears at most 2 s"):
        model.chat([Audio(path=tmp_path / "long.wav")])
    assert len(model.tokenize(tmp_path / "long.wav").codes) == 79  # codes alone may be longer


# ---- files and codes


@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_codes_go_to_a_file_and_back(model, files, tmp_path, modality):
    codes = model.tokenize(files[modality])
    assert codes.modality == modality and codes.tokenizer_sha256 == model.coder.sha256[modality]
    assert codes.seconds == {"image": None, "audio": 9_001 / 16_000, "video": 9 / 8}[modality]
    codes.save(tmp_path / "codes.json")
    read = MediaCodes.load(tmp_path / "codes.json")
    assert np.array_equal(read.codes, codes.codes) and (read.grid, read.seconds) == (codes.grid, codes.seconds)
    output = model.detokenize(read)
    if modality == "audio":
        assert output.media.shape == (9_001,)  # the padding of the last code is cut off
    part = {"image": Image, "audio": Audio, "video": Video}[modality](path=files[modality])
    assert np.array_equal(model.coder.encode_part(part).codes, codes.codes)
    with pytest.raises(ValueError, match="the codes were made by the .* tokenizer 0000"):
        model.detokenize(MediaCodes(modality, "0000", codes.codes))


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{}", "nonsense", '{"format": 1, "codes": []}',
        '{"format": 1, "modality": "image", "tokenizer_sha256": "", "codes": [0.5]}',
        '{"format": 1, "modality": "smell", "tokenizer_sha256": "", "codes": [1]}',
        '{"format": 1, "modality": "image", "tokenizer_sha256": "", "codes": [99999999999999999999]}',
        '{"format": 1, "modality": "image", "codes": [1, [2]], "tokenizer_sha256": ""}',
    ],
)  # fmt: skip
def test_a_file_that_holds_no_codes_is_one_line(tmp_path, content):
    (tmp_path / "codes.json").write_text(content)
    with pytest.raises(ValueError, match="codes.json is not") as caught:
        MediaCodes.load(tmp_path / "codes.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("codes", [[], [1] * 65, [99] * 64, [-1] * 64])
def test_codes_that_are_no_picture_are_refused(model, codes):
    with pytest.raises(ValueError):
        model.detokenize(MediaCodes("image", model.coder.sha256["image"], np.array(codes)))


def test_sounds_of_a_batch_code_and_decode_as_alone(model):
    sounds = [0.2 * torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (700, 5_000)]
    together = model.coder.encode("audio", sounds)
    assert [len(codes) for codes in together] == [2, 10]
    decoded = model.coder.decode("audio", together)
    for sound, codes, heard in zip(sounds, together, decoded, strict=True):
        [alone] = model.coder.encode("audio", [sound])
        assert np.array_equal(alone, codes)
        assert torch.allclose(model.coder.decode("audio", [alone])[0], heard, atol=1e-4)


# ---- model folders


def test_the_folder_is_laid_out_as_its_hub_repository(model):
    folder = tiny_folder()
    inside = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    media = {f"{m}_tokenizer/{f}" for m in ("image", "audio", "video") for f in ("config.json", "model.safetensors")}
    files = {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "processor_config.json", "vocabulary.json",
    }  # fmt: skip
    assert inside == media | files
    from safetensors.torch import load_file

    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert {parameter.dtype for parameter in model.decoder.parameters()} == {torch.float32}
    info = describe_model(folder)
    assert info.architecture == "LlamaForCausalLM" and info.modalities == ("text", "image", "audio", "video")


def test_a_wrong_hash_in_the_manifest_names_both(copy):
    manifest = json.loads((copy / "vocabulary.json").read_text())
    [audio] = [block for block in manifest["blocks"] if block["name"] == "audio"]
    audio["sha256"] = "f" * 64
    (copy / "vocabulary.json").write_text(json.dumps(manifest))
    real = hash_stored(copy / "audio_tokenizer")
    with pytest.raises(ValueError, match=f"audio tokenizer has sha256 {real} but .* {'f' * 64}"):
        load(copy)


def test_a_swapped_tokenizer_is_refused(copy):
    torch.manual_seed(9)
    tiny_tokenizers()["image"].save(copy / "image_tokenizer")
    with pytest.raises(ValueError, match="the semantic tokenizer has sha256"):
        load(copy)
    shutil.copy(tiny_folder() / "image_tokenizer" / "model.safetensors", copy / "image_tokenizer")
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][1:]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="the text tokenizer has sha256"):
        load(copy)


@pytest.mark.parametrize("name", [*REQUIRED, "audio_tokenizer/model.safetensors"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(ValueError, match=name.split("/")[-1]):
        load(copy)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", {"architectures": ["ResNet"]}, "ResNet; it must be a causal LM"),
        ("config.json", {"vocab_size": 100}, "the decoder has 100 rows but vocabulary.json"),
        (
            "processor_config.json",
            {"limits": {"audio": {"seconds": -1}}},
            "processor_config.json: limits.audio.seconds",
        ),
        ("processor_config.json", {"format": 9}, "is of format 9 and this unimodal reads up to 2"),
        ("generation_config.json", {"unimodal": {"image": {"heat": 1}}}, "generation_config.json: image.heat"),
        ("image_tokenizer/config.json", {"family": "unheard_of"}, "family 'unheard_of'; known are"),
    ],
)
def test_a_spoilt_setting_is_one_line(copy, name, content, message):
    data = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps({**data, **content}))
    with pytest.raises(ValueError, match=message) as caught:
        load(copy).generate("a cat", "image")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "image_tokenizer/model.safetensors"])
def test_damaged_weights_are_one_line(copy, name):
    (copy / name).write_bytes((copy / name).read_bytes()[:1000])
    with pytest.raises(ValueError) as caught:
        load(copy)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_there_are_not_made_up(copy):
    from safetensors.torch import load_file, save_file

    state = load_file(copy / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks model.layers.1.mlp.up_proj.weight"):
        load(copy)


def test_models_are_found_by_variable_folder_and_card_name(copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(MODEL_VARIABLE, str(copy))
    assert find_model() == copy
    assert copy in [info.folder for info in list_models()]
    shutil.copytree(copy, tmp_path / "model_cards" / "small")
    assert find_model("small") == tmp_path / "model_cards" / "small"
    monkeypatch.setenv(MODEL_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=f"{MODEL_VARIABLE}=.*nowhere"):
        find_model()


@pytest.mark.parametrize("name", ["nowhere", "some/where/else", "nobody/nothing"])  # the last looks like a hub id
def test_an_unknown_model_is_one_line(name):
    with pytest.raises(ValueError, match=name) as caught:
        find_model(name)
    assert "\n" not in str(caught.value)


def test_saving_with_another_tokenizer_writes_nothing(model, tmp_path):
    torch.manual_seed(5)
    parts = {name: model.coder.get_tokenizer(name) for name in ("image", "audio", "video")}
    with pytest.raises(ValueError, match="the audio tokenizer has sha256"):
        save_model(
            tmp_path / "new", model.decoder, model.vocabulary, model.template.text,
            parts | {"audio": tiny_tokenizers()["audio"]},
        )  # fmt: skip
    assert list(tmp_path.rglob("*")) == [tmp_path / "new"]


def test_every_family_loads_by_its_folder_and_keeps_its_hash(model):
    families = set()
    for name in ("image", "audio", "video"):
        folder = tiny_folder() / f"{name}_tokenizer"
        loaded = load_tokenizer(folder, model.coder.get_tokenizer("image"))
        assert loaded.modality == name and loaded.sha256 == hash_stored(folder) == model.coder.sha256[name]
        families.add(loaded.config.family)
    assert families == {name for name, place in FAMILIES.items() if ".nano." in place}
