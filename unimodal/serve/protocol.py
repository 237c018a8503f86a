"""The HTTP contract: what an answer looks like, and how a mistake is told. The requests are in `bodies.py`.

    POST /v1/chat/completions        words and media in, words and media out; SSE with "stream": true
    POST /v1/responses               the same for words out, in the form of OpenAI's newer endpoint
    POST /v1/images/generations      {"prompt", "n", "size", "response_format", "seed", "guidance", "negative"}
    POST /v1/audio/speech            {"input", "voice", "response_format": mp3 | wav | flac | opus | pcm} → a sound
    POST /v1/audio/transcriptions    multipart: file, model, response_format (json | text | verbose_json | srt | vtt)
    POST /v1/tokenize                {"url": "data:…"}, or multipart: file → the codes
    POST /v1/detokenize              {"modality", "codes", "prefix"} → {"url": "data:…"}
    POST /v1/attributions            {"messages": […, answer]} → {"media": [{"message", "modality", "share", "url"}]}
    GET  /v1/models  /v1/models/ID   /v1/settings  /health  /metrics  /  /static/…

**Chat, in.** `messages` as OpenAI's: `content` is a string or a list of parts `{"type": "text", "text"}`,
`{"type": "image_url", "image_url": {"url"}}`, `{"type": "input_audio", "input_audio": {"data", "format"}}`,
`{"type": "audio_url", "audio_url": {"url"}}`, `{"type": "video_url", "video_url": {"url"}}`. URLs are data URLs;
http(s) ones only where the server was started for them. Of a sound or film `start` and `seconds`, beside `url` or
`data`, take a part. The last message may be anybody's: a system's alone is answered like a user's, and behind an
assistant's another answer is written. An answer is sent back as it came.

`modalities`: left out, the answer is words; one medium, or `["text", "audio"]`, and the answer holds it; otherwise it
may hold what is listed. `audio`: `{"voice", "format"}`. Also `temperature`, `top_p`, `seed`, `max_tokens` /
`max_completion_tokens`, `stop`, `n`, `stream`, `stream_options.include_usage`, and beyond OpenAI `top_k`, `guidance`,
`negative`, `stream_partial`, `compress`. Without `seed`, every request draws another.

Any other field of OpenAI's is without effect on an answer (`user`, `metadata`, `store`, …) or refused with 400 and its
name: `fields.py` has the list. Unknown fields are refused, too.

**Chat, out.** `message.content` is a string, the words of the answer, or null where it is a sound. The first sound is
`message.audio = {"id", "data", "transcript", "expires_at"}`; its transcript are the words that were to be said, or else
what the model itself hears in it. Pictures, clips and further sounds stand with the words in their order in
`message.content_parts`: `{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}`, `{"type":
"video_url", "video_url": {"url": "data:video/mp4;base64,…"}}`, `{"type": "audio_url", …}`; pictures also in
`message.images`, where OpenRouter and litellm have them. Nothing is stored: a sound that was answered is sent again
with its `data`, its `id` alone is refused.

**Chat, streamed.** `data: {chat.completion.chunk}` lines, then `data: [DONE]`. Words are `choices[0].delta.content`.
The first sound is `delta.audio = {"id", "data", "transcript"}`, whole in one chunk in the `format` that is asked for,
and `delta.audio = {"expires_at"}`. Another finished medium is `delta.content_parts = [part]`, a picture also
`delta.images`. With `"stream_partial": true`, and a tokenizer whose codes are ordered, a picture on its way is
`delta.partial_image = {"index", "url"}`, where `index` counts the media of the answer. A failure after the first chunk
is `data: {"error": {…}}`.

**Notes.** What was left out of the files of a request (moments between the frames of a long film, a film's sound), how
many earlier messages the model was not shown, and what was done to an answer (a picture resized to `size`) stands as
sentences in `notes`: of a `chat.completion`, of every chunk of a streamed one, and of what the other endpoints answer
in JSON. Of transcriptions that are no JSON it stands in the header `X-Notes`.

**Compression.** Where the server lets requests choose (`--allow-compress`), `compress` is a method with the share of
the tokens of media that it keeps, `"divprune:0.25"`, or a list of up to four; `[]` turns the server's own off. What was
kept of the prompt stands in `notes` and in `usage.prompt_tokens_kept`.

**Tokenize.** `{"modality", "codes": [flat ints, all groups], "segments": [{"name", "start", "count", "grid": [t, h, w]
or null}], "ordered", "groups"}`; `start` and `count` are in code steps. **Detokenize** takes the same flat codes;
`prefix` decodes only the first so many, where the tokenizer is ordered.

**Mistakes.** `{"error": {"message", "type", "param", "code"}}` with 400 (a value), 401 (the key), 403 (a stranger's web
page, see `access.py`), 404 (a path or a model), 405, 408, 413 (size), 415 (what a file or a body is), 429 (busy, with
Retry-After), 500, 503 (shutting down) or 504. A prompt that is too long has the code `context_length_exceeded`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, NotRequired, TypedDict

from unimodal.pipeline.requests import PromptTooLongError, UnfitRequestError

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

    def make_body(self) -> ErrorBody:
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 504: "timeout_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message = " ".join(self.message.split())
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


@contextmanager
def name_fields(**names: str) -> Iterator[None]:
    """Tells what does not fit the model as a mistake in a field of the request. names: of the fields that are called
    otherwise than the settings of an answer; "prompt" is what is asked, and at fault where nothing else is named."""
    try:
        yield
    except UnfitRequestError as error:
        code = "context_length_exceeded" if isinstance(error, PromptTooLongError) else "invalid_value"
        raise ApiError(400, str(error), code, names.get(error.field, error.field)) from None
    except ValueError as error:
        if type(error) is not ValueError:  # a defect of ours
            raise
        raise ApiError(400, str(error), "invalid_value", names.get("prompt", "prompt")) from None


def read_voice(
    voice: str | Mapping[str, object] | None, known: tuple[str, ...] = (), param: str = "voice"
) -> str | None:
    """The voice that is asked for; None for the model's own. Raises ApiError for what is no name, and for one that is
    not among the known, where the model knows its voices."""
    name = voice if voice is None or isinstance(voice, str) else voice.get("id")
    if name is None or (isinstance(name, str) and name.lower() in COMMON_VOICES and name not in known):
        return None
    if not isinstance(name, str) or not 0 < len(name) <= 64 or not name.isprintable():
        raise ApiError(400, "voice must be a short name", "invalid_value", param)
    if known and name not in known:
        message = f"the voice {name[:40]!r} is unknown; this model speaks as {', '.join(known)}"
        raise ApiError(400, message, "invalid_value", param)
    return name


def draw_seed(asked: int | None) -> int:
    """The seed that is asked for; another one for every request that asks for none."""
    return secrets.randbits(SEED_BITS) if asked is None else asked


# ---- answers

#: `{"type": "text", "text": …}` or `{"type": "image_url", "image_url": {"url": …}}`; pictures of `images` have `index`
ContentPart = dict[str, str | int | dict[str, str]]


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_kept: NotRequired[int]


class SpokenAnswer(TypedDict):
    id: str
    data: str
    transcript: str
    expires_at: int


class SpokenDelta(TypedDict, total=False):
    id: str
    data: str
    transcript: str
    expires_at: int


class AnswerMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    audio: NotRequired[SpokenAnswer]
    content_parts: NotRequired[list[ContentPart]]
    images: NotRequired[list[ContentPart]]


class PartialImage(TypedDict):
    index: int
    url: str


class Delta(TypedDict, total=False):
    """What is new in a chunk."""

    role: Literal["assistant"]
    content: str
    audio: SpokenDelta
    content_parts: list[ContentPart]
    images: list[ContentPart]
    partial_image: PartialImage


FinishReason = Literal["stop", "length"]


def count_usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def encode_event(data: Mapping[str, object], event: str = "") -> bytes:
    """One server-sent event; `event` is its name, where it has one."""
    line = b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
    return f"event: {event}\n".encode() + line if event else line


DONE = b"data: [DONE]\n\n"
