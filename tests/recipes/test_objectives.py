"""Objectives through the command line of the tuning recipes, on a tiny model of ours."""

import json
import shutil

import pytest
import torch

from tests.recipes.test_finetune_lora import recipe
from unimodal.model.adapter import load_adapter
from unimodal.pipeline import load


@pytest.fixture(scope="module")
def preferences(pictures, tmp_path_factory):
    """Pictures that are preferred, and words that are: pairs, the same as answers with labels, and plain answers."""
    folder = tmp_path_factory.mktemp("preferences")
    pairs, labels, answers = [], [], []
    for number in range(12):
        parts = [
            [{"type": "image", "path": str(pictures.parent / f"{other}.png")}] for other in (number, (number + 5) % 12)
        ]
        for asked, sides in (("draw a red apple.", parts), ("what is this?", ["a red apple", f"a blue car {number}"])):
            right, wrong = ([{"role": "assistant", "content": side}] for side in sides)
            pairs.append({"prompt": [{"role": "user", "content": asked}], "chosen": right, "rejected": wrong})
            for side, label in ((right, True), (wrong, False)):
                labels.append({"prompt": pairs[-1]["prompt"], "completion": side, "label": label})
            answers.append({"messages": [*pairs[-1]["prompt"], *right]})
    questions = [{"prompt": row["prompt"]} for row in pairs]
    for name, rows in (("pairs", pairs), ("labels", labels), ("answers", answers), ("questions", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def settings(media_folder, preferences, pictures, tmp_path):
    def make(rows, out="out", run="run"):
        return [
            f"base={media_folder}", f"media={media_folder}", f"out={tmp_path}/{out}", f"run={tmp_path}/{run}",
            f"corpus={{datasets: [{{path: {preferences}/{rows}.jsonl, media_root: {pictures.parent}}}], "
            f"codes: {tmp_path}/codes, length: 256, "
            "tokens_per_batch: 256, batches_per_window: 2, validation_share: 0.2}",
            "lora.rank=4", "loop.steps=6", "loop.warmup_steps=1", "loop.log_every=1", "loop.evaluate_every=3",
        ]  # fmt: skip

    return make


def prefer_low_codes(attempts, context, scale=1.0):
    """A reward of one's own: the share of a picture's codes that lie in the first half of the codebook."""
    size = context.template.vocabulary.blocks[0].size
    media = [attempt.medium for attempt in attempts]
    return [0.0 if one is None else scale * float((one.codes < size // 2).mean()) for one in media]


def give_nothing(attempts, context):
    return [float("nan")] * len(attempts)


def read_metrics(folder):
    timed = ("seconds_per_step", "tokens_per_second")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in timed} for line in lines]


@pytest.mark.sweep("recipes at work")
@pytest.mark.parametrize(("name", "rows"), [("preference", "pairs"), ("kto", "labels")])
def test_it_learns_what_is_preferred_and_a_stopped_run_goes_on_alike(settings, tmp_path, name, rows, monkeypatch):
    asked = [*settings(rows), f"objective={name}", "loop.learning_rate=0.02", "loop.steps=16", "loop.evaluate_every=8"]
    recipe("finetune_lora", *asked, flags=["--dry-run"])
    recipe("finetune_lora", *asked)
    whole = read_metrics(tmp_path / "run")
    assert {"reward_chosen", "reward_rejected", "loss_text", "loss_image"} <= set(whole[0])
    assert {"validation_loss", "validation_reward_chosen"} <= set(whole[-1])
    margins = [record["reward_chosen"] - record["reward_rejected"] for record in whole]
    assert sum(margins[8:]) > 0 == margins[0]
    first, _ = load_adapter(tmp_path / "out")
    for folder in ("out", "run"):
        shutil.rmtree(tmp_path / folder)

    stop_at(3, monkeypatch, *asked)
    recipe("finetune_lora", *asked)
    assert read_metrics(tmp_path / "run") == whole
    again, _ = load_adapter(tmp_path / "out")
    for (parameter, a), b in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), parameter


GRPO = [
    "objective.grpo={group: 4, questions: 2, max_tokens: 70, medium: image, rewards: "
    "{tests.recipes.test_objectives:prefer_low_codes: {scale: 2.0}}}",
    "loop.evaluate_every=0", "loop.steps=4", "loop.learning_rate=0.01",
]  # fmt: skip


def stop_at(step, monkeypatch, *asked):
    """A run that is stopped by a signal at a step."""
    import os
    import signal

    from unimodal.training.loop import Trainer

    def stopped(self, train_step=Trainer.train_step):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Trainer, "train_step", stopped)
        recipe("finetune_lora", *asked)


@pytest.mark.sweep("recipes at work")
@pytest.mark.parametrize("repeats", [1, 2])
def test_it_learns_from_answers_of_its_own_and_a_stopped_run_writes_the_same(settings, tmp_path, monkeypatch, repeats):
    asked = [*settings("questions"), *GRPO, f"objective.grpo.repeats={repeats}"]
    recipe("finetune_lora", *asked)
    whole = read_metrics(tmp_path / "run")
    assert {"reward", "distinct", "divergence"} <= set(whole[0]) and 0 <= whole[0]["reward"] <= 2
    for folder in ("out", "run"):
        shutil.rmtree(tmp_path / folder)
    stop_at(2, monkeypatch, *asked)
    recipe("finetune_lora", *asked)
    assert read_metrics(tmp_path / "run") == whole


@pytest.mark.sweep("recipes at work")
@pytest.mark.parametrize(
    ("objective", "decoder"),
    [("masked_codes={share: 0.8}", "masked"), ("next_x={unit: whole}", "next-x"), ("any_order={}", "any-order"),
     ("parallel_copies={}", "next-x"), ("token_unify={}", "masked")],
)  # fmt: skip
def test_codes_in_spans_are_learnt_and_a_stopped_run_hides_the_same(
    settings, tmp_path, monkeypatch, objective, decoder
):
    asked = [*settings("answers"), f"objective.{objective}", "loop.learning_rate=0.005", "objective.shares_every=1"]
    recipe("finetune_lora", *asked, flags=["--dry-run"])
    recipe("finetune_lora", *asked)
    whole = read_metrics(tmp_path / "run")
    assert {"loss_text", "loss_image"} <= set(whole[0]) and "validation_loss" in whole[-1]
    shares = [sum(value for name, value in line.items() if name.startswith("share_")) for line in whole]
    assert shares == pytest.approx([1.0] * len(whole)) or not objective.startswith("parallel_copies")
    model = load(tmp_path / "out", device="cpu")
    assert model.processor.writing.decoder == decoder and model.processor.writing.objective in objective
    model.generate("a red apple", "image", seed=1)
    assert [one.name for one in model._fast_decoders.values()] == [decoder]
    for folder in ("out", "run"):
        shutil.rmtree(tmp_path / folder)
    stop_at(3, monkeypatch, *asked)
    recipe("finetune_lora", *asked)
    assert read_metrics(tmp_path / "run") == whole


@pytest.mark.sweep("recipes at work")
def test_the_whole_model_learns_a_preference(settings, tmp_path):
    asked = [setting for setting in settings("pairs") if not setting.startswith("lora.")]
    recipe("finetune_full", *asked, "objective.preference.kind=ipo")
    assert read_metrics(tmp_path / "run")[-1]["reward_accuracy"] >= 0


def test_next_token_by_its_name_is_the_default(settings, tmp_path):
    recipe("finetune_lora", *settings("answers"))
    recipe("finetune_lora", *settings("answers", "out2", "run2"), "objective=next_token")
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "run2")


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("rows", "change", "message"),
    [
        ("pairs", "objective=prefrence", "'objective.prefrence'; did you mean 'preference'"),
        ("pairs", "objective.preference.bta=1", "did you mean 'beta'"),
        ("pairs", "objective.preference.beta=0", "objective.preference.beta=0"),
        ("pairs", "objective={preference: {}, kto: {}}", "preference and kto exclude each other"),
        ("answers", "objective={masked_codes: {}, kto: {}}", "kto and masked_codes exclude each other"),
        ("answers", "objective.masked_codes.mask_id=99999", "mask_id is 99999; it is one of the"),
        ("pairs", "objective.preference={kind: ipo, label_smoothing: 0.1}", "goes with kind sigmoid"),
        ("answers", "objective=preference", "answers.jsonl line 1: the row has no pair of answers"),
        ("answers", "objective=kto", "answers.jsonl line 1: the row has no label"),
        ("pairs", "loop.steps=6", "'chosen' is of a preference dataset"),
        ("pairs", ["loss.keep_share=0.5", "objective=preference"], "leave one of them out"),
        ("answers", "objective=grpo", "objective.grpo.rewards"),
        ("answers", "objective.grpo.rewards={capton: {}}", "the reward 'capton' is unknown; use caption"),
        ("answers", "objective.grpo.rewards={caption: {wish: draw}}", "rewards.caption.wish: wish is"),
        ("answers", "objective.grpo.rewards={no.such:thing: {}}", "'no.such:thing' cannot be imported"),
        ("answers", "objective.grpo={rewards: {caption: {}}, weights: {ctc: 1}}", "weights names 'ctc'"),
        ("questions", ["objective.grpo={max_tokens: 70, rewards: {similarity: {}}}", "loop.evaluate_every=0"],
         "set objective.grpo.medium"),
        ("questions", ["objective.grpo={medium: image, max_tokens: 70, rewards: {similarity: {}}}",
                       "loop.evaluate_every=0"],
         "compares with the row's own answer, and this row has none"),
        ("answers", "objective.grpo={max_tokens: 250, rewards: {similarity: {}}}", "leave no room"),
        ("answers", f"objective.grpo={{max_tokens: 70, rewards: {{{__name__}:give_nothing: {{}}}}}}", "gave nan (f"),
        ("answers", "objective.grpo={max_tokens: 70, rewards: {ctc: {}}}", "has no `reading`"),
        ("answers", ["loop.steps=0", "loop.epochs=1", "objective.grpo.rewards={similarity: {}}"], "give loop.steps"),
        ("questions", "objective.grpo={medium: image, max_tokens: 70, rewards: {caption: {}}}",
         "no document for validation has an answer to score"),
        ("labels", "objective.unlearning.reinforced=nowhere", "nowhere has no vocabulary.json"),
        ("labels", "objective.unlearning.strength=1", "reinforced is not set"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_mistakes_are_one_line_and_status_2(settings, tmp_path, capsys, rows, change, message):
    changes = change if isinstance(change, list) else [change]
    with pytest.raises(SystemExit) as stop:
        recipe("finetune_lora", *settings(rows), *changes)
    check_refused(stop, capsys, message, tmp_path)


def test_a_run_does_not_go_on_where_an_answer_is_called_otherwise(settings, preferences, tmp_path, capsys):
    asked = [*settings("labels"), "objective=kto", "loop.steps=1", "corpus.validation_share=0"]
    asked = [one for one in asked if not one.startswith("loop.evaluate_every")]
    recipe("finetune_lora", *asked)
    rows = [json.loads(line) for line in (preferences / "labels.jsonl").read_text().splitlines()]
    rows[3]["label"] = not rows[3]["label"]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit) as stop:
        recipe("finetune_lora", *asked, "loop.steps=2", f"corpus.datasets.0.path={tmp_path}/labels.jsonl")
    assert stop.value.code == 2 and "holds a run of something else: data 0:labels.jsonl" in capsys.readouterr().err


def check_refused(stop, capsys, message, tmp_path):
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not (tmp_path / "out").exists()


def test_a_model_from_nothing_has_nothing_to_compare_with(settings, tmp_path, capsys):
    asked = [s.replace("base=", "text=") for s in settings("pairs") if not s.startswith("lora.")]
    with pytest.raises(SystemExit) as stop:
        recipe("pretrain", *asked, "objective=preference")
    check_refused(stop, capsys, "compares the model with that of the start, which knows nothing", tmp_path)
