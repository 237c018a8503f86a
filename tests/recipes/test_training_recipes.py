"""The training recipes end to end through their real command lines, on a few synthetic pictures, clips and sounds."""

import json
import runpy
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unimodal.data import encoded_media, sources
from unimodal.data.encoded_tasks import CODE_FILES, MEDIUM_OF_TASK, open_tasks
from unimodal.data.named_sounds import NamedSound
from unimodal.data.scenes.compose import Painter
from unimodal.data.scenes.plan import Planner
from unimodal.data.scenes.scene import Thing, write_scenes
from unimodal.sequence.document import Document, Image, Text, Turn
from unimodal.sequence.templates.own import Template
from unimodal.text.tokenizer import TextTokenizer, train_text_tokenizer
from unimodal.tokenizers import load_tokenizer
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary, read_vocabulary

ROOT = Path(__file__).resolve().parents[2]
STYLES = ("noto", "fluent3d", "fluentflat", "twemoji")
EFFECTS = ("crow", "bell")
LABELS = ("red circle", "blue square", "green stripe", "small dot", "old house", "tall tree")


def recipe(name: str, *settings: str) -> None:
    """`python recipes/NAME.py --set …` in this process: the same argument parsing, without paying for imports again."""
    argv = [str(ROOT / "recipes" / f"{name}.py")]
    for setting in settings:
        argv += ["--set", setting]
    before, sys.argv = sys.argv, argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    data = folder / "prepared"
    (data / "speech").mkdir(parents=True)
    random = np.random.default_rng(0)
    concepts = [
        {"id": i, "key": f"{i:04x}", "family": f"{i:04x}", "label": label, "tags": label.split(), "group": "objects",
         "split": "heldout" if i == len(LABELS) - 1 else "train"}
        for i, label in enumerate(LABELS)
    ]  # fmt: skip
    (data / "concepts.json").write_text(json.dumps(concepts))
    concept = np.repeat(np.arange(len(LABELS)), len(STYLES)).astype(np.int32)
    style = np.array(STYLES * len(LABELS))
    pixels = random.integers(0, 256, (len(concept), 64, 64, 3), dtype=np.uint8)
    np.savez(data / "images.npz", pixels=pixels, concept=concept, style=style)
    features = random.random((len(concept), 2, 1280)).astype(np.float16)
    np.savez(data / "views.npz", pixels=np.repeat(pixels[:, None], 2, axis=1), features=features)
    frames = random.integers(0, 256, (4, 9, 64, 64, 3), dtype=np.uint8)
    np.savez(data / "clips.npz", frames=frames, concept=np.array([0, 1, 2, 5], np.int32))
    sounds, utterances, start = [], [], 0
    for i in range(8):
        length = 6000 + 500 * i
        sounds.append((3000 * np.sin(np.arange(length) * (0.05 + 0.01 * i))).astype(np.int16))
        split = "train" if i < 6 else ("val" if i == 6 else "test")
        utterances.append(
            {
                "id": f"u{i}",
                "text": LABELS[i % 6],
                "voice": "slt",
                "split": split,
                "start": start,
                "num_samples": length,
            }
        )
        start += length
    np.concatenate(sounds).tofile(data / "speech" / "audio.int16")
    (data / "speech" / "utterances.json").write_text(json.dumps(utterances))
    (data / "speech" / "manifest.json").write_text(json.dumps({"sha256": {}}))
    write_scenes_and_sounds(data)
    return folder


def write_scenes_and_sounds(data: Path) -> None:
    """Six scenes and two clips of two things, and two effects, as the tools prepare them."""
    things = [Thing(0, "cat", "c", "train"), Thing(1, "box", "b", "train")]
    sprites = np.full((2, 64, 64, 4), 255, np.uint8)
    planner = Planner(things, {0: [0], 1: [1]}, ["", ""])
    pictures, clips = [[planner.plan(i, "train", kind) for i in range(n)] for kind, n in ((None, 6), ("clip", 2))]
    (data / "scenes").mkdir()
    (data / "sounds").mkdir()
    (data / "scenes" / "things.json").write_text(json.dumps([asdict(thing) for thing in things]))
    write_scenes(data / "scenes" / "scenes.jsonl", pictures)
    write_scenes(data / "scenes" / "moves.jsonl", clips)
    painter = Painter(sprites)
    np.savez(data / "scenes" / "scenes.npz", pixels=np.stack([painter.draw(scene) for scene in pictures]))
    np.savez(data / "scenes" / "moves.npz", frames=np.stack([painter.draw_clip(scene) for scene in clips]))
    effects = [NamedSound(str(i), name, "effect", name, "", "train", 5000 * i, 5000) for i, name in enumerate(EFFECTS)]
    (data / "sounds" / "sounds.json").write_text(json.dumps([asdict(effect) for effect in effects]))
    (4000 * np.sin(np.arange(10_000) * 0.2)).astype(np.int16).tofile(data / "sounds" / "audio.int16")


