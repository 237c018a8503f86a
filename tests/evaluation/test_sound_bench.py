"""The bench of sounds: its measures against what is known of them, one run beside Opus, what it refuses."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from pystoi import stoi

from unimodal.cli import app as cli
from unimodal.evaluation.tokenizer_bench import (
    sound_bench,
    sound_codecs,
    sound_judges,
    sound_measures,
    speaker_judge,
    timing,
    workers,
)
from unimodal.evaluation.tokenizer_bench.entries import Entry
from unimodal.evaluation.tokenizer_bench.items import choose_items
from unimodal.evaluation.tokenizer_bench.moonshine import cut_at_quiet, read_pieces
from unimodal.evaluation.tokenizer_bench.run import run_bench
from unimodal.evaluation.tokenizer_bench.settings import BenchSettings
from unimodal.evaluation.tokenizer_bench.tables import make_table
from unimodal.evaluation.tokenizer_bench.write import write_bench
from unimodal.media.audio import save_audio
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.parts.mel import AmplitudeMel

pytestmark = pytest.mark.sweep("evaluations")


SPEEDS = ("ms_batch_1", "ms_batch_2", "times_real_time_batch_2", "peak_mb")


def build_small(system):
    torch.manual_seed(0)
    return build_tokenizer(read_system(system).choose_settings(small=True)).eval()


def draw_wave(seconds, hz=150.0):
    return 0.5 * torch.sin(torch.arange(int(seconds * 16_000)) * 2 * torch.pi * hz / 16_000)


@pytest.fixture
def sounds(tmp_path, monkeypatch):
    """A sound with its text, a short silence at another rate, and a file that is none; cheap judges of speech."""
    monkeypatch.setattr(
        sound_judges, "DnsmosJudge", lambda threads: type("Judge", (), {"score": lambda self, x: 3.0})()
    )
    monkeypatch.setattr(sound_judges, "load_recogniser", lambda name: lambda x: "a sunny day" if len(x) > 9000 else "")
    monkeypatch.setattr(timing, "BATCHES", (1, 2))
    monkeypatch.setattr(timing, "TIMED_RUNS", 1)
    folder = tmp_path / "sounds"
    folder.mkdir()
    save_audio(draw_wave(1.2), folder / "wave.wav", 16_000)
    (folder / "wave.txt").write_text("a sunny night")
    save_audio(torch.zeros(30), folder / "short.wav", 44_100)
    (folder / "broken.wav").write_bytes(b"no sound")
    return folder


def test_sounds_of_any_rate_and_length_stand_beside_opus_and_are_measured_once(sounds, tmp_path, monkeypatch):
    entries = [Entry(name, build_small(name)) for name in ("tadicodec", "uniaudio2-sqcodec")]
    settings = BenchSettings(sounds, tmp_path / "parts")
    said = []
    made = run_bench(entries, settings, lambda *progress: said.append(progress))
    assert made.data["items"] == 2 and list(made.data["left_out"]) and said
    assert made.originals == {"dnsmos": {"mean": 3.0, "ci95": 0.0}, "wer_moonshine": 33.33}
    for entry in entries:
        figures = made.tokenizers[entry.label]
        [rate] = figures["rates"]
        assert rate["stoi_items"] == rate["pesq_items"] == 1  # none of a short silence
        assert rate["wer_moonshine"] == 33.33 and figures["speed"]["encode_times_real_time"] > 0
        assert {f"{side}_{what}" for side in ("encode", "decode") for what in SPEEDS} <= set(figures["speed"])
        assert min(figures["speed"].values()) > 0
        codes = entry.tokenizer.encode(torch.rand(1, 1, int(1.2 * 24_000)))
        one = entry.tokenizer.encode(torch.rand(1, 1, 17))
        bits = entry.count_bits(codes.ids.shape[1]) + entry.count_bits(one.ids.shape[1])
        assert rate["bytes"] == pytest.approx(bits / 16, abs=1e-3)
        assert all(value >= 1 for name, value in figures["usage"].items() if name.startswith("perplexity"))
    rates = made.codecs["opus"]["rates"]
    assert {rate["budget_bytes"] for rate in rates} == {each["rates"][0]["bytes"] for each in made.tokenizers.values()}
    assert all(0 <= rate["within_budget"] <= 1 and rate["bytes"] > 0 for rate in rates)
    table = write_bench(made, tmp_path / "out.json")
    assert "audio: 2 items, judged at 16 kHz" in table and "wer_moonshine" in table and "broken.wav" in table
    assert (tmp_path / "out.png").is_file() and json.loads((tmp_path / "out.json").read_text())["medium"] == "audio"

    def refuse(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(sound_bench, "judge_sounds", refuse)
    again = run_bench(entries, settings, lambda *_: None)
    assert again.to_dict() == made.to_dict()
    with pytest.raises(AssertionError, match="measured again"):
        run_bench(entries, BenchSettings(sounds, tmp_path / "parts", seed=1), lambda *_: None)
    (sounds / "wave.txt").write_text("a sunny day")  # another text needs no other measure, but by what reads it
    changed = run_bench(entries[1:], settings, lambda *_: None)
    assert changed.originals["wer_moonshine"] == changed.tokenizers[entries[1].label]["rates"][0]["wer_moonshine"] == 0
    with pytest.raises(AssertionError, match="measured again"):
        run_bench(entries[:1], settings, lambda *_: None)


@pytest.mark.parametrize("every_rate", [False, True])
def test_residual_codes_are_judged_at_one_two_and_all_codebooks_with_opus_at_the_bits_of_each(
    sounds, tmp_path, every_rate
):
    entry = Entry("mine", build_small("speechtokenizer"))
    settings = BenchSettings(sounds, tmp_path / "parts", recognisers=(), every_rate=every_rate)
    made = run_bench([entry], settings, lambda *_: None)
    assert ["dnsmos" in rate for rate in made.tokenizers["mine"]["rates"]] == [every_rate, every_rate, True]
    rates = made.tokenizers["mine"]["rates"]
    assert [rate["groups"] for rate in rates] == [1, 2, 3] and len({rate["codes"] for rate in rates}) == 1
    assert [rate["bytes"] / rates[0]["bytes"] for rate in rates] == pytest.approx([1, 2, 3], rel=1e-3)
    assert len({rate["mel_distance"]["mean"] for rate in rates}) == 3
    assert [rate["budget_bytes"] for rate in made.codecs["opus"]["rates"]] == [rate["bytes"] for rate in rates]
    assert "mine" in make_table(made)


@pytest.mark.parametrize(
    "system",
    [
        "dac-24",
        "encodec-24",
        "mimi",
        "moss-audio",
        "snac-24",
        "speechtokenizer",
        "uniaudio2-reasoning",
        "vocos-encodec",
    ],
)
def test_what_calls_its_codes_residual_decodes_fewer_groups_to_the_same_length(system):
    tokenizer = build_small(system)
    for name, value in tokenizer.state_dict().items():
        if name.endswith(("embed", "embed_sum")):  # codebooks that are averages begin at 0
            value.normal_()
    codes = tokenizer.encode(torch.rand(1, 1, 2_000) * 0.1)
    whole = tokenizer.decode(codes)
    assert len(sound_bench.list_group_counts(tokenizer)) > 1
    for groups in sound_bench.list_group_counts(tokenizer)[:-1]:
        fewer = tokenizer.decode(sound_bench.keep_groups(tokenizer, codes, groups))
        assert fewer.shape == whole.shape and not torch.equal(fewer, whole)


def make_slaney_bands():
    """librosa's `filters.mel(sr=16000, n_fft=400, n_mels=40)`, literally: float64 [40, 201]."""
    step, edge, ratio = 200 / 3, 1000.0, np.log(6.4) / 27

    def to_hz(mel):
        return step * mel if mel < edge / step else edge * np.exp(ratio * (mel - edge / step))

    points = np.array([to_hz(mel) for mel in np.linspace(0, edge / step + np.log(8000 / edge) / ratio, 42)])
    bands = np.zeros((40, 201))
    for row in range(40):
        for column, hz in enumerate(np.linspace(0, 8000, 201)):
            rising = (hz - points[row]) / (points[row + 1] - points[row])
            falling = (points[row + 2] - hz) / (points[row + 2] - points[row + 1])
            bands[row, column] = max(0, min(rising, falling)) * 2 / (points[row + 2] - points[row])
    return bands


