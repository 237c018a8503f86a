"""What a user masked is not learnt: messages that are masked, preference rows, tools; and media are never lost."""

import base64

import pytest

from unimodal.sequence.document import Image, Text

ASKED = {"role": "user", "content": "which fruit?"}
WRONG = {"role": "assistant", "content": "a pear"}
RIGHT = {"role": "assistant", "content": "an apple"}
AGAIN = {"role": "user", "content": "look again"}

MASKS = [{"loss": False}, {"loss": 0}, {"weight": 0}, {"weight": 0.0}, {"train": False}, {"learn": False},
         {"training": False}, {"loss_scale": 0.0}]  # fmt: skip


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("name", ["trl", "ms_swift", "sharegpt", "llama_factory", "typed"])
def test_a_masked_answer_is_read_and_not_learnt(documents, media, mask, name):
    messages = [ASKED, WRONG | mask, AGAIN, RIGHT]
    if name == "typed":
        part = [{"type": "image", "path": "a.png"}]
        messages = [ASKED | {"content": part}, *messages[1:]]
    rows = [{"conversations" if name == "sharegpt" else "messages": messages}]
    found = documents(rows, format="trl" if name == "typed" else name)[0]
    assert [turn.is_learnt for turn in found.turns] == [False, False, False, True]
    assert found.turns[1].text == "a pear"


@pytest.mark.parametrize("shown", [{"loss": True}, {"loss": 1}, {"weight": 1}, {"loss": None}, {}], ids=str)
def test_an_answer_is_learnt_unless_it_is_masked(documents, shown):
    assert documents([{"messages": [ASKED, RIGHT | shown]}])[0].turns[1].is_learnt


ASK = {"prompt": "which fruit?", "completion": "an apple"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [ASKED, RIGHT | {"loss": False}]}, "every message of the assistant is masked"),
        ({"messages": [ASKED, RIGHT | {"weight": 0.5}]}, "'weight' of a message is 0.5; an answer is learnt .1, true."),
        ({"messages": [ASKED, RIGHT | {"loss": "no"}]}, "'loss' of a message is 'no'"),
        ({"messages": [ASKED | {"loss": True}, RIGHT]}, "'loss' of a message of the user is True; only the assistant"),
        ({"messages": [ASKED | {"training": True}, RIGHT]}, "'training' of a message of the user is True"),
        ({"messages": [ASKED, RIGHT | {"loss_scale": 2.0}]}, "'loss_scale' of a message is 2.0"),
        ({"messages": [ASKED, RIGHT | {"train_detail": [{"begin_offset": 0}]}]}, "'train_detail' .* masks pieces"),
        ({"messages": [ASKED | {"content": "<image>what?"}, RIGHT]}, "a text holds <image> and no column holds images"),
        ({"messages": [ASKED | {"content": "<video>what?"}, RIGHT]}, "a text holds <video> and no column holds videos"),
        ({"messages": [ASKED | {"content": "<audio>what?"}, RIGHT]}, "a text holds <audio> and no column holds audios"),
        ({"messages": [ASKED | {"from": "gpt"}, RIGHT]}, "'from' and 'role', which differ"),
        ({"messages": [ASKED | {"value": "why?"}, RIGHT]}, "'value' and 'content', which differ"),
        *(
            ({"messages": [ASKED | {"content": [{"type": "text", "text": "what?", key: value}]}, RIGHT]},
             f"a part of type text has '{key}', which would be lost")
            for key, value in {"image": "a.png", "audio": "s.wav", "video": "v.gif", "path": "a.png", "codes": [1],
                               "image_url": {"url": "a.png"}}.items()
        ),
        (ASK | {"prompt": "<image>what?"}, "a text holds <image> and no column holds images; .* choose format trl"),
        ({"messages": [ASKED, RIGHT | {"tool_calls": [{"id": "1"}]}]}, "'tool_calls' of a message of the assistant is"),
        ({"messages": [ASKED, RIGHT | {"function_call": {"name": "f"}}]}, "'function_call' of a message"),
        ({"messages": [ASKED, RIGHT | {"reasoning_content": "hm"}]}, "'reasoning_content' .* write it into its text"),
        ({"messages": [ASKED | {"images": ["a.png"]}, RIGHT]}, "'images' of a message looks like a medium"),
        (ASK | {"label": False}, "'label' is False: the answer was not wanted .KTO."),
        (ASK | {"label": 0}, "'label' is 0: the answer was not wanted"),
        ({"messages": [ASKED, RIGHT], "label": "False"}, "'label' is 'False': the answer was not wanted"),
        ({"messages": [ASKED, RIGHT], "kto_tag": False}, "'kto_tag' is False"),
        (ASK | {"rejected_response": "a pear"}, "'rejected_response' is of a preference dataset"),
        ({"messages": [ASKED, RIGHT], "rejected_messages": [ASKED, WRONG]}, "'rejected_messages' is of a preference"),
        ({"prompt": "which?", "chosen": "an apple", "rejected": "a pear"}, "'chosen' is of a preference dataset"),
        ({"query": "q", "response": "r", "rejected_response": "s"}, "'rejected_response' is of a preference dataset"),
        ({"instruction": "q", "output": "r", "rejected": "s"}, "'rejected' is of a preference dataset"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:40],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_in_one_line(documents, row, message):
    with pytest.raises(ValueError, match=message) as caught:
        documents([row])
    assert "\n" not in str(caught.value)


def test_wanted_answers_of_a_kto_set_are_learnt_and_others_are_bad_rows(documents):
    rows = [ASK | {"label": True}, ASK | {"label": False}, ASK | {"label": True}]
    found = documents(rows, on_bad_row="skip")
    assert len(found) == 2 and found.bad_rows[0].where.endswith("line 2")


