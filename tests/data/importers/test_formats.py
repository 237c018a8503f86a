"""The same conversation, written in every format, is the same document; and each format's own rules."""

import base64

import pytest

from unimodal.data.datasets import FORMATS, DatasetConfig
from unimodal.data.importers import IMPORTERS
from unimodal.sequence.document import Audio, Document, Image, Text, Turn, Video

QUESTION = {"type": "text", "text": "what is this?"}
TYPED = [
    {"role": "user", "content": [{"type": "image"}, QUESTION]},
    {"role": "assistant", "content": [{"type": "text", "text": "an apple"}]},
]
PLAIN = [{"role": "user", "content": "what is this?"}, {"role": "assistant", "content": "an apple"}]
MARKED = [{"role": "user", "content": "<image>\nwhat is this?"}, {"role": "assistant", "content": "an apple"}]
FROM = [{"from": "human", "value": "<image>\nwhat is this?"}, {"from": "gpt", "value": "an apple"}]

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
    ]
    found = documents([{"messages": [{"role": "user", "content": content}, PLAIN[1]]}])[0]
    expected = (Image(data=data), Image(data=data), Audio(data=data), Video(codes=[5, 6]))
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
    with pytest.raises(ValueError, match="no format is known for the columns chosen, rejected"):
        documents([{"chosen": "a", "rejected": "b"}])
