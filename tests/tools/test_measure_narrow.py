"""The measure of narrow weights: its log-probabilities are the engine's own, and exact weights lose nothing."""

import pytest

from tests.generation.conftest import TINY
from tools.measure_narrow import main, score
from unimodal.generation.engine import Engine
from unimodal.model.build import build_nano
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary


def test_scores_add_up_to_the_likelihood():
    layouts = [SpanLayout("image", [Segment("image", 2)])]
    vocabulary = Vocabulary.build(30, [Block(name="image", modality="image", size=24)], layouts)
    engine = Engine(build_nano(vocabulary.size, TINY, pad_id=0, bos_id=1, eos_id=2, seed=0).eval(), vocabulary)
    prompt, codes = [1, 5, 6], vocabulary.get_block_range("image")
    answer = [7, 8, *vocabulary.encode_span("image", [3, 20])]
    each, likeliest = score(engine, prompt, answer)
    assert len(each) == len(likeliest) == len(answer) == 6
    assert {int(row) in codes for row in likeliest[3:5]} == {True} and int(likeliest[5]) == answer[5]
    assert {int(row) in codes for row in likeliest[:3]} == {False}
    assert float(each.sum()) == pytest.approx(engine.compute_log_likelihood([prompt], [answer])[0], abs=1e-4)


@pytest.mark.sweep("measures of nano")
def test_the_table_of_nano(capsys):
    main(["--rows", "2", "--weights", "float32", "int8", "--kv"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    whole = {row[0]: float(row[4]) for row in rows if row[2] == "all"}
    assert abs(whole["float32"]) < 1e-4 and abs(whole["int8"]) < 0.05
