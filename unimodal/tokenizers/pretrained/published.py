"""Weights that authors released of published systems: which family reads them, and under which licence they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from unimodal.files import describe_error, read_json
from unimodal.tokenizers.configs.registry import list_systems, read_system
from unimodal.tokenizers.onnx_weights import read_onnx
from unimodal.tokenizers.pretrained.authors import (
    ROOTS,
    find_weight_files,
    read_authors_settings,
    read_authors_weights,
)
from unimodal.tokenizers.pretrained.likeness import describe_likeness
from unimodal.tokenizers.registry import find_family_class
from unimodal.tokenizers.systems.base import SystemConfig, SystemModule
from unimodal.tokenizers.systems.key_map import MisfitError

#: our own settings beside weights under their authors' names, as `write_authors_checkpoint` writes them
OWN_SETTINGS = "unimodal.json"


@dataclass(frozen=True)
class PublishedWeights:
    """Released weights of one system.

    family: of our class. hub_id: a public checkpoint; "" where there is none, and `where` says where else it is.
    licence: of the weights, as their authors name it; None where no source says. commercial: False where the licence
    forbids commercial use. roots and prefix: where the weights lie in what was saved. file and config: which file of
    `hub_id` is downloaded and which of `unimodal tokenizers list` it is, where the repository does not say; "" for its
    safetensors and its own config. settings: where the authors' config lies within a pickled file of weights; "" where
    it does not. companion: what else is needed to decode, and where it is; "" for nothing.
    """

    family: str
    hub_id: str
    licence: str | None
    commercial: bool = True
    roots: tuple[str, ...] = ROOTS
    prefix: str = ""
    file: str = ""
    config: str = ""
    where: str = ""
    settings: str = ""
    companion: str = ""


def load_published(
    name: str,
    source: Path,
    config: str | os.PathLike[str] | None = None,
    pickle: bool = False,
    torchscript: bool = False,
    file: str = "",
    companion: str | os.PathLike[str] | None = None,
    origin: str = "",
) -> SystemModule:
    """The tokenizer of system `name` with its authors' weights.

    source: a file of weights, or a folder with one. config: a name of `unimodal.tokenizers.configs`, the authors' own
    YAML or JSON, or the config.json of a tokenizer of ours; by default the config.json, config.yaml or unimodal.json in
    the folder. pickle, torchscript: allow such files. file: which file of the folder holds the weights, where there are
    several. companion: a file or folder of what the released weights leave out, for a system that says so
    (`PUBLISHED`). origin: what the tokenizer says of where its weights are from; by default `source`.
    Raises ValueError, in one line, for what is missing, left over, of another size or not allowed; of another system or
    size, it says what it looks like.
    """
    entry = PUBLISHED[name]
    kind = find_family_class(entry.family)
    assert issubclass(kind, SystemModule)
    source = source / file
    find_weight_files(source)
    try:
        settings = _read_config(name, kind, source, config, pickle)
    except ForeignConfigError as error:
        raise ValueError(f"{error}{_describe_odd(source, entry.family, pickle, torchscript)}") from None
    told = {"licence": entry.licence, "origin": origin or str(source), "commercial": entry.commercial}
    settings = settings.model_copy(update=told)
    if find_weight_files(source)[0].suffix == ".onnx":
        weights = kind.name_onnx_weights(read_onnx(find_weight_files(source)[0]))
    else:
        weights = read_authors_weights(source, pickle, torchscript, entry.roots, entry.prefix)
    if companion is not None:
        weights = kind.add_companion(weights, read_authors_weights(Path(companion).expanduser(), pickle))
    try:
        if companion is None and kind.lacks_companion(weights) and _has_own_part(weights, kind, settings):
            raise ValueError(f"{source} leaves out {entry.companion}; name its folder with companion=")
        return kind.from_authors(weights, settings, str(source))
    except MisfitError as error:
        raise ValueError(f"{error} {describe_likeness(weights)}") from None


def _is_only_size(entry: PublishedWeights) -> bool:
    """Whether no other published size is of the family."""
    sizes = (read_system(name) for name in list_systems())
    found = [size.name for size in sizes if size.tokenizer is not None and size.tokenizer["family"] == entry.family]
    return found == [entry.config]


class ForeignConfigError(ValueError):
    """A config that the family cannot read."""


def _has_own_part(weights: Mapping[str, Tensor], kind: type[SystemModule], settings: SystemConfig) -> bool:
    """Whether there is any tensor of the system, so that what lacks is its companion alone."""
    with torch.device("meta"):
        names = kind(settings).collect_authors_state().keys()
    return not names.isdisjoint(weights)


def _describe_odd(source: Path, family: str, pickle: bool, torchscript: bool) -> str:
    """What weights beside a config that is not read look like; nothing where they are the family's, or not read."""
    try:
        weights = read_authors_weights(source, pickle, torchscript, ALL_ROOTS)
    except ValueError:
        return ""
    likeness = describe_likeness(weights, other_than=family)
    return f". {likeness}" if likeness else ""


