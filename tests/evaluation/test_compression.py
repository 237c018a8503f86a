"""The compression suite on the tiny model: every row is there, equal tokens are equal, files are written."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from tests.campaigns import is_study
from unimodal.compression import BASELINES, METHODS
from unimodal.evaluation import compression, compression_timing, run_suites
from unimodal.evaluation.compression import Questions, count_codes, make_timed_prompts
from unimodal.evaluation.compression_table import COLUMNS, average_accuracy, list_verdicts, make_markdown, plot
from unimodal.evaluation.compression_timing import measure_times, watch_memory
from unimodal.pipeline.compression import compress
from unimodal.pipeline.requests import count_answer_tokens, count_room
from unimodal.sequence.document import Document, Image, Text, Turn, Video

pytestmark = pytest.mark.sweep("evaluations")

UNTRAINED = [name for name, method in METHODS.items() if not method.is_learned]
SOME = (*BASELINES, "divprune", "fastv", "todre", "snapkv", *(("tokenselect",) if is_study() else ()))


@pytest.fixture
def quick(monkeypatch, model):
    """A few methods at one share; answers of at most four words."""
    monkeypatch.setattr(compression, "METHOD_NAMES", SOME)
    monkeypatch.setattr(compression, "KEEPS", (0.25,))
    monkeypatch.setattr(compression, "SEEDS", 2)
    monkeypatch.setattr(compression, "QUERIES", 4)
    for name, value in (("BATCH", 8), ("STEPS", 2), ("REPEATS", 1)):
        monkeypatch.setattr(compression_timing, name, value)
    answers = model.answers
    monkeypatch.setattr(model, "answers", lambda documents, **given: answers(documents, **{"tokens": 4, **given}))


@pytest.fixture(scope="module")
def codes(model):
    torch.manual_seed(0)
    picture, clip = torch.rand(3, 64, 64), torch.rand(9, 3, 64, 64)
    return model.coder.encode("image", [picture])[0], model.coder.encode("video", [clip])[0]


@pytest.mark.study
def test_the_suite_writes_a_table_and_a_plot_beside_the_report(quick, model, data, tmp_path):
    out = tmp_path / "report.json"
    [printed] = run_suites(["compression"], model, data, out, limit=2)
    figures = json.loads(out.read_text())["suites"]["compression"]
    rows = {row["method"]: row for row in figures["rows"]}
    assert list(rows) == ["whole model", "whole model, plain forward", *SOME]
    assert figures["questions"] == {"picture": 2, "clip": 2, "speech": 2} and set(figures["blind"]) == {*rows_media()}
    for name, row in rows.items():
        assert all(0 <= row[f"{medium}_percent"] <= 100 for medium in rows_media())
        for size in ("1", "8"):
            assert row[f"ttft_ms_batch_{size}"] > 0 and row[f"tokens_per_s_batch_{size}"] > 0
        assert 0 < row["memory_mib_batch_1"] < row["memory_mib_batch_8"]
        attacked = name in SOME and METHODS[name].acts_on == "tokens"
        assert (row["attack_percent"] is not None) == (attacked or name == "whole model")
        assert row["noise_percent"] is not None
        if attacked:
            assert 0 <= row["kept_alike_percent"] <= 100 and row["planning_ms_batch_1"] > 0
    assert (
        rows["whole model"]["same_answer_percent"] == rows["whole model, plain forward"]["same_answer_percent"] == 100
    )
    at_first = {rows[name]["tokens_left_percent"] for name in (*BASELINES, "divprune", "fastv")}
    assert at_first == {25.0}  # equal tokens
    assert rows["todre"]["tokens_left_percent"] == 25.0  # random weights attend to them to the end, so none go late
    assert len(rows["random"]["picture_percent_range"]) == 2
    assert rows["stride"]["memory_mib_batch_8"] < rows["whole model, plain forward"]["memory_mib_batch_8"]
    written = (tmp_path / "report_compression.md").read_text()
    assert printed == f"compression\n\n{written.rstrip()}" and written.count("\n| ") == len(rows)
    ElementTree.fromstring((tmp_path / "report_compression.svg").read_text())


def rows_media():
    return ("picture", "clip", "speech")


def test_blind_questions_hold_no_medium(quick, model, data, monkeypatch):
    """And are judged like the others: an answer that names everything is right without looking."""
    asked = []

    def answers(_, documents, *rest):
        asked.extend(documents)
        return ["apple boat cat door egg fish goat house: a sunny day"] * len(documents)

    monkeypatch.setattr(compression, "answer_texts", answers)
    monkeypatch.setattr(compression, "METHOD_NAMES", ())
    figures = compression.run(model, data, 1, 0, lambda *_: None)
    assert figures["blind"]["picture"] == figures["blind"]["clip"] == 100
    kinds = [[type(part) for part in document.turns[0].parts] for document in asked[:6]]
    assert kinds[:3] == [[Text]] * 3 and all(len(parts) == 2 for parts in kinds[3:])  # then with the medium


def test_the_attack_searches_within_its_bounds_for_other_tokens(monkeypatch):
    """A method that keeps the 16 brightest of 64 patches is led astray; more queries lead it no less."""

    class Seen(compression.PerturbedPictures):
        def _encode(self, pictures):
            return list(pictures)

        def _find_kept(self, questions, parts, session):
            patches = torch.stack(parts).mean(1).unfold(1, 8, 8).unfold(2, 8, 8).mean((3, 4)).flatten(1)
            return [set(row.topk(16).indices.tolist()) for row in patches]

        def _score(self, questions, parts):
            self.asked = parts
            return 50.0

    class Pictures:
        def take(self, rows):
            generator = torch.Generator().manual_seed(3)
            return 0.5 + 0.01 * torch.randn(len(rows), 3, 64, 64, generator=generator)

    found, session = [], object()  # of a method
    for queries in (1, 16):
        monkeypatch.setattr(compression, "QUERIES", queries)
        seen = Seen(None, Pictures(), range(4), seed=0)
        figures = seen.measure(None, session)
        assert float((torch.stack(seen.asked) - seen.clean).abs().max()) <= compression.ATTACK + 1e-6
        again = Seen(None, Pictures(), range(4), seed=0).measure(None, session)
        assert figures == again and figures["attack_percent"] == 50.0
        found.append(figures["kept_alike_percent"])
        kept, left = seen._find_kept(None, list(seen.clean), session), seen._find_kept(None, seen.asked, session)
        assert figures["kept_alike_percent"] == pytest.approx(
            100 * sum(len(a & b) / 16 for a, b in zip(kept, left, strict=True)) / 4, abs=0.01
        )
    assert found[1] < found[0]


def test_all_methods_are_tried_at_all_shares():
    names = [(name, keep) for name, keep, _ in compression.list_configs()]
    assert names[:2] == [("whole model", 1.0), ("whole model, plain forward", 1.0)]
    assert set(names[2:]) == {(name, keep) for name in UNTRAINED for keep in compression.KEEPS}


@pytest.mark.sweep
@pytest.mark.parametrize("name", UNTRAINED)
def test_every_method_runs_in_a_chat(name, model, codes):
    """Through the pipeline, with its template, tokenizers and engine: a picture in two codebooks and a clip."""
    picture, clip = codes
    documents = [
        Document([Turn("user", [Image(codes=picture), Text("what is this?")])]),
        Document([Turn("user", [Video(codes=clip), Text("what is this?")])]),
    ]
    with compress(model, name, keep=0.25) as session:
        together = model.answers(documents, to="text", tokens=5)
        assert [model.answers([d], to="text", tokens=5)[0][0].text for d in documents] == [a[0].text for a in together]
    if METHODS[name].acts_on == "tokens":
        assert session.stats.tokens_before == 2 * (64 + 192) and session.kept
    with compress(model, name, keep=1.0):
        same = model.answers(documents, to="text", tokens=5)
    assert [a[0].text for a in same] == [a[0].text for a in model.answers(documents, to="text", tokens=5)]


def test_names_and_settings_are_checked(model):
    with pytest.raises(ValueError, match="did you mean divprune"):
        compress(model, "divprun")
    with pytest.raises(ValueError, match="divprune: got an unexpected keyword argument 'speed'"):
        compress(model, "divprune", speed=3)


def test_memory_counts_what_is_alive(model, codes):
    with watch_memory(torch.device("cpu")) as held:
        for _ in range(5):
            kept = torch.ones(1000) + 1  # float32; two at a time
            del kept
    assert 4000 <= held.most <= 8000
    pictures = model.coder.encode("image", [*torch.rand(8, 3, 64, 64)])  # equal beginnings would be held once
    figures = measure_times(
        model, [Document([Turn("user", [Image(codes=one), Text("what is this?")])]) for one in pictures]
    )
    assert figures["tokens_left_percent"] is None and figures["memory_mib_batch_8"] > 4 * figures["memory_mib_batch_1"]


def test_the_plot_has_a_point_for_every_row():
    rows = [
        {"method": name, "keep": keep, "kind": kind, "ttft_ms_batch_8": 10 * keep, "ttft_ms_batch_1": 4 * keep,
         "picture_percent": 50 * keep, "clip_percent": 30.0, "speech_percent": 70.0}
        for name, kind in (("whole & all", "whole"), ("random", "baseline"), ("tome", "tokens"), ("h2o", "cache"))
        for keep in (0.25, 0.5)
    ]  # fmt: skip
    figures = {"rows": rows, "blind": dict.fromkeys(rows_media(), 5.0), "questions": dict.fromkeys(rows_media(), 3),
               "timed_codes": 512, "attack_most": 0.016, "attack_queries": 16}  # fmt: skip
    tree = ElementTree.fromstring(plot(figures))
    titles = [element.text for element in tree.iter() if element.tag.endswith("title")]
    assert len(titles) == len(rows) and titles[0] == "whole & all, 0.25 kept: 37.5 %, 2.5 ms"
    assert average_accuracy(rows[1]) == pytest.approx((25 + 30 + 70) / 3)
    lines = make_markdown(figures).splitlines()
    assert len(lines) == 2 + len(rows) + 8 and all(
        line.count("|") == len(COLUMNS) + 1 for line in lines[: 2 + len(rows)]
    )


def test_verdicts_name_what_halves_the_time_and_what_loses_to_a_baseline():
    def row(method, kind, keep, milliseconds, right):
        scores = {f"{name}_percent": right for name in rows_media()}
        return {"method": method, "kind": kind, "keep": keep, "ttft_ms_batch_1": milliseconds, **scores}

    rows = [row("whole model", "whole", 1.0, 100.0, 60.0), row("random", "baseline", 0.5, 50.0, 40.0),
            row("pooling", "baseline", 0.5, 50.0, 45.0), row("fastv", "tokens", 0.5, 40.0, 59.5),
            row("tome", "tokens", 0.5, 45.0, 42.0), row("h2o", "cache", 0.5, 100.0, 10.0)]  # fmt: skip
    halving, _, losing = list_verdicts(rows)
    assert halving.endswith(": fastv 0.5 (2.5×).")
    assert losing.endswith(": tome (0.5 by pooling).")


def test_timed_prompts_hold_as_many_media_as_asked_or_as_fit(model, codes, monkeypatch):
    clip = codes[1]
    questions = Questions([Video(codes=clip)] * 2, lambda answer, i: 0.0, "what is this?")
    for least in (len(clip) + 1, 10**6):
        monkeypatch.setattr(compression, "LONG", least)
        [document] = make_timed_prompts(model, questions, 1)
        if least < 10**6:
            assert count_codes(document) == 2 * len(clip)
        assert count_room(model, document) >= count_answer_tokens(model, "text")
