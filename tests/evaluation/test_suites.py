"""Every suite on a few items: which items it takes, and figures that can be known beforehand."""

import hashlib
import json

import pytest
import torch

from unimodal.cli import app as cli
from unimodal.evaluation import SUITES, choose_suites, listeners, run_suite, run_suites
from unimodal.evaluation.prepared import EVALUATION_STYLES, TRAINING_STYLES, Clips, Pictures, Speech, sample
from unimodal.evaluation.report import list_lines, make_table
from unimodal.model_folder.find import MODEL_VARIABLE
from unimodal.model_folder.settings import CtcReading
from unimodal.pipeline import Output
from unimodal.sequence.document import Text
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system

pytestmark = pytest.mark.sweep("evaluations")


class Listener:
    """In place of Whisper, whose weights are no part of the tests: hears every sound as the same words."""

    heard = "a sunny day"

    def transcribe(self, sound: torch.Tensor) -> str:
        assert sound.ndim == 1 and sound.dtype == torch.float32
        return self.heard


@pytest.fixture
def sees_colours(model, monkeypatch):
    """The trunk of the tiny tokenizer is random: pictures are compared by their colours in its place."""
    monkeypatch.setattr(
        model,
        "extract_picture_features",
        lambda pictures: torch.nn.functional.avg_pool2d(pictures - 0.5, 16).flatten(1),
    )


class Loudness:
    """In place of DNSMOS, half a second of work a sound, which tests of its own try."""

    def score(self, sound: torch.Tensor) -> float:
        assert sound.ndim == 1 and sound.dtype == torch.float32
        return 1 + 10 * float(sound.square().mean().sqrt())


@pytest.fixture
def listener(monkeypatch):
    for place in ("listeners", "transcription"):
        monkeypatch.setattr(f"unimodal.evaluation.{place}.WhisperJudge", Listener)
    for place in ("speech_reconstruction", "speaking"):
        monkeypatch.setattr(f"unimodal.evaluation.{place}.DnsmosJudge", Loudness)


def answer_with(monkeypatch, model, texts):
    """Makes the model answer every request with the next of these texts; returns the documents it is asked."""
    asked = []

    def answers(documents, to=None, seeds=None, on_progress=None, **_):
        asked.extend(documents)
        return [[Output(Text(texts[(len(asked) + i) % len(texts)]))] for i in range(len(documents))]

    monkeypatch.setattr(model, "answers", answers)
    return asked


def test_samples_are_fixed_by_the_seed_and_keep_their_order(data):
    rows = Pictures.load(data).find_rows(TRAINING_STYLES, "train")
    assert len(rows) == 18 and sample(rows, None, 0) is rows
    first = sample(rows, 5, 0)
    assert first.tolist() == sorted(first.tolist()) == sample(rows, 5, 0).tolist() != sample(rows, 5, 1).tolist()


def test_held_out_items_and_the_unseen_style_are_kept_apart(data):
    pictures, clips = Pictures.load(data), Clips.load(data)
    for split, concepts in (("train", range(6)), ("heldout", range(6, 8))):
        for styles in (TRAINING_STYLES, EVALUATION_STYLES):
            rows = pictures.find_rows(styles, split)
            assert set(pictures.concept[rows]) == set(concepts) and set(pictures.style[rows]) == set(styles)
        assert set(clips.concept[clips.find_rows(split)]) == set(concepts)
    assert pictures.take(rows).shape == (2, 3, 64, 64) and float(pictures.take(rows).max()) <= 1


def test_speech_takes_unseen_sentences_of_every_voice(data):
    speech = Speech.load(data)
    voices = speech.choose_unseen(None, 0)
    assert {voice: [item.text for item in items] for voice, items in voices.items()} == {
        voice: ["a sunny day"] for voice in ("awb", "human", "joe", "slt")
    }
    assert "slt" not in speech.choose_unseen(None, 0, max_duration_s=0.25) and "joe" in speech.choose_unseen(
        None, 0, 0.25
    )
    assert speech.take(voices["joe"][0]).shape == (3_500,)


def test_image_reconstruction_compares_with_codecs_on_held_out_concepts(model, data):
    figures = run_suite("image_reconstruction", model, data)
    assert figures["pictures"] == 6 and figures["concepts"] == 2
    assert figures["bytes"] == 32  # 8 codes of 12 values and 56 of 16: 28.7 + 224 bits
    assert set(figures["psnr_db_by_style"]) == set(TRAINING_STYLES)
    assert figures["webp"]["bytes"] <= 96 < figures["jpeg"]["bytes"]
    assert figures["psnr_db"] < figures["webp"]["psnr_db"]  # the tiny tokenizer is untrained
    for part in (figures, figures["webp"], figures["jpeg"], figures["jpeg_scan"]):
        assert 0 <= part["feature_distance"] <= 2 and part["ssim"] <= 1


