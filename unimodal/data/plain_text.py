"""Plain English that packages ship, split for training and for measuring what a model has forgotten of its text.

    Debian `wordnet-base`        a word and what it means, one definition a line
    Debian `r-cran-janeaustenr`  six novels, by paragraph; one novel is held out whole

An R package keeps its data as serialised objects in one file with an index beside it (`Rdata.rdb`, `Rdata.rdx`).
"""

from __future__ import annotations

import re
import warnings
import zlib
from hashlib import sha256
from itertools import groupby
from pathlib import Path

HELD_OUT_NOVEL = "persuasion"
HELD_OUT_SHARE = 0.05  # of the definitions


def read_definitions(raw: Path, split: str = "train") -> list[tuple[str, str]]:
    """(word, meaning) of every sense in WordNet, in file order. All meanings of a word are in the same split."""
    found = []
    for part in ("noun", "verb", "adj", "adv"):
        text = _find_file(raw / "wordnet-base", f"data.{part}").read_text(encoding="latin-1")
        for line in text.splitlines():
            if line.startswith("  ") or "|" not in line:
                continue
            fields, meaning = line.split("|", 1)
            word = fields.split()[4].split("(")[0].replace("_", " ")
            meaning = meaning.split('; "')[0].strip()
            if meaning and ("test" if _is_held_out(word) else "train") == split:
                found.append((word, meaning))
    return found


def read_paragraphs(raw: Path, split: str = "train", shortest: int = 200) -> list[str]:
    """Paragraphs of at least `shortest` characters: of one novel for `test`, of the five others for `train`."""
    folder = raw / "r-cran-janeaustenr"
    found = []
    for novel, lines in _read_r_data(_find_file(folder, "Rdata.rdx")).items():
        if (novel == HELD_OUT_NOVEL) != (split == "test"):
            continue
        for filled, group in groupby(lines, key=bool):
            paragraph = " ".join(line.strip() for line in group)
            if filled and len(paragraph) >= shortest:
                found.append(re.sub(r"\s+", " ", paragraph))
    return found


def _is_held_out(word: str) -> bool:
    return int.from_bytes(sha256(word.lower().encode()).digest()[:4], "big") < HELD_OUT_SHARE * 2**32


def _find_file(folder: Path, name: str) -> Path:
    path = next(iter(sorted(folder.rglob(name))), None)
    if path is None:
        raise ValueError(f"{folder}/**/{name}: no such file; make it with `python tools/fetch_data.py --set all`")
    return path


def _read_r_data(index: Path) -> dict[str, list[str]]:
    """The character vectors of an R package's lazily loaded data."""
    try:
        import rdata
    except ImportError:
        raise ValueError("the novels are R data; install what reads them with `pip install rdata`") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        places = rdata.conversion.convert(rdata.parser.parse_data(index.read_bytes()))["variables"]
        data = index.with_suffix(".rdb").read_bytes()
        found = {}
        for name, (start, size) in places.items():  # four bytes of length, then one zlib stream
            blob = zlib.decompress(data[int(start) + 4 : int(start) + int(size)])
            found[str(name)] = [str(line) for line in rdata.conversion.convert(rdata.parser.parse_data(blob))]
    return found
