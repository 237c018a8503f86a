"""Results of a coder: a part of an answer with its medium, and the codes of one file as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from torch import Tensor

from unimodal.files import describe_error, quote_path, write_text_atomically
from unimodal.media.access import save_medium
from unimodal.sequence.document import MEDIA_PARTS, Part, Text

CODES_FORMAT = 1
Grid3 = tuple[int, int, int]  # time, rows and columns


@dataclass(frozen=True)
class Output:
    """One part of an answer: its document part, and for media what it decodes to.

    media: picture [3, H, W], sound [T] or clip [T, 3, H, W]; rate: samples or frames a second (None for a picture).
    """

    part: Part
    media: Tensor | None = None
    rate: float | None = None

    @property
    def modality(self) -> str:
        return "text" if isinstance(self.part, Text) else self.part.modality

    @property
    def text(self) -> str:
        """The words of a text part, '' for media."""
        return self.part.text if isinstance(self.part, Text) else ""

    @property
    def num_codes(self) -> int:
        """The number of code steps of a medium; 0 for a text."""
        return 0 if isinstance(self.part, Text) else len(self.part.require_codes())

    def __repr__(self) -> str:
        if isinstance(self.part, Text):
            return f"Output({self.text!r})"
        shape = "" if self.media is None else f", {list(self.media.shape)}"
        return f"Output({self.modality}, {len(self.part.require_codes())} codes{shape})"

    def save(self, path: str | Path) -> None:
        """Writes the file, whole or not at all, in the format of its suffix. Raises ValueError for a suffix that does
        not fit.
        """
        if self.media is None:
            write_text_atomically(path, self.text + "\n")
        else:
            save_medium(self.modality, self.media, path, self.rate)


@dataclass(frozen=True)
class MediaCodes:
    """The codes of one file and the hash of the tokenizer that made them, as `unimodal tokenize` writes them."""

    modality: str
    tokenizer_sha256: str
    codes: np.ndarray  # int64 [N] or [N, G]
    grid: Grid3 | None = None
    seconds: float | None = None

    def save(self, path: str | Path) -> None:
        fields = {
            "format": CODES_FORMAT,
            "modality": self.modality,
            "tokenizer_sha256": self.tokenizer_sha256,
            "grid": None if self.grid is None else list(self.grid),
            "seconds": self.seconds,
            "codes": self.codes.tolist(),
        }
        write_text_atomically(path, json.dumps(fields) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> MediaCodes:
        """Raises ValueError, in one line, for a file that `save` did not write."""
        name = quote_path(path)
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{name}: no such file; check the path") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{name} is not a file of codes ({describe_error(error, 120)})") from None
        if not isinstance(fields, dict) or fields.get("format") != CODES_FORMAT or "codes" not in fields:
            raise ValueError(f"{name} is not a file of codes; make one with `unimodal tokenize FILE --out {name}`")
        try:
            codes = np.array(fields["codes"])
            if codes.dtype.kind != "i" or codes.ndim not in (1, 2) or not codes.size:
                raise ValueError("codes must be a list of integers")
            if fields["modality"] not in MEDIA_PARTS:
                raise ValueError(f"modality {fields['modality']!r} is unknown")
            grid = None if fields.get("grid") is None else cast(Grid3, tuple(map(int, fields["grid"])))
            seconds = None if fields.get("seconds") is None else float(fields["seconds"])
            return cls(fields["modality"], str(fields["tokenizer_sha256"]), codes.astype(np.int64), grid, seconds)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{name} is not a usable file of codes ({error}); tokenize the medium again") from None
