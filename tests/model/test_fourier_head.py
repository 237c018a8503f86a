"""Fourier heads: the authors' formula, the loss and the engine with them, and how smooth what they learn is."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.tiny_bases import BASES, make_base
from unimodal.generation.engine import Engine
from unimodal.generation.guidance import combine
from unimodal.generation.request import GenerationConfig
from unimodal.model.fourier_head import (
    FOURIER_FILE,
    FourierHead,
    FourierRows,
    FourierSettings,
    add_fourier_heads,
    attach_fourier_heads,
    find_fourier_heads,
    find_scoring_head,
    take_fourier_heads,
)
from unimodal.model.logits import read_logit_rule
from unimodal.objectives.distributions import compute_logits
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.packed import PackedLoss
from unimodal.objectives.smoothness import measure_smoothness
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

SETTINGS = FourierSettings(blocks=("image", "audio"), frequencies=5, gamma=0.01)


def explain(weight, bias, states, num_codes):
    """The authors' forward by its definition, one state at a time, in complex numbers: (logits, penalty without γ)."""
    num = len(bias) // 2
    found, rough = [], []
    for state in states.double():
        raw = (weight.double() @ state + bias.double()).numpy()
        a = raw[:num] + 1j * raw[num:]
        c = np.array([sum(a[j + k] * np.conj(a[j]) for j in range(num - k)) for k in range(num)])
        edges = np.linspace(-1, 1, num_codes + 1)
        middles = (edges[:-1] + edges[1:]) / 2
        p = np.array(
            [0.5 + sum(c[k] / c[0].real * np.exp(1j * np.pi * k * y) for k in range(1, num)).real for y in middles]
        )
        found.append(np.log(p / p.sum() + 1e-5))
        rough.append(2 * sum(2 * np.pi**2 * k**2 * abs(c[k]) ** 2 for k in range(num)))
    return torch.tensor(np.array(found)), torch.tensor(np.array(rough))


def wake(heads, seed=0):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter += torch.randn(parameter.shape, generator=g) * 0.4


@pytest.mark.parametrize(("frequencies", "num_codes"), [(1, 2), (4, 9), (12, 18), (30, 64)])
def test_it_is_the_authors_formula(frequencies, num_codes):
    torch.manual_seed(0)
    head = FourierHead(7, num_codes, frequencies)
    assert float(head.coefficients.weight.detach().abs().max()) <= 0.01 / 7**0.5
    wake(head)
    states = torch.randn(6, 7)
    logits, rough = head(states)
    wanted, penalty = explain(head.coefficients.weight.detach(), head.coefficients.bias.detach(), states, num_codes)
    torch.testing.assert_close(logits.double(), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rough.double(), penalty, rtol=1e-4, atol=1e-4)
    at, side = states[:1].clone().requires_grad_(), torch.randn(num_codes)
    (head(at)[0][0] @ side).backward()
    way = torch.randn(1, 7)
    with torch.no_grad():
        ends = [float(head(at + step * way)[0][0] @ side) for step in (1e-3, -1e-3)]
    assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(float((at.grad * way).sum()), rel=0.03, abs=0.03)


def test_the_measure_is_the_authors_with_scipy():
    filters = pytest.importorskip("scipy.ndimage")
    p = torch.rand(3, 18, dtype=torch.float64)
    p[0] = torch.eye(18)[4]
    p /= p.sum(1, keepdim=True)
    found = measure_smoothness(p)
    for one, value in zip(p.numpy(), found, strict=True):
        wanted = sum(
            6 / (np.pi * s) ** 2 * np.linalg.norm(one - filters.gaussian_filter1d(one, s, mode="wrap", radius=17))
            for s in range(1, 101)
        )
        assert float(value) == pytest.approx(wanted, rel=1e-6)
    assert float(measure_smoothness(torch.full((1, 9), 1 / 9))) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="sums of 1"):
        measure_smoothness(torch.ones(1, 4))