def test_image_recipe_trains_and_resumes(work: Path) -> None:
    settings = [
        f"data={work}/prepared", f"run={work}/runs/image", f"out={work}/models/image_tokenizer", "batch_size=4",
        "tokenizer.width=24", "tokenizer.num_heads=2", "tokenizer.conv_channels=16", "tokenizer.semantic_dims=4",
        "tokenizer.num_semantic=3", "tokenizer.trunk_size=64", "tokenizer.look_components=4", "loop.steps=2",
    ]  # fmt: skip
    recipe("train_image_tokenizer", *settings)
    first = json.loads((work / "models/image_tokenizer/recipe.json").read_text())
    recipe("train_image_tokenizer", *settings)  # done already: the same weights again
    again = json.loads((work / "models/image_tokenizer/recipe.json").read_text())
    assert first["weights_sha256"] == again["weights_sha256"]


def test_the_other_recipes_lead_to_a_model_that_answers(work: Path) -> None:
    models, data = work / "models", work / "prepared"
    recipe(
        "train_video_tokenizer", f"data={data}", f"run={work}/runs/video", f"out={models}/video_tokenizer",
        f"image_tokenizer={models}/image_tokenizer", "loop.steps=2", "batch_size=2", "tokenizer.width=24",
        "tokenizer.num_heads=2", "tokenizer.conv_channels=16",
    )  # fmt: skip
    recipe(
        "train_audio_tokenizer", f"data={data}/speech", f"run={work}/runs/audio", f"out={models}/audio_tokenizer",
        "codec.steps=2", "head.steps=2", "batch_size=2", "reader_width=16",
        "tokenizer.width=16", "tokenizer.head_width=16", "tokenizer.head_blocks=1", "head_crop_codes=8",
    )  # fmt: skip
    recipe("encode_media", f"data={data}", f"models={models}")
    codes = np.load(data / "clip_codes.npz")["codes"]
    assert codes.shape == (4, 2, 192)
    assert np.load(data / "scenes" / "scene_codes.npz")["codes"].shape == (6, 64)
    before = (data / "image_codes.npz").stat().st_mtime_ns
    recipe("encode_media", f"data={data}", f"models={models}")  # done already: nothing is written again
    assert (data / "image_codes.npz").stat().st_mtime_ns == before
    with np.load(data / "speech" / "codes.npz") as speech:
        assert len(speech["offsets"]) == len(json.loads((data / "speech" / "utterances.json").read_text())) + 1
        assert speech["offsets"][-1] == len(speech["codes"])
    assert json.loads((models / "audio_tokenizer" / "config.json").read_text())["head"] == "istft"
    settings = [
        f"data={data}", f"models={models}", f"run={work}/runs/nano", f"out={models}/nano", "text_pieces=400",
        "decoder.hidden_size=32", "decoder.num_layers=1", "decoder.num_heads=2", "decoder.num_kv_heads=2",
        "decoder.intermediate_size=48", "tokens_per_step=512", "planned_documents=200", "loop.warmup_steps=1",
    ]  # fmt: skip
    recipe("train_nano", *settings, "loop.steps=2")
    weights = ", ".join(f"{task}: 0.1" for task in MEDIUM_OF_TASK)  # every task that there is
    more = [
        "speaking_ctc_weight=0.3",
        "weight_levels=15",
        f"weights={{{weights}}}",
        f"out={models}/nano_more",
        f"run={work}/runs/nano_more",
    ]
    recipe("train_nano", *settings, "loop.steps=8", f"initial={work}/runs/nano", *more)
    metrics = [json.loads(line) for line in (work / "runs/nano_more/metrics.jsonl").read_text().splitlines()]
    assert any("ctc_speaking" in record and "ctc" in record for record in metrics)
    record = json.loads((work / "runs/nano_more/recipe.json").read_text())
    assert set(record["epochs"]) == {*MEDIUM_OF_TASK} and set(record["data_sha256"]) == {*CODE_FILES}
    for name, weights in load_file(models / "nano_more" / "model.safetensors").items():
        if weights.ndim == 2:  # whole multiples of a power of two, at most 15 of them either way
            top = weights.float().abs().amax(1, keepdim=True).clamp(min=2.0**-14)
            steps = weights.float() / torch.exp2(torch.ceil(torch.log2(top / 15)))
            assert torch.equal(steps, steps.round()) and len(steps.unique()) <= 31, name
    third = [f"out={models}/nano_third", f"run={work}/runs/nano_third", f"initial={work}/runs/nano_more"]
    recipe("train_nano", *settings, *more, *third, "loop.steps=1")
    record = json.loads((models / "nano_third" / "recipe.json").read_text())
    assert record["initial_steps"] == 2 + 8  # those of the parts before the part before, too
    next_part = [*settings, f"initial={models}/nano", f"run={work}/runs/nano_model", f"out={models}/nano_next"]
    recipe("train_nano", *next_part, "loop.steps=1")
    recipe("train_nano", *next_part, "loop.steps=2")  # goes on: it is known by what it began with
    record = json.loads((models / "nano_next" / "recipe.json").read_text())
    assert record["config"]["loop"]["steps"] == 2 and record["initial_steps"] == 2  # which the model had made
    assert (models / "nano" / "model.safetensors").is_file()
    from transformers import AutoModelForCausalLM

    decoder = AutoModelForCausalLM.from_pretrained(models / "nano")
    rows = decoder.get_input_embeddings().weight
    assert rows.data_ptr() == decoder.get_output_embeddings().weight.data_ptr()
    assert bool((rows.float().std(1) > 0).all())


