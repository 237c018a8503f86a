"""The same conversation, written in every format, is the same document; and each format's own rules."""

import base64
import json

import pytest
import torch

from unimodal.data.datasets import FORMATS, DatasetConfig
from unimodal.data.importers import IMPORTERS
from unimodal.media.audio import load_audio
from unimodal.media.image import load_image
from unimodal.media.video import load_video
from unimodal.sequence.document import Audio, Document, Image, Text, Turn, Video

QUESTION = {"type": "text", "text": "what is this?"}
TYPED = [
    {"role": "user", "content": [{"type": "image"}, QUESTION]},
    {"role": "assistant", "content": [{"type": "text", "text": "an apple"}]},
]
PLAIN = [{"role": "user", "content": "what is this?"}, {"role": "assistant", "content": "an apple"}]
MARKED = [{"role": "user", "content": "<image>\nwhat is this?"}, {"role": "assistant", "content": "an apple"}]
FROM = [{"from": "human", "value": "<image>\nwhat is this?"}, {"from": "gpt", "value": "an apple"}]

# TRL's own example set, llava-instruct-mix-vsft
INDEXED = [
    {
        "role": "user",
        "content": [
            {"index": 0, "text": None, "type": "image"},
            {"index": None, "text": "what is this?", "type": "text"},
        ],
    },
    {"role": "assistant", "content": [{"index": None, "text": "an apple", "type": "text"}]},
]
ANTHROPIC = {"type": "image", "source": {"type": "url", "url": "a.png"}}

# (format that is detected, the row)
SAME = [
    ("trl", {"messages": TYPED, "images": ["a.png"]}),
    ("trl", {"messages": PLAIN, "images": ["a.png"]}),
    ("trl", {"prompt": "what is this?", "completion": "an apple", "images": ["a.png"]}),
    ("trl", {"prompt": TYPED[:1], "completion": TYPED[1:], "image": "a.png"}),
    ("trl", {"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"}, QUESTION]}, TYPED[1]]}),
    (
        "trl",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "a.png"}, "text": None},
                        {"type": "text", "text": "what is this?", "image_url": None},
                    ],
                },
                TYPED[1],
            ]
        },
    ),
    ("llava", {"id": "7", "image": "a.png", "conversations": FROM}),
    ("sharegpt", {"images": ["a.png"], "conversations": FROM}),
    ("sharegpt", {"images": ["a.png"], "conversations": MARKED}),
    ("llama_factory", {"messages": MARKED, "images": ["a.png"]}),
    ("llama_factory", {"messages": MARKED, "images": "a.png", "videos": [], "audios": None}),
    ("llama_factory", {"instruction": "<image>what is this?", "input": "", "output": "an apple", "images": ["a.png"]}),
    ("ms_swift", {"query": "<image> what is this?", "response": "an apple", "images": ["a.png"]}),
    ("ms_swift", {"query": "what is this?", "response": "an apple", "images": ["a.png"], "history": []}),
    ("ms_swift", {"conversation": [{"human": "<image>what is this?", "assistant": "an apple"}], "images": ["a.png"]}),
    ("pairs", {"image": "a.png", "question": "what is this?", "answer": "an apple"}),
    ("pairs", {"file_name": "a.png", "question": "what is this?", "answer": "an apple"}),
    (
        "pairs",
        {"image": "a.png", "question": "what is this?", "multiple_choice_answer": "an apple", "answers": ["a pear"]},
    ),
    (
        "pairs",
        {
            "image": "a.png",
            "question": "what is this?",
            "answers": [{"answer": text, "answer_id": 1} for text in ("a pear", "an apple", "an apple")],
        },
    ),
    ("pairs", {"image": "a.png", "question": "what is this?", "answers": {"text": ["an apple"], "answer_start": [3]}}),
    ("cauldron", {"images": ["a.png"], "texts": [{"user": "what is this?", "assistant": "an apple", "source": "x"}]}),
    ("trl", {"messages": INDEXED, "images": ["a.png"]}),
    ("trl", {"messages": json.dumps(INDEXED), "images": '["a.png"]'}),
    ("sharegpt", {"conversations": json.dumps(FROM), "images": ["a.png"]}),
    ("ms_swift", {"query": "what is this?", "response": "an apple", "images": ["a.png"], "history": "[]"}),
    ("trl", {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, QUESTION]}, TYPED[1]]}),
    ("trl", {"messages": [{"role": "user", "content": [ANTHROPIC, QUESTION]}, TYPED[1]]}),
]  # fmt: skip


def said(media, *asked, answer="an apple", system=None):
    turns = [Turn("system", system)] if system else []
    return Document([*turns, Turn("user", asked), Turn("assistant", answer)])


