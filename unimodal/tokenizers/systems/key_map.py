"""Our names of weights ⇄ the authors' names, in both directions and strictly.

A rule rewrites one of our names to the authors' name, so that a saved tokenizer is written back as its authors'
checkpoint by the same rules that read it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class MisfitError(ValueError):
    """The tensors of a checkpoint are not those of the tokenizer that is to hold them."""


@dataclass(frozen=True)
class KeyMap:
    """rules: (pattern over our whole name, replacement), of which the first that matches holds; a name without a rule
    is the authors' own. ignored: patterns over the authors' whole names, of tensors that are no part of the tokenizer
    (discriminators, usage counters). averages: how the name of a moving average begins; behind it stands the name of
    the weight without its dots. Where a checkpoint has averages, they are the weights, as in the authors' evaluation.
    endings: (ours, theirs), rewritten after the rules; a checkpoint may have either form.
    """

    rules: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    averages: str = ""
    endings: tuple[tuple[str, str], ...] = ()


#: weight normalization: the parametrization of today's torch → the hook of older ones
WEIGHT_NORM = (
    (".parametrizations.weight.original0", ".weight_g"),
    (".parametrizations.weight.original1", ".weight_v"),
)


def rename_to_authors(name: str, key_map: KeyMap) -> str:
    """The authors' name of one of our weights."""
    for pattern, replacement in key_map.rules:
        found = re.fullmatch(pattern, name)
        if found is not None:
            return _rename_ending(found.expand(replacement), key_map)
    return _rename_ending(name, key_map)


def _rename_ending(name: str, key_map: KeyMap) -> str:
    for ours, theirs in key_map.endings:
        if name.endswith(ours):
            return name.removesuffix(ours) + theirs
    return name


def fill_strictly(module: nn.Module, weights: Mapping[str, Tensor], key_map: KeyMap, source: str) -> None:
    """Loads every weight and buffer of a module from the authors' tensors.

    Raises MisfitError, in one line, naming what is missing, left over or of another shape; source begins that line.
    """
    names = {name: rename_to_authors(name, key_map) for name in module.state_dict()}
    weights = {_rename_ending(name, key_map): tensor for name, tensor in weights.items()}
    if key_map.averages:
        weights = _take_averages(weights, names.values(), key_map.averages)
    missing = sorted(set(names.values()) - set(weights))
    surplus = sorted(
        name
        for name in set(weights) - set(names.values())
        if not any(re.fullmatch(pattern, name) for pattern in key_map.ignored)
    )
    for what, odd in (("lacks", missing), ("has beside what this system has", surplus)):
        if odd:
            more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
            raise MisfitError(f"{source} {what} {', '.join(odd[:3])}{more}; is it of another system or size?")
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            found = weights[names[name]]
            if found.shape != tensor.shape:
                raise MisfitError(
                    f"{source} has {names[name]} of shape {tuple(found.shape)} where this config has "
                    f"{tuple(tensor.shape)}; is it of another size?"
                )
            tensor.copy_(found)


def _take_averages(weights: Mapping[str, Tensor], names: Iterable[str], start: str) -> Mapping[str, Tensor]:
    """The weights with their moving averages under the weights' own names; as they are where there are none."""
    averages = {start + name.replace(".", ""): name for name in names}
    if not any(name in weights for name in averages):
        return weights
    plain = set(averages.values())
    return {averages.get(name, name): tensor for name, tensor in weights.items() if name not in plain}
