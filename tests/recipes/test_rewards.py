"""Rewards for answers of the model's own, each against what it says it is, on the tiny model."""

import jiwer
import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.scoring import score_drawn
from tests.tiny_model import tiny_model
from unimodal.model_folder.settings import CtcReading
from unimodal.sequence.document import Audio, Document, Image, Text, Turn
from unimodal.tuning.rewards import REWARDS, Attempt, RewardContext, Rewards

QUESTIONS = {"image": "what is this?", "audio": "what is said?"}


@pytest.fixture(scope="module")
def context():
    model = tiny_model()
    return RewardContext(model.decoder, model.template, model.coder, QUESTIONS)


def draw_codes(context, medium, seed=0, num=None):
    generator = torch.Generator().manual_seed(seed)
    layout = context.template.vocabulary.get_layout(medium)
    parts = []
    for segment in layout.segments:
        size = len(context.template.vocabulary.get_block_range(segment.block))
        parts.append(torch.randint(0, size, (segment.count or num or 8,), generator=generator))
    return torch.cat(parts).numpy()


def attempt(words, part, reference=()):
    return Attempt(Document([Turn("user", words)]), (part,), tuple(reference))


def make(name, **settings):
    config, reward = REWARDS[name]
    return reward(config.model_validate(settings))


def score_alone(context, turns):
    """The mean log-probability of the last turn's ids, by the stock forward."""
    rendered = context.template.render(Document(turns))
    ids = torch.from_numpy(rendered.ids)
    begin = int((rendered.labels >= 0).argmax())
    with torch.no_grad():
        logits = context.model(ids[None]).logits[0, begin - 1 : -1, : context.template.vocabulary.size]
    prompt, answer = rendered.ids[:begin].tolist(), rendered.ids[begin:].tolist()
    return float(score_drawn(logits, context.template.vocabulary, prompt, answer).mean())


@pytest.mark.parametrize("look", [True, False], ids=["looked at", "by its codes"])
def test_a_caption_is_as_likely_as_the_model_says(context, look):
    parts = [Image(codes=draw_codes(context, "image", seed)) for seed in (0, 1)]
    attempts = [attempt(f"draw {name}.", part) for name, part in zip(("a red apple", "a blue car"), parts, strict=True)]
    found = make("caption", wish="draw {text}.", look=look)([*attempts, attempt("draw it.", Text("no"))], context)
    for one, part, name in zip(found, parts, ("a red apple", "a blue car"), strict=False):
        [seen] = context.media.encode_parts("image", [context.decode(part)[0]])
        assert seen.codes.tolist() != part.codes.tolist(), "what random codes show has others"
        asked = Turn("user", [seen if look else part, Text("what is this?")])
        assert one == pytest.approx(score_alone(context, [asked, Turn("assistant", name)]), abs=1e-4)
    assert found[2] == -20 < min(found[:2])
    with pytest.raises(ValueError, match="the request 'paint it' is not of the form 'draw {text}.'"):
        make("caption", wish="draw {text}.")([attempt("paint it", parts[0])], context)


def test_likeness_is_that_of_the_mean_vectors(context):
    codes = [draw_codes(context, "image", seed) for seed in (0, 1)]
    reward = make("similarity")
    same, other, none = reward(
        [attempt("draw", Image(codes=c), [Image(codes=codes[0])]) for c in codes]
        + [attempt("draw", Text("no"), [Image(codes=codes[0])])],
        context,
    )
    assert same == pytest.approx(1, abs=1e-6) and -1 <= other < same and none == -1