def test_video_reconstruction_tells_motion_from_stills(model, data):
    figures = run_suite("video_reconstruction", model, data)
    assert figures["clips"] == 2 and figures["bytes"] == 32 + 64
    assert figures["still_psnr_db"] > 0 and figures["later_frames_psnr_db"] > 0
    low, high = sorted([figures["first_frame_psnr_db"], figures["later_frames_psnr_db"]])
    assert low - 0.01 <= figures["psnr_db"] <= high + 0.01


def test_speech_reconstruction_is_by_voice_with_the_human_apart(model, data, listener):
    figures = run_suite("speech_reconstruction", model, data)
    figures = dict(figures)
    assert figures.pop("judge") == "Whisper tiny.en"
    assert set(figures) == {"all", "awb", "human", "joe", "slt"} and figures["all"]["utterances"] == 3
    joe = figures["joe"]
    assert [joe[name] for name in ("utterances", "wer_original", "wer_rebuilt", "wer_added")] == [1, 0.0, 0.0, 0.0]
    loud = 1 + 10 * 3_000 / 32_768 / 2**0.5  # sines of this height
    assert all(part["dnsmos_original"] == pytest.approx(loud, abs=0.02) for part in figures.values())
    assert all(part["dnsmos_rebuilt"] != part["dnsmos_original"] for part in figures.values())


def test_picture_naming_counts_words_of_label_or_tags_and_looks_up_neighbours(model, data, monkeypatch, sees_colours):
    asked = answer_with(monkeypatch, model, ["it is a TAG1!"])
    figures = run_suite("picture_naming", model, data)
    assert figures["gallery"] == 18 and figures["style"] == "twemoji"
    seen, heldout = figures["seen"], figures["heldout"]
    assert (seen["pictures"], heldout["pictures"]) == (6, 2)
    assert seen["right_percent"] == 16.7 and heldout["right_percent"] == 0  # one of six has that tag
    assert seen["nearest_neighbour_percent"] == 100  # every concept has its own colours in all styles,
    assert heldout["nearest_neighbour_percent"] == 0  # and the pictures of these are not in the gallery
    assert all(document.turns[0].text == "What is this?" for document in asked)
    assert seen["examples"][0] == {"shown": "apple", "answer": "it is a TAG1!"}


def test_clip_naming_reports_held_out_concepts_apart(model, data, monkeypatch):
    answer_with(monkeypatch, model, ["an apple, boat, cat, door, egg or fish"])
    figures = run_suite("clip_naming", model, data)
    assert {name: part["clips"] for name, part in figures.items()} == {"seen": 6, "heldout": 2}
    assert figures["seen"]["right_percent"] == 100 and figures["heldout"]["right_percent"] == 0


def test_picture_drawing_finds_the_asked_concept_when_it_is_drawn(model, data, monkeypatch, sees_colours):
    pictures = Pictures.load(data)
    asked = []

    def answers(documents, to, seeds, on_progress=None, **_):
        asked.extend(zip([document.turns[0].text for document in documents], seeds, strict=True))
        drawn = [pictures.take([i])[0] for i in range(len(documents))]  # the noto pictures of the asked concepts
        return [[Output(model.generate("x", "image").part, picture)] for picture in drawn]

    with monkeypatch.context() as patch:
        generated = model.generate("x", "image")
        patch.setattr(model, "generate", lambda *_: generated)
        patch.setattr(model, "answers", answers)
        figures = run_suite("picture_drawing", model, data, seed=7)
    assert asked == [
        (f"Draw {thing}.", 7 + i)
        for i, thing in enumerate(["an apple", "a boat", "a cat", "a door", "an egg", "a fish"])
    ]
    assert figures["drawings"] == 6 and figures["among_5_percent"] == figures["nearest_percent"] == 100
    assert figures["chance_among_5_percent"] == round(100 * 5 * 3 / 18, 2)


def test_drawing_suites_run_through_the_engine(model, data):
    figures = run_suite("picture_drawing", model, data, limit=2)
    assert figures["drawings"] == 2 and 0 <= figures["nearest_percent"] <= figures["among_5_percent"] <= 100
    figures = run_suite("clip_drawing", model, data, limit=2)
    assert figures["clips"] == 2 and figures["gallery"] == 6 and figures["motion_of_training_clips"] > 0


def test_transcription_is_judged_beside_whisper(model, data, monkeypatch, listener):
    asked = answer_with(monkeypatch, model, ["a cloudy day"])
    figures = run_suite("transcription", model, data)
    assert figures["all"] == {"utterances": 3, "wer": 33.33, "plain_wer": 33.33, "whisper_wer": 0.0}
    assert figures["human"]["utterances"] == 1
    assert all(document.turns[0].text == "What is said?" for document in asked)


