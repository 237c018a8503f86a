"""MOSS-Audio-Tokenizer: the authors' codes and sound from their weights, whole, of a ragged batch and streamed."""

import pytest
import torch

from unimodal.tokenizers import Codes
from unimodal.tokenizers.systems.moss_audio import MossAudioTokenizer

NAME = "audio/moss_audio_tokenizer"


def load(reference):
    settings = MossAudioTokenizer.read_authors_config(reference.config)
    return MossAudioTokenizer.from_authors(reference.weights, settings, reference.name)


@pytest.fixture
def theirs(open_reference):
    """The reference file, and the tokenizer of its weights."""
    reference = open_reference(NAME)
    return reference, load(reference)


def test_weights_of_the_authors_give_their_outputs(theirs):
    reference, tokenizer = theirs
    x = reference["input"]
    codes = tokenizer.encode(x)
    reference.check_equal("codes", codes.ids.permute(2, 0, 1))
    check_sound(reference["decoded"], tokenizer.decode(codes))
    fewer = Codes.whole(codes.ids[..., :2])
    reference.check_equal("codes_nq2", fewer.ids.permute(2, 0, 1))
    check_sound(reference["decoded_nq2_item0"], tokenizer.decode(fewer)[:1])
    with torch.inference_mode():
        reference.check_close("latents", tokenizer.encode_latents(x).transpose(1, 2))
        values = tokenizer.quantizer.look_up(codes.ids)
        reference.check_close("quantized", values.transpose(1, 2))
        reference.check_close("decoded", tokenizer.decode_latents(values))


def check_sound(theirs, ours):
    """Ours is cut at full scale, theirs is not."""
    torch.testing.assert_close(ours, theirs.clamp(-1, 1), atol=2e-5, rtol=1e-4)


def test_a_ragged_batch_has_their_lengths_where_asked_and_the_last_part_of_a_code_otherwise(theirs):
    reference, tokenizer = theirs
    x, lengths = reference["input"], reference["ragged_lengths"].long()
    published = tokenizer.encode(x, lengths, published=True)
    assert published.counts == reference["codes_ragged_lengths"].tolist() == [20, 13]
    ours = tokenizer.encode(x, lengths)
    assert ours.counts == [20, 14]
    for codes in (published, ours):  # it only looks back
        assert torch.equal(codes.ids[1, :13].T, reference["codes_ragged"][:, 1, :13].long())
    end = 13 * tokenizer.samples_per_code
    check_sound(reference["decoded_ragged_item1"][..., :end], tokenizer.decode(published)[1:, :, :end])
    with pytest.raises(ValueError, match="has no whole code of 240 samples; leave published out"):
        tokenizer.encode(x[..., :200], published=True)
    assert tokenizer.encode(x[..., :200]).counts == [1, 1]


def test_their_streaming_is_there_where_asked_and_the_whole_otherwise(theirs):
    """Their ring buffer forgets what the first steps of a piece would see: most codes are others with pieces as long as
    its context, and few with shorter ones."""
    reference, tokenizer = theirs
    x = reference["input"][0, 0]
    for milliseconds in (10, 50):
        pieces = x.split(24 * milliseconds)
        streamed = torch.cat(list(tokenizer.encode_stream(pieces, published=True)))
        reference.check_equal(f"codes_item0_chunked_{milliseconds}ms", streamed.T[:, None])
        whole = torch.cat(list(tokenizer.encode_stream(pieces)))
        assert torch.equal(whole.T, reference["codes"][:, 0].long())
        assert not torch.equal(streamed, whole)
    codes = reference["codes"][:, 0].long().T
    sound = torch.cat(list(tokenizer.decode_stream(codes.split(5), published=True)))
    check_sound(reference["decoded_item0_chunked_50ms"], sound[None, None])


def test_weights_are_written_back_as_they_came(theirs):
    reference, tokenizer = theirs
    state = tokenizer.collect_authors_state()
    assert state.keys() == reference.weights.keys()
    assert all(torch.equal(state[key], reference.weights[key]) for key in state)


def test_names_that_their_code_also_reads(theirs):
    reference, tokenizer = theirs
    weights = {
        name.replace("in_projs.0.weight", "in_proj_weight").replace("out_projs.0.weight", "out_proj.weight"): tensor
        for name, tensor in reference.weights.items()
    }
    again = MossAudioTokenizer.from_authors(weights, tokenizer.config)
    assert again.sha256 == tokenizer.sha256


def test_configs_that_are_not_read(theirs):
    config = theirs[0].config
    other = {**config, "quantizer_kwargs": {**config["quantizer_kwargs"], "quantizer_type": "fsq"}}
    with pytest.raises(ValueError, match="quantizer_type 'fsq' is not read"):
        MossAudioTokenizer.read_authors_config(other)
    gated = [{**module, "gating": "silu"} for module in config["encoder_kwargs"]]
    with pytest.raises(ValueError, match="encoder_kwargs has the gating silu; only none is read"):
        MossAudioTokenizer.read_authors_config({**config, "encoder_kwargs": gated})
