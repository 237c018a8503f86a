"""The training module: accumulation over ragged documents, what it reports, DDP's needs, and token selection."""

import warnings

import pytest
import torch

from tests.objectives.judged import make_answers, pack_documents, render
from unimodal.model.attention import Packing, set_attention
from unimodal.model.rows import extend_rows, get_new_rows, share_rows
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.packed import PackedLoss
from unimodal.objectives.silence import PATIENCE
from unimodal.objectives.token_selection import measure_prompt_attention, select_tokens
from unimodal.training.batches import WeightedLoss
from unimodal.training.loop import Trainer
from unimodal.training.settings import LoopConfig


def documents(vocabulary, num=8):
    """Ragged documents of text and media; half of the text is a prompt."""
    g = torch.Generator().manual_seed(0)
    found = []
    for number in range(num):
        prompt = torch.randint(0, 20, (2 + 3 * (number % 4),), generator=g).tolist()
        answer = torch.randint(0, 20, (1 + number,), generator=g).tolist()
        if number % 2:
            answer += vocabulary.encode_span("image", torch.randint(0, 16, (4,), generator=g))
        found.append((prompt + answer, [-100] * len(prompt) + answer))
    return found


def packed(docs):
    ids, labels, positions = [], [], []
    for tokens, targets in docs:
        ids += tokens
        labels += targets
        positions += range(len(tokens))
    return tuple(torch.tensor([row]) for row in (ids, labels, positions))


class Fixed:
    def __init__(self, batches):
        self.batches, self.at = batches, 0

    def next_batch(self):
        self.at += 1
        return self.batches[(self.at - 1) % len(self.batches)]

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def trained(model, vocabulary, batches, folder, accumulation, cfg=None, steps=3, **loop):
    set_attention(model, "varlen")
    module = PackedLoss(model, vocabulary, cfg)

    def loss(batch, step):
        total, found = module(*batch)
        return WeightedLoss(total, found["weight"])

    options = dict(steps=steps, accumulation=accumulation, warmup_steps=0, learning_rate=1e-2, plot=False, log_every=1)
    Trainer(module, Fixed(batches), loss, LoopConfig(**options | loop), folder).run()
    return module


@pytest.mark.parametrize("weights", [{}, {"image": 3.0}])
def test_eight_times_one_document_is_once_eight(make_model, vocabulary, tmp_path, weights):
    """Token-weighted: a mean of means over such unequal documents would be another gradient altogether.

    In float64, because Adam divides by gradients: where one is nearly zero, rounding alone decides the step.
    """
    docs, cfg = documents(vocabulary), LossConfig(z_loss=1e-3, modality_weights=weights)
    once = trained(make_model().double(), vocabulary, [packed(docs)], tmp_path / "once", 1, cfg)
    eight = trained(make_model().double(), vocabulary, [packed([d]) for d in docs], tmp_path / "eight", 8, cfg)
    for (name, a), b in zip(once.named_parameters(), eight.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5, msg=name)


def test_activation_checkpointing_changes_nothing(make_model, vocabulary, tmp_path):
    batches = [packed(documents(vocabulary))]
    plain = trained(make_model(), vocabulary, batches, tmp_path / "plain", 1)
    again = trained(make_model(), vocabulary, batches, tmp_path / "again", 1, activation_checkpointing=True)
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_the_joint_softmax_is_the_stock_loss(make_model, vocabulary):
    """Over all rows the loss is that of the Hugging Face model itself; over blocks it is smaller."""
    model = make_model()
    ids, labels, positions = packed(documents(vocabulary)[3:4])
    total, found = PackedLoss(model, vocabulary, LossConfig(softmax="joint", max_logits=64))(ids, labels, positions)
    stock = model(ids, labels=labels).loss
    torch.testing.assert_close(total / found["weight"], stock, rtol=0, atol=1e-5)
    assert set(found["modalities"]) == {"text", "image"}
    block, _ = PackedLoss(model, vocabulary)(ids, labels, positions)
    assert float(block.detach()) < float(total.detach())


def test_every_trained_parameter_has_a_gradient_whatever_the_batch(make_model, vocabulary):
    """DDP waits for all of them: a batch of text alone must not leave the head's media rows out."""
    module = PackedLoss(make_model(tie_embeddings=False), vocabulary)
    total, found = module(*packed(documents(vocabulary)[:1]))
    assert set(found["modalities"]) == {"text"}
    total.backward()
    assert [n for n, p in module.named_parameters() if p.grad is None] == []


