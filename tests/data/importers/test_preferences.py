"""Rows of preference training in the layouts of TRL, ms-swift and LLaMA-Factory: two answers to one question."""

import os

import pytest

from unimodal.data.datasets import DatasetConfig, open_dataset
from unimodal.sequence.document import Document, Image, Text, Turn

ASKED = {"role": "user", "content": "which fruit?"}
RIGHT = {"role": "assistant", "content": "an apple"}
WRONG = {"role": "assistant", "content": "a pear"}
FROM = [{"from": "human", "value": "which fruit?"}]

SAME = {
    "TRL": {"prompt": "which fruit?", "chosen": "an apple", "rejected": "a pear"},
    "Axolotl, Intel": {"question": "which fruit?", "chosen": "an apple", "rejected": "a pear"},
    "TRL, conversational": {"prompt": [ASKED], "chosen": [RIGHT], "rejected": [WRONG]},
    "TRL, one message": {"prompt": [ASKED], "chosen": RIGHT, "rejected": WRONG},
    "TRL, without prompt": {"chosen": [ASKED, RIGHT], "rejected": [ASKED, WRONG]},
    "TRL, the prompt once more": {"prompt": "which fruit?", "chosen": [ASKED, RIGHT], "rejected": [ASKED, WRONG]},
    "UltraFeedback": {"prompt": "which fruit?", "messages": [ASKED, RIGHT], "chosen": [ASKED, RIGHT],
                      "rejected": [ASKED, WRONG], "score_chosen": 8.0, "score_rejected": 2.0},
    "ms-swift": {"messages": [ASKED, RIGHT], "rejected_response": "a pear"},
    "ms-swift, messages": {"messages": [ASKED, RIGHT], "rejected_messages": [ASKED, WRONG]},
    "ms-swift, query": {"query": "which fruit?", "response": "an apple", "rejected_response": "a pear"},
    "LLaMA-Factory, Alpaca": {"instruction": "which fruit?", "input": "", "chosen": "an apple", "rejected": "a pear"},
    "LLaMA-Factory, ShareGPT": {"conversations": FROM, "chosen": {"from": "gpt", "value": "an apple"},
                                "rejected": {"from": "gpt", "value": "a pear"}},
    "LLaMA-Factory, messages": {"messages": [ASKED], "chosen": RIGHT, "rejected": WRONG},
    "as JSON": {"prompt": "which fruit?", "chosen": '[{"role": "assistant", "content": "an apple"}]',
                "rejected": '[{"role": "assistant", "content": "a pear"}]'},
}  # fmt: skip


@pytest.fixture
def opened(write, media):
    def open_rows(rows, kind="pairs", **settings):
        return open_dataset(DatasetConfig(path=write(rows), media_root=media, **settings), kind=kind)

    return open_rows


def sides(found, index=0):
    return found[index], found.show_rejected()[index]


@pytest.mark.parametrize("name", SAME)
def test_all_layouts_say_the_same_pair(opened, name):
    chosen, rejected = sides(opened([SAME[name]]))
    assert chosen == Document([Turn("user", "which fruit?"), Turn("assistant", "an apple")])
    assert rejected == Document([Turn("user", "which fruit?"), Turn("assistant", "a pear")])


def test_answers_without_a_question_are_a_pair(opened):
    chosen, rejected = sides(opened([{"chosen": "an apple", "rejected": "a pear"}]))
    assert (chosen.turns, rejected.turns) == ((Turn("assistant", "an apple"),), (Turn("assistant", "a pear"),))


def test_earlier_answers_belong_to_the_question(opened):
    row = {"chosen": [ASKED, WRONG, ASKED, RIGHT], "rejected": [ASKED, WRONG, ASKED, WRONG]}
    for document in sides(opened([row])):
        assert [turn.is_learnt for turn in document.turns] == [False, False, False, True]


