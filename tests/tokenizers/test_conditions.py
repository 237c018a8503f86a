"""What encoders and decoders read beside the media: made of captions and clips for every published system that does."""

import pytest
import torch

from tests.tokenizers.small_systems import build_small, list_kinds
from tests.tokenizers.test_ett import folder as words  # noqa: F401
from tests.tokenizers.test_published_systems import make_media
from unimodal.tokenizers.conditions import ConditionMaker, NetworkFeatures, load_text_features
from unimodal.tokenizers.losses.held_out import MediaBatch, measure_tokenizer
from unimodal.tokenizers.text_settings import WORDS, TextSettings

READERS = ("textok", "moto", "tatitok")  # what reads a condition, to hold the test below to


@pytest.mark.sweep
@pytest.mark.parametrize("name", list_kinds())
def test_every_system_that_reads_a_condition_is_given_it_and_measured_with_it(name):
    tokenizer = build_small(name)
    if not tokenizer.encode_conditions | tokenizer.decode_conditions:
        assert not name.startswith(READERS)
        return
    conditions, x = ConditionMaker(tokenizer), make_media(tokenizer)
    if not conditions.kinds:
        return  # features of something else than texts
    with torch.no_grad():
        made, other = (
            tokenizer.reconstruct(x, None, conditions.make(x, texts), torch.Generator().manual_seed(0))
            for texts in (("a red cat", "two dogs"), ("a blue fish", "two dogs"))
        )
    if conditions.reads_text:
        assert not torch.allclose(made.decoded[0], other.decoded[0], atol=1e-5)
        assert torch.allclose(made.decoded[1], other.decoded[1], atol=1e-5)
        with pytest.raises(ValueError, match="reads a caption of every item"):
            conditions.make(x, ("a red cat", ""))
    batch = MediaBatch(x, None, ("a red cat", "two dogs"))
    assert "psnr" in measure_tokenizer(tokenizer, [batch], conditions) or not tokenizer.can_decode


def test_some_systems_are_held_to_read_a_condition():
    assert all(any(name.startswith(start) for name in list_kinds()) for start in READERS)


def test_words_have_vectors_of_their_own_and_a_text_model_gives_its_last(words):  # noqa: F811
    read = load_text_features(TextSettings(length=3, width=16, network=WORDS), "any")
    some = read(("very dark", "dark very light dark"), torch.device("cpu"))
    assert some.features_mask.tolist() == [[True, True, False], [True, True, True]]
    assert torch.equal(some.features[0, 0], some.features[1, 1]) and some.features.std() > 0.5
    network = NetworkFeatures(str(words), TextSettings(length=4, width=16))
    found = network(("very dark", "dark"), torch.device("cpu"))
    assert found.features.shape == (2, 4, 16) and found.features_mask.sum(1).tolist() == [2, 1]
    for settings, said in (
        (TextSettings(network=None), "name none; set text_network"),
        (TextSettings(network="nowhere/at-all"), "nowhere/at-all cannot be loaded"),
        (TextSettings(network=str(words), width=8), "vectors of width 16"),
        (TextSettings(network=str(words), width=16, length=10**6), r"positions, and .* text of length 1000000; name"),
    ):
        with pytest.raises(ValueError, match=said):
            load_text_features(settings, "any")
