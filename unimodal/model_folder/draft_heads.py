"""Draft heads beside a model, for fast decoding: the folder `draft_heads` of a model folder, or one of its own.

    config.json          what they are made of, and the width and rows of the model that they were trained for
    model.safetensors    their weights

They only speed up: whatever the folder holds, the answers are the plain loop's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from unimodal.config import Config
from unimodal.files import describe_error, open_atomic_path, quote_path, read_json, write_json
from unimodal.model.draft_heads import DraftHeads, DraftHeadSettings, make_draft_heads

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DRAFT_HEADS = "draft_heads"  # of a model folder; a folder of its own, since servers take a model's files for weights
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
FORMAT = 1
FIX = "write it again with recipes/train_draft.py"


class SavedHeads(Config):
    """The content of `config.json`."""

    format: int
    width: int
    num_rows: int
    heads: DraftHeadSettings


def save_draft_heads(folder: Path, heads: DraftHeads, num_rows: int) -> None:
    """Write trained heads, their settings last. num_rows: of the model's vocabulary."""
    from safetensors.torch import save_file

    weights = {name: weight.detach().contiguous().cpu() for name, weight in heads.state_dict().items()}
    with open_atomic_path(folder / WEIGHTS_FILE) as place:
        save_file(weights, place)
    saved = SavedHeads(format=FORMAT, width=heads.width, num_rows=num_rows, heads=heads.settings)
    write_json(folder / CONFIG_FILE, saved.model_dump(mode="json"))


def load_draft_heads(folder: Path, model: PreTrainedModel, num_rows: int) -> DraftHeads:
    """The heads of a folder, on the device and in the precision of the model that they read. num_rows: of its
    vocabulary.

    Raises ValueError, in one line, for a folder that holds none, for one of another format, and for heads that were
    trained for a model of another width or vocabulary.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{quote_path(folder)} holds no draft heads; train them with recipes/train_draft.py")
    try:
        saved = SavedHeads.model_validate(read_json(path))
    except ValidationError as error:
        raise ValueError(f"{quote_path(path)}: {describe_error(error)}; {FIX}") from None
    if saved.format != FORMAT:
        raise ValueError(f"{quote_path(path)} has format {saved.format}, not {FORMAT}; {FIX}")
    width = int(model.config.get_text_config().hidden_size)
    for what, theirs, ours in (("width", saved.width, width), ("number of rows", saved.num_rows, num_rows)):
        if theirs != ours:
            raise ValueError(
                f"{quote_path(folder)} was trained for a model whose {what} is {theirs}, and this one's is {ours}; "
                "train heads for it with recipes/train_draft.py"
            )
    heads = make_draft_heads(saved.heads, saved.width, saved.num_rows)
    try:
        heads.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (OSError, RuntimeError, SafetensorError):
        raise ValueError(f"{quote_path(folder / WEIGHTS_FILE)} does not hold the weights of its heads; {FIX}") from None
    table = next(model.get_input_embeddings().parameters())
    return heads.to(table.device, table.dtype).eval().requires_grad_(False)
