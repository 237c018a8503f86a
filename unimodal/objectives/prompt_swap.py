"""A packed batch read again with another soft prompt before its documents, or with none.

Shapes: B rows, N tokens, M tokens of a row with the other prompt, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimodal.model.attention import Packing
from unimodal.objectives.objective import run_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def swap_prompt(ids: Tensor, position_ids: Tensor, prompt: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """ids and position_ids [B, N] → those with another prompt, [B, M], and where each token went.

    prompt: the ids that take the place of each document's own. Where: int64 [B * N], the place among the B * M tokens,
    -1 for a token of a prompt. Rows are padded with 0 at their end.
    """
    rows: list[list[int]] = []
    places: list[list[int]] = []
    moved: list[list[int]] = []
    for row, positions in zip(ids.tolist(), position_ids.tolist(), strict=True):
        starts = [at for at, position in enumerate(positions) if position == 0]
        new: list[int] = []
        new_places: list[int] = []
        where = [-1] * len(row)
        for begin, end in itertools.pairwise([*starts, len(row)]):
            content = [at for at in range(begin, end) if row[at] >= 0]
            before = list(prompt) if len(content) < end - begin else []  # padding has no prompt
            for number, at in enumerate(content):
                where[at] = len(new) + len(before) + number
            new += [*before, *(row[at] for at in content)]
            new_places += range(len(before) + len(content))
        rows.append(new)
        places.append(new_places)
        moved.append(where)
    longest = max(map(len, rows))
    filled = [[*row, *[0] * (longest - len(row))] for row in rows]
    filled_places = [[*row, *range(longest - len(row))] for row in places]
    offsets = [[at if at < 0 else at + number * longest for at in where] for number, where in enumerate(moved)]
    made = (torch.tensor(one, dtype=torch.int64, device=ids.device) for one in (filled, filled_places, offsets))
    new_ids, new_positions, index = made
    return new_ids, new_positions, index.reshape(-1)


def read_with_prompt(model: PreTrainedModel, prompt: Sequence[int], ids: Tensor, position_ids: Tensor) -> Tensor:
    """The model's last states at each token of a batch, [B * N, D], with these ids before each document in place of its
    own prompt; 0 at tokens of a prompt.

    Raises ValueError for a document that is longer than the model's positions then.
    """
    new_ids, new_positions, index = swap_prompt(ids, position_ids, prompt)
    longest, most = int(new_positions.max()) + 1, int(model.config.max_position_embeddings)
    if longest > most:
        raise ValueError(
            f"with a soft prompt of {len(prompt)} tokens a document has {longest}, the model {most} positions"
        )
    packing = Packing.from_position_ids(new_positions)
    states = run_decoder(model, new_ids, new_positions, packing).flatten(0, 1)  # [B * M, D]
    found = states.new_zeros(len(index), states.shape[1])
    kept = index >= 0
    found[kept] = states[index[kept]]
    return found
