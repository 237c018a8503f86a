"""The formats of Emu3, Chameleon and Janus: what they write is read back, and text never becomes a turn."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tests.campaigns import examples
from tests.sequence.masks import check_masks
from tests.tiny_checkpoints import byte_bpe
from unimodal.sequence.document import Document, Image, Text, Turn
from unimodal.sequence.templates.open import open_template
from unimodal.sequence.templates.own import IGNORE
from unimodal.vocabulary import Block, Control, Segment, SpanLayout, read_vocabulary
from unimodal.vocabulary.adopted import AdoptedVocabulary
from unimodal.vocabulary.grid import GridMarks

NAMES = [
    "image_start", "image_end", "bos", "eos", "end_of_turn", "pad", "user", "assistant", "open", "end_of_row",
    "end_of_grid",
]  # fmt: skip
NUM_CODES = 16


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    """The three templates over one tokenizer whose codes lie between its text rows and its marks."""
    folder = tmp_path_factory.mktemp("words")
    specials = [*[f"<code {code}>" for code in range(NUM_CODES)], *[f"<{name}>" for name in NAMES]]
    raw = byte_bpe(specials, first=False)
    (folder / "tokenizer.json").write_text(raw.to_str())
    row = raw.token_to_id
    controls = [Control(f"<|{name}|>", row(f"<{name}>")) for name in NAMES[:8]]
    block = Block(name="image", modality="image", start=row("<code 0>"), size=NUM_CODES)
    marks = GridMarks(
        digits=tuple(row(str(digit)) for digit in range(10)), times=row("*"), open=row("<open>"),
        end_of_row=row("<end_of_row>"), end_of_grid=row("<end_of_grid>"), grid=(2, 3),
    )  # fmt: skip
    reserved = marks.marks
    made = {}
    for name in ("emu3", "chameleon", "janus"):
        layout = SpanLayout("image", [Segment("image", 6)], marks if name == "emu3" else None)
        vocabulary = AdoptedVocabulary(raw.get_vocab_size() + 4, controls, [block], [layout], reserved)
        vocabulary.save(folder / "vocabulary.json")
        assert read_vocabulary(folder / "vocabulary.json") == vocabulary
        made[name] = open_template(name, read_vocabulary(folder / "vocabulary.json"), folder)
    return made


words = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n:<>*0123456789")), min_size=1, max_size=24
).filter(lambda text: "USER: " not in f"{text} " and "ASSISTANT:" not in text)
codes = st.lists(st.integers(0, NUM_CODES - 1), min_size=6, max_size=6)


def pictures(name):
    grids = st.sampled_from([(2, 3), (3, 2), (1, 6), (6, 1)]) if name == "emu3" else st.none()
    return st.builds(lambda ids, grid: Image(codes=ids, grid=grid), codes, grids)


def documents(name):
    texts = st.lists(words.map(Text), min_size=1, max_size=2)
    mixed = st.lists(st.one_of(words.map(Text), pictures(name)), min_size=1, max_size=3)
    asked = texts if name == "janus" else mixed
    answered = mixed if name == "chameleon" else texts
    exchange = st.tuples(asked, answered).map(lambda both: [Turn("user", both[0]), Turn("assistant", both[1])])
    chats = st.lists(exchange, min_size=1, max_size=2).map(lambda found: [turn for pair in found for turn in pair])
    if name != "chameleon":
        system = st.one_of(st.just([]), texts.map(lambda parts: [Turn("system", parts)]))
        chats = st.tuples(system, chats).map(lambda both: [*both[0], *both[1]])
        drawn = st.tuples(texts, pictures(name)).map(lambda b: [Turn("user", b[0]), Turn("assistant", [b[1]])])
        chats = st.one_of(chats, drawn)
    return st.one_of(chats, chats.map(lambda turns: turns[:-1])).map(Document)


@pytest.mark.parametrize("name", ["emu3", "chameleon", "janus"])
@examples(25)
@given(data=st.data())
def test_what_is_written_is_read_back(formats, name, data):
    template, document = formats[name], data.draw(documents(name))
    rendered = template.render(document)
    assert template.parse(rendered.ids) == document.canonicalize()
    padded = np.concatenate([rendered.ids, np.full(3, template.vocabulary.get_control_id("pad"))])
    assert template.parse(padded) == document.canonicalize()


@pytest.mark.parametrize("name", ["emu3", "chameleon", "janus"])
@examples(25)
@given(data=st.data())
def test_the_answer_is_what_is_learnt_and_stands_behind_its_prompt(formats, name, data):
    template, document = formats[name], data.draw(documents(name))
    if document.turns[-1].role != "assistant":
        return
    asked, answer = Document(document.turns[:-1]), document.turns[-1].canonicalize()
    drawn = isinstance(answer.parts[0], Image)
    prompt = template.render(asked, add_generation_prompt=True, to="image" if drawn else "text").ids
    rendered = template.render(document)
    behind = rendered.ids[len(prompt) :]
    assert rendered.ids[: len(prompt)].tolist() == prompt.tolist()
    assert template.parse_answer(behind) == answer.parts
    assert rendered.labels[len(prompt) :].tolist() == behind.tolist()
    earlier = [turn for turn in asked.turns if turn.role == "assistant"]
    assert bool((rendered.labels[: len(prompt)] != IGNORE).any()) == bool(earlier)
    assert bool((rendered.modality == 1).any()) == any(isinstance(part, Image) for part in document.parts)


@pytest.mark.parametrize("name", ["emu3", "chameleon", "janus"])
@examples(15)
@given(data=st.data(), masks=st.lists(st.booleans(), min_size=8, max_size=8))
def test_a_masked_turn_has_the_same_ids_and_no_labels(formats, name, data, masks):
    check_masks(formats[name], data.draw(documents(name)), masks)


def chat(*turns):
    return Document([Turn(role, parts) for role, parts in turns])


@pytest.mark.parametrize(
    ("name", "document", "message"),
    [
        ("emu3", chat(("user", "it is ASSISTANT: yes")), "'ASSISTANT:', which begins a turn"),
        ("emu3", chat(("user", "hello USER:")), "'USER:', which begins a turn"),
        ("emu3", chat(("user", "a"), ("assistant", "USER: b")), "which begins a turn"),
        ("emu3", chat(("system", "alone")), "has a user's turn"),
        ("emu3", chat(("user", "a"), ("system", "late")), "system turn is the first"),
        ("emu3", chat(("user", "a"), ("assistant", [Text("see"), Image(codes=[1] * 6)])), "no words beside it"),
        ("emu3", chat(("system", "s"), ("user", "a"), ("assistant", [Image(codes=[1] * 6)])), "one prompt of words"),
        ("emu3", chat(("user", [Image(codes=[1] * 4)])), "4 codes are not 2 rows of 3"),
        ("emu3", chat(("user", [Image(codes=[16] * 6)])), "must lie in 0..15"),
        ("emu3", chat(("user", [Image(path="a.png")])), "'a.png' has no codes yet"),
        ("chameleon", chat(("system", "s"), ("user", "a")), "turn 1 is the system's; Chameleon's turns alternate"),
        ("chameleon", chat(("user", "a"), ("user", "b")), "turn 2 is the user's"),
        ("chameleon", chat(("user", [Image(codes=[1] * 5)])), "exactly 6"),
        ("janus", chat(("user", [Image(codes=[1] * 6)])), "was converted without their reader"),
        ("janus", chat(("user", "a"), ("assistant", [Text("see"), Image(codes=[1] * 6)])), "no words beside it"),
        ("janus", chat(("user", "a"), ("system", "s")), "system turn is the first"),
    ],
)
def test_what_a_format_cannot_say_is_one_line(formats, name, document, message):
    with pytest.raises(ValueError, match=message) as error:
        formats[name].render(document)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["emu3", "chameleon", "janus"])
def test_ids_that_are_not_the_format(formats, name):
    template = formats[name]
    vocabulary = template.vocabulary
    code, bos = vocabulary.get_block_range("image")[0], vocabulary.get_control_id("bos")
    with pytest.raises(ValueError, match=rf"row {code}, which this model's format does not use"):
        template.parse([bos, code])
    with pytest.raises(ValueError, match="image span that begins at token 1 has no end"):
        template.parse([bos, vocabulary.get_start_id("image"), code])
    with pytest.raises(ValueError):
        template.parse([bos, vocabulary.get_control_id("end_of_turn"), bos])


def test_the_official_prompts(formats):
    """Word for word, where a document has the shape that the releases show."""
    text = formats["emu3"].text
    picture = Image(codes=[3] * 6)
    chat_ids = (
        formats["emu3"]
        .render(chat(("system", "You are a helpful assistant."), ("user", [picture, Text("Describe it.")])), True)
        .ids.tolist()
    )
    span = formats["emu3"].vocabulary.encode_span("image", picture.codes)
    bos = formats["emu3"].vocabulary.get_control_id("bos")
    before, after = "You are a helpful assistant. USER: ", "Describe it. ASSISTANT:"
    assert chat_ids == [bos, *text.encode(before), *span, *text.encode(after)]
    drawing = formats["emu3"].render(chat(("user", "a red apple")), True, "image").ids.tolist()
    assert drawing == [bos, *text.encode("a red apple")]
    assert formats["emu3"].render(chat(("user", "")), True, "image").ids.tolist() == [bos]
    user, assistant = (formats["janus"].vocabulary.get_control_id(role) for role in ("user", "assistant"))
    janus = formats["janus"].render(chat(("system", "Be kind."), ("user", "Why?")), True).ids.tolist()
    assert janus == [
        bos, *text.encode("Be kind.\n\n"), user, *text.encode(": Why?\n\n"), assistant, *text.encode(":"),
    ]  # fmt: skip
    other = formats["janus"].render_unconditional(chat(("user", "Why?")), None, "image").ids
    assert set(other[1:]) == {formats["janus"].vocabulary.get_control_id("pad")} and other[0] == bos


def test_what_chameleon_is_guided_away_from(formats):
    """The release's own: all but words and marks."""
    template = formats["chameleon"]
    bos, picture = template.vocabulary.get_control_id("bos"), Image(codes=[3] * 6)
    assert template.render_unconditional(chat(("user", "a red apple")), None, "image").ids.tolist() == [bos]
    document = chat(("user", [Text("like this"), picture]), ("assistant", "a cat"), ("user", "in blue"))
    span = template.vocabulary.encode_span("image", picture.codes)
    assert template.render_unconditional(document, None, "image").ids.tolist() == [bos, *span]
    negative = chat(("user", "a dog"))
    found = template.render_unconditional(document, negative, "image").ids.tolist()
    assert found == template.render(negative, add_generation_prompt=True).ids.tolist()


