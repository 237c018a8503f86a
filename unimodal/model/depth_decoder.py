"""The codes of a summed position: their rows summed on the way in, a small decoder over the groups on the way out.

A tokenizer with G groups writes G codes a step. In the layout `summed` they stand at one position of the sequence
(`vocabulary/positions.py`): the decoder reads the sum of their rows, as MusicGen (arXiv 2306.05284) and Moshi (arXiv
2410.00037) do, and its state h predicts them one after the other through a transformer over the G places, as the RQ-
Transformer (arXiv 2203.01941), UniTok (arXiv 2502.20321) and Moshi do.

    places   0        1          …  G - 1
    reads    h        row of c₀  …  row of c_{G-2}
    scores   c₀ by h  c₁ by h + out₁  …  c_{G-1} by h + out_{G-1}

As in Sesame's CSM the first code is scored by the decoder's own head and the places read the decoder's own rows. Ours
scores the other codes by the head's rows of their groups too, so that nothing but the small transformer is new. Its
last projection begins at zero: a tune starts with every code scored by the decoder's state alone, MusicGen's parallel
heads, and learns what the codes before say.

Of kind `parallel` it stays so: there is no small transformer, and the codes of a position are drawn independently. With
the codes of a large codebook in parts (`tokenizers/parts/split_ids.py`, groups of bits) these are the sub-codes of ELM
(arXiv 2410.16257), each with rows and a head of its own. ELM joins the sub-codes' vectors and maps them by a matrix,
which is a sum of mapped rows, so it needs no module here.

Shapes: R positions, K codes of a position that are given, G the most codes of a position, D width of the decoder, E
width of the small one, H heads, W head width.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimodal.config import Config
from unimodal.files import describe_error, write_bytes_atomically
from unimodal.model.rows import read_head_rows
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEPTH_FILE = "depth_decoder.safetensors"
NAME = "depth_decoder"  # of the module on the model
_WIDEST, _HEAD_WIDTH, _STD = 1024, 64, 0.02


class DepthSettings(Config):
    """The size of a depth decoder; UniTok has 3 layers of the decoder's width, CSM 4 and Moshi 6 of 1,024.

    width: by default the decoder's, at most 1,024. kind `parallel` has no layers.
    """

    kind: Literal["transformer", "parallel"] = "transformer"
    num_layers: int = Field(default=3, ge=1)
    width: int | None = Field(default=None, ge=2, multiple_of=2)

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        for name in ("num_layers", "width") if self.kind == "parallel" else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"depth.kind parallel has no layers and no width; leave {name} out")
        return self


def embed_positions(table: nn.Module, ids: Tensor) -> Tensor:
    """Embed rows [S, P], or positions [S, P, G] whose missing codes are -1, as [S, P, D]: the sum of their rows.

    table: the decoder's own, which may scale what it looks up; then the sum is scaled so.
    """
    if ids.dim() == 2:
        return table(ids)
    x = table(ids[..., 0])
    for group in range(1, ids.shape[2]):
        rows = ids[..., group]
        x = x + table(rows.clamp(min=0)).masked_fill((rows < 0)[..., None], 0.0)
    return x


class _Layer(nn.Module):
    """A pre-norm layer of causal attention and a SwiGLU over the places of a position."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = -(-8 * width // 3 // 8) * 8
        self.norm_attention, self.norm_mlp = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate_up, self.down = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, earlier: Tensor | None) -> tuple[Tensor, Tensor]:
        """x [R, N, E], and keys and values of the places before, [2, R, H, M, W] → x and those of all places.

        N is 1 where there are places before.
        """
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        held = torch.stack([k, v])
        if earlier is not None:
            held = torch.cat([earlier, held], 3)
        y = F.scaled_dot_product_attention(q, held[0], held[1], is_causal=earlier is None)  # [R, H, N, W]
        x = x + self.out(y.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norm_mlp(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up), held


class DepthDecoder(nn.Module):
    """The transformer over the places of a position. num_codes: G. seed: of its first weights."""

    def __init__(self, width: int, num_codes: int, settings: DepthSettings | None = None, seed: int = 0) -> None:
        super().__init__()
        settings = settings or DepthSettings()
        self.width = width
        if settings.kind == "parallel":
            self.num_codes, self.settings, self.layers = num_codes, settings, nn.ModuleList()
            return
        own = settings.width or min(width, _WIDEST)
        num_heads = max(1, own // _HEAD_WIDTH)
        own -= own % num_heads
        self.num_codes, self.settings = num_codes, settings
        self.norm_state, self.norm_code = nn.RMSNorm(width), nn.RMSNorm(width)
        self.project_state, self.project_code = (nn.Linear(width, own, bias=False) for _ in range(2))
        self.places = nn.Parameter(torch.empty(num_codes, own))
        self.layers = nn.ModuleList([_Layer(own, num_heads) for _ in range(settings.num_layers)])
        self.norm = nn.RMSNorm(own)
        self.project_out = nn.Linear(own, width, bias=False)
        self._draw_weights(seed)

    @torch.no_grad()
    def _draw_weights(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue  # a norm's weight is 1
            residual = name.endswith(("out.weight", "down.weight"))
            std = _STD / (2 * len(self.layers)) ** 0.5 if residual else _STD
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        self.project_out.weight.zero_()

    def forward(self, states: Tensor, codes: Tensor) -> Tensor:
        """The decoder's states [R, D] and the embedded first codes [R, K, D] → states [R, K, D] for codes 1 … K.

        The state for code k depends on the codes before it alone.
        """
        return DepthPass(self, states).read(codes)

    def save(self, folder: str | Path) -> None:
        """Write `depth_decoder.safetensors`, whole or not at all."""
        from safetensors.torch import save

        state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in self.state_dict().items()}
        metadata = {"format": "pt", "settings": self.settings.model_dump_json(), "width": str(self.width)}
        metadata["num_codes"] = str(self.num_codes)
        write_bytes_atomically(Path(folder) / DEPTH_FILE, save(state, metadata=metadata))


class DepthPass:
    """The codes of a position, read one after the other: `read` gives the states from which the next ones are scored.

    num_read: codes that are read.
    """

    def __init__(self, depth: DepthDecoder, states: Tensor) -> None:
        """states: the decoder's, [R, D]."""
        self.depth, self.states, self.num_read = depth, states, 0
        self._held: list[Tensor | None] = [None] * len(depth.layers)

    def read(self, codes: Tensor) -> Tensor:
        """Read the next codes, embedded [R, K, D], → [R, K, D]; all at once, or one at a time."""
        depth = self.depth
        if depth.settings.kind == "parallel":
            self.num_read += codes.shape[1]
            return self.states[:, None].expand(-1, codes.shape[1], -1)
        kind = depth.places.dtype
        x = depth.project_code(depth.norm_code(codes.to(kind)))
        if not self.num_read:
            x = torch.cat([depth.project_state(depth.norm_state(self.states.to(kind)))[:, None], x], 1)
        assert not self.num_read or x.shape[1] == 1, "behind the first call codes are read one at a time"
        first = self.num_read + 1 if self.num_read else 0
        x = x + depth.places[first : first + x.shape[1]]
        for number, layer in enumerate(depth.layers):
            x, self._held[number] = layer(x, self._held[number])
        self.num_read += codes.shape[1]
        out = depth.project_out(depth.norm(x[:, -codes.shape[1] :]))
        return self.states[:, None] + out.to(self.states.dtype)


# ---- on a model


def find_depth_decoder(model: nn.Module) -> DepthDecoder | None:
    """The depth decoder of a causal LM; None for one without."""
    found = dict(model.named_children()).get(NAME)
    assert found is None or isinstance(found, DepthDecoder)
    return found


def add_depth_decoder(
    model: PreTrainedModel, vocabulary: Vocabulary, settings: DepthSettings | None = None, seed: int = 0
) -> None:
    """Give a causal LM a new depth decoder, in float32, for the summed positions of its vocabulary.

    A vocabulary without such positions gets none. Add it after LoRA and the attention, which act on the whole model.
    """
    if vocabulary.positions.is_flat:
        return
    depth = DepthDecoder(_find_width(model), vocabulary.positions.width, settings, seed)
    model.add_module(NAME, depth.to(model.device))


def take_depth_decoder(model: nn.Module) -> DepthDecoder | None:
    """Take the depth decoder off a causal LM, which then is one of its stock class; None if it had none."""
    found = find_depth_decoder(model)
    if found is not None:
        del model._modules[NAME]
    return found


def attach_depth_decoder(
    model: PreTrainedModel, folder: str | Path, vocabulary: Vocabulary, dtype: torch.dtype | None = None
) -> None:
    """Put the depth decoder of a model folder on its causal LM, if its vocabulary has summed positions.

    dtype: by default that of the model's head. Raises ValueError, in one line, for a file that is missing or damaged,
    and for one of another model.
    """
    if vocabulary.positions.is_flat:
        return
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / DEPTH_FILE
    if not path.is_file():
        raise ValueError(f"{path} is missing: it writes the codes of summed positions; copy or download it again")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            settings = DepthSettings.model_validate_json(metadata["settings"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if settings.kind == "parallel":
            width, num_codes = int(metadata["width"]), int(metadata["num_codes"])
        else:
            width, num_codes = len(state["project_out.weight"]), len(state["places"])
        depth = DepthDecoder(width, num_codes, settings)
        depth.load_state_dict(state)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged ({describe_error(error)}); copy or download it again") from None
    if width != _find_width(model) or num_codes != vocabulary.positions.width:
        raise ValueError(
            f"{path} writes {num_codes} codes a position for a decoder of width {width}, but this one has "
            f"{vocabulary.positions.width} and width {_find_width(model)}; they do not belong together"
        )
    parameter = next(model.get_output_embeddings().parameters())
    model.add_module(NAME, depth.to(parameter.device, dtype or parameter.dtype))


def _find_width(model: PreTrainedModel) -> int:
    """The width of the states that a causal LM's head scores, and of its rows."""
    return int(read_head_rows(model.get_output_embeddings(), range(1)).shape[1])
