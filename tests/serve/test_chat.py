"""Chat completions by OpenAI's client: what comes back is what the pipeline gives."""

import base64
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import openai
import pytest
import soundfile
import torch

from tests.campaigns import is_study
from tests.serve.conftest import HTTP, JSON, data_url, gif, image_part, opened, pixels, png, user, wav
from unimodal.media.image import to_bytes
from unimodal.pipeline.requests import prepare
from unimodal.pipeline.settings import AnswerSettings
from unimodal.sequence.document import Audio, Document, Image, Text, Turn, Video
from unimodal.serve.chat import list_notes

pytestmark = pytest.mark.sweep("the server")


def words(outputs):
    return " ".join(output.text for output in outputs if output.text)


def test_words(client, server, model):
    answer = client.chat.completions.create(
        model=server.name, messages=[user("what is this?")], modalities=["text"], seed=3
    )
    [expected] = model.answers([Document([Turn("user", "what is this?")])], to="text", seeds=[3])
    [choice] = answer.choices
    assert choice.message.content == words(expected) and choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length") and answer.object == "chat.completion"
    prepared = prepare(model, Document([Turn("user", "what is this?")]), AnswerSettings(to="text"))
    assert answer.usage.prompt_tokens == len(prepared.prompt)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("kind", ["image", "audio", "input_audio", "video"])
def test_media_in(client, server, model, kind):
    data = {"image": png(), "audio": wav(), "input_audio": wav(), "video": gif()}[kind]
    part = {"type": f"{kind}_url", f"{kind}_url": {"url": data_url(data, "application/octet-stream")}}
    if kind == "input_audio":
        part = {"type": kind, kind: {"data": base64.b64encode(data).decode(), "format": "wav"}}
    answer = client.chat.completions.create(
        model=server.name, messages=[user(part, "what is this?")], modalities=["text"], seed=0
    )
    own = {"image": Image, "audio": Audio, "input_audio": Audio, "video": Video}[kind](data=data)
    assert answer.choices[0].message.content == words(model.chat([own, "what is this?"], to="text"))


def test_a_medium_without_words_is_asked_the_trained_question(client, server, model):
    answer = client.chat.completions.create(model=server.name, messages=[user(image_part(png()))], modalities=["text"])
    assert answer.choices[0].message.content == words(model.chat([Image(data=png())], to="text"))


def test_a_picture_in_the_answer(client, server, model):
    answer = client.chat.completions.create(
        model=server.name, messages=[user("a red apple")], modalities=["image"], seed=5
    )
    message = answer.choices[0].message
    [part] = message.content_parts
    assert message.content == "" and part["type"] == "image_url"
    assert message.images == [{"index": 0, **part}]
    expected = model.generate("a red apple", "image", seed=5).media
    assert torch.equal(pixels(opened(part["image_url"]["url"])), to_bytes(expected))


def test_sound_in_the_answer(client, server, model):
    answer = client.chat.completions.create(
        model=server.name, messages=[user("a sunny day")], modalities=["text", "audio"],
        audio={"voice": "alloy", "format": "flac"}, seed=5,
    )  # fmt: skip
    message = answer.choices[0].message
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(message.audio.data)))
    expected = model.generate("a sunny day", "audio", seed=5)
    assert rate == 16_000 and len(samples) == len(expected.media)
    assert torch.allclose(torch.from_numpy(samples).float(), expected.media.clamp(-1, 1), atol=1e-3)
    assert message.audio.id and message.audio.transcript == "a sunny day" and message.content is None


def test_a_clip_in_the_answer(client, server):
    answer = client.chat.completions.create(model=server.name, messages=[user("a cat")], modalities=["video"])
    [part] = answer.choices[0].message.content_parts
    assert answer.choices[0].message.content == ""
    assert opened(part["video_url"]["url"], "video/mp4")[4:8] == b"ftyp"


