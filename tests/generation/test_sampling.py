"""Samples follow the filtered softmax, greedy is argmax, and noise belongs to a row, not to its batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unimodal.generation.sampling import (
    GREEDY,
    SamplingConfig,
    filter_logits,
    make_gumbel_noise,
    make_noise_keys,
    sample,
)


def keep(logits, top_k, top_p):
    """The filter by its definition, one row, in a loop: indices that stay."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    if top_k:
        order = order[:top_k]
    p = torch.tensor([logits[i] for i in order], dtype=torch.float64).softmax(0).tolist()
    kept, mass = set(), 0.0
    for index, share in zip(order, p, strict=True):
        kept.add(index)
        mass += share
        if mass >= top_p:
            break
    return kept


@given(
    st.lists(st.integers(-400, 400), min_size=2, max_size=30, unique=True),
    st.lists(
        st.tuples(st.integers(0, 31), st.sampled_from([0.05, 0.3, 0.51, 0.9, 0.999, 1.0])), min_size=1, max_size=5
    ),
)
def test_filters_keep_what_their_definition_keeps(values, settings):
    logits = torch.tensor(values) / 100
    out = filter_logits(logits.expand(len(settings), -1), [k for k, _ in settings], [p for _, p in settings])
    for row, (top_k, top_p) in zip(out, settings, strict=True):
        kept = set(torch.isfinite(row).nonzero().flatten().tolist())
        assert kept == keep(logits.tolist(), top_k, 1.0 if top_p == 1.0 else top_p)
        assert torch.equal(row[list(kept)], logits[list(kept)])


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-300, 1e-45, 1e-38, 1e-31, 1e-29, 1e-12])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.5}, {"top_k": 3, "top_p": 1e-300}])
def test_a_temperature_however_small_takes_the_likeliest(temperature, filters):
    logits, configs = torch.randn(5, 9) * 1_000, [SamplingConfig(temperature=temperature, **filters)] * 5
    drawn = sample(logits, torch.arange(9), configs, make_noise_keys(range(5), 0))
    assert torch.equal(drawn, logits.argmax(1))


@pytest.mark.parametrize("temperature", [1e20, 1e38, 1e39, 1e300])
def test_a_temperature_however_large_never_draws_what_is_ruled_out(temperature):
    logits = torch.randn(200, 9).index_fill(1, torch.tensor([0, 4]), -torch.inf)
    configs = [SamplingConfig(temperature=temperature)] * 200
    drawn = sample(logits, torch.arange(9), configs, make_noise_keys(range(200), 0))
    assert set(drawn.tolist()) == {1, 2, 3, 5, 6, 7, 8}


def test_candidates_that_tie_with_the_last_one_stay():
    assert torch.isfinite(filter_logits(torch.tensor([[2.0, 1.0, 1.0, 0.0]]), [2], [1.0])).sum() == 3


@pytest.mark.sweep
@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.5),
        SamplingConfig(temperature=1.7, top_k=5),
        SamplingConfig(top_p=0.8),
        SamplingConfig(temperature=1.3, top_k=9, top_p=0.9),
    ],
)
def test_draws_follow_the_filtered_softmax(config):
    """Chi-square over 20,000 draws, each with its own seed, or its own step of one seed."""
    num = 20_000
    torch.manual_seed(3)
    logits = torch.randn(12) * 1.5
    scaled = logits / config.temperature
    kept = sorted(keep(scaled.tolist(), config.top_k, config.top_p))
    expected = torch.zeros(12, dtype=torch.float64)
    expected[kept] = scaled[kept].double().softmax(0)
    for keys in (make_noise_keys(range(num), 0), make_noise_keys([7] * num, range(num))):
        drawn = sample(logits.expand(num, -1), torch.arange(100, 112), [config] * num, keys)
        counts = torch.bincount(drawn - 100, minlength=12).double()
        assert float(counts[expected == 0].sum()) == 0
        wanted = expected[expected > 0] * num
        statistic = ((counts[expected > 0] - wanted).square() / wanted).sum()
        p = torch.special.gammaincc(torch.tensor((len(wanted) - 1) / 2, dtype=torch.float64), statistic / 2)
        assert len(wanted) > 3 and float(p) > 1e-3


