"""recipes/finetune_lora.py through its real command line, on a tiny base and twelve pictures."""

import importlib.util
import json
import os
import re
import runpy
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unimodal.model.adapter import load_adapter, merge
from unimodal.model.base import load_base
from unimodal.pipeline import load
from unimodal.sequence.document import Image

ROOT = Path(__file__).resolve().parents[2]


def recipe(name, *settings, flags=()):
    """`python recipes/NAME.py --set …` in this process."""
    argv = [str(ROOT / "recipes" / f"{name}.py"), *flags]
    for setting in settings:
        argv += ["--set", setting]
    before, sys.argv = sys.argv, argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
    finally:
        sys.argv = before


#: a base in 4 bits where bitsandbytes is missing, or one of another kind where it is not
FEW_BITS = (
    ("lora.targets=[]", "no linear layer fits")
    if importlib.util.find_spec("bitsandbytes")
    else ("four_bit=true", "a base in 4 bits needs bitsandbytes; `pip install unimodal[quantized]`")
)


@pytest.fixture
def settings(tiny_base, media_folder, pictures, tmp_path):
    return [
        f"base={tiny_base}", f"media={media_folder}", f"out={tmp_path}/out", f"run={tmp_path}/run",
        f"corpus={{datasets: [{{path: {pictures}}}], codes: {tmp_path}/codes, length: 256, tokens_per_batch: 256, "
        "batches_per_window: 2, validation_share: 0.2}",
        "lora.rank=4", "loop.steps=6", "loop.warmup_steps=1", "loop.log_every=2", "loop.evaluate_every=3",
    ]  # fmt: skip


@pytest.mark.sweep("recipes at work")
def test_it_trains_saves_an_adapter_and_the_pipeline_reads_it(settings, tmp_path, pictures):
    recipe("finetune_lora", *settings)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"base.json", "adapter_config.json", "adapter_model.safetensors", "new_rows.safetensors", "vocabulary.json",
            "tokenizer.json", "chat_template.jinja", "image_tokenizer", "recipe.yaml"} <= names  # fmt: skip
    assert "model.safetensors" not in names
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "loss_text", "loss_image", "tokens_per_second", "grad_norm"} <= set(records[0])
    assert "validation_loss" in records[-1]
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    model = load(tmp_path / "out", device="cpu")
    [answer] = model.chat([Image(path=str(pictures.parent / "1.png")), "what is this?"], to="text", tokens=16)
    assert answer.modality == "text"
    assert model.generate("a red apple", to="image").media.shape == (3, 64, 64)


@pytest.mark.sweep("recipes at work")
def test_a_stopped_run_resumes_to_the_same_losses_and_weights(settings, tmp_path, monkeypatch, capsys):
    from unimodal.training.loop import Trainer

    def metrics():
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        timed = ("seconds_per_step", "tokens_per_second")
        return [{n: v for n, v in json.loads(line).items() if n not in timed} for line in lines]

    settings = [*settings, "loop.log_every=1"]
    recipe("finetune_lora", *settings)
    first, _ = load_adapter(tmp_path / "out")
    uninterrupted = metrics()
    for name in ("out", "run"):
        shutil.rmtree(tmp_path / name)

    def stopped(self, step=Trainer.train_step):
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(Trainer, "train_step", stopped)
        recipe("finetune_lora", *settings)
    assert stop.value.code == 130 and "stopped at step 4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and len(metrics()) == 4
    recipe("finetune_lora", *settings)
    assert "at step 4" in capsys.readouterr().err and metrics() == uninterrupted
    again, _ = load_adapter(tmp_path / "out")
    for (name, a), b in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("bits", "option", "stored", "rounding"), [(8, "eight_bit", torch.int8, 0.05), (4, "four_bit", torch.uint8, 0.5)]
)
def test_a_base_in_few_bits_trains_and_its_adapter_runs_on_both(
    settings, tiny_base, tmp_path, capsys, bits, option, stored, rounding
):
    pytest.importorskip("bitsandbytes")
    recipe("finetune_lora", *settings, f"{option}=true", "loop.learning_rate=0.01", "loop.steps=12")
    assert "MatMul8bitLt" not in capsys.readouterr().err
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["loss"] < records[0]["loss"]
    eight, vocabulary = load_adapter(tmp_path / "out", load_base(tiny_base, **{option: True}))
    assert eight.model.layers[0].mlp.up_proj.weight.dtype == stored
    full, _ = load_adapter(tmp_path / "out")
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        a, b = eight(ids).logits, full(ids).logits
    assert 0 < (a - b).abs().max() < rounding * b.abs().max()  # the rounding of the base, nothing else
    with pytest.raises(ValueError, match=f"in {bits} bits cannot be merged"):
        merge(eight)
    merged = merge(full)
    torch.testing.assert_close(merged(ids).logits, b, rtol=0, atol=1e-5)
    assert merged.config.vocab_size == vocabulary.size