@pytest.mark.study
def test_what_the_model_likes_holds_the_same_as_the_pipelines_answer(client, server, model):
    found = set()
    for seed in range(20 if is_study() else 3):
        message = client.chat.completions.create(
            model=server.name, messages=[user("draw a red apple.")], seed=seed, temperature=1.0,
            modalities=["text", *model.vocabulary.media],
        ).choices[0].message  # fmt: skip
        settings = AnswerSettings(allow=("text", *model.vocabulary.media), seed=seed, temperature=1.0)
        asked = prepare(model, Document([Turn("user", "draw a red apple.")]), settings)
        [ids] = model.engine.generate([asked.prompt], asked.config)
        parts = [part for part in model.template.parse_answer(ids) if not isinstance(part, Text) or part.text]
        kinds = ["text" if isinstance(part, Text) else part.modality for part in parts]
        assert (message.audio is not None) == ("audio" in kinds)
        if "audio" in kinds:
            kinds.remove("audio")  # the first sound stands by itself
        merged = [kind for n, kind in enumerate(kinds) if kind != "text" or kinds[n - 1 : n] != ["text"]]
        content = (message.model_extra or {}).get("content_parts") or [{"type": "text"}] * bool(message.content)
        assert [part["type"].removesuffix("_url") for part in content] == merged
        told = "".join(part["text"] for part in content if part["type"] == "text" and "text" in part)
        assert isinstance(message.content, str) or message.audio is not None
        assert told in ("", message.content)
        found |= set(kinds)
    assert len(found) > 1


def test_history_and_its_media(client, server, model):
    messages = [
        {"role": "system", "content": "be brief"},
        user(image_part(png(1)), "what is this?"),
        {"role": "assistant", "content": [{"type": "text", "text": "a car"}, image_part(png(2))]},
        user("and this?"),
    ]
    answer = client.chat.completions.create(model=server.name, messages=messages, modalities=["text"], seed=0)
    code = model.coder.encode_part
    history = [
        Turn("system", "be brief"),
        Turn("user", [code(Image(data=png(1))), Text("what is this?")]),
        Turn("assistant", [Text("a car"), code(Image(data=png(2)))]),
    ]
    assert answer.choices[0].message.content == words(model.chat("and this?", history, to="text"))


def test_a_long_history_loses_its_oldest_exchanges(server):
    old = [user("draw a red apple " * 40), {"role": "assistant", "content": "a blue car"}] * 12
    ask = {"model": server.name, "modalities": ["text"], "seed": 0, "max_tokens": 8}
    long = server.post("/v1/chat/completions", {**ask, "messages": [*old, user("what is this?")]})
    assert long.status_code == 200
    assert long.json()["usage"]["prompt_tokens"] < 512
    [note] = long.json()["notes"]
    assert re.fullmatch(r"\d+ earlier messages were not shown to the model: it has no room for more", note)
    alone = server.post("/v1/chat/completions", {**ask, "messages": [user("draw a red apple " * 600)]})
    assert alone.status_code == 400 and "too long" in alone.json()["error"]["message"]


@pytest.mark.parametrize(
    ("limit", "why"),
    [(0, "it answers every message by itself"), (2, "it sees at most 2 earlier exchanges")],
)
def test_messages_that_a_model_is_not_shown_are_counted(limit, why):
    service = SimpleNamespace(model=SimpleNamespace(processor=SimpleNamespace(history_turns=limit)))
    turns = [Turn("user", "hi"), Turn("assistant", "a"), Turn("user", "b")]
    assert list_notes(service, Document(turns[2:]), turns) == [f"2 earlier messages were not shown to the model: {why}"]
    assert list_notes(service, Document(turns[1:]), turns) == [f"1 earlier message was not shown to the model: {why}"]
    assert list_notes(service, Document(turns), turns) == []


def test_settings_of_the_sampling(client, server):
    def ask(**settings):
        answer = client.chat.completions.create(
            model=server.name, messages=[user("hello")], modalities=["text"], **settings
        )
        return answer.choices[0]

    hot = {"temperature": 2.0, "max_tokens": 12}
    assert ask(**hot, seed=1).message.content == ask(**hot, seed=1).message.content
    assert len({ask(**hot, seed=seed).message.content for seed in range(4)}) == 4
    assert ask(**hot, seed=1).message.content != ask(temperature=0, max_tokens=12, seed=1).message.content
    assert ask(temperature=2.0, top_p=1e-6, seed=1).message.content == ask(temperature=0, seed=2).message.content
    assert len({ask(**hot).message.content for _ in range(4)}) > 1  # without a seed every request draws another
    short = ask(temperature=0, max_tokens=4)
    assert short.finish_reason == "length"
    assert ask(temperature=0, max_tokens=9).message.content.startswith(short.message.content)


