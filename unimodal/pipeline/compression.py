"""Compression by name, for what speaks to the model through the pipeline.

model.chat([picture, "What is this?"], compress="divprune:0.25,snapkv:0.5")

with compress(model, "divprune", keep=0.25) as session:
    model.answers(...)
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypeAlias

from unimodal.compression import METHODS, CacheCompressor, CompressionSession, Method, open_methods
from unimodal.compression.learned import LearnedMethod, compare_widths
from unimodal.compression.trained import load_compressor
from unimodal.pipeline.parts import LoadedModel

#: methods as a request names them: "divprune", "divprune:0.25", "divprune:0.25,snapkv:0.5", or made, or several
AskedMethods: TypeAlias = str | Method | Sequence[str | Method]


def make_method(name: str, **settings: object) -> Method:
    """The method of a name. settings: the fields of its class.

    Raises ValueError for a name or a setting that there is not, and for a value that the method refuses.
    """
    name = str(name)
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
    for one in _list_asked(asked):
        if isinstance(one, Method):
            methods.append(one)
        else:
            methods += [_read_method(part.strip()) for part in one.split(",")]
    return tuple(methods)


def _list_asked(asked: AskedMethods) -> Sequence[str | Method]:
    if isinstance(asked, str | Method):
        return [asked]
    for one in asked if isinstance(asked, list | tuple) else [asked]:
        if not isinstance(one, str | Method):
            message = f"compress {one!r:.200} is no method; give METHOD or METHOD:SHARE, such as divprune:0.25"
            raise ValueError(message)
    return asked


def load_methods(asked: AskedMethods) -> tuple[Method, ...]:
    """`read_methods` for who may read this machine's files: a method may be FOLDER or FOLDER:SHARE, too, where
    recipes/train_compressor.py wrote one. A folder of a method's name is meant by a path: ./fit.

    Raises ValueError, in one line, for a folder that is missing or holds no trained compressor.
    """
    methods: list[Method] = []
    for one in _list_asked(asked):
        parts = one.split(",") if isinstance(one, str) and not _names_folder(one) else [one]
        for part in parts:
            text = part.strip() if isinstance(part, str) else ""
            methods += [_load_folder(text)] if _names_folder(text) else read_methods([part])
    return tuple(methods)


def _names_folder(text: str) -> bool:
    name = text.rpartition(":")[0] or text
    if text in METHODS or name in METHODS:
        return False
    return any(os.path.isdir(each) or (os.sep in each and "," not in each) for each in (text, name) if each)


def _load_folder(text: str) -> Method:
    name, mark, share = text.rpartition(":")
    whole = not mark or os.path.isdir(text)
    folder = Path(text if whole else name)
    if not os.path.isdir(folder):
        raise ValueError(f"compress {text[:200]!r}: no such folder; name one that recipes/train_compressor.py wrote")
    return load_compressor(folder, None if whole else _read_share(text, share))


def _read_method(text: str) -> Method:
    name, mark, share = text.partition(":")
    method = make_method(name, **({"keep": _read_share(text, share)} if mark else {}))
    if method.is_learned:
        raise ValueError(
            f"{name} is learned and has no weights of its own; give what recipes/train_compressor.py wrote: --compress "
            f"FOLDER on the command line, compress=load_compressor(FOLDER) in Python"
        )
    return method


def _read_share(text: str, share: str) -> float:
    try:
        return float(share)
    except ValueError:
        message = f"compress {text[:60]!r}: {share[:40]!r} is no share; give METHOD:SHARE, such as divprune:0.25"
        raise ValueError(message) from None


def check_methods(model: LoadedModel, asked: AskedMethods) -> tuple[Method, ...]:
    """The methods that are asked for, if this model can be read under them. Raises ValueError, in one line."""
    methods = read_methods(asked)
    if methods and not model.vocabulary.positions.is_flat:
        raise ValueError("compress follows single codes and this model reads the sum of several; leave it out")
    if methods and model.engine.narrowed is not None:
        raise ValueError(f"compress is not read with {model.engine.narrowed}; leave it out, or load the model without")
    for method in methods:
        if isinstance(method, LearnedMethod) and method.width is not None:
            compare_widths(method.width, int(model.engine.model.config.hidden_size))
    with open_methods(methods, model.engine):
        return methods


def describe_methods(methods: Sequence[Method]) -> str:
    """The methods as they are asked for: "divprune:0.25,snapkv:0.5"."""
    names = {kind: name for name, kind in METHODS.items()}
    return ",".join(f"{names.get(type(method), type(method).__name__)}:{method.keep:g}" for method in methods)


def identify_methods(methods: Sequence[Method]) -> str:
    """`describe_methods`, where a method with a trained part is told from others of its name by its settings' and its
    weights' hash: "tokenpacker:0.25@3fb1c2d4e5a6"."""
    return ",".join(describe_methods([method]) + _hash_part(method) for method in methods)


def _hash_part(method: Method) -> str:
    if not isinstance(method, LearnedMethod) or method.module is None:
        return ""
    settings = {spec.name: vars(method)[spec.name] for spec in fields(method) if spec.name != method.part}
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    for name, weight in sorted(method.module.state_dict().items()):
        digest.update(name.encode() + weight.detach().float().cpu().numpy().tobytes())
    return f"@{digest.hexdigest()[:12]}"


def describe_kept(methods: Sequence[Method], num_tokens: int, num_kept: int) -> str:
    """What compression left of a prompt, as a sentence."""
    names = describe_methods(methods)
    if num_kept < num_tokens:
        return f"compressed by {names}: {num_kept} of {num_tokens} tokens of the prompt are kept"
    if any(not method.shortens for method in methods):
        return f"compressed by {names}: all {num_tokens} tokens of the prompt are kept; those of media cost less"
    acts = {method.acts for method in methods if isinstance(method, CacheCompressor) and method.keep < 1}
    if acts and acts <= {"store", "evict"} and "store" in acts:
        return f"compressed by {names}: all {num_tokens} tokens of the prompt are kept; those of media in fewer bits"
    if acts - {"evict"}:
        return f"compressed by {names}: all {num_tokens} tokens of the prompt are kept; of media it attends to a share"
    return f"compressed by {names}: nothing to shorten in the prompt of {num_tokens} tokens"


def compress(model: LoadedModel, method: str, **settings: object) -> CompressionSession:
    """A context in which the model compresses what it reads by the method of a name.

    Raises ValueError as `make_method` does.
    """
    return make_method(method, **settings)(model)
