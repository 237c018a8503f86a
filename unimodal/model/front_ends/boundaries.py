"""MAGNET (Ahia et al. 2024, arXiv:2407.08818): bytes pooled between boundaries that are learned, script by script.

A few layers read bytes. A predictor says where segments begin; each is pooled by its mean and read by the decoder; each
byte then gets the state of the last whole segment before its own, and a few layers more score the next byte. The
boundaries are drawn from relaxed Bernoulli variables with a straight-through gradient, and the share of
bytes that end a segment is held near a prior by its binomial likelihood. Each script has a predictor and a prior of its
own, so that one that takes more bytes a letter gets as long segments as the others in letters.

Published segments begin at a boundary and the text's script is given; here a text goes by the script of most of its
letters. Outside training a boundary is where its probability is above a half, so that a text is scored the same again.
Otherwise as the authors' code, with this project's Llama layers in place of theirs.

Shapes: B texts, N bytes, S segments of a text, D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from unicodedata import name

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unimodal.model.build import NanoConfig
from unimodal.model.front_ends.interface import FrontEnd, UnitScores, make_layers, pad_rows

TEMPERATURE, THRESHOLD = 0.5, 0.5
#: the share of bytes that end a segment: an English word and a Russian one, of two bytes a letter
PRIORS = {"LATIN": 0.2, "CYRILLIC": 0.1}
START = 256  # the row before a text


def find_script(text: bytes) -> str:
    """The script of most letters of a text, as Unicode names begin ("LATIN", "CYRILLIC"); "" without letters."""
    letters = Counter(letter for letter in text.decode("utf-8", "ignore") if letter.isalpha())
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        scripts[name(letter, "").split(" ")[0]] += count
    return scripts.most_common(1)[0][0] if scripts else ""


class BoundaryFrontEnd(FrontEnd):
    """priors: script → its prior; the first stands for other scripts. num_layers: before and behind the decoder."""

    def __init__(
        self, sizes: NanoConfig, priors: Mapping[str, float] = PRIORS, num_layers: int = 2, seed: int = 0
    ) -> None:
        super().__init__(sizes, seed=seed)
        if not priors or not all(0 < prior < 1 for prior in priors.values()):
            raise ValueError(f"priors {dict(priors)}: give a share between 0 and 1 for one script or more")
        self.priors = dict(priors)
        self._draws = torch.Generator().manual_seed(seed)
        self._extra: Tensor | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            self.table = nn.Embedding(START + 1, self.width)
            self.predictors = nn.ModuleDict(
                {
                    script: nn.Sequential(nn.Linear(self.width, self.width), nn.GELU(), nn.Linear(self.width, 1))
                    for script in self.priors
                }
            )
            self.null = nn.Parameter(torch.randn(self.width) * 0.02)
            self.norm = nn.LayerNorm(self.width)
            self.head = nn.Linear(self.width, 256)
        longest = sizes.max_positions
        self.before = make_layers(self.width, num_layers, longest, seed + 2)
        self.behind = make_layers(self.width, num_layers, longest, seed + 3)

    def score(self, texts: Sequence[bytes]) -> UnitScores:
        longest = max(map(len, texts), default=0)
        if longest > self.max_positions:
            raise ValueError(f"a text has {longest} bytes, but the layers {self.max_positions} positions; cut it")
        rows = pad_rows([list(text) for text in texts])  # [B, N]
        sizes = pad_rows([[1] * len(text) for text in texts])
        given = torch.cat([rows.new_full((len(texts), 1), START), rows], 1)[:, :-1]
        states = self.before(inputs_embeds=self.table(given), use_cache=False).last_hidden_state  # [B, N, D]
        boundaries = self.find_boundaries(states, [find_script(text) for text in texts], sizes > 0)
        read = self.read(self.norm(pool_segments(boundaries, states, self.null)))  # [B, S, D]
        states = states + spread_segments(boundaries, read)
        states = self.behind(inputs_embeds=states, use_cache=False).last_hidden_state
        nats = cross_entropy(self.head(states).transpose(1, 2), rows, reduction="none")
        return UnitScores(nats * sizes, sizes)

    def find_boundaries(self, states: Tensor, scripts: Sequence[str], real: Tensor) -> Tensor:
        """Whether a segment begins at each byte [B, N]: 0 or 1, with the gradient of what was drawn."""
        first = next(iter(self.priors))
        chosen = [script if script in self.priors else first for script in scripts]
        logits = torch.stack(
            [self.predictors[script](row).squeeze(-1) for script, row in zip(chosen, states, strict=True)]
        )
        soft = logits.sigmoid()
        if self.training:
            uniform = torch.rand(logits.shape, generator=self._draws).clamp(1e-6, 1 - 1e-6)
            soft = ((logits + uniform.log() - (1 - uniform).log()) / TEMPERATURE).sigmoid()
        hard = (soft > THRESHOLD).float() * real
        hard = hard - (soft * real).detach() + soft * real
        counts = real.sum(1).float()
        priors = torch.tensor([self.priors[script] for script in chosen])
        likelihood = torch.distributions.Binomial(counts, priors, validate_args=False).log_prob(hard.sum(1))
        self._extra = -(likelihood / counts.clamp_min(1)).mean()
        return hard

    def extra_loss(self) -> Tensor | None:
        return self._extra


def pool_segments(boundaries: Tensor, states: Tensor, null: Tensor) -> Tensor:
    """The mean state of each whole segment, behind the null segment [B, S + 1, D]; the last, open one is left out.

    boundaries [B, N]: 1 where a segment begins. The segment of a byte is the number of beginnings before it.
    """
    number = boundaries.cumsum(1) - boundaries  # a byte that begins a segment still belongs to the one before
    return torch.cat([null.expand(len(states), 1, -1), _share_out(boundaries, number, 1).transpose(1, 2) @ states], 1)


def spread_segments(boundaries: Tensor, read: Tensor) -> Tensor:
    """The state of the last whole segment at or before each byte [B, N, D]."""
    return _share_out(boundaries, boundaries.cumsum(1), 2, more=1) @ read


def _share_out(boundaries: Tensor, number: Tensor, dim: int, more: int = 0) -> Tensor:
    """[B, N, S]: 1 where a byte belongs to a segment, over its sum along `dim`; gradients reach the boundaries."""
    num_segments = int(boundaries.detach().sum(1).max().round()) + more
    apart = number[..., None] - torch.arange(num_segments)
    mine = (1 - apart) * (apart.detach().round() == 0)
    return mine / (mine.sum(dim, keepdim=True) + 1e-9)
