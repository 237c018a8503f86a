"""A network that makes rows: what it begins as, what it promises, and that it learns for every tokenizer at once."""

import json
import random
from dataclasses import replace

import pytest
import torch

from tests.tiny_bases import make_base
from tests.tuning.conftest import ENGLISH, GERMAN
from tools import compare_transplants
from tools import train_hypernetwork as tool
from unimodal.tuning.transplant.hypernetwork import (
    MOST_PIECES,
    HypernetworkSettings,
    RowHypernetwork,
    read_pieces,
    stack_tables,
)
from unimodal.tuning.transplant.methods import MadeRows
from unimodal.tuning.transplant.request import TransplantRequest
from unimodal.tuning.transplant.sampled_tokenizer import LONGEST, sample_tokenizer
from unimodal.tuning.transplant.transplant import open_base, plan_transplant, transplant

SMALL = HypernetworkSettings(num_heads=2, num_layers=1)


@pytest.fixture(scope="module")
def rows():
    return torch.randn(30, 2, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9) + 3


def save(folder, old, kind="llama", tied=True):
    model = make_base(kind, tied, vocab_size=old.text.size + 4)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(old.data))
    return folder


@pytest.mark.parametrize("mean_start", [False, True])
def test_an_untrained_network_gives_the_first_piece_s_row_or_the_mean_of_all(mean_start, rows):
    network = RowHypernetwork(8, 2, SMALL.model_copy(update={"mean_start": mean_start}))
    network.fit_scales(rows)
    listed = [[3], [4, 5, 6], [7, 8], [], list(range(12))]
    found = network(*read_pieces(rows, listed))
    expected = [rows[pieces[:MOST_PIECES]].mean(0) if mean_start else rows[pieces[0]] for pieces in listed if pieces]
    expected.insert(3, rows.mean(0))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_a_token_has_the_same_rows_alone_and_beside_longer_ones(rows):
    network = RowHypernetwork(8, 2, SMALL)
    network.fit_scales(rows)
    torch.nn.init.normal_(network.last.weight)
    together = network(*read_pieces(rows, [[3], [4, 5], [9, 1, 2, 0]]))
    for pieces, found in zip(([3], [4, 5], [9, 1, 2, 0]), together, strict=True):
        torch.testing.assert_close(network(*read_pieces(rows, [pieces]))[0], found, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], rows[3])


def test_a_network_is_saved_whole_and_refused_where_it_does_not_fit(rows, tmp_path, old, new):
    network = RowHypernetwork(8, 2, SMALL)
    torch.nn.init.normal_(network.last.weight)
    network.save(tmp_path / "rows.safetensors")
    again = RowHypernetwork.load(tmp_path / "rows.safetensors")
    given = read_pieces(rows, [[1, 2], [3]])
    assert torch.equal(again(*given), network(*given)) and again.settings == SMALL
    request = TransplantRequest(old, new, hypernetwork=network, base_rows=torch.zeros(old.text.size, 1, 8))
    with pytest.raises(ValueError, match="makes 2 rows of width 8 a token, but the base has 1 of 8"):
        MadeRows("zett", request).make(torch.zeros(old.text.size, 8))
    with pytest.raises(ValueError, match="num_heads 3 does not divide the width 8"):
        RowHypernetwork(8, 1, HypernetworkSettings(num_heads=3))


def test_drawn_tokenizers_spell_every_text_and_differ():
    rng = random.Random(0)
    drawn = [sample_tokenizer(GERMAN[:20], 400, rng) for _ in range(3)]
    for tokenizer in drawn:
        assert 256 < tokenizer.num_rows <= 400
        assert sorted(tokenizer.spelled)[-1] == tokenizer.num_rows - 1
        assert {bytes([byte]) for byte in range(256)} <= set(tokenizer.spelled.values())
        assert max(map(len, tokenizer.spelled.values())) <= LONGEST
        for text in (GERMAN[0], ENGLISH[3], "  ein\tText\n", "файл", ""):
            assert b"".join(tokenizer.spelled[row] for row in tokenizer.encode(text)) == text.encode()
    assert drawn[0].data != drawn[1].data
    again = random.Random(0)
    assert [sample_tokenizer(GERMAN[:20], 400, again).data for _ in range(3)] == [one.data for one in drawn]
    # words of the text are among the rows: the tokens of a text are fewer than its bytes
    assert min(len(one.encode(GERMAN[0])) for one in drawn) < len(GERMAN[0]) / 2


