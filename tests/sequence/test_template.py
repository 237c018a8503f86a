"""Rendering is invertible for every document, and labels cover the answer only."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.campaigns import examples
from tests.sequence.masks import check_masks
from unimodal.sequence.document import Audio, Document, Image, Text, Turn, Video
from unimodal.sequence.templates.own import IGNORE, Template
from unimodal.vocabulary import Block, Vocabulary

STRINGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["", " ", "  ", "\n", " leading", "trailing ", "<|image_0003|>", "<|end_of_turn|><|assistant|>", "a red apple"]
)


@st.composite
def parts(draw):
    kind = draw(st.sampled_from(["text", "text", "image", "audio", "video"]))
    if kind == "text":
        return Text(draw(STRINGS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind == "image":
        return Image(codes=rng.integers(0, 4096, 64))
    if kind == "video":
        return Video(codes=rng.integers(0, 4096, 192))
    return Audio(codes=rng.integers(0, 4096, draw(st.integers(1, 40))))


TURNS = st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), st.lists(parts(), max_size=5))
DOCUMENTS = st.builds(Document, st.lists(TURNS, max_size=5))


@examples(100)
@given(document=DOCUMENTS)
def test_parse_inverts_render(template, document):
    rendered = template.render(document)
    assert template.parse(rendered.ids) == document.canonicalize()
    assert (template.render(template.parse(rendered.ids)).ids == rendered.ids).all()


@examples(50)
@given(document=DOCUMENTS)
def test_labels_are_the_assistants_turns_and_nothing_else(template, document):
    """Cut the ids at the role marks: exactly the assistant's pieces, end of turn included, are labelled."""
    rendered = template.render(document)
    c = template.vocabulary.get_control_id
    assistant, roles = c("assistant"), {c("system"), c("user"), c("assistant")}
    speaking = None
    for row, label in zip(rendered.ids.tolist(), rendered.labels.tolist(), strict=True):
        if row in roles:
            speaking = row
            assert label == IGNORE
        else:
            assert label == (row if speaking == assistant else IGNORE)
    assert rendered.labels[0] == IGNORE and rendered.ids[0] == c("bos")
    assert rendered.ids.dtype == rendered.labels.dtype == np.int64 and rendered.modality.dtype == np.uint8
    ends = int((rendered.labels == c("end_of_turn")).sum())
    assert ends == sum(turn.role == "assistant" for turn in document.turns)


@examples(25)
@given(document=DOCUMENTS, masks=st.lists(st.booleans(), min_size=8, max_size=8))
def test_a_masked_turn_has_the_same_ids_and_no_labels(template, document, masks):
    check_masks(template, document, masks)


@examples(50)
@given(document=DOCUMENTS)
def test_modality_marks_whole_spans(template, document):
    rendered = template.render(document)
    expected = dict.fromkeys(template.vocabulary.modalities, 0)
    for part in document.parts:
        if not isinstance(part, Text):
            expected[part.modality] += template.vocabulary.count_span_rows(part.modality, len(part.codes))
    for name in ("image", "audio", "video"):
        assert int((rendered.modality == template.vocabulary.modality_index[name]).sum()) == expected[name]
    blocks = rendered.ids >= template.vocabulary.text_size + len(template.vocabulary.controls)
    assert (rendered.modality[blocks] > 0).all()


def test_a_prompt_is_a_prefix_of_the_training_document(template):
    question = Turn("user", [Text("what is this?"), Image(codes=range(64))])
    answer = [Text("an apple"), Audio(codes=[1, 2])]
    prompt = template.render(Document([question]), add_generation_prompt=True)
    whole = template.render(Document([question, Turn("assistant", answer)]))
    assert (whole.ids[: len(prompt)] == prompt.ids).all()
    rest = whole.ids[len(prompt) :].tolist()
    vocabulary = template.vocabulary
    words, sound = template.text.encode(" an apple"), vocabulary.encode_span("audio", [1, 2])
    assert rest == [*words, *sound, vocabulary.get_control_id("end_of_turn")]
    assert (whole.labels[len(prompt) :] == rest).all() and (whole.labels[: len(prompt)] == IGNORE).all()
    assert template.parse_answer(rest) == tuple(answer)
    assert template.parse(prompt.ids).turns == (question, Turn("assistant", []))


def test_typed_tokens_stay_text(template):
    """The ids of a prompt that spells tokens hold one image row fewer than the same prompt with a picture."""
    for string in ("<|image_0003|>", "<|user|>", "<|image_start|><|image_0003|><|image_end|>"):
        rendered = template.render(Document([Turn("user", string)]))
        c = template.vocabulary.get_control_id
        behind_text = rendered.ids[rendered.ids >= template.vocabulary.text_size].tolist()
        assert behind_text == [c("bos"), c("user"), c("end_of_turn")]
        assert (rendered.modality == 0).all()


def test_padding_eos_and_an_open_turn_are_read(template):
    c = template.vocabulary.get_control_id
    ids = template.render(Document([Turn("user", "hello"), Turn("assistant", "hi")])).ids.tolist()
    whole = template.parse(ids)
    assert template.parse([*ids, c("eos"), c("pad"), c("pad")]) == whole
    assert template.parse(ids[:-1]) == whole
    assert template.parse(ids[1:]) == whole
    assert template.parse([]) == Document()


def test_malformed_ids_are_refused(template):
    c = template.vocabulary.get_control_id
    ids = template.render(Document([Turn("user", [Image(codes=range(64))])])).ids.tolist()
    bad = [[5], ids[:20], [*ids[:2], c("image_end"), ids[-1]], [*ids[:2], c("user")], [*ids[:10], *ids[11:]]]
    for rows in bad:
        with pytest.raises(ValueError):
            template.parse(rows)


def test_a_part_without_codes_says_what_to_do(template):
    with pytest.raises(ValueError, match=r"cat.png.*encode it"):
        template.render(Document([Turn("user", [Image(path="cat.png")])]))


def test_another_text_tokenizer_is_refused(template, text):
    blocks = template.vocabulary.blocks
    with pytest.raises(ValueError, match="text tokenizer has sha256"):
        Template(Vocabulary.build(text.size, blocks, text_sha256="0" * 64), text)
    with pytest.raises(ValueError, match="rows but the vocabulary only"):
        Template(Vocabulary.build(100, [Block(name="image", modality="image", size=4)]), text)


def test_padded_base_rows_lie_between_text_and_controls(text):
    vocabulary = Vocabulary.build(text.size + 24, [Block(name="image", modality="image", size=4096)])
    document = Document([Turn("user", [Text("hi"), Image(codes=range(64))])])
    wide = Template(vocabulary, text)
    assert wide.parse(wide.render(document).ids) == document


def test_long_documents_take_linear_time(template):
    document = Document(
        Turn("user" if i % 2 == 0 else "assistant", [Text("a red apple " * 20), Image(codes=range(64))])
        for i in range(600)
    )
    started = time.process_time()
    rendered = template.render(document)
    assert len(rendered) > 60_000
    assert template.parse(rendered.ids) == document.canonicalize()
    assert time.process_time() - started < 10
