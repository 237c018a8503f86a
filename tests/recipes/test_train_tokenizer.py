"""recipes/train_tokenizer.py on published systems and files of one's own: pictures of mixed sizes, films, datasets."""

import importlib
import json
import random
import re
import shutil
import sys

import pytest
import torch

from tests.commands import ROOT
from tests.recipes.test_finetune_full_and_pretrain import torchrun
from tests.recipes.test_finetune_lora import recipe
from tests.tokenizers import tiny_system
from unimodal.cli.app import app
from unimodal.media.image import load_image, save_image
from unimodal.media.registry import MEDIA
from unimodal.media.video import save_video
from unimodal.tokenizers import FAMILIES, load_tokenizer, register
from unimodal.tokenizers.losses.held_out import measure_overlap
from unimodal.tokenizers.losses.perturbation import Perturbation
from unimodal.tokenizers.losses.settings import PerturbationSettings

LOSSES = "losses={l1: 1, l2: 0, adversarial: {weight: 0.1, start: 2, width: 4, num_layers: 1, lecam: 0.01}}"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The tiny systems are known here and nowhere else."""
    monkeypatch.setenv("UNIMODAL_PLUGINS", "tests.tokenizers.tiny_system")
    register(tiny_system.TinySystem)
    register(tiny_system.TinyClips)
    yield
    for family in ("tiny_system", "tiny_clips"):
        FAMILIES.pop(family, None)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twenty-four pictures of mixed sizes, one of them broken."""
    folder = tmp_path_factory.mktemp("photos")
    rng = random.Random(0)
    for number in range(24):
        height, width = rng.randint(24, 40), rng.randint(24, 40)
        across = torch.linspace(0, 1, width).expand(3, height, width)
        save_image((across + torch.rand(3, 1, 1)) / 2, folder / f"{number}.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:50])
    return folder


def train(tmp_path, photos, *settings, name="a", flags=()):
    """One short training at a constant learning rate."""
    fixed = [
        f"media={photos}", f"run={tmp_path}/{name}_run", f"out={tmp_path}/{name}", "family=tiny_system", "sizes=[16]",
        "batch_size=4", "loop.learning_rate=0.01", "loop.final_learning_rate=0.01", "loop.warmup_steps=0",
        "loop.log_every=1", "loop.evaluate_every=3", "loop.plot=false",
    ]  # fmt: skip
    names = {setting.partition("=")[0] for setting in settings}
    recipe("train_tokenizer", *[s for s in fixed if s.partition("=")[0] not in names], *settings, flags=flags)


def read_losses(tmp_path, name="a"):
    lines = (tmp_path / f"{name}_run" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds_per_step"} for line in lines]


@pytest.mark.sweep("recipes at work")
def test_mixed_sizes_train_and_an_interrupted_run_goes_on_the_same(tmp_path, photos, capsys):
    more = ("sizes=[16, [16, 24]]", "loop.accumulation=2", "loop.ema_decay=0.9", "workers=2", LOSSES)
    train(tmp_path, photos, *more, "loop.steps=6", name="whole")
    said, printed = reversed(capsys.readouterr())
    train(tmp_path, photos, *more, "loop.steps=3", name="parts")
    train(tmp_path, photos, *more, "loop.steps=6", name="parts")
    whole, parts = (read_losses(tmp_path, name) for name in ("whole", "parts"))
    assert whole == parts and whole[-1]["loss"] != whole[0]["loss"] and "judge" in whole[2] and "judge" not in whole[1]
    folders = [load_tokenizer(tmp_path / name) for name in ("whole", "parts")]
    assert folders[0].sha256 == folders[1].sha256
    # what was said on the way
    assert (
        re.search(r"left out \(1 so far\): .*broken\.png is .* damaged", said) and "1 files could not be used" in said
    )
    assert re.search(r"step 6/6: [\d.]+ dB \([+-][\d.]+\), \d+% of the codes used, 0\.0 min left for 0 steps", said)
    report = {name: float(value) for name, value in (line.split() for line in printed.splitlines())}
    assert set(report) == {"mean_squared_error", "psnr", "used_image", "perplexity_image"}
    sheets = sorted(path.name for path in (tmp_path / "whole_run" / "reconstructions").iterdir())
    assert sheets == ["0000003.png", "0000006.png", "last.png"]
    assert load_image(tmp_path / "whole_run" / "reconstructions" / "last.png").shape[1] >= 2 * 16
    record = json.loads((tmp_path / "whole" / "recipe.json").read_text())
    assert record["held_out"]["psnr"] == pytest.approx(report["psnr"], rel=1e-4) and len(record["left_out"]) == 1
    # another loss is another run
    with pytest.raises(SystemExit):
        train(tmp_path, photos, "loop.steps=8", *more[:-1], "losses={l1: 2}", name="parts")
    assert "losses.l1 1.0 → 2.0" in capsys.readouterr().err


def test_tuning_the_decoder_alone_keeps_every_code(tmp_path, photos, capsys):
    train(tmp_path, photos, "loop.steps=2", name="first")
    initial = ("family=null", f"initial={tmp_path}/first", "loop.steps=3")
    train(tmp_path, photos, *initial, "train=decoder", name="decoder")
    train(tmp_path, photos, *initial, name="all")
    first, decoder, whole = (load_tokenizer(tmp_path / name) for name in ("first", "decoder", "all"))
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(decoder.encode(x).ids, first.encode(x).ids)
    same = {n for n, w in first.state_dict().items() if torch.equal(w, decoder.state_dict()[n])}
    assert same == {n for n in first.state_dict() if n.startswith(("encoder", "quantizer"))}
    assert all(not torch.equal(w, whole.state_dict()[n]) for n, w in first.state_dict().items())
    capsys.readouterr()
    for settings, said in (
        ((*initial, "family=tiny_clips"), "is a tiny_system, and tiny_clips a tiny_clips"),
        ((*initial, "family=null", "losses={l1: 0, l2: 0, quantizer: 0}"), "at step 0 no loss reaches a weight"),
        ((*initial, "train=nothing"), "train 'nothing' leaves nothing to train; there are all, decoder, and the parts"),
        (("family=null", "initial=nowhere"), "nowhere is no tokenizer's folder; released weights are given as NAME="),
        ((*initial, "tokenizer.width=8"), "the initial tokenizer has its own settings"),
    ):
        with pytest.raises(SystemExit):
            train(tmp_path, photos, *settings, name="no")
        assert said in capsys.readouterr().err


@pytest.mark.sweep("recipes at work")
def test_a_file_is_tokenized_at_the_size_that_was_trained(tmp_path, photos, capsys):
    system = ("family=null", "system=llamagen-vq16", "small=true", "upscale=true", "loop.steps=1")
    train(tmp_path, photos, *system, "sizes=[40, 16]")
    trained = load_tokenizer(tmp_path / "a")
    assert trained.picture_size == (40, 40) and trained.tokens_per_item == 25
    initial = ("family=null", f"initial={tmp_path}/a", "upscale=true", "loop.steps=1")
    train(tmp_path, photos, *initial, "sizes=[16]", "train=decoder", name="tuned")
    assert load_tokenizer(tmp_path / "tuned").picture_size == (16, 16)
    capsys.readouterr()
    train(tmp_path, photos, *system, "sizes=[[16, 24]]", name="wide")
    assert "files will be tokenized at 32×32, the image_size, and not at 16×24" in capsys.readouterr().err


def test_stages_change_sizes_losses_and_what_is_trained(tmp_path, photos):
    stages = "stages=[{first_step: 2, sizes: [24], losses: {l2: 0.5, quantizer: 0}, train: [out], batch_size: 2}]"
    train(tmp_path, photos, stages, "loop.steps=2", name="staged")
    before = load_tokenizer(tmp_path / "staged").state_dict()
    train(tmp_path, photos, stages, "loop.steps=4", name="staged")
    lines = read_losses(tmp_path, "staged")
    assert "quantizer" in lines[1] and "quantizer" not in lines[2]
    assert lines[3]["loss"] == pytest.approx(0.5 * lines[3]["l2"], rel=1e-4)
    after = load_tokenizer(tmp_path / "staged").state_dict()
    assert {n.partition(".")[0] for n in after if not torch.equal(before[n], after[n])} == {"out"}


def test_pictures_first_and_then_films(tmp_path, photos):
    films = tmp_path / "films"
    films.mkdir()
    for number in range(6):
        save_video(torch.rand(9, 3, 20, 28), films / f"{number}.mp4", 8)
    stages = f"stages=[{{first_step: 2, media: {films}, medium: video}}]"
    # the first part is of pictures as clips of one frame
    pictures = f"stages=[{{first_step: 1, media: {photos}, medium: image}}, {{first_step: 3, media: {films}}}]"
    train(tmp_path, films, "family=tiny_clips", pictures, "loop.steps=4", "loop.evaluate_every=0", "batch_size=2")
    assert all(line["psnr"] > 0 for line in read_losses(tmp_path))
    clips = load_tokenizer(tmp_path / "a")
    assert clips.encode(torch.rand(1, 3, 4, 16, 16)).grid == (4, 2, 2)
    train(tmp_path, films, "family=tiny_clips", stages, "loop.steps=1", name="plan", flags=["--dry-run"])
    assert not (tmp_path / "plan").exists()


def test_mistakes_are_one_line(tmp_path, photos, capsys):
    def fails(*settings, media=photos):
        with pytest.raises(SystemExit) as stopped:
            train(tmp_path, media, "loop.steps=1", *settings)
        assert stopped.value.code == 2
        [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return line

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no picture files (.png, .jpg" in fails(media=empty)
    assert "fewer than 200×200; take smaller sizes, or set upscale" in fails("sizes=[200]")
    assert "tiny_system takes sides in steps of 8; got (1, 3, 12, 12)" in fails("sizes=[12]")
    assert "tiny_system takes pictures of any size; say which: sizes=[128]" in fails("sizes=[]")
    assert "sizes are [0]; give pixels" in fails("sizes=[0]") and "from 1 on" in fails("sizes=[[16, -8]]")
    assert "crop_scale is [0.9, 0.1]; give two shares" in fails("crop_scale=[0.9, 0.1]")
    assert "has no sound files but 25 picture files; name another folder" in fails("family=mel_fsq")
    assert "is a folder of files, which have no column 'speaker'; set it to folder" in fails("group=speaker")
    assert "is a file; name a folder for the tokenizer" in fails(f"out={photos}/0.png")
    assert "system llamagen-vq16 and family tiny_system are both given" in fails("system=llamagen-vq16")
    assert "name a system or family" in fails("family=null")
    assert "the loss spectral is of sounds, and this tokenizer is one of image" in fails("losses={spectral: 1}")
    assert "features 'x', and this tokenizer gives codes, decoder" in fails("losses={alignment: {feature: x}}")
    assert "a stage weighs perceptual by 1" in fails("stages=[{first_step: 1, losses: {perceptual: 1}}]")
    assert "stages begin at [5, 2]" in fails("stages=[{first_step: 5}, {first_step: 2}]")
    assert "the patch judge needs pictures of 32 pixels" in fails("losses={adversarial: 1}")
    assert "there is no published system 'dalle'" in fails("system=dalle", "family=null")
    assert not (tmp_path / "a").exists()


def test_codes_that_stand_for_features_are_trained_by_their_own_loss(tmp_path, photos, capsys):
    seed = ("family=null", "system=seed-2", "small=true", "sizes=[16]", "loop.steps=2")
    train(tmp_path, photos, *seed, name="seed")
    report = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert set(report) == {"used_image", "perplexity_image"}  # there are no pixels to compare
    tokenizer = load_tokenizer(tmp_path / "seed")
    assert tokenizer.decode_features(tokenizer.encode(torch.rand(1, 3, 16, 16))).shape == (1, 8)
    with pytest.raises(SystemExit):
        train(tmp_path, photos, *seed, "losses={l1: 1}", name="no")
    assert "seed is trained by a loss of its own; leave losses out" in capsys.readouterr().err


@pytest.mark.sweep("recipes at work")
def test_a_tokenizer_that_reads_captions_is_given_them_and_codes_a_file_with_one(tmp_path, photos, capsys):
    textok = ("family=null", "system=textok", "small=true", "upscale=true", "loop.steps=1", "sizes=[32]")
    with pytest.raises(SystemExit):
        train(tmp_path, photos, *textok)
    assert re.search(
        r"error: .* none to train on; .*\d\.png has no caption: write it to \d+\.txt", capsys.readouterr().err
    )
    said = tmp_path / "said"
    said.mkdir()
    for number in range(8):
        shutil.copy(photos / f"{number}.png", said)
        (said / f"{number}.json").write_text(json.dumps({"title": f"picture number {number}"}))
    with pytest.raises(SystemExit):
        train(tmp_path, said, *textok, "columns={text: title}", "text_network=nowhere")
    assert "the text model nowhere cannot be loaded" in capsys.readouterr().err
    train(tmp_path, said, *textok, "columns={text: title}")
    assert load_tokenizer(tmp_path / "a").text_settings.network == "words"
    codes = tmp_path / "codes.json"
    model = ("--model", tmp_path / "a")
    run_command("tokenize", said / "0.png", "--out", codes, *model, "--text", "picture number 0")
    run_command("detokenize", codes, "--out", tmp_path / "0.png", *model, "--condition", said / "0.png",
                fails="the decoder of titok reads no medium; give --text")  # fmt: skip
    pictures = []
    for text in ("picture number 0", "something else"):
        run_command("detokenize", codes, "--out", tmp_path / "0.png", *model, "--text", text)
        pictures.append(load_image(tmp_path / "0.png"))
    assert not torch.equal(*pictures)
    with pytest.raises(SystemExit):
        train(tmp_path, photos, "text_network=words", "loop.steps=1")
    assert "tiny_system reads no texts; leave text_network out" in capsys.readouterr().err


@pytest.mark.sweep("recipes at work")
def test_codes_are_perturbed_by_a_setting_of_the_recipe_and_decode_better_when_they_err(tmp_path, photos):
    """RobusTok's property: of two trainings, the one that saw near codes loses less by them."""
    losses = {}
    for name, setting in (("plain", "{l2: 1}"), ("robust", "{l2: 1, perturbation: {share: 1.0, near: 8}}")):
        train(tmp_path, photos, "loop.steps=60", "loop.evaluate_every=0", "tokenizer.codebook_size=64", "batch_size=8",
              f"losses={setting}", name=name)  # fmt: skip
        tokenizer, x = load_tokenizer(tmp_path / name), load_pictures(photos)
        given = Perturbation(PerturbationSettings(share=1.0, near=8))
        torch.manual_seed(0)
        with torch.no_grad():
            losses[name] = float((tokenizer.reconstruct_codes(x, None, None, given).decoded - x).square().mean())
    assert losses["robust"] < losses["plain"]
    with pytest.raises(SystemExit):
        latents = ("family=null", "system=titok-bl64-vae-c16", "small=true", "upscale=true", "sizes=[32]")
        train(tmp_path, photos, *latents, "loop.steps=1", "losses={perturbation: {near: 4}}", name="no")


def load_pictures(photos):
    return torch.stack([load_image(photos / f"{number}.png")[:, :24, :24].float() / 255 for number in range(8)])


def test_a_run_in_bfloat16_resumes_exactly_and_its_codes_are_those_of_float32(tmp_path, photos):
    more = ("loop.precision=bfloat16", "loop.ema_decay=0.9", "sizes=[16, [16, 24]]", "loop.evaluate_every=0", LOSSES)
    train(tmp_path, photos, *more, "loop.steps=10", name="whole")
    train(tmp_path, photos, *more, "loop.steps=5", name="parts")
    train(tmp_path, photos, *more, "loop.steps=10", name="parts")
    assert read_losses(tmp_path, "whole") == read_losses(tmp_path, "parts")
    whole, parts = (load_tokenizer(tmp_path / name) for name in ("whole", "parts"))
    assert whole.sha256 == parts.sha256 and all(p.dtype == torch.float32 for p in whole.parameters())


@pytest.mark.sweep("recipes at work")
@pytest.mark.study
@pytest.mark.timeout(600)
def test_two_processes_train_one_tokenizer_and_resume_exactly(tmp_path, photos, commands):
    """Each rank has batches of its own; one that accumulates two sees the same pictures in a step."""
    environment = {"UNIMODAL_PLUGINS": "tests.tokenizers.tiny_system"}
    fixed = [
        f"media={photos}", "family=tiny_system", "sizes=[16]", "batch_size=4", "loop.learning_rate=0.01",
        "loop.final_learning_rate=0.01", "loop.warmup_steps=0", "loop.log_every=1", "loop.evaluate_every=3",
        "loop.plot=false", "losses={l1: 1}",
    ]  # fmt: skip

    def run(name, steps):
        own = [f"run={tmp_path}/{name}_run", f"out={tmp_path}/{name}", f"loop.steps={steps}"]
        words = [word for setting in [*fixed, *own] for word in ("--set", setting)]
        torchrun(commands, str(ROOT / "recipes" / "train_tokenizer.py"), *words, environment=environment)

    run("whole", 6)
    run("parts", 3)
    run("parts", 6)
    assert read_losses(tmp_path, "whole") == read_losses(tmp_path, "parts")
    two, parts = (load_tokenizer(tmp_path / name) for name in ("whole", "parts"))
    assert two.sha256 == parts.sha256
    train(tmp_path, photos, "loop.accumulation=2", "loop.steps=6", "losses={l1: 1}", name="one")
    one, many = (read_losses(tmp_path, name) for name in ("one", "whole"))
    assert [line["l1"] for line in many] == pytest.approx([line["l1"] for line in one], rel=1e-3)


@pytest.mark.sweep("recipes at work")
def test_a_titok_first_predicts_a_teachers_codes_and_then_trains_its_decoder_on_pixels(tmp_path, photos, capsys):
    train(tmp_path, photos, "loop.steps=16", "sizes=[32]", "upscale=true", "loop.evaluate_every=0", name="teacher")
    stages = "stages=[{first_step: 16, train: decoder, losses: {imitation: 0, l2: 1, quantizer: 0}}]"
    losses = f"losses={{l2: 0, imitation: {{teacher: {tmp_path}/teacher}}}}"
    titok = ("family=null", "system=titok-b64", "small=true", "sizes=[32]", "upscale=true", "loop.evaluate_every=0")
    train(tmp_path, photos, *titok, losses, stages, "loop.steps=16", "tokenizer.mixed=false", name="titok")
    first = load_tokenizer(tmp_path / "titok").state_dict()
    train(tmp_path, photos, *titok, losses, stages, "loop.steps=24", "tokenizer.mixed=false", name="titok")
    lines = read_losses(tmp_path, "titok")
    assert lines[15]["imitation"] < 0.9 * lines[0]["imitation"] and "l2" not in lines[0]
    assert "imitation" not in lines[16] and lines[-1]["l2"] < lines[16]["l2"]
    last = load_tokenizer(tmp_path / "titok").state_dict()
    changed = {name.partition(".")[0] for name in last if not torch.equal(first[name], last[name])}
    assert changed == {"decoder", "head", "proxy_codes", "proxy_decoder"}
    capsys.readouterr()
    for more, said in (
        (("tokenizer.proxy.num_codes=16",), "has codes of 32, and this tokenizer predicts 16"),
        (("tokenizer.patch_size=16", "tokenizer.proxy.multipliers=[1, 1, 1, 2, 2]"), "codes, and this tokenizer pre"),
    ):
        with pytest.raises(SystemExit):
            train(tmp_path, photos, *titok, losses, "loop.steps=1", *more, name="no")
        assert said in capsys.readouterr().err


def test_a_decoder_of_motion_is_given_the_frame_before(tmp_path, capsys):
    films = tmp_path / "films"
    films.mkdir()
    for number in range(3):
        save_video(torch.rand(5, 3, 20, 28), films / f"{number}.mp4", 8)
    moto = ("family=null", "system=moto", "small=true", "loop.steps=1", "batch_size=2", "sizes=[16]")
    train(tmp_path, films, *moto)
    assert "psnr" in capsys.readouterr().out  # of the frames that are drawn
    codes, film, out = tmp_path / "codes.json", films / "0.mp4", tmp_path / "out.mp4"
    model = ("--model", tmp_path / "a")
    run_command("tokenize", film, "--out", codes, *model)
    run_command("detokenize", codes, "--out", out, *model, fails="the frame before; give --condition FILE")
    run_command("detokenize", codes, "--out", out, *model, "--text", "a", fails="the decoder of moto reads no text")
    run_command("detokenize", codes, "--out", out, *model, "--condition", film)
    run_command("tokenize", film, "--out", codes, *model, "--condition", film, fails="of moto reads nothing beside")


def run_command(*arguments, fails=None):
    """One command in this process; fails: a part of its message."""
    with pytest.raises(SystemExit if fails is None else ValueError, match=fails or "^0$"):
        app([str(argument) for argument in arguments])


def test_masks_are_learnt_by_the_loss_of_their_tokenizer_unless_others_are_asked_for(monkeypatch, tmp_path, capsys):
    """Cross-entropy and Dice; and what is held out is told by its overlap, too."""
    plugin = "unimodal.tokenizers.more_media.masks"
    MEDIA.pop("mask", None)  # another test may have imported the plugin, and taken its medium back or not
    sys.modules.pop(plugin, None)
    monkeypatch.setenv("UNIMODAL_PLUGINS", plugin)
    save_mask = importlib.import_module(plugin).save_mask
    for number in range(12):
        mask = torch.zeros(1, 16, 16)
        mask[0, number : number + 4, 2:9] = 1
        save_mask(mask, tmp_path / "masks" / f"{number}.pbm", None)
    settings = ["system=himtok", "small=true", "sizes=[]", "batch_size=4", "loop.steps=2", "loop.evaluate_every=2"]
    settings = [f"media={tmp_path}/masks", f"run={tmp_path}/run", f"out={tmp_path}/out", "loop.plot=false", *settings]
    recipe("train_tokenizer", *settings, flags=["--dry-run"])
    said = capsys.readouterr().out
    assert "cross_entropy" in said and "dice" in said and " l2 " not in said
    recipe("train_tokenizer", *settings, "losses={l2: 1}", flags=["--dry-run"])
    said = capsys.readouterr().out
    assert "dice" not in said and " l2 " in said
    recipe("train_tokenizer", *settings)
    assert 0 <= json.loads((tmp_path / "out" / "recipe.json").read_text())["held_out"]["iou"] <= 1


def test_the_overlap_of_masks_is_that_of_what_is_above_a_half():
    real, made = torch.zeros(1, 4, 4), torch.full((1, 4, 4), 0.4)
    assert measure_overlap(real, made) == 1  # both are empty
    real[0, :2], made[0, 1:3] = 1, 0.6
    assert measure_overlap(real, made) == 4 / 12