def test_dry_run_says_what_would_be_done_and_writes_nothing(settings, tmp_path, capsys):
    recipe("finetune_lora", *settings, flags=["--dry-run"])
    out = capsys.readouterr().out
    for word in ("vocabulary:", "controls", "semantic (image)", "parameters:", "memory: about", "data: 0:data.jsonl",
                 "its first row: <|bos|><|user|>", "× image]<|image_end|>",
                 "one step: loss"):  # fmt: skip
        assert word in out, word
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("loop.stps=3", "did you mean 'steps'"),
        ("corpus.datasets.0.path=nowhere.jsonl", "nowhere.jsonl"),
        ("base=no/such/base", "no such folder, and not a hub id"),
        (
            "base=model_cards/smoll",
            "not a hub id of the form owner/name; did you mean model_cards/smol?",
        ),
        ("media=/", "has no vocabulary.json"),
        ("initialiser=omp", "needs a donor"),
        ("lora.targets=[q_prj]", "no linear layer q_prj"),
        FEW_BITS,
        ("attention=flash", "use auto, varlen, xformers, sdpa or eager"),
        (f"out={__file__}", "is a file; choose another"),
    ],
)
def test_mistakes_are_one_line_and_status_2(settings, capsys, change, message):
    with pytest.raises(SystemExit) as stop:
        recipe("finetune_lora", *settings, change)
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last


@pytest.mark.parametrize("name", ["base", "media", "run"])
def test_nothing_else_is_written_over(settings, capsys, name):
    [folder] = [setting.partition("=")[2] for setting in settings if setting.startswith(f"{name}=")]
    before = sorted(Path(folder).rglob("*"))
    with pytest.raises(SystemExit):
        recipe("finetune_lora", *settings, f"out={folder}/.")
    assert f"is also {name}, which would be written over; choose another" in capsys.readouterr().err
    assert sorted(Path(folder).rglob("*")) == before


def test_a_share_beside_documents_for_validation_and_columns_that_are_not_used_are_told(
    settings, pictures, tmp_path, capsys
):
    lines = [json.loads(line) | {"id": 1} for line in pictures.read_text().splitlines()[:4]]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    few = f"{{path: {tmp_path}/few.jsonl, media_root: {pictures.parent}}}"
    recipe("finetune_lora", *settings, f"corpus.validation=[{few}]", flags=["--dry-run"])
    err = capsys.readouterr().err
    assert "corpus.validation is given, so corpus.validation_share holds nothing out" in err
    assert err.count(f"not used of {tmp_path}/few.jsonl: id") == 1