def test_speech_to_be_written_is_read_as_the_transcript_of_the_same_codes(work: Path) -> None:
    """Whatever the request around the words: the ids at the codes are those of the trained answer."""
    train_nano = runpy.run_path(str(ROOT / "recipes" / "train_nano.py"), run_name="imported")
    model, speech = work / "models" / "nano", encoded_media.load_speech(work / "prepared" / "speech", max_codes=160)
    text, vocabulary = TextTokenizer.load(model), read_vocabulary(model / "vocabulary.json")
    audio, template = train_nano["find_spoken_block"](vocabulary), Template(vocabulary, text)
    assert audio == vocabulary.get_block_range("audio")
    words_of = train_nano["map_codes_to_words"](speech, vocabulary, audio, text)
    for item in range(len(speech)):
        answer = template.render(sources.SpeechToText(speech).make_document(item))
        request = template.render(sources.TextToSpeech(speech).make_document(item))
        told = [label for label in answer.labels.tolist() if 0 <= label < text.size]
        rows = torch.tensor([label for label in request.labels.tolist() if label in audio])
        assert words_of(rows).tolist() == told
        assert words_of(rows[:-1]) is None


def test_codes_of_another_tokenizer_and_unknown_tasks_are_refused(work: Path) -> None:
    data = work / "prepared"
    with pytest.raises(ValueError, match="holds codes of another tokenizer .*; run `python recipes/encode_media.py`"):
        open_tasks(data, ["scene_talk"], {"image": "0" * 64})
    with pytest.raises(ValueError, match="there is no task 'scene_song'; choose from image_to_name"):
        open_tasks(data, ["scene_song"], {})
    with pytest.raises(ValueError, match="the task sound_to_name needs a tokenizer of audio"):
        open_tasks(data, ["sound_to_name"], {"image": ""})


