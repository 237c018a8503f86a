"""The likeness to the first state against its formula, what is measured against eager attention, and its training."""

import pytest
import torch

from tests.objectives.judged import make_answers, pack_documents, pack_pairs, render
from unimodal.model.attention import set_attention
from unimodal.objectives.packed import PackedLoss
from unimodal.objectives.preference import PreferenceLoss
from unimodal.objectives.sinks import SinkConfig, SinkDecorrelation, measure_sinks


def pack_answers(vocabulary, length=64):
    answers = make_answers(vocabulary)
    return answers, pack_documents([render(question, answer) for question, answer, _ in answers], length)[0]


def likeness(model, documents):
    """Each document alone: the squared cosines of every block, a mean over blocks of means over tokens."""
    blocks = []
    for ids in documents:
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        last = model.get_decoder().layers[-1](states[-2], position_embeddings=rotary(model, len(ids)))
        rows = [*states[1:-1], last[0] if isinstance(last, tuple) else last]  # the last one before its norm
        blocks.append(torch.stack([torch.cosine_similarity(r[0, 1:], r[0, :1], dim=-1).square() for r in rows]))
    return torch.cat(blocks, 1).mean(1).mean()


def rotary(model, length):
    decoder = model.get_decoder()
    return decoder.rotary_emb(torch.zeros(1, length, 8), torch.arange(length)[None])


@pytest.mark.parametrize("length", [20, 64])
def test_the_term_is_its_formula_packed_or_not(make_model, vocabulary, length):
    model = make_model()
    set_attention(model, "varlen")
    answers, batch = pack_answers(vocabulary, length)
    plain, parts = PackedLoss(model, vocabulary)(*batch)
    total, found = SinkDecorrelation(PackedLoss(model, vocabulary), SinkConfig(weight=0.5))(*batch)
    expected = likeness(make_model(), [question + answer for question, answer, _ in answers])
    assert found["metrics"]["sink_likeness"][0] == pytest.approx(float(expected), abs=1e-5)
    torch.testing.assert_close((total - plain) / parts["weight"], 0.5 * expected, rtol=0, atol=1e-5)


@pytest.mark.sweep("small trainings")
@pytest.mark.parametrize("main", [PackedLoss, PreferenceLoss])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_lowers_it_beside_any_objective(make_model, vocabulary, main, checkpointing):
    model = make_model().train()
    set_attention(model, "varlen")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    module = SinkDecorrelation(main(model, vocabulary), SinkConfig(weight=5.0))
    batch, values = pack_pairs(make_answers(vocabulary))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    found = []
    for _ in range(8):
        optimizer.zero_grad()
        total, parts = module(*batch, values=values)
        (total / parts["weight"]).backward()
        optimizer.step()
        found.append(parts["metrics"]["sink_likeness"][0])
    assert found[-1] < 0.7 * found[0]
    with torch.no_grad():  # as in validation: the objective alone
        assert "sink_likeness" not in module(*batch, values=values)[1]["metrics"]


def test_what_is_measured_is_the_attention_of_the_model(make_model, vocabulary):
    model = make_model()
    set_attention(model, "varlen")
    answers = [question + answer for question, answer, _ in make_answers(vocabulary)]
    ids = torch.tensor([[token for answer in answers for token in answer]])
    positions = torch.cat([torch.arange(len(answer)) for answer in answers])[None]
    found = measure_sinks(model, ids, positions)
    model.set_attn_implementation("eager")
    shares, sinks, others = [], 0, 0
    for answer in answers:
        weights = torch.stack(model(torch.tensor([answer]), output_attentions=True).attentions)[:, 0].mean(
            1
        )  # [L, N, N]
        shares.append(weights[:, 1:, 0])
        received = weights.tril(-1).sum(1) / torch.arange(len(answer) - 1, -1, -1).clamp(min=1)
        sinks += int((received[:, 1:] > 0.3).any(0).sum())
        others += len(answer) - 1
    assert found["first_share"] == pytest.approx(float(torch.cat(shares, 1).mean()), abs=1e-5)
    assert found["inner_sinks"] == pytest.approx(sinks / others, abs=1e-6)
    assert found["largest_first"] > 1 and found["largest_other"] > 1
    assert found["likeness"] == pytest.approx(float(likeness(make_model(), answers)), abs=1e-5)
