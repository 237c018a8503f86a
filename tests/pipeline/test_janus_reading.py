"""Pictures that are read through continuous features, by a converted Janus, against transformers' own model."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from torch import nn

from tests import tiny_checkpoints
from tests.serve.conftest import image_part, serving, user
from tests.tiny_model import tiny_model
from tools import convert_checkpoint
from unimodal.cli import app as cli
from unimodal.coder.features import REMEMBERED
from unimodal.compression.tokens.divprune import DivPrune
from unimodal.generation.continuous import ContinuousBatch
from unimodal.generation.decoders.compiled_decoder import CompiledDecoder
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig, GenerationRequest
from unimodal.model.feature_rows import FeatureRows
from unimodal.pipeline import load
from unimodal.pipeline.requests import prepare, render_prompt
from unimodal.pipeline.settings import AnswerSettings
from unimodal.sequence.document import Document, Image, Turn

pytestmark = pytest.mark.sweep("the pipeline")


GREEDY = GenerationConfig(max_new_tokens=12, force="text", sampling={"text": {"temperature": 0}})
COUNT = 36  # features of a picture


def prompt_of(model, document, to=None):
    """The ids that the engine is given."""
    return prepare(model, document, AnswerSettings(to=to)).prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("janus")


@pytest.fixture(scope="module")
def reference(folder):
    return tiny_checkpoints.janus(folder / "source")


@pytest.fixture(scope="module")
def converted(folder, reference):
    convert_checkpoint.main(["janus", str(folder / "source"), str(folder / "out")])
    return folder / "out"


@pytest.fixture(scope="module")
def ours(converted):
    return load(converted, device="cpu")


@pytest.fixture(scope="module")
def photos(folder):
    """Five pictures of different shapes."""
    paths = []
    for number, (height, width) in enumerate([(20, 30), (12, 12), (40, 9), (25, 24), (8, 60)]):
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        paths.append(folder / f"photo-{number}.png")
        Picture.fromarray(noise).save(paths[-1])
    return paths


def asked(ours, *turns):
    """Turns of words and paths, the user's first → a document as the pipeline makes it."""
    made = []
    for number, parts in enumerate(turns):
        given = [part if isinstance(part, str) else Image(path=str(part)) for part in parts]
        made.append(Turn("assistant", parts[0]) if number % 2 else ours.user_turn(given))
    return Document(made)


def theirs(processor, *turns):
    """The same turns for transformers' processor."""
    messages, pictures = [], []
    for number, parts in enumerate(turns):
        content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in parts]
        messages.append({"role": ("user", "assistant")[number % 2], "content": content})
        pictures += [Picture.open(part) for part in parts if not isinstance(part, str)]
    words = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor(text=[words], images=pictures or None, return_tensors="pt")


def conversations(photos):
    return [
        [[photos[0], "What is this?"]],
        [["What is this?", photos[1]]],
        [["Look:", photos[2], "Well?"]],
        [[photos[0], photos[3], "Which is red?"]],
        [["one", photos[1], "and two", photos[4], "which is red?"]],
        [[photos[0], "What is this?"], ["a cat"], ["And this?", photos[2]], ["a car"], ["Are you sure?"]],
        [["What is a cat?"]],
    ]


def logits_of(decoder, ids):
    with torch.inference_mode():
        hidden = decoder.get_decoder()(input_ids=torch.tensor([ids])).last_hidden_state
        return decoder.get_output_embeddings()(hidden)[0]


@pytest.mark.parametrize("number", range(7))
def test_ids_and_logits_are_transformers_own(ours, reference, photos, number):
    model, processor = reference
    turns = conversations(photos)[number]
    inputs = theirs(processor, *turns)
    document = asked(ours, *turns)
    wanted = inputs["input_ids"][0].tolist()
    rendered = render_prompt(ours, document)
    assert rendered.ids.tolist() == wanted
    assert wanted.count(model.config.image_token_id) == COUNT * len(rendered.read)
    prompt = prompt_of(ours, document)
    assert [row if row < ours.vocabulary.size else model.config.image_token_id for row in prompt] == wanted
    with torch.inference_mode():
        expected = model(**inputs).logits[0]
        found = logits_of(ours.decoder, prompt)[:, : expected.shape[1]]
    assert (found - expected).abs().max() < 1e-5
    if rendered.read:  # and the features matter
        blind = logits_of(ours.decoder, wanted)[-1, : expected.shape[1]]
        assert (blind - expected[-1]).abs().max() > 0.01


