"""DPO and its relatives against their formulas, written out over a stock model that sees each answer alone."""

import copy
import math
import os
import signal
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from tests.objectives.judged import make_answers, pack_pairs, score_alone
from unimodal.model.attention import set_attention
from unimodal.model.lora import LoraSettings, add_lora, make_peft_config
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.preference import PreferenceConfig, PreferenceLoss
from unimodal.training.batches import WeightedLoss
from unimodal.training.loop import Interrupted, Trainer
from unimodal.training.settings import LoopConfig

JOINT = LossConfig(softmax="joint")


def trl_loss(cfg, chosen, rejected, start_chosen, start_rejected):
    """TRL's formula (trl/trainer/dpo_trainer.py) for one pair, from the log-probabilities of each token."""
    shared = min(len(chosen), len(rejected))

    def ratio(now, before):
        weight = torch.ones(len(now))
        weight[shared:] = cfg.tail_weight
        return (weight * (now - before)).sum(), weight.sum()

    (right, num_w), (wrong, num_l) = ratio(chosen, start_chosen), ratio(rejected, start_rejected)
    if cfg.kind == "ipo" or cfg.length == "mean":
        right, wrong = right / num_w, wrong / num_l
    if cfg.kind == "ipo":
        return (right - wrong - 1 / (2 * cfg.beta)) ** 2
    if cfg.kind == "hinge":
        return torch.relu(1 - cfg.beta * (right - wrong))
    if cfg.kind == "apo_zero":
        return 1 - F.sigmoid(cfg.beta * right) + F.sigmoid(cfg.beta * wrong)
    if cfg.kind == "apo_down":
        return F.sigmoid(cfg.beta * right) + 1 - F.sigmoid(cfg.beta * (right - wrong))
    delta = cfg.beta * (right - wrong)
    return -F.logsigmoid(delta) * (1 - cfg.label_smoothing) - F.logsigmoid(-delta) * cfg.label_smoothing