@pytest.mark.parametrize("modalities", [["text"], ["text", "image"]])
@pytest.mark.parametrize("most", [1, 5])
def test_max_tokens_counts_what_is_written_and_not_the_end(server, modalities, most):
    body = {"messages": [user("hello")], "modalities": modalities, "max_tokens": most, "temperature": 0}
    answer = server.post("/v1/chat/completions", body).json()
    [choice] = answer["choices"]
    assert choice["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == most
    assert choice["message"]["content"]


def test_a_whole_picture_or_clip_is_not_told_as_cut(server):
    for medium in ("image", "video"):
        body = {"messages": [user("a red apple")], "modalities": [medium], "seed": 1}
        assert server.post("/v1/chat/completions", body).json()["choices"][0]["finish_reason"] == "stop"


def test_stop_texts_cut_the_answer_and_are_not_told(client, server):
    def ask(**settings):
        answer = client.chat.completions.create(
            model=server.name, messages=[user("hello")], modalities=["text"], temperature=0, **settings
        )
        return answer

    whole = ask()
    text = whole.choices[0].message.content
    stop = text[5:8]
    cut = ask(stop=[stop, "\x00 never"])
    assert cut.choices[0].message.content == text[: text.index(stop)] and cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens < whole.usage.completion_tokens
    deltas = [chunk.choices[0].delta.content or "" for chunk in ask(stop=stop, stream=True)]
    assert "".join(deltas) == text[: text.index(stop)]
    unmet = ask(stop=text[-1] + "!", stream=True)  # held back as a possible beginning, told in the end
    assert "".join(chunk.choices[0].delta.content or "" for chunk in unmet) == text


# ---- streaming


def test_words_stream_as_they_are_written(client, server):
    ask = {"model": server.name, "messages": [user("hello")], "modalities": ["text"], "seed": 1}
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    deltas = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(delta or "" for delta in deltas) == whole.choices[0].message.content
    assert sum(bool(delta) for delta in deltas) > 3
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage and chunks[0].usage is None
    assert len({chunk.id for chunk in chunks}) == 1
    plain = list(client.chat.completions.create(**ask, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in plain)


def test_a_picture_streams_from_coarse_to_whole(client, server):
    ask = {"model": server.name, "messages": [user("a red apple")], "modalities": ["image"], "seed": 5}
    whole = client.chat.completions.create(**ask).choices[0].message.content_parts
    chunks = list(client.chat.completions.create(**ask, stream=True, extra_body={"stream_partial": True}))
    deltas = [chunk.choices[0].delta.model_dump() for chunk in chunks]
    partial = [delta["partial_image"] for delta in deltas if delta.get("partial_image")]
    assert partial and all(picture["index"] == 0 for picture in partial)
    assert len({picture["url"] for picture in partial}) == len(partial) <= 4
    assert all(pixels(opened(picture["url"])).shape == (3, 64, 64) for picture in partial)
    [parts] = [delta["content_parts"] for delta in deltas if delta.get("content_parts")]
    assert parts == whole
    assert [delta["images"] for delta in deltas if delta.get("images")] == [[{"index": 0, **parts[0]}]]
    without = list(client.chat.completions.create(**ask, stream=True))
    assert not any(chunk.choices[0].delta.model_dump().get("partial_image") for chunk in without)


def test_clips_stream_as_parts(server):
    for kind, media_type in (("video", "video/mp4"),):
        body = {"messages": [user("a cat")], "modalities": [kind], "stream": True, "seed": 1}
        answer = server.post("/v1/chat/completions", body)
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.text.split("\n\n") if line]
        assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
        deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines[:-1]]
        [[part]] = [delta["content_parts"] for delta in deltas if "content_parts" in delta]
        assert opened(part[f"{kind}_url"]["url"], media_type)


