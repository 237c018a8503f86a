"""Text in other languages, parallel to English line by line, and code: what text tokenizers are moved and measured on.

    python tools/fetch_data.py --set languages
    python tools/prepare_languages.py [--raw data/raw] [--out data/prepared/languages] [--code-bytes 2000000]

The Linux manual pages are translated paragraph by paragraph, so that a page and its translation with as many paragraphs
say the same one by one. Writes, for `de`, `fr` and `ru`, `LANGUAGE/train.en.txt` beside `LANGUAGE/train.LANGUAGE.txt`,
and the same of `test`, which is every tenth page; and `go/train.txt` and `go/test.txt`, the files of Go's own packages,
every tenth directory held out. Lines that are the same in both languages were not translated and are left out.
"""

from __future__ import annotations

import argparse
import gzip
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from unimodal.files import write_text_atomically

LANGUAGES = {"de": "ÜBERSETZUNG", "fr": "TRADUCTION", "ru": "ПЕРЕВОД"}  # and the title over the translators' names
ENGLISH = ("manpages", "manpages-dev")
GO = "golang-1.19-src"
SHORTEST, LONGEST = 20, 600  # characters of a paragraph
HELD_OUT = 10  # one page or directory of so many is kept for measuring

#: macros that end a paragraph; the text of these stands on their own line, and is a paragraph of its own
BREAKS = frozenset(
    [
        "PP",
        "LP",
        "P",
        "TP",
        "TQ",
        "IP",
        "HP",
        "RS",
        "RE",
        "br",
        "sp",
        "nf",
        "fi",
        "EX",
        "EE",
        "SH",
        "SS",
        "TH",
        "in",
        "UR",
        "UE",
        "MT",
        "ME",
    ]
)
TITLES = frozenset({"SH", "SS"})
FONTS = frozenset(["B", "I", "SB", "SM", "BR", "RB", "IR", "RI", "BI", "IB"])
SIGNS = {"aq": "'", "dq": '"', "em": "—", "en": "–", "bu": "•", "co": "©", "ha": "^", "ti": "~", "rs": "\\", "lq": "“",
         "rq": "”", "oq": "‘", "cq": "’", "mc": "µ", "+-": "±", "->": "→", "<-": "←", "<=": "≤", ">=": "≥", "mu": "×",
         "ga": "`", "fo": "‹", "fc": "›", "Fo": "«", "Fc": "»"}  # fmt: skip


def clean_roff(text: str) -> str:
    """A line of roff without its escapes: fonts and sizes are dropped, signs are written as themselves."""
    text = re.sub(r'\\".*', "", text)
    text = re.sub(r"\\f(\(..|\[[^]]*\]|.)|\\s[-+]?\d+|\\[%/,&:!)^|]", "", text)
    text = re.sub(r"\\\((..)|\\\[([^]]*)\]", lambda found: SIGNS.get(found[1] or found[2], ""), text)
    text = re.sub(r"\\\*(\(..|\[[^]]*\]|.)|\\[hvwz]'[^']*'", "", text)
    return text.replace("\\-", "-").replace("\\ ", " ").replace("\\~", " ").replace("\\e", "\\").replace("\\'", "´")


def split_arguments(text: str) -> list[str]:
    """The arguments of a macro; quotes keep spaces together."""
    try:
        lexer = shlex.shlex(text, posix=True)
        lexer.whitespace_split, lexer.quotes, lexer.escape, lexer.commenters = True, '"', "", ""
        return list(lexer)
    except ValueError:  # a quote that is not closed
        return text.replace('"', "").split()


def list_paragraphs(page: str) -> list[str]:
    """The paragraphs of a manual page in order; examples of code, tables and what is not set as text are left out."""
    found: list[str] = []
    parts: list[str] = []
    skipped = tag = False

    def end() -> None:
        text = " ".join(" ".join(parts).split())
        if text:
            found.append(text)
        parts.clear()

    for line in page.splitlines():
        name, _, rest = line[1:].strip().partition(" ")
        is_macro = line[:1] in (".", "'")
        if is_macro and name in ("nf", "EX", "TS", "de"):
            end()
            skipped = True
        elif is_macro and name in ("fi", "EE", "TE", "."):
            skipped = False
        elif skipped or (is_macro and name.startswith('\\"')):
            continue
        elif is_macro and name in BREAKS:
            end()
            if name in TITLES and rest:
                parts.append(clean_roff(" ".join(split_arguments(rest))))
                end()
            tag = name in ("TP", "TQ")
        elif is_macro and name in FONTS:
            given = split_arguments(rest)
            parts.append(clean_roff((" " if len(name) == 1 or name == "SB" else "").join(given)))
            if tag:
                end()
            tag = False
        elif not is_macro:
            if not line.strip():
                end()
            parts.append(clean_roff(line))
            if tag:
                end()
            tag = False
    end()
    return found


