"""The HTTP contract: what a request may say, what an answer looks like, and how a mistake is told.

    POST /v1/chat/completions        words and media in, words and media out; SSE with "stream": true
    POST /v1/images/generations      {"prompt", "n", "size", "response_format", "seed", "guidance", "negative"}
    POST /v1/audio/speech            {"input", "voice", "response_format": mp3 | wav | flac | opus | pcm} → a sound
    POST /v1/audio/transcriptions    multipart: file, model, response_format (json | text), temperature
    POST /v1/tokenize                {"url": "data:…"} → the codes
    POST /v1/detokenize              {"modality", "codes", "prefix"} → {"url": "data:…"}
    GET  /v1/models  /v1/models/ID   /v1/settings  /health  /metrics  /  /static/…

**Chat, in.** `messages` as OpenAI's: `content` is a string or a list of parts `{"type": "text", "text"}`,
`{"type": "image_url", "image_url": {"url"}}`, `{"type": "input_audio", "input_audio": {"data", "format"}}`,
`{"type": "audio_url", "audio_url": {"url"}}`, `{"type": "video_url", "video_url": {"url"}}`. URLs are data URLs;
http(s) ones only where the server was started for them. `modalities`: left out, the model puts media where it likes;
`["text"]` words only; one medium, or `["text", "audio"]`, and the answer holds it; otherwise the answer may hold what
is listed. `audio`: `{"voice", "format"}`. Also `temperature`, `top_p`, `seed`, `max_tokens` / `max_completion_tokens`,
`stop`, `n` (1), `stream`, `stream_options.include_usage`, and beyond OpenAI `guidance`, `negative`, `stream_partial`.
Without `seed`, every request draws another. What would be missed if ignored (tools, several choices, log-probabilities,
a schema) is refused; other fields are ignored, as OpenAI's servers ignore them.

**Chat, out.** `message.content` is a string where the answer is words, and a list of parts where it holds pictures or
clips: `{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}`, `{"type": "video_url", "video_url":
{"url": "data:video/mp4;base64,…"}}`. Sound is `message.audio = {"id", "data", "transcript", "expires_at"}`; a second
sound of one answer is a part `{"type": "audio_url", "audio_url": {"url"}}`. Nothing is stored: a sound that was
answered is sent again as an `input_audio` part, its `id` alone is refused.

**Chat, streamed.** `data: {chat.completion.chunk}` lines, then `data: [DONE]`. Words are `choices[0].delta.content`.
A finished medium is `choices[0].delta.content_parts = [part]`, with `image_url` and `video_url` parts as above and
sound as `{"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,…"}}`. With `"stream_partial": true`, and a
tokenizer whose codes are ordered, a picture on its way is `choices[0].delta.partial_image = {"index", "url"}`, where
`index` counts the pictures of the answer. A failure after the first chunk is `data: {"error": {…}}`.

**Left out.** What was left out of the files of a request (moments between the frames of a long film, a film's sound)
stands as sentences in `notes`: of a `chat.completion`, of every chunk of a streamed one, and of what tokenize answers.

**Tokenize.** `{"modality", "codes": [flat ints, all groups], "segments": [{"name", "start", "count", "grid": [t, h, w]
or null}], "ordered", "groups"}`; `start` and `count` are in code steps. **Detokenize** takes the same flat codes;
`prefix` decodes only the first so many, where the tokenizer is ordered.

**Mistakes.** `{"error": {"message", "type", "param", "code"}}` with 400 (a value), 401 (the key), 403 (a stranger's web
page, see `access.py`), 404 (a path or a model), 405, 408, 413 (size), 415 (what a file or a body is), 429 (busy, with
Retry-After), 500, 503 (shutting down) or 504.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Literal, NotRequired, TypedDict, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from unimodal.media.registry import find_medium
from unimodal.pipeline.requests import AnswerSettings

#: of OpenAI's voices: they stand for the model's own, since clients must name one
COMMON_VOICES = frozenset(
    ("alloy", "ash", "ballad", "cedar", "coral", "default", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer",
     "verse")
)  # fmt: skip
MOST_CHARACTERS = 100_000  # of one text
SEED_BITS = 32  # of a seed that is drawn

# ---- mistakes


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    error: ErrorDetail


class ApiError(Exception):
    """A mistake with its HTTP status, told as OpenAI's servers tell it."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def body(self) -> ErrorBody:
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 504: "timeout_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message = " ".join(self.message.split())
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


# ---- requests


