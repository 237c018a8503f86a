"""`recipes/tokenize_dataset.py` through its real command line: the same bytes whoever writes them, and no row lost."""

import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.tiny_model import tiny_folder
from unimodal.corpus.tokenizer import CorpusTokenizer
from unimodal.data.token_shards import TokenShards
from unimodal.media.audio import save_audio
from unimodal.media.image import save_image

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "tokenize_dataset.py"
pytestmark = pytest.mark.timeout(600)  # each start of a process takes seconds, on a busy machine many
NUM_ROWS = 120  # of a run that is interrupted
BAD_LINE, BROKEN_LINE = 4, 9  # of pets.jsonl: one with a wrong number of placeholders, one with a damaged picture


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """pets.jsonl: 13 rows with pictures, two of them bad. talk.json: 5 rows with sounds and texts."""
    folder = tmp_path_factory.mktemp("data")
    torch.manual_seed(0)
    for number in range(3):
        save_image(torch.rand(3, 20, 20), folder / f"{number}.png")
        save_audio(torch.rand(3_000 + 500 * number) - 0.5, folder / f"{number}.wav", 16_000)
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:150])
    lines = []
    for line in range(1, 14):
        marks = "<image>" * (2 if line == BAD_LINE else 1)
        images = ["broken.png" if line == BROKEN_LINE else f"{line % 3}.png"]
        talk = [
            {"role": "user", "content": f"{marks}what is {line}?"},
            {"role": "assistant", "content": f"it is {line}"},
        ]
        lines.append(json.dumps({"messages": talk, "images": images}) + "\n")
    (folder / "pets.jsonl").write_text("".join(lines))
    rows = [{"audio": f"{number % 3}.wav", "text": f"words {number}"} for number in range(5)]
    (folder / "talk.json").write_text(json.dumps(rows, indent=1))
    return folder


def settings(data, out, *more, skip=True):
    return [
        f"model={tiny_folder()}", f"datasets.pets.path={data}/pets.jsonl", f"datasets.talk.path={data}/talk.json",
        *(["datasets.pets.on_bad_row=skip"] if skip else []), "documents_per_shard=2", "batch_size=2", f"out={out}",
        *more,
    ]  # fmt: skip


def command(*settings, flags=()):
    return [sys.executable, str(RECIPE), *(word for setting in settings for word in ("--set", setting)), *flags]


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="module")
def run(commands):
    """Runs it in a process of its own."""

    def run(*settings, flags=(), **variables):
        done = commands.run(command(*settings, flags=flags), env=environment(**variables))
        return done.returncode, done.stdout, done.stderr

    return run


def run_here(monkeypatch, capsys, *settings, flags=()):
    """The same command line without the seconds of a start."""
    monkeypatch.setattr(sys, "argv", command(*settings, flags=flags)[1:])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        runpy.run_path(str(RECIPE), run_name="__main__")
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    finally:
        signal.signal(signal.SIGTERM, handler)
    return code, *capsys.readouterr()


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "recipe.yaml"
    }


@pytest.fixture(scope="module")
def single(run, data, tmp_path_factory):
    """What one worker writes."""
    out = tmp_path_factory.mktemp("single") / "out"
    status, stdout, stderr = run(*settings(data, out))
    assert status == 0, stderr
    return out, stdout, stderr


@pytest.mark.sweep("recipes at work")
def test_one_worker_writes_every_row_or_names_it(single, data):
    out, stdout, stderr = single
    pets, talk = TokenShards(out / "pets"), TokenShards(out / "talk")
    pets.verify()
    talk.verify()
    tokenizer = CorpusTokenizer(tiny_folder())
    texts = [tokenizer.template.parse(pets[index].ids).turns[1].text for index in range(len(pets))]
    assert texts == [f"it is {line}" for line in range(1, 14) if line not in (BAD_LINE, BROKEN_LINE)]
    assert len(talk) == 5 and all((talk[index].modality == 2).any() for index in range(5))
    report = json.loads((out / "pets" / "report.json").read_text())
    assert report["documents"] == 11 and report["tokens"] == pets.num_tokens == sum(
        report["tokens_by_modality"].values()
    )
    assert [row.split(": ")[0] for row in report["bad_rows"]] == [
        f"{data}/pets.jsonl line {BAD_LINE}", f"{data}/pets.jsonl line {BROKEN_LINE}",
    ]  # fmt: skip
    assert f"bad row {data}/pets.jsonl line {BAD_LINE}: the texts hold 2 of the placeholder <image> but" in stderr
    assert [line.split(": ")[0] for line in stdout.splitlines()] == [str(out / "pets"), str(out / "talk")]
    assert "2 bad rows" in stdout.splitlines()[0] and "0 bad rows" in stdout.splitlines()[1]


