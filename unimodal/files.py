"""Files as every layer reads and writes them: JSON with errors of one line, whole-or-not-at-all writes, the Hub.

A file is written beside its place under another name, flushed to the disk, and then renamed. Whatever goes wrong with a
file becomes a ValueError of one line that names the file and the fix; `describe_error` makes that line. Imports neither
torch nor huggingface_hub before a download is asked for.
"""

import difflib
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypedDict, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
OF_A_MODEL = ("config.json", "base.json")  # one of these lies in every folder of a model
TAKE_AGAIN = "take it from the model again"


# ---- errors and names in one line


def describe_error(error: BaseException | str, limit: int | None = 200) -> str:
    """What an exception says, in one line of at most `limit` characters; its class where it says nothing.

    Of an OSError only the reason (`No such file or directory`), of a pydantic error the first place that is wrong:
    the caller's message names the file.
    """
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        text = f"{where}: {said}" if where else said
    else:  # PyAV's errors, which are no OSErrors, have a reason too
        text = str(getattr(error, "strerror", None) or error)
    return join_lines(text)[:limit] or type(error).__name__


def join_lines(text: str) -> str:
    """A text in one line: every run of blanks and line breaks is one blank."""
    return " ".join(text.split())


def quote_path(path: str | os.PathLike[str]) -> str:
    """A path as messages name it: quoted where it is blank or holds characters that do not print."""
    name = os.fspath(path)
    return name if name.isprintable() and name.strip() else repr(name)


# ---- JSON


def read_json(path: str | os.PathLike[str], fix: str = TAKE_AGAIN) -> dict[str, object]:
    """The JSON object in a file. Raises ValueError, in one line that ends with `fix`, for anything else."""
    data = _parse_file(path, fix)
    if not isinstance(data, dict):
        raise ValueError(f"{quote_path(path)} holds a {type(data).__name__}, not an object; {fix}")
    return data


def read_json_as(kind: type[T], path: str | os.PathLike[str], fix: str = TAKE_AGAIN) -> T:
    """The content of a JSON file as a dataclass, a pydantic model or a container: `read_json_as(list[int], path)`.

    Raises ValueError, in one line that names the first wrong place and ends with `fix`.
    """
    data = _parse_file(path, fix)
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        raise ValueError(f"{quote_path(path)}: {describe_error(error)}; {fix}") from None


def _parse_file(path: str | os.PathLike[str], fix: str) -> object:
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ValueError(f"{quote_path(path)} cannot be read as JSON ({describe_error(error)}); {fix}") from None


def parse_json(text: str | bytes) -> object:
    """The value of a JSON text. Raises ValueError for a key given twice, JSONDecodeError for what is no JSON."""
    return _DECODER.decode(text if isinstance(text, str) else text.decode("utf-8"))


def _make_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The object of these pairs. ValueError for a key given twice: json's own rule keeps the last in silence."""
    made = dict(pairs)
    if len(made) != len(pairs):
        [(twice, count)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r} is given {count} times in one object; keep one of them")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_make_object)  # one for all: it keeps nothing of a text


def write_json(path: str | os.PathLike[str], data: Mapping[str, object] | Sequence[object], indent: int = 2) -> None:
    """Write `data` as readable JSON, whole or not at all."""
    write_text_atomically(path, json.dumps(data, indent=indent, ensure_ascii=False) + "\n")


# ---- whole or not at all