@pytest.mark.sweep("recipes at work")
def test_a_row_with_a_missing_picture_or_an_unknown_role_names_its_line(settings, pictures, tmp_path, capsys):
    bad = tmp_path / "bad"
    shutil.copytree(pictures.parent, bad)
    lines = pictures.read_text().splitlines()
    lines[2] = lines[2].replace("1.png", "gone.png")
    lines[3] = lines[3].replace('"assistant"', '"robot"')
    (bad / "data.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(SystemExit) as stop:
        recipe("finetune_lora", *settings, f"corpus.datasets.0.path={bad}/data.jsonl")
    assert stop.value.code == 2 and "line 3" in capsys.readouterr().err
    recipe("finetune_lora", *settings, f"corpus.datasets.0.path={bad}/data.jsonl",
           "corpus.datasets.0.on_bad_row=skip", "loop.steps=1")  # fmt: skip
    err = capsys.readouterr().err
    assert "line 3" in err and "line 4" in err and "gone.png" in err


@pytest.mark.sweep("recipes at work")
@pytest.mark.parametrize("way", ["fail", "skip"])
def test_a_damaged_picture_is_met_before_the_first_step(settings, pictures, tmp_path, capsys, way):
    bad = tmp_path / "bad"
    shutil.copytree(pictures.parent, bad)
    data = (bad / "3.png").read_bytes()
    (bad / "3.png").write_bytes(data[: len(data) // 2])
    change = [f"corpus.datasets.0.path={bad}/data.jsonl", f"corpus.datasets.0.on_bad_row={way}", "loop.steps=1"]
    if way == "skip":
        recipe("finetune_lora", *settings, *change)
        err = capsys.readouterr().err
        assert err.count("skipped") == 2 and err.index("line 8") < err.index("encoded 11 media") < err.index("step 1/1")
    else:
        with pytest.raises(SystemExit) as stop:
            recipe("finetune_lora", *settings, *change)
        err = capsys.readouterr().err
        assert stop.value.code == 2 and "bad/data.jsonl line 7" in err.strip().splitlines()[-1] and "step" not in err


def test_bases_that_are_none(settings, tiny_base, tmp_path, capsys):
    half = tmp_path / "half"
    shutil.copytree(tiny_base, half)
    (half / "model.safetensors").write_bytes((tiny_base / "model.safetensors").read_bytes()[:1000])
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "base.json").write_text("{}")
    for base, message in ((half, "cannot be loaded"), (adapter, "is an adapter; merge it")):
        with pytest.raises(SystemExit) as stop:
            recipe("finetune_lora", *settings, f"base={base}")
        assert stop.value.code == 2 and message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("full", "message"),
    [("run", "MiB free and a checkpoint takes about"), ("out", "MiB free and the model takes about")],
)
def test_too_little_disk_is_told_before_the_first_step(settings, tmp_path, monkeypatch, capsys, full, message):
    usage = shutil.disk_usage("/")
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage._replace(free=1000 if path.name == full else usage.free)
    )
    with pytest.raises(SystemExit) as stop:
        recipe("finetune_lora", *settings)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and message in err and "step" not in err


@pytest.mark.parametrize("name", ["out", "run", "corpus.codes"])
def test_a_place_that_takes_no_file_is_told_before_anything_is_computed(settings, monkeypatch, capsys, name):
    from unimodal.tuning import save

    def full(dir):
        if calls.append(dir) or len(calls) == ["out", "run", "corpus.codes"].index(name) + 1:
            raise OSError(28, "No space left on device")
        return open(os.devnull, "wb")

    calls = []
    monkeypatch.setattr(save.tempfile, "TemporaryFile", full)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(os, "fsync", lambda _: None)
        recipe("finetune_lora", *settings)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith(f"error: {name}: ") and "No space left on device" in err


