"""Small networks beside a causal LM that predict the tokens behind its next one, from its own states.

The LM's state h at a token predicts the next token; draft heads predict the A tokens behind that one. Fast decoding
takes them for guesses (`generation/fast/draft_heads.py`), so they change how many passes an answer takes and never the
answer. The LM stays as it is; its head scores their outputs and its embedding table is what they read.

    medusa   A residual blocks h + SiLU(W h) in parallel: none sees which token the others predict (Medusa-1, arXiv
             2401.10774). The paper gives each an output matrix of its own, begun as a copy of the LM's: ``own_rows``.
    future   Future Token Prediction (arXiv 2410.18160): the state is projected to a pseudo-sequence, which a small
             decoder attends to while it reads the tokens so far, one after the other. The paper trains the LM's trunk
             with it and lets it predict the next token too; here the LM does that, so that its answers stay. It reads
             the ``num_states`` newest states of the answer where the paper reads 1.

Shapes: R places of an answer, A tokens ahead, M states, P vectors of a state's pseudo-sequence, D width of the LM, E
width of the small decoder, H heads, W head width, V rows of the vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimodal.config import Config
from unimodal.model.rows import read_head_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WIDEST, _HEAD_WIDTH, _STD = 1024, 64, 0.02
_OF_FUTURE = ("num_states", "num_vectors", "width")
_OF_MEDUSA = ("own_rows",)


class DraftHeadSettings(Config):
    """What draft heads are made of.

    num_ahead: tokens behind the next one. num_layers: of the small decoder, or residual blocks of a Medusa head.
    num_states, num_vectors, width: of `future` alone: the states read, the vectors that each becomes, and the small
    decoder's width, by default the LM's and at most 1,024. own_rows: of `medusa` alone.
    """

    kind: Literal["future", "medusa"] = "future"
    num_ahead: int = Field(default=6, ge=1, le=64)
    num_layers: int = Field(default=1, ge=1)
    num_states: int = Field(default=8, ge=1)
    num_vectors: int = Field(default=4, ge=1)
    width: int | None = Field(default=None, ge=2)
    own_rows: bool = False

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        for name in _OF_FUTURE if self.kind == "medusa" else _OF_MEDUSA:
            if getattr(self, name) != type(self).model_fields[name].default:
                other = "future" if self.kind == "medusa" else "medusa"
                raise ValueError(f"{name} is of kind {other}, and the kind is {self.kind}; leave it out")
        return self


class DraftPass:
    """What heads predict behind the states of R answers, read token by token."""

    @abstractmethod
    def read(self, embedded: Tensor) -> Tensor:
        """The embedding [R, D] of the next token → the state [R, D] that predicts the token behind it."""


class DraftHeads(nn.Module):
    """Draft heads of one kind. width: D of the LM."""

    def __init__(self, settings: DraftHeadSettings, width: int) -> None:
        super().__init__()
        self.settings, self.width = settings, width

    @property
    def num_ahead(self) -> int:
        return self.settings.num_ahead

    @property
    def num_states(self) -> int:
        """How many of the newest states are read."""
        return self.settings.num_states if self.settings.kind == "future" else 1

    @abstractmethod
    def forward(self, states: Tensor, seen: Tensor, embedded: Tensor) -> Tensor:
        """states [R, M, D], the newest last, of which ``seen``, bool [R, M], are there, and the embeddings [R, A, D] of
        the A tokens behind them → the states [R, A, D] that predict the token behind each of these.
        """

    @abstractmethod
    def begin(self, states: Tensor) -> DraftPass:
        """A pass behind states [R, M, D]; M is at most `num_states`."""

    def get_head(self, place: int) -> nn.Module | None:
        """What scores the states of a place, 0 to A - 1, in place of the LM's own head; None: that head does."""
        return None


