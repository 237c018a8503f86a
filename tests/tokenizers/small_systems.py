"""The small form of one published system of each kind, built once for all tests of a process; none of them changes."""

from functools import cache

import torch

from unimodal.tokenizers.configs.registry import build_tokenizer, list_systems, read_system
from unimodal.tokenizers.interface import LatentTokenizer, MediaTokenizer
from unimodal.tokenizers.registry import FAMILIES, find_family_class
from unimodal.tokenizers.systems.base import SystemModule


@cache
def list_kinds() -> tuple[str, ...]:
    """The name of one published system for each system and family. Families whose files register a medium of their own
    are left out without an import, which would add that medium for all tests of the process."""
    found: dict[tuple[str, str], str] = {}
    for name in list_systems():
        system = read_system(name)
        family = str(system.choose_settings(small=True)["family"])
        if not FAMILIES[family].startswith("unimodal.tokenizers.more_media."):
            found.setdefault((system.system, family), name)
    return tuple(name for (_, family), name in found.items() if issubclass(find_family_class(family), SystemModule))


@cache
def build_small(name: str) -> MediaTokenizer | LatentTokenizer:
    """Random weights, in eval mode."""
    torch.manual_seed(0)
    return build_tokenizer(read_system(name).choose_settings(small=True)).eval()
