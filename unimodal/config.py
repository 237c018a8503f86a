"""Settings: pydantic models ⇄ YAML ⇄ `--set a.b=c`.

A recipe declares its settings as one `Config` class. A YAML file holds only what differs from the defaults, `--set`
changes single values on top of it, and the resolved settings are saved beside the weights:

    class Train(Config):
        steps: int = 1000
        optimizer: Optimizer = Optimizer(lr=3e-4)

    config = load_config(Train, Path("nano.yaml"), ["optimizer.lr=1e-4"])
    save_config(config, folder / "config.yaml")

A section given in part keeps the rest of its owner's defaults (`optimizer: {decay: 0.1}` keeps lr=3e-4), and an
unknown key is an error that suggests the nearest known one.
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import ClassVar, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from unimodal.files import describe_error, write_text_atomically


class Config(BaseModel):
    """Base of every settings class: frozen, unknown keys refused, numbers finite.

    A section may also be a plain pydantic model.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        coerce_numbers_to_str=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )
    #: settings of which one may be given: it takes the place of the others' defaults
    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = ()
    #: what other projects call a setting → where it is here, for the message about an unknown key
    called_elsewhere: ClassVar[Mapping[str, str]] = {}


class MayChange:
    """Marks a setting that decides nothing of what is learnt: `steps: Annotated[int, MAY_CHANGE] = 1000`.

    A run that is taken up again may be given another value for it; see `unimodal/training/identity.py`.
    """


MAY_CHANGE = MayChange()

ConfigT = TypeVar("ConfigT", bound=Config)


def load_config(cls: type[ConfigT], path: str | Path | None = None, overrides: Sequence[str] = ()) -> ConfigT:
    """Settings of `cls` from the YAML file at `path` (or none: the defaults), changed by overrides such as `a.b=c`.

    The value of an override is read as YAML (`lr=1e-4`, `sizes=[8, 8]`, `resume=true`, `name=null`).
    Raises ValueError, in one line that names the key and the fix, for a file that cannot be read, an unknown key, or a
    value of the wrong type.
    """
    values = {} if path is None else _read_yaml(Path(path))
    for override in overrides:
        apply_override(values, override)
    try:
        return cls.model_validate(_fill_from_defaults(cls, None, values))
    except ValidationError as error:
        sources = [str(path)] * (path is not None) + ["--set"] * bool(overrides)
        raise ValueError(f"{' with '.join(sources) or cls.__name__}: {_describe_problems(cls, error)}") from None


def save_config(config: Config, path: str | Path) -> None:
    """Write every resolved setting as YAML; `load_config(type(config), path)` gives an equal object back."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    write_text_atomically(path, text)


def _find_section(annotation: object) -> type[BaseModel] | None:
    """The settings class of a field that is a section: `C`, or `C | None`."""
    choices = [choice for choice in get_args(annotation) if choice is not type(None)] or [annotation]
    only = choices[0] if len(choices) == 1 else None
    return only if isinstance(only, type) and issubclass(only, BaseModel) else None


def _fill_from_defaults(
    cls: type[BaseModel], default: BaseModel | None, values: Mapping[str, object]
) -> dict[str, object]:
    """`values`, and the fields of `default` that they leave out; the same within each section."""
    filled = {} if default is None else {name: getattr(default, name) for name in type(default).model_fields}
    for group in cls.exclusive if issubclass(cls, Config) else ():
        if any(values.get(name) is not None for name in group):
            for name in group:
                filled.pop(name, None)
    for key, value in values.items():
        field = cls.model_fields.get(key)
        section = _find_section(field.annotation) if field is not None else None
        if field is not None and section is not None:
            if value is None and field.annotation is section:
                value = {}  # `optimizer:` with everything under it commented out
            if isinstance(value, Mapping):
                old = filled.get(key, field.get_default(call_default_factory=True))
                value = _fill_from_defaults(section, old if isinstance(old, section) else None, value)
        filled[key] = value
    return filled


def _list_paths(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of every field, sections included."""
    for name, field in cls.model_fields.items():
        yield prefix + name
        section = _find_section(field.annotation)
        if section is not None and section is not cls:
            yield from _list_paths(section, f"{prefix}{name}.")


