"""A vocabulary with every kind of span and a decoder small enough for exact comparisons."""

import pytest

from unimodal.model.build import NanoConfig, build_nano
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

SMALL = NanoConfig(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48, max_positions=128)


@pytest.fixture(scope="session")
def vocabulary():
    return Vocabulary.build(
        20,
        [
            Block(name="image", modality="image", size=16),
            Block(name="audio", modality="audio", size=12),
            Block(name="video", modality="video", size=8),
        ],
        [
            SpanLayout("image", [Segment("image", 4)]),
            SpanLayout("audio", [Segment("audio")]),
            SpanLayout("video", [Segment("image", 4), Segment("video", 3), Segment("video", 3)]),
        ],
    )


@pytest.fixture
def make_model(vocabulary):
    def make(seed=0, vocab_size=None, **changes):
        control = vocabulary.get_control_id
        cfg = SMALL.model_copy(update={"init_std": 0.2, **changes})
        return build_nano(
            vocab_size or vocabulary.size,
            cfg,
            pad_id=control("<|pad|>"),
            bos_id=control("<|bos|>"),
            eos_id=control("<|eos|>"),
            seed=seed,
        ).eval()

    return make
