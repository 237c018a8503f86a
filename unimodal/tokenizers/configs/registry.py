"""The published systems that come with the package, by name.

A file `NAME.yaml` here holds the settings of one published size, where they were read, what proves that our network is
the authors', and a small form that trains on a processor:

    system: TiTok
    title: An Image is Worth 32 Tokens for Reconstruction and Generation
    abstract: 5                       # its number among the systems of this project
    source: bytedance/1d-tokenizer configs/infer/TiTok/titok_s128.yaml
    tokenizer: {family: titok, width: 512, …}
    small: {width: 64, …}             # over `tokenizer`; or the name of a system whose small settings are taken
    parameters:
      - {of: [encoder], count: 25818636, mark: D}
    reference: visual/titok-legacy
    property: a prefix of the codes decodes, and a longer one is nearer
    figures: {rFID: 1.71}
    licence: Apache-2.0
    weights: {load: titok, hub: yucornetto/tokenizer_titok_s128_imagenet}   # of this size
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from importlib import resources
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from unimodal.files import describe_error
from unimodal.tokenizers.interface import MediaModule
from unimodal.tokenizers.registry import find_family_class
from unimodal.tokenizers.stored import TokenizerConfig

#: PyYAML's loader in C, ten times as fast, where it was built with it
LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class ParameterCount(BaseModel):
    """A published number of parameters: of the submodules `of` (all, where it is empty) without those in `without`.

    mark: P published (`digits` significant ones), C counted on the authors' class, D derived from published facts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    of: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    count: int
    mark: Literal["P", "C", "D"]
    digits: int | None = None


class SizeWeights(BaseModel):
    """Where the released weights of one size are: `pretrained.load(load, hub)`. file: which of the repository; "" for
    its safetensors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    load: str
    hub: str
    file: str = ""


class PublishedSystem(BaseModel):
    """One file of this folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    system: str
    title: str
    abstract: int | None = None
    source: str
    #: settings of the published size; None where no source gives one
    tokenizer: dict[str, JsonValue] | None = None
    #: settings that train on a processor, over `tokenizer`; of another system, where its name is given in their place
    small: dict[str, JsonValue] = Field(min_length=1)
    small_like: str = ""
    parameters: tuple[ParameterCount, ...] = ()
    #: reference files of the authors' code that the family passes
    reference: tuple[str, ...] = ()
    #: the property that defines the system, as a test shows it
    property: str = ""
    figures: dict[str, float | str] = {}
    licence: str | None = None
    #: None too where the row of `pretrained.published` names this size as its own
    weights: SizeWeights | None = None
    #: the module that registers its medium, where that is none of the package's own
    plugin: str = ""
    note: str = ""

    def choose_settings(self, small: bool = False) -> dict[str, JsonValue]:
        """The settings of the published size, or of the small form. ValueError where there is no published size."""
        if small:
            return {**(self.tokenizer or {}), **self.small}
        if self.tokenizer is None:
            raise ValueError(f"no source gives the sizes of {self.name}; there is only its small form")
        return self.tokenizer

    def list_differences(self, config: TokenizerConfig) -> list[str]:
        """The settings that a tokenizer's config of the same family has neither of the published size nor of the small
        form; none where it is one of these."""
        forms = [form for form in (self.tokenizer, self.choose_settings(small=True)) if form is not None]
        theirs = [type(config).model_validate(form).model_dump() for form in forms]
        ours = config.model_dump(exclude={"licence", "origin", "commercial"})  # of the weights
        differ = [[name for name in ours if ours[name] != form[name]] for form in theirs]
        return min(differ, key=len)


def list_systems() -> list[str]:
    """The names of all published systems, sorted."""
    return list(_list_names())


@functools.cache
def _list_names() -> tuple[str, ...]:
    """The files of this folder, which is looked through once in a process."""
    files = [path.name for path in resources.files(__package__).iterdir()]
    return tuple(sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml")))


def read_system(name: str) -> PublishedSystem:
    """One published system. Raises ValueError for a name that is not there."""
    if name not in _list_names():
        raise ValueError(f"there is no published system {name!r}; `unimodal tokenizers list` names them")
    fields = copy.deepcopy(_read_fields(name))
    like = fields.get("small")
    if isinstance(like, str):
        fields |= {"small": copy.deepcopy(_read_fields(like)["small"]), "small_like": like}
    try:
        return PublishedSystem.model_validate({"name": name, **fields})
    except ValidationError as error:
        raise ValueError(f"{name}.yaml: {describe_error(error)}") from None


@functools.cache
def _read_fields(name: str) -> dict[str, JsonValue]:
    """One file, read once in a process; not to be changed."""
    text = resources.files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    found: dict[str, JsonValue] = yaml.load(text, LOADER)
    return found


def merge_settings(settings: Mapping[str, JsonValue], changes: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Settings with others in their place, single ones of a part too; a part of another kind or family is taken
    whole."""
    merged = dict(settings)
    for name, value in changes.items():
        ours = merged.get(name)
        if isinstance(ours, dict) and isinstance(value, dict) and not {"kind", "family"} & set(value):
            value = merge_settings(ours, value)
        merged[name] = value
    return merged


def build_tokenizer(settings: dict[str, JsonValue]) -> MediaModule:
    """A new tokenizer of `settings`, which name its family. Raises ValueError, in one line, for what does not fit."""
    kind = find_family_class(str(settings.get("family")))
    try:
        config = kind.config_class.model_validate(settings)
    except ValidationError as error:
        raise ValueError(f"tokenizer: {describe_error(error)}") from None
    return kind(config)


def count_parameters(module: MediaModule, count: ParameterCount) -> int:
    """How many parameters a network has where `count` counts."""
    return sum(
        parameter.numel()
        for name, parameter in module.named_parameters()
        if (not count.of or _lies_in(name, count.of)) and not _lies_in(name, count.without)
    )


def _lies_in(name: str, parts: tuple[str, ...]) -> bool:
    """Whether a parameter is one of the parts or lies in one."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)