ENGINES = ["auto", "lean", "reference", "fixed-shape"]


def engine_of(ours, kind):
    if kind == "auto":
        return ours.engine
    if kind == "fixed-shape":
        return Engine(ours.decoder, ours.vocabulary, CompiledDecoder(ours.decoder, backend=None))
    return Engine(ours.decoder, ours.vocabulary, kind, weights="model")


def expected_answers(ours, reference, photos):
    """Of every conversation alone, by transformers' own loop."""
    model, processor = reference
    text = [row for rows in ours.vocabulary.text_ranges for row in rows]
    end = ours.vocabulary.get_control_id("end_of_turn")
    answers = []
    for turns in conversations(photos):
        inputs = theirs(processor, *turns)
        length = inputs["input_ids"].shape[1]

        def allowed(_, ids, length=length):
            return text if len(ids) - length < 11 else [end]

        with torch.inference_mode():
            out = model.generate(**inputs, do_sample=False, max_new_tokens=12, prefix_allowed_tokens_fn=allowed)
        answers.append(out[0, length:].tolist())
    return answers


@pytest.fixture(scope="module")
def answers(ours, reference, photos):
    found = expected_answers(ours, reference, photos)
    assert len({tuple(answer) for answer in found}) == len(found)  # the pictures decide
    return found


@pytest.mark.parametrize("kind", ENGINES)
def test_a_batch_of_unequal_prompts_answers_as_each_alone(ours, photos, answers, kind):
    prompts = [prompt_of(ours, asked(ours, *turns), "text") for turns in conversations(photos)]
    assert engine_of(ours, kind).generate(prompts, GREEDY) == answers


@pytest.mark.parametrize("kind", ["auto", "reference"])
def test_rows_that_join_a_running_batch(ours, photos, answers, kind):
    batch = ContinuousBatch(engine_of(ours, kind))
    waiting = [
        GenerationRequest(prompt_of(ours, asked(ours, *turns), "text"), GREEDY) for turns in conversations(photos)
    ]
    keys, found = [], {}
    while waiting or len(batch):
        joined, waiting = waiting[:2], waiting[2:]
        keys += batch.admit(joined)
        found.update({done.key: done.answer for done in batch.advance_rows()})
    assert [found[key] for key in keys] == answers


def test_fast_decoders_write_the_same(ours, photos, answers):
    documents = [asked(ours, *turns) for turns in conversations(photos)]
    plain = ours.answers(documents, to="text", tokens=12)
    fast = ours.answers(documents, to="text", tokens=12, decoder="token-recycling")
    assert [[output.text for output in row] for row in fast] == [[output.text for output in row] for row in plain]


@pytest.mark.parametrize("kind", ENGINES)
def test_a_session_remembers_pictures_and_confuses_none(ours, photos, kind):
    engine = engine_of(ours, kind)
    session = engine.open_session()

    def said(path, *more):
        return prompt_of(ours, asked(ours, [path, "What is this?"], *more), "text")

    engine.generate([said(photos[0])], GREEDY, session=session)
    other, again = said(photos[1]), said(photos[0], ["a cat"], ["Sure?"])
    expected = engine.generate([other], GREEDY)[0], engine.generate([again], GREEDY)[0]
    assert engine.generate([other], GREEDY, session=session) == [expected[0]]
    before = engine.stats.cached_tokens  # the same placeholders, another picture: only what stands before it
    assert 0 < before < COUNT + other.index(ours.vocabulary.get_start_id("image")) + 1
    assert engine.generate([again], GREEDY, session=session) == [expected[1]]
    assert engine.stats.cached_tokens > before + COUNT
    assert engine.stats.prompt_tokens < len(again) - COUNT