@pytest.fixture
def speaker(tmp_path, monkeypatch):
    """The judge with weights that are drawn, in place of the package's."""
    torch.manual_seed(0)
    lstm, linear = torch.nn.LSTM(40, 256, 3, batch_first=True), torch.nn.Linear(256, 256)
    state = {f"lstm.{name}": value for name, value in lstm.state_dict().items()}
    state |= {f"linear.{name}": value for name, value in linear.state_dict().items()}
    torch.save({"step": 1, "model_state": {**state, "similarity_weight": torch.ones(1)}}, tmp_path / "pretrained.pt")
    monkeypatch.setattr(speaker_judge, "find_weights", lambda: tmp_path / "pretrained.pt")
    return speaker_judge.SpeakerJudge()


def test_the_bands_of_the_speaker_judge_are_those_of_librosa(speaker):
    sound = (draw_wave(0.2) + 0.1 * torch.randn(3200)).numpy().astype(np.float64)
    filled = np.pad(sound, 200)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([filled[start : start + 400] * window for start in range(0, len(filled) - 399, 160)])
    wanted = np.abs(np.fft.rfft(frames)) ** 2 @ make_slaney_bands().T
    assert np.allclose(speaker.compute_bands(torch.from_numpy(sound).float()), wanted, rtol=1e-3, atol=1e-4)


