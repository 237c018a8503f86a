"""What new rows begin from."""

from types import SimpleNamespace

from unimodal.tuning.rows import describe_controls
from unimodal.vocabulary import Vocabulary


def test_controls_whose_words_a_tokenizer_cannot_spell_are_left_out():
    """A tokenizer without line breaks has nothing for the end of a turn."""
    vocabulary = Vocabulary.build(20, [], [])
    text = SimpleNamespace(encode=lambda words: [3] * len(words.split()))
    found = describe_controls(SimpleNamespace(vocabulary=vocabulary, text=text))
    assert vocabulary.get_control_id("<|end_of_turn|>") not in found
    assert found[vocabulary.get_control_id("<|user|>")] == [3]
