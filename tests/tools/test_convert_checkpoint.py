"""Converted checkpoints against transformers' own processors and models: the same ids, logits, codes and answers."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from tests import tiny_checkpoints, tiny_networks
from tools import convert_checkpoint
from unimodal.generation.request import GenerationConfig
from unimodal.pipeline import load
from unimodal.pipeline.requests import prepare, render_prompt
from unimodal.pipeline.settings import AnswerSettings
from unimodal.sequence.document import Document, Image, Turn
from unimodal.tokenizers import load_tokenizer

pytestmark = pytest.mark.sweep("tools at work")


GRID = (4, 5)
SYSTEM = "You are a helpful assistant."
OPTIONS = {"emu3": ["--grid", "4x5"], "chameleon": [], "janus": []}


def prompt_of(model, document, to=None):
    """The ids that the engine is given."""
    return prepare(model, document, AnswerSettings(to=to)).prompt


@pytest.fixture(scope="module", params=["emu3", "chameleon", "janus"])
def converted(request, tmp_path_factory):
    return made(request.param, tmp_path_factory)


@pytest.fixture(scope="session")
def emu3(tmp_path_factory):
    return made("emu3", tmp_path_factory)


@pytest.fixture(scope="session")
def chameleon(tmp_path_factory):
    return made("chameleon", tmp_path_factory)


@pytest.fixture(scope="session")
def janus(tmp_path_factory):
    return made("janus", tmp_path_factory)


_made = {}


def made(kind, tmp_path_factory):
    """(our model, the reference model, its processor, the folder of both); made once a run."""
    if kind not in _made:
        folder = tmp_path_factory.mktemp(kind)
        model, processor = getattr(tiny_checkpoints, kind)(folder / "source")
        convert_checkpoint.main([kind, str(folder / "source"), str(folder / "out"), *OPTIONS[kind]])
        _made[kind] = load(folder / "out"), model, processor, folder
    return _made[kind]


def photo(folder, height, width):
    noise = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path = folder / f"{height}x{width}.png"
    Picture.fromarray(noise).save(path)
    return path


def logits_of(decoder, ids):
    with torch.inference_mode():
        hidden = decoder.get_decoder()(input_ids=torch.tensor([ids])).last_hidden_state
        return decoder.get_output_embeddings()(hidden)[0]


# ---- reading


def test_emu3_reads_what_its_processor_writes(emu3, tmp_path):
    ours, model, processor, _ = emu3
    for shape in ((50, 70), (40, 40), (96, 30)):
        path = photo(tmp_path, *shape)
        messages = [
            {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Please describe the image."}]},
        ]
        words = processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = processor(images=[Picture.open(path)], text=[words], return_tensors="pt")
        with torch.inference_mode():
            expected = model(**inputs).logits[0]
            codes = model.model.get_image_tokens(inputs["pixel_values"], inputs["image_sizes"])
        turn = ours.user_turn([Image(path=str(path)), "Please describe the image."])
        document = Document([Turn("system", SYSTEM), turn])
        found = ours.template.render(document, add_generation_prompt=True).ids
        wanted = inputs["input_ids"][0].clone()
        wanted[wanted == processor.image_token_id] = codes.long()
        assert found.tolist() == wanted.tolist()
        assert (logits_of(ours.decoder, found.tolist()) - expected).abs().max() < 1e-5
        assert prompt_of(ours, Document([turn])) == found.tolist()  # the system turn comes by itself
        assert ours.template.parse(ours.template.render(document).ids) == document


def test_chameleon_reads_what_its_processor_writes(chameleon, tmp_path):
    ours, model, processor, _ = chameleon
    paths = [photo(tmp_path, 50, 70), photo(tmp_path, 32, 32)]
    for words, parts in [
        ("What is this?<image>", ["What is this?", paths[0]]),
        ("one <image> and <image>, which is red?", ["one ", paths[0], " and ", paths[1], ", which is red?"]),
    ]:
        pictures = [Picture.open(part) for part in parts if not isinstance(part, str)]
        inputs = processor(images=pictures, text=words, return_tensors="pt")
        with torch.inference_mode():
            expected = model(**inputs).logits[0]
            codes = model.get_image_tokens(inputs["pixel_values"])
        turn = ours.user_turn([part if isinstance(part, str) else Image(path=str(part)) for part in parts])
        found = ours.template.render(Document([turn]), add_generation_prompt=True).ids
        wanted = inputs["input_ids"][0].clone()
        wanted[wanted == processor.image_token_id] = codes.flatten().long()
        assert found.tolist() == wanted.tolist()
        assert len(np.unique(found)) > 20
        block = ours.vocabulary.get_block_range("image")
        logits = logits_of(ours.decoder, found.tolist())
        outside = [row for row in range(ours.vocabulary.size) if row not in block]
        assert (logits[:, outside] - expected[:, outside]).abs().max() < 1e-5
        assert (expected[:, block.start] < -1e30).all()  # transformers hides the picture rows, so that none is drawn
        assert ours.template.parse(found) == Document([turn])


def test_chameleons_codebook_is_in_the_order_of_its_rows(chameleon):
    ours, model, _, folder = chameleon
    names = model.config.vocabulary_map
    block = ours.vocabulary.get_block_range("image")
    code_of = {row: int("".join(str(ord(c) - ord("A")) for c in name[6:-1])) for name, row in names.items() if
               name.startswith("IMGIMG")}  # fmt: skip
    order = [code_of[row] for row in block]
    assert sorted(order) == list(range(64)) and order != sorted(order)
    theirs = model.model.vqmodel.quantize.embedding.weight
    assert torch.equal(ours.coder.get_tokenizer("image").network.quantize.embedding.weight, theirs[order])


def test_janus_chats_in_words(janus):
    ours, model, processor, _ = janus
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is a cat?"}]}]
    words = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=words, return_tensors="pt")
    found = prompt_of(ours, Document([Turn("user", "What is a cat?")]))
    assert found == inputs["input_ids"][0].tolist()
    with torch.inference_mode():
        expected = model(**inputs).logits[0]
    assert (logits_of(ours.decoder, found)[:, : expected.shape[1]] - expected).abs().max() < 1e-5


# ---- text answers


def test_text_answers_are_transformers_own(converted):
    ours, model, _, folder = converted
    document = Document([Turn("user", "What is in the picture?")])
    prompt = prompt_of(ours, document, "text")
    text = [row for rows in ours.vocabulary.text_ranges for row in rows]
    end = ours.vocabulary.get_control_id("end_of_turn")
    with torch.inference_mode():
        expected = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=24, prefix_allowed_tokens_fn=lambda _, ids: text if len(ids) - len(prompt) < 23 else [end],
        )  # fmt: skip
    [found] = ours.engine.generate(
        [prompt], GenerationConfig(max_new_tokens=24, force="text", sampling={"text": {"temperature": 0}})
    )
    assert found == expected[0, len(prompt) :].tolist()
    assert found[-1] == end and len(set(found)) > 3


# ---- drawing


def greedy(ours, prompt, **settings):
    config = GenerationConfig(force="image", sampling={"image": {"temperature": 0}}, **settings)
    return ours.engine.generate([prompt], config)[0]


def draw_with_transformers(model, processor, words, grid):
    """The ids of Emu3's own drawing loop as its documentation has it: prompt and picture."""
    processor_grid = {"ratio": f"{grid[1]}:{grid[0]}", "image_area": grid[0] * grid[1] * 64}
    inputs = processor(text=words, return_for_image_generation=True, return_tensors="pt", **processor_grid)
    [(height, width)] = inputs.pop("image_sizes")
    assert (height, width) == grid
    row = processor.tokenizer.convert_tokens_to_ids
    visual = model.vocabulary_mapping.image_tokens

    def allowed(_, ids):
        offset = len(ids) - int((ids == row("<|image token|>")).nonzero()[0])
        if offset % (width + 1) == 0 and offset <= height * (width + 1):
            return [row("<|extra_200|>")]
        if offset == height * (width + 1) + 1:
            return [row("<|extra_201|>")]
        if offset == height * (width + 1) + 2:
            return [row("<|image end|>")]
        return visual if offset < height * (width + 1) else [row("<|extra_204|>")]

    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=200, do_sample=False, prefix_allowed_tokens_fn=allowed)
    return out[0].tolist(), inputs["input_ids"][0].tolist()