def test_attention_to_the_prompt_is_the_attention_of_the_model(make_model, vocabulary):
    """Against the attention weights that the eager implementation returns, document by document."""
    docs = documents(vocabulary)[1:4]
    ids, labels, positions = packed(docs)
    model = make_model()
    set_attention(model, "varlen")
    packing = Packing.from_position_ids(positions)
    packing.watch_layer = 1
    with torch.no_grad():
        model(ids, position_ids=positions, packing=packing)
        found = measure_prompt_attention(*packing.watched, packing, labels == -100)[0]
        model.set_attn_implementation("eager")
        expected = []
        for tokens, targets in docs:
            weights = model(torch.tensor([tokens]), output_attentions=True).attentions[1][0].mean(0)  # [N, N]
            expected.append((weights * torch.tensor([t == -100 for t in targets])).sum(1))
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-5)


def test_selection_keeps_the_share_with_the_best_score():
    fallen, to_prompt = torch.tensor([0.0, 1.0, 2.0, 4.0]), torch.tensor([1.0, 0.0, 0.0, 0.9])
    assert select_tokens(fallen, to_prompt, 0.25, 0.5).tolist() == [0, 0, 0, 1]
    assert select_tokens(fallen, to_prompt, 0.5, 1.0).tolist() == [0, 0, 1, 1]
    assert select_tokens(fallen, to_prompt, 0.5, 0.0).tolist() == [1, 0, 0, 1]
    assert select_tokens(fallen, to_prompt, 1.0, 0.5).tolist() == [1, 1, 1, 1]


def test_selective_training_learns_from_the_share_and_leaves_the_model_of_the_start_alone(
    make_model, vocabulary, tmp_path
):
    start = {n: p.clone() for n, p in make_model().named_parameters()}
    batches = [packed(documents(vocabulary))]
    module = trained(make_model(), vocabulary, batches, tmp_path, 1, LossConfig(keep_share=0.5))
    assert all(torch.equal(p, start[n]) for n, p in module.history.named_parameters())
    assert any(not torch.equal(p, start[n]) for n, p in module.model.named_parameters())
    _, found = module.train()(*batches[0])
    scored = int((batches[0][1] != -100).sum())
    assert found["weight"] == pytest.approx(0.5 * scored, abs=1)
    _, all_of_them = module.eval()(*batches[0])
    assert all_of_them["weight"] == scored
    stored = torch.load(tmp_path / "last.pt", weights_only=True)["model"]
    assert stored and not [name for name in stored if name.startswith("history.")]  # as the base it is made again


def test_what_is_frozen_is_not_copied_and_shared_rows_are_those_of_the_start(make_model, vocabulary):
    """The history model of LoRA costs its adapters and rows only, and its rows are not today's from the cache."""

    block = vocabulary.blocks[-1]  # of clips: its rows are the new ones

    def begin():
        model = make_model(vocab_size=block.start)
        extend_rows(model, block.size, draw_rows=lambda table, seed: torch.full((block.size, table.shape[1]), 0.02))
        for rows in get_new_rows(model).values():
            rows.requires_grad_(True)
        share_rows(model, {block.rows: torch.eye(block.size)})
        set_attention(model, "varlen")
        return PackedLoss(model, vocabulary, LossConfig(keep_share=0.5))

    tokens = [1, 2, *vocabulary.encode_span("video", torch.tensor([3, 5, 0, 1, 7, 2, 4, 4, 0, 6]))]
    batch = packed([(tokens, [-100, -100, *tokens[2:]])])
    module, fresh = begin().train(), begin()
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        module(*batch)[0].backward()
        optimizer.step()
    frozen = [p for p in module.model.parameters() if not p.requires_grad]
    copied = {id(p) for p in module.history.parameters()}
    assert frozen and all(id(p) in copied for p in frozen)
    found = []
    module._weigh_tokens = lambda losses, earlier, *rest: found.append(earlier) or torch.ones_like(earlier)
    module(*batch)
    fresh._compute_total = lambda *rest: found.append(rest[-1])
    fresh.train()(*batch)
    assert torch.equal(found[0], found[1])
    assert abs(float(module(*batch)[0].detach()) - float(found[0].sum())) > 0.1


def test_selection_without_an_attention_to_watch_is_refused(make_model, vocabulary):
    model = make_model()  # sdpa
    with pytest.raises(ValueError, match="keep_share below 1 needs attention 'varlen' or 'xformers'"):
        PackedLoss(model, vocabulary, LossConfig(keep_share=0.5)).train()(*packed(documents(vocabulary)))


@pytest.mark.parametrize(
    ("weights", "told"), [({"text": 0.0, "image": 0.0}, True), ({"text": 0.0}, False), ({}, False)]
)
def test_media_that_all_weigh_nothing_are_told(make_model, vocabulary, weights, told):
    answers = make_answers(vocabulary)
    batch = pack_documents([render(question, answer) for question, answer, _ in answers])[0]
    module = PackedLoss(make_model(), vocabulary, LossConfig(modality_weights=weights)).train()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(PATIENCE):
            module(*batch)
    assert sum("loss.modality_weights are 0 for all labels" in str(one.message) for one in found) == told