def _read_config(
    name: str, kind: type[SystemModule], source: Path, config: str | os.PathLike[str] | None, pickle: bool
) -> SystemConfig:
    fields: Mapping[str, object] | None = None
    if config is None:
        folder = source if source.is_dir() else source.parent
        names = ("config.json", "config.yaml", "config.yml", OWN_SETTINGS)
        there = [folder / name for name in names if (folder / name).is_file()]
        entry = PUBLISHED[name]
        if not there and entry.settings and pickle:
            config, fields = source, read_authors_settings(source, entry.settings)
        elif not there and entry.config and (not entry.hub_id or _is_only_size(entry)):
            config = entry.config
        elif not there:
            raise ValueError(f"{folder} has no config.json; name a config of `unimodal tokenizers list`, or a file")
        else:
            config = there[0]
    path = Path(config)
    if fields is None:
        fields = _read_fields(path) if path.suffix else read_system(str(config)).choose_settings()
    family = fields.get("family")
    wanted = kind.config_class.model_fields["family"].default
    if family is not None and family != wanted:
        raise ForeignConfigError(f"{config} is of the family {family}, and {name} of {wanted}")
    try:
        if family is not None:  # our own settings
            own = {key: value for key, value in fields.items() if key != "format"}
            return kind.config_class.model_validate(own)  # type: ignore[return-value]
        return kind.read_authors_config(fields)
    except ValidationError as error:
        raise ForeignConfigError(f"{path} does not describe a {name}: {describe_error(error)}") from None
    except (KeyError, ValueError) as error:
        reason = f"it has no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise ForeignConfigError(f"{path} is not read as one of {name}: {reason}") from None


def _read_fields(path: Path) -> Mapping[str, object]:
    if path.suffix == ".json":
        return read_json(path)
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {describe_error(error)}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds no settings")
    return fields


#: where any system's weights may lie in what was saved
ALL_ROOTS = (*ROOTS, "trainer", "unitok")
ADOBE = "Adobe Research License"
NVIDIA = "NVIDIA Open Model License"
_CAPTION_READER = (
    "the caption as all 77 vectors of CLIP's text tower after its last norm (openai/clip-vit-large-patch14-336), "
    "given as Condition(features=…)"
)

