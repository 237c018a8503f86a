"""A quantizer from settings: ``{"kind": "vector", "codebook_size": 4096, "num_dims": 12}``.

What a kind may be given are the arguments of its class. A part that is a quantizer is written the same way, and in a
list ``"copies": 8`` stands for eight of them, each with weights of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from unimodal.tokenizers.parts.quantizers.interface import Quantizer


def build_quantizer(spec: Mapping[str, object], kinds: Mapping[str, type[Quantizer]]) -> Quantizer:
    """The quantizer of `kinds` that the settings describe.

    Raises ValueError, in one line, for an unknown kind, a setting that the kind does not have, lacks or cannot read,
    and for parts that do not fit each other.
    """
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{kind!r} is no kind of quantizer; choose from {', '.join(sorted(kinds))}")
    chosen = kinds[kind]
    settings = {name: _build_parts(value, kinds) for name, value in spec.items() if name != "kind"}
    hints = get_type_hints(chosen.__init__)
    parameters = [each for each in inspect.signature(chosen).parameters.values()]
    unknown = [name for name in settings if name not in {each.name for each in parameters}]
    if unknown:
        takes = ", ".join(each.name for each in parameters)
        raise ValueError(f"a quantizer of kind {kind} has no setting {unknown[0]!r}; it has {takes}")
    fields = {
        each.name: (hints[each.name], ... if each.default is inspect.Parameter.empty else each.default)
        for each in parameters
    }
    config = ConfigDict(arbitrary_types_allowed=True)
    try:
        checked = create_model("Settings", __config__=config, **fields).model_validate(settings)  # type: ignore[call-overload]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise ValueError(f"a quantizer of kind {kind} needs a {where}; set it") from None
        given = f" {first['input']!r}" if isinstance(first["input"], int | float | str) else ""
        raise ValueError(f"a quantizer of kind {kind} cannot take the {where}{given}: {first['msg']}") from None
    try:
        return chosen(**{name: getattr(checked, name) for name in settings})
    except ValueError as error:
        raise ValueError(f"a quantizer of kind {kind} does not fit together: {error}") from None


def _build_parts(value: object, kinds: Mapping[str, type[Quantizer]]) -> object:
    """Settings of quantizers within a value become quantizers; other values stay."""
    if isinstance(value, Mapping) and "kind" in value:
        return build_quantizer(value, kinds)
    if isinstance(value, list | tuple):
        built: list[object] = []
        for item in value:
            if isinstance(item, Mapping) and "copies" in item:
                copies = item["copies"]
                if not isinstance(copies, int) or copies < 1:
                    raise ValueError(f"copies is a number from 1 on; got {copies!r}")
                rest = {name: setting for name, setting in item.items() if name != "copies"}
                built += [_build_parts(rest, kinds) for _ in range(copies)]
            else:
                built.append(_build_parts(item, kinds))
        return built
    return value
