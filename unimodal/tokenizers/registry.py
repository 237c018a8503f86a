"""Which class a tokenizer folder has: our own families, and those of other packages.

A folder's config.json can only name a family that is registered here; it never names code. A family of your own is
registered in one of two ways, both of which say that you trust its code:

- an installed package declares the entry point `my_family = "my_package.module:MyTokenizer"` in the group
  `unimodal.tokenizers`;
- `$UNIMODAL_PLUGINS` lists modules, or .py files, that call `register(MyTokenizer)`, separated by commas.

Both are looked at when a family is asked for that is not ours.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from pathlib import Path

from unimodal.files import read_json
from unimodal.media.registry import PLUGINS_VARIABLE, load_plugins
from unimodal.tokenizers.interface import LatentTokenizer, MediaModule, MediaReader, MediaTokenizer
from unimodal.tokenizers.stored import CONFIG, TokenizerConfig, read_config, read_fields

ENTRY_POINTS = "unimodal.tokenizers"


def register(kind: type[MediaModule]) -> None:
    """Makes a class known by the family that its config names. ValueError for a name that another class has."""
    default = kind.config_class.model_fields["family"].default
    if not isinstance(default, str) or not default:
        raise ValueError(f'{kind.config_class.__name__} has no family; give it one: family: str = "my_family"')
    known = FAMILIES.get(default)
    place = f"{kind.__module__}:{kind.__qualname__}"
    if known is not None and known != place:
        raise ValueError(f"the family {default!r} is {known} already; give {place} another name")
    FAMILIES[default] = place
    _REGISTERED[default] = kind


def list_families() -> list[str]:
    """The names of all families: ours, those in `$UNIMODAL_PLUGINS` and those of installed packages."""
    load_plugins()
    return list(dict.fromkeys([*FAMILIES, *(point.name for point in entry_points(group=ENTRY_POINTS))]))


def find_family_class(family: str) -> type[MediaModule]:
    """The class of a family. Raises ValueError, in one line, for a name that is not known."""
    if family not in FAMILIES:
        load_plugins()
    if family not in FAMILIES:
        for point in entry_points(group=ENTRY_POINTS, name=family):
            FAMILIES[family] = point.value
    if family not in FAMILIES:
        raise ValueError(
            f"there is no tokenizer family {family!r}; known are {', '.join(list_families())}, and those that "
            f"${PLUGINS_VARIABLE} names (docs/tokenizers.md)"
        )
    if family not in _REGISTERED:
        module, _, name = FAMILIES[family].partition(":")
        found: object = getattr(importlib.import_module(module), name, None)
        if not isinstance(found, type) or not issubclass(found, MediaModule):
            raise ValueError(f"the tokenizer family {family!r} is {FAMILIES[family]}, which is no tokenizer class")
        _REGISTERED[family] = found
    return _REGISTERED[family]


def read_family(folder: str | Path) -> str:
    """The `family` in a tokenizer folder's config.json. Raises ValueError if there is none."""
    family = read_fields(folder).get("family")
    if not isinstance(family, str):
        raise ValueError(f"{Path(folder) / CONFIG} names the tokenizer family {family!r}; take it from the model again")
    return family


def is_tokenizer(folder: str | Path) -> bool:
    """Whether a folder is that of one tokenizer or reader, and not that of a model."""
    path = Path(folder) / CONFIG
    return path.is_file() and "family" in read_json(path)


def find_class(folder: str | Path) -> type[MediaModule]:
    """The class of a tokenizer folder. Raises ValueError, in one line, for a family that is not known."""
    family = read_family(folder)
    try:
        return find_family_class(family)
    except ValueError as error:
        raise ValueError(f"{Path(folder) / CONFIG}: {error}") from None


def read_tokenizer_config(folder: str | Path) -> TokenizerConfig:
    """The config of a tokenizer folder; no weights are read. Raises ValueError, in one line."""
    return read_config(find_class(folder).config_class, folder)


def find_continued_medium(folder: str | Path) -> str | None:
    """The medium whose tokenizer the one in `folder` continues; None for one that stands alone."""
    kind = find_class(folder)
    return kind.continues if issubclass(kind, MediaTokenizer) else None