def test_speech_is_read_by_ctc_as_in_training(context, monkeypatch):
    """log p_CTC(words | codes) of the rows of text and the blank, at the codes of the question about them."""
    processor = context.media.processor.model_copy(update={"reading": CtcReading()})
    monkeypatch.setattr(context.media, "processor", processor)
    vocabulary, words = context.template.vocabulary, "a red apple"
    sound = Audio(codes=draw_codes(context, "audio", num=30))
    [found, none] = make("ctc", wish="say: {text}")(
        [attempt(f"say: {words}", sound), attempt(f"say: {words}", Text("no"))], context
    )
    asked = Turn("user", [sound, Text("what is said?")])
    ids = torch.from_numpy(context.template.render(Document([asked]), add_generation_prompt=True).ids)
    answered = context.template.render(Document([asked, Turn("assistant", words)]))
    target = [label for label in answered.labels.tolist() if 0 <= label < vocabulary.text_size]
    block = vocabulary.get_block_range("audio")
    with torch.no_grad():
        logits = context.model(ids[None]).logits[0].float()[(ids >= block.start) & (ids < block.stop)]
        blank = logits[:, vocabulary.get_control_id("<|pad|>"), None]
        read = torch.cat([logits[:, : vocabulary.text_size], blank], 1).log_softmax(-1)
        lost = functional.ctc_loss(
            read[:, None], torch.tensor([target]), torch.tensor([len(read)]), torch.tensor([len(target)]),
            blank=vocabulary.text_size, reduction="sum",
        )  # fmt: skip
    assert found == pytest.approx(max(-20.0, float(-lost) / len(target)), abs=1e-3) and none == -20


def hear(sound):
    """A recogniser that hears the same of every sound."""
    assert sound.dim() == 1 and len(sound) > 100
    return "A red, apple!"


def test_words_are_counted_against_the_wish(context):
    reward = make("word_errors", wish="say: {text}", recogniser=f"{__name__}:hear")
    sound = Audio(codes=draw_codes(context, "audio", num=20))
    wishes = ["say: a red apple", "say: a blue apple", "say: it is a sunny day today and tomorrow"]
    found = reward([*(attempt(wish, sound) for wish in wishes), attempt(wishes[0], Text("no"))], context)
    heard = "a red apple"
    assert found[:3] == [max(-1.0, 1 - jiwer.wer(wish[5:], heard)) for wish in wishes] and found[:2] == [1.0, 1 - 1 / 3]
    assert found[3] == -1


def test_rewards_are_weighed_and_summed(context):
    part = Image(codes=draw_codes(context, "image"))
    attempts = [attempt("draw a red apple.", part, [part])]
    rewards = Rewards({"caption": {"wish": "draw {text}."}, "similarity": {}}, {"similarity": 3.0})
    total, found = rewards.score(attempts, context)
    assert float(total[0]) == pytest.approx(float(found["caption"][0]) + 3.0, abs=1e-5)


def give_numpy(attempts, context):
    return np.arange(len(attempts), dtype=np.float32)


def give_torch(attempts, context):
    return torch.arange(len(attempts))


@pytest.mark.parametrize("name", ["give_numpy", "give_torch"])
def test_numbers_of_numpy_and_torch_are_numbers(context, name):
    rewards = Rewards({f"{__name__}:{name}": {}}, {})
    assert rewards.score([attempt("draw.", Text("no"))] * 3, context)[0].tolist() == [0, 1, 2]


class Odd(Exception):
    """An error whose words have several lines."""

    def __str__(self):
        return "it\nfailed"


def raise_now(attempts, context, error):
    raise ERRORS[error]()


def raise_later(attempts, context, error):
    yield 1.0
    raise ERRORS[error]()


ERRORS = {
    "ValueError": lambda: ValueError("no"),
    "KeyError": lambda: KeyError("a"),
    "ZeroDivisionError": ZeroDivisionError,
    "RuntimeError": lambda: RuntimeError("CUDA\nerror"),
    "AssertionError": AssertionError,
    "Odd": Odd,
    "FileNotFoundError": lambda: FileNotFoundError(2, "No such file"),
    "RecursionError": lambda: RecursionError("deep"),
}


@pytest.mark.parametrize("function", ["raise_now", "raise_later"])
@pytest.mark.parametrize("error", ERRORS)
def test_whatever_a_function_raises_is_one_line_that_names_it(context, function, error):
    name = f"{__name__}:{function}"
    with pytest.raises(ValueError, match=rf"{name} failed: {error} in {function}, line \d+ \(") as caught:
        Rewards({name: {"error": error}}, {}).score([attempt("draw.", Text("no"))] * 2, context)
    assert "\n" not in str(caught.value) and caught.value.__cause__ is not None


