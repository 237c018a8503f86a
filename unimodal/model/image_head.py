"""A head that scores the codes of pictures by a small network, as Janus (arXiv 2410.13848) does.

Text rows are scored by a matrix; picture rows by two layers with an activation between, which no matrix can replace.
The decoder stays a stock causal LM: this head takes the place of its last matrix when a folder with
`image_head.safetensors` is loaded. The stock matrix's own rows for pictures are not used.

Shapes: D width, V rows of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.files import describe_error, write_bytes_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD_FILE = "image_head.safetensors"


class ImageHead(nn.Module):
    """Rows before `start` are scored by the base's matrix, rows from `start` on by `inner`, the activation and `outer`.

    Raises ValueError for a network whose rows do not end where the model's do.
    """

    def __init__(self, base: nn.Linear, start: int, inner: nn.Linear, activation: str, outer: nn.Linear) -> None:
        super().__init__()
        from transformers.activations import ACT2FN

        if start + outer.out_features != base.out_features:
            raise ValueError(
                f"the image head scores {outer.out_features} rows from {start} on, but the model has "
                f"{base.out_features} rows; they do not belong together"
            )
        self.base, self.inner, self.outer = base, inner, outer
        self.activation_name, self.activation = activation, ACT2FN[activation]
        self.start, self.out_features = start, base.out_features

    def forward(self, hidden: Tensor) -> Tensor:
        return self.compute_logits(hidden, range(self.out_features))

    def compute_logits(self, hidden: Tensor, rows: range) -> Tensor:
        """hidden [..., D] → logits [..., len(rows)] of these rows only."""
        parts = []
        if rows.start < self.start:
            parts.append(F.linear(hidden, self.base.weight[rows.start : min(rows.stop, self.start)]))
        if rows.stop > self.start:
            inner = self.activation(self.inner(hidden))
            chosen = slice(max(rows.start - self.start, 0), rows.stop - self.start)
            bias = None if self.outer.bias is None else self.outer.bias[chosen]
            parts.append(F.linear(inner, self.outer.weight[chosen], bias))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def split_linear(self, hidden: Tensor, rows: Sequence[range]) -> tuple[Tensor, list[Tensor]]:
        """hidden [P, D] → states [P, E] and matrices [k, E] whose products are the logits of these rows.

        A bias is one more column. Raises ValueError if some rows are text and others codes: no one matrix scores both.
        """
        codes = [piece.start >= self.start for piece in rows]
        if any(codes) != all(codes) or any(piece.start < self.start < piece.stop for piece in rows):
            raise ValueError("this model scores words and codes by different networks; leave loss.softmax at 'block'")
        if not any(codes):
            return hidden, [self.base.weight[piece.start : piece.stop] for piece in rows]
        inner = self.activation(self.inner(hidden))
        weight, chosen = self.outer.weight, [slice(piece.start - self.start, piece.stop - self.start) for piece in rows]
        if self.outer.bias is not None:
            inner = torch.cat([inner, inner.new_ones(len(inner), 1)], 1)
            weight = torch.cat([weight, self.outer.bias[:, None]], 1)
        return inner, [weight[piece] for piece in chosen]

    def save(self, folder: str | Path) -> None:
        """Write `image_head.safetensors`, whole or not at all."""
        from safetensors.torch import save

        state = {
            f"{side}.{name}": tensor.detach().cpu().contiguous()
            for side, layer in (("inner", self.inner), ("outer", self.outer))
            for name, tensor in layer.state_dict().items()
        }
        metadata = {"format": "pt", "start": str(self.start), "activation": self.activation_name}
        write_bytes_atomically(Path(folder) / HEAD_FILE, save(state, metadata=metadata))


def attach_image_head(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Put the folder's image head, if it has one, on the model, in the precision of its last matrix.

    Raises ValueError for a damaged file and for a head of another model.
    """
    path = Path(folder) / HEAD_FILE
    if not path.is_file():
        return model
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a mapping
        layers = {}
        for side in ("inner", "outer"):
            weight = state[f"{side}.weight"]
            layers[side] = nn.Linear(weight.shape[1], weight.shape[0], bias=f"{side}.bias" in state)
            layers[side].load_state_dict(
                {"weight": weight} | ({"bias": state[f"{side}.bias"]} if layers[side].bias is not None else {})
            )
        start, activation = int(metadata["start"]), metadata["activation"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({describe_error(error)}); convert the checkpoint again") from None
    matrix = model.get_output_embeddings()
    head = ImageHead(matrix, start, layers["inner"], activation, layers["outer"])
    model.set_output_embeddings(head.to(matrix.weight.dtype))
    return model
