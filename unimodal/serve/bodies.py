"""The bodies of requests: a class for each endpoint, with the fields that are honoured.

`fields.py` says what becomes of the other fields of OpenAI; unknown ones are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from unimodal.media.registry import find_medium
from unimodal.pipeline.settings import AnswerSettings
from unimodal.serve import fields
from unimodal.serve.protocol import MOST_CHARACTERS, ApiError, draw_seed

MOST_CHOICES = 128  # of one chat request, as OpenAI's
MOST_PIXELS_A_SIDE = 4096  # that a picture is resized to
MOST_METHODS = 4  # of compression, of one request


def _check_methods(asked: str | list[str] | None) -> str | list[str] | None:
    num = len([part for one in ([asked] if isinstance(asked, str) else asked or []) for part in one.split(",")])
    if num > MOST_METHODS:
        raise ValueError(f"{num} methods in one request; give at most {MOST_METHODS}")
    return asked


#: methods of compression; an empty list turns the server's own off
Compress = Annotated[str | list[str] | None, Field(max_length=MOST_CHARACTERS), AfterValidator(_check_methods)]


class ApiRequest(BaseModel):
    """The body of a request; `check_extra` of each class decides about further fields."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    refused: ClassVar[fields.Refusals] = {}
    without_effect: ClassVar[frozenset[str]] = frozenset()
    model: str | None = None

    def check_extra(self) -> None:
        """Raises ApiError 400 for a field that is not honoured."""
        fields.check_fields(self.model_extra or {}, self.refused, self.without_effect, tuple(type(self).model_fields))


# ---- chat


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow")
    include_usage: bool = False


class AudioOptions(BaseModel):
    model_config = ConfigDict(extra="allow")
    voice: str | dict[str, object] | None = None
    format: Literal["wav", "mp3", "flac", "opus", "pcm16"] | None = None


Parts = list[dict[str, object]]


class ChatMessage(BaseModel):
    """One turn of a conversation; `messages.py` reads its parts.

    An answer may be sent back as it came: `content_parts` holds all of it in order, `images` its pictures, `audio` its
    sound.
    """

    model_config = ConfigDict(extra="allow")
    role: str
    content: str | Parts | None = None
    refusal: str | None = None
    audio: dict[str, object] | None = None
    content_parts: Parts | None = None
    images: Parts | None = None

    @property
    def parts(self) -> Parts:
        """Its parts in order, `audio` aside."""
        if self.content_parts:
            return self.content_parts
        content = self.content if self.content is not None else self.refusal
        if content is None:
            content = []
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        return [*parts, *(self.images or [])]


class ChatRequest(ApiRequest):
    refused: ClassVar[fields.Refusals] = fields.CHAT
    without_effect: ClassVar[frozenset[str]] = fields.CHAT_WITHOUT_EFFECT
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    modalities: list[str] | None = None
    audio: AudioOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    seed: int | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: list[str] = []
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stream_partial: bool = False
    guidance: float | None = Field(default=None, ge=0, le=100)
    negative: str | None = Field(default=None, max_length=MOST_CHARACTERS)
    compress: Compress = None

    @field_validator("stop", mode="before")
    @classmethod
    def _list_stop(cls, stop: object) -> object:
        return [] if stop is None else [stop] if isinstance(stop, str) else stop

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stop: list[str]) -> list[str]:
        if len(stop) > 4 or not all(0 < len(text) <= 1000 for text in stop):
            raise ValueError("give at most 4 texts of 1 to 1000 characters")
        return stop

    def check_extra(self) -> None:
        super().check_extra()
        for name, options in (("audio", self.audio), ("stream_options", self.stream_options)):
            if options is not None:
                known = tuple(type(options).model_fields)
                fields.check_fields(options.model_extra or {}, {}, fields.OPTIONS_WITHOUT_EFFECT, known, f"{name}.")

    @property
    def tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def make_settings(self, media: Sequence[str]) -> AnswerSettings:
        """The settings of the first choice, for a model of these media; each further choice has the next seed.

        Temperature, top_p and top_k apply to all that the answer may hold, words included. `max_tokens` does not count
        the end of an answer in words, and is lowered to what fits behind the prompt. Raises ApiError for modalities
        that cannot be answered.
        """
        to, allow = self._read_modalities(media)
        words = self.tokens if to in (None, "text") else None
        return AnswerSettings(
            to=to,
            allow=allow,
            seed=draw_seed(self.seed),
            guidance=self.guidance,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            tokens=self.tokens if words is None else words + 1,
            text_tokens=words,
            shorten=True,
            negative=self.negative,
        )

    def _read_modalities(self, media: Sequence[str]) -> tuple[str | None, tuple[str, ...] | None]:
        """(the medium that the answer must hold or "text", what it may hold): one of the two is None."""
        if self.modalities is None:
            return "text", None
        known = ("text", *media)
        unknown = [name for name in self.modalities if name not in known]
        if unknown or not self.modalities:
            wrong = unknown or self.modalities
            message = f"modalities {wrong} cannot be answered; this model writes {', '.join(known)}"
            raise ApiError(400, message, "unsupported_modality", "modalities")
        names = tuple(name for name in known if name in self.modalities)
        if len(names) == 1:
            return names[0], None
        if names == ("text", "audio"):  # OpenAI's way to ask for speech
            return "audio", None
        return None, names


class AttributionRequest(ApiRequest):
    """A conversation whose last message is the answer that is looked into."""

    messages: list[ChatMessage] = Field(min_length=2, max_length=1000)


