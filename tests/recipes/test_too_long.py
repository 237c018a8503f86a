"""Documents that are longer than a row or than the model's positions: told with their place and left out."""

import io
import json
import tarfile

import pytest
from PIL import Image

from unimodal.corpus.corpus import Corpus, CorpusConfig
from unimodal.corpus.documents import MOST_TOLD
from unimodal.data.datasets import DatasetConfig
from unimodal.data.token_shards import write_token_shards
from unimodal.data.tokenized import collect_hashes
from unimodal.text.tokenizer import TextTokenizer
from unimodal.tuning.vocabulary import make_template, open_media


@pytest.fixture
def template(media_folder):
    text = TextTokenizer.load(media_folder)
    return make_template(text, text.size, None)


def rows_of(path, lengths):
    """A dataset whose answers are of so many words."""
    rows = [{"messages": [{"role": "user", "content": "say"}, {"role": "assistant", "content": " ".join(["cat"] * n)}]}
            for n in lengths]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def corpus(path, template, max_positions=None, **settings):
    cfg = CorpusConfig(datasets=[DatasetConfig(path=str(path))], tokens_per_batch=128, **settings)
    return Corpus(cfg, template, None, False, max_positions)


def drawn(batches, template, num=30):
    """The lengths of the documents of some batches, padding aside."""
    lengths = []
    for _ in range(num):
        batch = batches.next_batch()
        for ids, positions in zip(batch.ids, batch.position_ids, strict=True):
            starts = [*(positions == 0).nonzero()[0], len(ids)]
            begun = ids[starts[:-1]] == template.vocabulary.get_control_id("<|bos|>")
            lengths += [int(b - a) for a, b, real in zip(starts, starts[1:], begun, strict=False) if real]
    return lengths


def test_a_document_longer_than_a_row_is_told_once_with_its_line(template, tmp_path, capsys):
    given = corpus(rows_of(tmp_path / "rows.jsonl", [3, 200, 4]), template, length=64)
    drawn(given.make_batches(), template)
    said = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(said) == 1 and "rows.jsonl" in said[0] and "2" in said[0].partition("rows.jsonl")[2].partition(":")[0]
    assert "corpus.length is 64" in said[0]


def test_a_row_may_be_longer_than_the_model_a_document_may_not(template, tmp_path, capsys):
    path = rows_of(tmp_path / "rows.jsonl", [3, 60, 4])
    lengths = drawn(corpus(path, template, max_positions=256, length=128).make_batches(), template)
    assert max(lengths) > 40 and len(set(lengths)) == 3
    assert not capsys.readouterr().err
    batches = corpus(path, template, max_positions=40, length=128).make_batches()
    kept = drawn(batches, template)
    assert max(kept) <= 40 and len(set(kept)) == 2 and batches.next_batch().ids.shape[1] == 128
    assert "the model's number of positions is 40" in capsys.readouterr().err


def test_many_are_told_five_times(template, tmp_path, capsys):
    given = corpus(rows_of(tmp_path / "rows.jsonl", [3, *[200] * 12]), template, length=64)
    [documents] = given.sets.values()
    for _ in range(2):
        assert sum(len(documents[i]) > 64 for i in range(13)) == 12
    said = capsys.readouterr().err.splitlines()
    assert len(said) == MOST_TOLD and "further ones" in said[-1] and documents.num_too_long == 12


@pytest.mark.sweep("recipes at work")
def test_nothing_but_too_long_documents_is_one_line(template, tmp_path):
    given = corpus(rows_of(tmp_path / "rows.jsonl", [200, 300]), template, length=64)
    with pytest.raises(ValueError, match=r"1000 documents in a row have more than 64 tokens \(corpus.length\)"):
        given.check()
    held = DatasetConfig(path=str(tmp_path / "rows.jsonl"))
    short = corpus(rows_of(tmp_path / "short.jsonl", [3]), template, length=64, validation=[held])
    short.check()
    with pytest.raises(ValueError, match="no document for validation can be used"):
        short.make_validation_batches()


