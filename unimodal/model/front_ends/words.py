"""Front ends that pool the bytes of a word into one position, and write the next word byte by byte.

A small encoder reads the bytes of each word, a word by itself, behind one or more places that pool. What these hold
becomes the decoder's position; the decoder's state before a word opens a small causal decoder that scores its bytes and
its end. So words are read and scored side by side.

    hierarchical (arXiv:2501.10322)   one place pools, whose state the decoder reads at its own width
    pooled       (arXiv:2310.11628)   several places, here four, whose states side by side are the decoder's position

A word is here a run of other bytes than white space with the white space before it; longer ones than 24 bytes are cut,
so that a text without spaces is read too. The decoder of a word reads the rows of its bytes; that of the pooled paper
reads again what the encoder made of them.

Shapes: B texts, W words of a text, K bytes of the longest word, P places that pool, E width of the small networks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unimodal.model.build import NanoConfig
from unimodal.model.front_ends.interface import FrontEnd, UnitScores, make_layers, pad_rows

LONGEST = 24  # bytes
LENGTHS = (4, 8, 12, LONGEST)  # up to which words are run together
END, PAD = 256, 257  # behind the bytes: the end of a word, and nothing
_WORD = re.compile(rb"\s*\S+|\s+")


def split_words(text: bytes) -> list[bytes]:
    """The words of a text, each with the white space before it; together they are the text."""
    return [
        word[at : at + LONGEST] for word in _WORD.findall(text) for at in range(0, len(word), LONGEST)
    ]  # fmt: skip


class WordFrontEnd(FrontEnd):
    """num_pooled: places that pool a word. char_width: of the small networks, E. num_layers: of each of them."""

    def __init__(
        self, sizes: NanoConfig, num_pooled: int = 1, char_width: int = 64, num_layers: int = 2, seed: int = 0
    ) -> None:
        super().__init__(sizes, seed=seed)
        self.num_pooled, self.char_width = num_pooled, char_width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            self.table = nn.Embedding(PAD + 1, char_width)
            self.places = nn.Parameter(torch.randn(num_pooled + LONGEST, char_width) * 0.02)
            self.pooling = nn.Parameter(torch.randn(num_pooled, char_width) * 0.02)
            layer = nn.TransformerEncoderLayer(
                char_width, max(1, char_width // 32), 3 * char_width, dropout=0.0, batch_first=True, norm_first=True
            )
            self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
            self.rise = nn.Linear(num_pooled * char_width, self.width)
            self.fall = nn.Linear(self.width, num_pooled * char_width)
            self.start = nn.Parameter(torch.randn(self.width) * 0.02)
            self.head = nn.Linear(char_width, END + 1)
        self.writer = make_layers(char_width, num_layers, num_pooled + LONGEST + 1, seed + 2)

    def score(self, texts: Sequence[bytes]) -> UnitScores:
        words = [split_words(text) for text in texts]
        counts = [len(row) for row in words]
        longest = max(counts, default=0)
        listed = [word for row in words for word in row]
        sizes = pad_rows([[len(word) for word in row] for row in words])  # [B, W]
        if not listed:
            return UnitScores(torch.zeros(len(texts), 0), sizes)
        unique = list(dict.fromkeys(listed))  # a word is pooled alike wherever it stands
        place = {word: at for at, word in enumerate(unique)}
        pooled = self._by_length(unique, lambda letters, _: self.pool(letters), self.num_pooled * self.char_width)
        read = self.rise(pooled)[[place[word] for word in listed]]  # [ΣW, D]
        states = self.read(self._lay_out(read, counts, longest))
        before = torch.cat([row[:count] for row, count in zip(states, counts, strict=True)])  # [ΣW, D]
        costs = self._by_length(listed, lambda letters, at: self.write(before[at], letters)[:, None], 1)[:, 0]
        nats = [torch.cat([part, part.new_zeros(longest - len(part))]) for part in costs.split(counts)]
        return UnitScores(torch.stack(nats), sizes)

    def _by_length(self, words: Sequence[bytes], run: Callable[[Tensor, Tensor], Tensor], width: int) -> Tensor:
        """What `run` makes of words [n, K] and their places [n], as [len(words), width]; words of about one length are
        run together, so that little is padding."""
        found, order = [], []
        for shortest, limit in zip((0, *LENGTHS), LENGTHS, strict=False):
            places = [at for at, word in enumerate(words) if shortest < len(word) <= limit]
            if places:
                letters = pad_rows([list(words[at]) for at in places], PAD)
                found.append(run(letters, torch.tensor(places)))
                order += places
        made = torch.cat(found) if found else torch.zeros(0, width)
        return made[torch.tensor(order, dtype=torch.int64).argsort()]

    def pool(self, letters: Tensor) -> Tensor:
        """Words [n, K] → what their places hold [n, P · E]; padding is not seen."""
        known = self.table(letters) + self.places[self.num_pooled : self.num_pooled + letters.shape[1]]
        pooling = (self.pooling + self.places[: self.num_pooled]).expand(len(letters), -1, -1)
        hidden = torch.cat([letters.new_zeros(len(letters), self.num_pooled, dtype=torch.bool), letters == PAD], 1)
        states = self.encoder(torch.cat([pooling, known], 1), src_key_padding_mask=hidden)
        return states[:, : self.num_pooled].flatten(1)

    def write(self, states: Tensor, letters: Tensor) -> Tensor:
        """The cost [n] of words [n, K] and their ends, by the decoder's states before them [n, D]."""
        opening = self.fall(states).unflatten(1, (self.num_pooled, self.char_width))
        given = torch.cat([opening, self.table(letters)], 1)
        hidden = self.writer(inputs_embeds=given, use_cache=False).last_hidden_state[:, self.num_pooled - 1 :]
        ended = torch.cat([letters, letters.new_full((len(letters), 1), PAD)], 1)  # [n, K + 1]
        ended[torch.arange(len(letters)), (letters != PAD).sum(1)] = END
        nats = cross_entropy(self.head(hidden).transpose(1, 2), ended, reduction="none", ignore_index=PAD)
        return nats.sum(1)

    def _lay_out(self, read: Tensor, counts: Sequence[int], longest: int) -> Tensor:
        """Words [ΣW, D] as what stands before each word [B, W, D]: the start, then the words before it."""
        rows = []
        for part in read.split(list(counts)):
            known = torch.cat([self.start[None], part[:-1]])[: len(part)]
            rows.append(torch.cat([known, known.new_zeros(longest - len(known), self.width)]))
        return torch.stack(rows)
