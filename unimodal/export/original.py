"""Write a converted Chameleon, Emu3 or Janus as a checkpoint of its own class: undo tools/convert_checkpoint.py.

    config.json generation_config.json model.safetensors   of the class that transformers has for it
    tokenizer.json … preprocessor_config.json …            its tokenizer and processor files, as they were

So a model tuned here runs wherever the original runs, with its own processor; it can be converted again. A converted
folder holds all parts of its checkpoint: the decoder, the media networks in their folders, and under `original/` the
files that have no other place.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimodal.export.new_folder import check_space, create_folder
from unimodal.files import describe_error
from unimodal.model.image_head import HEAD_FILE, ImageHead
from unimodal.model.weight_files import ORIGINAL, check_weight_files
from unimodal.model_folder.layout import CONFIG_FILE
from unimodal.vocabulary import Vocabulary
from unimodal.vocabulary.adopted import TEXT_FILES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REST_FILE = "rest.safetensors"


@dataclass(frozen=True)
class CheckpointKind:
    """The class of a checkpoint, and where a converted folder holds its weights.

    decoder: prefix of the decoder's weights → prefix in the checkpoint. parts: file → the same for its weights.
    """

    architecture: str
    decoder: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


KINDS = {
    "chameleon": CheckpointKind("ChameleonForConditionalGeneration"),
    "emu3": CheckpointKind(
        "Emu3ForConditionalGeneration",
        {"model.": "model.text_model."},
        {"image_tokenizer/model.safetensors": {"network.": "model.vqmodel."}},
    ),
    "janus": CheckpointKind(
        "JanusForConditionalGeneration",
        {"model.": "model.language_model."},
        {
            "image_tokenizer/model.safetensors": {"network.": "model.vqmodel."},
            "image_reader/model.safetensors": {"vision.": "model.vision_model.", "aligner.": "model.aligner."},
            HEAD_FILE: {
                "inner.": "model.generation_head.proj_out.",
                "outer.": "model.generation_head.vision_head.",
            },
            f"{ORIGINAL}/{REST_FILE}": {"": ""},
        },
    ),
}


def write_original(
    decoder: PreTrainedModel,
    home: Path,
    out: Path,
    vocabulary: Vocabulary,
    dtype: str | None,
    max_shard_size: str,
    force: bool,
    on_step: Callable[[str], None],
) -> None:
    """Write the folder `out`, whole or not at all.

    decoder: the converted folder's own, or a tuned one. home: the converted folder. dtype: of the weights, by default
    that of the decoder. force: replace a model folder at `out`.
    Raises ValueError, in one line, for a folder that does not hold all of its checkpoint.
    """
    model = rebuild_original(decoder, home, vocabulary)
    if dtype is not None:
        model.to(getattr(torch, dtype))
    files = [path for path in sorted((home / ORIGINAL).iterdir()) if path.suffix in (".json", ".jinja", ".txt")]
    files = [path for path in files if path.name != CONFIG_FILE]
    files += [home / name for name in TEXT_FILES if (home / name).is_file()]
    check_space(out.parent, sum(t.numel() * t.element_size() for t in model.state_dict().values()))
    on_step("writing")
    with create_folder(out, force) as new:
        model.save_pretrained(new, max_shard_size=max_shard_size)
        for path in files:
            shutil.copyfile(path, new / path.name)


def rebuild_original(decoder: PreTrainedModel, home: Path, vocabulary: Vocabulary) -> PreTrainedModel:
    """The model of transformers that a converted folder was made from, with this decoder in it.

    Raises ValueError for a folder that does not hold all of its checkpoint.
    """
    import transformers

    folder = home / ORIGINAL
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(
            f"{home} has no {ORIGINAL}/{CONFIG_FILE}, which says what it was; convert the checkpoint again"
        )
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    kind = KINDS.get(config.model_type)
    if kind is None:
        raise ValueError(f"{folder}/{CONFIG_FILE} is of type {config.model_type!r}; there are {', '.join(KINDS)}")
    with torch.device("meta"):
        model = getattr(transformers, kind.architecture)(config)
    wanted = model.state_dict()
    state = dict(_read_decoder(decoder, kind, wanted, vocabulary))
    precision = next(tensor.dtype for tensor in state.values())
    for name, tensor in _read_parts(home, kind):
        exact = torch.equal(tensor.to(precision).to(tensor.dtype), tensor)  # stored wider than it was
        state[name] = tensor.to(precision) if exact else tensor
    odd = sorted(set(wanted) ^ set(state))
    odd += [name for name in wanted if name in state and wanted[name].shape != state[name].shape]
    if odd:
        raise ValueError(f"{home} does not hold its checkpoint: {odd[0]} is missing or of another; convert it again")
    model.load_state_dict(state, assign=True)
    return model.eval()


def _read_decoder(
    decoder: PreTrainedModel, kind: CheckpointKind, wanted: Mapping[str, Tensor], vocabulary: Vocabulary
) -> Iterator[tuple[str, Tensor]]:
    head = decoder.get_output_embeddings()
    if isinstance(head, ImageHead):
        decoder.set_output_embeddings(head.base)
    for name, tensor in decoder.state_dict().items():
        there = _rename(name, kind.decoder)
        rows = len(wanted[there]) if there in wanted else 0
        # a checkpoint that embeds drawn codes apart has no rows for them in its table: ours stand behind its own
        behind = tensor.dim() == 2 and len(tensor) == vocabulary.size > rows > 0
        yield there, tensor[:rows].clone() if behind else tensor


def _read_parts(home: Path, kind: CheckpointKind) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for file, prefixes in kind.parts.items():
        path = home / file
        if not path.is_file():
            raise ValueError(f"{home} is incomplete: {file} is missing; convert the checkpoint again")
        check_weight_files([path])
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged ({describe_error(error)}); convert the checkpoint again") from None
        for name, tensor in state.items():
            yield _rename(name, prefixes), tensor


def _rename(name: str, prefixes: Mapping[str, str]) -> str:
    """The name with the first prefix that fits replaced."""
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