class ApiRequest(BaseModel):
    """The body of a request. Fields that it does not know are ignored."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())
    model: str | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class AudioOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    voice: str | dict[str, object] | None = None
    format: Literal["wav", "mp3", "flac", "opus", "pcm16"] = "wav"


class ChatMessage(BaseModel):
    """One turn of a conversation; `chat.py` reads its parts."""

    model_config = ConfigDict(extra="ignore")
    role: str
    content: str | list[dict[str, object]] | None = None
    audio: dict[str, object] | None = None  # an earlier answer by its id

    @property
    def parts(self) -> list[dict[str, object]]:
        if self.content is None:
            return []
        return [{"type": "text", "text": self.content}] if isinstance(self.content, str) else self.content


class ChatRequest(ApiRequest):
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    modalities: list[str] | None = None
    audio: AudioOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: list[str] = []
    n: int | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stream_partial: bool = False
    guidance: float | None = Field(default=None, ge=0, le=100)
    negative: str | None = Field(default=None, max_length=MOST_CHARACTERS)
    tools: list[object] | None = None
    functions: list[object] | None = None
    logprobs: bool | None = None
    response_format: dict[str, object] | None = None

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

    @property
    def tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def check(self) -> None:
        """Raises ApiError for what this server cannot do."""
        kind = (self.response_format or {}).get("type", "text")
        for param, asked, message in (
            (
                "n",
                self.n not in (None, 1),
                f"n is {self.n}; this endpoint gives one choice: ask again with another seed",
            ),
            ("tools", bool(self.tools or self.functions), "this model calls no tools; leave them out"),
            ("logprobs", bool(self.logprobs), "log-probabilities are not given; leave logprobs out"),
            ("response_format", kind != "text", f"response_format {kind!r} is not kept by this model; leave it out"),
        ):
            if asked:
                raise ApiError(400, message, "unsupported_value", param)

    def make_settings(self, media: Sequence[str], writable: Sequence[str]) -> AnswerSettings:
        """The settings of the answer, for a model of these media that can write those.

        Temperature and top_p are of all that the answer may hold, words included. `max_tokens` does not count the end
        of an answer in words, and what does not fit behind the prompt is taken off. Raises ApiError for modalities
        that cannot be answered.
        """
        to, allow = self._read_modalities(media)
        words = self.tokens if to in (None, "text") else None
        return AnswerSettings(
            to=to,
            allow=("text", *writable) if to is None and allow is None else allow,
            seed=draw_seed(self.seed),
            guidance=self.guidance,
            temperature=self.temperature,
            top_p=self.top_p,
            tokens=self.tokens if words is None else words + 1,
            text_tokens=words,
            shorten=True,
            negative=self.negative,
        )

    def _read_modalities(self, media: Sequence[str]) -> tuple[str | None, tuple[str, ...] | None]:
        """(the medium that the answer must hold or "text", what it may hold); both None: what the model likes."""
        if self.modalities is None:
            return None, None
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


class ImageRequest(ApiRequest):
    prompt: str = Field(min_length=1, max_length=MOST_CHARACTERS)
    n: int | None = Field(default=1, ge=1, le=10)
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] | None = "png"
    seed: int | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    guidance: float | None = Field(default=None, ge=0, le=100)
    negative: str | None = Field(default=None, max_length=MOST_CHARACTERS)
    stream: bool | None = False

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
    input: str = Field(min_length=1, max_length=4096)
    voice: str | dict[str, object] | None = None
    response_format: Literal["mp3", "wav", "flac", "opus", "ogg", "pcm"] = "mp3"
    speed: float = 1.0
    seed: int | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    guidance: float | None = Field(default=None, ge=0, le=100)

    def make_settings(self) -> AnswerSettings:
        return AnswerSettings(
            to="audio", seed=draw_seed(self.seed), guidance=self.guidance, temperature=self.temperature
        )


class TokenizeRequest(ApiRequest):
    url: str


class DetokenizeRequest(ApiRequest):
    modality: str
    codes: list[int] = Field(min_length=1, max_length=1_000_000)
    prefix: int | None = Field(default=None, ge=1)

    @field_validator("modality")
    @classmethod
    def _check_modality(cls, modality: str) -> str:
        return find_medium(modality).name


RequestT = TypeVar("RequestT", bound=BaseModel)


def parse(kind: type[RequestT], body: bytes, content_type: str | None) -> RequestT:
    """A JSON body as a request. Raises ApiError 415 for another content type, which any web page may send without
    asking, and 400, naming the field, for what is no such request."""
    given = (content_type or "").partition(";")[0].strip().lower()
    if given != "application/json" and not (given.startswith("application/") and given.endswith("+json")):
        message = f"the body must be sent with Content-Type: application/json; got {given[:60] or 'none'}"
        if given == "application/x-www-form-urlencoded":
            message += " (curl: add -H 'Content-Type: application/json')"
        raise ApiError(415, message, "unsupported_media")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in first["loc"]).lstrip(".")
        what = f"{param}: {first['msg']}" if param else first["msg"]
        raise ApiError(400, f"the request cannot be used: {what}", "invalid_value", param or None) from None


def read_voice(voice: str | Mapping[str, object] | None) -> str | None:
    """The voice that is asked for; None for the model's own. Raises ApiError for what is no name."""
    name = voice if voice is None or isinstance(voice, str) else voice.get("id")
    if name is None or (isinstance(name, str) and name.lower() in COMMON_VOICES):
        return None
    if not isinstance(name, str) or not 0 < len(name) <= 64 or not name.isprintable():
        raise ApiError(400, "voice must be a short name", "invalid_value", "voice")
    return name


def draw_seed(asked: int | None) -> int:
    """The seed that is asked for; another one for every request that asks for none."""
    return secrets.randbits(SEED_BITS) if asked is None else asked


# ---- answers

#: `{"type": "text", "text": …}` or `{"type": "image_url", "image_url": {"url": …}}`
ContentPart = dict[str, str | dict[str, str]]


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class SpokenAnswer(TypedDict):
    id: str
    data: str
    transcript: str
    expires_at: int


class AnswerMessage(TypedDict):
    role: Literal["assistant"]
    content: str | list[ContentPart] | None
    refusal: None
    audio: NotRequired[SpokenAnswer]


class PartialImage(TypedDict):
    index: int
    url: str


class Delta(TypedDict, total=False):
    """What is new in a chunk."""

    role: Literal["assistant"]
    content: str
    content_parts: list[ContentPart]
    partial_image: PartialImage


FinishReason = Literal["stop", "length"]


def count_usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def encode_event(data: Mapping[str, object]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