def test_whisper_reads_no_speech_of_a_tokenizer_around_whisper(model, monkeypatch, listener):
    tokenizer = build_tokenizer(read_system("whisper-codec").choose_settings(small=True))
    monkeypatch.setattr(listeners, "Moonshine", Listener)
    assert listeners.choose_listener(model).name == "Whisper tiny.en"
    monkeypatch.setattr(type(model.coder), "get_tokenizer", lambda coder, modality: tokenizer)
    assert listeners.choose_listener(model).name == "Moonshine tiny"


def test_speaking_asks_for_the_training_voices_in_turn(model, data, listener):
    figures = run_suite("speaking", model, data)
    assert figures["sentences"] == 1 and figures["wer"] == 0 and set(figures["wer_by_voice"]) == {"joe"}
    assert 0 < figures["mean_seconds"] <= 2 and figures["plain_wer"] == figures["wer"]


def test_speaking_tells_what_choosing_between_utterances_gains(model, data, listener, monkeypatch):
    told, original = [], model.answers

    def answers(documents, **settings):
        told.append(settings["decoder"])
        return original(documents, **settings)

    monkeypatch.setattr(model, "answers", answers)
    several = model.processor.model_copy(update={"reading": CtcReading(sayings=2)})
    monkeypatch.setattr(model, "processor", several)
    figures = run_suite("speaking", model, data)
    assert told == [None, "plain"] and {"wer", "plain_wer"} <= set(figures)


@pytest.mark.parametrize("name", [name for name in SUITES if name != "grounding"])  # this model has no masks
def test_missing_data_is_one_line_that_says_how_to_make_it(model, tmp_path, name, listener):
    with pytest.raises(ValueError, match=r"no such file; make it with `python tools/") as caught:
        run_suite(name, model, tmp_path)
    assert "\n" not in str(caught.value)


def test_names_and_limits_are_checked(model, data):
    assert choose_suites(["all"]) == list(SUITES) and choose_suites(["speaking", "all"])[0] == "speaking"
    with pytest.raises(ValueError, match="did you mean clip_naming"):
        choose_suites(["clip_namings"])
    with pytest.raises(ValueError, match="limit is 0"):
        run_suite("clip_naming", model, data, limit=0)


def test_a_report_grows_by_suite_and_starts_again_for_another_model(model, data, tmp_path, monkeypatch):
    out = tmp_path / "report.json"
    list(run_suites(["video_reconstruction"], model, data, out, limit=1))
    [printed] = run_suites(["image_reconstruction"], model, data, out, limit=1)
    report = json.loads(out.read_text())
    assert set(report["suites"]) == {"video_reconstruction", "image_reconstruction"}
    weights = hashlib.sha256((model.folder / "model.safetensors").read_bytes()).hexdigest()
    assert report["sha256"] == {**model.coder.sha256, "decoder": weights} and report["limit"] == 1
    assert printed.startswith("image_reconstruction\n") and "webp.bytes" in printed
    with pytest.raises(ValueError, match="tries every method itself"):
        list(run_suites(["compression"], model, data, out, limit=1, compress=["stride:0.5"]))
    beside = out.with_name("compressed.json")
    beside.write_bytes(out.read_bytes())
    [printed] = run_suites(["video_reconstruction"], model, data, beside, limit=1, compress=["stride:0.5"])
    told = json.loads(beside.read_text())
    assert printed.startswith("compressed by stride:0.5: ") and list(told["suites"]) == ["video_reconstruction"]
    assert told["compress"] == "stride:0.5"
    list(run_suites(["video_reconstruction"], model, data, out, limit=2))  # other settings: nothing is mixed
    assert set(json.loads(out.read_text())["suites"]) == {"video_reconstruction"}
    out.write_text('{"my": "notes"}')
    with pytest.raises(ValueError, match="is not a report"):
        list(run_suites(["video_reconstruction"], model, data, out, limit=1))
    assert out.read_text() == '{"my": "notes"}'


def test_the_table_shows_every_number_and_no_examples():
    figures = {"a": 1, "b": {"c": 2.5, "examples": [{"x": 1}]}}
    assert list(list_lines(figures)) == [("a", "1"), ("b.c", "2.5")]
    assert make_table("suite", figures) == "suite\n  a    1\n  b.c  2.5"


def test_the_command_prints_a_table_and_writes_the_report(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(MODEL_VARIABLE, str(cli_model()))
    argv = ["evaluate", "--suite", "video_reconstruction", "--out", str(tmp_path / "r.json"), "--data", str(data)]
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    out, err = capsys.readouterr()
    assert stop.value.code == 0 and out.startswith("video_reconstruction\n") and "coding clips" in err
    assert json.loads((tmp_path / "r.json").read_text())["suites"]["video_reconstruction"]["clips"] == 2


def cli_model():
    from tests.tiny_model import tiny_folder

    return tiny_folder()