@contextmanager
def open_atomic_path(path: str | os.PathLike[str], make_folder: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` (same suffix) that replaces `path` only if the block succeeds.

    What is written there is flushed to the disk first, so a full disk, an exception or Ctrl-C leaves the old file
    whole and no half-written one behind; a file that is replaced keeps its permissions, and a link stays one. What is
    no regular file (a device, a pipe) is never replaced: the finished bytes are written into it.

    make_folder: create the folders of `path`; False for a path that a user typed. Raises ValueError, in one line, where
    `path` is a folder, or its folder is missing or may not be written, or the disk is full.
    """
    target = Path(os.path.realpath(path))  # a link is followed, not replaced by a file
    name, folder = quote_path(path), quote_path(Path(path).parent)
    if target.is_dir():
        raise ValueError(f"{name} is a folder; name a file in it")
    into_it = target.exists() and not target.is_file()
    if make_folder and not into_it:
        target.parent.mkdir(parents=True, exist_ok=True)
    place = None if into_it else target.parent
    try:
        handle, temporary_name = tempfile.mkstemp(dir=place, prefix=f".{target.stem[:64]}-", suffix=target.suffix)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{name}: there is no folder {folder}; create it first") from None
    except PermissionError:
        raise ValueError(f"{name}: the folder {folder} may not be written; save elsewhere") from None
    os.close(handle)
    temporary = Path(temporary_name)
    try:
        yield temporary
        if into_it:
            with target.open("wb") as stream:
                stream.write(temporary.read_bytes())
            temporary.unlink()
            return
        _sync(temporary)
        temporary.chmod(_choose_mode(target))
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if os.name == "posix":
        _sync(target.parent)  # the new name itself


def write_bytes_atomically(path: str | os.PathLike[str], data: bytes, make_folder: bool = True) -> None:
    """Write `data` to `path` whole or not at all; see `open_atomic_path`."""
    try:
        with open_atomic_path(path, make_folder) as temporary:
            temporary.write_bytes(data)
    except OSError as error:  # a full disk, a limit on file sizes, a pipe that nobody reads any more
        raise ValueError(
            f"{quote_path(path)} cannot be written ({describe_error(error)}); free space or save elsewhere"
        ) from None


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `path` whole or not at all."""
    write_bytes_atomically(path, text.encode("utf-8"))


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _choose_mode(target: Path) -> int:
    """Permissions of the file that is replaced, or those of a new file (mkstemp's are for the owner alone)."""
    if target.exists():
        return target.stat().st_mode & 0o777
    return 0o666 & ~read_umask()


def read_umask() -> int:
    """The permissions that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


# ---- the Hub


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name and is no path: a folder `owner` here that holds models makes it one."""
    if HUB_ID.fullmatch(name) is None:
        return False
    place = Path(name).parent
    return not any((place / child / file).is_file() for child in _list_folders(place) for file in OF_A_MODEL)


def suggest_path(name: str) -> str:
    """`; did you mean models/smol?` where a folder of nearly that name is there, else ''."""
    place = Path(name).expanduser()
    near = difflib.get_close_matches(place.name, _list_folders(place.parent), n=1)
    return f"; did you mean {place.parent / near[0]}?" if near else ""


def _list_folders(place: Path) -> list[str]:
    """The names of the folders in a folder; none where it is missing or may not be read."""
    try:
        return [child.name for child in place.iterdir() if child.is_dir()] if place.is_dir() else []
    except OSError:
        return []


class HubOptions(TypedDict, total=False):
    """How the hub is asked; the names are those of `from_pretrained` in transformers."""

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool
    force_download: bool


def download_folder(
    repository: str,
    patterns: Sequence[str] | None = None,
    what: str = "",
    options: HubOptions | None = None,
) -> Path:
    """The folder of the Hub's cache with a repository's files, downloaded where they are missing.

    patterns: only files that match one of these, such as `*.json`. what: what the message calls it, e.g. "model ".
    options: how the hub is asked.
    Raises ValueError, in one line, for a repository that cannot be had: no such name, no network, no room.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        allowed = list(patterns) if patterns else None
        folder = Path(snapshot_download(repository, allow_patterns=allowed, **(options or HubOptions())))
    except Exception as error:  # the hub's errors have many bases: repository, network, offline mode, disk
        raise ValueError(
            f"{what}{repository!r} is no folder here and cannot be had from the hub: {describe_error(error)}"
        ) from None
    if not folder.is_dir():
        raise ValueError(f"{what}{repository!r} is empty on the hub; push it first")
    return folder