def test_a_format_that_is_not_known(formats, tmp_path):
    with pytest.raises(ValueError, match="'llava' is unknown; there are unimodal, emu3, chameleon, janus"):
        open_template("llava", formats["emu3"].vocabulary, tmp_path)


# ---- the vocabulary and its grids


def test_rows_lie_where_the_checkpoint_has_them(formats):
    vocabulary = formats["emu3"].vocabulary
    text = {row for rows in vocabulary.text_ranges for row in rows}
    kinds = [vocabulary.is_text(row) + 2 * vocabulary.is_control(row) for row in range(vocabulary.size)]
    assert {row for row, kind in enumerate(kinds) if kind == 1} == text
    assert not text & set(vocabulary.get_block_range("image")) and not text & set(
        vocabulary.get_layout("image").grid.marks
    )
    assert sum(kind == 2 for kind in kinds) == 8
    assert vocabulary.find_block(vocabulary.get_block_range("image")[5]).name == "image"
    with pytest.raises(ValueError, match="lie in its own order"):
        _ = vocabulary.control_range
    with pytest.raises(ValueError, match="token strings of its own"):
        vocabulary.list_token_strings()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": [Block(name="image", modality="image", start=40, size=100)]}, "lies outside"),
        ({"blocks": [Block(name="image", modality="image", start=8, size=4)]}, "share row 9"),
        ({"controls": [Control("<|bos|>", 1)]}, "end_of_turn.* is missing"),
        ({"layouts": [SpanLayout("image", [Segment("other", 4)])]}, "'other', which does not exist"),
    ],
)
def test_rows_that_cannot_be(change, message):
    controls = [Control("<|image_start|>", 1), Control("<|image_end|>", 2), Control("<|bos|>", 3)]
    controls += [Control("<|end_of_turn|>", 4), Control("<|eos|>", 4), Control("<|pad|>", 9)]
    parts = {
        "controls": controls,
        "blocks": [Block(name="image", modality="image", start=20, size=4)],
        "layouts": [SpanLayout("image", [Segment("image", 4)])],
    }
    AdoptedVocabulary(50, **parts)
    with pytest.raises(ValueError, match=message):
        AdoptedVocabulary(50, **{**parts, **change})


