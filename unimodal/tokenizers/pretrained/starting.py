"""What the training of a tokenizer begins with: the one to tune, and the one that it continues."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from unimodal.tokenizers.configs.registry import read_system
from unimodal.tokenizers.interface import LatentTokenizer, MediaTokenizer
from unimodal.tokenizers.pretrained.checkpoint import load, load_latents
from unimodal.tokenizers.pretrained.published import PUBLISHED
from unimodal.tokenizers.registry import (
    find_family_class,
    is_tokenizer,
    load_latent_tokenizer,
    load_tokenizer,
    read_family,
)
from unimodal.tokenizers.stored import StoredModule, read_config


def open_continued(kind: type[StoredModule], family: str, folder: str | None) -> MediaTokenizer | None:
    """The tokenizer that one of `kind` continues; None where it stands alone. ValueError where a folder is missing, is
    of another medium, or is given for nothing."""
    medium = kind.continues if issubclass(kind, MediaTokenizer) else None
    if medium is None:
        if folder is not None:
            raise ValueError(f"the {family} tokenizer continues no other; leave continued out")
        return None
    if folder is None:
        raise ValueError(f"the {family} tokenizer continues one of {medium}; name its folder: continued=FOLDER")
    found = load_tokenizer(folder)
    if found.modality != medium:
        raise ValueError(f"continued {folder} is a tokenizer of {found.modality}; {family} continues one of {medium}")
    return found


def open_beginning(folder: str, continued: str | None) -> StoredModule:
    """The tokenizer in a folder, of which weights are taken. continued: the folder of another one than the one that it
    continues, since its weights may go on from there."""
    kind = find_family_class(family := read_family(Path(folder)))
    if continued is None or getattr(kind, "continues", None) is None:
        return load_tokenizer(folder)
    make: Callable[..., StoredModule] = kind  # with what it continues, as its class takes it
    return make(read_config(kind.config_class, folder), open_continued(kind, family, continued)).load_weights(folder)


def load_initial(
    source: str, system: str | None, family: str | None, continued: str | None
) -> MediaTokenizer | LatentTokenizer:
    """The tokenizer that is tuned: a folder, or NAME=FOLDER of released weights. continued: the folder of the one that
    it continues. ValueError where `system` or `family` says another one."""
    folder = Path(source).expanduser()
    loaded: MediaTokenizer | LatentTokenizer
    if is_tokenizer(folder):
        own = read_family(folder)
        if issubclass(kind := find_family_class(own), LatentTokenizer):
            loaded = load_latent_tokenizer(folder)
        else:
            loaded = load_tokenizer(folder, open_continued(kind, own, continued))
    else:
        name, equals, place = source.partition("=")
        if not equals:
            raise ValueError(f"initial: {source} is no tokenizer's folder; released weights are given as NAME=FOLDER")
        latent = name in PUBLISHED and issubclass(find_family_class(PUBLISHED[name].family), LatentTokenizer)
        loaded = (load_latents if latent else load)(name, place, **({"config": system} if system else {}))
    wanted = family or (str(read_system(system).choose_settings(True)["family"]) if system else None)
    if wanted not in (None, loaded.config.family):
        raise ValueError(f"initial {source} is a {loaded.config.family}, and {system or family} a {wanted}")
    other = read_system(system).list_differences(loaded.config) if system and is_tokenizer(folder) else []
    if other:
        raise ValueError(f"initial {source} is no {system}: other {', '.join(other[:4])}; leave system out")
    return loaded