def test_the_manifest_names_the_tokenizers_and_the_vocabulary(single):
    manifest = TokenShards(single[0] / "pets").manifest
    tokenizer = CorpusTokenizer(tiny_folder())
    assert manifest.tokenizer_sha256 == tokenizer.hashes and manifest.vocabulary_size == tokenizer.vocabulary.size
    assert manifest.tokenizer_sha256["image"] == tokenizer.coder.sha256["image"]
    assert manifest.num_documents == 12 and manifest.record["bad_rows"] == 1


def test_two_workers_of_an_array_and_of_torchrun_write_the_same_bytes(run, single, data, tmp_path):
    """Worker 0 of 2 as a task of an array job, worker 1 of 2 as a rank: one plan."""
    first = run(*settings(data, tmp_path, "shard.index=0", "shard.count=2"))
    assert first[0] == 0 and first[1] == "" and "others are not yet" in first[2]
    with pytest.raises(ValueError, match="missing or unfinished"):
        TokenShards(tmp_path / "pets")
    assert contents(tmp_path).keys() < contents(single[0]).keys()
    second = run(*settings(data, tmp_path), RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
    assert second[0] == 0 and len(second[1].splitlines()) == 2
    assert contents(tmp_path) == contents(single[0])
    assert "  bad row " in first[2] and "  bad row " not in second[2]  # the first worker has told


@pytest.mark.sweep("recipes at work")
def test_processes_write_the_same_bytes(run, single, data, tmp_path):
    code, stdout, stderr = run(*settings(data, tmp_path, "workers=2"))
    assert code == 0, stderr
    assert contents(tmp_path) == contents(single[0])
    assert "worker 0 of 2" in stderr and "worker 1 of 2" in stderr and stdout.count("documents") == 2


def test_a_bad_row_may_stop_everything_with_its_line(run, data, tmp_path):
    code, stdout, stderr = run(*settings(data, tmp_path, "workers=2", skip=False))
    last = stderr.splitlines()[-1]
    assert code == 2 and stdout == "" and "Traceback" not in stderr
    assert last.startswith(f"error: dataset pets: {data}/pets.jsonl line {BAD_LINE}: the texts hold 2 of")
    assert last.endswith("mend it, or set on_bad_row to skip") and not list(tmp_path.iterdir())


@pytest.mark.sweep("recipes at work")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_picture_stops_a_worker_with_its_line(run, data, tmp_path, workers, monkeypatch, capsys):
    """It is found only when it is decoded, in a worker; nothing half-written stays."""
    lines = (data / "pets.jsonl").read_text().splitlines(keepends=True)
    (data / "one.jsonl").write_text("".join(line for number, line in enumerate(lines, 1) if number != BAD_LINE))
    words = settings(data, tmp_path, f"datasets.pets.path={data}/one.jsonl", f"workers={workers}", skip=False)
    code, stdout, stderr = run(*words) if workers > 1 else run_here(monkeypatch, capsys, *words)
    last = stderr.splitlines()[-1]
    assert code == 2 and stdout == "" and "Traceback" not in stderr
    assert last.startswith(f"error: dataset pets: {data}/one.jsonl line {BROKEN_LINE - 1}: ") and "broken.png" in last
    assert not list(tmp_path.glob("pets/.partial*")) and not (tmp_path / "pets" / "report.json").exists()


@pytest.mark.sweep("recipes at work")
def test_after_interruptions_the_same_command_goes_on(commands, run, data, tmp_path):
    """Stopped once and killed once: finished shards are not touched again, and no row is lost or written twice."""
    rows = [json.dumps({"image": f"{number % 3}.png", "text": f"words {number}"}) + "\n" for number in range(NUM_ROWS)]
    (data / "many.jsonl").write_text("".join(rows))
    words = [f"model={tiny_folder()}", f"datasets.many.path={data}/many.jsonl", "documents_per_shard=2", "batch_size=2"]
    folder = tmp_path / "many"
    done: dict[Path, int] = {}
    for how, until in ((signal.SIGTERM, 3), (signal.SIGKILL, 20)):
        process = commands.begin(command(*words, f"out={tmp_path}"), env=environment())
        deadline = time.monotonic() + 200
        while not (folder / f"shard-{until:05d}" / "done.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(how)
        stderr = process.communicate(timeout=200)[1]
        assert process.returncode == (130 if how == signal.SIGTERM else -9), stderr
        if how == signal.SIGTERM:
            assert stderr.splitlines()[-1] == "stopped; finished shards are kept, the same command goes on"
            assert not list(folder.glob(".partial*"))
        with pytest.raises(ValueError, match="missing or unfinished"):
            TokenShards(folder)
        assert all(path.stat().st_mtime_ns == before for path, before in done.items())
        done = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*/done.json")}
        assert until < len(done) < NUM_ROWS // 2
    (folder / ".partial-00059-1").mkdir(exist_ok=True)  # as a killed writer may leave it
    code, _, stderr = run(*words, f"out={tmp_path}")
    assert code == 0 and stderr.count("was there") == len(done)
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())
    assert not list(folder.glob(".partial*"))
    shards = TokenShards(folder)
    shards.verify()
    tokenizer = CorpusTokenizer(tiny_folder())
    texts = [tokenizer.template.parse(shards[index].ids).turns[1].text for index in range(len(shards))]
    assert texts == [f"words {number}" for number in range(NUM_ROWS)]


def test_a_dry_run_shows_the_plan_and_a_document_and_writes_nothing(data, tmp_path, monkeypatch, capsys):
    words = settings(data, tmp_path / "out", "shard.index=1", "shard.count=3")
    code, stdout, stderr = run_here(monkeypatch, capsys, *words, flags=["--dry-run"])
    assert code == 0 and not (tmp_path / "out").exists()
    lines = stdout.splitlines()
    assert lines[0] == "worker 1 of 3: 3 shards pets/1 pets/4 talk/1"  # of pets/0 … pets/5, talk/0 … talk/2
    assert "  user: <image: 64 codes> 'what is 1?'" in lines and "  assistant: 'it is 1'" in lines
    assert "pets: 12 documents of format llama_factory, 1 bad rows, 6 shards, 0 done, 2 are mine" in stderr


def test_a_dry_run_says_why_a_row_fails_as_the_run_does(data, tmp_path, monkeypatch, capsys):
    words = settings(data, tmp_path / "out", "max_tokens=5")
    lines = []
    for flags in (["--dry-run"], []):
        code, _, stderr = run_here(monkeypatch, capsys, *words, flags=flags)
        assert code == 2
        lines.append(stderr.splitlines()[-1])
    assert lines[0] == lines[1] and "tokens, over max_tokens 5; mend it, or set on_bad_row to skip" in lines[0]
    words = settings(
        data, tmp_path / "out", "max_tokens=5", *(f"datasets.{n}.on_bad_row=skip" for n in ("pets", "talk"))
    )
    code, stdout, stderr = run_here(monkeypatch, capsys, *words, flags=["--dry-run"])
    assert code == 0 and "pets: none of the first 8 documents can be tokenized" in stdout
    assert stderr.count("tokens, over max_tokens 5") >= 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("documents_per_shard=3", "holds other shards: documents_per_shard is 2, not 3; delete it or choose another"),
        ("max_tokens=500", "holds other shards: record"),
        ("datasets.pets.limit=4", "holds other shards: num_documents is 12, not 4"),
        ("datasets.pets.wait=1", "unknown key 'datasets.pets.wait'; did you mean 'weight'?"),
        ("datasets.a/b.path=x", "the dataset name 'a/b' becomes a folder; use letters"),
        ("datasets.pets.path=gone.jsonl", "dataset pets: gone.jsonl: no such file, folder or pattern"),
        ("shard.index=3", "shard.index is 3 of shard.count 1; count from 0"),
        ("device=cuda", "torch sees no GPU here; set device to cpu"),
        ("model=nowhere", "model 'nowhere': no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(single, data, monkeypatch, capsys, change, message):
    if change == "device=cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    before = contents(single[0])
    code, stdout, stderr = run_here(monkeypatch, capsys, *settings(data, single[0], change))
    assert code == 2 and stdout == "" and message in stderr.splitlines()[-1]
    assert contents(single[0]) == before


def test_other_rows_are_not_mixed_in(data, single, monkeypatch, capsys):
    """One character of one row differs: the folder is of other data."""
    rows = (data / "talk.json").read_text()
    try:
        (data / "talk.json").write_text(rows.replace("words 3", "words 7"))
        code, _, stderr = run_here(monkeypatch, capsys, *settings(data, single[0]))
    finally:
        (data / "talk.json").write_text(rows)
    assert code == 2 and "talk holds other shards: record is" in stderr.splitlines()[-1]


def test_a_picture_changed_in_place_is_encoded_again_in_its_shards_alone(data, tmp_path, monkeypatch, capsys):
    """The rows are the same, so the folder is not refused; shards of other pictures stay as they are."""
    rows = [json.dumps({"image": f"own{number}.png", "text": f"words {number}"}) + "\n" for number in range(6)]
    (data / "own.jsonl").write_text("".join(rows))
    for number in range(6):
        save_image(torch.rand(3, 20, 20), data / f"own{number}.png")
    words = [f"model={tiny_folder()}", f"datasets.own.path={data}/own.jsonl", "documents_per_shard=2", "batch_size=2"]
    assert run_here(monkeypatch, capsys, *words, f"out={tmp_path}")[0] == 0
    before = contents(tmp_path)
    save_image(torch.rand(3, 20, 20), data / "own3.png")
    code, stdout, stderr = run_here(monkeypatch, capsys, *words, f"out={tmp_path}")
    assert code == 0 and "6 documents" in stdout and stderr.count("was there") == 2 and "3 shards, 2 done" in stderr
    changed = {name for name, content in contents(tmp_path).items() if content != before[name]}
    assert changed == {"own/shard-00001/ids.bin", "own/shard-00001/done.json"}
    assert contents(tmp_path).keys() == before.keys()
    code, _, stderr = run_here(monkeypatch, capsys, *words, f"out={tmp_path}")
    assert code == 0 and stderr.count("was there") == 3


def test_no_datasets_and_no_ray_are_one_line(data, tmp_path, monkeypatch, capsys):
    code, _, stderr = run_here(monkeypatch, capsys, f"model={tiny_folder()}", f"out={tmp_path}")
    assert code == 2 and stderr == "error: there are no datasets; give one with --set datasets.NAME.path=FILE\n"
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, stderr = run_here(monkeypatch, capsys, *settings(data, tmp_path / "out", "engine=ray"))
    assert code == 2 and "engine ray needs the package ray" in stderr.splitlines()[-1]


def test_nothing_tokenizable_is_an_error_not_an_empty_set(data, tmp_path, monkeypatch, capsys):
    words = [f"model={tiny_folder()}", f"datasets.pets.path={data}/pets.jsonl", "datasets.pets.on_bad_row=skip"]
    code, stdout, stderr = run_here(monkeypatch, capsys, *words, "max_tokens=5", f"out={tmp_path}")
    assert code == 2 and stdout == ""
    assert "none of the rows of dataset pets could be tokenized; the first: " in stderr.splitlines()[-1]
    assert "over max_tokens 5" in stderr.splitlines()[-1]


def test_the_settings_file_beside_the_recipe_is_valid():
    from recipes.tokenize_dataset import TokenizeRecipe
    from unimodal.config import load_config

    cfg = load_config(TokenizeRecipe, ROOT / "recipes" / "configs" / "tokenize_dataset.yaml")
    assert (ROOT / str(cfg.model) / "vocabulary.json").is_file()
