"""Compression by name, for what speaks to the model through the pipeline.

model.chat([picture, "What is this?"], compress="divprune:0.25,snapkv:0.5")

with compress(model, "divprune", keep=0.25) as session:
    model.answers(...)
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import TypeAlias

from unimodal.compression import METHODS, CacheCompressor, CompressionSession, Method, open_methods
from unimodal.pipeline.parts import LoadedModel

#: methods as a request names them: "divprune", "divprune:0.25", "divprune:0.25,snapkv:0.5", or made, or several
AskedMethods: TypeAlias = str | Method | Sequence[str | Method]


def make_method(name: str, **settings: object) -> Method:
    """The method of a name. settings: the fields of its class.

    Raises ValueError for a name or a setting that there is not, and for a value that the method refuses.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(METHODS)}"
        raise ValueError(f"no compression method {name[:60]!r}; {hint}")
    make: Callable[..., Method] = METHODS[name]
    try:
        return make(**settings)
    except TypeError as error:
        raise ValueError(f"{name}: {str(error).split('__init__() ')[-1]}") from None


def read_methods(asked: AskedMethods) -> tuple[Method, ...]:
    """The methods that a request names, in their order.

    Raises ValueError for an unknown name, for a share that is none, and for a method that has to be trained first.
    """
    methods: list[Method] = []
    for one in [asked] if isinstance(asked, str | Method) else asked:
        if isinstance(one, Method):
            methods.append(one)
        elif isinstance(one, str):
            methods += [_read_method(part.strip()) for part in one.split(",")]
        else:
            raise ValueError(f"compress {one!r} is no method; give METHOD or METHOD:SHARE, such as divprune:0.25")
    return tuple(methods)


def _read_method(text: str) -> Method:
    name, mark, share = text.partition(":")
    settings: dict[str, object] = {}
    if mark:
        try:
            settings["keep"] = float(share)
        except ValueError:
            message = f"compress {text[:60]!r}: {share[:40]!r} is no share; give METHOD:SHARE, such as divprune:0.25"
            raise ValueError(message) from None
    method = make_method(name, **settings)
    if method.is_learned:
        raise ValueError(
            f"{name} is learned and has no weights of its own; give it in Python with the module that was trained: "
            f"compress={type(method).__name__}(…)"
        )
    return method


def check_methods(model: LoadedModel, asked: AskedMethods) -> tuple[Method, ...]:
    """The methods that are asked for, if this model can be read under them. Raises ValueError, in one line."""
    methods = read_methods(asked)
    if methods and not model.vocabulary.positions.is_flat:
        raise ValueError("compress follows single codes and this model reads the sum of several; leave it out")
    with open_methods(methods, model.engine):
        return methods


def describe_methods(methods: Sequence[Method]) -> str:
    """The methods as they are asked for: "divprune:0.25,snapkv:0.5"."""
    names = {kind: name for name, kind in METHODS.items()}
    return ",".join(f"{names.get(type(method), type(method).__name__)}:{method.keep:g}" for method in methods)


def describe_kept(methods: Sequence[Method], num_tokens: int, num_kept: int) -> str:
    """What compression left of a prompt, as a sentence."""
    names = describe_methods(methods)
    if num_kept < num_tokens:
        return f"compressed by {names}: {num_kept} of {num_tokens} tokens of the prompt are kept"
    if any(isinstance(method, CacheCompressor) and method.acts != "evict" for method in methods):
        return f"compressed by {names}: all {num_tokens} tokens of the prompt are kept; of media it attends to a share"
    return f"compressed by {names}: nothing to shorten in the prompt of {num_tokens} tokens"


def compress(model: LoadedModel, method: str, **settings: object) -> CompressionSession:
    """A context in which the model compresses what it reads by the method of a name.

    Raises ValueError as `make_method` does.
    """
    return make_method(method, **settings)(model)