#: system → its released weights
PUBLISHED: dict[str, PublishedWeights] = {
    "llamagen_vq": PublishedWeights(
        "vqgan", "FoundationVision/LlamaGen", "MIT", file="vq_ds16_c2i.pt", config="llamagen-vq16"
    ),
    "ibq": PublishedWeights(
        "vqgan", "TencentARC/IBQ-Tokenizer-16384", "Apache-2.0", file="imagenet256_16384.ckpt", config="ibq-16384"
    ),
    "open_magvit2": PublishedWeights(
        "vqgan",
        "TencentARC/Open-MAGVIT2-Tokenizer-256-resolution",
        "Apache-2.0",
        file="imagenet_256_L.ckpt",
        config="open-magvit2-256",
    ),
    "open_magvit2_video": PublishedWeights(
        "vqgan_video",
        "TencentARC/Open-MAGVIT2-Tokenizer-262144-Video",
        "Apache-2.0",
        file="video_128_262144.ckpt",
        config="open-magvit2-video",
    ),
    "wetok": PublishedWeights("vqgan", "GrayShine/WeTok", "Apache-2.0"),
    "gigatok": PublishedWeights("gigatok", "", "MIT", where="Google Drive: the README of SilentView/GigaTok has links"),
    "cosmos_image": PublishedWeights("cosmos_image", "nvidia/Cosmos-0.1-Tokenizer-DI8x8", NVIDIA),
    "cosmos_image_latents": PublishedWeights("cosmos_image_latents", "nvidia/Cosmos-0.1-Tokenizer-CI8x8", NVIDIA),
    "cosmos_video": PublishedWeights("cosmos_video", "nvidia/Cosmos-0.1-Tokenizer-DV4x8x8", NVIDIA),
    "omnitokenizer": PublishedWeights(
        "omnitokenizer", "Daniel0724/OmniTokenizer", "MIT", file="imagenet_k600.ckpt", config="omnitokenizer"
    ),
    "omnitokenizer_video": PublishedWeights(
        "omnitokenizer_video",
        "Daniel0724/OmniTokenizer",
        "MIT",
        file="imagenet_k600.ckpt",
        config="omnitokenizer-video",
    ),
    "imagefolder": PublishedWeights(
        "xqgan",
        "qiuk6/XQ-GAN",
        ADOBE,
        commercial=False,
        file="MSVR10P2-4096/best_ckpt.pt",
        config="imagefolder-msvr10p2-4096",
    ),
    "robustok": PublishedWeights(
        "xqgan", "qiuk6/RobustTok", ADOBE, commercial=False, file="RobustTok-zero.pt", config="robustok"
    ),
    "tokenflow": PublishedWeights(
        "tokenflow", "ByteFlow-AI/TokenFlow", "Apache-2.0", file="tokenflow_siglip_32k.pt", config="tokenflow-siglip"
    ),
    "unitok": PublishedWeights(
        "unitok",
        "FoundationVision/unitok_tokenizer",
        "MIT",
        roots=("trainer", "unitok"),
        file="unitok_tokenizer.pth",
        config="unitok-large",
    ),
    "seed": PublishedWeights(
        "seed",
        "AILab-CVC/seed-tokenizer-2",
        "Apache-2.0",
        file="seed_quantizer.pt",
        config="seed-2",
        companion="its picture encoder, eva_vit_g.pth of BLIP-2",
    ),
    "moto": PublishedWeights(
        "moto",
        "TencentARC/Moto",
        None,
        file="latent_motion_tokenizer_trained_on_oxe/pytorch_model.bin",
        config="moto",
        companion="its picture encoder, facebook/vit-mae-large",
    ),
    "cosmos_video_latents": PublishedWeights("cosmos_video_latents", "nvidia/Cosmos-0.1-Tokenizer-CV4x8x8", NVIDIA),
    "maskgit_vqgan": PublishedWeights(
        "maskgit_vqgan",
        "fun-research/TiTok",
        "Apache-2.0",
        file="maskgit-vqgan-imagenet-f16-256.bin",
        config="maskgit-vqgan",
    ),
    "vit_vq": PublishedWeights("vit_vq", "thuanz123/vitvqgan-imagenet-small", "MIT", config="seit"),
    "d_ar": PublishedWeights("d_ar", "showlab/D-AR", "MIT", file="D-AR-tokenizer_v1.pt", config="d-ar"),
    "instella": PublishedWeights(
        "instella",
        "amd/Instella-T2I",
        "Instella_T2I_1B RESEARCH-ONLY RAIL-MS",
        commercial=False,
        file="bae/model.safetensors",
        config="instella",
    ),
    "mingtok": PublishedWeights("mingtok", "inclusionAI/MingTok-Vision", "MIT"),
    "uniflow": PublishedWeights("uniflow", "yuezhengrong/UniFlow", None, config="uniflow"),
    "moss_audio": PublishedWeights("moss_audio", "OpenMOSS-Team/MOSS-Audio-Tokenizer", "Apache-2.0"),
    "snac": PublishedWeights("snac", "hubertsiuzdak/snac_24khz", "MIT", file="pytorch_model.bin"),
    "titok": PublishedWeights("titok", "yucornetto/tokenizer_titok_l32_imagenet", "Apache-2.0"),
    "titok_latents": PublishedWeights(
        "titok_latents", "yucornetto/tokenizer_titok_bl64_vae_c16_imagenet", "Apache-2.0"
    ),
    "one_d_piece": PublishedWeights("titok", "turing-motors/One-D-Piece-L-256", "Apache-2.0"),
    "tatitok": PublishedWeights(
        "tatitok",
        "turkeyju/tokenizer_tatitok_bl32_vq",
        "Apache-2.0 (the authors add: for research purposes only)",
        commercial=False,
        companion=_CAPTION_READER,
    ),
    "flextok": PublishedWeights(
        "flextok",
        "EPFL-VILAB/flextok_d12_d12_in1k",
        "Apple Machine Learning Research Model License (research only)",
        commercial=False,
        companion="its VAE lies in the same file; apart it is EPFL-VILAB/flextok_vae_c16",
    ),
    "tatitok_latents": PublishedWeights(
        "tatitok_latents",
        "turkeyju/tokenizer_tatitok_bl32_vae",
        "Apache-2.0 (the authors add: for research purposes only)",
        commercial=False,
        companion=_CAPTION_READER,
    ),
    "speechtokenizer": PublishedWeights(
        "speechtokenizer",
        "fnlp/SpeechTokenizer",
        "Apache-2.0",
        roots=("generator", *ROOTS),
        file="speechtokenizer_hubert_avg/SpeechTokenizer.pt",
        config="speechtokenizer",
    ),
    "dmcodec": PublishedWeights(
        "speechtokenizer",
        "",
        "Apache-2.0",
        roots=("generator", *ROOTS),
        where="Google Drive: the README of mubtasimahasan/DM-Codec has links",
        config="dm-codec",
    ),
    "tadicodec": PublishedWeights(
        "tadicodec",
        "amphion/TaDiCodec",
        "Apache-2.0",
        config="tadicodec",
        companion="its vocoder, the folder vocoder of the same repository",
    ),
    "uniaudio2_sqcodec": PublishedWeights(
        "sqcodec", "Dongchao/UniAudio2_ckpt", "MIT", roots=("codec_model",), file="sqcodec.pth"
    ),
    "uniaudio2_reasoning": PublishedWeights(
        "reasoning_codec",
        "Dongchao/UniAudio2_ckpt",
        "MIT",
        file="ReasoningCodec.checkpoint",
        config="uniaudio2-reasoning",
    ),
    "s3_v1": PublishedWeights(
        "s3", "", None, where="ModelScope: iic/CosyVoice-300M, speech_tokenizer_v1.onnx", config="s3-v1"
    ),
    "s3_v1_25hz": PublishedWeights(
        "s3",
        "",
        None,
        where="ModelScope: iic/CosyVoice-300M-25Hz, speech_tokenizer_v1.onnx",
        config="s3-v1-25hz",
    ),
    "s3_v2": PublishedWeights(
        "s3", "", None, where="ModelScope: iic/CosyVoice2-0.5B, speech_tokenizer_v2.onnx", config="s3-v2"
    ),
    "beats": PublishedWeights(
        "beats", "", "MIT", where="OneDrive: the README of microsoft/unilm beats has links", settings="cfg"
    ),
    "bigcodec": PublishedWeights("bigcodec", "Alethia/BigCodec", "MIT", file="bigcodec.pt", config="bigcodec"),
    "wavtokenizer": PublishedWeights(
        "wavtokenizer",
        "novateur/WavTokenizer",
        "MIT",
        file="WavTokenizer_small_600_24k_4096.ckpt",
        config="wavtokenizer-40",
    ),
    "vocos_mel": PublishedWeights("vocos_mel", "charactr/vocos-mel-24khz", "MIT", file="pytorch_model.bin"),
    "vocos_encodec": PublishedWeights(
        "vocos_encodec",
        "charactr/vocos-encodec-24khz",
        "MIT",
        file="pytorch_model.bin",
        companion="its EnCodec, facebook/encodec_24khz",
    ),
}
