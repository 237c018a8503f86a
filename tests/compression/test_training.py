"""Methods that are trained with the decoder: their hooks let gradients through, and losses fall."""

import pytest
import torch
import torch.nn.functional as F

from unimodal.compression.tokens.divprune import DivPrune
from unimodal.compression.tokens.m3 import M3, SCALES, compute_matryoshka_loss
from unimodal.compression.tokens.pvc import PVC, ProgressiveEncoder
from unimodal.compression.tokens.tokenflex import FlexProjector, TokenFLEX


@pytest.fixture
def model(make_model):
    return make_model(num_layers=2).train()


@pytest.fixture
def batch(prompt, span):
    """Pictures whose name is a word: ids and labels, the word behind the prompt."""
    rows = [[*prompt(span("image", seed), [3]), 10 + seed] for seed in range(6)]
    ids = torch.tensor(rows)
    labels = ids.clone()
    labels[:, :-1] = -100
    return ids, labels


def loss_of(model, batch):
    ids, labels = batch
    logits = model(ids).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def train(parameters, step, num_steps):
    optimizer = torch.optim.AdamW(list(parameters), lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = step()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


def test_m3_trains_one_model_for_all_scales(model, batch, vocabulary):
    def at(keep):
        with torch.no_grad(), M3(keep)(model, vocabulary):
            return float(loss_of(model, batch))

    before = [at(keep) for keep in SCALES]
    mean = float(compute_matryoshka_loss(model, vocabulary, lambda: loss_of(model, batch)))
    assert mean == pytest.approx(sum(before) / len(before), rel=1e-5)  # the mean over the scales
    train(model.parameters(), lambda: compute_matryoshka_loss(model, vocabulary, lambda: loss_of(model, batch)), 12)
    assert all(at(keep) < 0.5 * start for keep, start in zip(SCALES, before, strict=True))


def test_tokenflex_trains_on_a_random_number_of_tokens(model, batch, vocabulary):
    flex, generator = TokenFLEX(projector=FlexProjector(32)), torch.Generator().manual_seed(0)
    model.requires_grad_(False)  # the projector alone

    def at(keep):
        with torch.no_grad(), TokenFLEX(keep, projector=flex.projector)(model, vocabulary):
            return float(loss_of(model, batch))

    def step():
        with flex.draw(generator, (0.25, 0.5))(model, vocabulary):
            return loss_of(model, batch)

    before = [at(keep) for keep in (0.25, 0.5)]
    train(flex.projector.parameters(), step, 25)
    assert all(at(keep) < 0.7 * start for keep, start in zip((0.25, 0.5), before, strict=True))


def test_pvc_trains_its_encoder(model, batch, vocabulary):
    method = PVC(0.5, encoder=ProgressiveEncoder(32))
    model.requires_grad_(False)

    def step():
        with method(model, vocabulary):
            return loss_of(model, batch)

    losses = train(method.encoder.parameters(), step, 25)
    assert losses[-1] < 0.7 * losses[0]


def test_the_progressive_encoder_is_causal_over_frames():
    torch.manual_seed(0)
    encoder = ProgressiveEncoder(16)
    torch.nn.init.normal_(encoder.out.weight)
    torch.nn.init.normal_(encoder.frame.weight)
    frames = torch.tensor([[0, 0, 1, 1, 2]])
    x = torch.randn(1, 5, 16)
    changed = x.clone()
    changed[0, 4] += 1
    assert torch.equal(encoder(x, frames)[:, :4], encoder(changed, frames)[:, :4])
    assert not torch.allclose(encoder(x, frames), encoder(x, torch.tensor([[0, 0, 1, 1, 1]])))  # norms know the frame


def test_gradients_reach_the_codes_that_went_on_and_no_others(model, batch, vocabulary):
    """Pruning is a gather: dropped tokens get nothing, and targets are untouched."""
    ids, _ = batch
    with DivPrune(0.25)(model, vocabulary):
        embedded = model.get_input_embeddings()(ids[:1]).detach().requires_grad_()
        hidden = model.model(input_ids=ids[:1], inputs_embeds=embedded).last_hidden_state
        hidden[0, -1].sum().backward()
    reached = embedded.grad[0].abs().sum(-1) > 0
    assert int(reached[3:19].sum()) == 4 and reached[:3].all() and reached[19:].all()
