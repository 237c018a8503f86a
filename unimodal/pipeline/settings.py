"""The settings of an answer, the same wherever a request comes from.

    settings = AnswerSettings(to="image", seed=1, temperature=0.9)

What each model makes of them is in `requests.py`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import TypedDict, Unpack

from unimodal.compression import Method
from unimodal.generation import DECODERS
from unimodal.generation.request import MOST_GUIDANCE
from unimodal.generation.search import SEARCHES
from unimodal.pipeline.compression import AskedMethods, read_methods

PLAIN = "plain"  # the decoder that writes token by token

#: settings of a search by name: `n`, `beams`, `expand`, `stages`
SearchSettings = Mapping[str, int | Sequence[int]]


class AnswerChanges(TypedDict, total=False):
    """The fields of `AnswerSettings` as keywords: `model.generate("a red apple", to="image", seed=1)`."""

    to: str | None
    allow: Sequence[str] | None
    seed: int
    guidance: float | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    tokens: int | None
    text_tokens: int | None
    shorten: bool
    negative: str | None
    guidance_interval: tuple[int, int] | None
    decoder: str | None
    voice: str | Path | None
    search: str | None
    search_settings: SearchSettings | None
    compress: AskedMethods | None


#: setting → kind of number, least, most, and what to do about any other number
NUMBERS: dict[str, tuple[type, float, float, str]] = {
    "seed": (Integral, -math.inf, math.inf, "give a whole number"),
    "guidance": (Real, 0, MOST_GUIDANCE, f"give a number from 0 to {MOST_GUIDANCE:,.0f}"),
    "temperature": (Real, 0, math.inf, "give a number from 0 on"),
    "top_k": (Integral, 0, math.inf, "give a whole number from 0 on, which keeps all"),
    "top_p": (Real, math.ulp(0.0), 1, "give a share above 0 and up to 1, which keeps all"),
    "tokens": (Integral, 1, math.inf, "give a whole number from 1 on"),
    "text_tokens": (Integral, 1, math.inf, "give a whole number from 1 on"),
}


def _is_number(value: object, kind: type, least: float, most: float) -> bool:
    if not isinstance(value, kind) or isinstance(value, bool):
        return False
    return least <= value < math.inf and value <= most  # type: ignore[operator]  # kind is Real or Integral


def _check_choice(name: str, value: str | None, choices: Sequence[str]) -> None:
    if value is not None and value not in choices:
        raise ValueError(f"{name} {value!r} is unknown; choose {', '.join(choices)}, or none")


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How an answer is to be written; None leaves a setting to the model. Raises ValueError, in one line, for what no
    model could follow. What one model cannot follow is refused by `prepare`.

    to: the medium that the answer must hold, "text" for words only, None for what the model chooses.
    allow: without `to`, what the answer may hold, of "text" and the media; None for all that the model writes.
    seed: of the random choices; the same request with the same seed has the same answer, alone or beside any others.
    guidance: how far media move away from `negative`, or from an empty prompt; 1 turns it off.
    temperature, top_k, top_p: of the medium in `to`, of all in `allow`, or of all media if neither is given.
        Temperature 0 takes the likeliest token; top_k keeps that many candidates (0: all), top_p the likeliest ones
        whose probabilities reach this share.
    tokens: the most new tokens, the one that ends the answer included; for speech, of each utterance.
    text_tokens: the most tokens of words, the one that ends the answer not counted; None is 96.
    shorten: if `tokens` do not fit behind the prompt, write as many as do; without it, that is an error.
    negative: words for what media should not look like; needs a guidance other than 1.
    guidance_interval: guide only the code steps [first, last) of a span.
    decoder: a fast decoder by name (`unimodal.generation.DECODERS`). "plain" writes token by token, also transcripts
        and speech, which a model with a second reading of speech otherwise chooses by it (`speech_reading.py`).
    voice: who speaks, by name, or the path of a clip of the voice (`voices.py`). A name is put into the words of a
        request, so `generate` takes it and a document does not.
    search: "best-of-n", "beam" or "lookahead" writes several media and gives the one that the model itself would most
        likely call by the words of the request. search_settings: the search's own (`n`, `beams`, `expand`, `stages`).
    compress: methods by which what is read is shortened (`unimodal.compression`): "divprune:0.25" keeps a quarter of
        every medium's tokens, "divprune:0.5,snapkv:0.5" shortens the cache, too; or methods that are made. Such an
        answer is written token by token, by the model's own forward.
    """

    to: str | None = None
    allow: Sequence[str] | None = None
    seed: int = 0
    guidance: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    tokens: int | None = None
    text_tokens: int | None = None
    shorten: bool = False
    negative: str | None = None
    guidance_interval: tuple[int, int] | None = None
    decoder: str | None = None
    voice: str | Path | None = None
    search: str | None = None
    search_settings: SearchSettings | None = field(default=None, hash=False)
    compress: AskedMethods | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        for name, (kind, least, most, fix) in NUMBERS.items():
            value = getattr(self, name)
            if (value is not None or name == "seed") and not _is_number(value, kind, least, most):
                raise ValueError(f"{name} {value!r} is not usable; {fix}")
        object.__setattr__(self, "seed", int(self.seed))
        self._check_allow()
        self._check_interval()
        _check_choice("decoder", self.decoder, (*DECODERS, PLAIN))
        _check_choice("search", self.search, tuple(SEARCHES))
        if not isinstance(self.search_settings, Mapping | None):
            raise ValueError(f"search_settings {self.search_settings!r} is not usable; give a mapping")
        if self.search is None and self.search_settings:
            named = ", ".join(self.search_settings)
            raise ValueError(f"search_settings {named} need a search; choose {', '.join(SEARCHES)}")
        if self.search is not None and self.to == "text":
            raise ValueError("search chooses between media; leave it out for text")
        self._check_compress()

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods of `compress`; none where nothing is compressed."""
        return () if self.compress is None else read_methods(self.compress)

    def replace(self, **changes: Unpack[AnswerChanges]) -> AnswerSettings:
        """These settings with some changed. Raises ValueError for an unknown name, with the nearest known one."""
        for name in changes:
            if name not in FIELDS:
                near = difflib.get_close_matches(name, FIELDS, n=1)
                hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(FIELDS)}"
                raise ValueError(f"there is no setting {name!r} of an answer; {hint}")
        return dataclasses.replace(self, **changes) if changes else self

    def _check_allow(self) -> None:
        if self.allow is None:
            return
        if isinstance(self.allow, str) or not self.allow:
            raise ValueError(f"allow {self.allow!r} is not usable; list what may be in an answer: ('text', 'image')")
        if self.to is not None:
            raise ValueError(f"to {self.to!r} says what the answer must hold and allow what it may; leave one out")
        object.__setattr__(self, "allow", tuple(self.allow))

    def _check_compress(self) -> None:
        if self.compress is None:
            return
        object.__setattr__(self, "compress", read_methods(self.compress) or None)
        for name, value in (("search", self.search), ("decoder", None if self.decoder == PLAIN else self.decoder)):
            if value is not None and self.compress is not None:
                raise ValueError(
                    f"{name} {value!r} needs the whole prompt, which compress shortens; leave one of them out"
                )

    def _check_interval(self) -> None:
        interval = self.guidance_interval
        if interval is None:
            return
        whole = isinstance(interval, Sequence) and all(isinstance(step, Integral) for step in interval)
        if not whole or len(interval) != 2 or not 0 <= interval[0] < interval[1]:
            raise ValueError(f"guidance_interval {interval!r} is not usable; give two steps, first < last, from 0 on")


MODELS_OWN = AnswerSettings()  # where a request says nothing
FIELDS = tuple(one.name for one in dataclasses.fields(AnswerSettings))