def test_held_out_documents_that_are_too_long_are_told_and_no_other_stands_in_for_them(template, tmp_path, capsys):
    held = DatasetConfig(path=str(rows_of(tmp_path / "held.jsonl", [3, 200, 5])))
    given = corpus(rows_of(tmp_path / "rows.jsonl", [3]), template, length=64, validation=[held])
    [batch] = given.make_validation_batches()
    assert int((batch.ids == template.vocabulary.get_control_id("<|bos|>")).sum()) == 2
    assert "held.jsonl" in capsys.readouterr().err


def test_what_is_drawn_does_not_depend_on_what_was_drawn_before(media_folder, tmp_path):
    """Where some documents are short enough only without their words: a stop and a resume change nothing."""
    text, media = TextTokenizer.load(media_folder), open_media(media_folder)
    template = make_template(text, text.size, media)
    path = tmp_path / "rows.jsonl"
    rows = []
    for number in range(8):
        Image.new("RGB", (64, 64), (30 * number, 20, 200)).save(tmp_path / f"{number}.png")
        asked = {"role": "user", "content": " ".join(["cat"] * (2 + 8 * number))}
        drawn_ = {"role": "assistant", "content": [{"type": "image", "path": f"{number}.png"}]}
        rows.append({"messages": [asked, drawn_]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = CorpusConfig(
        datasets=[DatasetConfig(path=str(path))],
        length=100,
        tokens_per_batch=200,
        condition_dropout=0.5,
        batches_per_window=2,
    )
    whole = Corpus(cfg, template, media, False).make_batches()
    states, ids = [], []
    for _ in range(30):
        states.append(whole.state_dict())
        ids.append(whole.next_batch().ids)
    assert whole.num_too_long > 0
    for at in (7, 16, 25):
        resumed = Corpus(cfg, template, media, False).make_batches()
        resumed.load_state_dict(states[at])
        assert all((resumed.next_batch().ids == ids[i]).all() for i in range(at, 30))


def test_shards_say_how_many_are_too_long(template, tmp_path, capsys):
    direct = corpus(rows_of(tmp_path / "rows.jsonl", [3, 60, 70, 4]), template)
    [documents] = direct.sets.values()
    hashes = collect_hashes(template.vocabulary)
    write_token_shards(tmp_path / "shards", documents.__getitem__, 4, template.vocabulary.size, hashes)
    given = corpus(tmp_path / "shards", template, max_positions=40, length=128)
    assert "left out 2 of 4 documents of" in capsys.readouterr().err
    batches = given.make_batches()
    assert len(set(drawn(batches, template))) == 2 and batches.num_too_long > 0


def test_long_rows_are_cut_by_choice_and_counted(template, tmp_path, capsys):
    path = rows_of(tmp_path / "rows.jsonl", [3, 200, 4, 70])
    for mode, said in (("truncate", "truncated 2 of 4"), ("split", "split 2 of 4"), ("drop", "")):
        given = corpus(path, template, length=64, long_rows=mode)
        given.check()
        assert f"{said} documents of rows.jsonl: corpus.length is 64" in capsys.readouterr().err or not said
    given = corpus(path, template, length=64, long_rows="error")
    with pytest.raises(ValueError, match=r"too long are 2 of 4 documents of rows.jsonl: corpus.length is 64; raise it"):
        given.check()
    held = DatasetConfig(path=str(rows_of(tmp_path / "held.jsonl", [200])))
    short = rows_of(tmp_path / "short.jsonl", [3])
    with pytest.raises(ValueError, match=r"too long are 1 of 1 documents of held.jsonl"):
        corpus(short, template, length=64, long_rows="error", validation=[held]).check()


def test_a_split_row_is_learnt_whole_and_a_truncated_one_up_to_the_row(template, tmp_path):
    """Over one pass: the tokens that are learnt, by what becomes of a row of 200 words."""
    path = rows_of(tmp_path / "rows.jsonl", [200])
    whole = corpus(path, template, length=512)
    [rendered] = [whole.sets[name][0] for name in whole.sets]
    given = corpus(path, template, length=64, long_rows="split")
    num = int(given.count_batches(1))
    batches = given.make_batches(whole_passes=True)
    split = sum(int((batches.next_batch().segment_ids > 0).sum()) for _ in range(num))
    given = corpus(path, template, length=64, long_rows="truncate")
    cut = int((given.make_batches(whole_passes=True).next_batch().segment_ids > 0).sum())
    assert split == len(rendered) and cut == 64


def test_rows_of_similar_length_and_the_last_answer_are_settings(template, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "say"}, {"role": "assistant", "content": "cat"}] * 2}] * 3
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = corpus(tmp_path / "rows.jsonl", template, length=64).make_batches(whole_passes=True).next_batch()
    last = corpus(tmp_path / "rows.jsonl", template, length=64, packing=False, mask_history=True)
    batch = last.make_batches(whole_passes=True).next_batch()
    assert batch.ids.shape[0] == 3 and batch.ids.shape[1] < 64 and (batch.segment_ids <= 1).all()
    assert 2 * (batch.labels >= 0).sum() == (both.labels >= 0).sum()


