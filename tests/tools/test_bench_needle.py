"""Needles in a long text: what is hidden is there once, questions do not see each other, and rows are measured once."""

import copy
import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DynamicCache

from tests.compression.conftest import SIZES
from tools import bench_needle as bench
from unimodal.compression import METHODS
from unimodal.evaluation.cached_answers import continue_greedily, continue_rows
from unimodal.model.build import build_nano
from unimodal.vocabulary import Vocabulary

PARAGRAPHS = [f"It was day {number} of a long walk. They saw a hill and a house. " * 3 for number in range(20)]


@pytest.fixture(scope="module")
def tokenizer():
    """A token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({sign: place for place, sign in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made


@pytest.mark.parametrize("length", [400, 1000])
def test_every_needle_is_whole_in_a_text_of_the_length(tokenizer, length):
    one = bench.make_haystack(PARAGRAPHS, tokenizer, length, 3, seed=1)
    text = tokenizer.decode(one.ids).replace(" ", "").replace("Ġ", "")
    assert length - 80 < len(one.ids) <= length and len(one.numbers) == 3
    for key, number in one.numbers.items():
        assert text.count(bench.NEEDLE.format(key=key, number=number).replace(" ", "")) == 1
    assert one == bench.make_haystack(PARAGRAPHS, tokenizer, length, 3, seed=1)
    with pytest.raises(ValueError, match="3 needles are longer than a text of 50 tokens"):
        bench.make_haystack(PARAGRAPHS, tokenizer, 50, 3, seed=1)


@pytest.mark.parametrize(
    ("text", "number"), [(" 123 and 4", "123"), ("1,234,567.", "1234567"), ("it is 77\n", "77"), ("none", "")]
)
def test_the_first_number_counts(text, number):
    assert bench.read_number(text) == number


@pytest.mark.parametrize("name", ["whole", "streaming_llm", "snapkv", "h2o", "tova", "kivi", "tokenselect", "adakv"])
def test_a_question_to_a_shared_cache_is_answered_as_alone(tokenizer, name):
    model = build_nano(
        300, SIZES.model_copy(update={"max_positions": 1024}), pad_id=0, bos_id=0, eos_id=1, seed=0
    ).eval()
    vocabulary = Vocabulary.build(256, [], [])
    whole = bench.make_haystack(PARAGRAPHS, tokenizer, 300, 3, seed=2)
    read = []

    class Spy:
        token_to_id = staticmethod(lambda name: None)
        encode = staticmethod(tokenizer.encode)
        decode = staticmethod(lambda ids: read.append(list(ids)) or "")  # no answer is settled early

    def open_method():
        return nullcontext() if name == "whole" else METHODS[name](0.5, scope="prompt")(model, vocabulary)

    for way in bench.WAYS:
        assert bench.ask(model, Spy, whole, open_method(), way) == [False] * 3
        together, alone = read[-3:], []  # the whole answers are decoded last
        for key, number in whole.numbers.items():
            bench.ask(model, Spy, bench.Haystack(whole.ids, {key: number}), open_method(), way)
            alone.append(read[-1])
        assert together == alone and len(alone[0]) == bench.ANSWER_TOKENS


def test_a_row_stops_where_its_answer_is_settled(tokenizer):
    model = build_nano(300, SIZES, pad_id=0, bos_id=0, eos_id=1, seed=0).eval()
    cache = DynamicCache(config=model.config)
    continue_greedily(model, range(5, 25), cache, 1, ())
    rows = [[30, 31, 32], [40], [50, 51]]
    whole = continue_rows(model, rows, cache, 6, ())
    assert cache.get_seq_length() == 20
    assert whole == [continue_greedily(model, row, copy.deepcopy(cache), 6, ()) for row in rows]
    settled = continue_rows(model, rows, cache, 6, (), is_settled=lambda row, ids: len(ids) > row)
    assert settled == [ids[: row + 1] for row, ids in enumerate(whole)]


def test_rows_are_measured_once_and_the_table_has_intervals(tmp_path, tokenizer, monkeypatch, capsys):
    model = build_nano(300, SIZES.model_copy(update={"max_positions": 1024}), pad_id=0, bos_id=0, eos_id=1, seed=0)
    base = SimpleNamespace(model=model, num_rows=300, tokenizer=json.loads(tokenizer.to_str()))
    monkeypatch.setattr("unimodal.model.base.load_base", lambda name, precision: base)
    monkeypatch.setattr(bench, "read_paragraphs", lambda raw, split: PARAGRAPHS)
    settings = ["measure", "--rows", str(tmp_path / "rows"), "--lengths", "200", "--keeps", "0.5", "--texts", "2",
                "--needles", "2", "--methods", "snapkv"]  # fmt: skip
    bench.main(settings)
    assert len(capsys.readouterr().out.splitlines()) == 4
    bench.main(settings)
    assert not capsys.readouterr().out
    bench.main(["write", "--rows", str(tmp_path / "rows"), "--out", str(tmp_path / "table.md")])
    table = (tmp_path / "table.md").read_text()
    assert "2 texts with 2 needles each" in table and "| snapkv | 0.5 | 0 (0–" in table
    for wrong, said in (
        (["write", "--rows", str(tmp_path / "none")], "has no rows; measure some first"),
        (["measure", "--rows", str(tmp_path / "x"), "--methods", "divprune"], "--methods divprune: choose from"),
    ):
        with pytest.raises(SystemExit):
            bench.main(wrong)
        assert said in capsys.readouterr().err
