"""`unimodal tokenizers list` and `show NAME`: the known families, and what each gives; `name-voice`: voices of one."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unimodal.cli.shared import Command

if TYPE_CHECKING:
    from unimodal.tokenizers.configs.registry import PublishedSystem
    from unimodal.tokenizers.interface import MediaModule, MediaTokenizer

tokenizers = typer.Typer(
    name="tokenizers",
    help="The families of media tokenizers, published systems of them, and what a saved one gives.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@tokenizers.command("list", cls=Command)
def show_families() -> None:
    """List every family (ours, and those of `$UNIMODAL_PLUGINS` and of installed packages) and every published
    system."""
    from unimodal.tokenizers import find_family_class, list_families, pretrained
    from unimodal.tokenizers.configs.registry import list_systems, read_system

    rows = [("family", "medium", "gives", "a public checkpoint", "what it is")]
    for name in list_families():
        kind = find_family_class(name)
        rows.append((name, kind.modality, _name_result(kind), pretrained.SOURCES.get(name, "—"), _summarise(kind)))
    _print_table(rows)
    rows = [("published system", "medium", "gives", "family", "what it is")]
    for name in list_systems():
        system = read_system(name)
        family = str(system.choose_settings(small=True)["family"])
        kind = find_family_class(family)
        rows.append((name, kind.modality, _name_result(kind), family, _name_system(system)))
    if len(rows) > 1:
        print()
        _print_table(rows)


def _print_table(rows: Sequence[tuple[str, str, str, str, str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[4]]))


@tokenizers.command("show", cls=Command)
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A family, a published system, or a tokenizer's folder.")],
) -> None:
    """Show a family's settings, a published system's sizes, source and proof, or a saved tokenizer's codes and hash."""
    from unimodal.tokenizers import is_tokenizer, list_families
    from unimodal.tokenizers.configs.registry import list_systems

    folder = Path(name).expanduser()
    alone = is_tokenizer(folder)
    if folder.is_dir() and not alone and name not in list_families():
        inside = sorted(path.name for path in folder.glob("*_tokenizer") if path.is_dir())
        advice = f"name one of its {', '.join(inside)}" if inside else "it holds none"
        raise ValueError(f"{name} is not the folder of a tokenizer; {advice}")
    known = list(dict.fromkeys([*list_systems(), *list_families()]))
    if not alone and name not in known and folder.exists():
        raise ValueError(f"{name} is a file; name the folder of a tokenizer")
    near = get_close_matches(name.lower().replace(" ", "-"), known, 4, 0.5)
    if not alone and name not in known and near:
        raise ValueError(f"there is no tokenizer {name!r}; near it are {', '.join(near)}")
    if alone:
        lines = list(_describe_folder(folder))
    else:
        lines = list(_describe_system(name) if name in list_systems() else _describe_family(name))
    width = max(len(what) for what, _ in lines)
    for what, value in lines:
        print(f"{what.ljust(width)}  {value}")


@tokenizers.command("name-voice", cls=Command)
def name_voice(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a tokenizer with codes of a voice.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the voice is called.")],
    clips: Annotated[list[Path], typer.Argument(metavar="CLIP...", help="Sounds of the voice; more tell more.")],
) -> None:
    """Let a tokenizer of speech know a voice by name, from sounds of it."""
    import torch

    from unimodal.coder.media_coder import load_coder
    from unimodal.tokenizers import is_tokenizer
    from unimodal.tokenizers.voices import VoicedTokenizer

    if not is_tokenizer(folder):
        raise ValueError(f"{folder} is not the folder of a tokenizer")
    coder = load_coder(folder)
    tokenizer = coder.get_tokenizer("audio") if "audio" in coder.vocabulary.media else None
    if not isinstance(tokenizer, VoicedTokenizer):
        raise ValueError(
            f"the tokenizer in {folder} has no codes of a voice, as those of the family whisper_codec have"
        )
    tokenizer.name_voice(name, torch.cat([coder.read(clip, "audio") for clip in clips])[None])
    tokenizer.save_config(folder)
    print(f"{name}: {', '.join(map(str, tokenizer.find_voice(name).tolist()))}")