@pytest.mark.parametrize("grid", [GRID, (3, 7), (12, 10)])
def test_emu3_draws_what_transformers_draws(emu3, grid):
    ours, model, processor, _ = emu3
    expected, opened = draw_with_transformers(model, processor, "a red apple", grid)
    prompt = prompt_of(ours, Document([Turn("user", "a red apple")]), "image")
    assert prompt == expected[: len(prompt)]
    found = greedy(ours, prompt, max_new_tokens=300, grid=grid)
    assert prompt + found == expected
    assert len(set(found)) > 10  # more than marks
    # the official prompt opens the picture itself: its size is read there
    assert opened == expected[: len(opened)]
    rest = greedy(ours, opened, max_new_tokens=len(expected) - len(opened))
    assert opened + rest == expected
    [part] = ours.template.parse_answer(found)
    assert part.grid == grid and len(part.codes) == grid[0] * grid[1]
    with torch.inference_mode():
        pixels = model.model.decode_image_tokens(torch.tensor([expected[len(opened) :]]), *grid)
    [output] = ours.decode_answers([found])[0]
    assert output.media.shape == (3, grid[0] * 8, grid[1] * 8)
    assert (output.media - (pixels[0] * 0.5 + 0.5).clamp(0, 1)).abs().max() < 1e-4