def test_a_model_with_more_media_takes_the_rows_that_both_have() -> None:
    """Rows of text, controls and shared blocks go to their new places; others begin anew."""
    take_rows = runpy.run_path(str(ROOT / "recipes" / "train_nano.py"), run_name="imported")["take_rows"]
    image = Block(name="image", modality="image", group=0, size=6, sha256="a" * 64)
    sound = Block(name="audio", modality="audio", group=0, size=5, sha256="b" * 64)
    layouts = [SpanLayout("image", [Segment("image", 4)]), SpanLayout("audio", [Segment("audio", None)])]
    theirs = Vocabulary.build(10, [image], layouts[:1], (), "t")
    ours = Vocabulary.build(10, [sound, image], layouts[::-1], (), "t")
    rows, fresh = torch.arange(theirs.size).float()[:, None] + 1000, torch.zeros(ours.size, 1)
    taken = take_rows(fresh, rows, ours, theirs)[:, 0]
    assert torch.equal(taken[:10], rows[:10, 0])
    assert taken[ours.get_control_id("<|bos|>")] == rows[theirs.get_control_id("<|bos|>"), 0]
    mine, other = ours.get_block_range("image"), theirs.get_block_range("image")
    assert mine != other and torch.equal(taken[mine.start : mine.stop], rows[other.start : other.stop, 0])
    assert not taken[ours.get_block_range("audio").start : ours.get_block_range("audio").stop].any()


def test_short_pictures_keep_their_first_codes_and_whatever_is_learnt(tmp_path: Path) -> None:
    """Of a picture that is asked about the last segment goes; one that is drawn, and all text, stay."""
    train_nano = runpy.run_path(str(ROOT / "recipes" / "train_nano.py"), run_name="imported")
    blocks = [Block(name=name, modality="image", size=9) for name in "ab"]
    spans = [SpanLayout("image", [Segment("a", 2), Segment("b", 3, mark=False)])]
    text = train_text_tokenizer(["what is this", "an apple", "a pear"] * 9, 353, tmp_path)
    vocabulary = Vocabulary.build(text.size, blocks, spans, (), text.sha256)
    template, rows = Template(vocabulary, text), train_nano["find_last_rows"](vocabulary)
    picture = Image(codes=np.array([1, 2, 3, 4, 5]))
    asked = Document([Turn("user", [picture, Text("What is this?")]), Turn("assistant", "an apple")])
    drawn = Document([Turn("user", "an apple"), Turn("assistant", [picture])])
    whole, short = template.render(asked), train_nano["leave_out"](template.render(asked), rows)
    assert short.ids.tolist() == [row for row in whole.ids.tolist() if row not in rows]
    assert len(short) == len(whole) - 3 and short.labels[short.labels >= 0].tolist() == [
        *whole.labels[whole.labels >= 0]
    ]
    assert train_nano["leave_out"](template.render(drawn), rows).ids.tolist() == template.render(drawn).ids.tolist()
    flat = Vocabulary.build(text.size, blocks[:1], [SpanLayout("image", [Segment("a", 5)])], (), text.sha256)
    with pytest.raises(ValueError, match="short_pictures needs pictures whose last codes have a codebook of their own"):
        train_nano["find_last_rows"](flat)


def test_a_share_of_the_pictures_to_be_named_is_short_and_none_that_are_drawn(work: Path) -> None:
    train_nano = runpy.run_path(str(ROOT / "recipes" / "train_nano.py"), run_name="imported")
    text, vocabulary = TextTokenizer.load(work / "models/nano"), read_vocabulary(work / "models/nano/vocabulary.json")
    hashes = {"image": load_tokenizer(work / "models/image_tokenizer").sha256}
    tasks = open_tasks(work / "prepared", ["image_to_name", "text_to_image"], hashes)
    cfg, rows = train_nano["NanoRecipe"](short_pictures=0.5), train_nano["find_last_rows"](vocabulary)
    shares = {}
    for name, source in tasks.items():
        documents = train_nano["Documents"](source, 200, Template(vocabulary, text), cfg)
        whole = [any(row in rows for row in documents[index].ids.tolist()) for index in range(len(documents))]
        shares[name] = sum(whole) / len(whole)
    assert 0.35 < shares["image_to_name"] < 0.65 and shares["text_to_image"] == 1


def test_a_wrong_setting_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        recipe("train_nano", "loop.stps=3")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "steps" in error


def test_missing_data_names_the_command_that_makes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        recipe("encode_media", f"models={tmp_path}")
    assert stop.value.code == 2
    assert "config.json is missing" in capsys.readouterr().err
