"""Text of any length → speech: every sentence is said, in order and as soon as it is there; nothing is dropped."""

import base64
import io

import av
import httpx2 as httpx
import numpy as np
import pytest
import soundfile
import torch

from tests.pipeline.test_speech_reading import codes_of, says
from tests.serve.conftest import lively_model, serving
from tests.tiny_model import NANO_WORDING
from unimodal.model_folder.wording import Wording
from unimodal.pipeline.requests import prepare
from unimodal.pipeline.settings import AnswerSettings
from unimodal.pipeline.speech import MOST_CHARACTERS, PAUSE_S, find_breath, list_utterances
from unimodal.sequence.document import Document, Turn
from unimodal.serve.sound_stream import SoundStream

pytestmark = pytest.mark.sweep("the pipeline")


TEXT = "Well, it is a sunny day. What is this? The old man walks under seven trees, and he sees a blue car!"
UTTERANCES = ["well it is a sunny day", "what is this", "the old man walks under seven trees", "and he sees a blue car"]


@pytest.fixture(scope="module")
def model():
    return says(sayings=2)


def asked_for(model, text, voice=None, to="audio"):
    request = model.wording.phrase_request(text, "audio", voice)
    return [one.turns[-1].text for one in list_utterances(model, Document([Turn("user", request)]), to)]


def test_sentences_and_clauses_are_asked_for_in_the_trained_wording(model):
    assert find_breath(model) == 45
    assert asked_for(model, TEXT) == [f"Say: {words}" for words in UTTERANCES]
    assert asked_for(model, TEXT, "slt") == [f"Say in the voice of slt: {words}" for words in UTTERANCES]
    assert asked_for(model, "Say: hi") == ["Say: hi"]
    assert asked_for(model, TEXT, to="text") == []
    model.wording.check_sayable("Café!")
    assert asked_for(model, "Le café.") == ["Say: le cafe"]
    assert asked_for(model, "I have 3 apples") == ["Say: i have three apples"]
    assert asked_for(model, "It is 5. 3 men paid $5.50 & 20%!") == [
        "Say: it is five",
        "Say: three men paid five dollars and",
        "Say: fifty cents and twenty percent",
    ]
    long = "one two three four five six seven eight nine ten " * 80
    assert " ".join(asked.removeprefix("Say: ") for asked in asked_for(model, long)) == long.strip()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("The sun. Солнце!", "6 of 16 characters cannot be said by this model (с"),
        ("it is < 5 ½", "2 of 11 characters cannot be said by this model (< ½)"),
        ("I like it 😊", "1 of 11 characters cannot be said"),
        ("a " * 2049, f"4,097 characters are to be spoken, and at most {MOST_CHARACTERS:,} may be"),
        ("say " + "a" * 50, "a word of 50 letters cannot be said at once"),
        ("… ?!", "no word to speak"),
    ],
)
def test_what_cannot_be_said_is_refused_with_the_count(model, text, message):
    with pytest.raises(ValueError) as raised:
        model.generate(text, to="audio")
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_model_whose_letters_are_not_known_is_asked_for_anything():
    Wording(wishes={"audio": "Say: {text}"}, plain_speech=True).check_sayable("Солнце 5 %")
    assert "letters" not in Wording().model_dump(exclude_defaults=True)
    assert NANO_WORDING.letters and NANO_WORDING.breath == 45


WAYS = [
    {},
    {"decoder": "plain"},
    {"decoder": "jacobi", "temperature": 0.0},
    {"search": "best-of-n", "search_settings": {"n": 2}},
]


@pytest.mark.parametrize("how", WAYS, ids=["chosen", "plain", "fast", "search"])
def test_all_sentences_are_said_and_joined(model, how):
    """Each utterance is what it is by itself; their sounds are joined with a pause, their codes without."""
    settings, events = AnswerSettings(to="audio", seed=3).replace(**how), []
    whole = model.generate(TEXT, settings=settings, on_token=events.append)
    prepared = prepare(model, Document([Turn("user", f"Say: {TEXT}")]), settings)
    assert [one.document.turns[-1].text for one in prepared.utterances] == [f"Say: {words}" for words in UTTERANCES]
    alone = [model.answers([one.document], one.settings)[0] for one in prepared.utterances]
    assert whole.part.codes.tolist() == [code for answer in alone for code in codes_of(answer)]
    pause = torch.zeros(int(PAUSE_S * whole.rate))
    sounds = [piece for answer in alone for piece in (pause, answer[0].media)][1:]
    torch.testing.assert_close(whole.media, torch.cat(sounds), atol=1e-4, rtol=0)
    starts = [event for event in events if event.id == model.vocabulary.get_start_id("audio")]
    assert len(starts) == 4 and [event.index for event in events] == list(range(len(events)))
    assert [event.finished for event in events] == [False] * (len(events) - 1) + [True]
    [[answered]] = model.answers([Document([Turn("user", f"Say: {TEXT}")])], settings)
    assert answered.part == whole.part