def test_emu3_draws_its_own_size_with_guidance(emu3):
    ours, *_ = emu3
    output = ours.generate("a red apple", to="image", seed=3)  # the folder's own settings: guidance 3, top-k 2048
    assert output.media.shape == (3, 32, 40) and output.part.grid == GRID
    assert len(np.unique(output.part.codes)) > 3
    with pytest.raises(ValueError, match="too few: image takes at least"):
        ours.generate("a red apple", to="image", tokens=20)


def test_emu3_draws_with_zipar_in_fewer_passes(emu3):
    """4 rows of 5: with a window of 4, (4 - 1) * 4 + 5 passes and one for the prompt."""
    ours = emu3[0]
    fast = ours.generate("a red apple", to="image", seed=3, decoder="zipar")
    assert fast.part.grid == (4, 5) and ours.engine.stats.forwards == 1 + 3 * 4 + 5


def test_chameleon_draws_the_best_codes_of_its_own_logits(chameleon):
    ours, model, _, _ = chameleon
    prompt = ours.read(render_prompt(ours, Document([Turn("user", "a red apple")]), "image"))
    block = ours.vocabulary.get_block_range("image")
    ids = [*prompt, ours.vocabulary.get_start_id("image")]
    with torch.inference_mode():
        for _ in range(64):  # transformers' own forward hides these rows: the head is asked itself
            hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
            ids.append(block.start + int(model.lm_head(hidden)[block.start : block.stop].argmax()))
    ids += [ours.vocabulary.get_end_id("image"), ours.vocabulary.get_control_id("end_of_turn")]
    found = greedy(ours, prompt, max_new_tokens=67)
    assert prompt + found == ids
    assert len(set(found)) > 6


def test_chameleon_without_its_decoder_draws_nothing_that_cannot_be_shown(chameleon, tmp_path, monkeypatch):
    ours, _, _, folder = chameleon
    monkeypatch.setattr(ours.engine, "generate", lambda *_, **__: pytest.fail("nothing is to be computed"))
    with pytest.raises(ValueError, match="reads images but has no decoder to make one with; ask it for text"):
        ours.generate("a red apple", to="image")
    monkeypatch.undo()
    assert [output.modality for output in ours.chat("a red apple", temperature=9.0)] == ["text"]
    from unimodal.tokenizers.pretrained.chameleon import ChameleonDecoder

    weights = ChameleonDecoder(ours.coder.get_tokenizer("image").network.config).state_dict()
    torch.save({"state_dict": {f"decoder.{name}": value for name, value in weights.items()}}, tmp_path / "vqgan.ckpt")
    arguments = ["chameleon", folder / "source", tmp_path / "out", "--decoder", tmp_path / "vqgan.ckpt"]
    convert_checkpoint.main([str(argument) for argument in arguments])
    drawing = load(tmp_path / "out")
    assert drawing.generate("a red apple", to="image", guidance=1.0).media.shape == (3, 32, 32)


