"""Token-Shuffle (arXiv:2504.17789): a window of s×s neighbouring codes of a raster is one token of the decoder.

The embedding of a code needs far fewer dimensions than the decoder is wide. So the codes of a window are narrowed, laid
side by side along the channels and refined: one token of full width. Behind the decoder each token is split and widened
again, and the head is read once for every code. A picture of N codes takes N / s² steps. The codes of a window are
drawn independently of each other: this is the loss, and the reason why a model must be trained for it.

Shapes: B batch, T tokens of the prompt, N codes in raster order, G = N / s² windows, W = s² codes of a window, D width,
K rows of the block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.model.rows import read_head_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def split_windows(codes: Tensor, columns: int, side: int) -> Tensor:
    """Codes in raster order [B, N] -> [B, G, W]: windows in raster order, and the codes of a window in raster order."""
    batch, num = codes.shape
    rows, left_over = divmod(num, columns)
    if left_over or rows % side or columns % side:
        raise ValueError(f"{num} codes in {columns} columns do not divide into {side}×{side} windows")
    tiles = codes.view(batch, rows // side, side, columns // side, side)
    return tiles.transpose(2, 3).reshape(batch, num // side**2, side**2)


def join_windows(tiles: Tensor, columns: int, side: int) -> Tensor:
    """The inverse of `split_windows`, for [B, G, W] or [B, G, W, K]."""
    batch, groups, per_window = tiles.shape[:3]
    rows = groups * per_window // columns
    grid = tiles.view(batch, rows // side, columns // side, side, side, *tiles.shape[3:])
    return grid.transpose(2, 3).reshape(batch, groups * per_window, *tiles.shape[3:])


class _ResidualBlock(nn.Module):
    """A residual MLP block, [..., D] -> [..., D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class TokenShuffle(nn.Module):
    """The two networks: `fuse` before the decoder, `unfuse` behind it. Windows are side × side codes."""

    def __init__(self, width: int, side: int = 2, num_blocks: int = 2) -> None:
        super().__init__()
        if side < 1 or width % side**2:
            raise ValueError(f"width {width} is not a multiple of {side}² channels; choose another window")
        self.side, narrow = side, width // side**2
        self.narrow, self.widen = nn.Linear(width, narrow), nn.Linear(narrow, width)
        self.before = nn.Sequential(*(_ResidualBlock(width) for _ in range(num_blocks)))
        self.behind = nn.Sequential(*(_ResidualBlock(width) for _ in range(num_blocks)))

    def fuse(self, embedded: Tensor) -> Tensor:
        """[B, G, W, D] -> [B, G, D]"""
        return self.before(self.narrow(embedded).flatten(2))

    def unfuse(self, hidden: Tensor) -> Tensor:
        """[B, G, D] -> [B, G, W, D]"""
        return self.widen(self.behind(hidden).unflatten(2, (self.side**2, -1)))


class TokenShuffleLM(nn.Module):
    """A stock causal LM whose pictures run through a TokenShuffle.

    rows: the rows of the picture's codes. columns: codes in a row of the raster.
    """

    def __init__(self, model: PreTrainedModel, rows: range, columns: int, side: int = 2, num_blocks: int = 2) -> None:
        super().__init__()
        self.model, self.rows, self.columns = model, rows, columns
        self.shuffle = TokenShuffle(model.config.hidden_size, side, num_blocks)

    def forward(self, prompt: Tensor, codes: Tensor) -> Tensor:
        """Prompts [B, T] that end with the start of the picture, codes [B, N] (from 0) -> logits [B, N, K].

        The logits of a window depend on the prompt and on the windows before it.
        """
        embed = self.model.get_input_embeddings()
        tiles = split_windows(codes, self.columns, self.shuffle.side)  # [B, G, W]
        fused = self.shuffle.fuse(embed(tiles + self.rows.start))  # [B, G, D]
        inputs = torch.cat([embed(prompt), fused[:, :-1]], 1)  # [B, T + G - 1, D]
        hidden = self.model.get_decoder()(inputs_embeds=inputs, use_cache=False).last_hidden_state
        return join_windows(self._compute_logits(hidden[:, prompt.shape[1] - 1 :]), self.columns, self.shuffle.side)

    def compute_loss(self, prompt: Tensor, codes: Tensor) -> Tensor:
        """The mean negative log-likelihood of the codes [B, N], in nats a code."""
        return F.cross_entropy(self(prompt, codes).flatten(0, 1), codes.flatten())

    def _compute_logits(self, hidden: Tensor) -> Tensor:
        """[B, G, D] -> [B, G, W, K]"""
        return F.linear(self.shuffle.unfuse(hidden), read_head_rows(self.model.get_output_embeddings(), self.rows))

    @torch.inference_mode()
    def generate(
        self,
        prompt: Tensor,
        num_codes: int,
        temperature: float = 0.0,
        seed: int = 0,
        unconditional: Tensor | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Draw codes [B, N] for prompts [B, T]. temperature 0: always the likeliest code.

        guidance: scale of classifier-free guidance; 1 turns it off, any other needs ``unconditional`` prompts [B, T].
        Raises ValueError without them, and for a number of codes that does not fill its windows.
        """
        from transformers import DynamicCache

        if guidance != 1.0 and unconditional is None:
            raise ValueError(f"guidance {guidance} needs the unconditional prompts")
        embed, decoder = self.model.get_input_embeddings(), self.model.get_decoder()
        per_window = self.shuffle.side**2
        split_windows(torch.zeros(1, num_codes, dtype=torch.int64), self.columns, self.shuffle.side)  # or ValueError
        twin = guidance != 1.0 and unconditional is not None
        inputs = embed(torch.cat([prompt, unconditional]) if twin else prompt)  # [B or 2B, T, D]
        cache = DynamicCache(config=decoder.config)
        generator = torch.Generator(device=prompt.device).manual_seed(seed)
        found = []
        for _ in range(num_codes // per_window):
            hidden = decoder(inputs_embeds=inputs, past_key_values=cache, use_cache=True).last_hidden_state[:, -1:]
            logits = self._compute_logits(hidden)[:, 0]  # [B or 2B, W, K]
            if twin:
                conditional, other = logits.chunk(2)
                logits = torch.lerp(other, conditional, guidance)
            if temperature:
                noise = torch.empty_like(logits).exponential_(generator=generator).log_()
                logits = logits / temperature - noise
            codes = logits.argmax(-1)  # [B, W]
            found.append(codes)
            fused = self.shuffle.fuse(embed(codes + self.rows.start)[:, None])  # [B, 1, D]
            inputs = torch.cat([fused, fused]) if twin else fused
        return join_windows(torch.stack(found, 1), self.columns, self.shuffle.side)
