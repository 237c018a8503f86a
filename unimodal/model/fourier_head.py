"""Fourier heads (arXiv 2410.22269): the codes of an ordered block scored by a smooth density on a line.

An output matrix learns every code apart, also where near codes mean near values: the levels of a scalar quantizer, bins
of a number. A Fourier head learns the coefficients of a density over [-1, 1] instead, and a code's probability is the
density at the middle of its bin, so that near codes are about as likely. It is that of the authors' code:

    a = W h + b, complex                           [F + 1]     W and b begin at 1/100 of a linear layer's
    c_k = Σ_j a_{j+k} · conj(a_j)                  autocorrelation: the density is nowhere below 0
    p(y) ∝ 1/2 + Re Σ_{k ≥ 1} c_k / Re c_0 · exp(iπky)       at y = -1 + (2b + 1)/V for code b
    logits = log(p + 1e-5)                         p summed to 1 over the V codes
    penalty = γ · 2 Σ_k 2π² k² |c_k|²              for each position; high frequencies cost

The penalty counts in next-token training (`objectives/next_token.py`), summed over the block's positions and divided
with the cross-entropy. All other rows are scored by the model's own matrix; a block of free length has the end mark
beside its codes, whose odds are then those of the mark's logit against probability 1.

The heads are modules on the causal LM; its own matrix keeps rows for these codes, which are not used.

Shapes: P positions, D width, F frequencies, V codes of a block, K rows.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from unimodal.config import Config
from unimodal.files import describe_error, write_bytes_atomically
from unimodal.model.logits import LogitRule, read_logit_rule
from unimodal.model.rows import ExtendedHead, read_head_bias, read_head_rows
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FOURIER_FILE = "fourier_heads.safetensors"
NAME = "fourier_heads"  # of the module on the model
FLOOR = 1e-5  # added to a probability before its logarithm
_SHRINK = 100.0  # weights begin at a linear layer's divided by this


class FourierSettings(Config):
    """blocks: labels of blocks whose codes are ordered, such as `image` or `image.1`. frequencies: F; more follow finer
    densities. gamma: γ, of the penalty; the authors take 1e-6 in most experiments."""

    blocks: tuple[str, ...] = Field(min_length=1)
    frequencies: int = Field(default=12, ge=1)
    gamma: float = Field(default=1e-6, ge=0)


class FourierHead(nn.Module):
    """The density of one block. width: D. num_codes: V."""

    cosines: Tensor
    sines: Tensor

    def __init__(self, width: int, num_codes: int, frequencies: int) -> None:
        super().__init__()
        self.num_codes, self.frequencies = num_codes, frequencies
        self.coefficients = nn.Linear(width, 2 * (frequencies + 1))
        with torch.no_grad():
            for parameter in self.coefficients.parameters():
                parameter /= _SHRINK
        middles = (2 * torch.arange(num_codes, dtype=torch.float64) + 1) / num_codes - 1  # [V]
        angles = math.pi * torch.arange(1, frequencies + 1, dtype=torch.float64)[:, None] * middles  # [F, V]
        self.register_buffer("cosines", angles.cos().float(), persistent=False)
        self.register_buffer("sines", angles.sin().float(), persistent=False)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """states [P, D] → log-probabilities, up to the floor, float32 [P, V], and what γ multiplies [P]."""
        kind = self.coefficients.weight.dtype
        with torch.autocast(states.device.type, enabled=False):
            parts = self.coefficients(states.to(kind)).float()
            a = torch.complex(*parts.chunk(2, -1))  # [P, F + 1]
            spectrum = torch.fft.fft(a, 2 * a.shape[-1])
            c = torch.fft.ifft(spectrum.abs().square())[..., : a.shape[-1]]  # [P, F + 1]
            ratio = c[..., 1:] / c[..., :1].real
            density = 0.5 + ratio.real @ self.cosines - ratio.imag @ self.sines  # [P, V]
            density = density.clamp(min=0)  # below 0 by rounding alone
            logits = (density / density.sum(-1, keepdim=True) + FLOOR).log()
            squares = torch.arange(c.shape[-1], device=c.device).square()
            roughness = 4 * math.pi**2 * (squares * c.abs().square()).sum(-1)
        return logits, roughness


class FourierHeads(nn.Module):
    """The Fourier heads of a causal LM, one for each of some blocks, given as rows of the vocabulary."""

    def __init__(self, settings: FourierSettings, width: int, rows: list[range]) -> None:
        super().__init__()
        self.settings, self.rows, self.width = settings, rows, width
        self.heads = nn.ModuleList(FourierHead(width, len(one), settings.frequencies) for one in rows)

    def save(self, folder: str | Path) -> None:
        """Write `fourier_heads.safetensors`, whole or not at all."""
        from safetensors.torch import save

        state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in self.state_dict().items()}
        metadata = {"format": "pt", "settings": self.settings.model_dump_json(), "width": str(self.width)}
        write_bytes_atomically(Path(folder) / FOURIER_FILE, save(state, metadata=metadata))


class FourierRows:
    """What scores the rows of a model with Fourier heads: these, and the model's matrix for all other rows.

    Logits are final: the factor and cap of the base count for its own rows alone.
    """

    def __init__(self, base: nn.Module, heads: FourierHeads, rule: LogitRule) -> None:
        self.base, self.heads, self.rule = base, heads, rule
        self.num_rows: int = base.num_rows if isinstance(base, ExtendedHead) else int(base.out_features)

    def covers(self, rows: range) -> bool:
        """Whether some of these rows are scored by a Fourier head."""
        return any(rows.start < block.stop and block.start < rows.stop for block in self.heads.rows)

    def compute_logits(self, states: Tensor, rows: range) -> Tensor:
        """states [P, D] → float32 logits [P, len(rows)]."""
        return self.score(states, [rows])[0]

    def score(self, states: Tensor, rows: list[range]) -> tuple[Tensor, Tensor]:
        """states [P, D] → float32 logits [P, K] of these rows, one range behind the other, and the penalty [P]."""
        penalty = states.new_zeros(len(states), dtype=torch.float32)
        made: dict[int, Tensor] = {}
        pieces = []
        for piece in rows:
            at = piece.start
            while at < piece.stop:
                number = next((n for n, block in enumerate(self.heads.rows) if at in block), None)
                if number is None:
                    later = [block.start for block in self.heads.rows if block.start > at]
                    end = min([piece.stop, *later])
                    found = F.linear(states, *self._read_base(range(at, end), states.dtype))
                    pieces.append(self.rule.apply(found.float()))
                else:
                    block = self.heads.rows[number]
                    end = min(piece.stop, block.stop)
                    if number not in made:
                        made[number], roughness = self.heads.heads[number](states)
                        penalty = penalty + self.heads.settings.gamma * roughness
                    pieces.append(made[number][:, at - block.start : end - block.start])
                at = end
        return torch.cat(pieces, 1), penalty

    def _read_base(self, rows: range, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        bias = read_head_bias(self.base, rows)
        return read_head_rows(self.base, rows).to(dtype), None if bias is None else bias.to(dtype)


# ---- on a model


def find_fourier_heads(model: nn.Module) -> FourierHeads | None:
    """The Fourier heads of a causal LM; None for one without."""
    found = dict(model.named_children()).get(NAME)
    assert found is None or isinstance(found, FourierHeads)
    return found


def find_scoring_head(model: PreTrainedModel) -> nn.Module | FourierRows:
    """What scores the rows of a causal LM: its own head, or `FourierRows` where it has Fourier heads."""
    heads, base = find_fourier_heads(model), model.get_output_embeddings()
    return base if heads is None else FourierRows(base, heads, read_logit_rule(model))


def add_fourier_heads(
    model: PreTrainedModel, vocabulary: Vocabulary, settings: FourierSettings, seed: int = 0
) -> FourierHeads:
    """Give a causal LM Fourier heads, in float32. Add them after LoRA, which acts on the whole model.

    Raises ValueError for a block that is not there, and for one of summed positions.
    """
    rows = _find_rows(vocabulary, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = FourierHeads(settings, _find_width(model), rows)
    model.add_module(NAME, made.to(model.device))
    return made


def take_fourier_heads(model: nn.Module) -> FourierHeads | None:
    """Take the Fourier heads off a causal LM, which then is one of its stock class; None if it had none."""
    found = find_fourier_heads(model)
    if found is not None:
        del model._modules[NAME]
    return found


def attach_fourier_heads(
    model: PreTrainedModel, folder: str | Path, vocabulary: Vocabulary, dtype: torch.dtype | None = None
) -> None:
    """Put the Fourier heads of a model folder, if it has them, on its causal LM.

    dtype: by default that of the model's head. ValueError, in one line, for a damaged file and for one of another
    model.
    """
    path = Path(folder) / FOURIER_FILE
    if not path.is_file():
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            settings = FourierSettings.model_validate_json(metadata["settings"])
            width = int(metadata["width"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({describe_error(error)}); copy or download it again") from None
    if width != _find_width(model):
        raise ValueError(
            f"{path} scores states of width {width}, but this decoder has width {_find_width(model)}; they do not "
            "belong together"
        )
    made = FourierHeads(settings, width, _find_rows(vocabulary, settings))
    try:
        made.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged ({describe_error(error)}); copy or download it again") from None
    parameter = next(model.get_output_embeddings().parameters())
    model.add_module(NAME, made.to(parameter.device, dtype or parameter.dtype))


def _find_rows(vocabulary: Vocabulary, settings: FourierSettings) -> list[range]:
    """The rows of the blocks. ValueError for one that is not there, or of summed positions."""
    blocks = {block.label: block for block in vocabulary.blocks}
    for label in settings.blocks:
        if label not in blocks:
            raise ValueError(f"fourier.blocks names {label!r}; the vocabulary has {', '.join(blocks) or 'no blocks'}")
        if blocks[label].layout == "summed":
            raise ValueError(f"fourier.blocks names {label!r}, whose codes the depth decoder writes; leave summed out")
    return [blocks[label].rows for label in sorted(set(settings.blocks), key=lambda label: blocks[label].start)]


def _find_width(model: PreTrainedModel) -> int:
    """The width of the states that a causal LM's head scores, and of its rows."""
    return int(read_head_rows(model.get_output_embeddings(), range(1)).shape[1])