@pytest.mark.sweep("recipes at work")
def test_a_run_that_was_changed_says_what_and_restart_begins_anew(settings, tiny_base, pictures, tmp_path, capsys):
    """Whatever decides what is learnt: answers, pictures, base and settings; a path and the steps may change."""
    from transformers import LlamaForCausalLM

    data, base = tmp_path / "data", tmp_path / "base"
    shutil.copytree(pictures.parent, data)
    shutil.copytree(tiny_base, base)
    mine = [*settings, "loop.steps=2", f"corpus.datasets.0.path={data}/data.jsonl", f"base={base}"]
    recipe("finetune_lora", *mine)
    weights = (tmp_path / "run" / "last.pt").read_bytes()
    rows = (data / "data.jsonl").read_text()
    other = LlamaForCausalLM.from_pretrained(base)
    torch.manual_seed(9)
    torch.nn.init.normal_(other.model.layers[1].mlp.up_proj.weight, std=0.02)
    other.save_pretrained(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (base / name).is_file():
            shutil.copy(base / name, tmp_path / "other" / name)
    capsys.readouterr()
    for change, said in [
        (["lora.alpha=16"], "lora.alpha null → 16.0"),
        (["loop.learning_rate=0.002", "lora.dropout=0.1"], "lora.dropout 0.0 → 0.1; loop.learning_rate 0.001 → 0.002"),
        ([f"base={tmp_path}/other"], "base weights "),
        (["answers"], "data 0:data.jsonl 19 documents, "),
        (["picture"], "data 0:data.jsonl 19 documents, "),
    ]:
        if change == ["answers"]:
            (data / "data.jsonl").write_text(rows.replace("a red apple", "a red pear"))
        elif change == ["picture"]:
            shutil.copy(data / "9.png", data / "1.png")
        with pytest.raises(SystemExit) as stop:
            recipe("finetune_lora", *mine, *(word for word in change if "=" in word))
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert stop.value.code == 2 and said in last and " → " in last and "--restart" in last, last
        (data / "data.jsonl").write_text(rows)
        assert (tmp_path / "run" / "last.pt").read_bytes() == weights

    moved = tmp_path / "moved"
    shutil.copytree(pictures.parent, moved)
    goes_on = [*mine, "loop.log_every=1", f"corpus.datasets.0.path={moved}/data.jsonl"]
    recipe("finetune_lora", *goes_on)
    assert "already finished: " in capsys.readouterr().err
    recipe("finetune_lora", *goes_on, "loop.steps=3")
    err = capsys.readouterr().err
    assert "resumed" in err and "at step 2" in err and "step 3/3" in err
    recipe("finetune_lora", *goes_on, "lora.alpha=16", flags=["--dry-run"])
    assert "would not resume: " in (said := capsys.readouterr().out) and "lora.alpha null → 16.0" in said, said
    recipe("finetune_lora", *goes_on, "lora.alpha=16", flags=["--restart"])
    err = capsys.readouterr().err
    earlier = tmp_path / "run" / "earlier-1"
    assert f"moved the earlier run to {earlier}" in err and "step 1/2" in err
    assert {"last.pt", "run.json", "metrics.jsonl"} <= {path.name for path in earlier.iterdir()}


@pytest.mark.sweep("recipes at work")
def test_a_new_run_begins_from_a_finished_adapter_and_is_known_by_it(settings, tmp_path, capsys):
    """The first loss is that of the adapter, other data are no matter, and other weights there are no way to go on."""
    first = tmp_path / "out"
    recipe("finetune_lora", *settings)
    capsys.readouterr()
    more = [*settings, f"initial={first}", f"out={tmp_path}/more", f"run={tmp_path}/run2", "corpus.length=128",
            "loop.learning_rate=1e-9", "loop.final_learning_rate=0", "loop.log_every=1"]  # fmt: skip
    recipe("finetune_lora", *more)
    assert f"begins from {first}: " in capsys.readouterr().err
    for name in ("new_rows.safetensors", "adapter_model.safetensors"):
        before, after = (load_file(folder / name) for folder in (first, tmp_path / "more"))
        assert before.keys() == after.keys()
        for key in before:
            torch.testing.assert_close(after[key], before[key], rtol=1e-4, atol=1e-6)
    with pytest.raises(SystemExit):
        recipe("finetune_lora", *more, f"out={first}")
    assert "out: " in (said := capsys.readouterr().err) and "is also initial" in said
    shutil.copytree(first, tmp_path / "again")  # the same weights may lie elsewhere, others may not
    recipe("finetune_lora", *more, f"initial={tmp_path}/again")
    assert "already finished" in capsys.readouterr().err
    rows = load_file(first / "new_rows.safetensors")
    save_file({name: table + 1 for name, table in rows.items()}, tmp_path / "again" / "new_rows.safetensors")
    with pytest.raises(SystemExit):
        recipe("finetune_lora", *more, f"initial={tmp_path}/again", "loop.steps=9")
    assert "initial/new_rows.safetensors" in (said := capsys.readouterr().err) and "--restart" in said


@pytest.mark.sweep("recipes at work")
def test_a_half_written_checkpoint_is_named(settings, tmp_path, capsys):
    recipe("finetune_lora", *settings)
    data = (tmp_path / "run" / "last.pt").read_bytes()
    (tmp_path / "run" / "last.pt").write_bytes(data[: len(data) // 3])
    with pytest.raises(SystemExit):
        recipe("finetune_lora", *settings)
    assert "last.pt cannot be read" in capsys.readouterr().err


def test_a_share_that_holds_out_nothing_is_told(settings, pictures, tmp_path, capsys):
    """The shipped settings on three rows: they train, and it is said that nothing is validated."""
    (tmp_path / "few.jsonl").write_text("".join(f"{line}\n" for line in pictures.read_text().splitlines()[:3]))
    few = [f"corpus.datasets.0.path={tmp_path}/few.jsonl", f"corpus.datasets.0.media_root={pictures.parent}"]
    recipe("finetune_lora", *settings, *few, "corpus.validation_share=0.02", "loop.steps=1", "loop.patience=5")
    err = capsys.readouterr().err
    assert "nothing of few.jsonl is held out: validation_share 0.02 of 3 documents is none; give at least 0.334" in err
    assert "nothing is held out: evaluate_every and patience do nothing" in err
    for change, message in [
        (["corpus.validation_share=0"], "there is nothing to validate on; set corpus.validation_share"),
        (["loop.evaluate_every=0", "loop.patience=5"], "set evaluate_every"),
    ]:
        with pytest.raises(SystemExit):
            recipe("finetune_lora", *settings, *few, *change)
        assert message in capsys.readouterr().err


@pytest.mark.sweep("recipes at work")
def test_epochs_in_place_of_steps(settings, tmp_path, capsys):
    by_epochs = [*(setting for setting in settings if "loop.steps" not in setting), "loop.epochs=2"]
    recipe("finetune_lora", *by_epochs)
    said = re.search(r"2 epochs of 19 documents are (\d+) steps", capsys.readouterr().err)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert said and records[-1]["step"] == int(said[1])
    with pytest.raises(SystemExit):
        recipe("finetune_lora", *by_epochs, "loop.steps=3")
    assert "exclude each other" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        recipe("finetune_lora", *settings)
    assert "order of the documents epochs → steps" in capsys.readouterr().err


@pytest.mark.sweep("recipes at work")
def test_media_are_encoded_while_training_and_nothing_is_kept(settings, tmp_path, monkeypatch, capsys):
    """The losses are those of a run that encoded first."""
    from unimodal.coder.media_coder import MediaCoder

    def losses():
        return [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]

    recipe("finetune_lora", *settings)
    first = losses()
    shutil.rmtree(tmp_path / "codes")
    opened = []
    read = MediaCoder.read_part
    monkeypatch.setattr(
        MediaCoder, "read_part", lambda self, part, *rest: opened.append(part.path) or read(self, part, *rest)
    )
    recipe("finetune_lora", *settings, "corpus.streaming=true", flags=["--restart"])
    assert losses() == first and len(opened) > len(set(opened)) > 1
    assert not (tmp_path / "codes").exists() and "encoded 0 media" in capsys.readouterr().err


@pytest.mark.sweep("recipes at work")
def test_the_tuned_model_is_pushed_whole(settings, tmp_path, monkeypatch, capsys):
    sent = {}

    class Api:
        def __init__(self, token, **_):
            sent["token"] = token

        def create_repo(self, repo, private, exist_ok):
            sent["private"] = private
            return f"address of {repo}"

        def repo_info(self, repo):
            return type("Info", (), {"private": True})

        def upload_folder(self, repo_id, folder_path, **_):
            sent["files"] = {path.name for path in Path(folder_path).iterdir()}

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    said = ["push.license=apache-2.0", "push.data=Pictures of one colour."]
    for token, words, message in (
        (None, ["push.repo=me/it", *said], "wants a token"),
        ("hf_x", ["push.repo=it", *said], "not of the form owner/name"),
        ("hf_x", ["push.repo=me/it", "push.license=other", said[1]], "push.license is 'other', which says nothing"),
        ("hf_x", ["push.repo=me/it", *said[:1]], "say what the model was trained on"),
    ):
        monkeypatch.setattr(huggingface_hub, "get_token", lambda token=token: token)
        with pytest.raises(SystemExit):
            recipe("finetune_lora", *settings, *words)
        err = capsys.readouterr().err
        assert message in err and "step" not in err and not sent
    recipe("finetune_lora", *settings, "loop.steps=1", "push.repo=me/it", "push.private=true", *said)
    assert "pushed to address of me/it" in capsys.readouterr().err
    assert {"model.safetensors", "config.json", "vocabulary.json", "README.md"} <= sent["files"]
    assert "base.json" not in sent["files"] and sent["private"] is True
    assert (tmp_path / "out" / "base.json").is_file()


def test_codes_with_a_name_begin_as_their_words(tiny_base, media_folder, tmp_path):
    from unimodal.model.base import load_base
    from unimodal.model.build import build_model
    from unimodal.model.rows import get_new_rows
    from unimodal.tuning.rows import read_row_words
    from unimodal.tuning.vocabulary import make_joint_template, open_media

    base = load_base(tiny_base)
    template = make_joint_template(base, open_media(media_folder))
    block = template.vocabulary.blocks[0]
    words = ["apple", "pear"] * (block.size // 2)
    path = tmp_path / "words.json"
    path.write_text(json.dumps({block.label: words}))
    named = read_row_words(path, template)
    assert sorted(named) == list(block.rows)
    table = base.model.get_input_embeddings().weight.detach().clone()
    num_base = base.num_rows
    model = build_model(base, template.vocabulary, words=named)
    rows = get_new_rows(model)["input"].detach()[block.start - num_base :][: block.size]
    for code in (0, 1):
        meant = table[named[block.start + code]].mean(0)
        other = table[named[block.start + 1 - code]].mean(0)
        assert float((rows[code] - meant).norm()) < float((rows[code] - other).norm())

    for wrong, message in (({"nothing": []}, "the vocabulary has"), ({block.label: ["apple"]}, "needs a list of")):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message):
            read_row_words(path, template)


@pytest.mark.sweep("recipes at work")
def test_the_released_folder_is_small_and_answers_alike(settings, tmp_path, pictures):
    """recipes/assemble_smol.py: half-precision LoRA, rows in 8 bits, and the record of what was trained."""
    recipe("finetune_lora", *settings)
    recipe(
        "assemble_smol", f"model={tmp_path}/out", f"run={tmp_path}/run", f"corpus={tmp_path}", f"out={tmp_path}/card"
    )
    sizes = {
        folder: sum(
            (tmp_path / folder / f"{name}.safetensors").stat().st_size for name in ("adapter_model", "new_rows")
        )
        for folder in ("out", "card")
    }
    assert sizes["card"] < 0.55 * sizes["out"]
    training = json.loads((tmp_path / "card" / "training.json").read_text())
    assert training["steps"] == 6 and training["tokens"] > 0 and training["hours"] >= 0
    recipe("assemble_smol", f"model={tmp_path}/out", f"run={tmp_path}/run", f"corpus={tmp_path}",
           f"earlier=[{tmp_path}/run]", f"out={tmp_path}/second")  # fmt: skip
    both = json.loads((tmp_path / "second" / "training.json").read_text())
    assert both["steps"] == 12 and both["parts"] == [6, 6] and abs(both["tokens"] - 2 * training["tokens"]) <= 1
    tuned, stored = (load_adapter(tmp_path / folder)[0] for folder in ("out", "card"))
    ids = torch.tensor([[5, 9, 12, 30]])
    with torch.no_grad():
        torch.testing.assert_close(stored(ids).logits, tuned(ids).logits, rtol=0.02, atol=0.02)
    model = load(tmp_path / "card", device="cpu")
    assert model.sampling["image"].top_k == 50
    [answer] = model.chat([Image(path=str(pictures.parent / "1.png")), "what is this?"], to="text", tokens=16)
    assert answer.modality == "text"
    with pytest.raises(SystemExit):
        recipe("assemble_smol", f"model={tmp_path}/out", f"run={tmp_path}/run", f"out={tmp_path}/card", "most_mib=0")