@pytest.mark.parametrize(("name", "row"), SAME, ids=[f"{n}-{i}" for i, (n, _) in enumerate(SAME)])
@pytest.mark.parametrize("file", ["rows.jsonl", "rows.json"])
def test_every_format_says_the_same(documents, media, name, row, file):
    found = documents([row], file)
    assert found.format == name
    assert found[0] == said(media, Image(path=str(media / "a.png")), Text("what is this?"))
    assert documents([row], file, format=name)[0] == found[0]


@pytest.mark.parametrize("name", sorted(IMPORTERS))
def test_a_chosen_format_is_not_second_guessed(documents, name):
    with pytest.raises(ValueError, match=r"rows.jsonl line 1: .*; mend it, or set on_bad_row to skip"):
        documents([{"nothing": "of use"}], format=name)


def test_all_formats_can_be_named_and_others_not():
    assert {DatasetConfig(path="x", format=name).format for name in FORMATS} == set(FORMATS)
    with pytest.raises(ValueError, match="format 'lava' is unknown; use auto, trl, llava"):
        DatasetConfig(path="x", format="lava")


def test_media_of_all_kinds_in_their_order(documents, media):
    row = {
        "messages": [
            {"role": "user", "content": "<video>then <image> and <audio>, or <image>?"},
            {"role": "assistant", "content": "<image>"},
        ],
        "images": ["a.png", "b.png", "sub/c.png"],
        "audios": ["s.wav"],
        "videos": ["v.gif"],
    }
    expected = [
        Video(path=str(media / "v.gif")), Text("then"), Image(path=str(media / "a.png")), Text("and"),
        Audio(path=str(media / "s.wav")), Text(", or"), Image(path=str(media / "b.png")), Text("?"),
    ]  # fmt: skip
    for name in ("llama_factory", "ms_swift"):
        found = documents([row], format=name)[0]
        assert list(found.turns[0].parts) == expected
        assert found.turns[1].parts == (Image(path=str(media / "sub/c.png")),)  # a picture as the answer


def test_system_history_and_further_turns(documents):
    alpaca = {
        "system": "be brief", "history": [["hello", "hi"]],
        "instruction": "name", "input": "a fruit", "output": "apple",
    }  # fmt: skip
    swift = {"system": "be brief", "history": [["hello", "hi"]], "query": "name\na fruit", "response": "apple"}
    sharegpt = {
        "system": "be brief",
        "conversations": [
            {"from": "human", "value": "hello"},
            {"from": "gpt", "value": "hi"},
            {"from": "user", "value": "name\na fruit"},
            {"from": "assistant", "value": "apple"},
        ],
    }
    expected = Document(
        [
            Turn("system", "be brief"), Turn("user", "hello"), Turn("assistant", "hi"), Turn("user", "name\na fruit"),
            Turn("assistant", "apple"),
        ]
    )  # fmt: skip
    for row in (alpaca, swift, sharegpt):
        assert documents([row])[0] == expected


def test_trl_puts_pictures_before_the_first_message_of_the_user(documents, media):
    row = {"messages": [{"role": "system", "content": "be brief"}, *PLAIN, *PLAIN], "images": ["a.png", "b.png"]}
    turns = documents([row])[0].turns
    assert [len(turn.parts) for turn in turns] == [1, 3, 1, 1, 1]
    assert turns[1].parts[:2] == (Image(path=str(media / "a.png")), Image(path=str(media / "b.png")))


def test_indexed_parts_take_the_picture_that_they_name(documents, media):
    content = [{"type": "image", "index": 1}, {"type": "image", "index": 0}, {"type": "image", "index": 1}, QUESTION]
    row = {"messages": [{"role": "user", "content": content}, TYPED[1]], "images": ["a.png", "b.png"]}
    names = [part.path.rpartition("/")[2] for part in documents([row])[0].turns[0].parts[:3]]
    assert names == ["b.png", "a.png", "b.png"]
    for change, message in (
        ({"images": ["a.png"]}, "a part has index 1 but the row brings 1 of image; count from 0"),
        ({"images": ["a.png", "b.png", "sub/c.png"]}, "no part has index 2 but the row brings 3 of image"),
    ):
        with pytest.raises(ValueError, match=message):
            documents([row | change])
    mixed = [{"type": "image", "index": 0}, {"type": "image"}, QUESTION]
    with pytest.raises(ValueError, match="some parts of type image have an index and some have none"):
        documents([{"messages": [{"role": "user", "content": mixed}, TYPED[1]], "images": ["a.png", "b.png"]}])


