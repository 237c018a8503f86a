"""Placeholders and media: the order is kept, the numbers must match, and what only looks like a token stays text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.campaigns import examples
from unimodal.data.importers.columns import fill_placeholders
from unimodal.data.messages import MediaPart, TextPart

PARTS = st.one_of(
    st.sampled_from(["image", "audio", "video"]).map(lambda kind: (kind, None)),
    st.text(min_size=1, max_size=12).map(lambda text: ("text", text.replace("<", "("))),
)


def flat(parts):
    """(kind, text or path) with the white space that placeholders take away gone."""
    return [(p.type, "".join(p.text.split()) if p.type == "text" else p.path) for p in parts]


@examples(20, 1000)
@given(turns=st.lists(st.lists(PARTS, max_size=6), max_size=4), blank=st.sampled_from(["", " ", "\n", " \n "]))
def test_every_medium_comes_back_in_its_place(turns, blank):
    """Texts and media written into placeholders and lists give, when filled, the parts they were made of."""
    lists = {"image": [], "audio": [], "video": []}
    texts, expected = [], []
    for turn in turns:
        text, parts = "", []
        for kind, value in turn:
            if kind == "text":
                text += value
                parts.append(("text", value))
            else:
                path = f"{kind}{len(lists[kind])}"
                lists[kind].append(MediaPart(type=kind, path=path))
                text += f"{blank}<{kind}>{blank}"
                parts.append((kind, path))
        texts.append(text)
        joined = []
        for kind, value in parts:  # neighbouring texts are one text
            value = "".join(value.split()) if kind == "text" else value
            if kind == "text" and joined and joined[-1][0] == "text":
                joined[-1] = ("text", joined[-1][1] + value)
            else:
                joined.append((kind, value))
        expected.append([part for part in joined if part[1]])
    filled = [[part for part in flat(parts) if part[1]] for parts in fill_placeholders(texts, lists)]
    assert filled == expected


@given(marks=st.integers(0, 5), files=st.integers(0, 5), kind=st.sampled_from(["image", "audio", "video"]))
def test_numbers_that_differ_are_an_error_that_names_both(marks, files, kind):
    texts, media = [f"x <{kind}>" * marks], {kind: [MediaPart(type=kind, path="f")] * files}
    if marks == files:
        assert len(fill_placeholders(texts, media)[0]) == (2 * marks or 1)
        return
    with pytest.raises(
        ValueError, match=rf"hold {marks} of the placeholder <{kind}> but the row brings {files} of {kind}"
    ):
        fill_placeholders(texts, media)


@pytest.mark.parametrize(("marks", "files"), [(0, 1), (1, 0), (1, 2), (2, 1)])
def test_the_numbers_are_named_with_the_line(documents, marks, files):
    row = {
        "conversations": [{"from": "human", "value": "<image>" * marks + "what?"}, {"from": "gpt", "value": "this"}],
        "images": ["a.png"] * files,
    }
    good = {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]}
    with pytest.raises(ValueError, match=rf"line 2: the texts hold {marks} of the .* brings {files} of image"):
        documents([good, row])


@pytest.mark.parametrize(("bare", "files"), [(0, 1), (2, 1), (1, 2)])
def test_typed_parts_and_media_must_match_too(documents, bare, files):
    content = [{"type": "image"}] * bare + [{"type": "text", "text": "what?"}]
    row = {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "this"}],
        "images": ["a.png"] * files,
    }
    with pytest.raises(
        ValueError, match=f"messages hold {bare} parts of type image but the row brings {files} of image"
    ):
        documents([row])


def test_ms_swift_adds_placeholders_only_where_there_is_none(documents):
    def row(text, files):
        return {"query": text, "response": "this", "images": ["a.png"] * files}

    assert [p.modality for p in documents([row("what?", 2)])[0].turns[0].parts[:2]] == ["image", "image"]
    with pytest.raises(ValueError, match="hold 1 of the placeholder <image> but the row brings 2"):
        documents([row("<image>what?", 2)])


def test_a_placeholder_is_plain_text_where_media_are_typed(documents):
    """In TRL's typed parts `<image>` is a text; where it could mean either, the row is refused."""
    content = [{"type": "image"}, {"type": "text", "text": "what does <image> mean?"}]
    answer = {"role": "assistant", "content": "a tag"}
    found = documents([{"messages": [{"role": "user", "content": content}, answer], "images": ["a.png"]}], format="trl")
    assert found[0].turns[0].text == "what does <image> mean?"
    unclear = {"messages": [{"role": "user", "content": "<image> what?"}, answer], "images": ["a.png"]}
    with pytest.raises(ValueError, match="a text holds <image>, .*; choose format llama_factory"):
        documents([unclear], format="trl")


@pytest.mark.parametrize(
    "text", ["<|image_0003|>", "<|user|> hi <|end_of_turn|>", "<Image>", "< image>", "<|image_start|>"]
)
@pytest.mark.parametrize("shape", ["messages", "conversations", "prompt"])
def test_text_that_spells_tokens_stays_text(documents, text, shape):
    turns = {
        "messages": {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]},
        "conversations": {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": text}]},
        "prompt": {"prompt": text, "completion": text},
    }
    found = documents([turns[shape]])[0]
    assert [(turn.text, len(turn.parts)) for turn in found.turns] == [(text, 1), (text, 1)]


def test_white_space_inside_a_text_is_kept():
    [parts] = fill_placeholders(["  two\n\nlines <image>\n and  more "], {"image": [MediaPart(type="image", path="f")]})
    assert parts[0] == TextPart(text="  two\n\nlines") and parts[2] == TextPart(text="and  more ")
