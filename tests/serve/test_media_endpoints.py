"""Pictures, speech, transcriptions and codes: each endpoint gives what the pipeline gives."""

import base64
import io

import httpx2 as httpx
import numpy as np
import openai
import pytest
import soundfile
import torch

from tests.serve.conftest import data_url, gif, opened, pixels, png, wav
from tests.tiny_model import MAX_AUDIO_S
from unimodal.coder.partial import decode_prefix
from unimodal.media.image import to_bytes
from unimodal.sequence.document import Audio, Document

pytestmark = pytest.mark.sweep("the server")


def png_of(answer, index=0):
    return pixels(base64.b64decode(answer.data[index].b64_json))


def test_pictures(client, server, model):
    answer = client.images.generate(model=server.name, prompt="a red apple", n=3, size="64x64", extra_body={"seed": 7})
    assert len(answer.data) == 3 and answer.usage.output_tokens > 3 * 64
    for index in range(3):
        expected = model.generate("a red apple", "image", seed=7 + index).media
        assert torch.equal(png_of(answer, index), to_bytes(expected))


def test_a_pictures_settings(client, server, model):
    def draw(**more):
        return png_of(client.images.generate(model=server.name, prompt="a cat", extra_body={"seed": 1, **more}))

    expected = model.generate("a cat", "image", seed=1, guidance=4.0, negative="blue").media
    assert torch.equal(draw(guidance=4.0, negative="blue"), to_bytes(expected))
    assert not torch.equal(draw(guidance=4.0), draw(guidance=1.0))
    first, second = (client.images.generate(model=server.name, prompt="a cat") for _ in range(2))
    assert not torch.equal(png_of(first), png_of(second))
    url = client.images.generate(model=server.name, prompt="a cat", response_format="url", output_format="webp").data[0]
    assert pixels(opened(url.url, "image/webp")).shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": ""}, "prompt"), ({"prompt": None}, "prompt"), ({"n": 0}, "n"), ({"n": 99}, "n"),
        ({"size": "1024"}, "size"), ({"size": "9000x64"}, "size"), ({"size": "0x64"}, "size"),
        ({"stream": True}, "stream"), ({"response_format": "x"}, "response_format"),
        ({"prompt": "   "}, "prompt"), ({"negative": "x", "guidance": 1.0}, "negative"), 
        ({"output_compression": 3}, "output_compression"),
        ({"prompt": "a red apple " * 600}, "prompt"),
    ],
)  # fmt: skip
def test_mistakes_in_a_request_for_pictures(server, change, param):
    answer = server.post("/v1/images/generations", {"prompt": "a cat", **change})
    assert answer.status_code == 400
    if param:
        assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(("kind", "start"), [("wav", b"RIFF"), ("flac", b"fLaC"), ("mp3", None), ("opus", b"OggS")])
def test_speech_as_a_file(client, server, model, kind, start):
    if kind == "mp3" and "MPEG_LAYER_III" not in soundfile.available_subtypes("MP3"):
        pytest.skip("this libsndfile writes no MP3")
    speech = client.audio.speech.create(
        model=server.name, input="A sunny day!", voice="alloy", response_format=kind, extra_body={"seed": 2}
    )
    assert start is None or speech.content.startswith(start)
    samples, rate = soundfile.read(io.BytesIO(speech.content))
    expected = model.generate("A sunny day!", "audio", seed=2).media
    assert rate == 16_000 and abs(len(samples) - len(expected)) < 3_000
    if kind in ("wav", "flac"):
        assert torch.allclose(torch.from_numpy(samples).float(), expected.clamp(-1, 1), atol=1e-3)


def test_speech_as_samples_in_a_voice(client, server, model):
    ask = {"model": server.name, "input": "a sunny day", "response_format": "pcm", "extra_body": {"seed": 2}}
    named = client.audio.speech.create(**ask, voice="joe")
    expected = model.generate("a sunny day", "audio", seed=2, voice="joe").media
    assert named.response.headers["content-type"] == "audio/pcm;rate=24000;channels=1"
    assert len(named.content) == 2 * len(expected) * 24_000 // 16_000
    assert named.content != client.audio.speech.create(**ask, voice="alloy").content