def _describe_system(name: str) -> Iterator[tuple[str, str]]:
    """A published system: what it is, its figures, where they are from and what proves our network."""
    from unimodal.tokenizers.configs.facts import collect_facts, list_proofs
    from unimodal.tokenizers.configs.registry import read_system
    from unimodal.tokenizers.registry import find_family_class
    from unimodal.tokenizers.systems.base import SystemModule

    system = read_system(name)
    facts = collect_facts(system)
    settings = system.choose_settings(small=facts.small)
    yield "published system", name
    yield "what it is", _name_system(system)
    yield "family", str(settings["family"])
    yield "medium", facts.modality
    if facts.small:
        yield "published size", "no source gives it; what follows is of the small form"
    yield "takes", facts.size
    yield "gives", facts.codes
    if facts.bits is not None:
        ratio = f", 1/{facts.ratio:,.0f} of the raw medium" if facts.ratio is not None else ""
        yield "bits", f"{facts.bits:,.0f} {'a second' if facts.modality == 'audio' else 'an item'}{ratio}"
    yield "parameters", f"{facts.parameters:,}"
    for part in facts.parts:
        yield "part", part
    yield "source", system.source
    for figure, value in system.figures.items():
        yield "published figure", f"{figure} {value}"
    yield "licence", system.licence or "no source says"
    for proof in list_proofs(system):
        yield "proof", proof
    if system.note:
        yield "note", system.note
    for key, setting in settings.items():
        if key != "family":
            yield "setting", f"{key} = {setting}"
    train = f"UNIMODAL_PLUGINS={system.plugin} " if system.plugin else ""
    train += f"python recipes/train_tokenizer.py --set system={name}"
    kind = find_family_class(str(system.choose_settings(small=True)["family"]))
    if issubclass(kind, SystemModule) and kind.taught_by:
        train += f" --set '{kind.taught_by}'"
    if not facts.small:
        yield "to train it", f"{train} --set media=FOLDER"
    if facts.parameters:
        yield "a small form", f"{train} --set small=true --set media=FOLDER"
    yield from _describe_weights(name, system)


def _describe_weights(name: str, system: PublishedSystem) -> Iterator[tuple[str, str]]:
    """Where released weights of this size are; that none are known, of a family of which others are."""
    from unimodal.tokenizers.pretrained.published import PUBLISHED

    family = str(system.choose_settings(small=True)["family"])
    rows = [key for key, row in PUBLISHED.items() if row.family == family]
    places = [
        (key, PUBLISHED[key].hub_id or "FOLDER", PUBLISHED[key].file) for key in rows if PUBLISHED[key].config == name
    ]
    if system.weights is not None:
        places = [(system.weights.load, system.weights.hub, system.weights.file)]
    for key, place, file in places:
        inside = f", its file {file}" if file else ""
        yield "released weights", f"{key}={place}{inside}, {PUBLISHED[key].licence or 'no licence'}"
    elsewhere = [PUBLISHED[key].where for key in rows if PUBLISHED[key].where and not PUBLISHED[key].config]
    if rows and not places:
        yield "released weights", "; ".join(elsewhere) or "none of this size are known"


def _name_system(system: PublishedSystem) -> str:
    """`TiTok: An Image is Worth …`; the title alone where it begins with the name."""
    begins = system.title.lower().startswith(system.system.partition(" (")[0].lower())
    return system.title if begins else f"{system.system}: {system.title}"


def _describe_family(name: str) -> Iterator[tuple[str, str]]:
    """The settings of a family. Raises ValueError for a name that is neither a folder nor a family."""
    from unimodal.tokenizers import find_family_class, pretrained
    from unimodal.tokenizers.pretrained.base import NetworkTokenizer

    kind = find_family_class(name)
    yield "family", name
    yield from _describe_class(kind)
    if name in pretrained.SOURCES and issubclass(kind, NetworkTokenizer):
        yield "a public checkpoint", pretrained.SOURCES[name]
        for parameter in list(inspect.signature(kind.from_checkpoint).parameters.values())[1:]:
            yield "setting of a checkpoint", f"{parameter.name} = {parameter.default}"
    for field, info in kind.config_class.model_fields.items():
        if field != "family":
            yield "setting", field if info.is_required() else f"{field} = {info.default}"


