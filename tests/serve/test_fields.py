"""Every field of the request types of the `openai` package is honoured, without effect, or refused by its name."""

import json
from typing import get_args, get_origin, get_type_hints

import pytest
from openai.types import image_generate_params
from openai.types.audio import speech_create_params, transcription_create_params
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionAudioParam,
    ChatCompletionContentPartImageParam,
    ChatCompletionContentPartInputAudioParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionUserMessageParam,
    completion_create_params,
)
from openai.types.chat.chat_completion_content_part_image_param import ImageURL
from openai.types.chat.chat_completion_content_part_input_audio_param import InputAudio
from openai.types.responses import response_create_params

from unimodal.serve import fields
from unimodal.serve.bodies import (
    AudioOptions,
    ChatMessage,
    ChatRequest,
    ImageRequest,
    ResponseRequest,
    SpeechRequest,
    StreamOptions,
    TranscriptionRequest,
    parse,
    parse_form,
)
from unimodal.serve.protocol import ApiError

TYPES = {  # OpenAI's types, our class, and the least that a request must have
    "chat": (
        (
            completion_create_params.CompletionCreateParamsNonStreaming,
            completion_create_params.CompletionCreateParamsStreaming,
        ),
        ChatRequest,
        {"messages": [{"role": "user", "content": "hello"}]},
    ),
    "images": (
        (image_generate_params.ImageGenerateParamsNonStreaming, image_generate_params.ImageGenerateParamsStreaming),
        ImageRequest,
        {"prompt": "a cat"},
    ),
    "speech": ((speech_create_params.SpeechCreateParams,), SpeechRequest, {"input": "hello"}),
    "transcriptions": (
        (
            transcription_create_params.TranscriptionCreateParamsNonStreaming,
            transcription_create_params.TranscriptionCreateParamsStreaming,
        ),
        TranscriptionRequest,
        {},
    ),
    "responses": (
        (response_create_params.ResponseCreateParamsNonStreaming, response_create_params.ResponseCreateParamsStreaming),
        ResponseRequest,
        {"input": "hello"},
    ),
}
GIVEN_OTHERWISE = {("transcriptions", "file")}  # the file of the form


def list_fields(*types):
    return sorted({name for kind in types for name in get_type_hints(kind)})


CASES = [(endpoint, name) for endpoint, (types, _, _) in TYPES.items() for name in list_fields(*types)]


def read(endpoint, body):
    _, kind, least = TYPES[endpoint]
    if endpoint == "transcriptions":
        return parse_form(kind, {**least, **body})
    return parse(kind, json.dumps({**least, **body}).encode(), "application/json")


@pytest.mark.parametrize(("endpoint", "name"), CASES)
def test_no_field_of_openais_is_ignored(endpoint, name):
    if (endpoint, name) in GIVEN_OTHERWISE:
        return
    kind = TYPES[endpoint][1]
    assert (name in kind.model_fields) + (name in kind.refused) + (name in kind.without_effect) == 1
    read(
        endpoint,
        {}
        if name in TYPES[endpoint][2]
        else {name: None if endpoint != "transcriptions" else "json"}
        if name == "response_format"
        else {},
    )
    if name in kind.without_effect:
        read(endpoint, {name: "anything"})
    if name in kind.refused:
        for asked in ("something", {"type": "json_schema"}, ["x"], 7):
            with pytest.raises(ApiError) as caught:
                read(endpoint, {name: asked})
            assert caught.value.status == 400 and caught.value.param == name and name in caught.value.message
        for neutral in (*kind.refused[name].neutral, None):
            read(endpoint, {name: neutral})


def test_there_are_no_fields_that_openai_does_not_have():
    for endpoint, (types, kind, _) in TYPES.items():
        assert {*kind.refused, *kind.without_effect} <= {*list_fields(*types)}, endpoint


@pytest.mark.parametrize("endpoint", TYPES)
def test_an_unknown_field_is_refused_with_what_there_is(endpoint):
    with pytest.raises(ApiError, match="smell") as caught:
        read(endpoint, {"smell": 1})
    assert caught.value.param == "smell" and "model" in caught.value.message
    read(endpoint, {"smell": None})


def test_false_is_not_zero():
    read("chat", {"logprobs": False, "top_logprobs": 0, "presence_penalty": 0.0})
    for wrong in ({"logprobs": 0}, {"top_logprobs": False}, {"presence_penalty": 0.1}):
        with pytest.raises(ApiError):
            read("chat", wrong)


@pytest.mark.parametrize(
    ("types", "known"),
    [
        (
            (ChatCompletionAssistantMessageParam, ChatCompletionSystemMessageParam, ChatCompletionUserMessageParam),
            {*ChatMessage.model_fields, *fields.MESSAGE, *fields.MESSAGE_WITHOUT_EFFECT},
        ),
        (
            (
                ChatCompletionContentPartTextParam,
                ChatCompletionContentPartImageParam,
                ChatCompletionContentPartInputAudioParam,
            ),
            {"type", "text", "image_url", "input_audio", *fields.PART_WITHOUT_EFFECT},
        ),
        ((ImageURL, InputAudio), {"url", "data", *fields.MEDIUM_WITHOUT_EFFECT}),
        ((ChatCompletionAudioParam,), {*AudioOptions.model_fields}),
        ((ChatCompletionStreamOptionsParam,), {*StreamOptions.model_fields, "include_obfuscation"}),
    ],
)
def test_fields_inside_a_chat_request(types, known):
    assert {*list_fields(*types)} <= known


@pytest.mark.parametrize("options", ["audio", "stream_options"])
def test_an_unknown_field_inside_options_is_refused(options):
    with pytest.raises(ApiError, match="smell") as caught:
        read("chat", {options: {"smell": 1}})
    assert caught.value.param == f"{options}.smell" and caught.value.status == 400
    read("chat", {options: {"smell": None}, "stream_options": {"include_obfuscation": False}})


def test_response_formats_of_transcriptions_are_known_or_refused():
    hints = get_type_hints(transcription_create_params.TranscriptionCreateParamsNonStreaming)
    formats = {
        name
        for part in (hints["response_format"], *get_args(hints["response_format"]))
        for name in get_args(part)
        if isinstance(name, str)
    }
    assert get_origin(hints["response_format"]) is not None and formats
    for name in formats:
        if name == "diarized_json":
            with pytest.raises(ApiError) as caught:
                read("transcriptions", {"response_format": name})
            assert caught.value.param == "response_format"
        else:
            assert read("transcriptions", {"response_format": name}).response_format == name