def list_pages(folder: Path) -> dict[str, Path]:
    """`man2/brk.2.gz` → its file, of all pages below `usr/share/man`."""
    pages = sorted(folder.glob("usr/share/man/**/*.gz"))
    return {"/".join(path.parts[-2:]): path for path in pages if path.is_file()}


def read_page(path: Path) -> str:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read()


def pair_paragraphs(english: Sequence[str], other: Sequence[str], last: str) -> Iterator[tuple[str, str]]:
    """The paragraphs of two pages that say the same; none if the pages have other numbers of them.

    last: the title of the section that a translation has more.
    """
    other = other[: other.index(last)] if last in other else other
    if len(english) != len(other):
        return
    for left, right in zip(english, other, strict=True):
        lengths = len(left), len(right)
        if left != right and min(lengths) >= SHORTEST and max(lengths) <= LONGEST and max(lengths) < 3 * min(lengths):
            yield left, right


def prepare_language(language: str, raw: Path, out: Path) -> str:
    """Write the parallel text of one language; → a line about it. Raises ValueError for a package that is missing."""
    names = [f"manpages-{language}", f"manpages-{language}-dev", *ENGLISH]
    missing = [name for name in names if not (raw / name).is_dir()]
    if missing:
        raise ValueError(f"{raw / missing[0]} is missing; run `python tools/fetch_data.py --set languages`")
    english = {key: path for name in ENGLISH for key, path in list_pages(raw / name).items()}
    theirs = {key: path for name in names[:2] for key, path in list_pages(raw / name).items()}
    split: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    seen: set[tuple[str, str]] = set()
    for number, key in enumerate(sorted(english.keys() & theirs.keys())):
        both = (list_paragraphs(read_page(pages[key])) for pages in (english, theirs))
        for pair in pair_paragraphs(*both, LANGUAGES[language]):
            if pair not in seen:
                split["test" if number % HELD_OUT == 0 else "train"].append(pair)
            seen.add(pair)
    for part, pairs in split.items():
        for side, name in enumerate(("en", language)):
            write_text_atomically(out / language / f"{part}.{name}.txt", "".join(f"{pair[side]}\n" for pair in pairs))
    counts = ", ".join(f"{len(pairs):,} lines of {part}" for part, pairs in split.items())
    return f"{language}: {counts} beside English"


def prepare_code(raw: Path, out: Path, most_bytes: int) -> str:
    """Write the text of Go's packages, at most so many bytes to train on and a tenth of that to measure with."""
    folder = raw / GO
    files = [path for path in sorted(folder.glob("usr/share/go-*/src/**/*.go")) if path.is_file()]
    if not files:
        raise ValueError(f"{folder} is missing; run `python tools/fetch_data.py --set languages`")
    folders = sorted({path.parent for path in files})
    limits = {"train": most_bytes, "test": most_bytes // HELD_OUT}
    texts: dict[str, list[str]] = {"train": [], "test": []}
    sizes = dict.fromkeys(texts, 0)
    for number, place in enumerate(folders):
        part = "test" if number % HELD_OUT == 0 else "train"
        for path in (path for path in files if path.parent == place):
            text = path.read_text("utf-8", errors="replace")
            if "\0" in text or "\ufffd" in text or sizes[part] + len(text.encode()) > limits[part]:
                continue
            texts[part].append(text.rstrip("\n") + "\n")
            sizes[part] += len(text.encode())
    for part, listed in texts.items():
        write_text_atomically(out / "go" / f"{part}.txt", "".join(listed))
    return "go: " + ", ".join(f"{size:,} bytes of {part}" for part, size in sizes.items())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), help="where the packages are unpacked")
    parser.add_argument("--out", type=Path, default=Path("data/prepared/languages"))
    parser.add_argument("--code-bytes", type=int, default=2_000_000, help="of code, at most so much to train on")
    options = parser.parse_args(arguments)
    try:
        for language in LANGUAGES:
            print(prepare_language(language, options.raw, options.out), flush=True)
        print(prepare_code(options.raw, options.out, options.code_bytes))
    except (ValueError, OSError) as error:
        print(f"prepare_languages: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
