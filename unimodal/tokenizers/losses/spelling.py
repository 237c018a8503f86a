"""What is said is spelled from the codes: connectionist temporal classification (Graves et al. 2006) of the text's
signs by a small reader over the codes' vectors, so that codes keep what tells words apart.

Signs are bytes of UTF-8, which spell any script, or characters. Texts are compared without case, in normal form, with
single spaces; a reader is trained with the tokenizer and thrown away with the other losses.

Shapes: B batch, N codes, D width of their vectors, S steps of the reader (S = N · per_code), C signs.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import ctc_loss, gelu

BLANK = 0
#: a character that the alphabet does not have
OTHER = "\ufffd"


def simplify_text(text: str) -> str:
    """The text as it is spelled: compatibility form, no case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def collect_characters(texts: Iterable[str]) -> str:
    """The characters of texts as they are spelled, each once, sorted."""
    return "".join(sorted({sign for text in texts for sign in simplify_text(text)}))


class Alphabet:
    """Texts ⇄ signs, numbered from 1; 0 is the blank. characters: None for the 256 bytes; others are spelled as one
    further sign."""

    def __init__(self, characters: str | None = None):
        self.characters = None if characters is None else "".join(dict.fromkeys(characters))
        self.numbers = {sign: 2 + place for place, sign in enumerate(self.characters or "")}
        self.size = 257 if self.characters is None else 2 + len(self.characters)

    def encode(self, text: str) -> list[int]:
        spelled = simplify_text(text)
        if self.characters is None:
            return [1 + byte for byte in spelled.encode()]
        return [self.numbers.get(sign, 1) for sign in spelled]

    def decode(self, signs: Sequence[int]) -> str:
        if self.characters is None:
            return bytes(sign - 1 for sign in signs).decode(errors="replace")
        return "".join(OTHER if sign == 1 else self.characters[sign - 2] for sign in signs)


class SpellingLoss(nn.Module):
    """The reader and its loss. per_code: steps of the reader for each code, since a text needs as many steps as signs,
    and one more between equal neighbours. num_layers: residual convolutions over five codes. skip_empty: an item
    whose text is empty counts nothing; else it is an error."""

    def __init__(
        self,
        width: int,
        characters: str | None = None,
        hidden: int = 256,
        per_code: int = 2,
        num_layers: int = 2,
        skip_empty: bool = False,
    ):
        super().__init__()
        self.skip_empty = skip_empty
        self.alphabet, self.per_code = Alphabet(characters), per_code
        self.enter = nn.Linear(width, hidden)
        self.layers = nn.ModuleList(nn.Conv1d(hidden, hidden, 5, padding=2) for _ in range(num_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(num_layers + 1))
        self.spread = nn.Linear(hidden, per_code * hidden)
        self.head = nn.Linear(hidden, self.alphabet.size)

    def score(self, values: Tensor, mask: Tensor) -> Tensor:
        """values: [B, N, D], mask: bool [B, N] → log-probabilities of the signs, float32 [B, S, C]."""
        real = mask.unsqueeze(-1)
        h = self.enter(values) * real
        for layer, norm in zip(self.layers, self.norms, strict=False):
            h = h + gelu(layer((norm(h) * real).transpose(1, 2)).transpose(1, 2)) * real
        h = gelu(self.spread(self.norms[-1](h)).unflatten(-1, (self.per_code, -1)).flatten(1, 2))
        return self.head(h).float().log_softmax(-1)

    def forward(self, values: Tensor, mask: Tensor, texts: Sequence[str]) -> Tensor:
        """values: [B, N, D] with a gradient to the encoder, mask: bool [B, N], texts: one an item → the mean negative
        log-likelihood of a sign, a scalar. An item whose text has more signs than its codes have steps counts nothing.

        Raises ValueError for another number of texts and, unless skip_empty, for an empty one and where no item's text
        fits.
        """
        if len(texts) != len(values):
            raise ValueError(f"{len(texts)} texts are given for {len(values)} items; give one for each")
        spelled = [self.alphabet.encode(text) for text in texts]
        told = [item for item, signs in enumerate(spelled) if signs]
        if len(told) < len(spelled) and not self.skip_empty:
            raise ValueError("there is an empty text; give every item what is said in it")
        steps = (mask.sum(1) * self.per_code).tolist()
        chosen = [item for item in told if steps[item] >= count_steps_needed(spelled[item])]
        if not chosen and self.skip_empty:
            return 0 * sum(parameter.sum() for parameter in self.parameters()) + 0 * values.sum()
        if not chosen:
            raise ValueError(
                f"a text of {len(spelled[told[0]])} signs does not fit the {steps[told[0]]} steps of its codes, nor "
                "does any other of the batch; raise spelling.per_code, or give whole sounds with their own texts"
            )
        scores = self.score(values, mask)[chosen].transpose(0, 1)  # [S, b, C]
        signs = [spelled[item] for item in chosen]
        losses = ctc_loss(
            scores,
            torch.tensor([sign for row in signs for sign in row], device=values.device),
            torch.tensor([steps[item] for item in chosen]),
            torch.tensor([len(row) for row in signs]),
            blank=BLANK,
            reduction="none",
            zero_infinity=True,
        )
        return (losses / torch.tensor([len(row) for row in signs], device=losses.device)).mean()

    @torch.no_grad()
    def read(self, values: Tensor, mask: Tensor) -> list[str]:
        """The likeliest text of each item, step by step."""
        best = self.score(values, mask).argmax(-1)
        texts = []
        for row, count in zip(best.tolist(), (mask.sum(1) * self.per_code).tolist(), strict=True):
            kept = [sign for sign, before in zip(row[:count], [BLANK, *row], strict=False) if sign != before]
            texts.append(self.alphabet.decode([sign for sign in kept if sign != BLANK]))
        return texts

    def measure_errors(self, values: Tensor, mask: Tensor, texts: Sequence[str]) -> float:
        """Character errors of what is read from the codes: changed, missing and surplus characters, for each of the
        texts'. Items without a text are not read."""
        wanted = [simplify_text(text) for text in texts]
        pairs = zip(self.read(values, mask), wanted, strict=True)
        errors = sum(count_edits(read, text) for read, text in pairs if text)
        return errors / max(1, sum(map(len, wanted)))


def count_steps_needed(signs: Sequence[int]) -> int:
    """A step for each sign, and one between equal neighbours."""
    return len(signs) + sum(one == other for one, other in zip(signs, signs[1:], strict=False))


def count_edits(text: str, wanted: str) -> int:
    """The fewest changed, missing and surplus characters between two texts (Levenshtein)."""
    row = list(range(len(wanted) + 1))
    for number, sign in enumerate(text, 1):
        before, row[0] = row[0], number
        for place, other in enumerate(wanted, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (sign != other))
    return row[-1]
