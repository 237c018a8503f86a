"""TokenFlow: the authors' outputs from their weights, and one index for two tables."""

import pytest
import torch

from unimodal.tokenizers import Codes
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.systems.tokenflow import SCALES, TokenflowTokenizer

NAME = "visual/tokenflow"


def load(reference):
    settings = TokenflowTokenizer.read_authors_config(reference.config)
    return TokenflowTokenizer.from_authors(reference.weights, settings, reference.name)


def test_weights_of_the_authors_give_their_outputs(open_reference):
    reference = open_reference(NAME)
    tokenizer = load(reference)
    x = reference["input"] / 2 + 0.5
    with torch.inference_mode():
        latents, features = tokenizer.encode_latents(x)
        reference.check_close("semantic_hidden", features)
        made = tokenizer.quantizer(latents)
        reference.check_equal("codes", made.ids[..., 0])
        values = tokenizer.quantizer.look_up(made.ids)
        reference.check_close("quantized", values.transpose(1, 2).unflatten(2, (4, 4)))
        reference.check_close("decoded", tokenizer.decode_latents(values) * 2 - 1)
        reference.check_close("decoded_semantic", tokenizer.decode_meaning(values))
        coarse = tokenizer.quantizer.look_up(made.ids[:, :14])
        reference.check_close("decoded_first_3_scales", tokenizer.decode_latents(coarse) * 2 - 1)
    codes = tokenizer.encode(x)
    assert torch.equal(codes.ids, made.ids)
    wanted = (reference["decoded"] / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(tokenizer.decode(codes), wanted, atol=5e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="whole scales come in 1, 5, 14, 30 positions; got 6"):
        tokenizer.decode(Codes(codes.ids[:, :6], codes.mask[:, :6]))


def test_weights_are_written_back_as_they_came(open_reference):
    reference = open_reference(NAME)
    state = load(reference).collect_authors_state()
    assert state.keys() == reference.weights.keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in reference.weights.items())


def test_the_published_scales_have_the_published_number_of_codes():
    assert sum(side**2 for side in SCALES) == 2227


def test_an_index_is_the_row_of_both_tables_and_the_nearest_by_both():
    tokenizer = build_tokenizer(read_system("tokenflow-siglip").choose_settings(small=True)).eval()
    assert isinstance(tokenizer, TokenflowTokenizer)
    book = tokenizer.quantizer.book
    for table in book.codebooks:
        torch.nn.init.normal_(table)
    z = torch.randn(2, 5, 8)
    found = book(z)
    unit = torch.nn.functional.normalize
    meaning, looks = (unit(part, dim=-1) for part in z.split(4, dim=-1))
    rows = [unit(table.detach(), dim=-1) for table in book.codebooks]
    distance = torch.cdist(meaning, rows[0]).square() + torch.cdist(looks, rows[1]).square()
    assert torch.equal(found.ids[..., 0], distance.argmin(-1))
    assert torch.allclose(found.rows, torch.cat([row[found.ids[..., 0]] for row in rows], dim=-1), atol=1e-6)


def test_another_teacher_is_refused_in_one_line():
    with pytest.raises(ValueError, match="teacher clipb_224 is not read"):
        TokenflowTokenizer.read_authors_config({"teacher": "clipb_224"})