def load_tokenizer(folder: str | Path, continued: MediaTokenizer | None = None) -> MediaTokenizer:
    """The tokenizer that `save` wrote to `folder`, in float32 and eval mode.

    continued: the tokenizer that one of clips builds on, say; a family that continues none leaves it. Raises
    ValueError, in one line, for a folder that is not a tokenizer.
    """
    kind = find_class(folder)
    if not issubclass(kind, MediaTokenizer):
        raise ValueError(
            f"{folder} holds a {read_family(folder)}, which gives no codes; name the folder of a tokenizer"
        )
    return kind.load(folder, continued if kind.continues is not None else None)


def load_latent_tokenizer(folder: str | Path) -> LatentTokenizer:
    """The tokenizer of continuous latents in `folder`. Raises ValueError, in one line, for a folder without one."""
    kind = find_class(folder)
    if not issubclass(kind, LatentTokenizer):
        raise ValueError(f"{folder} holds a {read_family(folder)}, which gives no latents; load it with load_tokenizer")
    return kind.load(folder)


def load_reader(folder: str | Path) -> MediaReader:
    """The reader that `save` wrote to `folder`. Raises ValueError, in one line, for a folder that is not a reader."""
    kind = find_class(folder)
    if not issubclass(kind, MediaReader):
        raise ValueError(f"{folder} holds a tokenizer, not a reader; take it from the model again")
    return kind.load(folder)