@given(st.integers(1, 130), st.integers(1, 130))
def test_the_size_of_a_grid_is_read_back(height, width):
    marks = GridMarks(digits=tuple(range(10)), times=10, open=11, end_of_row=12, end_of_grid=13, grid=(2, 2))
    header = marks.make_header((height, width))
    assert marks.read_header([*header, 50]) == ((height, width), len(header))
    assert all(marks.read_header(header[:cut]) is None for cut in range(len(header)))


def test_badly_written_grids():
    marks = GridMarks(digits=tuple(range(10)), times=10, open=11, end_of_row=12, end_of_grid=13, grid=(2, 2))
    block = range(20, 30)
    good = np.array([2, 10, 3, 11, 20, 21, 22, 12, 23, 24, 25, 12, 13])
    codes, grid = marks.decode(good, block)
    assert grid == (2, 3) and codes.tolist() == [0, 1, 2, 3, 4, 5]
    assert marks.encode(codes, block, grid) == good.tolist()
    for place, row in [(0, 0), (1, 11), (3, 10), (4, 12), (7, 20), (12, 12), (5, 40)]:
        bad = good.copy()
        bad[place] = row
        with pytest.raises(ValueError):
            marks.decode(bad, block)
    with pytest.raises(ValueError, match="badly written"):
        marks.read_header([0, 2, 10, 3, 11])  # 02: not as it is written
    with pytest.raises(ValueError, match="a row of its own"):
        GridMarks(digits=tuple(range(10)), times=9, open=11, end_of_row=12, end_of_grid=13, grid=(2, 2))
    stored = json.loads(json.dumps(asdict(marks)))
    assert stored["grid"] == [2, 2] and TypeAdapter(GridMarks).validate_python(stored) == marks
