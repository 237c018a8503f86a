"""OmniTokenizer: the authors' outputs from their weights on both of their code paths, and one network for two media."""

import pytest
import torch

from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.systems.omnitokenizer import OmniImageTokenizer, OmniVideoTokenizer

NAMES = ("omnitokenizer", "omnitokenizer-rel")


def load(reference, kind, biased=False):
    settings = kind.read_authors_config(reference.config).model_copy(update={"biased": biased})
    return kind.from_authors(reference.weights, settings, reference.name)


def check_decoded(reference, name, decoded):
    wanted = (reference[name] + 0.5).clamp(0, 1)
    torch.testing.assert_close(decoded, wanted, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("biased", [False, True], ids=["new torch", "old torch"])
def test_weights_of_the_authors_give_their_outputs(name, biased, open_reference):
    reference = open_reference(f"visual/{name}")
    clips, pictures = load(reference, OmniVideoTokenizer, biased), load(reference, OmniImageTokenizer, biased)
    x = reference["input"] + 0.5
    kind = "einsum_" if biased else ""
    with torch.no_grad():
        latents = torch.nn.functional.normalize(clips.encode_latents(x), dim=-1)
        reference.check_close(f"{kind}latents", latents.movedim(-1, 1))
    codes = clips.encode(x)
    reference.check_equal(f"{kind}codes", codes.ids.reshape(2, 3, 4, 4))
    check_decoded(reference, "einsum_decoded_from_own_codes" if biased else "decoded", clips.decode(codes))
    if not biased:
        with torch.inference_mode():
            reference.check_close("quantized", clips.quantizer.look_up(codes.ids).reshape(2, 3, 4, 4, 4))
    first = pictures.encode(x[:, :, 0])
    reference.check_equal(f"{kind}image_codes", first.ids.reshape(2, 1, 4, 4))
    check_decoded(reference, f"{kind}image_decoded", pictures.decode(first))


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_written_back_as_they_came(name, open_reference):
    reference = open_reference(f"visual/{name}")
    state = load(reference, OmniVideoTokenizer).collect_authors_state()
    counters = {"codebook.N", "codebook.z_avg", "codebook.codebook_usage"}  # of their training; never read
    assert state.keys() | counters == reference.weights.keys()
    assert all(torch.equal(state[key].float(), reference.weights[key].float()) for key in state)


def test_a_clip_of_256_pixels_has_the_published_number_of_codes():
    system = read_system("omnitokenizer-video")
    with torch.device("meta"):
        tokenizer = build_tokenizer(system.choose_settings())
    assert tokenizer.tokens_per_item == 5 * 32 * 32


@pytest.mark.parametrize("scrambled", [False, True])
def test_a_picture_is_the_first_frame_where_tokens_are_not_scrambled(scrambled):
    settings = read_system("omnitokenizer-video").choose_settings(small=True) | {"scrambled": scrambled}
    clips = build_tokenizer(settings).eval()
    settings = read_system("omnitokenizer").choose_settings(small=True) | {"scrambled": scrambled}
    pictures = build_tokenizer(settings).eval()
    pictures.load_state_dict(clips.state_dict())
    x = torch.rand(2, 3, 5, *clips.picture_size)
    together, alone = clips.encode(x), pictures.encode(x[:, :, 0])
    count = alone.ids.shape[1]
    with torch.no_grad():
        first = clips.encode_latents(x)[:, :1]
        difference = (first - clips.encode_latents(x[:, :, :1])).abs().max()
    assert (difference < 1e-5) == (not scrambled)
    if not scrambled:
        assert torch.equal(together.ids[:, :count], alone.ids)