def test_utterances_come_one_by_one(model, monkeypatch):
    written, generate = [], model.engine.generate
    monkeypatch.setattr(
        model.engine, "generate", lambda p, *more, **by: written.append(len(p)) or generate(p, *more, **by)
    )
    spoken, rows = [], []
    for sound in model.speak(TEXT, seed=3):
        spoken.append(sound)
        rows.append(sum(written))
    assert len(spoken) == 4 and rows[0] == 2 and rows[-1] == 8  # two drafts of each; the first came before the others
    whole = model.generate(TEXT, "audio", seed=3).part.codes.tolist()
    assert [code for sound in spoken for code in sound.part.codes.tolist()] == whole
    [single] = lively_model().speak("hi", seed=3, voice="joe")
    assert single.modality == "audio"
    with pytest.raises(ValueError, match="6 of 6 characters cannot be said"):
        next(model.speak("Солнце"))


def test_a_model_without_a_second_reading_says_all_too():
    whole = lively_model().generate(TEXT, to="audio", seed=1)
    assert len(whole.media) > 4 * 0.05 * whole.rate + 3 * PAUSE_S * whole.rate


def test_the_server_streams_what_the_pipeline_says(model):
    expected = model.generate(TEXT, to="audio", seed=5)
    with serving(says(sayings=2)) as served:
        body = {"input": TEXT, "voice": "default", "response_format": "wav", "seed": 5}
        with httpx.stream("POST", f"{served.url}/v1/audio/speech", json=body, timeout=60) as answer:
            assert answer.status_code == 200 and "content-length" not in answer.headers
            pieces = list(answer.iter_raw())
        assert len(pieces) > 2
        samples, rate_hz = soundfile.read(io.BytesIO(b"".join(pieces)), dtype="float32")
        torch.testing.assert_close(torch.from_numpy(samples), expected.media, atol=1e-3, rtol=0)
        assert rate_hz == expected.rate
        short = served.post("/v1/audio/speech", body | {"input": "hi"})
        assert int(short.headers["content-length"]) == len(short.content)
        chat = {"messages": [{"role": "user", "content": TEXT}], "modalities": ["text", "audio"], "seed": 5,
                "audio": {"voice": "default", "format": "wav"}}  # fmt: skip
        choice = served.client().chat.completions.create(model=served.name, **chat).choices[0]
        told, _ = soundfile.read(io.BytesIO(base64.b64decode(choice.message.audio.data)), dtype="float32")
        torch.testing.assert_close(torch.from_numpy(told), expected.media, atol=1e-3, rtol=0)
        assert choice.finish_reason == "stop"
        chunks = list(served.client().chat.completions.create(model=served.name, stream=True, **chat))
        spoken = [chunk.choices[0].delta.model_dump().get("audio") or {} for chunk in chunks]
        data = b"".join(base64.b64decode(piece["data"]) for piece in spoken if piece.get("data"))
        told, _ = soundfile.read(io.BytesIO(data), dtype="float32")
        torch.testing.assert_close(torch.from_numpy(told), expected.media, atol=1e-3, rtol=0)
        assert len({piece["id"] for piece in spoken if piece.get("id")}) == 1 < len(spoken)
        refused = served.post("/v1/audio/speech", body | {"input": "Солнце"})
        assert refused.status_code == 400 and "6 of 6 characters" in refused.json()["error"]["message"]
        refused = served.post("/v1/audio/speech", body | {"input": "aa" + " a" * 2499}).json()["error"]
        assert "5,000 characters are to be spoken" in refused["message"] and refused["param"] == "input"
        with httpx.stream("POST", f"{served.url}/v1/audio/speech", json=body, timeout=60) as answer:
            pieces = answer.iter_raw()
            next(pieces)
            served.service.ended.set()  # as at the server's end: what is on its way is broken off, not cut in silence
            with pytest.raises(httpx.RemoteProtocolError):
                list(pieces)


@pytest.mark.parametrize("kind", ["wav", "pcm", "mp3", "flac", "ogg", "opus"])
def test_a_streamed_sound_is_the_whole_sound(kind):
    rate_hz = 16_000
    sound = 0.4 * torch.sin(torch.arange(2 * rate_hz) * 2 * torch.pi * 440 / rate_hz)
    stream = SoundStream(kind, rate_hz)
    data = b"".join([stream.write(sound[:9000]), stream.write(sound[9000:]), stream.finish()])
    if kind == "pcm":
        assert len(data) == 2 * 2 * 24_000
        return
    frames = [frame.to_ndarray() for frame in av.open(io.BytesIO(data)).decode(audio=0)]
    seconds = sum(frame.shape[-1] for frame in frames) / av.open(io.BytesIO(data)).streams.audio[0].rate
    assert seconds == pytest.approx(2.0, abs=0.11)  # codecs add a frame or two
    assert np.abs(np.concatenate([frame[0] for frame in frames])).max() > 0