def _find_models(annotation: object) -> list[type[BaseModel]]:
    """Settings classes anywhere in an annotation, e.g. in `list[Source]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _find_models(argument)]


def _find_owner(cls: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel]:
    """The settings class that a pydantic error location such as ("sources", 0) lies in."""
    for part in location:
        field = cls.model_fields.get(part) if isinstance(part, str) else None
        cls = next(iter(_find_models(field.annotation)), cls) if field is not None else cls
    return cls


def _suggest_key(cls: type[BaseModel], key: str) -> str:
    """What an unknown key may have meant: "did you mean 'lr'?", or else the keys that there are."""
    elsewhere = cls.called_elsewhere.get(key) if issubclass(cls, Config) else None
    if elsewhere is not None:
        return f"it is {elsewhere} here"
    near = difflib.get_close_matches(key, cls.model_fields, n=1)
    if not near:  # the right name in the wrong place: `lr` for `optimizer.lr`
        lasts = {path.rpartition(".")[2]: path for path in reversed(list(_list_paths(cls)))}
        near = [lasts[name] for name in difflib.get_close_matches(key, lasts, n=1)]
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(cls.model_fields) or 'none'}"


def _describe_problems(cls: type[BaseModel], error: ValidationError) -> str:
    """All that pydantic found wrong, in one line, with the dotted name of each setting."""
    parts = []
    items = error.errors(include_url=False)
    for item in items:
        *location, last = item["loc"] or ("",)
        if item["type"] == "too_short" and any(other["loc"][:-1][: len(item["loc"])] == item["loc"] for other in items):
            continue  # its own items are what is wrong
        where = ".".join(str(part) for part in item["loc"] if "[" not in str(part))  # without the choices of a union
        if item["type"] == "extra_forbidden":
            parts.append(f"unknown key {where!r}; {_suggest_key(_find_owner(cls, location), str(last))}")
        elif item["type"] == "missing":
            parts.append(f"{where} is not set and has no default")
        else:
            value = "" if isinstance(item["input"], (Mapping, BaseModel)) else f"={item['input']!r}"  # not a section
            message = str(item["msg"]).removeprefix("Value error, ")
            if item["type"] in ("tuple_type", "list_type") and isinstance(item["input"], str):
                message = f"give a list: [{item['input']}]"
            parts.append(f"{where}{value}: {message}" if where else message)
    return "; ".join(" ".join(part.split()) for part in parts)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys in silence; a settings file with two is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is given twice")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


def _parse_yaml(text: str, source: str) -> object:
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not valid YAML: {describe_error(error)}") from None


def _read_yaml(path: Path) -> dict[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"the settings file {path} cannot be read: {reason}") from None
    values = _parse_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}; settings are lines of the form 'key: value'")
    return values


def apply_override(values: dict[str, object], override: str) -> None:
    """Put one `a.b=c` into the nested `values`; a number addresses an item of a list (`sources.0.weight=2`)."""
    key, equals, text = override.partition("=")
    *parents, last = key.strip().split(".")
    if not equals or not last or not all(parents):
        raise ValueError(f"--set {override!r} is not of the form KEY=VALUE, for example optimizer.lr=1e-4")
    section: object = values
    for depth, part in enumerate([*parents, last]):
        where, at_end = ".".join(parents[:depth]), depth == len(parents)
        if isinstance(section, list):
            if not part.isdigit() or int(part) >= len(section):
                raise ValueError(f"--set {override}: {where} is a list of {len(section)}; {part!r} is not in it")
            if at_end:
                section[int(part)] = _parse_yaml(text, f"the value of --set {override}")
            section = section[int(part)]
        elif isinstance(section, dict):
            if at_end:
                section[part] = _parse_yaml(text, f"the value of --set {override}")
            elif section.get(part) is None:
                section[part] = {}
            section = section[part]
        else:
            raise ValueError(f"--set {override}: {where} is {section!r}, not a section with keys")


# ---- settings of dataclasses


def check_settings(label: str, owner: type, settings: Mapping[str, object]) -> None:
    """Raises ValueError, which begins with the label, for settings that are no fields of a dataclass or not of their
    kind."""
    kinds = get_type_hints(owner)
    names = [spec.name for spec in fields(owner) if spec.repr]  # type: ignore[arg-type]  # a dataclass
    for name, value in settings.items():
        if name not in kinds:
            raise ValueError(f"{label}: there is no setting {name!r}; choose from {', '.join(names)}")
        check_kind(f"{label}: {name}", value, kinds[name])


def check_kind(name: str, value: object, kind: object) -> None:
    """Raises ValueError, naming the place in a row, for a value that is not of a kind: a number, True or False, a row
    or a mapping. Other kinds pass."""
    allowed = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if value is None and NoneType in allowed:
        return
    kind = allowed[0]
    if kind is bool and not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; give True or False")
    if kind is int and (not isinstance(value, int) or isinstance(value, bool)):
        raise ValueError(f"{name} is {value!r}; give a whole number")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and not (is_number and math.isfinite(value)):  # type: ignore[arg-type]  # a number
        raise ValueError(f"{name} is {value!r}; give a finite number")
    if get_origin(kind) is Mapping and not isinstance(value, Mapping):
        raise ValueError(f"{name} is {value!r}; give a mapping")
    if get_origin(kind) in (tuple, Sequence):
        each = get_args(kind) if get_origin(kind) is tuple else (*get_args(kind), ...)
        _check_row(name, value, each)


def _check_row(name: str, value: object, kinds: tuple[object, ...]) -> None:
    """kinds: of the places, or of all of them where the second is an ellipsis."""
    if not isinstance(value, tuple | list):
        raise ValueError(f"{name} is {value!r}; give several in brackets, {name}=(…, …)")
    each = kinds[:1] * len(value) if kinds[-1] is ... else kinds
    if len(value) != len(each):
        raise ValueError(f"{name} is {value!r}; give {len(each)} values")
    for place, (one, kind) in enumerate(zip(value, each, strict=True)):
        check_kind(f"{name}[{place}]", one, kind)
