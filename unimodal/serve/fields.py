"""What becomes of the fields of OpenAI's requests that change nothing here, or that no model of ours can follow.

A field of a request is honoured (it is a field of its class in `bodies.py`), has no effect on an answer and is let
through, or is refused with its name: nothing that would change an answer is ignored. A test goes through every field of
the request types of the `openai` package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unimodal.serve.protocol import ApiError


@dataclass(frozen=True)
class Refusal:
    """Why a field is refused, and the values beside null that ask for nothing."""

    why: str
    neutral: tuple[object, ...] = ()


Refusals = Mapping[str, Refusal]

_NO_TOOLS = "this model calls no tools"
_NO_PENALTY = "this model has no such penalty"
_NO_LOGPROBS = "log-probabilities are not given"
_ONE_QUALITY = "this model draws in one quality"
_STILL_PICTURES = "this endpoint draws still pictures of pixels"
_NOT_STORED = "nothing is stored here: send the whole conversation"
_NO_REASONING = "this model does not reason before it answers"
_NO_SPEAKERS = "this model does not tell speakers apart"
_NO_HINTS = "this model takes no hints about what it will hear"

CHAT: Refusals = {
    "frequency_penalty": Refusal(_NO_PENALTY, (0,)),
    "presence_penalty": Refusal(_NO_PENALTY, (0,)),
    "function_call": Refusal(_NO_TOOLS, ("none", "auto")),
    "functions": Refusal(_NO_TOOLS, ([],)),
    "tools": Refusal(_NO_TOOLS, ([],)),
    "tool_choice": Refusal(_NO_TOOLS, ("none", "auto")),
    "logit_bias": Refusal("the weights of single tokens cannot be changed", ({},)),
    "logprobs": Refusal(_NO_LOGPROBS, (False,)),
    "top_logprobs": Refusal(_NO_LOGPROBS, (0,)),
    "moderation": Refusal("answers are not moderated here"),
    "reasoning_effort": Refusal(_NO_REASONING, ("none",)),
    "response_format": Refusal("answers cannot be held to JSON or a schema", ({"type": "text"},)),
    "verbosity": Refusal("answers have one verbosity", ("medium",)),
    "web_search_options": Refusal("this model does not search the web"),
}
CHAT_WITHOUT_EFFECT = frozenset(
    ("metadata", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_options",
     "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user")
)  # fmt: skip

MESSAGE: Refusals = {
    "tool_calls": Refusal(_NO_TOOLS, ([],)),
    "function_call": Refusal(_NO_TOOLS),
    "tool_call_id": Refusal(_NO_TOOLS),
}
#: of a message that is sent back as it came, too
MESSAGE_WITHOUT_EFFECT = frozenset(
    ("name", "refusal", "annotations", "reasoning", "reasoning_content", "provider_specific_fields", "id")
)
PART_WITHOUT_EFFECT = frozenset(("prompt_cache_breakpoint", "cache_control"))
#: inside a part: one size is looked at, and what a file is its bytes say
MEDIUM_WITHOUT_EFFECT = frozenset(("detail", "format"))

#: inside `audio` and `stream_options`: it changes the size of chunks, not their content
OPTIONS_WITHOUT_EFFECT = frozenset(("include_obfuscation",))

IMAGE: Refusals = {
    "background": Refusal("pictures have an opaque background", ("auto", "opaque")),
    "complexity": Refusal(_STILL_PICTURES),
    "frame_count": Refusal(_STILL_PICTURES, (1,)),
    "frame_duration_ms": Refusal(_STILL_PICTURES),
    "partial_images": Refusal("pictures on their way are given by chat completions with stream_partial", (0,)),
    "quality": Refusal(_ONE_QUALITY, ("auto", "standard")),
    "stream": Refusal("pictures are streamed by chat completions", (False,)),
    "style": Refusal("styles are asked for in the words of the prompt"),
    "svg": Refusal(_STILL_PICTURES),
}
IMAGE_WITHOUT_EFFECT = frozenset(("moderation", "safety_identifier", "user"))

SPEECH: Refusals = {
    "instructions": Refusal("this model takes no instructions about its voice", ("",)),
    "speed": Refusal("this model speaks at its own speed", (1,)),
    "stream_format": Refusal("speech is sent as the bytes of a sound", ("audio",)),
}
SPEECH_WITHOUT_EFFECT: frozenset[str] = frozenset()

TRANSCRIPTION: Refusals = {
    "chunking_strategy": Refusal("a sound is heard whole"),
    "include": Refusal(_NO_LOGPROBS, ([],)),
    "keywords": Refusal(_NO_HINTS, ([],)),
    "known_speaker_names": Refusal(_NO_SPEAKERS, ([],)),
    "known_speaker_references": Refusal(_NO_SPEAKERS, ([],)),
    "language": Refusal(_NO_HINTS, ("",)),
    "languages": Refusal(_NO_HINTS, ([],)),
    "prompt": Refusal(_NO_HINTS, ("",)),
    "stream": Refusal("transcriptions are given whole", ("false", "False", "0")),
    "timestamp_granularities": Refusal("this model does not say when a word was spoken", ([],)),
}
TRANSCRIPTION_WITHOUT_EFFECT: frozenset[str] = frozenset()

RESPONSE: Refusals = {
    "access_programs": Refusal("this server has no such programs"),
    "background": Refusal(_NOT_STORED, (False,)),
    "background_options": Refusal(_NOT_STORED),
    "context_management": Refusal(_NOT_STORED, ([],)),
    "conversation": Refusal(_NOT_STORED),
    "image": Refusal("pictures are not compressed in this way", ({"context_compression": "auto"},)),
    "include": Refusal("an answer has no further parts here", ([],)),
    "moderation": CHAT["moderation"],
    "previous_response_id": Refusal(_NOT_STORED),
    "prompt": Refusal("there are no stored prompts here"),
    "reasoning": Refusal(_NO_REASONING, ({}, {"effort": "none"})),
    "text": Refusal(
        CHAT["response_format"].why,
        (
            {},
            {"format": {"type": "text"}},
            {"format": {"type": "text"}, "verbosity": "medium"},
            {"verbosity": "medium"},
        ),
    ),
    "tool_choice": CHAT["tool_choice"],
    "tools": CHAT["tools"],
    "top_logprobs": CHAT["top_logprobs"],
}
RESPONSE_WITHOUT_EFFECT = frozenset(
    ("max_tool_calls", "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options",
     "prompt_cache_retention", "safety_identifier", "service_tier", "store", "stream_options", "truncation", "user")
)  # fmt: skip


def check_fields(
    given: Mapping[str, object],
    refused: Refusals,
    without_effect: frozenset[str],
    honoured: Sequence[str],
    where: str = "",
) -> None:
    """Raises ApiError 400, naming the field, for one that would change the answer and is not followed.

    given: the fields that no class of `bodies.py` has. honoured: those that it has, to name in the message.
    """
    for name, value in given.items():
        if value is None or name in without_effect:
            continue
        refusal = refused.get(name)
        if refusal is None:
            message = f"the field {name[:60]!r} is not known; this endpoint takes {', '.join(honoured)}"
            raise ApiError(400, message, "unknown_parameter", f"{where}{name[:60]}")
        if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in refusal.neutral):
            raise ApiError(400, f"{name}: {refusal.why}; leave it out", "unsupported_value", f"{where}{name}")