def test_many_at_once_answer_as_each_alone(server):
    client = server.client()

    def ask(number):
        kind = ("text", "image", "audio")[number % 3]
        answer = client.chat.completions.create(
            model=server.name, messages=[user("a red apple")], modalities=[kind], seed=number, temperature=1.0
        )
        return json.dumps(
            answer.choices[0].message.model_dump(exclude={"audio": {"id", "expires_at"}}, warnings=False), default=str
        )

    alone = [ask(number) for number in range(9)]
    with ThreadPoolExecutor(9) as pool:
        together = list(pool.map(ask, range(9)))
    texts = [number for number in range(9) if number % 3 == 0]
    assert [together[n] for n in texts] == [alone[n] for n in texts]
    assert len(set(together)) == 9 and [len(a) for a in together] == pytest.approx([len(a) for a in alone], rel=0.02)


# ---- mistakes


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{**user("x"), "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls"),
        ({"messages": [{**user("x"), "smell": 1}]}, "messages[0].smell"),
        ({"messages": [user({"type": "text", "text": "x", "smell": 1})]}, "messages[0].content[0].smell"),
        ({"messages": [user("?"), {"role": "tool", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "wizard", "content": "x"}, {"role": "user", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages"),
        ({"messages": [{"role": "assistant", "audio": {"id": "audio-1"}}, user("hi")]}, "messages[0].audio"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": ["image_url"]}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"text": "hello"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "lone \ud800"}]}, None),  # no JSON
        ({"modalities": ["smell"]}, "modalities"),
        ({"modalities": []}, "modalities"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 100}, "n"),  # of 32 + 64 places
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "modalities": ["image"]}, "max_tokens"),
        ({"smell": 1}, "smell"),
        ({"audio": {"voice": "joe"}}, "audio"),
        ({"audio": {"voice": "nobody"}, "modalities": ["audio"]}, "audio.voice"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"seed": "x"}, "seed"),
        ({"audio": {"format": "aac"}}, "audio.format"),
        ({"negative": "blue", "modalities": ["text"]}, "negative"),
        ({"messages": [user("?!")], "modalities": ["audio"]}, "messages"),
        ({"messages": [user("draw a red apple " * 600)]}, "messages"),
    ],
)
def test_a_mistake_is_told_with_its_field(server, change, param):
    body = {"messages": [user("hello")], "model": server.name, **change}
    raw = json.dumps(body).encode()  # a lone surrogate is escaped in it: the server's to find
    answer = HTTP.post(f"{server.url}/v1/chat/completions", content=raw, headers=JSON)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert error["message"] and "\n" not in error["message"]
    if param is not None:
        assert error["param"] == param


def test_errors_are_the_clients_own_classes(client, server):
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.chat.completions.create(model="gpt-9", messages=[user("hello")])
    with pytest.raises(openai.BadRequestError, match="no such|cannot be answered"):
        client.chat.completions.create(model=server.name, messages=[user("x")], modalities=["smell"])


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"messages": ' + b"[" * 100_000, b"\xff\xfe{}"])
def test_bodies_that_are_no_request(server, body):
    answer = HTTP.post(f"{server.url}/v1/chat/completions", content=body, headers=JSON)
    assert answer.status_code == 400 and answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["input_text", "input_image", "file", "image", "video", "tool_use"])
def test_an_unknown_part_is_told_by_its_type(server, kind):
    message = user({"type": kind, "text": "a", "image_url": "b", kind: {"data": "c"}})
    told = server.post("/v1/chat/completions", {"messages": [message]}).json()["error"]
    assert f"a part of type {kind!r} is not known; use text" in told["message"]
    assert told["param"] == "messages[0].content[0]"


@pytest.mark.parametrize("role", ["user", "system"])
def test_a_content_that_would_be_passed_over_is_refused(server, role):
    message = {"role": role, "content": "one", "content_parts": [{"type": "text", "text": "another"}]}
    answer = server.post("/v1/chat/completions", {"messages": [message, user("?")]})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages[0].content_parts"
