"""What a checkpoint looks like: its tensors' names compared with those of every published system.

Numbers in names do not count, so that a checkpoint of any size is known by the small form of its system; the shapes of
the published sizes say which of them it is.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.tokenizers.configs.registry import PublishedSystem, build_tokenizer, list_systems, read_system
from unimodal.tokenizers.systems.base import SystemModule
from unimodal.tokenizers.systems.key_map import KeyMap

#: the least share of names that two systems have in common for one to be named
LEAST_SHARED = 0.6


def describe_likeness(weights: Mapping[str, Tensor], other_than: str | None = None) -> str:
    """Which published system, and which size of it, the authors' tensors are of: "It looks like IBQ (ibq-16384)".

    other_than: a family; "" where the tensors look like one of its systems.
    """
    forms = _choose_forms()
    own = [_read_form(name) for name, family in forms.items() if family == other_than]
    if any(form is not None and _count_shared(weights, form) >= LEAST_SHARED for form in own):
        return ""
    every = [form for name in forms if (form := _read_form(name)) is not None]
    shared = {form: _count_shared(weights, form) for form in every}
    best = max(shared.values(), default=0.0)
    if best < LEAST_SHARED:
        return "Its tensors are named like no published system here (`unimodal tokenizers list`)"
    likely = sorted({form.system for form, share in shared.items() if share == best})
    families = sorted({form.family for form, share in shared.items() if share == best})
    systems = [system for system in map(read_system, list_systems()) if system.system in likely]
    same = [system for system in systems if _has_size(system, weights)]
    if same:
        likely = sorted({system.system for system in same})
        return f"It looks like {' or '.join(likely)} ({', '.join(system.name for system in same)})"
    return f"It looks like {' or '.join(likely)} ({' or '.join(families)}), of no published size"


@dataclass(frozen=True)
class _Form:
    """names: the authors' names of tensors of a system, without their numbers."""

    system: str
    family: str
    names: frozenset[str]
    key_map: KeyMap


@functools.cache
def _choose_forms() -> dict[str, str]:
    """Published system → its family: each system once for every choice of settings, whatever their values, on which
    names hardly depend."""
    found: dict[tuple[str, frozenset[str]], tuple[str, str]] = {}
    for name in reversed(list_systems()):
        system = read_system(name)
        settings = system.choose_settings(small=True)
        found.setdefault((system.system, frozenset(settings)), (name, str(settings["family"])))
    return dict(found.values())


@functools.cache
def _read_form(name: str) -> _Form | None:
    """The names of the small form; None of a system that is read from no checkpoint of its authors."""
    system = read_system(name)
    module = _build(system, small=True)
    if module is None:
        return None
    names = _drop_numbers(module.collect_authors_state())
    return _Form(system.system, str(module.config.family), names, module.find_key_map(module.config))


def _build(system: PublishedSystem, small: bool) -> SystemModule | None:
    """The network without storage; None of a system that is read from no checkpoint of its authors."""
    with torch.device("meta"):
        module = build_tokenizer(system.choose_settings(small))
    return module if isinstance(module, SystemModule) else None


def _drop_numbers(names: Iterable[str]) -> frozenset[str]:
    return frozenset(re.sub(r"\d+", "#", name) for name in names)


def _count_shared(weights: Mapping[str, Tensor], form: _Form) -> float:
    """The share of names that are in both, of those in either; what the system ignores is left out."""
    kept = _drop_numbers(_list_kept(weights, form.key_map))
    return len(kept & form.names) / max(1, len(kept | form.names))


def _list_kept(weights: Mapping[str, Tensor], key_map: KeyMap) -> list[str]:
    """The names of tensors that are part of the tokenizer, moving averages left out."""
    return [
        name
        for name in weights
        if not any(re.fullmatch(pattern, name) for pattern in key_map.ignored)
        and not (key_map.averages and name.startswith(key_map.averages))
    ]


def _has_size(system: PublishedSystem, weights: Mapping[str, Tensor]) -> bool:
    """Whether the tensors have the names and shapes of the published size."""
    module = None if system.tokenizer is None else _build(system, small=False)
    if module is None:
        return False
    shapes = {name: tensor.shape for name, tensor in module.collect_authors_state().items()}
    kept = _list_kept(weights, module.find_key_map(module.config))
    return shapes.keys() == set(kept) and all(weights[name].shape == shape for name, shape in shapes.items())
