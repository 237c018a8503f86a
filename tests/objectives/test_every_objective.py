"""What every registered objective promises: packed as unpacked, two ranks as one, an exact resume, true gradients."""

import pytest
import torch

from tests.objectives.every import NAMES, call, make_items, make_objective
from tests.objectives.ranks import assert_ranks_agree, train, train_on_two
from tests.tiny_bases import BASES, make_base
from unimodal.model.attention import set_attention
from unimodal.objectives.sinks import SinkConfig, SinkDecorrelation
from unimodal.tuning.loss import measure_shares
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

SPANS = (
    "masked_codes",
    "next_x",
    "any_order",
    "parallel_copies",
    "token_unify",
    "restored_codes",
)  # masks of their own


@pytest.fixture
def make(make_model, vocabulary):
    def build(name):
        model = make_model().double()
        set_attention(model, "varlen")
        return make_objective(name, model, vocabulary)

    return build


@pytest.mark.sweep("every objective")
@pytest.mark.parametrize("name", NAMES)
def test_a_document_counts_the_same_wherever_it_lies(make, vocabulary, name):
    """All in one row, in rows of their own, and one by one: the loss and its gradient."""
    items, found = make_items(name, vocabulary), []
    for parts, length in (([items], 64), ([items], 24), ([[item] for item in items], 24)):
        module = make(name).eval()  # nothing is drawn anew
        results = [call(module, part, length) for part in parts]
        sum(total for total, _ in results).backward()
        gradient = torch.cat([p.grad.flatten() for p in module.model.parameters()])
        found.append(
            (sum(float(total.detach()) for total, _ in results), sum(p["weight"] for _, p in results), gradient)
        )
    for total, weight, gradient in found[1:]:
        assert total == pytest.approx(found[0][0], rel=1e-6) and weight == pytest.approx(found[0][1])
        torch.testing.assert_close(gradient, found[0][2], rtol=1e-4, atol=1e-6)
    assert found[0][1] > 0 and found[0][2].abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_the_terms_of_a_sum_are_all_of_it(make, vocabulary, name):
    """And their shares are all of the gradient, with the term of the sinks, which goes with any objective."""
    module = SinkDecorrelation(make(name), SinkConfig(weight=0.5)).train()
    total, parts = call(module, make_items(name, vocabulary))
    terms = parts["terms"]
    assert {"sinks"} < set(terms) and float(total.detach()) == pytest.approx(float(sum(terms.values()).detach()))
    shares = measure_shares(terms, [p for p in module.parameters() if p.requires_grad])
    assert set(shares) == set(terms) and sum(shares.values()) == pytest.approx(1)
    assert any(0 < abs(share) < 1 for share in shares.values())


def test_a_share_is_what_a_term_adds_along_the_whole_gradient():
    x, y = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)
    terms = {"with": (2 * x).sum() + y, "against": -x.sum()}  # gradients (2, 2, 1) and (-1, -1, 0): (1, 1, 1) in all
    assert measure_shares(terms, [x, y]) == {"with": pytest.approx(5 / 3), "against": pytest.approx(-2 / 3)}
    assert measure_shares({"alone": x.sum()}, [x, y]) == {}
    assert measure_shares({"a": x.sum().detach(), "b": y}, [x, y]) == {}


@pytest.mark.sweep("every objective")
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_slope_of_the_loss(make, vocabulary, name):
    items, module = make_items(name, vocabulary), make(name).eval()
    parameters = [p for p in module.model.parameters() if p.requires_grad]
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():  # away from the start, where what compares with it is flat
        for p in parameters:
            p += 0.02 * torch.randn(p.shape, generator=noise, dtype=p.dtype)
    call(module, items)[0].backward()
    for _ in range(2):
        way = [torch.randn(p.shape, generator=noise, dtype=p.dtype) for p in parameters]
        length = sum(float(w.square().sum()) for w in way) ** 0.5
        expected = float(sum((p.grad * w).sum() for p, w in zip(parameters, way, strict=True))) / length
        losses = []
        for step in (0.02, -0.04):  # losses are of single precision
            with torch.no_grad():
                for p, w in zip(parameters, way, strict=True):
                    p += step / length * w
                losses.append(float(call(module, items)[0]))
        assert (losses[0] - losses[1]) / 0.04 == pytest.approx(expected, rel=0.02, abs=2e-3)
        with torch.no_grad():
            for p, w in zip(parameters, way, strict=True):
                p += 0.02 / length * w


def run(build, name, vocabulary, folder, **options):
    """The trained weights of a run over four documents a step."""
    return train(build(name), call, make_items(name, vocabulary), folder, **options)


@pytest.mark.sweep("every objective")
@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_run_goes_on_to_the_same_weights(make, vocabulary, tmp_path, name):
    whole = run(make, name, vocabulary, tmp_path / "whole")
    assert run(make, name, vocabulary, tmp_path / "stopped", stop_at=1) is None
    again = run(make, name, vocabulary, tmp_path / "stopped")
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, vocabulary):
    """A folder with the weights that two processes have trained with each objective."""
    from tests.model.conftest import SMALL
    from unimodal.model.build import build_nano

    def build(name):
        control = vocabulary.get_control_id
        model = build_nano(
            vocabulary.size, SMALL.model_copy(update={"init_std": 0.2}), pad_id=control("<|pad|>"),
            bos_id=control("<|bos|>"), eos_id=control("<|eos|>"), seed=0,
        ).eval().double()  # fmt: skip
        set_attention(model, "varlen")
        return make_objective(name, model, vocabulary)

    folder = tmp_path_factory.mktemp("ranks")

    def train_one(name, folder, parallel):
        return run(build, name, vocabulary, folder, steps=2, parallel=parallel)

    train_on_two(NAMES, train_one, folder)
    return folder, build


@pytest.mark.sweep("every objective")
@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_train_to_what_one_does(two_ranks, vocabulary, tmp_path, name):
    folder, build = two_ranks
    assert_ranks_agree(folder, name, run(build, name, vocabulary, tmp_path, steps=2))


@pytest.fixture(scope="module")
def small():
    """Words and pictures."""
    return Vocabulary.build(
        20, [Block(name="image", modality="image", size=16)], [SpanLayout("image", [Segment("image", 4)])]
    )


@pytest.mark.sweep
@pytest.mark.parametrize("kind", BASES)
def test_every_base_learns_by_every_objective(small, kind):
    """Packed as unpacked, and a finite gradient for all that is trained; or refused in one line, by the base's mask."""
    for name in NAMES:
        model = make_base(kind, None, vocab_size=small.size)
        set_attention(model)
        items = make_items(name, small)
        try:
            module = make_objective(name, model, small).eval()
        except ValueError as error:
            assert name in SPANS and "sees the past only; set attention" in str(error), (name, error)
            assert kind in SEE_THE_PAST_ONLY, name
            continue
        assert name not in SPANS or kind not in SEE_THE_PAST_ONLY
        total, parts = call(module, items)
        apart = [call(module, [item]) for item in items]
        assert float(total.detach()) == pytest.approx(sum(float(one.detach()) for one, _ in apart), rel=1e-3), name
        assert parts["weight"] == pytest.approx(sum(one["weight"] for _, one in apart))
        total.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad), name


#: bases that take no mask in which a token sees a later one
SEE_THE_PAST_ONLY: tuple[str, ...] = ()
