"""Pretrained tokenizers of transformers behind `MediaTokenizer`: one function reads a checkpoint by folder or hub id.

    from unimodal.tokenizers import pretrained

    tokenizer = pretrained.load("mimi", "kyutai/mimi", num_codebooks=8)
    codes = tokenizer.encode(sound)            # sound [B, 1, T] at tokenizer.config.sample_rate_hz → ids [B, N, 8]
    tokenizer.save("mine/audio_tokenizer")     # a folder that needs no hub; `load_tokenizer` reads it

The networks are those that transformers ships; no code of a checkpoint is run and no pickle is read. `SOURCES` lists
the families and a public checkpoint of each.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from unimodal.files import download_folder, is_hub_id
from unimodal.released import find_release
from unimodal.tokenizers.interface import LatentTokenizer, MediaModule, MediaTokenizer
from unimodal.tokenizers.pretrained.base import NetworkTokenizer, read_checkpoint_config
from unimodal.tokenizers.pretrained.published import PUBLISHED, load_published
from unimodal.tokenizers.registry import find_family_class, is_tokenizer, load_tokenizer, read_family
from unimodal.tokenizers.systems.base import SystemModule

# family → a hub id that holds it. Whole models are fine: only the tokenizer's weights are read.
SOURCES = {
    "chameleon": "facebook/chameleon-7b",
    "emu3": "Emu3-community/Emu3-Gen-hf",
    "emu3_video": "Emu3-community/Emu3-Gen-hf",
    "janus": "deepseek-community/Janus-Pro-1B",
    "encodec": "facebook/encodec_24khz",
    "dac": "descript/dac_16khz",
    "mimi": "kyutai/mimi",
    "xcodec2": "HKUSTAudio/xcodec2-hf",
    "neucodec": "neuphonic/neucodec",
    "xcodec": "hf-audio/xcodec-hubert-librispeech",
    "higgs_audio_v2": "bosonai/higgs-audio-v2-tokenizer",
}
_FILES = ["*.json", "*.safetensors"]


def load(name: str, source: str | os.PathLike[str] | None = None, **settings: object) -> MediaTokenizer:
    """The tokenizer of family `name` from a folder or hub id (by default that in `SOURCES`), in float32 and eval mode.

    A folder that one of our tokenizers was saved to is read as it is, without settings. `settings` are those of the
    family's config, e.g. `num_codebooks`, `bandwidth`, `image_size`. Raises ValueError, in one line.
    """
    if name in PUBLISHED:
        found = _load_published(name, source, MediaTokenizer, **settings)
        assert isinstance(found, MediaTokenizer)
        return found
    if name not in SOURCES:
        raise ValueError(f"there is no pretrained tokenizer {name!r}; there are {', '.join([*SOURCES, *PUBLISHED])}")
    folder = find(SOURCES[name] if source is None else source)
    family = read_checkpoint_config(folder).get("family") if (folder / "config.json").exists() else None
    if family is not None:
        if family != name:
            raise ValueError(f"{folder} holds the tokenizer family {family!r}, not {name!r}")
        if settings:
            raise ValueError(f"{folder} is a saved tokenizer with its own settings; leave {', '.join(settings)} out")
        return load_tokenizer(folder)
    kind = find_family_class(name)
    assert issubclass(kind, NetworkTokenizer)
    read: Callable[..., NetworkTokenizer] = kind.from_checkpoint
    known = [parameter for parameter in inspect.signature(read).parameters if parameter != "folder"]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(f"{name} has no setting {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    return read(folder, **settings).eval()


def load_latents(name: str, source: str | os.PathLike[str] | None = None, **settings: object) -> LatentTokenizer:
    """The same of a system whose tokens are continuous. Raises ValueError, in one line, for one with codes."""
    if name not in PUBLISHED:
        raise ValueError(f"there is no pretrained tokenizer of latents {name!r}; there are {', '.join(PUBLISHED)}")
    found = _load_published(name, source, LatentTokenizer, **settings)
    assert isinstance(found, LatentTokenizer)
    return found


def _load_published(
    name: str, source: str | os.PathLike[str] | None, wanted: type[MediaModule], **settings: object
) -> SystemModule:
    """The weights that authors released; `settings` are those of `load_published`."""
    if not issubclass(find_family_class(PUBLISHED[name].family), wanted):
        way = "load" if wanted is LatentTokenizer else "load_latents"
        raise ValueError(f"{name} gives {'codes' if way == 'load' else 'continuous latents'}; use {way} for it")
    known = [
        parameter
        for parameter in inspect.signature(load_published).parameters
        if parameter not in ("name", "source", "origin")
    ]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(f"{name} has no setting {unknown[0]!r}; it has {', '.join(known)}")
    read: Callable[..., SystemModule] = load_published
    entry = PUBLISHED[name]
    if source is None and not entry.hub_id:
        raise ValueError(f"the weights of {name} are on no hub ({entry.where}); download them and name the file")
    place = entry.hub_id if source is None else source
    path = Path(place).expanduser()
    if path.is_dir() and is_tokenizer(path):
        return _load_saved(name, path, settings)
    known_file = bool(entry.file) and (os.fspath(place) == entry.hub_id or (path / entry.file).is_file())
    if known_file:  # the repository that the table names, or a copy of it
        settings = {"file": entry.file, "config": entry.config or None, **settings}
    if path.exists():
        return read(name, path, **settings)
    file = str(settings.get("file") or "")
    if file and not file.endswith(".safetensors") and not (settings.get("pickle") or settings.get("torchscript")):
        raise ValueError(f"{place}/{file} is a pickle; allow its bare tensors with pickle=True (no code of it is run)")
    folder = find(place, [*_FILES, "*.yaml", file] if file else _FILES)
    return read(name, folder, origin=os.fspath(place), **settings)


def _load_saved(name: str, folder: Path, settings: Mapping[str, object]) -> SystemModule:
    """A tokenizer of ours that was saved to a folder. ValueError for one of another family, and for settings."""
    family = read_family(folder)
    if family != PUBLISHED[name].family:
        raise ValueError(f"{folder} holds the tokenizer family {family!r}, not {PUBLISHED[name].family!r}")
    if settings:
        raise ValueError(f"{folder} is a saved tokenizer with its own settings; leave {', '.join(settings)} out")
    kind = find_family_class(family)
    assert issubclass(kind, SystemModule)
    return kind.load(folder)


def find(source: str | os.PathLike[str], patterns: Sequence[str] = _FILES) -> Path:
    """The folder of a checkpoint that is named by folder or hub id; downloads its files of these patterns, by default
    JSON and safetensors."""
    text = os.fspath(source)
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or not is_hub_id(text):
        raise ValueError(f"{text!r} is no folder, and not a hub id of the form owner/name")
    release = find_release(text)
    if release is not None:  # before its many gigabytes are downloaded
        raise ValueError(release.describe_next_step(text))
    return download_folder(text, patterns)