def make_ids(vocabulary, seed=0):
    g = torch.Generator().manual_seed(seed)
    spans = [("image", 4, 16), ("audio", 3, 12)]
    codes = [vocabulary.encode_span(name, torch.randint(0, size, (num,), generator=g)) for name, num, size in spans]
    return torch.tensor([[3, *codes[0], 5, *codes[1], 6]])


@torch.no_grad()
def explain_loss(model, vocabulary, objective, ids):
    """The summed cross-entropy and penalty, token by token."""
    heads, rule = find_fourier_heads(model), read_logit_rule(model)
    states = model.get_decoder()(ids, use_cache=False).last_hidden_state[0]
    plain = rule.apply(model.get_output_embeddings()(states).float())
    total, penalty = 0.0, 0.0
    for at in range(1, ids.shape[1]):
        [group], _ = objective.groups.assign(ids[0, at : at + 1], ids[0, at - 1 : at])
        spec = objective.groups.groups[int(group)]
        legal = [row for piece in spec.pieces for row in piece] + list(spec.exits)
        logits = plain[at - 1].clone()
        for block, head in zip(heads.rows, heads.heads, strict=True):
            if spec.rows == block:
                scored, rough = explain(
                    head.coefficients.weight, head.coefficients.bias, states[at - 1 : at], len(block)
                )
                logits[list(block)] = scored[0].float()
                penalty += heads.settings.gamma * float(rough)
        total += float(logits[legal].logsumexp(0) - logits[int(ids[0, at])])
    return total, penalty


def test_loss_and_penalty_are_those_by_hand_and_packed_as_alone(make_model, vocabulary):
    model = make_model()
    wake(add_fourier_heads(model, vocabulary, SETTINGS))
    objective = PackedLoss(model, vocabulary)
    one, two = make_ids(vocabulary), make_ids(vocabulary, 1)
    sums = [explain_loss(model, vocabulary, objective, ids) for ids in (one, two)]
    ids = torch.cat([one, two], 1)
    places = torch.cat([torch.arange(one.shape[1]), torch.arange(two.shape[1])])[None]
    total, parts = objective(ids, ids, places)
    assert float(total.detach()) == pytest.approx(sum(map(sum, sums)), rel=1e-4)
    nats = sum(summed for summed, _ in parts["blocks"].values())
    assert nats == pytest.approx(sum(nats for nats, _ in sums), rel=1e-4)  # the log is without the penalty
    total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in find_fourier_heads(model).parameters())
    with pytest.raises(ValueError, match="leave loss.softmax at 'block'"):
        PackedLoss(model, vocabulary, LossConfig(softmax="joint"))(ids, ids, places)


@pytest.mark.sweep
@pytest.mark.parametrize("kind", BASES)
def test_every_base_is_scored_and_sampled_by_the_head(kind, vocabulary):
    """The engine's logits, with guidance too, are the head's for its blocks and the base's own elsewhere."""
    model = make_base(kind, None, vocab_size=vocabulary.size)
    wake(add_fourier_heads(model, vocabulary, SETTINGS))
    engine, states, other = Engine(model, vocabulary), torch.randn(3, 32), torch.randn(3, 32)
    heads, scales = find_fourier_heads(model), torch.full((3, 1), 1.5)
    with torch.no_grad():
        plain = read_logit_rule(model).apply(model.get_output_embeddings()(states).float())
        whole = engine.head.compute_logits(states, engine.head.select(((0, vocabulary.size),)))
        expected = plain.clone()
        for block, head in zip(heads.rows, heads.heads, strict=True):
            expected[:, block.start : block.stop] = head(states)[0]
        torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(compute_logits(model, states, [range(0, 40)]), expected[:, :40])
        chosen = engine.head.select(((heads.rows[0].start, heads.rows[0].stop),))
        guided = engine.head.compute_guided_logits(states, other, scales, chosen)
        sides = [heads.heads[0](one)[0] for one in (states, other)]
        torch.testing.assert_close(guided, combine(*sides, scales), rtol=1e-4, atol=1e-4)
        # a code follows the density: 64 samples of one step, against the head's own probabilities
        prompt = [1, 3, vocabulary.get_start_id("image")]
        state = model.get_decoder()(torch.tensor([prompt]), use_cache=False).last_hidden_state[0, -1:]
        p = heads.heads[0](state)[0].softmax(1)[0]
        config = [GenerationConfig(max_new_tokens=6, seed=seed) for seed in range(64)]
        drawn = torch.tensor([answer[0] for answer in engine.generate([prompt] * 64, config)]) - heads.rows[0].start
        counts = torch.bincount(drawn, minlength=16).double()
    assert float(((counts - 64 * p) ** 2 / (64 * p)).sum()) < 45  # χ² of 15 degrees, 1 in 10,000