def test_a_page_of_words_and_pictures_is_learnt_whole(documents, media):
    row = {"images": [None, "a.png", None], "texts": ["An apple:", None, "red."], "metadata": "[]"}
    found = documents([row])
    picture = Image(path=str(media / "a.png"))
    assert found.format == "interleaved"
    assert found[0] == Document([Turn("assistant", [Text("An apple:"), picture, Text("red.")])])
    for change, message in (
        ({"images": [None]}, "there are 3 texts but 1 places of image; give as many"),
        ({"texts": ["a", "b", "c"]}, "place 2 of texts and media has 2 parts"),
        ({"texts": ["a", None, None]}, "place 3 of texts and media has 0 parts"),
        ({"images": [None, "https://a.example/x.jpg", None]}, "is a URL; download the media"),
        ({"texts": ["a", None, 3]}, "a text must be a text, this one is int"),
    ):
        with pytest.raises(ValueError, match=message):
            documents([row | change])


def test_questions_in_a_row_about_the_same_pictures(documents, media):
    texts = [{"user": "which?", "assistant": "both"}, {"user": "sure?", "assistant": "yes"}]
    found = documents([{"images": ["a.png", "b.png"], "texts": texts}])[0]
    assert [len(turn.parts) for turn in found.turns] == [3, 1, 1, 1] and found.turns[3].text == "yes"
    with pytest.raises(ValueError, match="user of texts must be a text, this one is NoneType"):
        documents([{"images": ["a.png"], "texts": [{"assistant": "both"}]}])


def test_classes_are_texts_and_numbers_without_names_are_refused(documents, media):
    found = documents([{"image": "a.png", "label": "tench, Tinca tinca"}])[0]
    assert found == said(media, Image(path=str(media / "a.png")), Text("What is this?"), answer="tench, Tinca tinca")
    with pytest.raises(ValueError, match="the label is 3, and what it is called is not known"):
        documents([{"image": "a.png", "label": 3}])


