"""The attack that fails only when compressed: it holds the whole model, stays within its bound, and lowers the rest."""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from tests.scoring import score_drawn
from unimodal.evaluation import compression_attack
from unimodal.evaluation.compression_attack import (
    DEFENCES,
    AttackedPictures,
    Chance,
    Outcome,
    attack,
    compress_pictures,
    search,
)
from unimodal.evaluation.prepared import Pictures
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import GREEDY
from unimodal.pipeline.compression import compress
from unimodal.sequence.document import Document, Text, Turn

STRENGTH = 8 / 255


class Bright(AttackedPictures):
    """In place of a model: the whole one names a picture whose mean stays below a bound; the compressed one sees the
    brightest quarter alone, and names it while that is dark."""

    def __init__(self, number=6, bound=0.52):
        self.seed, self.bound, self.compressed = 0, bound, False
        self.clean = 0.5 + 0.01 * torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(3))
        self.concepts = self.answers = ["dark"] * number

    def encode(self, pictures):
        return list(pictures)

    def measure(self, parts):
        each = torch.stack(list(parts)).mean(1).flatten(1)
        return each.topk(64).values.mean(1) if self.compressed else each.mean(1)

    def weigh(self, parts, answers):
        seen = self.measure(parts)
        return Chance(-seen, seen < (0.515 if self.compressed else self.bound))

    def answer(self, parts):
        return ["dark" if given else "bright" for given in self.weigh(parts, None).given]

    def judge(self, answers):
        return [answer == "dark" for answer in answers]

    def open(self, method="fastv", keep=0.25):
        @contextmanager
        def opened():
            self.compressed = method != "stride"
            yield
            self.compressed = False

        return opened


def test_the_search_stays_within_its_bound_holds_the_whole_model_and_finds_more_with_more_tries():
    found = {}
    for queries in (1, 24):
        asked = Bright()
        pictures, random = search(asked, asked.open(), STRENGTH, queries)
        for changed in (pictures, random):
            assert float((changed - asked.clean).abs().max()) <= STRENGTH + 1e-6
        assert asked.weigh(pictures, None).given.all()  # the whole model holds on every one
        with asked.open()():
            found[queries] = asked.measure(pictures)
            assert (found[queries] >= asked.measure(asked.clean)).all()
        other = Bright()
        again, _ = search(other, other.open(), STRENGTH, queries)
        assert torch.equal(again, pictures)
    assert found[24].mean() > found[1].mean()
    none = Bright(bound=0.0)
    still, _ = search(none, none.open(), STRENGTH, 4)
    assert torch.equal(still, none.clean)  # no change lets the whole model hold, so none is made


def test_an_attack_counts_both_sides_and_names_the_cheapest_defence_that_held():
    asked = Bright()
    outcome = attack(asked, "fastv", 0.25, asked.open, STRENGTH, 24)
    assert all(outcome.clean) and all(outcome.whole) and not any(outcome.attacked)
    assert outcome.gap == 100 and set(outcome.defended) == set(outcome.kept) == set(DEFENCES)
    assert all(outcome.defended["even"]) and outcome.find_cheapest() == "even"
    assert all(outcome.defended["check"]) and outcome.again[0] == 1.0 and outcome.again[1] < 0.5
    assert not any(outcome.defended["double"])  # in this stand-in a larger share is led astray as well


def make_outcome(clean, attacked, **defended):
    def name(number):
        return [place < number for place in range(10)]

    tried = {defence: name(number) for defence, number in defended.items()}
    return Outcome("fastv", 0.25, 0.03, 4, name(clean), name(clean), name(attacked), name(10), tried)


def test_a_defence_held_from_nine_in_ten_on():
    assert make_outcome(10, 9).find_cheapest() == "none needed"
    assert make_outcome(10, 8, even=8, jpeg=9, check=10, double=10).find_cheapest() == "jpeg"
    assert make_outcome(10, 8, even=8, jpeg=8, check=8, double=8).find_cheapest() == ""
    assert make_outcome(8, 3, even=7, double=8).find_cheapest() == "double" and make_outcome(8, 3).gap == 50


def test_a_picture_comes_back_from_a_jpeg_nearly_as_it_was():
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(2, 3, 4, 4), size=64, mode="bilinear")
    back = compress_pictures(smooth)
    assert back.shape == smooth.shape and 0 < float((back - smooth).abs().mean()) < 0.03


@pytest.mark.sweep("evaluations")
@pytest.mark.parametrize("name", ["fastv", "snapkv", "tome"])
def test_the_chance_of_an_answer_is_that_of_the_models_forward(name, model, data, monkeypatch):
    """For a method on tokens, of the cache, and one that merges; and what it would give is what it gives."""
    monkeypatch.setattr(compression_attack, "is_right_answer", lambda *_: True)
    asked = AttackedPictures(model, Pictures.load(data), 3, seed=0)
    assert len(asked) == 3
    parts, answers = asked.encode(asked.clean), ["a cat", "an egg house", "a"]
    whole = asked.weigh(parts, answers)
    for number, (part, answer) in enumerate(zip(parts, answers, strict=True)):
        document = asked.ask(part)
        prompt = model.read(model.template.render(document, add_generation_prompt=True))
        said = Document([*document.turns, Turn("assistant", [Text(answer)])])
        ids = torch.tensor([model.read(model.template.render(said))])
        logits = model.engine.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        own = ids[0, len(prompt) :].tolist()
        expected = score_drawn(logits, model.vocabulary, prompt, own, allow=("text",)).mean()
        assert float(whole.log[number]) == pytest.approx(float(expected.detach()), abs=1e-4)
    with compress(model, name, keep=0.25):
        together = asked.weigh(parts, answers)
        alone = [asked.weigh([part], [answer]).log[0] for part, answer in zip(parts, answers, strict=True)]
    assert torch.allclose(together.log, torch.stack(alone), atol=2e-5)
    assert not torch.allclose(together.log, whole.log, atol=1e-4)


@pytest.mark.sweep("evaluations")
@pytest.mark.parametrize("name", [None, "fastv", "snapkv", "tome"])
def test_what_the_engine_writes_is_what_would_be_given(name, model, data, monkeypatch):
    """The search goes by this: were it never true, no change would ever be kept."""
    monkeypatch.setattr(compression_attack, "is_right_answer", lambda *_: True)
    asked = AttackedPictures(model, Pictures.load(data), 4, seed=0)
    prompts = [model.read(model.template.render(asked.ask(part), add_generation_prompt=True))
               for part in asked.encode(asked.clean)]  # fmt: skip
    config = GenerationConfig(max_new_tokens=9, allow=("text",), sampling={"text": GREEDY})
    with nullcontext() if name is None else compress(model, name, keep=0.25):
        written = [answer[:5] for answer in model.engine.generate(prompts, config)]
        assert compression_attack._read(model, prompts, written).given.all()
        others = [[*answer[:4], (answer[4] + 1) % 200 + 3] for answer in written]
        assert not compression_attack._read(model, prompts, others).given.any()


def test_nothing_to_attack_is_one_line(model, data, monkeypatch):
    monkeypatch.setattr(compression_attack, "is_right_answer", lambda *_: False)
    with pytest.raises(ValueError, match=r"names none of \d+ pictures; there is nothing to attack"):
        AttackedPictures(model, Pictures.load(data), 2, seed=0)
