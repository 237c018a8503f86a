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

**Tokenize.** `{"modality", "codes": [flat ints, all groups], "segments": [{"name", "start", "count", "grid": [t, h, w]
or null}], "ordered", "groups"}`; `start` and `count` are in code steps. **Detokenize** takes the same flat codes;
`prefix` decodes only the first so many, where the tokenizer is ordered.

**Mistakes.** `{"error": {"message", "type", "param", "code"}}` with 400 (a value), 401 (the key), 404 (a path or a
model), 405, 408, 413 (size), 415 (what a file is), 429 (busy, with Retry-After), 500, 503 (shutting down) or 504.
"""

from __future__ import annotations

import json
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

#: of OpenAI's voices: they stand for the model's own, since clients must name one
COMMON_VOICES = frozenset(
    ("alloy", "ash", "ballad", "cedar", "coral", "default", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer",
     "verse")
)  # fmt: skip
MOST_CHARACTERS = 100_000  # of one text


class ApiError(Exception):
    """A mistake with its status, told as OpenAI tells it."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers or {}

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 429: "rate_limit_error", 504: "timeout_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message = " ".join(self.message.split())
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())
    model: str | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class AudioOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    voice: str | dict[str, Any] | None = None
    format: Literal["wav", "mp3", "flac", "opus", "pcm16"] = "wav"


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore")
    role: str
    content: str | list[dict[str, Any]] | None = None
    audio: dict[str, Any] | None = None  # an earlier answer by its id


class ChatRequest(_Request):
    messages: list[Message] = Field(min_length=1, max_length=1000)
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
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    logprobs: bool | None = None
    response_format: dict[str, Any] | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, stop: Any) -> Any:
        return [] if stop is None else [stop] if isinstance(stop, str) else stop

    @field_validator("stop")
    @classmethod
    def _few(cls, stop: list[str]) -> list[str]:
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


class ImageRequest(_Request):
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


class SpeechRequest(_Request):
    input: str = Field(min_length=1, max_length=4096)
    voice: str | dict[str, Any] | None = None
    response_format: Literal["mp3", "wav", "flac", "opus", "ogg", "pcm"] = "mp3"
    speed: float = 1.0
    seed: int | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    guidance: float | None = Field(default=None, ge=0, le=100)


class TokenizeRequest(_Request):
    url: str


class DetokenizeRequest(_Request):
    modality: Literal["image", "audio", "video"]
    codes: list[int] = Field(min_length=1, max_length=1_000_000)
    prefix: int | None = Field(default=None, ge=1)


RequestT = TypeVar("RequestT", bound=BaseModel)


def parse(kind: type[RequestT], body: bytes) -> RequestT:
    """A JSON body as a request; ApiError 400, naming the field, for one that is not."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in first["loc"]).lstrip(".")
        what = f"{param}: {first['msg']}" if param else first["msg"]
        raise ApiError(400, f"the request cannot be used: {what}", "invalid_value", param or None) from None


def voice_name(voice: str | dict[str, Any] | None) -> str | None:
    """The voice that is asked for; None for the model's own."""
    name = voice.get("id") if isinstance(voice, dict) else voice
    if name is None or (isinstance(name, str) and name.lower() in COMMON_VOICES):
        return None
    if not isinstance(name, str) or not 0 < len(name) <= 64 or not name.isprintable():
        raise ApiError(400, "voice must be a short name", "invalid_value", "voice")
    return name


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