@pytest.mark.parametrize("words", ["a red apple", "a house"])
def test_janus_draws_what_transformers_draws(janus, words):
    ours, model, processor, _ = janus
    messages = [{"role": "user", "content": [{"type": "text", "text": words}]}]
    prompt_words = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=prompt_words, generation_mode="image", return_tensors="pt")
    with torch.inference_mode():
        expected = model.generate(**inputs, generation_mode="image", do_sample=False, guidance_scale=5)[0]
        pixels = model.decode_image_tokens(expected[None])[0].permute(2, 0, 1)
    document = Document([Turn("user", words)])
    prompt = prompt_of(ours, document, "image")
    start, end = ours.vocabulary.get_start_id("image"), ours.vocabulary.get_control_id("end_of_turn")
    assert [*prompt, start] == inputs["input_ids"][0].tolist()
    found = greedy(
        ours, prompt, max_new_tokens=40, guidance={"image": 5.0},
        unconditional=tuple(ours.template.render_unconditional(document, None, "image").ids),
    )  # fmt: skip
    block = ours.vocabulary.get_block_range("image")
    codes = [row - block.start for row in found[1:-2]]
    assert codes == expected.tolist() and len(set(codes)) > 4
    assert found == [start, *found[1:-2], ours.vocabulary.get_end_id("image"), end]
    [output] = ours.answers([document], to="image", temperature=0.0)[0]  # guidance 5 is the folder's own
    assert output.part.codes.tolist() == codes
    assert (output.media - (pixels * 0.5 + 0.5).clamp(0, 1)).abs().max() < 1e-4


@pytest.mark.parametrize("decoder", ["jacobi", "sjd"])
@pytest.mark.parametrize("kind", ["emu3", "janus"])
def test_fast_decoders_draw_the_same_with_guidance(kind, decoder, tmp_path_factory):
    ours, *_ = made(kind, tmp_path_factory)
    document = Document([Turn("user", "a house")])
    plain, fast = (
        ours.answers([document], to="image", temperature=0.0, decoder=name)[0][0] for name in (None, decoder)
    )
    assert fast.part == plain.part


def test_janus_embeddings_of_drawn_codes_are_the_aligned_ones(janus):
    ours, model, _, _ = janus
    block = ours.vocabulary.get_block_range("image")
    with torch.inference_mode():
        expected = model.prepare_embeddings_for_image_generation(torch.arange(64))
    assert (ours.decoder.get_input_embeddings().weight[block.start : block.stop] - expected).abs().max() < 1e-6
    document = Document([Turn("user", "a house"), Turn("assistant", [Image(codes=list(range(36)))])])
    ids = ours.template.render(document).ids.tolist()
    at = ids.index(block.start)
    with torch.inference_mode():
        embeddings = model.get_input_embeddings()(torch.tensor([ids[:at]]))
        embeddings = torch.cat([embeddings, expected[None, :36]], 1)
        hidden = model.model.language_model(inputs_embeds=embeddings).last_hidden_state
        wanted = model.model.generation_head(hidden)[0]
    found = logits_of(ours.decoder, ids[: at + 36])[:, block.start : block.stop]
    assert (found - wanted).abs().max() < 1e-5


# ---- the folder


def test_a_converted_folder_stands_alone(converted, tmp_path):
    ours, _, _, folder = converted
    copy = tmp_path / "copy"
    shutil.copytree(folder / "out", copy)
    again = load(copy)
    document = Document([Turn("user", "What is a cat?")])
    assert prompt_of(again, document) == prompt_of(ours, document)
    assert again.vocabulary == ours.vocabulary and again.vocabulary.to_dict()["adopted"] is True
    assert ours.vocabulary.make_token_string(ours.vocabulary.get_block_range("image")[7]) == "<|image_0007|>"
    weights = copy / "image_tokenizer" / "model.safetensors"
    other = load_tokenizer(copy / "image_tokenizer")
    with torch.no_grad():
        next(other.network.parameters()).add_(1.0)
    other.save(copy / "image_tokenizer")
    assert weights.is_file()
    with pytest.raises(ValueError, match=r"the image tokenizer has sha256 \w+ but the model was trained with"):
        load(copy)


def test_a_picture_goes_to_codes_and_back_through_the_folder(emu3, tmp_path):
    from unimodal.coder.outputs import MediaCodes

    ours, *_ = emu3
    codes = ours.tokenize(photo(tmp_path, 60, 33))
    assert codes.grid is not None and codes.grid[1] > codes.grid[2]
    codes.save(tmp_path / "codes.json")
    output = ours.detokenize(MediaCodes.load(tmp_path / "codes.json"))
    assert output.media.shape == (3, codes.grid[1] * 8, codes.grid[2] * 8)


def test_no_text_becomes_a_code_or_a_mark(converted):
    ours, _, processor, _ = converted
    special = [token.content for token in processor.tokenizer.added_tokens_decoder.values()]
    special += [name for name in processor.tokenizer.get_vocab() if name.startswith("IMGIMG")]
    text = "".join(special)
    ids = ours.template.text.encode(text)
    assert all(ours.vocabulary.is_text(row) for row in ids)
    assert ours.template.text.decode(ids) == text
    document = Document([Turn("user", f"say {special[0]} and {special[-1]}")])
    assert ours.template.parse(ours.template.render(document).ids) == document