def judged_rows(path, kind, lengths):
    """Rows of a kind whose answers are of so many words, each asked for after an earlier answer."""
    history = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "dog"}]
    rows = []
    for n in lengths:
        asked, said = [*history, {"role": "user", "content": "say more"}], " ".join(["cat"] * n)
        answer = {"role": "assistant", "content": said}
        rows.append({"pairs": {"messages": [*asked, answer], "rejected_response": "no"},
                     "labels": {"messages": [*asked, answer], "label": True},
                     "prompts": {"messages": [*asked, answer]}}[kind])  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", ["pairs", "labels", "prompts"])
@pytest.mark.parametrize("mode", ["drop", "truncate", "split", "error"])
def test_answers_that_are_judged_are_never_cut(template, tmp_path, capsys, kind, mode):
    """No piece of a judged answer is learnt or validated under the label of the whole one."""
    data = CorpusConfig(datasets=[DatasetConfig(path=str(judged_rows(tmp_path / "a.jsonl", kind, [3, 200, 4])))],
                        validation=[DatasetConfig(path=str(judged_rows(tmp_path / "b.jsonl", kind, [200, 3])))],
                        length=96, tokens_per_batch=192, long_rows=mode)  # fmt: skip
    given = Corpus(data, template, None, False, rows=kind)
    if mode == "error":
        with pytest.raises(ValueError, match="too long are 1 of 3 documents of a.jsonl"):
            given.check()
        return
    given.check()
    if mode != "drop":
        said = capsys.readouterr().err
        assert "left out 1 of 3 documents of a.jsonl: corpus.length is 96" in said
        assert "left out 1 of 2 documents of b.jsonl" in said and "split" not in said and "truncated" not in said
    batches = [*given.make_validation_batches(), *(given.make_batches().next_batch() for _ in range(2))]
    begin = template.vocabulary.get_control_id("<|bos|>")
    for batch in batches:
        assert (batch.ids[(batch.position_ids == 0) & (batch.segment_ids > 0)] == begin).all()


@pytest.mark.parametrize("kind", ["pairs", "labels"])
def test_the_last_answer_alone_is_judged_by_choice(template, tmp_path, kind):
    """Of pairs that differ in two answers, and of labels."""
    turns = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "cat"}] * 2
    other = [turns[0], {"role": "assistant", "content": "dog"}] * 2
    row = {"chosen": turns, "rejected": other} if kind == "pairs" else {"messages": turns, "label": False}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    learnt = []
    for mask in (False, True):
        data = CorpusConfig(datasets=[DatasetConfig(path=str(tmp_path / "rows.jsonl"))], length=96, mask_history=mask)
        batch = Corpus(data, template, None, False, rows=kind).make_batches(whole_passes=True).next_batch()
        learnt.append(int((batch.labels >= 0).sum()))
    assert learnt[0] == 2 * learnt[1] > 0


