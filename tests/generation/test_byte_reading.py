"""A model as a distribution over bytes: its own next-token probabilities, added up by what the rows spell."""

import numpy as np
import pytest
import torch

from tests.sequence.conftest import text, text_folder
from unimodal.generation.byte_reading import make_byte_distribution
from unimodal.generation.engine import Engine
from unimodal.model.build import build_nano
from unimodal.text.byte_distribution import END
from unimodal.text.reports.opened import OpenedTokenizer
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

from .conftest import TINY

__all__ = ["text", "text_folder"]


@pytest.fixture(scope="module")
def engine(text) -> Engine:
    vocabulary = Vocabulary.build(
        text.size, [Block(name="image", modality="image", size=24)], [SpanLayout("image", [Segment("image", 6)])]
    )
    ids = {name: vocabulary.get_control_id(f"<|{name[:3]}|>") for name in ("pad_id", "bos_id", "eos_id")}
    return Engine(build_nano(vocabulary.size, TINY, seed=3, **ids).eval(), vocabulary)


def test_the_next_row_has_the_models_own_probability_among_those_that_may_come(engine):
    prompt = [engine.vocabulary.get_control_id("<|bos|>"), 5, 300, 301]
    vocabulary = engine.vocabulary
    may = [row for rows in vocabulary.text_ranges for row in rows]
    may += [vocabulary.get_control_id("<|end_of_turn|>"), vocabulary.get_start_id("image")]
    with torch.inference_mode():
        logits = engine.model(torch.tensor([prompt])).logits[0, -1].float()
    wanted = torch.zeros(vocabulary.size)
    wanted[may] = logits[may].softmax(0)  # what no answer may say here, such as a code, has no part
    assert torch.allclose(engine.compute_next(prompt), wanted, atol=1e-6)
    inside = engine.compute_next([*prompt, vocabulary.get_start_id("image")])
    assert set(inside.nonzero()[:, 0].tolist()) == set(vocabulary.get_block_range("image"))
    with pytest.raises(ValueError, match="at least one id"):
        engine.compute_next([])
    with pytest.raises(ValueError, match="exceeds the model's 128 positions"):
        engine.compute_next([5] * 129)


def test_bytes_behind_a_prompt_are_rows_added_up(engine, text):
    before = [engine.vocabulary.get_control_id("<|bos|>")]
    spelled = OpenedTokenizer(text.data, "text").spelled
    sums = np.zeros(257)
    for row, probability in enumerate(engine.compute_next(before).double().numpy()):
        piece = spelled.get(row, b"")
        sums[piece[0] if piece else END] += probability
    assert make_byte_distribution(engine, text, before, canonical=False).compute("") == pytest.approx(sums, abs=1e-6)
    found = make_byte_distribution(engine, text, before).compute("the c")
    assert found.sum() == pytest.approx(1) and found[ord("a")] > 0 and found[END] > 0
    with pytest.raises(ValueError, match="give at least"):
        make_byte_distribution(engine, text, [])