GIVEN = {  # for two answers → what is said of it
    "None": (None, r"gave None \(NoneType\); it must give a list of a number for each answer"),
    "a number": (0.5, r"gave 0.5 \(float\); it must give a list"),
    "a text": ("12", r"gave '12' \(str\); it must give a list"),
    "bytes": (b"12", r"gave b'12' \(bytes\); it must give a list"),
    "by name": ({0: 1.0, 1: 2.0}, r"\(dict\); it must give a list"),
    "a set": ({1.0, 2.0}, r"\(set\); it must give a list"),
    "a tensor without shape": (torch.tensor(1.0), r"gave a Tensor of shape \[\]; it must give a list"),
    "an array without shape": (np.array(1.0), r"gave a ndarray of shape \[\]; it must give a list"),
    "too few": ([1.0], "gave 1 numbers for 2 answers"),
    "too many": ([1.0, 2.0, 3.0], "gave 3 numbers for 2 answers"),
    "none": ([], "gave 0 numbers for 2 answers"),
    "a tensor of too many": (torch.ones(3), "gave 3 numbers for 2 answers"),
    "a table": (torch.ones(2, 3), r"gave a Tensor of shape \[3\] for an answer to 'draw.'; it must be a finite number"),
    "texts": (["1", "2"], r"gave '1' \(str\) for an answer to 'draw.'; it must be a finite number"),
    "nothing in it": ([1.0, None], r"gave None \(NoneType\) for an answer"),
    "booleans": ([True, False], r"gave True \(bool\) for an answer"),
    "booleans of numpy": (np.array([True, False]), r"gave True \(bool\) for an answer"),
    "booleans of torch": (torch.tensor([True, False]), r"gave True \(bool\) for an answer"),
    "lists": ([[1.0], [2.0]], r"gave \[1.0\] \(list\) for an answer"),
    "complex": ([1j, 1.0], r"gave 1j \(complex\) for an answer"),
    "nan": ([float("nan"), 1.0], r"gave nan \(float\) for an answer"),
    "infinite": (torch.tensor([float("inf"), 1.0]), r"gave inf \(float\) for an answer"),
    "too large": ([10**400, 1], r"\(int\) for an answer"),
}


def give(attempts, context, kind):
    return GIVEN[kind][0]


@pytest.mark.parametrize("kind", GIVEN)
def test_what_is_no_number_for_each_answer_is_one_line(context, kind):
    name = f"{__name__}:give"
    with pytest.raises(ValueError, match=rf"the reward {name} .*{GIVEN[kind][1]}") as caught:
        Rewards({name: {"kind": kind}}, {}).score([attempt("draw.", Text("no"))] * 2, context)
    assert "\n" not in str(caught.value)


NO_FUNCTION = 3


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (f"{__name__}:give_torch", {"scale": 2}, "unexpected keyword argument 'scale'"),
        (f"{__name__}:give", {}, "missing a required argument: 'kind'"),
        (f"{__name__}:NO_FUNCTION", {}, "is no function"),
        (f"{__name__}:nothing", {}, "cannot be imported"),
        ("no_such_module:f", {}, "cannot be imported"),
        (":f", {}, "cannot be imported"),
        ("broken_rewards:f", {}, r"cannot be imported \(SyntaxError: "),
        ("failing_rewards:f", {}, r"cannot be imported \(RuntimeError: no GPU\)"),
    ],
)
def test_a_reward_of_ones_own_that_cannot_be_had_is_one_line(tmp_path, monkeypatch, name, settings, message):
    (tmp_path / "broken_rewards.py").write_text("def f(:")
    (tmp_path / "failing_rewards.py").write_text("raise RuntimeError('no GPU')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        Rewards({name: settings}, {})
    assert "\n" not in str(caught.value)


def hear_nothing(sound):
    return None


def hear_badly(sound):
    raise IndexError("list index out of range")


@pytest.mark.parametrize(
    ("function", "message"),
    [("hear_nothing", "gave NoneType; it must give the words"), ("hear_badly", "failed: IndexError in hear_badly")],
)
def test_a_recogniser_of_ones_own_that_fails_is_one_line(context, function, message):
    reward = make("word_errors", recogniser=f"{__name__}:{function}")
    with pytest.raises(ValueError, match=message) as caught:
        reward([attempt("a red apple", Audio(codes=draw_codes(context, "audio", num=20)))], context)
    assert "\n" not in str(caught.value)


def test_a_recogniser_that_cannot_be_had_is_one_line():
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        make("word_errors", recogniser="no/such-recogniser")
    assert "\n" not in str(caught.value)
