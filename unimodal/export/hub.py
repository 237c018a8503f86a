"""A model folder as a repository of the Hugging Face Hub, through huggingface_hub.

`upload_folder` sends only files that the Hub lacks, so the same command goes on after an interruption. The card and the
evaluation results are made outside the folder, which is not changed. The token is read from the option, from `HF_TOKEN`
or from the login; it goes into the request and nowhere else, and every message is searched for it.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from unimodal._version import __version__
from unimodal.export.card import CARD, EVAL_RESULTS, NOTHING, Statement, make_card, make_eval_results
from unimodal.export.licences import check_licences
from unimodal.export.stock import leads_out
from unimodal.files import describe_error
from unimodal.model.adapter_files import BASE_FILE
from unimodal.model.weight_files import PICKLED, check_weight_files

#: weight files on the Hub that this push does not send are of an earlier one, and might be loaded in its place
STALE = ["*.safetensors", "model.safetensors.index.json"]
_HIDDEN_TOO = (".gitattributes", EVAL_RESULTS)
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class Planned:
    """One file of the repository: its path there, and the local file or the text that it is made of."""

    name: str
    source: Path | None
    text: str = ""

    @property
    def num_bytes(self) -> int:
        return self.source.stat().st_size if self.source is not None else len(self.text.encode())


def plan_push(
    folder: Path,
    repo: str,
    statement: Statement = NOTHING,
    eval_dataset: str | None = None,
    accepted_licences: Sequence[str] = (),
) -> list[Planned]:
    """All files that a push would send. Raises ValueError, in one line, for what must not be published.

    eval_dataset: hub id for the evaluation results; by default the repository itself. accepted_licences: of weights in
    the folder that may not be used commercially, those under which the user may publish them.
    """
    check_repository(repo)
    if (folder / BASE_FILE).is_file():
        raise ValueError(f"{folder} is an adapter on a base; make it whole with `unimodal export {folder} --out DIR`")
    check_licences(folder, accepted_licences)
    files = dict(_list_files(folder))
    check_weight_files(path for name, path in files.items() if path.suffix.lower() in (*PICKLED, ".safetensors"))
    made = {CARD: make_card(folder, repo, statement)}
    made |= {name: text for name, text in make_eval_results(folder, eval_dataset or repo).items() if name not in files}
    planned = [Planned(name, path) for name, path in files.items() if name not in made]
    return sorted([*planned, *(Planned(name, None, text) for name, text in made.items())], key=lambda item: item.name)


def check_repository(repo: str) -> None:
    """Raises ValueError for a name that no repository can have."""
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo or repo.endswith(".git"):
        raise ValueError(f"repository {repo!r} is not of the form owner/name")


def find_token(repo: str, token: str | None = None) -> str:
    """The given token, that of `HF_TOKEN`, or that of the login. Raises ValueError for none and for a malformed one."""
    from huggingface_hub import get_token

    token = token if token is not None else get_token()
    if not token:
        raise ValueError(f"the Hub wants a token to write to {repo}: {_LOGIN}")
    token = token.strip()
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ValueError(f"the token holds spaces or characters that no token has; copy it again, or {_LOGIN}")
    return token


def _list_files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        parts = name.split("/")
        seen = parts[1:] if parts[0] in _HIDDEN_TOO else parts
        if any(part.startswith((".", "__")) for part in seen) or not path.is_file():
            continue
        if leads_out(path, folder):
            raise ValueError(
                f"{path} is a link to {path.resolve()}, outside the folder; it is not published: remove it"
            )
        yield name, path


def push(
    planned: Sequence[Planned],
    repo: str,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> str:
    """Create the repository and the branch if they are missing, send the files, and return the repository's address.

    revision: the branch, by default main. Raises ValueError, in one line and without the token, for a token that is
    missing or refused, for a public repository if `private` is asked for, and for a Hub that cannot be reached.
    """
    from huggingface_hub import HfApi

    token = find_token(repo, token)
    with _explain_errors(repo, token), _stage_files(planned) as staged:
        api = HfApi(token=token, library_name="unimodal", library_version=__version__)
        on_step(f"creating {repo}")
        url = str(api.create_repo(repo, private=private or None, exist_ok=True))
        if private and api.repo_info(repo).private is False:
            raise ValueError(f"{repo} is there and public; make it private in its settings, or leave --private out")
        if revision is not None and revision != "main":
            api.create_branch(repo, branch=revision, exist_ok=True)
        on_step(f"uploading {len(planned)} files")
        api.upload_folder(
            repo_id=repo,
            folder_path=staged,
            revision=revision,
            commit_message=f"Upload with unimodal {__version__}",
            delete_patterns=list(STALE),
        )
    return url


@contextmanager
def _stage_files(planned: Sequence[Planned]) -> Iterator[Path]:
    """A temporary folder with links to the planned files, and with those that are made of a text."""
    with tempfile.TemporaryDirectory(prefix="unimodal-push-") as name:
        folder = Path(name)
        for item in planned:
            path = folder / item.name
            path.parent.mkdir(parents=True, exist_ok=True)
            if item.source is None:
                path.write_text(item.text, encoding="utf-8")
            else:
                os.symlink(item.source.resolve(), path)
        yield folder


@contextmanager
def _explain_errors(repo: str, token: str) -> Iterator[None]:
    """Turn an error of the Hub or of the network into a ValueError of one line, without the token."""
    try:
        yield
    except Exception as error:  # the hub's errors have many bases: its own, the network's, the disk's
        message = error.args[0] if type(error) is ValueError and error.args else _find_reason(error, repo)
        raise ValueError(str(message).replace(token, "(token)")) from None


def _find_reason(error: Exception, repo: str) -> str:
    from huggingface_hub import constants

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return f"the Hub does not know this token (401); {_LOGIN}"
    if status == 403:
        return f"this token may not write to {repo} (403); give one with write access to {repo.split('/')[0]}"
    if status == 404:
        return f"the Hub has no {repo}, or this token does not see it (404); check the name and the token"
    said = describe_error(error)
    if status is not None:
        return f"the Hub refused the upload to {repo} ({status}): {_read_server_message(error) or said}"
    return f"the upload to {repo} at {constants.ENDPOINT} stopped: {said}; the same command goes on from there"


def _read_server_message(error: BaseException) -> str:
    return " ".join(str(getattr(error, "server_message", None) or "").split())[:200]
