"""Bits a byte: what a text costs a model, whatever its tokenizer, and how many tokens the text is.

The text is cut into pieces of about a kilobyte at the ends of lines, the same for every tokenizer. Each is scored
behind the row that starts a text, so that every one of its tokens counts.

Shapes: B rows, N tokens, V rows of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from unimodal.text.corpora import PIECE_BYTES, cut_pieces
from unimodal.text.reports.opened import OpenedTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TextCost:
    """Bits a byte with half of the 95 % interval over the pieces, and the tokens and bytes of the text.

    num_pieces: into which it was cut. num_spoilt: of them, those that the tokenizer does not give back as they were,
    as where it has no row for a letter. What is lost costs nothing, so that the bits are then too low. pieces: bytes
    and bits of each.
    """

    bits: float
    interval: float
    tokens: int
    num_bytes: int
    num_pieces: int
    num_spoilt: int
    pieces: tuple[tuple[int, float], ...] = ()

    def compare(self, other: TextCost) -> tuple[float, float] | None:
        """Bits a byte more than the other's, with half of the 95 % interval over the pieces; None for other pieces."""
        if [size for size, _ in self.pieces] != [size for size, _ in other.pieces]:
            return None
        more = [(size, mine - theirs) for (size, mine), (_, theirs) in zip(self.pieces, other.pieces, strict=True)]
        return _estimate(more)

    def format(self) -> str:
        """Bits a byte in words."""
        lost = f"; {self.num_spoilt} of {self.num_pieces} pieces lose letters" if self.num_spoilt else ""
        return f"{self.bits:.3f} ± {self.interval:.3f}{lost}"

    def describe(self) -> dict[str, object]:
        """The figures by name, for JSON."""
        return {
            "bits_per_byte": self.bits,
            "interval_95": self.interval,
            "tokens": self.tokens,
            "bytes": self.num_bytes,
            "pieces": self.num_pieces,
            "spoilt_pieces": self.num_spoilt,
        }


@torch.inference_mode()
def measure_text(
    model: PreTrainedModel, tokenizer: OpenedTokenizer, start: int | None, lines: Sequence[str]
) -> TextCost:
    """What a model pays for lines of text. start: the row before a text; without one the first token costs log2(V)."""
    positions = int(model.config.max_position_embeddings)
    pieces = cut_pieces(lines, min(PIECE_BYTES, positions - 2))  # a tokenizer may put a space before a text
    was_training = model.training
    model.eval()
    costs, sizes, tokens, spoilt = [], [], 0, 0
    for piece in pieces:
        ids = tokenizer.encode(piece)
        tokens += len(ids)
        spelled = b"".join(tokenizer.spelled.get(row, b"") for row in ids)
        spoilt += spelled.strip() != piece.encode("utf-8", "surrogatepass").strip()
        whole = torch.tensor([[*([] if start is None else [start]), *ids]], device=model.device)  # [1, N]
        logits = model(input_ids=whole, use_cache=False).logits[0, :-1].float()  # [N - 1, V]
        nats = float(cross_entropy(logits, whole[0, 1:], reduction="sum"))
        nats += math.log(logits.shape[-1]) if start is None else 0.0
        costs.append(nats / math.log(2))
        sizes.append(len(piece.encode("utf-8", "surrogatepass")))
    model.train(was_training)
    bits, interval = _estimate(list(zip(sizes, costs, strict=True)))
    parts = tuple(zip(sizes, costs, strict=True))
    return TextCost(bits, interval, tokens, sum(sizes), len(pieces), spoilt, parts)


def _estimate(pieces: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """(bytes, bits) of pieces → bits a byte, and half of the 95 % interval over the pieces."""
    total, count = sum(size for size, _ in pieces), len(pieces)
    bits = sum(cost for _, cost in pieces) / total
    off = sum((cost - bits * size) ** 2 for size, cost in pieces)
    return bits, 1.96 * math.sqrt(off * count / max(count - 1, 1)) / total
