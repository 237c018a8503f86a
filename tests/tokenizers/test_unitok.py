"""UniTok: the authors' outputs from their weights, and books that are each their own."""

import pytest
import torch

from unimodal.tokenizers import Codes
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.systems.unitok import UnitokTokenizer

NAME = "visual/unitok"


def load(reference):
    settings = UnitokTokenizer.read_authors_config(reference.config)
    return UnitokTokenizer.from_authors(reference.weights, settings, reference.name)


def test_weights_of_the_authors_give_their_outputs(open_reference):
    reference = open_reference(NAME)
    tokenizer = load(reference)
    x = reference["input"] / 2 + 0.5
    with torch.inference_mode():
        reference.check_close("encoder_tokens", tokenizer.encoder(reference["input"]))
        latents, _ = tokenizer.encode_latents(x)
        reference.check_close("latents", latents)
        made = tokenizer.quantizer(latents)
        reference.check_equal("codes", made.ids.transpose(1, 2))
        reference.check_close("quantized", made.rows)
        reference.check_close("post_quant", tokenizer.post_quant_proj(made.rows))
        reference.check_close("decoded", tokenizer.decode_latents(made.rows, (3, 3)) * 2 - 1)
        features = tokenizer.extract_features(x)
        reference.check_close("clip_image_features", torch.nn.functional.normalize(features, dim=-1))
    codes = tokenizer.encode(x)
    assert torch.equal(codes.ids, made.ids)
    wanted = (reference["decoded"] / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(tokenizer.decode(codes), wanted, atol=5e-5, rtol=1e-4)


def test_weights_are_written_back_as_they_came(open_reference):
    reference = open_reference(NAME)
    state = load(reference).collect_authors_state()
    counters = {f"quantizer.codebooks.{book}.vocab_usage" for book in range(4)}  # of their training; never read
    assert state.keys() | counters == reference.weights.keys()
    assert all(torch.equal(state[key], reference.weights[key]) for key in state)


def test_the_published_size_has_sixteen_by_sixteen_places_of_eight_books():
    with torch.device("meta"):
        tokenizer = build_tokenizer(read_system("unitok-large").choose_settings())
    assert (tokenizer.tokens_per_item, tokenizer.codebook_sizes) == (256, (4096,) * 8)


def test_each_book_is_found_and_changed_by_itself_and_any_shape_of_picture_codes():
    tokenizer = build_tokenizer(read_system("unitok-large").choose_settings(small=True)).eval()
    x = torch.rand(1, 3, 32, 48)
    codes = tokenizer.encode(x)
    assert codes.grid == (1, 2, 3) and tokenizer.decode(codes).shape == x.shape
    changed = codes.ids.clone()
    changed[0, 0, 2] = (changed[0, 0, 2] + 1) % 32
    with torch.inference_mode():
        rows, other = (tokenizer.quantizer.look_up(ids) for ids in (codes.ids, changed))
    moved = (rows - other).abs().amax(-2)[0] > 0
    assert moved.nonzero().flatten().min() >= 8 and moved.nonzero().flatten().max() < 12
    assert not torch.equal(tokenizer.decode(Codes.whole(changed, codes.grid)), tokenizer.decode(codes))
    with pytest.raises(ValueError, match="multiples of 16"):
        tokenizer.encode(torch.rand(1, 3, 30, 48))