class ResponseRequest(ApiRequest):
    """A request for `/v1/responses`: the fields that a chat request has under other names."""

    refused: ClassVar[fields.Refusals] = fields.RESPONSE
    without_effect: ClassVar[frozenset[str]] = fields.RESPONSE_WITHOUT_EFFECT
    input: str | list[dict[str, object]]
    instructions: str | None = Field(default=None, max_length=MOST_CHARACTERS)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_output_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = None
    stream: bool | None = False
    compress: Compress = None


# ---- media


class ImageRequest(ApiRequest):
    refused: ClassVar[fields.Refusals] = fields.IMAGE
    without_effect: ClassVar[frozenset[str]] = fields.IMAGE_WITHOUT_EFFECT
    prompt: str = Field(min_length=1, max_length=MOST_CHARACTERS)
    n: int | None = Field(default=1, ge=1, le=10)
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] | None = "png"
    output_compression: int | None = Field(default=None, ge=0, le=100)
    seed: int | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    guidance: float | None = Field(default=None, ge=0, le=100)
    negative: str | None = Field(default=None, max_length=MOST_CHARACTERS)

    @property
    def width_and_height(self) -> tuple[int, int] | None:
        """The wanted size; None for the model's own. Raises ApiError 400 for anything that is no size."""
        if self.size in (None, "", "auto"):
            return None
        found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", str(self.size))
        sides = None if found is None else (int(found[1]), int(found[2]))
        if sides is None or max(sides) > MOST_PIXELS_A_SIDE:
            most = f"{MOST_PIXELS_A_SIDE}x{MOST_PIXELS_A_SIDE}"
            message = f"size {str(self.size)[:20]!r} cannot be made; give auto or WIDTHxHEIGHT up to {most}"
            raise ApiError(400, message, "invalid_value", "size")
        return sides

    def make_settings(self) -> AnswerSettings:
        """The settings of the first picture; each further one has the next seed."""
        return AnswerSettings(
            to="image",
            seed=draw_seed(self.seed),
            guidance=self.guidance,
            temperature=self.temperature,
            negative=self.negative,
        )


class SpeechRequest(ApiRequest):
    refused: ClassVar[fields.Refusals] = fields.SPEECH
    without_effect: ClassVar[frozenset[str]] = fields.SPEECH_WITHOUT_EFFECT
    input: str = Field(min_length=1, max_length=MOST_CHARACTERS)
    voice: str | dict[str, object] | None = None
    response_format: Literal["mp3", "wav", "flac", "opus", "ogg", "pcm"] | None = "mp3"
    seed: int | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    guidance: float | None = Field(default=None, ge=0, le=100)

    def make_settings(self) -> AnswerSettings:
        return AnswerSettings(
            to="audio", seed=draw_seed(self.seed), guidance=self.guidance, temperature=self.temperature
        )


class FilePart(BaseModel):
    """The part of a sound or film to take."""

    start: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class TranscriptionRequest(ApiRequest, FilePart):
    """The fields beside the file."""

    refused: ClassVar[fields.Refusals] = fields.TRANSCRIPTION
    without_effect: ClassVar[frozenset[str]] = fields.TRANSCRIPTION_WITHOUT_EFFECT
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"
    temperature: float | None = Field(default=None, ge=0, le=2)


class TokenizeRequest(ApiRequest, FilePart):
    url: str


class TokenizeForm(ApiRequest, FilePart):
    """The fields beside the file."""


class DetokenizeRequest(ApiRequest):
    modality: str
    codes: list[int] = Field(min_length=1, max_length=1_000_000)
    prefix: int | None = Field(default=None, ge=1)

    @field_validator("modality")
    @classmethod
    def _check_modality(cls, modality: str) -> str:
        return find_medium(modality).name


RequestT = TypeVar("RequestT", bound=ApiRequest)


def parse(kind: type[RequestT], body: bytes, content_type: str | None) -> RequestT:
    """A JSON body as a request.

    Raises ApiError 415 for another content type, which any web page may send without asking, and 400, naming the field,
    for an invalid request.
    """
    given = (content_type or "").partition(";")[0].strip().lower()
    if given != "application/json" and not (given.startswith("application/") and given.endswith("+json")):
        message = f"the body must be sent with Content-Type: application/json; got {given[:60] or 'none'}"
        if given == "application/x-www-form-urlencoded":
            message += " (curl: add -H 'Content-Type: application/json')"
        raise ApiError(415, message, "unsupported_media")
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        raise describe_invalid(error) from None
    request.check_extra()
    return request


def parse_form(kind: type[RequestT], form: Mapping[str, object]) -> RequestT:
    """The fields of a form as a request, with `name[]` read as `name`. Raises ApiError 400, naming the field."""
    try:
        request = kind.model_validate({name.removesuffix("[]"): value for name, value in form.items()})
    except ValidationError as error:
        raise describe_invalid(error) from None
    request.check_extra()
    return request


def describe_invalid(error: ValidationError, where: str = "") -> ApiError:
    """The first fault of a body, as the client's mistake. where: the beginning of field names."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    loc = [at for at in first["loc"] if not (isinstance(at, str) and re.match(r"(str|list|dict)\b", at))]  # of unions
    param = where + "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in loc)
    param = param.lstrip(".")
    told = first["msg"].removeprefix("Value error, ")
    what = f"{param}: {told}" if param else told
    return ApiError(400, f"the request cannot be used: {what}", "invalid_value", param or None)