@pytest.mark.parametrize(
    "change",
    [
        {"input": ""}, {"input": "?!"}, {"response_format": "aac"}, {"speed": 2}, {"voice": "a\nb"},
        {"voice": "nobody"}, {"stream_format": "sse"}, {"instructions": "whisper"}, {"smell": 1},
    ],
)  # fmt: skip
def test_mistakes_in_a_request_for_speech(server, change):
    answer = server.post("/v1/audio/speech", {"input": "a sunny day", "voice": "alloy", **change})
    assert answer.status_code == 400 and answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] in change


def test_transcriptions(client, server, model):
    answer = client.audio.transcriptions.create(model=server.name, file=("a.wav", wav()))
    [outputs] = model.answers([Document([model.user_turn([Audio(data=wav())])])], to="text", seeds=[0])
    expected = " ".join(output.text for output in outputs if output.text)
    assert answer.text == expected
    plain = client.audio.transcriptions.create(model=server.name, file=("a.wav", wav()), response_format="text")
    assert plain == expected + "\n"


def test_mistakes_in_a_transcription(client, server):
    with pytest.raises(openai.BadRequestError, match="at most 2 s"):
        client.audio.transcriptions.create(model=server.name, file=("a.wav", wav(MAX_AUDIO_S + 1)))
    with pytest.raises(openai.BadRequestError, match="not a sound"):
        client.audio.transcriptions.create(model=server.name, file=("a.wav", png()))
    with pytest.raises(openai.APIStatusError) as caught:
        client.audio.transcriptions.create(model=server.name, file=("a.wav", b"these are words " * 9))
    assert caught.value.status_code == 415
    for name, value in (("response_format", "diarized_json"), ("language", "en"), ("temperature", 3)):
        with pytest.raises(openai.BadRequestError) as wrong:
            client.audio.transcriptions.create(model=server.name, file=("a.wav", wav()), **{name: value})
        assert wrong.value.param == name
    with pytest.raises(openai.BadRequestError) as wrong:
        client.audio.transcriptions.create(
            model=server.name, file=("a.wav", wav()), response_format="verbose_json", timestamp_granularities=["word"]
        )
    assert wrong.value.param == "timestamp_granularities"
    with pytest.raises(openai.NotFoundError):
        client.audio.transcriptions.create(model="whisper-9", file=("a.wav", wav()))
    path = f"{server.url}/v1/audio/transcriptions"
    assert httpx.post(path, json={"file": "x"}).status_code == 415
    assert httpx.post(path, files={"other": b"x"}).status_code == 400
    broken = httpx.post(path, content=b"--x\r\nnothing", headers={"Content-Type": "multipart/form-data; boundary=x"})
    unnamed = httpx.post(path, content=b"--x", headers={"Content-Type": "multipart/form-data"})
    assert broken.status_code == unnamed.status_code == 400
    assert broken.json()["error"]["message"] and unnamed.json()["error"]["message"]


# ---- codes


def test_a_pictures_codes_and_what_a_prefix_of_them_shows(server, model):
    found = server.post("/v1/tokenize", {"url": data_url(png(), "image/png")}).json()
    [expected] = model.coder.encode("image", [model.coder.read(png(), "image")])
    assert found["modality"] == "image" and found["codes"] == expected.tolist() and found["ordered"] is True
    assert [(s["name"], s["start"], s["count"]) for s in found["segments"]] == [
        ("semantic", 0, 3), ("look", 3, 1), ("image", 4, 60)
    ]  # fmt: skip
    for prefix in (None, 64, 4, 1):
        answer = server.post("/v1/detokenize", {"modality": "image", "codes": found["codes"], "prefix": prefix})
        shown = decode_prefix(model.coder, found["codes"][:prefix]).media
        assert torch.equal(pixels(opened(answer.json()["url"])), to_bytes(shown))


