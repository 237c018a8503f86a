"""Plain text as rows: a UTF-8 file is cut at the ends of its lines into pieces of about a kilobyte, each a `text`.

They are the pieces by which `unimodal text cost` measures what a text costs a model, but for blank lines, which stay.
"""

from __future__ import annotations

import hashlib
from array import array
from pathlib import Path

from unimodal.data.rows import Row
from unimodal.files import quote_path
from unimodal.text.corpora import PIECE_BYTES


class TextRows:
    """Lines put together to pieces of at most `PIECE_BYTES`; a longer line is cut between its characters.

    Memory: 24 bytes a piece. name: what messages call the file, if `path` is only its unpacked content.
    """

    def __init__(self, path: Path, name: Path | None = None) -> None:
        self.path, self.name = path, quote_path(name or path)
        self._spans = array("q")  # of each piece: its first byte, the byte behind it, its first line
        digest = hashlib.sha256()
        begin = end = first = 0
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                digest.update(line)
                stop = end + len(line)
                if begin < end and stop - begin > PIECE_BYTES:
                    self._spans.extend((begin, end, first))
                    begin = end
                if begin == end:
                    first = number
                    if not line.strip():  # no piece begins with blank lines
                        begin = end = stop
                        continue
                while stop - begin > PIECE_BYTES:
                    cut = _find_letter(line, begin + PIECE_BYTES - end) + end
                    self._spans.extend((begin, cut, number))
                    begin = cut
                end = stop
        if begin < end:
            self._spans.extend((begin, end, first))
        self._sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._spans) // 3

    def __getitem__(self, index: int) -> Row:
        begin, end = self._spans[3 * index : 3 * index + 2]
        with self.path.open("rb") as stream:
            stream.seek(begin)
            content = stream.read(end - begin)
        try:
            text = content.decode("utf-8-sig" if not begin else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"the text is not UTF-8 ({error.reason} at byte {begin + error.start}); convert it with "
                "`iconv -f ITS_ENCODING -t UTF-8`"
            ) from None
        if "\0" in text:
            raise ValueError("the text holds zero bytes: it is no text, or UTF-16; convert it with `iconv -t UTF-8`")
        return {"text": text.replace("\r\n", "\n")}

    def describe_place(self, index: int) -> str:
        return f"{self.name} line {self._spans[3 * index + 2]}"

    def compute_sha256(self) -> str:
        return self._sha256


def _find_letter(line: bytes, at: int) -> int:
    """The last place up to `at` where a character of UTF-8 begins; `at` itself in what is none."""
    for place in range(at, at - 4, -1):
        if line[place] & 0xC0 != 0x80:
            return place
    return at
