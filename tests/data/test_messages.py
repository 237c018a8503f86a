"""The schema and the document are two ways to write the same thing."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimodal.data.messages import Conversation, parse_conversation
from unimodal.sequence.document import MEDIA_PARTS, Document, Text, Turn

CODES = st.lists(st.integers(0, 5000), min_size=1, max_size=5)
GROUPED = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).map(list), min_size=1, max_size=4)
SOURCES = st.one_of(
    st.fixed_dictionaries({"path": st.text(min_size=1, max_size=9)}),
    st.fixed_dictionaries({"data": st.binary(min_size=1, max_size=40)}),
    st.fixed_dictionaries(
        {"codes": CODES | GROUPED}, optional={"grid": st.tuples(st.integers(1, 9), st.integers(1, 9))}
    ),
)
PARTS = st.one_of(
    st.builds(Text, st.text(max_size=20)),
    st.builds(lambda kind, source: MEDIA_PARTS[kind](**source), st.sampled_from(sorted(MEDIA_PARTS)), SOURCES),
)
TURNS = st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), st.lists(PARTS, max_size=4), st.booleans())
DOCUMENTS = st.builds(Document, st.lists(TURNS, max_size=4))


@given(document=DOCUMENTS)
def test_documents_come_back_from_the_schema_and_from_json(document):
    conversation = Conversation.from_document(document)
    assert conversation.to_document() == document
    assert Conversation.model_validate_json(conversation.model_dump_json()).to_document() == document
    assert Conversation.model_validate(json.loads(conversation.model_dump_json())).to_document() == document


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image"}, "give one of path, data and codes; this part has none"),
        ({"type": "image", "path": "a", "codes": [1]}, "this part has path and codes"),
        ({"type": "text", "text": "a", "size": 3}, "size"),
        ({"type": "audio", "data": "no base64!"}, "not base64"),
        ({"type": "smell", "path": "a"}, "smell"),
    ],
)
def test_a_wrong_part_is_one_line(part, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_conversation([{"role": "user", "content": [part]}, {"role": "assistant", "content": "x"}])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