class _MedusaPass(DraftPass):
    def __init__(self, heads: MedusaHeads, state: Tensor) -> None:
        self.heads, self.state, self.place = heads, state, 0

    def read(self, embedded: Tensor) -> Tensor:
        self.place += 1
        return self.heads.apply_blocks(self.place - 1, self.state)


class MedusaHeads(DraftHeads):
    """A parallel heads. A block begins as h + SiLU(0), the identity."""

    def __init__(self, settings: DraftHeadSettings, width: int, num_rows: int | None = None) -> None:
        """num_rows: V, needed for heads with rows of their own."""
        super().__init__(settings, width)
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, width) for _ in range(settings.num_layers)) for _ in range(self.num_ahead)
        )
        for parameter in self.blocks.parameters():
            nn.init.zeros_(parameter)
        self.rows = nn.ModuleList()
        if settings.own_rows:
            if num_rows is None:
                raise ValueError("heads with rows of their own need the number of rows")
            self.rows.extend(nn.Linear(width, num_rows, bias=False) for _ in range(self.num_ahead))

    def apply_blocks(self, place: int, state: Tensor) -> Tensor:
        blocks = self.blocks[place]
        assert isinstance(blocks, nn.ModuleList)
        for block in blocks:
            state = state + F.silu(block(state))
        return state

    def forward(self, states: Tensor, seen: Tensor, embedded: Tensor) -> Tensor:
        return torch.stack([self.apply_blocks(place, states[:, -1]) for place in range(embedded.shape[1])], 1)

    def begin(self, states: Tensor) -> DraftPass:
        return _MedusaPass(self, states[:, -1])

    def get_head(self, place: int) -> nn.Module | None:
        return self.rows[place] if len(self.rows) else None


