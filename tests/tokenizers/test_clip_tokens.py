"""TokensGen's clip tokens: a clip as a few tokens that know of no other clip."""

import pytest
import torch

from unimodal.tokenizers.codes import Latents
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system


@pytest.fixture(scope="session")
def tokenizer():
    torch.manual_seed(0)
    return build_tokenizer(read_system("tokensgen").choose_settings(small=True)).eval()


def test_a_long_film_is_the_tokens_of_its_clips(tokenizer):
    films = torch.rand(2, 3, 12, 16, 16, generator=torch.Generator().manual_seed(1))
    coded = tokenizer.encode(films)
    assert coded.values.shape == (2, 9, 4)
    alone = [tokenizer.encode(films[:, :, start : start + 4]).values for start in (0, 4, 8)]
    assert torch.allclose(torch.cat(alone, 1), coded.values, atol=1e-5)
    made = tokenizer.decode(coded)
    parts = [tokenizer.decode(Latents(each, torch.ones(2, 3, dtype=torch.bool))) for each in alone]
    assert made.shape == films.shape and torch.allclose(torch.cat(parts, 2), made, atol=1e-5)
    films[:, :, 5] = 1 - films[:, :, 5]  # a frame of the second clip changes the tokens of that clip
    again = tokenizer.encode(films).values
    changes = (again - coded.values).abs().amax((0, 2))
    assert changes[[0, 1, 2, 6, 7, 8]].max() < 1e-6 and changes[3:6].min() > 1e-5


def test_films_of_different_lengths_are_decoded_together(tokenizer):
    coded = tokenizer.encode(torch.rand(2, 3, 8, 16, 16, generator=torch.Generator().manual_seed(2)))
    mask = coded.mask.clone()
    mask[1, 3:] = False
    made = tokenizer.decode(Latents(coded.values * mask[..., None], mask))
    whole = tokenizer.decode(coded)
    assert torch.allclose(made[0], whole[0], atol=1e-5) and torch.allclose(made[1, :, :4], whole[1, :, :4], atol=1e-5)
    assert not made[1, :, 4:].any()
    with pytest.raises(ValueError, match="whole clips of 4 frames"):
        tokenizer.encode(torch.rand(1, 3, 6, 16, 16))
