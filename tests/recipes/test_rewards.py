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


def give_none(attempts, context):
    return None


def give_words(attempts, context):
    return ["1"] * len(attempts)


NO_FUNCTION = 3


@pytest.mark.parametrize("name", ["give_numpy", "give_torch"])
def test_numbers_of_numpy_and_torch_are_numbers(context, name):
    rewards = Rewards({f"{__name__}:{name}": {}}, {})
    assert rewards.score([attempt("draw.", Text("no"))] * 3, context)[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("give_none", {}, "gave None; it must give a list of a number for each answer"),
        ("give_words", {}, "gave '1' for an answer to 'draw.'; it must be a finite number"),
        ("give_none", {"scale": 2}, "unexpected keyword argument 'scale'"),
        ("NO_FUNCTION", {}, "is no function"),
    ],
)
def test_a_reward_of_ones_own_that_is_none_is_one_line(context, name, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        Rewards({f"{__name__}:{name}": settings}, {}).score([attempt("draw.", Text("no"))], context)
    assert "\n" not in str(caught.value)


def test_a_recogniser_that_cannot_be_had_is_one_line():
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        make("word_errors", recogniser="no/such-recogniser")
    assert "\n" not in str(caught.value)
