"""Merged prompts: the pairs that are merged, and a model that reads unmerged ones as its own forward does."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.tiny_bases import make_base
from tools.bench_merging import cut_in_two, main
from unimodal.model.front_ends.merged_prompts import MergedPrompts, merge_tokens
from unimodal.text.reports.opened import OpenedTokenizer
from unimodal.text.trainers import TrainingSettings, train

LINES = ["the file is open", "the user opens the file", "a file, the files"] * 3


@pytest.fixture(scope="module")
def letters():
    """Every token one byte, so that all merging is left to the batch."""
    return OpenedTokenizer(train(LINES, TrainingSettings("bytes")), "bytes")


def spell(tokenizer, unit):
    return b"".join(tokenizer.spelled[row] for row in unit).decode()


def test_the_most_frequent_pairs_within_words_are_merged_first(letters):
    prompts = [letters.encode(line) for line in ("abab ab, ba", "ab ba")]
    units = [[spell(letters, unit) for unit in prompt] for prompt in merge_tokens(prompts, letters, 1)]
    assert units == [["ab", "ab", " ", "ab", ",", " ", "b", "a"], ["ab", " ", "b", "a"]]
    units = [[spell(letters, unit) for unit in prompt] for prompt in merge_tokens(prompts, letters, 2)]
    assert units == [["ab", "ab", " ", "ab", ",", " ", "ba"], ["ab", " ", "ba"]]  # ba is there twice, abab once
    assert merge_tokens(prompts, letters, 0) == [[(row,) for row in prompt] for prompt in prompts]


def test_all_merges_make_every_word_one_unit_and_lose_nothing(letters):
    prompts = [letters.encode(line) for line in LINES]
    merged = merge_tokens(prompts, letters)
    assert [[row for unit in prompt for row in unit] for prompt in merged] == prompts
    assert [spell(letters, unit) for unit in merged[2]] == ["a", " ", "file", ",", " ", "the", " ", "files"]
    counts = [sum(map(len, merge_tokens(prompts, letters, n))) for n in (0, 1, 3, 9, 30)]
    assert counts == sorted(counts, reverse=True) and counts[-1] < counts[0] / 2


def test_merges_know_the_tokens_of_a_real_tokenizer():
    tokenizer = OpenedTokenizer(train(LINES, TrainingSettings("bpe", 262)), "bpe")
    prompt = tokenizer.encode("the user opens")
    [merged] = merge_tokens([prompt], tokenizer)
    assert [spell(tokenizer, unit).strip() for unit in merged if spell(tokenizer, unit).strip()] == [
        "the", "user", "opens",
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("gemma", True), ("granite", False), ("gpt2", True)])
def test_unmerged_prompts_are_read_as_the_model_reads_them(kind, tied):
    model = make_base(kind, tied)
    prompt, answer = [3, 7, 9, 11], [4, 5, 6]
    reader = MergedPrompts(model)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    expected = float(cross_entropy(logits, torch.tensor(answer), reduction="sum"))
    assert reader.score([(row,) for row in prompt], answer) == pytest.approx(expected, rel=1e-4)
    # a merged unit is one position with the mean row
    merged = reader.score([(3,), (7, 9), (11,)], answer)
    assert merged != pytest.approx(expected, rel=1e-4)
    table = model.get_input_embeddings()
    with torch.no_grad():
        scale = float(table(torch.tensor([3])).abs().sum() / table.weight[3].abs().sum())
        rows = torch.stack([table.weight[3], table.weight[[7, 9]].mean(0), table.weight[11], table.weight[4],
                            table.weight[5]]) * scale  # fmt: skip
        logits = model(inputs_embeds=rows[None], use_cache=False).logits[0, 2:]
    assert merged == pytest.approx(float(cross_entropy(logits, torch.tensor(answer), reduction="sum")), rel=1e-4)
    with pytest.raises(ValueError, match="at least one token"):
        reader.score([], answer)


def test_the_bench_measures_behind_prompts_and_refuses_in_one_line(letters, tmp_path, capsys):
    base = tmp_path / "base"
    make_base("llama", True, vocab_size=letters.text.size, max_position_embeddings=1100).save_pretrained(base)
    (base / "tokenizer.json").write_text(json.dumps(letters.data))
    (tmp_path / "text.txt").write_text("\n".join(LINES) + "\n")
    main([str(base), str(tmp_path / "text.txt"), "--merges", "0", "5", "all"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    positions = [int(row[1].replace(",", "")) for row in rows]
    assert positions[0] > positions[1] > positions[2] and rows[0][2].strip() == "0.0%"
    assert len({row[3] for row in rows}) == 3
    assert cut_in_two("one two three") == ("one two", " three") and cut_in_two("abcd") == ("ab", "cd")
    for wrong, said in ((["--merges", "few"], "give numbers, or all"), (["--pieces", "0"], "one or more")):
        with pytest.raises(SystemExit) as stopped:
            main([str(base), str(tmp_path / "text.txt"), *wrong])
        err = capsys.readouterr().err
        assert stopped.value.code == 2 and said in err and len(err.splitlines()) == 1
