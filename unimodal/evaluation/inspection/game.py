"""A referential game over a tokenizer's codes: two small networks make up a language of their own.

A speaker sees the codes of one view of an item and writes a few symbols; a listener reads them and picks the item among
others, of which it sees the codes of another view. Both learn together, by a contrastive loss over the items of a batch
(Kubricht et al., "Grounded Language Acquisition From Object and Action Imagery", arXiv 2309.06335, second
environment; the symbols are differentiated through by the straight-through Gumbel softmax, arXiv 1611.01144).

The authors' agents see pictures through networks of their own; here they see what the tokenizer kept of them.

Shapes: B items, M codes, S symbols of a message, K values of a symbol, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class GameSettings:
    """symbols: of a message. values: that each can have. width: of the networks. steps: of training."""

    symbols: int = 4
    values: int = 16
    width: int = 64
    steps: int = 400
    batch: int = 32
    temperature: float = 1.0


class CodeReader(nn.Module):
    """The codes of an item [B, M] → a vector [B, D]: each code at each place has a row, and their mean is read."""

    def __init__(self, num_codes: int, num_values: int, width: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(num_values, width)
        self.places = nn.Parameter(torch.randn(num_codes, width) / width**0.5)
        self.read = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, codes: Tensor) -> Tensor:
        vectors: Tensor = self.read((self.rows(codes) * (1 + self.places)).mean(1) * codes.shape[1] ** 0.5)
        return vectors


class GameSpeaker(nn.Module):
    """The codes of an item → a message, one-hot [B, S, K]."""

    def __init__(self, num_codes: int, num_values: int, settings: GameSettings) -> None:
        super().__init__()
        self.settings = settings
        self.reader = CodeReader(num_codes, num_values, settings.width)
        self.cell = nn.GRUCell(settings.width, settings.width)
        self.say = nn.Linear(settings.width, settings.values)
        self.hear = nn.Linear(settings.values, settings.width, bias=False)

    def forward(self, codes: Tensor) -> Tensor:
        state = self.reader(codes)
        said = torch.zeros_like(state)
        message = []
        for _ in range(self.settings.symbols):
            state = self.cell(said, state)
            logits = self.say(state)
            if self.training:
                symbol = nn.functional.gumbel_softmax(logits, self.settings.temperature, hard=True)
            else:
                symbol = nn.functional.one_hot(logits.argmax(-1), self.settings.values).float()
            message.append(symbol)
            said = self.hear(symbol)
        return torch.stack(message, 1)


class GameListener(nn.Module):
    """A message [B, S, K] and the codes of candidates [B, M] → how well each message fits each candidate, [B, B]."""

    def __init__(self, num_codes: int, num_values: int, settings: GameSettings) -> None:
        super().__init__()
        self.reader = CodeReader(num_codes, num_values, settings.width)
        self.hear = nn.GRU(settings.values, settings.width, batch_first=True)

    def forward(self, message: Tensor, candidates: Tensor) -> Tensor:
        heard = self.hear(message)[1][0]  # [B, D]
        fit: Tensor = heard @ self.reader(candidates).T
        return fit


def play(
    speakers: Tensor, listeners: Tensor, num_values: int, settings: GameSettings, seed: int = 0
) -> tuple[GameSpeaker, GameListener]:
    """Trains the two on views [views, items, M] of the same items; the speaker sees the first, the listener the second.

    Restores torch's random state.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        speaker = GameSpeaker(speakers.shape[2], num_values, settings)
        listener = GameListener(speakers.shape[2], num_values, settings)
        optimizer = torch.optim.AdamW([*speaker.parameters(), *listener.parameters()], lr=3e-3, weight_decay=0.01)
        items = speakers.shape[1]
        for _ in range(settings.steps):
            chosen = torch.randperm(items)[: settings.batch]
            view, other = (int(torch.randint(len(views), ())) for views in (speakers, listeners))
            fit = listener(speaker(speakers[view, chosen]), listeners[other, chosen])
            loss = nn.functional.cross_entropy(fit, torch.arange(len(chosen)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return speaker.eval(), listener.eval()