def test_features_are_worked_out_once_and_last_as_long_as_a_prompt(ours, photos, folder, monkeypatch):
    looked = []
    look = ours.coder.look
    monkeypatch.setattr(ours.coder, "look", lambda part: looked.append(part) or look(part))
    ours.features._latest.clear()
    kept = prompt_of(ours, asked(ours, [photos[0], photos[0], "same?"]), "text")
    copy = folder / "copy.png"
    shutil.copyfile(photos[0], copy)
    assert prompt_of(ours, asked(ours, [copy, photos[0], "same?"]), "text") == kept
    assert len(looked) == 1
    expected = ours.engine.generate([kept], GREEDY)
    for shade in range(REMEMBERED + 1):  # others take its place
        Picture.new("RGB", (9, 9), (shade, 0, 0)).save(folder / "shade.png")
        gone = prompt_of(ours, asked(ours, [folder / "shade.png"]), "text")
    assert ours.engine.generate([kept], GREEDY) == expected  # the prompt is still at hand
    assert len(ours.features._latest) == REMEMBERED
    stale = list(gone)
    ours.features._latest.clear()
    del gone
    with pytest.raises(ValueError, match="outside the"):
        ours.engine.generate([stale], GREEDY)
    fresh = prompt_of(ours, asked(ours, [photos[0], photos[0], "same?"]), "text")
    assert fresh != kept and ours.engine.generate([fresh], GREEDY) == expected  # forgotten, and seen anew


def test_a_drawn_picture_is_read_as_any_other(ours, reference, photos, folder):
    drawn = ours.generate("a red apple", to="image", seed=3)
    drawn.save(folder / "drawn.png")
    turns = [Turn("user", "a red apple"), Turn("assistant", [drawn.part])]
    shown = [Turn("user", "a red apple"), Turn("assistant", [Image(path=str(folder / "drawn.png"))])]
    behind = ours.user_turn(["What is it?"])
    prompts = [prompt_of(ours, Document([*both, behind]), "text") for both in (turns, shown)]
    assert ours.engine.generate(prompts[:1], GREEDY) == ours.engine.generate(prompts[1:], GREEDY)
    found = ours.features.find_features(drawn.part).rows
    with torch.inference_mode():
        pixels = ours.coder.get_reader("image").fit((drawn.media * 255).round().to(torch.uint8))
        model, _ = reference
        expected = model.model.get_image_features(pixels[None] * 2 - 1).pooler_output[0]
    assert (found - expected).abs().max() < 1e-5
    chosen = ours.generate("a red apple", to="image", seed=3, search="best-of-n", search_settings={"n": 2})
    assert chosen.media.shape == (3, 12, 12)  # the verifier looks at the pictures


def test_chats_with_pictures_may_be_guided_away_from_words(ours, photos):
    settings = {"temperature": 0.0, "seeds": [0], "tokens": 60}
    document = asked(ours, [photos[0], "What is this?"])
    [plain] = ours.answers([document], negative="a dog", **settings)
    config = prepare(ours, document, AnswerSettings(tokens=60, negative="a dog")).config
    assert max(config.unconditional) >= ours.features.rows.num_rows  # the other stream sees the picture, too
    assert plain


def test_compression_leaves_features_whole(ours, photos, answers):
    documents = [asked(ours, *turns) for turns in conversations(photos)]
    with DivPrune(keep=0.25)(ours):
        found = ours.engine.generate([prompt_of(ours, document, "text") for document in documents], GREEDY)
    assert found == answers


def test_a_model_without_features_has_its_own_table():
    model = tiny_model()
    assert model.features is None and type(model.decoder.get_input_embeddings()) is nn.Embedding
    with pytest.raises(ValueError, match="outside the"):
        model.engine.generate([[model.decoder.config.vocab_size]], GREEDY)