def test_it_learns_a_smooth_density_where_a_matrix_does_not():
    """Few samples of two bumps on 32 ordered codes: the head is nearer to them on new samples, and smoother."""
    torch.manual_seed(0)
    at = torch.arange(32)
    bumps = torch.exp(-0.5 * ((at - 8) / 2.5) ** 2) + 0.6 * torch.exp(-0.5 * ((at - 22) / 3) ** 2)
    p = bumps / bumps.sum()
    seen, state = torch.multinomial(p, 100, replacement=True), torch.ones(1, 4)
    found = {}
    for name, head in {"matrix": torch.nn.Linear(4, 32), "fourier": FourierHead(4, 32, 8)}.items():
        optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
        for _ in range(150):
            logits, rough = (head(state), 0.0) if name == "matrix" else head(state)
            loss = F.cross_entropy(logits.expand(100, -1), seen) + 1e-6 * (rough.sum() if name == "fourier" else 0.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        learnt = (head(state) if name == "matrix" else head(state)[0]).detach().softmax(1)
        found[name] = float((p * (p.log() - learnt[0].log())).sum()), float(measure_smoothness(learnt))
    assert found["fourier"][0] < 0.6 * found["matrix"][0] and found["fourier"][1] < 0.8 * found["matrix"][1]


def test_the_file_comes_back_and_a_wrong_one_is_one_line(make_model, vocabulary, tmp_path):
    model = make_model()
    heads = add_fourier_heads(model, vocabulary, SETTINGS)
    assert isinstance(find_scoring_head(model), FourierRows)
    heads.save(tmp_path)
    assert take_fourier_heads(model) is heads and find_scoring_head(model) is model.get_output_embeddings()
    attach_fourier_heads(model, tmp_path, vocabulary)
    states = torch.randn(2, 32)
    torch.testing.assert_close(find_fourier_heads(model).heads[1](states)[0], heads.heads[1](states)[0])
    other = make_model(hidden_size=16)
    with pytest.raises(ValueError, match="scores states of width 32, but this decoder has width 16"):
        attach_fourier_heads(other, tmp_path, vocabulary)
    small = Vocabulary.build(
        20, [Block(name="image", modality="image", size=9)], [SpanLayout("image", [Segment("image", 4)])]
    )
    with pytest.raises(ValueError, match="names 'audio'; the vocabulary has image"):
        attach_fourier_heads(model, tmp_path, small)
    (tmp_path / FOURIER_FILE).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged"):
        attach_fourier_heads(model, tmp_path, vocabulary)
    summed = Vocabulary.build(
        20,
        [Block(name="image", modality="image", group=g, size=4, layout="summed") for g in range(2)],
        [SpanLayout("image", [Segment("image", 4)])],
    )
    with pytest.raises(ValueError, match="leave summed out"):
        add_fourier_heads(model, summed, FourierSettings(blocks=("image",)))
    for wrong in ({"blocks": ()}, {"blocks": ("image",), "frequencies": 0}, {"blocks": ("image",), "gamma": -1}):
        with pytest.raises(ValueError):
            FourierSettings(**wrong)
