"""What OpenAI's clients read: words as a string, media in parts of their own, several choices, answers sent back."""

import base64
import io

import openai
import pytest
import torch
from PIL import Image

from tests.media.test_formats import film
from tests.serve.conftest import data_url, image_part, pixels, png, user, wav
from unimodal.pipeline.requests import prepare
from unimodal.pipeline.settings import AnswerSettings
from unimodal.sequence.document import Audio, Document, Text, Turn, Video
from unimodal.serve.protocol import ApiError, name_fields

pytestmark = pytest.mark.sweep("the server")


def words(outputs):
    return " ".join(output.text for output in outputs if output.text)


def test_hello_is_answered_in_words(client, server):
    for seed in range(2):
        answer = client.chat.completions.create(
            model=server.name, messages=[user("draw a red apple.")], seed=seed, temperature=1.0
        )
        message = answer.choices[0].message
        assert isinstance(message.content, str) and message.audio is None and not message.model_extra
    chunks = client.chat.completions.create(model=server.name, messages=[user("draw a red apple.")], stream=True)
    assert all({*chunk.choices[0].delta.model_dump(exclude_none=True)} <= {"content", "role"} for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_have_seeds_of_their_own(client, server, stream):
    ask = {"model": server.name, "messages": [user("hello")], "temperature": 2.0, "max_tokens": 9}
    alone = [client.chat.completions.create(**ask, seed=7 + n).choices[0].message.content for n in range(3)]
    if stream:
        told = ["", "", ""]
        *chunks, last = client.chat.completions.create(
            **ask, seed=7, n=3, stream=True, stream_options={"include_usage": True}
        )
        for chunk in chunks:
            told[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        ends = [chunk.choices[0].index for chunk in chunks if chunk.choices[0].finish_reason]
        assert sorted(ends) == [0, 1, 2]
        usage = last.usage
    else:
        answer = client.chat.completions.create(**ask, seed=7, n=3)
        told, usage = [choice.message.content for choice in answer.choices], answer.usage
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert told == alone and usage.completion_tokens <= 27 and server.idle()
    one = client.chat.completions.create(**ask).usage
    assert usage.prompt_tokens == one.prompt_tokens


def test_sound_streams_as_openai_sends_it(client, server, model):
    ask = {"model": server.name, "messages": [user("a sunny day")], "modalities": ["text", "audio"], "seed": 5}

    def stream(**audio):
        chunks = list(client.chat.completions.create(**ask, audio=audio, stream=True))
        assert not any(chunk.choices[0].delta.content for chunk in chunks)
        return [chunk.choices[0].delta.audio for chunk in chunks if chunk.choices[0].delta.audio]

    first, last = stream(voice="alloy", format="pcm16")
    expected = model.generate("a sunny day", "audio", seed=5).media
    assert len(base64.b64decode(first.data)) == 2 * len(expected) * 24_000 // 16_000
    assert first.transcript == "a sunny day" and first.id.startswith("audio-")
    assert last.model_dump(exclude_none=True) == {"expires_at": last.expires_at}
    first, last = stream(voice="joe", format="flac")
    assert base64.b64decode(first.data).startswith(b"fLaC") and first.transcript == "a sunny day"


def test_a_sound_of_its_own_is_transcribed_by_the_model(client, server, model):
    """Behind a picture there are no words to say that the request names."""
    answer = client.chat.completions.create(
        model=server.name, messages=[user(image_part(png()), "what?")], modalities=["audio"], seed=5
    )
    audio = answer.choices[0].message.audio
    [heard] = model.answers([Document([model.user_turn([Audio(data=base64.b64decode(audio.data))])])], to="text")
    assert isinstance(audio.transcript, str) and audio.transcript
    assert len(audio.transcript.split()) >= 1 and words(heard)


def test_a_system_alone_and_a_last_assistant_are_answered(client, server, model):
    def ask(*messages, **more):
        more = {"max_tokens": 12, "seed": 1, **more}
        return client.chat.completions.create(model=server.name, messages=messages, **more).choices[0].message

    hello = ask(user("hello")).content
    assert ask({"role": "system", "content": "hello"}).content == hello
    assert ask({"role": "developer", "content": "hello"}).content == hello
    turns = [Turn("user", "hello"), Turn("assistant", "a car")]
    prompt = prepare(model, Document(turns), AnswerSettings(to="text")).prompt
    answer = client.chat.completions.create(
        model=server.name, messages=[user("hello"), {"role": "assistant", "content": "a car"}], max_tokens=12, seed=1
    )
    assert answer.usage.prompt_tokens == len(prompt) and answer.choices[0].message.content
    picture = ask({"role": "system", "content": "a red apple"}, modalities=["image"], max_tokens=None)
    assert (
        picture.images
        and ask(user("x"), {"role": "assistant", "content": "y"}, modalities=["image"], max_tokens=None).images
    )


def test_an_answer_is_sent_back_as_it_came(client, server):
    """`messages.append(answer.choices[0].message)`: the model sees its picture and its sound again."""
    for kind in ("image", "audio"):
        first = client.chat.completions.create(
            model=server.name, messages=[user("a red apple")], modalities=[kind], seed=3
        ).choices[0].message  # fmt: skip
        messages = [user("a red apple"), first, user("what is this?")]
        again = client.chat.completions.create(model=server.name, messages=messages, max_tokens=5)
        bare = client.chat.completions.create(model=server.name, messages=messages[:1] + messages[2:], max_tokens=5)
        media_tokens = again.usage.prompt_tokens - bare.usage.prompt_tokens
        assert media_tokens > 20
        if kind == "image":
            part = {"role": "assistant", "content": [first.content_parts[0]]}
            same = client.chat.completions.create(
                model=server.name, messages=[user("a red apple"), part, messages[2]], max_tokens=5
            )
            assert same.usage == again.usage


def test_a_prompt_that_is_too_long_says_how_long_in_true_counts(client, server, model):
    long = user("draw a red apple " * 600)
    for message, media in ((long, 0), (user(image_part(png()), "draw a red apple " * 600), 1)):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=server.name, messages=[message])
        assert caught.value.code == "context_length_exceeded" and caught.value.param == "messages"
        text = caught.value.body["message"]
        assert ("of them for 1 medium" in text) == bool(media)
        if not media:
            document = Document([Turn("user", long["content"][0]["text"])])
            num = len(model.template.render(document, add_generation_prompt=True))
            assert f"it is {num:,} tokens, and this model reads at most" in text
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(model=server.name, prompt="a red apple " * 600)
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "prompt"


def test_what_a_format_cannot_hold_is_a_mistake_in_the_messages():
    with pytest.raises(ApiError, match="alternate") as caught, name_fields(prompt="messages"):
        raise ValueError("Chameleon's turns alternate")
    assert (caught.value.status, caught.value.param) == (400, "messages")
    with pytest.raises(UnicodeError), name_fields(prompt="messages"):  # no message of ours
        b"\xff".decode()


# ---- parts of files


def test_a_part_of_a_sound_or_film_is_taken(client, server, model):
    clip = film("mp4", "libx264", 40, fps=10)
    cases = [
        ({"type": "video_url", "video_url": {"url": data_url(clip, "video/mp4"), "start": 2, "seconds": 0.5}},
         Video(data=clip, start_s=2, seconds=0.5), Video(data=clip)),
        ({"type": "input_audio", "input_audio": {"data": base64.b64encode(wav(1.5)).decode(), "seconds": 0.5}},
         Audio(data=wav(1.5), seconds=0.5), Audio(data=wav(1.5))),
    ]  # fmt: skip
    for part, chosen, whole in cases:
        answer = client.chat.completions.create(model=server.name, messages=[user(part, "what?")], max_tokens=5, seed=0)
        code = model.coder.encode_part
        prompts = [
            prepare(model, Document([Turn("user", [code(one), Text("what?")])]), AnswerSettings(to="text")).prompt
            for one in (chosen, whole)
        ]
        assert answer.usage.prompt_tokens == len(prompts[0]) and prompts[0] != prompts[1]
    url = data_url(clip, "video/mp4")
    whole, end = (
        server.post("/v1/tokenize", {"url": url, **more}).json() for more in ({}, {"start": 2, "seconds": 0.5})
    )
    assert whole["codes"] != end["codes"]


@pytest.mark.parametrize("span", [{"start": -1}, {"seconds": 0}, {"seconds": "x"}, {"start": True}, {"start": 1e9}])
def test_a_part_that_no_file_has(server, span):
    part = {"type": "audio_url", "audio_url": {"url": data_url(wav(), "audio/wav"), **span}}
    answer = server.post("/v1/chat/completions", {"messages": [user(part, "?")]})
    assert answer.status_code == 400 and answer.json()["error"]["param"].startswith("messages[0].content[0]")
    picture = {"type": "image_url", "image_url": {"url": data_url(png(), "image/png"), "start": 1}}
    assert "has none" in server.post("/v1/chat/completions", {"messages": [user(picture)]}).json()["error"]["message"]


# ---- pictures and transcriptions


@pytest.mark.parametrize(("size", "cut"), [("128x128", False), ("96x48", True), ("64x64", None), ("auto", None)])
def test_pictures_of_another_size_are_resized_with_a_note(client, server, size, cut):
    answer = client.images.generate(model=server.name, prompt="a cat", size=size, extra_body={"seed": 1}, n=2)
    width, height = map(int, ("64x64" if size == "auto" else size).split("x"))
    assert all(pixels(base64.b64decode(one.b64_json)).shape == (3, height, width) for one in answer.data)
    notes = answer.model_extra.get("notes")
    assert answer.model_extra.get("size", answer.size) == f"{width}x{height}"
    if cut is None:
        assert notes is None
    else:
        [note] = notes
        assert "drawn at 64x64" in note and size in note and ("cut off" in note) == cut


def test_compression_of_pictures(client, server):
    def draw(**more):
        answer = client.images.generate(model=server.name, prompt="a cat", extra_body={"seed": 1}, **more)
        return base64.b64decode(answer.data[0].b64_json)

    small, large = (draw(output_format="jpeg", output_compression=value) for value in (5, 95))
    assert len(small) < len(large) and Image.open(io.BytesIO(small)).format == "JPEG"
    assert torch.equal(pixels(draw()), pixels(draw(output_format="webp")))


def test_forms_of_a_transcription(client, server):
    def hear(kind, **more):
        return client.audio.transcriptions.create(
            model=server.name, file=("a.wav", wav(1.25)), response_format=kind, **more
        )

    text = hear("json").text
    verbose = hear("verbose_json")
    assert verbose.text == text and verbose.duration == pytest.approx(1.25) and verbose.task == "transcribe"
    [segment] = verbose.segments
    assert (segment.start, segment.text) == (0, text) and segment.end == pytest.approx(1.25) and segment.tokens
    assert hear("srt") == f"1\n00:00:00,000 --> 00:00:01,250\n{text}\n"
    assert hear("vtt") == f"WEBVTT\n\n00:00:00.000 --> 00:00:01.250\n{text}\n"
    part = hear("verbose_json", extra_body={"start": 0.25, "seconds": 0.5})
    assert (part.segments[0].start, part.segments[0].end) == (0.25, 0.75) and part.duration == pytest.approx(0.5)


def test_a_transcription_carries_the_notes_about_its_file(client, server, monkeypatch):
    read = server.model.coder.read

    def read_and_tell(path, modality, start_s=0.0, seconds=None, tell=None):
        tell("the sound: its pictures — a film's — are left out")
        return read(path, modality, start_s, seconds)

    monkeypatch.setattr(server.model.coder, "read", read_and_tell)
    create = client.audio.transcriptions.create
    ask = {"model": server.name, "file": ("a.wav", wav(0.7))}
    for kind in ("json", "verbose_json"):
        [note] = create(**ask, response_format=kind).model_extra["notes"]
        assert "are left out" in note
    for kind in ("text", "srt", "vtt"):
        raw = client.audio.transcriptions.with_raw_response.create(**ask, response_format=kind)
        assert raw.headers["x-notes"].startswith("the sound: its pictures")
    assert "NOTE the sound: its pictures" in raw.text


# ---- /v1/responses

FILE, PICTURE_FILE = {"type": "input_file", "file_id": "x"}, {"type": "input_image", "file_id": "x"}


def test_a_response_is_what_a_chat_completion_says(client, server):
    chat = client.chat.completions.create(
        model=server.name,
        messages=[{"role": "system", "content": "be brief"}, user(image_part(png()), "what?")],
        seed=3,
    )
    parts = [
        {"type": "input_image", "image_url": data_url(png(), "image/png"), "detail": "auto"},
        {"type": "input_text", "text": "what?"},
    ]
    ask = {"model": server.name, "instructions": "be brief", "input": [{"role": "user", "content": parts}]}
    whole = client.responses.create(**ask, metadata={"a": "b"}, extra_body={"seed": 3})
    assert whole.output_text == chat.choices[0].message.content and whole.metadata == {"a": "b"}
    assert whole.usage.input_tokens == chat.usage.prompt_tokens
    assert (whole.status == "completed") == (chat.choices[0].finish_reason == "stop")
    events = list(client.responses.create(**ask, stream=True, extra_body={"seed": 3}))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type == f"response.{whole.status}"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text == events[-1].response.output_text and len(deltas) > 1
    with client.responses.stream(**ask, extra_body={"seed": 3}) as stream:  # the client's own reading of the events
        assert [event.type for event in stream if event.type.endswith("text.done")]
    again = [*ask["input"], *(item.model_dump() for item in whole.output), {"role": "user", "content": "and?"}]
    longer = client.responses.create(model=server.name, input=again, max_output_tokens=3)
    assert longer.usage.input_tokens > whole.usage.input_tokens and longer.status == "incomplete"
    assert longer.incomplete_details.reason == "max_output_tokens" and longer.usage.output_tokens == 3


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": []}, "input"), ({"input": ""}, "input"), ({"input": "draw a red apple " * 600}, "input"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].type"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [FILE]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [PICTURE_FILE]}]}, "input[0].content[0].file_id"),
        ({"input": [{"role": "user", "content": 3}]}, "input[0].content"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"), ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"max_output_tokens": 0}, "max_output_tokens"), ({"model": "gpt-9"}, "model"),
    ],
)  # fmt: skip
def test_mistakes_in_a_request_for_a_response(server, change, param):
    answer = server.post("/v1/responses", {"input": "hello", **change})
    assert answer.status_code == (404 if param == "model" else 400) and answer.json()["error"]["param"] == param