def moved(model):
    """The model some way from where it began."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.03 * torch.randn_like(parameter)
    return model


SETTINGS = [
    {"kind": "sigmoid"},
    {"kind": "sigmoid", "label_smoothing": 0.2, "beta": 0.5},
    {"kind": "sigmoid", "length": "mean", "beta": 2.0},
    {"kind": "sigmoid", "tail_weight": 0.3},
    {"kind": "hinge"},
    {"kind": "ipo"},
    {"kind": "apo_zero"},
    {"kind": "apo_down"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_loss_and_its_gradient_are_trls(make_model, vocabulary, settings):
    """Packed with other pairs or alone in a row: each answer as a stock model reads it by itself."""
    cfg, answers = PreferenceConfig(**settings), make_answers(vocabulary)
    model = make_model()
    set_attention(model, "varlen")
    module = PreferenceLoss(model, vocabulary, JOINT, cfg)
    plain, start = make_model(), make_model()
    plain.load_state_dict(moved(model).state_dict())
    expected = 0.0
    for question, chosen, rejected in answers:
        now = [score_alone(plain, question, answer) for answer in (chosen, rejected)]
        with torch.no_grad():
            before = [score_alone(start, question, answer) for answer in (chosen, rejected)]
        expected = expected + trl_loss(cfg, *now, *before)
    expected.backward()
    gradients = [p.grad for p in plain.parameters()]
    for length, num_rows in ((26, 6), (128, 1)):
        model.zero_grad()
        batch, values = pack_pairs(answers, length)
        assert len(batch[0]) <= num_rows
        total, found = module(*batch, values=values)
        total.backward()
        assert found["weight"] == len(answers)
        torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-5)
        for parameter, wanted in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=5e-5)


def test_at_the_start_nothing_is_preferred(make_model, vocabulary):
    total, found = PreferenceLoss(make_model(), vocabulary)(
        *(b := pack_pairs(make_answers(vocabulary)))[0], values=b[1]
    )
    assert float(total.detach()) / found["weight"] == pytest.approx(float(-F.logsigmoid(torch.zeros(()))), abs=1e-6)
    assert found["metrics"]["reward_margin"][0] == pytest.approx(0, abs=1e-6)


def test_the_weight_of_a_medium_weighs_its_tokens(make_model, vocabulary):
    """With no weight on text, the answers of text alone are all alike; with one on pictures, only those count."""
    answers = make_answers(vocabulary)
    model = make_model()
    module = PreferenceLoss(
        model, vocabulary, LossConfig(softmax="joint", modality_weights={"text": 0.0, "image": 2.0})
    )
    start = copy.deepcopy(model)
    moved(model)
    batch, values = pack_pairs(answers)
    expected = 0.0
    images = range(vocabulary.blocks[0].start, vocabulary.blocks[0].start + 16)
    with torch.no_grad():
        for question, *sides in answers:
            ratios = []
            for answer in sides:
                weight = torch.tensor([2.0 if token in images else 0.0 for token in answer])
                ratios.append(
                    (weight * (score_alone(model, question, answer) - score_alone(start, question, answer))).sum()
                )
            expected = expected - F.logsigmoid(0.1 * (ratios[0] - ratios[1]))
        found, _ = module(*batch, values=values)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_chosen_answers_can_be_learnt_too(make_model, vocabulary):
    answers, model = make_answers(vocabulary), make_model()
    batch, values = pack_pairs(answers)
    with torch.no_grad():
        plain, found = PreferenceLoss(model, vocabulary, JOINT)(*batch, values=values)
        own = PreferenceConfig(chosen_weight=0.7)
        more, _ = PreferenceLoss(model, vocabulary, JOINT, own)(*batch, values=values)
        scores = torch.cat([score_alone(model, question, chosen) for question, chosen, _ in answers])
    torch.testing.assert_close((more - plain) / found["weight"], -0.7 * scores.mean(), rtol=0, atol=1e-5)


def with_adapters(model, frozen=True):
    model.requires_grad_(not frozen)
    add_lora(model, make_peft_config(model, LoraSettings(rank=2)))
    set_attention(model, "varlen")
    return model


def test_with_adapters_alone_the_start_is_the_base_and_nothing_is_copied(make_model, vocabulary):
    model = with_adapters(make_model())
    module = PreferenceLoss(model, vocabulary, JOINT)
    assert module.start.copy is None
    trained = [p for p in module.parameters() if p.requires_grad]
    moved(model)
    base = make_model()
    batch, values = pack_pairs(make_answers(vocabulary)[:2])
    total, _ = module(*batch, values=values)
    total.backward()
    assert all(p.grad is not None for p in trained) and len(trained) == len(
        [p for p in module.parameters() if p.requires_grad]
    )
    with module.start.use() as start:
        torch.testing.assert_close(start(batch[0]).logits, base(batch[0]).logits, rtol=0, atol=1e-6)
    with torch.no_grad():
        assert (model(batch[0]).logits - base(batch[0]).logits).abs().max() > 1e-3


def test_rows_that_are_trained_beside_adapters_are_copied_and_what_is_frozen_is_not(make_model, vocabulary):
    model = with_adapters(make_model())
    model.get_input_embeddings().weight.requires_grad_(True)
    module = PreferenceLoss(model, vocabulary, JOINT)
    batch, _ = pack_pairs(make_answers(vocabulary)[:2])
    with torch.no_grad():
        before = model(batch[0]).logits.clone()
    moved(model)
    assert module.start.copy is not None
    with module.start.use() as start:
        torch.testing.assert_close(start(batch[0]).logits, before, rtol=0, atol=1e-6)
    shared = {id(p) for p in model.parameters()} & {id(p) for p in module.start.copy.parameters()}
    assert len(shared) == len([p for p in model.parameters() if not p.requires_grad])


class Fixed:
    def __init__(self, batches):
        self.batches, self.position = batches, 0

    def next_batch(self):
        self.position += 1
        return self.batches[(self.position - 1) % len(self.batches)]

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def train(model, vocabulary, batches, folder, accumulation=1, steps=3, stop_at=None):
    module = PreferenceLoss(model, vocabulary, JOINT)

    def stop(record):
        if record["step"] == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def loss(batch, step):
        total, found = module(*batch[0], values=batch[1])
        return WeightedLoss(total, found["weight"], found["metrics"])

    cfg = LoopConfig(
        steps=steps, accumulation=accumulation, warmup_steps=0, learning_rate=1e-2, plot=False, log_every=1
    )
    trainer = Trainer(module, Fixed(batches), loss, cfg, folder, on_log=[stop])
    with pytest.raises(Interrupted) if stop_at else nullcontext():
        trainer.run()
    return module


def test_six_batches_of_a_pair_give_the_step_of_one_of_six(make_model, vocabulary, tmp_path):
    """So ranks do: a step's loss is the sum over all pairs divided by their number. In float64, as in test_packed."""
    answers = make_answers(vocabulary)
    once = train(make_model().double(), vocabulary, [pack_pairs(answers)], tmp_path / "once")
    six = train(make_model().double(), vocabulary, [pack_pairs([one]) for one in answers], tmp_path / "six", 6)
    for a, b in zip(once.model.parameters(), six.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.sweep("small trainings")
def test_training_prefers_the_chosen_and_a_stopped_run_goes_on_alike(make_model, vocabulary, tmp_path):
    batches = [pack_pairs(make_answers(vocabulary, seed=seed)) for seed in (0, 1)]
    whole = train(with_adapters(make_model()), vocabulary, batches, tmp_path / "whole", steps=12)
    assert whole.start.copy is None
    batch, values = batches[0]
    with torch.no_grad():
        _, found = whole(*batch, values=values)
    assert found["metrics"]["reward_accuracy"][0] == 6
    train(with_adapters(make_model()), vocabulary, batches, tmp_path / "parts", steps=12, stop_at=5)
    again = train(with_adapters(make_model()), vocabulary, batches, tmp_path / "parts", steps=12)
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_label_smoothing_of_another_kind_is_refused(make_model, vocabulary):
    with pytest.raises(ValueError, match="label_smoothing goes with kind sigmoid, not ipo"):
        PreferenceLoss(make_model(), vocabulary, None, PreferenceConfig(kind="ipo", label_smoothing=0.1))


def test_the_chosen_answers_are_weighed_by_medium_too(make_model, vocabulary):
    answers, model = make_answers(vocabulary), make_model()
    cfg = LossConfig(softmax="joint", modality_weights={"text": 0.0})
    images = vocabulary.get_block_range("image")
    batch, values = pack_pairs(answers)
    with torch.no_grad():
        plain, found = PreferenceLoss(model, vocabulary, cfg)(*batch, values=values)
        more, _ = PreferenceLoss(model, vocabulary, cfg, PreferenceConfig(chosen_weight=0.7))(*batch, values=values)
        scores = torch.cat(
            [
                score_alone(model, question, chosen)[[token in images for token in chosen]]
                for question, chosen, _ in answers
            ]
        )
    torch.testing.assert_close((more - plain) / found["weight"], -0.7 * scores.mean(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_the_noise_of_a_base_is_not_compared(vocabulary, kind):
    """A base with dropout, in training: as in TRL it has none here, so that at the start no answer is preferred."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    more = {"ffn_dim": 48, "word_embed_proj_dim": 32} if kind == "opt" else {}
    config = AutoConfig.for_model(kind, vocab_size=vocabulary.size, pad_token_id=0, **sizes, **more)
    model = AutoModelForCausalLM.from_config(config)
    set_attention(model, "varlen")
    batch, values = pack_pairs(make_answers(vocabulary))
    total, found = PreferenceLoss(model, vocabulary, JOINT).train()(*batch, values=values)
    torch.testing.assert_close(total / found["weight"], torch.tensor(math.log(2)), rtol=0, atol=1e-6)