def test_ids_that_are_no_features(ours, photos):
    prompt = prompt_of(ours, asked(ours, [photos[0]]), "text")
    table, size = ours.features.rows, ours.vocabulary.size
    assert isinstance(table, FeatureRows)
    first = next(row for row in prompt if row >= size)
    for bad in ([*prompt, first], [*prompt[:3], first + COUNT, *prompt[3:]], [*prompt[:3], -1, *prompt[3:]]):
        with pytest.raises(ValueError, match="outside the"):
            ours.engine.generate([bad], GREEDY)
    with pytest.raises(ValueError, match="do not fit an embedding table of width 32"):
        table.add(torch.zeros(4, 31))


# ---- the command line and the server


def said(capsys):
    found = capsys.readouterr()
    return found.out.strip(), found.err.strip()


def command(capsys, *arguments):
    """(status, stdout, stderr) of `unimodal …`."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    return stopped.value.code or 0, *said(capsys)


def test_the_command_line_answers_about_a_picture(capsys, ours, converted, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ask = ["chat", "What is this?", "--model", converted, "--to", "text", "--tokens", "12"]
    [expected] = ours.chat([Image(path=str(photos[0])), "What is this?"], to="text", tokens=12)
    status, out, _ = command(capsys, *ask, "--image", photos[0])
    assert (status, out) == (0, expected.text.strip())
    status, other, _ = command(capsys, *ask, "--image", photos[1])
    assert status == 0 and other != out
    (tmp_path / "no.png").write_bytes(b"not a picture")
    status, out, err = command(capsys, *ask, "--image", tmp_path / "no.png")
    assert status == 2 and not out and "no.png" in err.splitlines()[-1] and "Traceback" not in err


def test_an_interactive_chat_keeps_the_picture_when_its_file_goes(capsys, ours, photos, tmp_path, monkeypatch):
    from unimodal.cli.chat import TerminalChat
    from unimodal.cli.progress import Reporter

    monkeypatch.chdir(tmp_path)
    shutil.copyfile(photos[0], tmp_path / "a.png")
    chat = TerminalChat(ours, Reporter(), AnswerSettings(to="text", tokens=12), tmp_path)
    chat.follow("/image a.png")
    (tmp_path / "a.png").unlink()
    chat.follow("What is this?")
    chat.follow("Are you sure?")
    first, second = chat.history[1], chat.history[3]
    shown = asked(ours, [photos[0], "What is this?"])
    [expected] = ours.answers([shown], to="text", tokens=12)[0]
    assert first.parts == (expected.part,)
    [expected] = ours.answers([Document([*shown.turns, first, chat.history[2]])], to="text", tokens=12)[0]
    assert second.parts == (expected.part,) and second != first


# ---- what cannot be


def test_more_pictures_than_there_are_positions(ours, photos, monkeypatch):
    monkeypatch.setattr(ours.coder, "look", lambda part: pytest.fail("nothing is to be computed"))
    with pytest.raises(ValueError, match=r"the prompt is too long: it is 9\d\d tokens, 760 of them for 20 media"):
        ours.chat([*(Image(path=str(photos[0])) for _ in range(20)), "What is this?"], to="text")


def test_a_picture_in_a_prompt_to_draw_from(ours, photos):
    with pytest.raises(ValueError, match="draws for words alone"):
        ours.chat([Image(path=str(photos[0])), "the same in blue"], to="image")


def test_ids_do_not_hold_what_was_read(ours, photos):
    rendered = ours.template.render(asked(ours, [photos[0], "What is this?"]))
    with pytest.raises(ValueError, match="the image at token 4 was read through features, which ids do not hold"):
        ours.template.parse(rendered.ids)


def copied(converted, tmp_path):
    shutil.copytree(converted, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_reader_that_is_missing_or_another_ones(converted, tmp_path, capsys):
    copy = copied(converted, tmp_path)
    reader = copy / "image_reader"
    shutil.move(reader, tmp_path / "reader")
    with pytest.raises(ValueError, match="image_reader is not a tokenizer folder: model.safetensors is missing"):
        load(copy)
    status, out, err = command(capsys, "chat", "hello", "--model", copy)
    assert status == 2 and not out and "image_reader" in err.splitlines()[-1] and "Traceback" not in err
    shutil.copytree(copy / "image_tokenizer", reader)
    with pytest.raises(ValueError, match=r"the image reader has sha256 \w+ but the model was trained with \w+; put"):
        load(copy)
    shutil.rmtree(reader)
    shutil.copytree(tmp_path / "reader", reader)
    (reader / "config.json").write_bytes((copy / "image_tokenizer" / "config.json").read_bytes())
    with pytest.raises(ValueError, match="image_reader holds a tokenizer, not a reader"):
        load(copy, device="cpu").coder.get_reader("image")


def test_parts_that_do_not_belong_together(converted, photos, tmp_path):
    copy = copied(converted, tmp_path)
    ask = [Image(path=str(photos[0])), "What is this?"]

    def changed(name, change):
        fields = json.loads((converted / name).read_text())
        change(fields)
        (copy / name).write_text(json.dumps(fields))

    changed("image_reader/config.json", lambda fields: fields.update(image_size=24))
    with pytest.raises(ValueError, match="the reader sees 12 pixels, its image_size is 24"):
        load(copy, device="cpu").chat(ask, to="text")
    changed("image_reader/config.json", lambda fields: None)
    changed("vocabulary.json", lambda fields: fields["layouts"][0]["features"].update(count=30))
    with pytest.raises(ValueError, match="image_reader gives 36 features, vocabulary.json has 30"):
        load(copy, device="cpu").chat(ask, to="text")
    changed("vocabulary.json", lambda fields: None)
    (copy / "image_head.safetensors").unlink()
    with pytest.raises(ValueError, match="nothing scores the image codes; image_head.safetensors is missing"):
        load(copy)
    (copy / "processor_config.json").unlink()
    with pytest.raises(ValueError, match="whose sequence format processor_config.json has to name"):
        load(copy)


def test_a_folder_that_was_converted_without_its_reader(converted, photos, tmp_path):
    copy = copied(converted, tmp_path)
    shutil.rmtree(copy / "image_reader")
    fields = json.loads((copy / "vocabulary.json").read_text())
    del fields["layouts"][0]["features"]
    (copy / "vocabulary.json").write_text(json.dumps(fields))
    blind = load(copy, device="cpu")
    assert type(blind.decoder.get_input_embeddings()) is nn.Embedding
    assert blind.chat("What is a cat?", to="text", tokens=4)
    with pytest.raises(ValueError, match="converted without their reader"):
        blind.chat([Image(path=str(photos[0])), "What is this?"])


def test_a_vocabulary_with_features_that_cannot_be(converted, tmp_path):
    copy = copied(converted, tmp_path)
    fields = json.loads((copy / "vocabulary.json").read_text())
    for change, message in [({"row": 300}, "must be a reserved row"), ({"count": 0}, "at least one of each"),
                            ({"rows": 3}, "unknown entry")]:  # fmt: skip
        wrong = json.loads(json.dumps(fields))
        wrong["layouts"][0]["features"] |= change
        (copy / "vocabulary.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message):
            load(copy)


def test_the_server_answers_about_a_picture(converted, ours, photos):
    with serving(load(converted, device="cpu")) as served:
        for path in photos[:2]:
            asked_about = user(image_part(path.read_bytes()), "What is this?")
            done = served.client().chat.completions.create(
                model=served.name, messages=[asked_about], modalities=["text"], max_tokens=12, temperature=0
            )
            document = asked(ours, [path, "What is this?"])
            [row] = ours.engine.generate(
                [prompt_of(ours, document, "text")], GREEDY.model_copy(update={"max_new_tokens": 13})
            )
            [part] = ours.template.parse_answer(row)
            assert done.choices[0].message.content == part.text
        refused = served.post("/v1/chat/completions", {"messages": [user(image_part(b"no picture"), "What?")]})
        assert refused.status_code == 415
        many = user(*[image_part(photos[0].read_bytes())] * 19, "What?")
        refused = served.post("/v1/chat/completions", {"messages": [many], "modalities": ["text"]})
        assert refused.status_code == 400 and "too long" in refused.json()["error"]["message"]
