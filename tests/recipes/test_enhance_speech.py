"""Speech enhancement by a language model: rows of noisy and clean speech, meaning written before sound."""

import json

import pytest
import torch

from tests.campaigns import is_study
from tests.recipes.test_finetune_lora import recipe
from tools import prepare_noisy_speech
from tools.prepare_noisy_speech import MADE, make_noise, mix_at_ratio
from unimodal.media.audio import load_audio, save_audio
from unimodal.pipeline import load
from unimodal.sequence.document import Audio
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Six tones of a twentieth of a second."""
    folder = tmp_path_factory.mktemp("clean")
    moments = torch.arange(800) / 16000
    for number in range(6):
        save_audio(0.4 * torch.sin(2 * torch.pi * (300 + 300 * number) * moments), folder / f"{number}.wav", 16000)
    return folder


@pytest.fixture(scope="module")
def noisy(clean, tmp_path_factory):
    out = tmp_path_factory.mktemp("noisy")
    prepare_noisy_speech.main([str(clean), "--out", str(out), "--copies", "3", "--one-held-out-of", "3"])
    return out


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("ratio_db", [-5.0, 12.0])
def test_a_mixture_has_the_ratio_that_was_asked_for(kind, ratio_db):
    import random

    rng, sound = random.Random(0), 0.01 * torch.randn(4000, generator=torch.Generator().manual_seed(0))
    noise = make_noise(kind, 4000, 16000, [sound.flip(0)], rng)
    added = mix_at_ratio(sound, noise, ratio_db) - sound
    found = 10 * (sound.square().mean() / added.square().mean()).log10()
    assert noise.shape == sound.shape and float(found) == pytest.approx(ratio_db, abs=0.01)
    assert float(mix_at_ratio(100 * sound, noise, ratio_db).abs().max()) <= 1
    with pytest.raises(ValueError, match="is silent"):
        mix_at_ratio(torch.zeros(10), torch.ones(10), 0.0)


def test_rows_keep_held_out_sounds_apart_and_are_the_same_again(clean, noisy, tmp_path, capsys):
    read = {
        name: [json.loads(line) for line in (noisy / name).read_text().splitlines()]
        for name in ("rows.jsonl", "heldout.jsonl")
    }
    names = {name: {row["messages"][1]["content"][0]["path"] for row in rows} for name, rows in read.items()}
    assert sum(map(len, read.values())) == 18 and all(names.values())
    assert names["rows.jsonl"].isdisjoint(names["heldout.jsonl"])
    prepare_noisy_speech.main([str(clean), "--out", str(tmp_path), "--copies", "3", "--one-held-out-of", "3"])
    assert "rows.jsonl: " in capsys.readouterr().out
    assert (tmp_path / "rows.jsonl").read_bytes() == (noisy / "rows.jsonl").read_bytes()
    assert (tmp_path / "noisy/0-1.wav").read_bytes() == (noisy / "noisy/0-1.wav").read_bytes()
    with pytest.raises(SystemExit):
        prepare_noisy_speech.main([str(tmp_path / "noisy"), "--noise", str(tmp_path / "none")])
    assert "has no sound files; name another folder" in capsys.readouterr().err


def tune(folder, base, noisy, *settings):
    """A codec whose books are in use, and the folder of a model tuned on its codes of the rows."""
    from tools import convert_checkpoint

    torch.manual_seed(0)
    codec = build_tokenizer(read_system("speechtokenizer").choose_settings(small=True)).train()
    files = sorted(noisy.rglob("*.wav"))
    with torch.no_grad():  # its books begin as means of what it hears
        codec.reconstruct(torch.stack([load_audio(path, 16000) for path in files])[:, None])
    codec.round_to_half().eval().save(folder / "codec")
    convert_checkpoint.main(["tokenizers", str(folder / "media"), "--audio", f"{folder}/codec"])
    recipe(
        "finetune_lora", f"base={base}", f"media={folder}/media", f"out={folder}/out", f"run={folder}/run",
        "code_order={audio: coarse_first 1}", f"corpus={{datasets: [{{path: {noisy}/rows.jsonl}}], "
        f"validation: [{{path: {noisy}/heldout.jsonl}}], codes: {folder}/codes, length: 256, tokens_per_batch: 1024, "
        "batches_per_window: 2}", "lora.rank=16", "loop.warmup_steps=1", "loop.plot=false", *settings,
    )  # fmt: skip
    return codec, load(folder / "out", device="cpu")


@pytest.mark.sweep("recipes at work")
def test_a_model_learns_clean_speech_from_noisy_and_writes_meaning_before_sound(tiny_base, noisy, tmp_path):
    steps = ("loop.steps=12", "loop.learning_rate=0.02", "loop.log_every=1", "loop.evaluate_every=12")
    _, model = tune(tmp_path, tiny_base, noisy, *steps)
    losses = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert losses[-1]["loss_audio"] < losses[0]["loss_audio"]
    [layout] = json.loads((tmp_path / "out" / "vocabulary.json").read_text())["layouts"]
    assert (layout["pattern"]["kind"], layout["pattern"]["coarse"]) == ("coarse_first", 1)
    sound = Audio(path=str(noisy / "noisy/0-0.wav"))
    [answer] = model.chat([sound, "Remove the noise."], to="audio", tokens=40)
    assert answer.media.dim() == 1 and len(answer.media) and answer.media.isfinite().all()


@pytest.mark.study
def test_a_noise_never_heard_is_removed(tiny_base, clean, tmp_path):
    """Of the clean sounds' codes, more are right in the answers than in the noisy sounds; only in `make study`."""
    if not is_study():
        pytest.skip("a training of half a minute: make study")
    ratios = ("--snr", "-5", "0", "--one-held-out-of", "3")
    prepare_noisy_speech.main([str(clean), "--out", str(tmp_path / "noisy"), "--copies", "48", *ratios])
    prepare_noisy_speech.main([str(clean), "--out", str(tmp_path / "new"), "--copies", "2", "--seed", "1", *ratios])
    steps = ("loop.steps=350", "loop.learning_rate=0.01", "loop.log_every=100", "loop.evaluate_every=350")
    codec, model = tune(tmp_path, tiny_base, tmp_path / "noisy", *steps)
    right = {"answer": 0, "noisy": 0}
    for line in (tmp_path / "new/rows.jsonl").read_text().splitlines():
        asked, answered = (turn["content"][0]["path"] for turn in json.loads(line)["messages"])
        wanted, heard = (
            codec.encode(load_audio(tmp_path / "new" / path, 16000)[None, None]).ids[0] for path in (answered, asked)
        )
        sound = Audio(path=str(tmp_path / "new" / asked))
        [answer] = model.chat([sound, "Remove the noise."], to="audio", temperature=0.0)
        written = torch.tensor(answer.part.require_codes()).reshape(-1, 3)[: len(wanted)]
        right["answer"] += int((written == wanted[: len(written)]).sum())
        right["noisy"] += int((heard == wanted).sum())
    assert right["answer"] > 1.1 * right["noisy"]
