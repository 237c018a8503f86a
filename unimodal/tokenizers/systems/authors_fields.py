"""The fields of a config as authors wrote it: read by name and kind, with a message that names what does not fit."""

from __future__ import annotations

from collections.abc import Mapping


class AuthorsFields:
    """A mapping of JSON or YAML. Every `take_…` gives the default where the field is missing or null, and raises
    ValueError for a value of another kind."""

    def __init__(self, fields: Mapping[str, object], place: str = ""):
        self.fields, self.place = fields, place

    def has(self, name: str) -> bool:
        """Whether the field is there, null or not."""
        return name in self.fields

    def open(self, *path: str) -> AuthorsFields:
        """The mapping behind a path of names; a name that is not there is passed over."""
        fields, place = self.fields, self.place
        for name in path:
            inner = fields.get(name)
            if isinstance(inner, Mapping):
                fields, place = inner, f"{place}{name}."
        return AuthorsFields(fields, place)

    def take_integer(self, name: str, default: int) -> int:
        value = self._find(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._refuse(name, value, "a whole number")
        return value

    def take_number(self, name: str, default: float) -> float:
        value = self._find(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._refuse(name, value, "a number")
        return float(value)

    def take_flag(self, name: str, default: bool) -> bool:
        value = self._find(name, default)
        if not isinstance(value, bool):
            raise self._refuse(name, value, "true or false")
        return value

    def take_text(self, name: str, default: str) -> str:
        value = self._find(name, default)
        if not isinstance(value, str):
            raise self._refuse(name, value, "a text")
        return value

    def take_integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self._find(name, default)
        if not isinstance(value, list | tuple) or any(isinstance(v, bool) or not isinstance(v, int) for v in value):
            raise self._refuse(name, value, "a list of whole numbers")
        return tuple(value)

    def _find(self, name: str, default: object) -> object:
        value = self.fields.get(name)
        return default if value is None else value

    def _refuse(self, name: str, value: object, wanted: str) -> ValueError:
        return ValueError(f"the authors' config has {self.place}{name} {value!r} where {wanted} belongs")
