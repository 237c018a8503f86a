"""`unimodal push` and back, against a Hub on this machine: tokens, what goes, what stays, what is refused."""

import json
import shutil

import pytest

from tests.export.hub_server import READER, WRITER
from tests.tiny_model import tiny_folder
from unimodal.cli.app import main
from unimodal.export.stock import export_model

pytestmark = pytest.mark.sweep("exports")


SAID = ("--license", "apache-2.0", "--data", "Sentences of the tests.")


@pytest.fixture
def folder(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "model")
    return tmp_path / "model"


def whole(results, rest):
    return "".join(out + err for _, out, err in results) + rest


def last(result):
    return result[2].strip().splitlines()[-1]


def test_push_pull_and_chat_give_the_same_answer(hub, at_hub, folder):
    chat = ("chat", "what is this?", "--to", "text", "--model")
    results, rest = at_hub(
        ("push", folder, "me/model", *SAID), ("push", folder, "me/model", *SAID),
        (*chat, folder), (*chat, "me/model"), (*chat, "me/other"), HF_TOKEN=WRITER,
    )  # fmt: skip
    assert [status for status, *_ in results] == [0, 0, 0, 0, 2], results
    assert results[0][1].strip() == f"{hub.endpoint}/me/model"
    repository = hub.repositories["me/model"]
    files = repository.branches["main"]
    for path in folder.rglob("*"):
        if path.is_file():
            assert files[path.relative_to(folder).as_posix()] == path.read_bytes()
    assert set(files) - {p.relative_to(folder).as_posix() for p in folder.rglob("*")} == {"README.md"}
    assert b"license: apache-2.0" in files["README.md"] and b"Sentences of the tests." in files["README.md"]
    assert len(repository.commits) == 1, "the second push had nothing to send"
    assert results[2][1] == results[3][1] != ""
    assert "cannot be had from the hub" in last(results[4])
    assert WRITER not in whole(results, rest)


def test_a_push_looks_for_hidden_text_if_it_is_asked_to(hub, folder, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["push", str(folder), "me/model", *SAID, "--dry-run", "--check-hidden-text"])
    out, err = capsys.readouterr()
    assert not stop.value.code and "forcing" in err and "files would go to me/model" in out


def test_a_dry_run_lists_and_asks_nothing(hub, folder, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["push", str(folder), "me/model", *SAID, "--dry-run"])
    assert not stop.value.code and hub.requests == []
    lines = capsys.readouterr().out.splitlines()
    names = {line.split(maxsplit=1)[1] for line in lines[:-1]}
    assert "README.md  (made)" in names and "image_tokenizer/model.safetensors" in names
    sizes = sum(int(line.split()[0].replace(",", "")) for line in lines[:-1])
    assert lines[-1].split()[0] == f"{sizes:,}" and f"in {len(names)} files" in lines[-1]
    assert not (folder / "README.md").exists()  # the folder is not changed


def test_a_token_that_is_missing_wrong_or_weak_is_one_line(hub, at_hub, folder):
    words = ("push", folder, "me/model", *SAID)
    wrong, bad = "hf_wrongSECRETwrong", "hf_two wordsSECRET"
    results, rest = at_hub(
        words, (*words, "--token", wrong), (*words, "--token", READER), (*words, "--token", bad),
        (*words, "--token", f" {WRITER}\n"),
    )  # fmt: skip
    assert [status for status, *_ in results] == [2, 2, 2, 2, 0]
    assert "wants a token" in last(results[0])
    assert "does not know this token (401)" in last(results[1])
    assert "may not write to me/model (403); give one with write access to me" in last(results[2])
    assert "characters that no token has" in last(results[3])
    for result in results[:4]:
        assert last(result).startswith("unimodal: ") and "Traceback" not in result[2]
    text = whole(results, rest)
    assert "SECRET" not in text, "a token was shown"
    assert "/api/repos/create" in str(hub.requests)


def test_a_server_that_repeats_the_token_does_not_make_us_show_it(hub, at_hub, folder, monkeypatch):
    from tests.export import hub_server

    def create(self, wish):
        self.refuse(400, f"bad request by {self.token} at {hub.endpoint}")

    monkeypatch.setattr(hub_server.Handler, "create", create)
    results, rest = at_hub(("push", folder, "me/model", *SAID), HF_TOKEN=WRITER)
    assert results[0][0] == 2 and "(400)" in last(results[0]) and "(token)" in last(results[0])
    assert WRITER not in results[0][1] + results[0][2]