# ---- what cannot be converted


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        convert_checkpoint.main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def nothing_left(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".") or path.name == "new"] == []


def test_a_checkpoint_of_another_kind(converted, tmp_path, capsys):
    *_, folder = converted
    kind = json.loads((folder / "source" / "config.json").read_text())["model_type"]
    other = "janus" if kind != "janus" else "emu3"
    line = fails(capsys, other, folder / "source", tmp_path / "new")
    assert f"holds a '{kind}' checkpoint" in line and not (tmp_path / "new").exists() and nothing_left(tmp_path)


def test_what_is_incomplete_leaves_nothing_behind(converted, tmp_path, capsys):
    *_, folder = converted
    kind = json.loads((folder / "source" / "config.json").read_text())["model_type"]
    out = tmp_path / "out"
    source = tmp_path / "source"
    shutil.copytree(folder / "source", source)

    def line():
        found = fails(capsys, kind, source, out)
        assert not out.exists() and nothing_left(tmp_path)
        return found

    tokenizer = source / "tokenizer.json"
    kept = tokenizer.read_bytes()
    tokenizer.unlink()
    assert "no tokenizer.json" in line()
    tokenizer.write_bytes(kept)

    weights = source / "model.safetensors"
    from safetensors.torch import load_file, save_file

    state = load_file(weights)
    save_file({n: t for n, t in state.items() if "vqmodel" not in n}, weights, metadata={"format": "pt"})
    assert "no image tokenizer" in line()
    lm = {n: t for n, t in state.items() if "layers.1.mlp.up_proj" not in n}
    save_file(lm, weights, metadata={"format": "pt"})
    assert "lacks the weights" in line()
    weights.unlink()
    torch.save(state, source / "pytorch_model.bin")
    assert "pytorch_model.bin only, a pickle" in line()
    assert "is no folder, and not a hub id" in fails(capsys, kind, tmp_path / "no where", out)
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    assert "exists and is not empty" in fails(capsys, kind, folder / "source", out)
    assert (out / "mine.txt").read_text() == "kept"


def test_a_grid_that_cannot_be(emu3, tmp_path, capsys):
    *_, folder = emu3
    assert "is no grid; write rows x columns" in fails(capsys, "emu3", folder / "source", tmp_path / "o", "--grid", "9")
    line = fails(capsys, "emu3", folder / "source", tmp_path / "o", "--grid", "40x40")
    assert "does not fit Emu3's 700 positions" in line and not (tmp_path / "o").exists()


# ---- tokenizers alone


def test_tokenizers_make_what_recipes_take(tmp_path, capsys):
    from unimodal.coder.media_coder import load_coder

    tiny_networks.mimi().save_pretrained(tmp_path / "mimi")
    tiny_networks.janus_vq().save_pretrained(tmp_path / "janus")
    arguments = ["tokenizers", tmp_path / "media", "--audio", f"mimi={tmp_path / 'mimi'}"]
    convert_checkpoint.main([str(a) for a in [*arguments, "--image", f"janus={tmp_path / 'janus'}"]])
    coder = load_coder(tmp_path / "media")
    assert coder.vocabulary.media == ("image", "audio")
    assert [block.label for block in coder.vocabulary.blocks] == [
        "image",
        *["audio"],
        *[f"audio.{g}" for g in range(1, 6)],
    ]
    codes = coder.tokenize(photo(tmp_path, 40, 50))
    assert coder.detokenize(codes).media.shape == (3, 32, 32)
    sound = torch.rand(500) * 2 - 1
    [ids] = coder.encode("audio", [sound])
    assert ids.shape == (32, 6)
    assert coder.vocabulary.decode_span(coder.vocabulary.encode_span("audio", ids))[1].tolist() == ids.tolist()
    assert len(coder.decode("audio", [ids])[0]) == 32 * 16
    assert "is a tokenizer of audio, not of image" in fails(
        capsys, "tokenizers", tmp_path / "no", "--image", f"mimi={tmp_path / 'mimi'}"
    )
    assert "or write family=source" in fails(capsys, "tokenizers", tmp_path / "no", "--image", "mimi")
    assert "name at least one tokenizer" in fails(capsys, "tokenizers", tmp_path / "no")
    assert not (tmp_path / "no").exists() and nothing_left(tmp_path)
