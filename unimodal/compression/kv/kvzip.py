"""KVzip (arXiv 2505.23416): keep the entries that the model attends to while it repeats the prompt.

Behind a prompt, or a later turn, the model reads it once more, as the answer to a request to repeat it. The most
attention that an entry gets from any token and head of that reading is its score; the entries of all layers and heads
are ranked together. No question enters, so that what stays serves every question. Reading twice costs as much again;
the gain is in what comes later. The authors repeat in pieces of 2,048 tokens; here a call is one piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unimodal.compression.kv.method import Acts, CacheCompressor
from unimodal.compression.method import check_whole
from unimodal.compression.running.look import Look


@dataclass
class KVzip(CacheCompressor):
    """Keep what the model attends to while it repeats the prompt (KVzip, arXiv 2505.23416).

    asked: ids of the request that comes before the repetition, such as the text "Repeat the previous context exactly."
    in the words of the model's tokenizer; without it the prompt is repeated unasked. sinks: entries at the first so
    many positions stay. Raises ValueError for negative sinks, and for what `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "KVzip, arXiv 2505.23416"

    asked: tuple[int, ...] = ()
    sinks: int = 4
    acts: ClassVar[Acts] = "replay"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("sinks", self.sinks, 0)

    @property
    def repetition(self) -> tuple[tuple[int, ...], int]:
        return self.asked, self.sinks

    def score(self, look: Look) -> Tensor:
        raise NotImplementedError("the second reading scores")