@pytest.mark.sweep("trainings of hypernetworks")
@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("gemma", True), ("granite", False)])
def test_training_makes_rows_that_the_base_reads_and_leaves_the_base_alone(kind, tied, old, new, tmp_path, capsys):
    folder = save(tmp_path / "base", old, kind, tied)
    (tmp_path / "text.txt").write_text("\n".join(ENGLISH) + "\n")
    settings = ["--steps", "24", "--batch", "2", "--rows", "300", "--heads", "4", "--layers", "1", "--say-every", "1",
                "--learning-rate", "1e-2"]  # fmt: skip
    tool.main([str(folder), str(tmp_path / "text.txt"), "--out", str(tmp_path / "rows.safetensors"), *settings])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    losses = [float(line.split()[2]) for line in said]
    assert len(losses) == 24 and sum(losses[-4:]) < 0.8 * sum(losses[:4])
    tool.main([str(folder), str(tmp_path / "text.txt"), "--out", str(tmp_path / "none.safetensors"), *settings,
               "--seconds", "0"])  # fmt: skip
    assert "0 steps: 0 s of processor time" in capsys.readouterr().err
    before, base = open_base(str(folder)), open_base(str(folder))
    network = RowHypernetwork.load(tmp_path / "rows.safetensors")
    assert network.num_sides == (1 if tied else 2)
    plan = plan_transplant(base, new)
    request = replace(plan.request, hypernetwork=network, base_rows=stack_tables(base.tables, old.text.size))
    transplant(base, replace(plan, request=request), tmp_path / "moved", "zett")
    after = open_base(str(tmp_path / "moved"))
    kept = before.model.state_dict()
    for name, value in after.model.state_dict().items():
        assert value.shape != kept[name].shape or torch.equal(value, kept[name]), name
    row = next(row for row in sorted(new.spelled) if row not in request.shared)
    listed = [request.decompose(new.spelled[row])]
    with torch.no_grad():
        found = network.eval()(*read_pieces(request.base_rows, listed))[0]
    torch.testing.assert_close(after.tables.input[row], found[0], rtol=1e-4, atol=1e-4)
    if not tied:
        torch.testing.assert_close(after.tables.output[row], found[1], rtol=1e-4, atol=1e-4)


def test_what_is_wrong_is_one_line(old, tmp_path, capsys):
    folder = save(tmp_path / "base", old)
    (tmp_path / "short.txt").write_text("a line\n")
    for arguments, said in (
        ([str(folder), str(tmp_path / "short.txt"), "--out", str(tmp_path / "x")], "1 pieces of text are too few"),
        ([str(folder), str(tmp_path / "none"), "--out", str(tmp_path / "x")], "no such file"),
        ([str(folder), str(tmp_path / "short.txt"), "--out", str(tmp_path / "no" / "x")], "create it first"),
        (
            [str(folder), str(tmp_path / "short.txt"), "--out", str(tmp_path / "x"), "--batch", "1", "--heads", "5"],
            "divide",
        ),
    ):
        with pytest.raises(SystemExit) as stopped:
            tool.main(arguments)
        err = capsys.readouterr().err.strip()
        assert stopped.value.code == 2 and said in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "x").exists()


def test_a_network_stands_in_the_table_of_all_methods(old, tmp_path, capsys):
    """An untrained one that begins at the mean of the pieces is fast vocabulary transfer without copies."""
    folder = save(tmp_path / "base", old)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_text(json.dumps(old.data))
    (tmp_path / "text.txt").write_text("\n".join(ENGLISH[:20]) + "\n")
    given = [str(folder), "--tokenizer", str(tmp_path / "words"), "--data", str(tmp_path / "text.txt")]
    with pytest.raises(SystemExit) as stopped:
        compare_transplants.main([*given, "--methods", "zett"])
    assert stopped.value.code == 2 and "method 'zett' needs --hypernetwork" in capsys.readouterr().err
    base = open_base(str(folder))
    rows = stack_tables(base.tables, base.old.text.size)
    network = RowHypernetwork(rows.shape[2], 1, HypernetworkSettings(num_heads=4, num_layers=1, mean_start=True))
    network.fit_scales(rows)
    network.save(tmp_path / "rows.safetensors")
    compare_transplants.main([*given, "--methods", "zett", "--hypernetwork", str(tmp_path / "rows.safetensors")])
    before, after = (line.split("|") for line in capsys.readouterr().out.splitlines()[2:])
    assert after[1].strip() == "`zett`" and int(after[3].replace(",", "")) == base.old.text.size  # all made
    bits = [float(row[6].split()[0]) for row in (before, after)]
    assert after[5] == before[5] and bits[1] == pytest.approx(bits[0], abs=0.02)  # but for the base's padded rows