def test_a_speaker_is_the_mean_of_parts_as_the_package_cuts_them(speaker):
    expected = {1: [0], 31_519: [0], 31_520: [0, 77], 43_839: [0, 77], 43_840: [0, 77, 154]}
    assert {count: speaker_judge.list_parts(count) for count in expected} == expected
    sound = 0.001 * torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    raised = sound * (10**-1.5 / sound.square().mean().sqrt())
    bands = speaker.compute_bands(raised)
    parts = [torch.relu(speaker.linear(speaker.lstm(bands[None, at : at + 160])[1][0][-1]))[0] for at in (0, 77)]
    mean = sum(part / part.norm() for part in parts)
    one, silent, short, two = speaker.embed([sound, sound * 0, sound[:9], sound])
    assert torch.allclose(one, mean / mean.norm(), atol=1e-5) and torch.allclose(two, one, atol=1e-6)
    assert not silent.any() and torch.allclose(short, speaker.embed([sound[:9]])[0], atol=1e-6)


def test_a_missing_speaker_judge_says_what_installs_it(sounds, tmp_path, monkeypatch):
    monkeypatch.setattr(sound_judges, "find_weights", lambda: None)
    entry = Entry("mine", build_small("tadicodec"))
    made = run_bench([entry], BenchSettings(sounds, tmp_path / "parts", recognisers=()), lambda *_: None)
    assert "speaker_cosine: not measured: pip install --no-deps Resemblyzer" in make_table(made)
    monkeypatch.setattr(speaker_judge, "find_weights", lambda: None)
    with pytest.raises(ValueError, match="pip install --no-deps Resemblyzer"):
        speaker_judge.SpeakerJudge()
    (tmp_path / "cut.pt").write_bytes(b"no weights")
    monkeypatch.setattr(speaker_judge, "find_weights", lambda: tmp_path / "cut.pt")
    with pytest.raises(ValueError, match="install it again"):
        speaker_judge.SpeakerJudge()


def test_the_peak_of_memory_is_what_tensors_hold_at_one_time():
    def work():
        first = torch.zeros(250_000)  # 1 MB
        second = first + 1
        del first
        return second + 1

    assert timing.measure_peak_bytes(work) == pytest.approx(2e6, rel=0.01)


def test_sixteen_at_once_are_left_out_where_one_takes_long(monkeypatch):
    monkeypatch.setattr(timing, "MOST_SECONDS", 0.0)
    found = timing.measure_speed(lambda batch: (lambda: torch.zeros(9), lambda: torch.ones(9)), seconds=1.0)
    assert set(found) == {
        f"{side}_{what}"
        for side in ("encode", "decode")
        for what in ("ms_batch_1", "times_real_time_batch_1", "peak_mb")
    }


def test_a_text_beside_a_sound_is_read_by_a_tokenizer_that_reads_one(sounds, tmp_path, monkeypatch):
    tokenizer, told = build_small("tadicodec"), []
    plain = tokenizer.read_text
    monkeypatch.setattr(tokenizer, "read_text", lambda text: told.append(text) or plain(text))
    run_bench([Entry("mine", tokenizer)], BenchSettings(sounds, tmp_path / "parts", recognisers=()), lambda *_: None)
    assert set(told) == {"a sunny night"}