def test_films_by_their_frames_and_sounds_by_their_samples(documents, media):
    """The frames are read as the pictures they are, the samples as the sound of that rate."""
    frames, ask = ["a.png", "b.png", "sub/c.png"], {"question": "what is this?", "answer": "an apple"}
    typed = [{"role": "user", "content": [{"type": "video", "video": frames}, QUESTION]}, TYPED[1]]
    rows = [
        {"video": frames, **ask},
        {"videos": [frames], **ask},
        {"messages": typed},
        {"video": [{"bytes": base64.b64encode((media / name).read_bytes()).decode()} for name in frames], **ask},
    ]
    films = [documents([row])[0].turns[0].parts[0] for row in rows]
    assert all(film == films[0] and isinstance(film, Video) for film in films)
    clip = load_video(films[0].data, 8)
    assert torch.equal((clip * 255).round().to(torch.uint8), torch.stack([load_image(media / name) for name in frames]))
    assert load_video(films[0].data, 4, num_frames=2, size=8).shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="'videos' holds pictures; write the frames of each film as a list"):
        documents([{"videos": frames, **ask}])
    with pytest.raises(ValueError, match="frame 2 of a film: gone.png is not in"):
        documents([{"videos": [["a.png", "gone.png"]], **ask}])
    wave = torch.linspace(-0.5, 0.5, 800)
    for array in (wave.tolist(), [wave.tolist(), wave.tolist()], (wave * 32767).round().int().tolist()):
        sound = documents([{"audio": {"array": array, "sampling_rate": 16000, "path": None}, "text": "x"}])
        assert (load_audio(sound[0].turns[0].parts[0].data, 16000) - wave).abs().max() < 1e-4
    for audio, message in (
        ({"array": [0.1], "sampling_rate": None}, "sampling_rate is None; give whole hertz"),
        ({"array": ["a"], "sampling_rate": 8000}, "is no list of numbers"),
        ({"array": [70000], "sampling_rate": 8000}, "integers of more than 16 bits"),
        ({"array": [[[0.1]]], "sampling_rate": 8000}, r"has the shape \[1, 1, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            documents([{"audio": audio, "text": "x"}])


def test_a_part_of_a_file_is_kept(documents):
    part = {"type": "audio", "path": "s.wav", "start_s": 0.05, "seconds": 0.1}
    film = {"type": "video", "video": "v.gif", "video_start": 0.1, "video_end": 0.3, "fps": 2.0}
    found = documents([{"messages": [{"role": "user", "content": [part, film]}, PLAIN[1]]}])[0]
    times = [(part.start_s, round(part.seconds, 6)) for part in found.turns[0].parts]
    assert times == [(0.05, 0.1), (0.1, 0.2)]
    for wrong, message in (
        ({"type": "image", "path": "a.png", "seconds": 1}, "a picture has no duration"),
        ({"type": "audio", "path": "s.wav", "start_s": "x"}, "start_s of a part is 'x'; give seconds"),
        ({"type": "image", "image": "a.png", "caption": "x"}, "has caption beside its file, which would be lost"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            documents([{"messages": [{"role": "user", "content": [wrong]}, PLAIN[1]]}])
        assert "\n" not in str(caught.value)


def test_plain_text_is_learnt_whole(documents):
    assert documents([{"text": "once upon a time"}])[0] == Document([Turn("assistant", "once upon a time")])


def test_our_own_typed_parts_may_bring_bytes_and_codes(documents, media):
    data = (media / "a.png").read_bytes()
    encoded = base64.b64encode(data).decode()
    content = [
        {"type": "image", "data": encoded},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
        {"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}},
        {"type": "video", "codes": [5, 6]},
        {"type": "image", "image": encoded},
        {"type": "image", "bytes": encoded},
        {"type": "image", "base64": encoded},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": encoded}},
    ]
    found = documents([{"messages": [{"role": "user", "content": content}, PLAIN[1]]}])[0]
    expected = (Image(data=data), Image(data=data), Audio(data=data), Video(codes=[5, 6]), *[Image(data=data)] * 4)
    assert found.turns[0].parts == expected


def test_pairs_in_both_directions(documents, media):
    row = {"image": "a.png", "caption": "an apple"}
    picture = Image(path=str(media / "a.png"))
    assert documents([row])[0] == said(media, picture, Text("What is this?"))
    asked = documents([row], pairs={"question": "Name it."})[0]
    assert asked == said(media, picture, Text("Name it."))
    drawn = documents([row], pairs={"direction": "text_to_media", "wish": "Draw {text}."})[0]
    assert drawn == Document([Turn("user", "Draw an apple."), Turn("assistant", [picture])])
    sound = documents([{"audio": "s.wav", "sentence": "hello"}])[0]
    assert sound == said(media, Audio(path=str(media / "s.wav")), Text("What is said?"), answer="hello")
    with pytest.raises(ValueError, match=r"the wish must hold \{text\}"):
        documents([row], pairs={"wish": "Draw it."})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "tool", "content": "x"}]}, "role 'tool' is unknown; use system, user"),
        ({"conversations": [{"from": "observation", "value": "x"}]}, "role 'observation' is unknown"),
        ({"messages": PLAIN[:1]}, "no message is by the assistant"),
        ({"messages": []}, "there are no messages"),
        ({"messages": [PLAIN[0], {"role": "assistant", "content": ""}]}, "the assistant's messages are empty"),
        ({"messages": "hello"}, "messages must be a list of objects, this one is str"),
        ({"messages": [PLAIN[0], {"role": "assistant", "content": None}]}, "content must be a text or a list"),
        ({"messages": [PLAIN[0], {"role": "assistant", "content": "\ud800"}]}, "lone surrogate"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}, PLAIN[1]]}, "part type 'smell' is unknown"),
        ({"prompt": "a", "completion": "b", "chosen": "c"}, "'chosen' is of a preference dataset"),
        ({"messages": PLAIN, "tools": [{"name": "f"}]}, "'tools' describes tools"),
        ({"conversations": FROM, "images": ["a.png"], "image": "a.png"}, "both 'images' and 'image' are given"),
        ({"conversations": [{"from": "human", "value": 3}]}, "a turn must be a text, this one is int"),
        ({"messages": MARKED, "images": [5]}, r"medium \(image\) is given as int; use a path, bytes"),
        ({"messages": MARKED, "images": [{"bytes": None, "path": None}]}, "is a dict with bytes, path"),
        ({"messages": MARKED, "images": ["gone.png"]}, "gone.png is not in .*; check the path or set media_root"),
        ({"messages": MARKED, "images": [{"data": "no base64!"}]}, "is not base64"),
        ({"query": "a", "response": "b", "history": [["x"]]}, "pairs of question and answer"),
        ({"image": "a.png", "text": "x", "caption": "y"}, "text and caption of the columns"),
    ],
)  # fmt: skip
def test_a_bad_row_says_what_is_wrong(documents, row, message):
    with pytest.raises(ValueError, match=rf"rows.jsonl line 1: .*{message}") as caught:
        documents([row])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="has no usable row; the first of 1 bad rows is"):
        documents([row], on_bad_row="skip")


def test_columns_that_fit_no_format_are_named(documents):
    with pytest.raises(ValueError, match="no format is known for the columns better, worse"):
        documents([{"better": "a", "worse": "b"}])
