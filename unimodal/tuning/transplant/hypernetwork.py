"""Zero-shot tokenizer transfer (arXiv:2405.07883): a network that makes a row for any token from its pieces.

It reads the base's rows of the pieces that the base's tokenizer cuts a token into, on both sides of an untied base, and
gives the token's rows. It is trained once for a base (`zett.py`) and then serves any tokenizer.

The network is that of the authors' later program (`bminixhofer/tokenkit`): the pieces' rows brought to zero mean and an
even spread, three transformer layers, the first position read out and added to the first piece's row. Its last matrix
begins at zero, so that an untrained network gives the first piece's row; `mean_start` begins at the mean of the pieces'
rows, which is fast vocabulary transfer. The authors first train it to copy single tokens, which this one does from its
start on.

Shapes: R tokens, K pieces of the longest token, S sides (1 for a tied base), D width, V text rows of the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from unimodal.config import Config
from unimodal.files import describe_error, quote_path, write_bytes_atomically
from unimodal.tuning.transplant.resize import Tables

MOST_PIECES = 7  # of a token; what is behind them is not read
ALPHA = 8.0  # of what is added to a piece's row, over the root of the width
_TINY = 1e-8


class HypernetworkSettings(Config):
    """The size of a network and its training. near_weight: of the loss that holds made rows near the base's own."""

    num_layers: int = 3
    num_heads: int = 8
    mean_start: bool = False
    steps: int = 200
    batch_size: int = 8
    piece_bytes: int = 256
    num_rows: int = 1024  # of a drawn tokenizer
    learning_rate: float = 3e-4
    near_weight: float = 0.5
    seed: int = 0


class RowHypernetwork(nn.Module):
    """The rows of a token's pieces → the token's rows."""

    def __init__(self, width: int, num_sides: int, settings: HypernetworkSettings | None = None) -> None:
        super().__init__()
        settings = settings or HypernetworkSettings()
        if width % settings.num_heads:
            raise ValueError(f"num_heads {settings.num_heads} does not divide the width {width} of the base's rows")
        self.settings, self.width, self.num_sides = settings, width, num_sides
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.join = nn.Linear(num_sides * width, width)
            self.places = nn.Parameter(torch.randn(MOST_PIECES, width) * 0.02)
            layer = nn.TransformerEncoderLayer(
                width, settings.num_heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True
            )
            self.layers = nn.TransformerEncoder(layer, settings.num_layers, enable_nested_tensor=False)
        self.last = nn.Linear(width, num_sides * width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        shape = (num_sides, width)
        self.in_scale, self.in_shift = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.out_scale, self.out_shift = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))

    @torch.no_grad()
    def fit_scales(self, rows: Tensor) -> None:
        """Set the scales by the base's rows [V, S, D]: in at zero mean and an even spread, out as they came."""
        spread = (2.0 / self.width) ** 0.5
        deviation, mean = rows.std(0) + _TINY, rows.mean(0)
        self.in_scale.copy_(spread / deviation)
        self.in_shift.copy_(-mean * spread / deviation)
        self.out_scale.copy_(deviation / spread)
        self.out_shift.copy_(mean)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """Rows of the pieces [R, K, S, D], and which of them are real [R, K] → rows of the tokens [R, S, D]."""
        rows = rows * self.in_scale + self.in_shift
        states = self.join(rows.flatten(2)) + self.places[: rows.shape[1]]
        states = self.layers(states, src_key_padding_mask=~mask)
        added = self.last(states[:, 0]).unflatten(1, (self.num_sides, self.width))
        real = mask[..., None, None].to(rows)
        start = (rows * real).sum(1) / real.sum(1) if self.settings.mean_start else rows[:, 0]
        return (start + ALPHA / self.width**0.5 * added) * self.out_scale + self.out_shift

    def save(self, path: Path) -> None:
        """Write the weights, whole or not at all, with the settings."""
        from safetensors.torch import save

        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        about = {"settings": self.settings.model_dump_json(), "width": str(self.width), "sides": str(self.num_sides)}
        write_bytes_atomically(path, save(state, about))

    @classmethod
    def load(cls, path: Path) -> RowHypernetwork:
        """Raises ValueError, in one line, for a file that holds none."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                settings = HypernetworkSettings.model_validate_json(about["settings"])
                found = cls(int(about["width"]), int(about["sides"]), settings)
                found.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{quote_path(path)} holds no hypernetwork ({describe_error(error)})") from None
        return found


def stack_tables(tables: Tables, num_rows: int) -> Tensor:
    """The base's text rows on both sides, float32 [V, S, D]."""
    sides = [tables.input] if tables.output is None else [tables.input, tables.output]
    return torch.stack([table[:num_rows].detach().float() for table in sides], 1)


def read_pieces(rows: Tensor, listed: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The rows [R, K, S, D] of tokens' pieces and which are real [R, K]; a token without pieces has the mean row."""
    cut = [list(pieces)[:MOST_PIECES] or [-1] for pieces in listed]
    longest = max(map(len, cut))
    mask = torch.tensor([[at < len(pieces) for at in range(longest)] for pieces in cut])
    padded = torch.tensor([pieces + [0] * (longest - len(pieces)) for pieces in cut])
    found = rows[padded.clamp_min(0)]
    return torch.where((padded < 0)[..., None, None], rows.mean(0), found), mask