def test_the_answer_that_rewards_compare_with_is_the_last(template, tmp_path):
    path = judged_rows(tmp_path / "rows.jsonl", "prompts", [3])
    data = CorpusConfig(datasets=[DatasetConfig(path=str(path))], length=96)
    [documents] = Corpus(data, template, None, False, rows="prompts").sets.values()
    _, answered = documents[0].split_group()
    [part] = template.parse_answer(answered.labels[answered.labels >= 0])
    assert part.text == "cat cat cat"


def test_a_batch_that_is_smaller_than_a_row_is_told(template, tmp_path, capsys):
    path = rows_of(tmp_path / "rows.jsonl", [3])
    for given, told in (({"tokens_per_batch": 64}, True), ({}, False), ({"tokens_per_batch": 4096}, False)):
        cfg = CorpusConfig(datasets=[DatasetConfig(path=str(path))], length=2048, **given)
        Corpus(cfg, template, None, False)
        said = capsys.readouterr().err
        assert ("corpus.tokens_per_batch 64 is less than a row: batches have corpus.length 2048" in said) == told


def test_files_of_other_kinds_are_told(template, tmp_path, capsys):
    with tarfile.open(tmp_path / "rows.tar", "w") as tar:
        for name, content in (("a.txt", b"cat"), ("a.json", b"{}"), ("a.xyz", b"?")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    corpus(tmp_path / "rows.tar", template, length=64)
    assert "rows.tar: files of other kinds, 1 of xyz" in capsys.readouterr().err


def test_a_share_that_leaves_nothing_to_learn_from_is_one_line(template, tmp_path):
    path = rows_of(tmp_path / "rows.jsonl", [3, 4])
    with pytest.raises(ValueError, match="nothing of rows.jsonl is left to learn from: validation_share 0.9 of 2"):
        corpus(path, template, length=64, validation_share=0.9)


CODES = {
    "too few": ([1, 2, 3], "image has 3 codes"),
    "below 0": ([-1] * 64, "image code -1 is outside"),
    "too large": ([10**9] * 64, "image code 1000000000 is outside"),
    "of groups": ([[1, 2]] * 64, r"image codes have shape \[64, 2\]"),
}


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("rows", ["answers", "pairs", "labels", "prompts"])
def test_codes_that_the_model_has_not_are_a_bad_row(media_folder, tmp_path, capsys, kind, rows):
    text, media = TextTokenizer.load(media_folder), open_media(media_folder)
    template, (codes, message) = make_template(text, text.size, media), CODES[kind]

    def row(codes):
        drawn_ = {"role": "assistant", "content": [{"type": "image", "codes": codes}]}
        asked = {"role": "user", "content": "draw"}
        if rows == "pairs":
            return {"prompt": [asked], "chosen": [{"role": "assistant", "content": "no"}], "rejected": [drawn_]}
        return {"messages": [asked, drawn_]} | ({"label": True} if rows == "labels" else {})

    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(row([1] * 64))}\n{json.dumps(row(codes))}\n")
    for mode in ("fail", "skip"):
        cfg = CorpusConfig(datasets=[DatasetConfig(path=str(path), on_bad_row=mode)], length=256)
        given = Corpus(cfg, template, media, False, rows=rows)
        if mode == "fail":
            with pytest.raises(
                ValueError, match=rf"rows.jsonl line 2: {message}.*; mend it, or set on_bad_row to skip"
            ):
                given.encode()
            continue
        given.encode()
        given.check()
        assert "skipped" in (said := capsys.readouterr().err) and "rows.jsonl line 2" in said
