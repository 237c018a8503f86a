"""A bare prompt becomes a request in the words that a model was trained on; without such words it stays as it is."""

import pytest

from tests.tiny_model import NANO_WORDING
from unimodal.data import sources
from unimodal.model_folder.wording import Wording, strip_punctuation


def test_nanos_wordings_are_those_of_its_training_data():
    wording = NANO_WORDING
    for modality, question in wording.questions.items():
        assert question in sources.ASK[modality]
    for modality in ("image", "video"):
        assert wording.wishes[modality] in sources.WISH[modality]
    assert wording.wishes["audio"] in sources.SAY and wording.in_voice in sources.SAY_IN_VOICE
    for modality in ("image", "video"):
        for wish in sources.WISH[modality]:
            if not wish.startswith("{"):
                asked = wish.format(thing="a cat", name="cat")
                assert wording.phrase_request(asked, modality) == asked
    for wish in (*sources.SAY, *sources.SAY_IN_VOICE):
        asked = wish.format(text="hello", voice="joe")
        assert wording.phrase_request(asked, "audio") == asked


@pytest.mark.parametrize(
    ("prompt", "to", "voice", "request_text"),
    [
        ("red apple", "image", None, "Draw a red apple."),
        ("a red apple.", "image", None, "Draw a red apple."),
        ("an owl", "video", None, "A clip of an owl."),
        ("draw me an owl", "image", None, "draw me an owl"),
        ("Well, it's two o'clock!", "audio", None, "Say: well it's two o'clock"),
        ("good night", "audio", "joe", "Say in the voice of joe: good night"),
        ("What is two and two?", "text", None, "What is two and two?"),
    ],
)
def test_a_bare_prompt_becomes_a_request(prompt, to, voice, request_text):
    assert NANO_WORDING.phrase_request(prompt, to, voice) == request_text


def test_nothing_to_say_is_refused():
    with pytest.raises(ValueError, match="no word to speak"):
        NANO_WORDING.phrase_request("…!", "audio")
    assert strip_punctuation("Ça va? Don’t!") == "ça va don't"


@pytest.mark.parametrize(
    ("request_words", "said"),
    [
        ("Say: the sun is red", "the sun is red"),
        ("say in the voice of slt: It's  RED!", "it's red"),
        ("Say: a: b", "a b"),
        ("Say: ...", None),
        ("read this: the sun", None),
        ("the sun", None),
    ],
)
def test_what_a_request_wants_spoken(request_words, said):
    assert NANO_WORDING.extract_speech(request_words) == said
    if said is not None:
        assert NANO_WORDING.extract_speech(NANO_WORDING.phrase_request(said, "audio", "slt")) == said


def test_without_words_of_its_own_a_model_is_asked_as_one_asks():
    neutral = Wording()
    assert neutral.ask("image") == "" and neutral.phrase_request("Well, a red apple.", "image") == "Well, a red apple."
    assert neutral.phrase_request("Hello!", "audio", "joe") == "Hello!" and neutral.extract_speech("Say: hello") is None
    assert neutral.phrase_caption("The red apple.", "image") == "The red apple"
    spoken = Wording(wishes={"audio": "Say: {text}"})
    assert spoken.phrase_request("Hello!", "audio", "joe") == "Say: Hello!"  # no words for a voice
