"""A vocabulary with every kind of span and small random models whose answers are not obvious."""

import pytest

from unimodal.model.build import NanoConfig, build_nano
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

TINY = NanoConfig(
    hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48, max_positions=128, init_std=0.2
)


@pytest.fixture(scope="session")
def vocabulary():
    return Vocabulary.build(
        30,
        [
            Block(name="image", modality="image", size=24),
            Block(name="audio", modality="audio", size=12),
            Block(name="video", modality="video", size=8),
        ],
        [
            SpanLayout("image", [Segment("image", 6)]),
            SpanLayout("audio", [Segment("audio")]),
            SpanLayout("video", [Segment("image", 4), Segment("video", 3), Segment("video", 3)]),
        ],
        text_reserved=[0, 7],
    )


@pytest.fixture(scope="session")
def make_model(vocabulary):
    def make(seed=0, **changes):
        control = vocabulary.get_control_id
        ids = {"pad_id": control("<|pad|>"), "bos_id": control("<|bos|>"), "eos_id": control("<|eos|>")}
        return build_nano(vocabulary.size, TINY.model_copy(update=changes), seed=seed, **ids).eval()

    return make


@pytest.fixture(scope="session")
def model(make_model):
    return make_model()


@pytest.fixture
def ask(vocabulary):
    """The ids of a question: <|bos|> <|user|> words <|end_of_turn|> <|assistant|>, then the beginning of an answer."""

    def make(words=(), answer=()):
        bos, user, end, assistant = (
            vocabulary.get_control_id(name) for name in ("<|bos|>", "<|user|>", "<|end_of_turn|>", "<|assistant|>")
        )
        return [bos, user, *words, end, assistant, *answer]

    return make