def test_pictures_are_asked_about_and_made(opened, media):
    a, b = (str(media / name) for name in ("a.png", "b.png"))
    about = {"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "which fruit?"}]}],
             "chosen": [RIGHT], "rejected": [WRONG], "images": ["a.png"]}  # fmt: skip
    chosen, rejected = sides(opened([about]))
    assert chosen.turns[0] == rejected.turns[0] == Turn("user", [Image(path=a), Text("which fruit?")])
    made = {"query": "draw an apple", "response": "<image>", "rejected_response": "<image>", "images": ["a.png"],
            "rejected_images": ["b.png"]}  # fmt: skip
    chosen, rejected = sides(opened([made]))
    assert (chosen.turns[1].parts, rejected.turns[1].parts) == ((Image(path=a),), (Image(path=b),))
    parts = [[{"role": "assistant", "content": [{"type": "image", "path": name}]}] for name in ("a.png", "b.png")]
    chosen, rejected = sides(opened([{"prompt": "draw an apple", "chosen": parts[0], "rejected": parts[1]}]))
    assert (chosen.turns[1].parts, rejected.turns[1].parts) == ((Image(path=a),), (Image(path=b),))


COLUMNS = {"image": ("images", "a.png", "b.png"), "audio": ("audios", "s.wav", "sub/t.wav"),
           "video": ("videos", "v.gif", "w.gif")}  # fmt: skip


@pytest.fixture
def two_of_each(media):
    for one, other in (("s.wav", "sub/t.wav"), ("v.gif", "w.gif")):
        (media / other).write_bytes((media / one).read_bytes())


def list_media(document):
    return [os.path.basename(part.path) for turn in document.turns for part in turn.parts if not isinstance(part, Text)]


@pytest.mark.parametrize("medium", COLUMNS)
@pytest.mark.parametrize("form", ["response", "messages", "query", "equal answers", "chosen"])
@pytest.mark.parametrize("given", ["another", "none", "null", "left out"])
def test_the_rejected_answer_has_the_media_that_its_columns_say(opened, two_of_each, medium, form, given):
    column, one, other = COLUMNS[medium]
    mark = f"<{medium}>" if given == "another" else ""
    asked = {"role": "user", "content": f"{mark}which fruit?"}
    row = {
        "response": {"messages": [asked, RIGHT], "rejected_response": "a pear"},
        "messages": {"messages": [asked, RIGHT], "rejected_messages": [asked, WRONG]},
        "query": {"query": asked["content"], "response": "an apple", "rejected_response": "a pear"},
        "equal answers": {"messages": [asked, RIGHT]},
        "chosen": {"messages": [asked], "chosen": RIGHT, "rejected": WRONG},
    }[form] | {column: [one]}
    row |= {"another": {f"rejected_{column}": [other]}, "none": {f"rejected_{column}": []},
            "null": {f"rejected_{column}": None}, "left out": {}}[given]  # fmt: skip
    if given in ("null", "left out") and form in ("messages", "equal answers"):
        message = "has no pair of answers" if form == "equal answers" else f"give 'rejected_{column}' too"
        with pytest.raises(ValueError, match=message):
            opened([row], format="ms_swift")
        return
    chosen, rejected = sides(opened([row], format="ms_swift"))
    assert list_media(chosen) == [one]
    assert list_media(rejected) == {"another": [os.path.basename(other)], "none": []}.get(given, [one])
    answers = [[turn.text for turn in document.turns if turn.is_learnt] for document in (chosen, rejected)]
    assert answers == [["an apple"], ["an apple" if form == "equal answers" else "a pear"]]


def test_an_answer_of_several_messages_takes_the_place_of_all_behind_the_question(opened):
    row = {"messages": [ASKED, RIGHT, RIGHT], "rejected_response": [WRONG]}
    chosen, rejected = sides(opened([row]))
    assert [turn.text for turn in chosen.turns] == ["which fruit?", "an apple", "an apple"]
    assert [turn.text for turn in rejected.turns] == ["which fruit?", "a pear"]


def test_other_words_about_other_media_are_no_pair(opened):
    row = {"messages": [ASKED, RIGHT], "images": ["a.png"], "rejected_images": ["b.png"],
           "rejected_messages": [ASKED | {"content": "what?"}, WRONG]}  # fmt: skip
    with pytest.raises(ValueError, match="belongs to another question"):
        opened([row])
    with pytest.raises(ValueError, match="are equal, so there is nothing to prefer"):
        opened([{"messages": [ASKED, RIGHT], "images": ["a.png"], "rejected_images": ["a.png"]}])