#: family → "module:Class"; imported only when a folder of that family is loaded
FAMILIES: dict[str, str] = {
    "semantic_pixel_fsq": "unimodal.tokenizers.nano.image:ImageTokenizer",
    "causal_motion_fsq": "unimodal.tokenizers.nano.video:VideoTokenizer",
    "mel_fsq": "unimodal.tokenizers.nano.audio:AudioTokenizer",
    "chameleon": "unimodal.tokenizers.pretrained.chameleon:ChameleonTokenizer",
    "emu3": "unimodal.tokenizers.pretrained.emu3:Emu3Tokenizer",
    "emu3_video": "unimodal.tokenizers.pretrained.emu3:Emu3VideoTokenizer",
    "janus": "unimodal.tokenizers.pretrained.janus:JanusTokenizer",
    "janus_reader": "unimodal.tokenizers.pretrained.janus:JanusReader",
    "limber": "unimodal.tokenizers.readers.limber:LimberReader",
    "come_vl": "unimodal.tokenizers.readers.come_vl:CoMEVLReader",
    "encodec": "unimodal.tokenizers.pretrained.audio:EncodecTokenizer",
    "dac": "unimodal.tokenizers.pretrained.audio:DacTokenizer",
    "mimi": "unimodal.tokenizers.pretrained.mimi:MimiTokenizer",
    "xcodec": "unimodal.tokenizers.pretrained.xcodec:XcodecTokenizer",
    "higgs_audio_v2": "unimodal.tokenizers.pretrained.xcodec:HiggsTokenizer",
    "neucodec": "unimodal.tokenizers.pretrained.neucodec:NeucodecTokenizer",
    "xcodec2": "unimodal.tokenizers.pretrained.xcodec2:Xcodec2Tokenizer",
    "moss_audio": "unimodal.tokenizers.systems.moss_audio:MossAudioTokenizer",
    "snac": "unimodal.tokenizers.systems.snac:SnacTokenizer",
    "vqgan": "unimodal.tokenizers.systems.vqgan:VqganTokenizer",
    "vqgan_video": "unimodal.tokenizers.systems.vqgan_video:VqganVideoTokenizer",
    "gigatok": "unimodal.tokenizers.systems.gigatok:GigatokTokenizer",
    "cosmos_image": "unimodal.tokenizers.systems.cosmos:CosmosImageTokenizer",
    "cosmos_image_latents": "unimodal.tokenizers.systems.cosmos:CosmosImageLatents",
    "cosmos_video": "unimodal.tokenizers.systems.cosmos:CosmosVideoTokenizer",
    "cosmos_video_latents": "unimodal.tokenizers.systems.cosmos:CosmosVideoLatents",
    "xqgan": "unimodal.tokenizers.systems.xqgan:XqganTokenizer",
    "tokenflow": "unimodal.tokenizers.systems.tokenflow:TokenflowTokenizer",
    "unitok": "unimodal.tokenizers.systems.unitok:UnitokTokenizer",
    "kl_vae": "unimodal.tokenizers.systems.kl_vae:KlVaeTokenizer",
    "rae": "unimodal.tokenizers.systems.rae:RaeTokenizer",
    "mingtok": "unimodal.tokenizers.systems.mingtok:MingtokTokenizer",
    "uniflow": "unimodal.tokenizers.systems.uniflow:UniflowTokenizer",
    "tokenbridge": "unimodal.tokenizers.systems.tokenbridge:TokenBridgeTokenizer",
    "tokenbridge_video": "unimodal.tokenizers.systems.tokenbridge:TokenBridgeVideo",
    "dualtoken": "unimodal.tokenizers.systems.dualtoken:DualTokenTokenizer",
    "seed": "unimodal.tokenizers.systems.seed:SeedTokenizer",
    "moto": "unimodal.tokenizers.systems.moto:MotoTokenizer",
    "omnitokenizer": "unimodal.tokenizers.systems.omnitokenizer:OmniImageTokenizer",
    "omnitokenizer_video": "unimodal.tokenizers.systems.omnitokenizer:OmniVideoTokenizer",
    "titok": "unimodal.tokenizers.systems.titok:TiTokTokenizer",
    "titok_latents": "unimodal.tokenizers.systems.titok:TiTokLatents",
    "tatitok": "unimodal.tokenizers.systems.titok:TATiTokTokenizer",
    "tatitok_latents": "unimodal.tokenizers.systems.titok:TATiTokLatents",
    "i2_world": "unimodal.tokenizers.systems.i2_world:SceneTokenizer",
    "octree": "unimodal.tokenizers.more_media.voxels:OctreeTokenizer",
    "voxel_blocks": "unimodal.tokenizers.more_media.voxels:BlockTokenizer",
    "svg_paths": "unimodal.tokenizers.more_media.svg_paths:PathTokenizer",
    "instella": "unimodal.tokenizers.systems.instella:InstellaTokenizer",
    "maskgit_vqgan": "unimodal.tokenizers.systems.maskgit_vqgan:MaskgitVqganTokenizer",
    "vit_vq": "unimodal.tokenizers.systems.vit_vq:VitVqTokenizer",
    "karl": "unimodal.tokenizers.systems.karl:KarlTokenizer",
    "meaning_first": "unimodal.tokenizers.systems.meaning_first:MeaningFirstTokenizer",
    "hieratok": "unimodal.tokenizers.systems.hieratok:HieraTokTokenizer",
    "d_ar": "unimodal.tokenizers.systems.d_ar:DArTokenizer",
    "flextok": "unimodal.tokenizers.systems.flextok:FlexTokTokenizer",
    "comit": "unimodal.tokenizers.systems.comit:COMiTTokenizer",
    "clip_tokens": "unimodal.tokenizers.systems.clip_tokens:ClipTokensLatents",
    "flowtok": "unimodal.tokenizers.systems.flowtok:FlowTokLatents",
    "gpstoken": "unimodal.tokenizers.systems.gpstoken:GPSTokenLatents",
    "himtok": "unimodal.tokenizers.systems.himtok:HiMTokTokenizer",
    "beats": "unimodal.tokenizers.systems.beats:BeatsTokenizer",
    "whisper_bottleneck": "unimodal.tokenizers.systems.whisper_bottleneck:WhisperBottleneckTokenizer",
    "whisper_codec": "unimodal.tokenizers.systems.whisper_codec:WhisperCodecTokenizer",
    "s3": "unimodal.tokenizers.systems.s3:S3Tokenizer",
    "speechtokenizer": "unimodal.tokenizers.systems.speechtokenizer:SpeechTokenizer",
    "bigcodec": "unimodal.tokenizers.systems.bigcodec:BigCodec",
    "wavtokenizer": "unimodal.tokenizers.systems.wavtokenizer:WavTokenizer",
    "vocos_mel": "unimodal.tokenizers.systems.vocos:VocosMel",
    "vocos_encodec": "unimodal.tokenizers.systems.vocos:VocosEncodec",
    "video_flextok": "unimodal.tokenizers.systems.video_flextok:VideoFlexTokTokenizer",
    "tadicodec": "unimodal.tokenizers.systems.tadicodec:TaDiCodecTokenizer",
    "sqcodec": "unimodal.tokenizers.systems.sqcodec:SQCodecTokenizer",
    "reasoning_codec": "unimodal.tokenizers.systems.reasoning_codec:ReasoningCodecTokenizer",
}
_REGISTERED: dict[str, type[MediaModule]] = {}