def test_chosen_answers_are_learnt_by_name(documents):
    row = {"prompt": "which fruit?", "chosen": "an apple", "rejected": "a pear"}
    found = documents([row], columns={"completion": "chosen"}, ignore=["rejected"])
    assert found[0].turns[1].text == "an apple"
    with pytest.raises(ValueError, match="there is no column 'wrong' to ignore; it has prompt, chosen, rejected"):
        documents([row], columns={"completion": "chosen"}, ignore=["wrong"])


@pytest.mark.parametrize(
    ("row", "column", "medium"),
    [
        ({"image_path": "a.png", "text": "an apple"}, "image_path", "image"),
        ({"img": "a.png"} | ASK, "img", "image"),
        ({"photo": "https://a.example/x.jpeg?size=3"} | ASK, "photo", "image"),
        ({"source": "sub/c.png", "messages": [ASKED, RIGHT]}, "source", "image"),
        ({"wav": "s.wav", "text": "hello"}, "wav", "audio"),
        ({"clips": ["v.gif"], "query": "what?", "response": "that"}, "clips", "image"),
        ({"film": "v.mp4", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}, "film",
         "video"),
        ({"instruction": "what?", "output": "that", "picture": {"bytes": "PNG"}}, "picture", "image"),
        ({"text": "hello", "speech": {"array": [0.0, 0.1], "sampling_rate": 16000}}, "speech", "audio"),
        ({"image": "a.png", "mask": "b.png", "text": "an apple"}, "mask", "image"),
        ({"image": "a.png", "voice": "s.wav", "text": "an apple"}, "voice", "audio"),
        ({"text": "an apple", "thing": "data:image/png;base64,aGVsbG8="}, "thing", "image"),
        ({"text": "an apple", "thing": "BASE64"}, "thing", "image"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)  # fmt: skip
def test_a_medium_in_an_unknown_column_is_an_error_that_names_it(documents, media, row, column, medium):
    encoded = base64.b64encode((media / "a.png").read_bytes()).decode()
    row = {name: encoded if value == "BASE64" else value for name, value in row.items()}
    row = {name: {"bytes": encoded} if value == {"bytes": "PNG"} else value for name, value in row.items()}
    with pytest.raises(
        ValueError, match=rf"line 1: the column '{column}' looks like a medium \({medium}: .* set columns="
    ):
        documents([row])
    assert all(isinstance(part, Text) or part.modality for part in documents([row], ignore=[column])[0].parts)


def test_a_column_is_used_once_it_is_named(documents, media):
    row = {"img": "a.png"} | ASK
    picture = Image(path=str(media / "a.png"))
    assert documents([row], columns={"image": "img"})[0].turns[0].parts == (picture, Text("which fruit?"))


@pytest.mark.parametrize(
    "notes",
    [
        {"url": "https://a.example/x.jpg"},
        {"file_name": "elsewhere.png"},
        {"image_id": 17, "key": "0001"},
        {"path": "a.png"},
        {"path": "src/main.ts", "license": "mit"},
    ],
    ids=str,
)
def test_a_note_about_a_medium_that_is_used_is_no_medium(documents, notes):
    found = documents([{"image": "a.png", "text": "an apple"} | notes])
    assert [type(part) for part in found[0].turns[0].parts] == [Image, Text]


def test_code_and_its_path_are_a_text(documents):
    assert documents([{"text": "let x = 1", "path": "src/main.ts", "size": 9}])[0].turns[0].text == "let x = 1"


@pytest.mark.parametrize(
    "row", [{"messages": [ASKED, RIGHT]}, ASK, {"query": "which fruit?", "response": "an apple"}], ids="-".join
)
def test_a_system_text_goes_before_the_messages(documents, row):
    found = documents([row | {"system": "be brief"}])[0]
    assert [(turn.role, turn.text) for turn in found.turns][0] == ("system", "be brief") and len(found.turns) == 3


def test_two_system_texts_are_refused_unless_they_are_one(documents):
    row = {"system": "be brief", "messages": [{"role": "system", "content": "be brief"}, ASKED, RIGHT]}
    assert len(documents([row])[0].turns) == 3
    with pytest.raises(ValueError, match="a column 'system' and a first message of the system"):
        documents([row | {"system": "be long"}])


def test_columns_that_are_not_used_are_told(documents):
    notes = {"id": 7, "hint": "round", "empty": "", "none": None}
    assert documents([ASK, ASK | notes]).unread == {"id", "hint"}
    assert documents([ASK | notes], ignore=["id"]).unread == {"hint"}


def test_an_image_mark_is_a_text_where_the_format_says_so(documents):
    row = ASK | {"prompt": "what does <image> do?"}
    assert documents([row], format="trl")[0].turns[0].text == "what does <image> do?"


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"messages": [{"role": "user", "content": "a", "name": "Ann"}, {"role": "assistant", "content": "b"}]},
         {"messages.name"}),
        ({"messages": [{"role": "user", "content": "a", "name": ""}, {"role": "assistant", "content": "b", "x": None}]},
         set()),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "markdown": 1}]},
         {"conversations.markdown"}),
        ({"conversation": [{"system": "be brief", "human": "a", "assistant": "b"}]}, {"conversation.system"}),
        ({"prompt": [{"role": "user", "content": "a", "id": 3}], "completion": "b"}, {"prompt.id"}),
    ],
)  # fmt: skip
def test_keys_of_messages_that_are_not_used_are_told(documents, row, names):
    assert documents([row]).unread == names