def test_the_codes_of_sound_and_clips(server, model):
    sound = server.post("/v1/tokenize", {"url": data_url(wav(), "audio/wav")}).json()
    assert sound["modality"] == "audio" and [s["count"] for s in sound["segments"]] == [len(sound["codes"])]
    url = server.post("/v1/detokenize", {"modality": "audio", "codes": sound["codes"]}).json()["url"]
    samples, _ = soundfile.read(io.BytesIO(opened(url, "audio/wav")))
    [expected] = model.coder.decode("audio", [np.array(sound["codes"])])
    assert np.allclose(samples, expected.clamp(-1, 1).numpy(), atol=1e-3)
    clip = server.post("/v1/tokenize", {"url": data_url(gif(), "image/gif")}).json()
    assert clip["modality"] == "video" and sum(s["count"] for s in clip["segments"]) == len(clip["codes"])
    assert [s["grid"] for s in clip["segments"]] == [None, None, None, [1, 8, 8], [1, 8, 8]]
    url = server.post("/v1/detokenize", {"modality": "video", "codes": clip["codes"]}).json()["url"]
    assert opened(url, "video/mp4")[4:8] == b"ftyp"


def test_a_file_may_be_uploaded_to_be_tokenized(server):
    by_url = server.post("/v1/tokenize", {"url": data_url(png(), "image/png")}).json()
    upload = httpx.post(f"{server.url}/v1/tokenize", files={"file": ("a.png", png())})
    assert upload.json() == by_url
    assert httpx.post(f"{server.url}/v1/tokenize", files={"file": ("a.png", b"")}).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        {"modality": "image", "codes": [0] * 63}, {"modality": "image", "codes": [0] * 65},
        {"modality": "image", "codes": [99] * 64}, {"modality": "image", "codes": [-1] * 64},
        {"modality": "image", "codes": [2**70] * 64}, {"modality": "image", "codes": []},
        {"modality": "smell", "codes": [0]}, {"modality": "audio", "codes": [0] * 5, "prefix": 2},
        {"modality": "image", "codes": [0] * 64, "prefix": 0}, {"modality": "audio", "codes": [1] * 5000},
        {"modality": "image", "codes": [0] * 64, "prefix": 65}, {"codes": [0] * 64},
    ],
)  # fmt: skip
def test_codes_that_are_none(server, body):
    answer = server.post("/v1/detokenize", body)
    assert answer.status_code == 400 and answer.json()["error"]["message"]
    assert "C long" not in answer.text


# ---- about the server


def test_models(client, server):
    [entry] = client.models.list().data
    assert entry.id == server.name == client.models.retrieve(server.name).id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_settings(server):
    found = server.get("/v1/settings").json()
    assert found["modalities"] == ["text", "image", "audio", "video"] and found["model"] == server.name
    assert found["media"]["image"]["ordered"] is True and found["media"]["image"]["image_size"] == 64
    assert found["sampling"]["image"]["guidance"] == 2.0 and found["limits"]["max_body_bytes"] == 32 * 2**20


def test_health_and_metrics(server):
    assert server.get("/health").json() | {"running": 0} == {
        "status": "ok", "model": server.name, "running": 0, "waiting": 0
    }  # fmt: skip

    def count(name):
        lines = [line for line in server.get("/metrics").text.splitlines() if line.startswith(name)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    good = 'unimodal_requests_total{endpoint="/v1/images/generations",status="200"}'
    bad = 'unimodal_requests_total{endpoint="/v1/images/generations",status="400"}'
    before = count(good), count(bad), count('unimodal_tokens_total{kind="completion"}'), count("unimodal_step_rows_sum")
    server.post("/v1/images/generations", {"prompt": "a cat", "n": 2})
    server.post("/v1/images/generations", {"prompt": ""})
    after = count(good), count(bad), count('unimodal_tokens_total{kind="completion"}'), count("unimodal_step_rows_sum")
    assert after[0] - before[0] == 1 and after[1] - before[1] == 1 and after[2] - before[2] == 2 * 67
    assert after[3] > before[3] and count("unimodal_requests_in_flight") == 0


def test_unknown_paths_and_methods_are_told_in_json(server):
    assert server.get("/v1/nothing").status_code == 404 and server.get("/v1/nothing").json()["error"]["message"]
    wrong = server.get("/v1/chat/completions")
    assert wrong.status_code == 405 and wrong.json()["error"]["code"] == "method_not_allowed"
