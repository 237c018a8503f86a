"""Several questions about one picture: later ones find what the first one's reading left, and nothing else."""

import copy

import pytest
import torch

from tests.evaluation.test_scene_suites import scenes  # noqa: F401  # a fixture
from unimodal.compression import METHODS
from unimodal.evaluation.cached_answers import count_cache_bytes
from unimodal.evaluation.compression_timing import compare_first_token
from unimodal.evaluation.prepared_scenes import ask
from unimodal.evaluation.several_questions import SeveralQuestions, answer_later
from unimodal.pipeline.compression import compress
from unimodal.sequence.document import Document, Text, Turn


@pytest.fixture(scope="module")
def several(model, scenes):  # noqa: F811
    return SeveralQuestions.load(model, scenes, 6, seed=0)


def test_pictures_come_with_their_questions(several, model):
    assert 6 <= len(several.groups) < 12 and all(len(asked) > 1 for asked in several.questions)
    assert several.groups == [n for n, asked in enumerate(several.questions) for _ in range(len(asked) - 1)]
    right = [question.answer for asked in several.questions for question in asked[1:]]
    assert several.judge(right) == [1.0] * len(right) and several.judge(["nonsense"] * len(right)) == [0.0] * len(right)
    assert several.media[0].codes is not None


def test_a_later_question_is_answered_as_the_second_turn_of_one_prompt(several, model):
    """Without compression the cache of the first turn is the beginning of the whole prompt's."""
    medium, asked = several.media[0], several.questions[0]
    first = [Turn("user", ask(medium, asked[0].text).turns[0].parts), Turn("assistant", [Text(asked[0].answer)])]
    whole = [
        model.answers([Document([*first, Turn("user", [Text(one.text)])])], to="text", tokens=8, decoder="plain")
        for one in asked[1:]
    ]
    later = answer_later(model, medium, asked)
    for [[output]], found in zip(whole, later, strict=True):
        assert found.startswith(output.text.strip())  # of eight tokens


@pytest.mark.parametrize("name", ["fastv", "snapkv", "divprune", "kivi"])
def test_a_later_question_changes_nothing_of_what_was_kept(name, several, model, monkeypatch):
    """The question comes behind the choice: whatever the others ask, each is answered as alone."""
    medium, asked = several.media[0], several.questions[0][:3]
    with compress(model, name, keep=0.25):
        together = answer_later(model, medium, asked)
        assert [answer_later(model, medium, [asked[0], one])[0] for one in asked[1:]] == together


def test_first_tokens_and_caches_are_compared_side_by_side(several, model):
    documents = [ask(medium, "what is this?") for medium in several.media[:2]]

    def open_method(name):
        return lambda: METHODS[name](0.25)(model)

    halved, packed = (compare_first_token(model, documents, open_method(name), 3) for name in ("stride", "kivi"))
    assert halved.rounds == 3 and min(halved.wall, halved.processor, packed.wall, packed.processor) > 0
    assert 0.2 < halved.cache < 0.6 and packed.cache < 1
    from transformers import DynamicCache

    own = model.engine.model
    cache = DynamicCache(config=own.config)
    with torch.inference_mode():
        own(torch.tensor([[5, 6, 7]]), use_cache=True, past_key_values=cache)
    held = cache.layers[0].keys
    assert count_cache_bytes(copy.deepcopy(cache)) == 2 * len(cache.layers) * held.numel() * held.element_size()