def _describe_folder(folder: Path) -> Iterator[tuple[str, str]]:
    """The codes, sizes and hash of a saved tokenizer or reader."""
    from unimodal.tokenizers import find_family_class, hash_stored, load_tokenizer, read_family
    from unimodal.tokenizers.interface import MediaTokenizer
    from unimodal.tokenizers.systems.base import SystemModule

    family = read_family(folder)
    kind = find_family_class(family)
    yield "folder", str(folder)
    yield "family", family
    yield from _describe_class(kind)
    module = load_tokenizer(folder) if issubclass(kind, MediaTokenizer) else kind.load(folder)
    if isinstance(module, MediaTokenizer):
        yield from _describe_codes(module)
    if module.rate is not None:
        yield "takes", f"{module.rate:g} {'samples' if module.sample_rate_hz else 'frames'} a second"
    if module.picture_size is not None:
        yield "pictures", "{1}×{0} pixels".format(*module.picture_size)
    yield "parameters", f"{sum(parameter.numel() for parameter in module.parameters()):,}"
    if isinstance(module, SystemModule) and module.config.origin is not None:
        use = "" if module.config.commercial else ", not for commercial use"
        yield "weights from", module.config.origin
        yield "licence", f"{module.config.licence or 'no source says'}{use}"
    yield "sha256", hash_stored(folder)


def _describe_codes(tokenizer: MediaTokenizer) -> Iterator[tuple[str, str]]:
    groups = len(tokenizer.codebook_sizes)
    for (name, count), times in Counter(tokenizer.segments).items():
        sizes = tokenizer.group_sizes(name)
        many = "any number" if count is None else f"{times} × {count}" if times > 1 else str(count)
        each = f"{sizes[0]:,}" if len(set(sizes)) == 1 else ", ".join(f"{size:,}" for size in sizes)
        yield f"codes of {name!r}", f"{many}, of {each} values{f', in {groups} groups' if groups > 1 else ''}"
    if tokenizer.tokens_per_item is not None:
        bits = sum(
            (count or 0) * sum(math.log2(size) for size in tokenizer.group_sizes(name) if size)
            for name, count in tokenizer.segments
        )
        yield "an item", f"{tokenizer.tokens_per_item} positions, {bits:,.0f} bits"
    if tokenizer.tokens_per_second is not None:
        bits = tokenizer.tokens_per_second * sum(math.log2(size) for size in tokenizer.codebook_sizes)
        yield "a second", f"{tokenizer.tokens_per_second:g} positions, {bits:,.0f} bits"
    yield "a prefix", "decodes to a coarser result" if tokenizer.ordered else "does not decode by itself"
    if groups > 1:
        yield (
            "fewer groups",
            "decode to a coarser result" if tokenizer.coarser_groups else "do not decode by themselves",
        )
    yield "decoder", "yes" if tokenizer.can_decode else "none: it only encodes"


def _describe_class(kind: type[MediaModule]) -> Iterator[tuple[str, str]]:
    yield "class", f"{kind.__module__}:{kind.__qualname__}"
    yield "medium", kind.modality
    yield "gives", _name_result(kind)
    yield "what it is", _summarise(kind)


def _name_result(kind: type[MediaModule]) -> str:
    """What a class gives: codes, latents or features."""
    from unimodal.tokenizers import LatentTokenizer, MediaTokenizer

    if issubclass(kind, MediaTokenizer):
        return "codes"
    return "latents" if issubclass(kind, LatentTokenizer) else "features"


def _summarise(kind: type[MediaModule]) -> str:
    """The first sentence of the class's docstring."""
    text = (kind.__doc__ or "no description").split("\n\n")[0]
    return " ".join(text.split()).split(". ")[0].rstrip(".")
