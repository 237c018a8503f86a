"""BigCodec: the authors' outputs from their weights, and their rule of lengths beside ours."""

import pytest
import torch

from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.pretrained.authors import read_authors_weights
from unimodal.tokenizers.systems.bigcodec import BigCodec

NAME = "audio/bigcodec"


def load(reference):
    return BigCodec.from_authors(reference.weights, BigCodec.read_authors_config(reference.config), reference.name)


def test_weights_of_the_authors_give_their_outputs(open_reference):
    reference = open_reference(NAME)
    tokenizer, x = load(reference), reference["input"]
    with torch.inference_mode():
        padded = tokenizer.pad_equal(x, published=True)
        z = tokenizer.encode_latents(padded)
        reference.check_close("latents", z.transpose(1, 2), atol=2e-5)
        made = tokenizer.quantizer(z)
        reference.check_equal("codes", made.ids.permute(2, 0, 1))
        rows = tokenizer.quantizer.look_up(made.ids).transpose(1, 2)
        reference.check_close("quantized", rows, atol=2e-5)
        reference.check_close("decoded", tokenizer.decoder(rows), atol=5e-5)
        cut = x[..., : int(reference["ragged_length"])]
        ids = tokenizer.encode_equal(tokenizer.pad_equal(cut, published=True))
        reference.check_equal("codes_ragged", ids.permute(2, 0, 1))
        reference.check_close("decoded_ragged_item1", tokenizer.decode_equal(ids[1:]), atol=5e-5)
    assert torch.equal(tokenizer.encode(x, published=True).ids, made.ids)
    assert tokenizer.encode(x).counts == [16, 16] and tokenizer.encode(x, published=True).counts == [17, 17]
    assert tokenizer.encode(cut).counts == tokenizer.encode(cut, published=True).counts == [15, 15]


def test_weights_are_written_back_as_they_came(open_reference, tmp_path):
    reference = open_reference(NAME)
    tokenizer = load(reference)
    state = tokenizer.collect_authors_state()
    filters = {name for name in state if name.endswith(".filter")}
    assert len(filters) == 144 and state.keys() - filters == reference.weights.keys()
    assert all(torch.equal(state[key], reference.weights[key]) for key in reference.weights)
    for name in filters:
        torch.testing.assert_close(state[name], reference["shared_filter"], atol=1e-7, rtol=1e-6)
    parts = {
        part: {name.removeprefix(part + "."): tensor for name, tensor in state.items() if name.startswith(part)}
        for part in ("CodecEnc", "generator")
    }
    torch.save(parts, tmp_path / "bigcodec.pt")  # as it was released
    read = read_authors_weights(tmp_path / "bigcodec.pt", pickle=True)
    assert BigCodec.from_authors(read, tokenizer.config).sha256 == tokenizer.sha256
    state.pop("CodecEnc.block.0.bias")
    with pytest.raises(ValueError, match=r"lacks CodecEnc\.block\.0\.bias"):
        BigCodec.from_authors(state, tokenizer.config)


def test_the_published_size_has_thirteen_bits_eighty_times_a_second():
    with torch.device("meta"):
        tokenizer = build_tokenizer(read_system("bigcodec").choose_settings())
    assert (tokenizer.tokens_per_second * 13, tokenizer.codebook_sizes) == (1040, (2**13,))


def test_both_maps_of_the_codebook_learn_from_what_is_decoded():
    torch.manual_seed(0)
    tokenizer = build_tokenizer(read_system("bigcodec").choose_settings(small=True)).train()
    x = torch.rand(2, 1, 400) - 0.5
    (tokenizer.reconstruct(x).decoded - x).square().mean().backward()
    book = tokenizer.quantizer.book(0)
    for layer in (book.in_proj, book.out_proj):
        assert layer.parametrizations.weight.original1.grad.abs().sum() > 0
    assert book.book.codebook.grad is None  # the rows learn from the quantizer's loss alone