def test_what_cannot_be_compared_is_one_line(sounds, tmp_path, capsys, monkeypatch):
    def fails(*arguments, says):
        with pytest.raises(SystemExit) as ended:
            cli.main(["evaluate", "--suite", "tokenizers", "--out", str(tmp_path / "x.json"), *map(str, arguments)])
        err = capsys.readouterr().err
        assert ended.value.code == 2 and says in err.splitlines()[-1]

    build_small("s3-v1").save(tmp_path / "s3")
    build_small("tadicodec").save(tmp_path / "tadicodec")
    build_small("titok-s128").save(tmp_path / "titok")
    data = ("--data", sounds)
    fails(*data, "--tokenizers", tmp_path / "s3", says="leave it out")
    fails(*data, "--tokenizers", tmp_path / "tadicodec", tmp_path / "titok", says="one medium")
    monkeypatch.undo()  # the real recognisers
    fails(*data, "--tokenizers", tmp_path / "tadicodec", "--recognisers", "whisper", says="choose from moonshine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.wav").write_bytes(b"no sound")
    none = ("--tokenizers", tmp_path / "tadicodec", "--recognisers", "none")
    fails("--data", tmp_path / "empty", *none, says="none of 1 sounds can be read")


def test_missing_packages_are_named_with_what_installs_them(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for judge in (sound_judges.SoundJudge, lambda: sound_judges.load_recogniser("moonshine")):
        with pytest.raises(ValueError, match=r"pip install 'unimodal\[bench\]'"):
            judge()
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(ValueError, match=r"pip install 'unimodal\[bench\]'"):
        sound_judges.load_recogniser("pocketsphinx")


def test_opus_gives_back_the_length_and_is_asked_for_no_rate_at_which_it_keeps_nothing():
    wave = draw_wave(1.0)
    assert [sound_codecs.choose_bit_rate(rate) for rate in (100, 3_000.4, 35 * 16_000)] == [2_533, 3_067, 256_000]
    rich, poor = (sound_codecs.code_with_opus(wave, 16_000, rate) for rate in (16_000, sound_codecs.LOWEST_RATE))
    assert len(rich.samples) == len(poor.samples) == len(wave) and rich.num_bits <= 17_600
    assert float((rich.samples - wave).square().mean()) < 0.01 and float(poor.samples.square().mean()) > 0.01
    assert sound_codecs.is_within(rich.num_bits, 1.0, 16_000) and not sound_codecs.is_within(poor.num_bits, 1.0, 1_000)
    for rate in (2_500, 3_000, 7_201, 26_250):  # rates of packets of as many bytes are one
        near = sound_codecs.code_with_opus(wave, 16_000, sound_codecs.choose_bit_rate(rate))
        assert torch.equal(sound_codecs.code_with_opus(wave, 16_000, rate).samples, near.samples)
    below = sound_codecs.code_with_opus(wave, 16_000, 2_000)  # why there is a lowest one
    assert float(below.samples.square().mean()) < 1e-6
    assert len(sound_codecs.code_with_opus(wave[:1], 16_000, 256_000).samples) == 1


def test_a_long_sound_is_cut_where_it_is_quiet():
    sound = torch.rand(50 * 16_000) + 0.1
    sound[17 * 16_000 : 18 * 16_000] = 0
    parts = cut_at_quiet(sound)
    assert torch.equal(torch.cat(parts), sound) and max(map(len, parts)) <= 20 * 16_000
    assert 17 * 16_000 <= len(parts[0]) < 18 * 16_000 and cut_at_quiet(sound[:9])[0].tolist() == sound[:9].tolist()


def test_pieces_of_text_are_read_with_lengths_of_one_byte_and_two():
    assert read_pieces(b"\x01a\x00\x02bc") == [b"a", b"", b"bc"]
    assert read_pieces(b"\xc8\x01" + b"x" * 200) == [b"x" * 200]


def test_tasks_answer_in_their_order_whoever_works(monkeypatch):
    def make_pool(count, context, begin, given):
        return ThreadPoolExecutor(count, initializer=begin, initargs=given)

    monkeypatch.setattr(workers, "ProcessPoolExecutor", make_pool)
    monkeypatch.setattr(workers, "_judge", None)
    threads = torch.get_num_threads()
    for count in (1, 2):
        with workers.Workers(lambda: 10, count) as crew:
            assert crew.run([partial(lambda add, judge: judge + add, number) for number in range(9)]) == list(
                range(10, 19)
            )
            shared = crew.run_shared(range(11), lambda numbers, judge: [judge + each for each in numbers])
            assert shared == list(range(10, 21)) and crew.run_shared([], partial(pytest.fail)) == []
    torch.set_num_threads(threads)


def test_the_pitch_of_a_tone_is_found_and_noise_has_none():
    for hz in (80.0, 150.0, 320.0):
        found = sound_measures.track_pitch(draw_wave(0.3, hz))
        assert torch.allclose(found, torch.full_like(found, hz), rtol=0.02)
    assert (sound_measures.track_pitch(torch.randn(8_000) * 0.1) == 0).float().mean() > 0.9
    assert not sound_measures.track_pitch(torch.zeros(8_000)).any() and not len(
        sound_measures.track_pitch(torch.zeros(9))
    )


def test_an_equal_sound_is_at_no_distance_and_noise_beside_it_at_some():
    sound = draw_wave(1.0) * (1 + torch.rand(16_000)) / 2
    original = sound_measures.ComparedOriginal(sound, make_bands())
    same, noisy = original.compare(sound), original.compare(sound + 0.1 * torch.randn(16_000))
    assert set(same) == set(sound_measures.COMPARED)
    assert same["mel_distance"] == same["stft_distance"] == same["f0_cents"] == 0 and same["pesq"] > 4
    assert noisy["mel_distance"] > 0.1 and noisy["stft_distance"] > 0.1 and noisy["pesq"] < same["pesq"]
    silent = sound_measures.ComparedOriginal(torch.zeros(16_000), make_bands()).compare(sound)
    assert silent["stoi"] is None and silent["pesq"] is None and silent["stft_distance"] is None


def make_bands():
    return AmplitudeMel(16_000, 1024, 256, 80, 0.0, 8000.0)


def test_intelligibility_is_that_of_the_package_and_none_where_too_little_is_loud():
    draws = torch.Generator().manual_seed(0)
    sound = torch.randn(16_000, generator=draws) * draw_wave(1.0, 3.0)
    sound[4_000:7_000] *= 1e-4  # which is left out
    noise = torch.randn(16_000, generator=draws)
    original = sound_measures.Intelligibility.of(sound.numpy())
    for made in (sound, sound + 0.3 * noise, noise, 0 * sound):
        assert original.measure(made.numpy()) == pytest.approx(stoi(sound.numpy(), made.numpy(), 16_000), abs=1e-9)
    sound[3_000:] *= 1e-4
    assert sound_measures.Intelligibility.of(sound.numpy()) is None


def test_a_shorter_sound_is_compared_as_far_as_it_goes():
    sound = draw_wave(1.0) * (1 + torch.rand(16_000)) / 2
    made = sound + 0.1 * torch.randn(16_000)
    cut = sound_measures.ComparedOriginal(sound[:9_000], make_bands()).compare(made)
    assert sound_measures.ComparedOriginal(sound, make_bands()).compare(made[:9_000]) == cut


def test_the_speaker_of_silence_is_not_compared(sounds):
    judge = sound_judges.SoundJudge()
    [silence] = judge.describe([torch.zeros(16_000)])
    [found] = judge.judge_speech([draw_wave(1.0)], [silence.voice])
    assert found == {"dnsmos": 3.0, "speaker_cosine": None}


def test_data_are_known_by_their_contents(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"one")
    (tmp_path / "b.wav").write_bytes(b"one")
    first = choose_items(tmp_path, "audio", None, 0)
    assert choose_items(tmp_path, "audio", None, 0).sha256 == first.sha256
    (tmp_path / "b.wav").write_bytes(b"two")  # as long, under the same name
    assert choose_items(tmp_path, "audio", None, 0).sha256 != first.sha256
    (tmp_path / "b.wav").write_bytes(b"one")
    assert choose_items(tmp_path, "audio", None, 0).sha256 == first.sha256
    (tmp_path / "b.wav").rename(tmp_path / "c.wav")
    assert choose_items(tmp_path, "audio", None, 0).sha256 != first.sha256
