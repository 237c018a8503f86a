"""Released models that are not (yet) a model folder: what a checkpoint is, and what to do with it. Imports no torch.

A checkpoint is recognised by its config.json or its files, or by its hub id before anything is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from unimodal.files import read_json

TOOL = "python tools/convert_checkpoint.py"
EMU3_ROWS = 184_622  # of Emu3; Emu3.5 has the same class and other rows
GEMMA_ROWS, CHAMELEON_CODES = 256_000, 8_192  # Liquid is a Gemma with rows for the image codes of Chameleon

ConfigData = dict[str, object]


@dataclass(frozen=True)
class Release:
    """One released model, in the format of its authors or of transformers.

    kind: the command of tools/convert_checkpoint.py that converts it or its copy; None where none does. copy: hub id
    of the same model in transformers' format. reason: why no copy would do, where `kind` is None. hub_ids: patterns of
    its hub ids. is_held_by: whether a folder with this config.json holds it.
    """

    name: str
    kind: str | None
    copy: str | None
    reason: str
    hub_ids: tuple[str, ...]
    is_held_by: Callable[[ConfigData, Path], bool]

    def describe_next_step(self, source: str) -> str:
        """One line for someone who named `source`, a folder or hub id, as a model."""
        if self.kind is None:
            return f"{source} is {self.name}, which cannot be converted: {self.reason}"
        if self.copy is None:
            return f"{source} is {self.name} in transformers' format; run `{TOOL} {self.kind} {source} DIR` first"
        return (
            f"{source} is {self.name} in its authors' own format; its copy in transformers' format will do: "
            f"`{TOOL} {self.kind} {self.copy} DIR`"
        )


def find_release(source: str | os.PathLike[str]) -> Release | None:
    """The release that a folder holds or a hub id names; None for an unknown one."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        path = folder / "config.json"
        config = read_json(path) if path.is_file() else {}
        return next((one for one in RELEASES if one.is_held_by(config, folder)), None)
    name = os.fspath(source)
    return next((one for one in RELEASES if any(fnmatchcase(name, pattern) for pattern in one.hub_ids)), None)


def is_unconverted(config: ConfigData, kind: str) -> bool:
    """Whether a config.json belongs to a checkpoint of this `model_type` in transformers' format."""
    return config.get("model_type") == kind and not _is_of_class(config, "XLLMX")


def _is_of_class(config: ConfigData, part: str) -> bool:
    names = config.get("architectures")
    return isinstance(names, list) and any(part in str(name) for name in names)


def _has_rows(config: ConfigData, low: int, high: int) -> bool:
    rows = config.get("vocab_size")
    return isinstance(rows, int) and low <= rows < high


def _is_emu3(config: ConfigData, folder: Path) -> bool:
    return config.get("model_type") == "Emu3" and _has_rows(config, EMU3_ROWS, EMU3_ROWS + 1)


def _is_emu35(config: ConfigData, folder: Path) -> bool:
    return config.get("model_type") in ("Emu3", "emu3p5", "Emu3p5") and not _is_emu3(config, folder)


def _is_show_o2(config: ConfigData, folder: Path) -> bool:
    return str(config.get("_class_name", "")).startswith("Showo2")


def _is_bagel(config: ConfigData, folder: Path) -> bool:
    files = ("llm_config.json", "vit_config.json", "ae.safetensors")
    return config.get("model_type") == "bagel" or all((folder / file).is_file() for file in files)


def _is_qwen_omni(config: ConfigData, folder: Path) -> bool:
    return str(config.get("model_type", "")).startswith(("qwen2_5_omni", "qwen3_omni"))


def _is_liquid(config: ConfigData, folder: Path) -> bool:
    least = GEMMA_ROWS + CHAMELEON_CODES
    return config.get("model_type") in ("gemma", "gemma2") and _has_rows(config, least, least + 512)


RELEASES = (
    Release("Emu3", "emu3", None, "", (), lambda config, folder: is_unconverted(config, "emu3")),
    Release("Chameleon", "chameleon", None, "", (), lambda config, folder: is_unconverted(config, "chameleon")),
    Release("Janus", "janus", None, "", (), lambda config, folder: is_unconverted(config, "janus")),
    Release(
        "Janus or Janus-Pro", "janus", "deepseek-community/Janus-Pro-1B", "",
        ("deepseek-ai/Janus-1.3B", "deepseek-ai/Janus-Pro-*"),
        lambda config, folder: config.get("model_type") == "multi_modality",
    ),
    Release(
        "Emu3", "emu3", "Emu3-community/Emu3-Gen-hf", "",
        ("BAAI/Emu3-Gen", "BAAI/Emu3-Chat", "BAAI/Emu3-Stage1"), _is_emu3,
    ),
    Release(
        "Emu3.5", None, None,
        "transformers has no class for it, and its image tokenizer (IBQ, 131,072 codes) is no pretrained family",
        ("BAAI/Emu3.5*",), _is_emu35,
    ),
    Release(
        "Show-o2", None, None, "it draws by flow matching in the latent space of a video VAE, not by tokens; "
        "a copy in another format would not do", ("showlab/show-o2-*",), _is_show_o2,
    ),
    Release(
        "BAGEL", None, None, "it draws by flow matching in the latent space of a VAE, with a second set of weights for "
        "it, not by tokens; a copy in another format would not do", ("ByteDance-Seed/BAGEL-*",), _is_bagel,
    ),
    Release(
        "Qwen-Omni", None, None, "it reads media as continuous features and speaks through a second model (the "
        "talker); it is in transformers' format already, where it runs",
        ("Qwen/Qwen2.5-Omni-*", "Qwen/Qwen3-Omni-*"), _is_qwen_omni,
    ),
    Release(
        "Liquid", None, None, "its checkpoint holds a Gemma with rows for image codes, but no image tokenizer: that is "
        "the VQGAN of Chameleon, and no sequence template of ours writes Liquid's prompts yet",
        ("Junfeng5/Liquid_*",), _is_liquid,
    ),
    Release(
        "Lumina-mGPT", None, None, "it is a Chameleon that writes height, width and row marks with each picture, "
        "which no sequence template of ours does yet; facebook/chameleon-7b converts",
        ("Alpha-VLLM/Lumina-mGPT-7B-*", "Alpha-VLLM/Lumina-mGPT-34B-*"),
        lambda config, folder: _is_of_class(config, "XLLMX"),
    ),
)  # fmt: skip
