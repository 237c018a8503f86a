"""Kept sets against those of kvpress (tools/compare_kvpress.py), on a prompt longer than every window."""

import json
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from tests.compression.conftest import cache_name
from tools.compare_kvpress import PRESSES, RATIO, REPEAT, SUFFIX, make_llama, make_prompt, pack_set, unpack_set
from unimodal.compression import METHODS
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

EXPECTED = json.loads(Path(__file__).with_name("kvpress.json").read_text(encoding="utf-8"))["sets"]
#: settings by which a method is that of kvpress, where its defaults are not: see the class
SETTINGS = {
    "adakv": {"safeguard": "least"},
    "h2o": {"averages": True, "recent_share": 0.0},
    "kvzip": {"asked": (*REPEAT, *SUFFIX)},
}


@pytest.fixture(scope="module")
def llama():
    return make_llama()


@pytest.fixture(scope="module")
def words():
    """A vocabulary in which every id of the prompt is a word."""
    return Vocabulary.build(300, [Block(name="image", modality="image", size=4)], [
        SpanLayout("image", [Segment("image", 4)]),
    ])  # fmt: skip


@pytest.mark.sweep
@pytest.mark.parametrize("name", [name for name in PRESSES if name in METHODS])
def test_the_entries_that_stay_are_those_of_kvpress(name, llama, words):
    """Jaccard of at least 0.98 in every head of every layer."""
    cache = DynamicCache(config=llama.config)
    with torch.inference_mode(), METHODS[name](1 - RATIO, scope="prompt", **SETTINGS.get(name, {}))(llama, words):
        llama.model(make_prompt(), **{cache_name(llama): cache}, use_cache=True)
    for layer, expected in zip(cache.layers, EXPECTED[name]["kept"], strict=True):
        positions, held = layer.slots.positions.expand(-1, 2, -1)[0], layer.slots.find_held().expand(-1, 2, -1)[0]
        for own, stays, text in zip(positions, held, expected, strict=True):
            kept = torch.zeros(400, dtype=torch.bool)
            kept[own[stays]] = True
            theirs = unpack_set(text)
            overlap = (kept & theirs).sum() / (kept | theirs).sum()
            assert overlap >= 0.98, (name, float(overlap))


def test_sets_are_written_and_read():
    kept = torch.rand(400) < 0.5
    assert torch.equal(unpack_set(pack_set(kept)), kept)
