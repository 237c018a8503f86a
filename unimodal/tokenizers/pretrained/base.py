"""What the pretrained tokenizers have in common: a network of transformers behind `MediaTokenizer`, and its checkpoint.

The network is built from its own transformers config, which the folder's config.json holds under `network`, so that a
saved folder needs neither its source nor the hub. Weights are stored in float32: codes stay those of the reference.

These networks look beyond the end of a clip and at the whole of a picture, so that padding would change codes. Items of
one size are encoded together and items of different sizes apart; each gives the codes that it gives alone.

Shapes: B batch, N codes, G groups, H and W height and width.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from unimodal.files import describe_error, read_json
from unimodal.released import find_release
from unimodal.tokenizers.interface import MediaTokenizer
from unimodal.tokenizers.stored import TokenizerConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    ForeignConfig = TypeVar("ForeignConfig", bound=PreTrainedConfig)
    ForeignModel = TypeVar("ForeignModel", bound=PreTrainedModel)

PICKLES = ("pytorch_model*.bin", "*.pth", "*.pt", "*.ckpt")
DOWNLOAD_AGAIN = "download it again"


class NetworkConfig(TokenizerConfig):
    """`network` is the transformers config of the network, as its checkpoint's config.json has it."""

    network: dict[str, JsonValue]


class NetworkTokenizer(MediaTokenizer):
    """A tokenizer around `self.network`, a frozen network of transformers."""

    stored_dtype: ClassVar[torch.dtype] = torch.float32
    config: NetworkConfig
    network: PreTrainedModel

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: the network is frozen, and its normalisation must not follow a batch."""
        return super().train(False)

    @classmethod
    @abstractmethod
    def from_checkpoint(cls, folder: Path) -> Self:
        """Reads a folder that transformers wrote; families add settings of their own, each with a default.

        Raises ValueError, in one line, for a checkpoint that it cannot use.
        """


def build_config(config_class: type[ForeignConfig], network: dict[str, JsonValue]) -> ForeignConfig:
    """The transformers config in a tokenizer's config; ValueError where it is not one."""
    try:
        return config_class.from_dict(dict(network))
    except Exception as error:  # transformers' strict configs raise their own kinds
        raise ValueError(
            f"the `network` settings are not a {config_class.__name__} ({describe_error(error)})"
        ) from None


def to_plain_config(config: PreTrainedConfig) -> dict[str, JsonValue]:
    """A transformers config as plain JSON, without what differs from one installation to another."""
    fields: dict[str, JsonValue] = json.loads(config.to_json_string(use_diff=False))
    for name in ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures"):
        fields.pop(name, None)
    return fields


# ---- checkpoints


def read_checkpoint_config(folder: Path) -> dict[str, object]:
    """The config.json of a checkpoint. ValueError where there is none."""
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"{folder} is not a checkpoint of transformers: config.json is missing")
    return read_json(path, DOWNLOAD_AGAIN)


def check_kind(folder: Path, wanted: tuple[str, ...], what: str) -> str:
    """The `model_type` of a checkpoint. ValueError unless it is one of `wanted`."""
    found = str(read_checkpoint_config(folder).get("model_type"))
    if found not in wanted:
        release = find_release(folder)
        hint = f". {release.describe_next_step(str(folder))}" if release is not None else ""
        raise ValueError(f"{folder} holds a {found!r} checkpoint; {what} needs one of type {' or '.join(wanted)}{hint}")
    return found


def list_checkpoint_weights(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint. Pickled weights are refused: reading them may run code."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]
        if pickles:
            raise ValueError(
                f"{folder} has its weights in {pickles[0]} only, a pickle, which could run code; save it as "
                "safetensors with transformers' save_pretrained first"
            )
        raise ValueError(f"{folder} has no *.safetensors; download the whole checkpoint")
    return files


def read_weights(folder: Path, part: str = "") -> dict[str, Tensor]:
    """The tensors whose name holds `part`, by what stands behind it, in float32. Nothing else is read."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, Tensor] = {}
    for path in list_checkpoint_weights(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    if part in name:
                        tensor = file.get_tensor(name)
                        found[name.split(part, 1)[1] if part else name] = (
                            tensor.float() if tensor.is_floating_point() else tensor
                        )
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}); download it again") from None
    return found


def fill_weights(network: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Loads the weights. ValueError, in one line, for what is missing or of another shape; what is left over may be."""
    try:
        missing = network.load_state_dict(weights, strict=False).missing_keys
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"the weights in {folder} do not fit its config.json: {reason}") from None
    if missing:
        raise ValueError(f"{folder} lacks the weights {', '.join(missing[:3])}; download the whole checkpoint")


def load_reference(
    model_class: type[ForeignModel], folder: Path, dtype: torch.dtype | str = torch.float32
) -> ForeignModel:
    """A model of transformers with the weights of a checkpoint. ValueError for one that is not whole."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    list_checkpoint_weights(folder)
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, info = model_class.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be loaded: {describe_error(error)}") from None
    finally:
        logging.set_verbosity(verbosity)
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ValueError(f"{folder} lacks the weights {missing}; download the whole checkpoint")
    return model.eval()
