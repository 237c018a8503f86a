"""What of a conversation an answer in words came from: its media by share and place, for those who show it on them.

By the length of the gradient of the answer's log-likelihood, one forward and one backward: of the methods in
`attribution.py` the cheapest that holds against the model. Shares are of all tokens before the answer.

Shapes: N tokens, M codes of a medium, H and W height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from unimodal.evaluation.inspection.attribution import differentiate_answer, to_shares
from unimodal.evaluation.inspection.media_maps import map_scores, paint_map
from unimodal.evaluation.inspection.opened import OpenedModel
from unimodal.sequence.document import Document

METHOD = "gradient"


@dataclass(frozen=True, eq=False)
class MediumSource:
    """A medium of a conversation. share: of the answer. picture: the medium with its parts in red, uint8 [H, W, 3];
    None where its codes have no place."""

    modality: str
    share: float
    picture: np.ndarray | None


def find_sources(
    opened: OpenedModel,
    document: Document,
    answer: str,
    seed: int = 0,
    most_tokens: int | None = None,
    most_decoded: int | None = None,
) -> list[MediumSource]:
    """The media of a conversation, in its order, and how much of the answer is theirs.

    most_tokens: of conversation and answer. most_decoded: see `map_scores`. Raises ValueError for more tokens, and for
    an answer that is empty or does not fit behind the conversation.
    """
    read = opened.read_turns(document, answer)
    if most_tokens is not None and len(read) > most_tokens:
        raise ValueError(f"conversation and answer are {len(read)} tokens; at most {most_tokens} are looked into")
    table = opened.decoder.get_input_embeddings()
    with torch.no_grad():
        embedded = table(read.ids[None])  # [1, N, D]
    shares = to_shares(differentiate_answer(opened, read, embedded, 1.0).norm(dim=-1).cpu())
    found = []
    for span in read.spans:
        own = shares[torch.from_numpy(span.at)]  # [M]
        mapped = map_scores(opened, span, own.numpy(), seed, most_decoded)
        found.append(MediumSource(span.modality, float(own.sum()), None if mapped is None else paint_map(mapped)))
    return found
