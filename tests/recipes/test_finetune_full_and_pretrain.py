"""recipes/finetune_full.py and recipes/pretrain.py through their command lines, alone and under torchrun."""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest

from tests.campaigns import is_study
from tests.free_ports import free_ports
from unimodal.pipeline import load

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


def corpus(pictures, folder):
    return (
        f"corpus={{datasets: [{{path: {pictures}}}], codes: {folder}/codes, length: 256, tokens_per_batch: 256, "
        "batches_per_window: 2, condition_dropout: 0}"
    )


def full(tiny_base, media_folder, pictures, tmp_path):
    return [
        f"base={tiny_base}", f"media={media_folder}", f"out={tmp_path}/out", f"run={tmp_path}/run",
        corpus(pictures, tmp_path), "loop.steps=4", "loop.warmup_steps=1", "loop.log_every=1",
        "loop.activation_checkpointing=true", "loop.checkpoint_every_s=1000",
    ]  # fmt: skip


def losses(folder):
    """Of text, at every step."""
    return [json.loads(line)["loss_text"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_full_tuning_gives_a_stock_model(tiny_base, media_folder, pictures, tmp_path):
    from transformers import AutoModelForCausalLM

    recipe("finetune_full", *full(tiny_base, media_folder, pictures, tmp_path))
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    model = load(tmp_path / "out", device="cpu")
    assert stock.config.vocab_size == model.vocabulary.size
    assert model.generate("a red apple", to="image").media.shape == (3, 64, 64)


def torchrun(commands, *words, environment=None):
    """Two ranks of a recipe on this machine: torchrun in a study, else the processes that torchrun begins."""
    [port] = free_ports(1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(environment or {})}
    if is_study():
        ranks = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
        begun = [commands.begin([sys.executable, *ranks, *words], env=environment)]
    else:
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        begun = [
            commands.begin([sys.executable, *words], env={**environment, "RANK": rank, "LOCAL_RANK": rank})
            for rank in ("0", "1")
        ]
    for process in begun:
        _, errors = process.communicate(timeout=250)
        assert process.returncode == 0, errors[-3000:]


@pytest.mark.sweep("recipes at work")
@pytest.mark.study
@pytest.mark.timeout(300)
def test_the_same_script_runs_under_torchrun(commands, tiny_base, media_folder, pictures, tmp_path):
    """Two ranks with one batch each against one rank that takes two batches a step, drawn from the same documents.

    With token selection and Muon, which need a model of the start and whole matrices. That equal batches give equal
    weights is tested in tests/training/test_distributed.py.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    both = ["loss.keep_share=0.6", "loop.optimizer=muon"]
    recipe("finetune_full", *full(tiny_base, media_folder, pictures, one), *both, "loop.accumulation=2")
    settings = [word for s in [*full(tiny_base, media_folder, pictures, two), *both] for word in ("--set", s)]
    torchrun(commands, str(ROOT / "recipes" / "finetune_full.py"), *settings)
    assert load(two / "out", device="cpu").vocabulary.size == load(one / "out", device="cpu").vocabulary.size
    first_one, first_two = losses(one / "run")[0], losses(two / "run")[0]  # before any step
    assert first_one == pytest.approx(first_two, rel=0.02)
    assert losses(two / "run")[-1] < first_two


def test_pretraining_starts_from_nothing(media_folder, pictures, tmp_path, capsys):
    settings = [
        f"text={media_folder}", f"media={media_folder}", f"out={tmp_path}/out", f"run={tmp_path}/run",
        corpus(pictures, tmp_path), "decoder.hidden_size=32", "decoder.num_layers=2", "decoder.num_heads=2",
        "decoder.num_kv_heads=2", "decoder.intermediate_size=48", "loop.steps=3", "loop.warmup_steps=1",
        "loop.log_every=1", "loop.optimizer=muon",
    ]  # fmt: skip
    recipe("pretrain", *settings, flags=["--dry-run"])
    assert "one step: loss" in capsys.readouterr().out and list(tmp_path.iterdir()) == []
    recipe("pretrain", *settings)
    model = load(tmp_path / "out", device="cpu")
    assert type(model.decoder).__name__ == "LlamaForCausalLM"
    assert (tmp_path / "run" / "tokenizers" / "vocabulary.json").is_file()


def test_token_shards_of_the_same_tokenizers_are_a_dataset(media_folder, pictures, tmp_path):
    """Pre-tokenized and on the fly give the same documents."""
    from unimodal.corpus.corpus import Corpus, CorpusConfig
    from unimodal.data.datasets import DatasetConfig, open_dataset
    from unimodal.data.token_shards import write_token_shards
    from unimodal.data.tokenized import collect_hashes
    from unimodal.text.tokenizer import TextTokenizer
    from unimodal.tuning.vocabulary import make_template, open_media

    text, media = TextTokenizer.load(media_folder), open_media(media_folder)
    template = make_template(text, text.size, media)
    direct = Corpus(
        CorpusConfig(datasets=[DatasetConfig(path=str(pictures))], condition_dropout=0), template, media, False
    )
    [documents] = direct.sets.values()
    num = len(open_dataset(DatasetConfig(path=str(pictures))))
    write_token_shards(
        tmp_path / "shards", documents.__getitem__, num, template.vocabulary.size,
        collect_hashes(template.vocabulary), documents_per_shard=10,
    )  # fmt: skip
    shards = Corpus(CorpusConfig(datasets=[DatasetConfig(path=str(tmp_path / "shards"))]), template, None)
    [stored] = shards.sets.values()
    assert len(stored) == num
    assert all((stored[i].ids == documents[i].ids).all() for i in range(num))


def test_a_moved_base_learns_from_the_base_that_it_was(tiny_base, tmp_path, capsys):
    """The commands of docs/text.md: plain text, a teacher with another tokenizer, and the same bytes measured."""
    from unimodal.cli.app import main

    lines = [f"der alte Kern {number} liest eine Datei" for number in range(400)]
    (tmp_path / "text.txt").write_text("".join(f"{line}\n" for line in lines))

    def command(*words):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        assert not ended.value.code, capsys.readouterr().err

    command("text", "train", tmp_path / "text.txt", "--kind", "bpe", "--size", 310, "--out", tmp_path / "words")
    command("text", "transplant", tiny_base, "--tokenizer", tmp_path / "words", "--out", tmp_path / "moved")
    settings = [
        f"base={tmp_path}/moved", f"objective.distillation.teacher={tiny_base}", "loop.steps=30", "loop.warmup_steps=2",
        f"corpus.datasets=[{{path: {tmp_path}/text.txt}}]", f"corpus.codes={tmp_path}/codes", "corpus.length=500",
        "loop.learning_rate=1e-2", "loop.log_every=1", "loop.plot=false", f"out={tmp_path}/out", f"run={tmp_path}/run",
    ]  # fmt: skip
    config = str(ROOT / "recipes" / "configs" / "distil_transplant.yaml")
    recipe("finetune_full", *settings, flags=[config])
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["teacher_likelihood"] < metrics[0]["teacher_likelihood"]
    plain = [*settings[:1], *settings[2:], "objective=next_token", f"out={tmp_path}/plain", f"run={tmp_path}/run2"]
    recipe("finetune_full", *plain, flags=[config])
    command(
        "text", "cost", tiny_base, tmp_path / "moved", tmp_path / "plain", "--data", tmp_path / "text.txt", "--json",
        tmp_path / "cost.json",
    )  # fmt: skip
    costs = [cost["bits_per_byte"] for cost in json.loads((tmp_path / "cost.json").read_text()).values()]
    assert costs[2] < costs[1]