def test_what_is_said_of_the_answers_and_not_used_is_told(opened):
    found = opened([SAME["TRL"] | {"chosen_rating": 5, "rejected_rating": 1, "id": 7}])
    assert found.unread == {"chosen_rating", "rejected_rating", "id"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "which fruit?", "completion": "an apple"}, "has no pair of answers; give chosen and rejected"),
        ({"prompt": "which fruit?", "chosen": "an apple"}, "has no pair of answers"),
        (SAME["TRL"] | {"rejected": "an apple"}, "the chosen and the rejected answer are equal"),
        ({"chosen": [ASKED, RIGHT], "rejected": [ASKED | {"content": "what?"}, WRONG]}, "belongs to another question"),
        ({"chosen": [ASKED, RIGHT, ASKED, RIGHT], "rejected": [ASKED, RIGHT]}, "no message|ends where the other"),
        ({"chosen": [ASKED, RIGHT | {"weight": 0}], "rejected": [ASKED, WRONG]}, "is masked"),
        ({"messages": [ASKED], "rejected_response": "a pear"}, "needs messages that end with the assistant's answer"),
        ({"query": "which fruit?", "rejected_response": "a pear"}, "no response or messages with the preferred"),
        (SAME["TRL"] | {"image_path": "a.png"}, "'image_path' looks like a medium"),
        (SAME["TRL"] | {"rejected": 3}, "completion must be a list of objects"),
        ({"chosen": [], "rejected": []}, "chosen holds no message"),
        ({"messages": [ASKED, RIGHT], "rejected_response": [WRONG, ASKED]}, "that are not the assistant's"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:40],
)
def test_a_row_that_is_no_pair_is_refused_in_one_line(opened, row, message):
    with pytest.raises(ValueError, match=rf"rows.jsonl.*{message}") as caught:
        opened([row])
    assert "\n" not in str(caught.value)


LABELLED = {
    "TRL": {"prompt": "which fruit?", "completion": "an apple", "label": True},
    "ms-swift": {"messages": [ASKED, RIGHT], "label": 1},
    "LLaMA-Factory": {"conversations": [*FROM, {"from": "gpt", "value": "an apple"}], "kto_tag": True},
    "LLaMA-Factory, Alpaca": {"instruction": "which fruit?", "output": "an apple", "kto_tag": "true"},
}


@pytest.mark.parametrize("name", LABELLED)
def test_all_layouts_say_the_same_label(opened, name):
    key = "label" if "label" in LABELLED[name] else "kto_tag"
    found = opened([LABELLED[name], LABELLED[name] | {key: False}], "labels")
    assert found[0] == found[1] == Document([Turn("user", "which fruit?"), Turn("assistant", "an apple")])
    assert [found.is_good(0), found.is_good(1)] == [True, False]


def test_labels_of_a_csv_file_are_texts(opened):
    found = opened([LABELLED["TRL"] | {"label": label} for label in ("1", "0", " True", "FALSE")], "labels")
    assert [found.is_good(number) for number in range(4)] == [True, False, True, False]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({}, "has no label"),
        ({"label": 0.5}, "'label' is 0.5"),
        ({"label": "yes"}, "'label' is 'yes'"),
        ({"label": True, "kto_tag": False}, "'label' is True and 'kto_tag' is False; name one of them in ignore"),
    ],
)
def test_a_row_without_a_label_is_refused(opened, label, message):
    with pytest.raises(ValueError, match=message):
        opened([{"prompt": "which fruit?", "completion": "an apple"} | label], "labels")


QUESTIONS = {
    "TRL": {"prompt": "which fruit?"},
    "TRL, conversational": {"prompt": [ASKED]},
    "ms-swift": {"messages": [ASKED]},
    "ms-swift, as JSON": {"messages": '[{"role": "user", "content": "which fruit?"}]'},
    "ms-swift, query": {"query": "which fruit?"},
    "LLaMA-Factory": {"conversations": FROM},
    "LLaMA-Factory, Alpaca": {"instruction": "which fruit?", "input": ""},
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_all_layouts_say_the_same_question(opened, name):
    [document] = opened([QUESTIONS[name]], "prompts")
    assert document == Document([Turn("user", "which fruit?")])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": []}, "asks nothing: its question has to end with a message of the user"),
        ({"prompt": [{"role": "system", "content": "be brief"}]}, "its last one is the system's"),
        ({"prompt": [ASKED, RIGHT]}, "its last one is the assistant's"),
        ({"text": "an apple"}, "asks nothing"),
        ({"messages": [RIGHT]}, "asks nothing"),
        ({"messages": [ASKED, RIGHT, RIGHT]}, "its last one is the assistant's"),
    ],
)
def test_a_row_that_asks_nothing_is_refused(opened, row, message):
    with pytest.raises(ValueError, match=message):
        opened([row], "prompts")