class _FutureLayer(nn.Module):
    """A pre-norm layer: attention to the tokens so far, attention to the pseudo-sequence, and a SwiGLU."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = -(-8 * width // 3 // 8) * 8
        self.norm_tokens, self.norm_states, self.norm_mlp = (nn.RMSNorm(width) for _ in range(3))
        self.qkv, self.out_tokens = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.query, self.key_value = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.out_states = nn.Linear(width, width, bias=False)
        self.gate_up, self.down = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [R, H, N, W]

    def project_memory(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The pseudo-sequence [R, M·P, E] → its keys and values, each [R, H, M·P, W]."""
        keys, values = self.key_value(vectors).chunk(2, -1)
        return self._split(keys), self._split(values)

    def forward(
        self, x: Tensor, memory: tuple[Tensor, Tensor], seen: Tensor | None, earlier: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x [R, N, E], and keys and values of the tokens before, [2, R, H, n, W] → x and those of all tokens.

        seen: bool [R, 1, 1, M·P]; None for all. N is 1 where there are tokens before.
        """
        q, k, v = (self._split(part) for part in self.qkv(self.norm_tokens(x)).chunk(3, -1))
        held = torch.stack([k, v])
        if earlier is not None:
            held = torch.cat([earlier, held], 3)
        y = F.scaled_dot_product_attention(q, held[0], held[1], is_causal=earlier is None)
        x = x + self.out_tokens(y.transpose(1, 2).flatten(2))
        q = self._split(self.query(self.norm_states(x)))
        x = x + self.out_states(F.scaled_dot_product_attention(q, *memory, attn_mask=seen).transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norm_mlp(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up), held


class _FuturePass(DraftPass):
    def __init__(self, heads: FutureDecoder, states: Tensor) -> None:
        self.heads, self.place = heads, 0
        vectors = heads.make_vectors(states)
        self.memory = [layer.project_memory(vectors) for layer in heads.list_layers()]
        self.earlier: list[Tensor | None] = [None] * len(self.memory)

    def read(self, embedded: Tensor) -> Tensor:
        x = self.heads.make_inputs(embedded[:, None], self.place)
        self.place += 1
        for number, layer in enumerate(self.heads.list_layers()):
            x, self.earlier[number] = layer(x, self.memory[number], None, self.earlier[number])
        return self.heads.make_outputs(x)[:, 0]


class FutureDecoder(DraftHeads):
    """The small decoder of Future Token Prediction. Its last projection begins at zero. seed: of its first weights."""

    def __init__(self, settings: DraftHeadSettings, width: int, seed: int = 0) -> None:
        super().__init__(settings, width)
        own = settings.width or min(width, _WIDEST)
        num_heads = max(1, own // _HEAD_WIDTH)
        own -= own % num_heads
        self.norm_state, self.norm_token = nn.RMSNorm(width), nn.RMSNorm(width)
        self.project_state = nn.Linear(width, settings.num_vectors * own)
        self.project_token = nn.Linear(width, own, bias=False)
        self.ages = nn.Parameter(torch.empty(settings.num_states, settings.num_vectors, own))  # the newest state last
        self.places = nn.Parameter(torch.empty(settings.num_ahead, own))
        self.layers = nn.ModuleList(_FutureLayer(own, num_heads) for _ in range(settings.num_layers))
        self.norm = nn.RMSNorm(own)
        self.project_out = nn.Linear(own, width, bias=False)
        self._draw_weights(seed)

    @torch.no_grad()
    def _draw_weights(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() > 1:  # a norm's weight is 1
                residual = name.endswith(("out_tokens.weight", "out_states.weight", "down.weight"))
                std = _STD / (3 * len(self.layers)) ** 0.5 if residual else max(_STD, parameter.shape[-1] ** -0.5)
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        self.project_out.weight.zero_()

    def list_layers(self) -> list[_FutureLayer]:
        return [layer for layer in self.layers if isinstance(layer, _FutureLayer)]

    def make_vectors(self, states: Tensor) -> Tensor:
        """States [R, M, D] → their pseudo-sequences, one behind the other, [R, M·P, E]."""
        num = states.shape[1]
        vectors = self.project_state(self.norm_state(states)).unflatten(-1, (self.settings.num_vectors, -1))
        return (vectors + self.ages[self.settings.num_states - num :]).flatten(1, 2)

    def make_inputs(self, embedded: Tensor, first: int) -> Tensor:
        """The embeddings [R, N, D] of the tokens at places ``first`` and on → what the layers read, [R, N, E]."""
        return self.project_token(self.norm_token(embedded)) + self.places[first : first + embedded.shape[1]]

    def make_outputs(self, x: Tensor) -> Tensor:
        return self.project_out(self.norm(x))

    def forward(self, states: Tensor, seen: Tensor, embedded: Tensor) -> Tensor:
        vectors = self.make_vectors(states)
        visible = seen.repeat_interleave(self.settings.num_vectors, 1)[:, None, None]  # [R, 1, 1, M·P]
        x = self.make_inputs(embedded, 0)
        for layer in self.list_layers():
            x, _ = layer(x, layer.project_memory(vectors), visible, None)
        return self.make_outputs(x)

    def begin(self, states: Tensor) -> DraftPass:
        return _FuturePass(self, states)


def make_draft_heads(
    settings: DraftHeadSettings, width: int, num_rows: int | None = None, seed: int = 0
) -> MedusaHeads | FutureDecoder:
    """Untrained heads for an LM of this width and, where they have rows of their own, number of rows."""
    if settings.kind == "medusa":
        return MedusaHeads(settings, width, num_rows)
    return FutureDecoder(settings, width, seed)


@torch.no_grad()
def copy_head_rows(heads: DraftHeads, model: PreTrainedModel) -> None:
    """Begin the rows that heads have of their own as a copy of the LM's, as the authors do; else do nothing."""
    for place in range(heads.num_ahead):
        own = heads.get_head(place)
        if own is not None:
            weight = own.get_parameter("weight")
            weight.copy_(read_head_rows(model.get_output_embeddings(), range(len(weight))))