def test_noise_is_gumbel_and_uncorrelated_between_rows_steps_and_candidates():
    ids = torch.arange(5000)
    keys = make_noise_keys([0, 1, 2**40, -1], 0)
    noise = make_gumbel_noise(keys, ids)
    assert bool(torch.isfinite(noise).all())
    cdf = noise.double().flatten().neg().exp().neg().exp().sort().values
    distance = (cdf - (torch.arange(len(cdf)) + 0.5) / len(cdf)).abs().max()
    assert float(distance) * len(cdf) ** 0.5 < 1.95  # Kolmogorov-Smirnov at 0.001
    later = make_gumbel_noise(make_noise_keys([0], 1), ids)
    others = torch.cat([noise, later, noise[:1].roll(1, 1)])
    correlation = torch.corrcoef(others) - torch.eye(len(others))
    assert float(correlation.abs().max()) < 5 / 5000**0.5


def test_noise_of_a_row_depends_on_its_seed_step_and_candidate_only():
    alone = make_gumbel_noise(make_noise_keys([5], [3]), torch.arange(40, 80))
    in_batch = make_gumbel_noise(make_noise_keys([9, 5, 5], [3, 3, 4]), torch.arange(0, 100))
    assert torch.equal(alone[0], in_batch[1, 40:80])
    assert not torch.equal(in_batch[1], in_batch[0]) and not torch.equal(in_batch[1], in_batch[2])


def test_greedy_rows_take_the_likeliest_beside_sampling_rows():
    logits = torch.randn(6, 50)
    configs = [GREEDY, SamplingConfig(temperature=3.0)] * 3
    drawn = sample(logits, torch.arange(50), configs, make_noise_keys(range(6), 0))
    assert torch.equal(drawn[::2], logits[::2].argmax(1))
    assert torch.equal(sample(logits, torch.arange(50), [GREEDY] * 6, make_noise_keys(range(6), 0)), logits.argmax(1))


@given(st.floats(1e-6, 100), st.integers(0, 50), st.floats(1e-6, 1))
def test_banned_candidates_are_never_drawn(temperature, top_k, top_p):
    logits = torch.full((64, 20), -torch.inf)
    logits[:, [3, 17]] = torch.tensor([-1e4, -1e4 - 1])
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    drawn = sample(logits, torch.arange(20), [config] * 64, make_noise_keys(range(64), 0))
    assert set(drawn.tolist()) <= {3, 17}


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5}, {"topk": 3}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError):
        SamplingConfig(**bad)


def test_the_first_codes_of_a_span_have_a_temperature_of_their_own(model, vocabulary, ask):
    """They are those of that temperature; the others vary with the seed, in every batch that joins and leaves too."""
    from unimodal.generation.continuous import ContinuousBatch
    from unimodal.generation.engine import Engine
    from unimodal.generation.request import GenerationConfig, GenerationRequest

    engine = Engine(model, vocabulary)

    def draw(seed, **sampling):
        own = {"video": SamplingConfig(temperature=5.0, **sampling)}
        return GenerationConfig(max_new_tokens=20, force="video", max_text_tokens=0, seed=seed, sampling=own)

    # start, 4 codes, mark, 3 codes, mark, 3 codes
    greedy = engine.generate([ask([3])], [draw(0, first_codes=10)])[0]
    configs = [draw(seed, first_codes=5) for seed in range(8)]
    answers = engine.generate([ask([3])] * 8, configs)
    assert {tuple(answer[:7]) for answer in answers} == {tuple(greedy[:7])}
    assert len({tuple(answer) for answer in answers}) == 8
    batch, found = ContinuousBatch(engine), {}
    keys = batch.admit([GenerationRequest(ask([3]), config) for config in configs])
    while len(batch):
        found.update((done.key, done.answer) for done in batch.advance_rows())
    assert [found[key] for key in keys] == answers