def test_after_an_interruption_the_same_command_goes_on(hub, at_hub, folder):
    words = ("push", folder, "me/model", *SAID)
    at_hub(words, HF_TOKEN=WRITER, killed=True)
    assert hub.repositories["me/model"].branches["main"] == {}
    results, _ = at_hub(words, HF_TOKEN=WRITER)
    assert results[0][0] == 0, results
    assert "model.safetensors" in hub.repositories["me/model"].branches["main"]


def test_only_what_changed_goes_and_stale_weights_do_not_stay(hub, at_hub, folder, tmp_path):
    export_model(tiny_folder(), tmp_path / "shards", dtype="float32", max_shard_size="30KB")
    words = ("me/model", *SAID)
    results, _ = at_hub(
        ("push", folder, *words),
        ("push", tmp_path / "shards", *words),
        ("chat", "hello", "--to", "text", "--model", "me/model"),
        HF_TOKEN=WRITER,
    )
    assert [status for status, *_ in results] == [0, 0, 0], results
    first, *rest = hub.repositories["me/model"].commits
    changed = {entry for commit in rest for entry in commit}
    assert ("-", "model.safetensors") in changed and ("+", "model.safetensors.index.json") in changed
    assert not any("tokenizer" in name for _, name in changed)
    names = set(hub.repositories["me/model"].branches["main"])
    assert "model.safetensors" not in names and "image_tokenizer/model.safetensors" in names


def test_private_means_private(hub, at_hub, folder):
    results, _ = at_hub(
        ("push", folder, "me/secret", *SAID, "--private"), ("push", folder, "me/open", *SAID),
        ("push", folder, "me/open", *SAID, "--private"), HF_TOKEN=WRITER,
    )  # fmt: skip
    assert [status for status, *_ in results] == [0, 0, 2]
    assert hub.repositories["me/secret"].private and not hub.repositories["me/open"].private
    assert "is there and public" in last(results[2])
    results, _ = at_hub(("chat", "hello", "--model", "me/secret"), HF_HOME=str(folder.parent / "elsewhere"))
    assert results[0][0] == 2


def test_a_revision_is_a_branch_of_its_own(hub, at_hub, folder):
    results, _ = at_hub(("push", folder, "me/model", *SAID, "--revision", "v2"), HF_TOKEN=WRITER)
    assert results[0][0] == 0, results
    branches = hub.repositories["me/model"].branches
    assert branches["main"] == {} and "model.safetensors" in branches["v2"]


def test_a_hub_that_is_not_there_is_one_line(hub, at_hub, folder):
    hub.close()
    results, rest = at_hub(("push", folder, "me/model", *SAID), HF_TOKEN=WRITER)
    assert results[0][0] == 2 and f"{hub.endpoint} stopped" in last(results[0])
    assert WRITER not in whole(results, rest)


@pytest.mark.parametrize("repo", ["model", "a/b/c", "../x", "me/..", "me/a b", "me/model.git", "me/a--b"])
def test_a_name_that_is_no_repository_is_refused(folder, repo, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["push", str(folder), repo, *SAID])
    assert stop.value.code == 2 and "not of the form owner/name" in capsys.readouterr().err


def test_what_must_not_go_is_refused_or_left(adapters, folder, tmp_path, capsys):
    def said(*words):
        with pytest.raises(SystemExit) as stop:
            main(["push", *map(str, words), *SAID, "--dry-run"])
        shown = capsys.readouterr()
        return stop.value.code or 0, shown.out, shown.err.strip().splitlines()[-1]

    status, _, message = said(adapters[True], "me/model")
    assert status == 2 and "is an adapter on a base; make it whole" in message
    for hidden in (".env", ".git/config", "samples/.cache", "__pycache__/a.pyc"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        (folder / hidden).write_text("secret")
    status, out, _ = said(folder, "me/model")
    assert status == 0 and not any(name in out for name in (".env", ".git/", ".cache", ".pyc"))
    secret = tmp_path / "secret.txt"
    secret.write_text(json.dumps("secret"))
    (folder / "notes.txt").symlink_to(secret)
    status, _, message = said(folder, "me/model")
    assert status == 2 and "outside the folder; it is not published" in message
    (folder / "notes.txt").unlink()
    (folder / "samples" / "old.bin").write_bytes(b"\x80\x04")
    status, _, message = said(folder, "me/model")
    assert status == 2 and "old.bin is a pickle" in message
