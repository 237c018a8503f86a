"""Mimi: the codes and sound of its authors' own code (moshi) from their weights, whole and streamed."""

import pytest
import torch
from safetensors.torch import save_file

from unimodal.tokenizers import Codes, load_tokenizer, pretrained
from unimodal.tokenizers.pretrained.mimi import MimiTokenizer
from unimodal.tokenizers.systems.key_map import MisfitError

NAME = "audio/mimi"


@pytest.fixture(scope="module")
def loaded():
    """Tokenizers by reference file."""
    return {}


@pytest.fixture
def theirs(open_reference, loaded):
    """The reference file, and the tokenizer of its weights."""
    reference = open_reference(NAME)
    if NAME not in loaded:
        loaded[NAME] = MimiTokenizer.from_authors(reference.weights, reference.config, num_codebooks=6)
    return reference, loaded[NAME]


def check_sound(theirs, ours):
    """Ours is cut at full scale, theirs is not."""
    torch.testing.assert_close(ours, theirs.clamp(-1, 1), atol=2e-6, rtol=1e-5)


def test_weights_of_the_authors_give_their_outputs(theirs):
    reference, tokenizer = theirs
    x = reference["input"]
    codes = tokenizer.encode(x)
    reference.check_equal("codes", codes.ids.transpose(1, 2))
    check_sound(reference["decoded"], tokenizer.decode(codes))
    check_sound(reference["decoded_first3_item0"], tokenizer.decode(Codes.whole(codes.ids[:1, :, :3])))
    with torch.inference_mode():
        reference.check_close("latents", tokenizer.network.encoder(x).latents)
        reference.check_close("quantized", tokenizer.network.quantizer.decode(codes.ids.transpose(1, 2)))


def test_a_sound_that_is_no_whole_number_of_codes_is_filled_up_as_theirs_where_asked(theirs):
    reference, tokenizer = theirs
    x = reference["input"][..., : int(reference["ragged_length"])]
    codes = tokenizer.encode(x, published=True)
    reference.check_equal("codes_ragged", codes.ids.transpose(1, 2))
    ours = tokenizer.encode(x)
    assert torch.equal(ours.ids[:, :-1], codes.ids[:, :-1]) and not torch.equal(ours.ids, codes.ids)
    streamed = torch.cat(list(tokenizer.encode_stream(x[0, 0].split(777), published=False)))
    assert torch.equal(streamed, ours.row(0))
    check_sound(reference["decoded_ragged_item1"], tokenizer.decode(codes)[1:])


@pytest.mark.parametrize(("name", "frames"), [("codes_streamed_1_frame", 1), ("codes_streamed_2_frames", 2)])
def test_their_streaming_is_there_where_asked_and_the_whole_otherwise(theirs, name, frames):
    reference, tokenizer = theirs
    whole = reference["codes"].long().transpose(1, 2)
    for item, sound in enumerate(reference["input"][:, 0]):
        pieces = sound.split(frames * tokenizer.samples_per_code)
        streamed = torch.cat(list(tokenizer.encode_stream(pieces, published=True)))
        assert torch.equal(streamed.T, reference[name][item].long())
        assert torch.equal(torch.cat(list(tokenizer.encode_stream(pieces))), whole[item])
    if frames == 1:
        waves = list(tokenizer.decode_stream(whole[0].split(1), published=True))
        check_sound(reference["decoded_streamed_1_frame_item0"], torch.cat(waves)[None, None])


def test_weights_are_written_back_as_they_came(theirs):
    reference, tokenizer = theirs
    state = tokenizer.collect_authors_state()
    assert state.keys() == reference.weights.keys()
    assert all(torch.equal(state[key], reference.weights[key]) for key in state)


def test_their_file_is_read_from_its_folder_by_any_of_its_names(theirs, tmp_path, monkeypatch):
    reference, tokenizer = theirs
    older = {
        name.replace("in_projs.0.weight", "in_proj_weight").replace("._initialized", ".inited"): tensor
        for name, tensor in reference.weights.items()
    }
    save_file(older, tmp_path / "tokenizer-e351c8d8-checkpoint125.safetensors")
    read = MimiTokenizer.from_authors  # the released settings where none are given
    monkeypatch.setattr(
        MimiTokenizer, "from_authors", lambda weights, **settings: read(weights, reference.config, **settings)
    )
    again = pretrained.load("mimi", tmp_path, num_codebooks=6)
    assert again.sha256 == tokenizer.sha256
    again.save(tmp_path / "saved")
    del older["downsample.conv.conv.conv.weight"]
    save_file(older, tmp_path / "tokenizer-e351c8d8-checkpoint125.safetensors")
    with pytest.raises(MisfitError, match=r"checkpoint125.safetensors lacks downsample.conv.conv.conv.weight; is it"):
        pretrained.load("mimi", tmp_path)
    x = reference["input"]
    assert torch.equal(load_tokenizer(tmp_path / "saved").encode(x).ids, tokenizer.encode(x).ids)
