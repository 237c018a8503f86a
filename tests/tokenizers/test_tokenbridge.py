"""TokenBridge and CubiD: codes of a trained continuous latent, one a dimension, that decode to nearly what it does."""

import math

import pytest
import torch

from unimodal.tokenizers import Codes
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.parts.positions import make_mae_positions

#: the small form of each system whose latents are cut into bins
LATENTS = ("titok-bl128-vae-c16", "cosmos-ci-8x8", "cosmos-cv-4x8x8")


def build(name, **settings):
    torch.manual_seed(0)
    system = read_system(name).choose_settings(small=True)
    if system["family"].startswith("tokenbridge"):
        return build_tokenizer({**system, **settings}).eval()
    family = "tokenbridge_video" if "video" in system["family"] else "tokenbridge"
    return build_tokenizer({"family": family, "latents": system, **settings}).eval()


def make_media(tokenizer, count=3):
    frames = () if tokenizer.num_frames is None else (tokenizer.num_frames,)
    return torch.rand(count, 3, *frames, *tokenizer.picture_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.sweep
@pytest.mark.parametrize("name", [*LATENTS, "tokenbridge"])
def test_codes_decode_to_nearly_what_the_latents_do_and_nearer_with_more_bins(name):
    apart = {}
    for levels in (4, 64):
        tokenizer = build(name, num_levels=levels)
        x = make_media(tokenizer)
        tokenizer.fit_bins(x)
        latents, codes = tokenizer.latents.encode(x), tokenizer.encode(x)
        assert codes.ids.shape == latents.values.shape and codes.grid == latents.grid
        assert tokenizer.codebook_sizes == (levels,) * tokenizer.latents.width
        wanted, found = tokenizer.latents.decode(latents), tokenizer.decode(codes)
        with torch.inference_mode():
            values = tokenizer.quantizer.look_up(codes.ids)
        spread = (latents.values - latents.values.mean((0, 1))).square().mean()
        apart[levels] = float((values - latents.values).square().mean() / spread)
        if levels == 64:
            assert (found - wanted).abs().mean() < 0.02
    assert apart[64] < 0.02 and apart[64] < apart[4] / 4


@pytest.mark.parametrize("fitted", [False, True])
def test_every_id_of_every_dimension_round_trips(fitted):
    tokenizer = build("tokenbridge")
    if fitted:
        tokenizer.fit_bins(make_media(tokenizer))
    ids = torch.arange(64)[:, None].expand(64, tokenizer.latents.width)
    with torch.inference_mode():
        assert torch.equal(tokenizer.quantizer.to_ids(tokenizer.quantizer.look_up(ids)), ids)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(tokenizer.quantizer(tokenizer.quantizer.look_up(ids)[None]).ids[0], ids)


def test_training_goes_past_the_bins_and_what_is_scored_goes_through_them():
    tokenizer = build("tokenbridge")
    x = make_media(tokenizer)
    tokenizer.fit_bins(x)
    made = tokenizer.reconstruct(x)
    assert torch.equal(made.ids, tokenizer.encode(x).ids)
    torch.testing.assert_close(made.decoded, tokenizer.decode(tokenizer.encode(x)))
    assert tokenizer.train().reconstruct(x).ids is None


def test_the_latents_of_the_authors_of_kl_16_are_scaled_and_their_checkpoint_has_taming_names():
    with torch.device("meta"):
        tokenizer = build_tokenizer(read_system("tokenbridge").choose_settings())
    assert (tokenizer.tokens_per_item, tokenizer.codebook_sizes) == (256, (64,) * 16)
    state = tokenizer.latents.collect_authors_state()
    assert "encoder.down.4.attn.1.q.weight" in state and "decoder.up.4.attn.0.q.weight" not in state
    assert {"quant_conv.weight", "encoder.mid.attn_1.q.weight", "decoder.up.0.block.2.conv1.weight"} <= state.keys()


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="name one of continuous latents of image"):
        build_tokenizer({"family": "tokenbridge", "latents": {"family": "vqgan"}})
    with pytest.raises(ValueError, match="latents: "):
        build_tokenizer({"family": "tokenbridge", "latents": {"family": "kl_vae", "size": 3}})
    tokenizer = build("tokenbridge")
    codes = tokenizer.encode(make_media(tokenizer))
    with pytest.raises(ValueError, match="a latent is 4 codes, one a dimension; got 2"):
        tokenizer.decode(Codes.whole(codes.ids[..., :2], codes.grid))


def test_eight_levels_of_a_high_dimensional_feature_keep_which_places_are_alike():
    tokenizer = build("cubid")
    x = make_media(tokenizer, 4)
    tokenizer.latents.fit_statistics(x)
    latents, codes = tokenizer.latents.encode(x).values, tokenizer.encode(x)
    assert codes.ids.shape == (4, 16, 64) and int(codes.ids.max()) < 8
    with torch.inference_mode():
        values = tokenizer.quantizer.look_up(codes.ids)
    kept = torch.nn.functional.cosine_similarity(values, latents, dim=-1)
    assert kept.min() > 0.9
    units = [torch.nn.functional.normalize(each.flatten(0, 1), dim=-1) for each in (latents, values)]
    alike, alike_still = (unit @ unit.T for unit in units)
    off = ~torch.eye(len(alike), dtype=torch.bool)
    assert torch.corrcoef(torch.stack([alike[off], alike_still[off]]))[0, 1] > 0.9


def test_a_code_of_one_place_and_dimension_changes_that_number_alone():
    tokenizer = build("cubid")
    codes = tokenizer.encode(make_media(tokenizer, 1))
    changed = codes.ids.clone()
    changed[0, 5, 7] = (changed[0, 5, 7] + 3) % 8
    with torch.inference_mode():
        moved = (tokenizer.quantizer.look_up(codes.ids) != tokenizer.quantizer.look_up(changed)).nonzero()
    assert moved.tolist() == [[0, 5, 7]]
    assert not torch.equal(tokenizer.decode(Codes.whole(changed, codes.grid)), tokenizer.decode(codes))


def test_the_published_cubid_has_768_codes_of_eight_levels_at_each_of_256_places():
    with torch.device("meta"):
        tokenizer = build_tokenizer(read_system("cubid").choose_settings())
    assert (tokenizer.tokens_per_item, tokenizer.codebook_sizes) == (256, (8,) * 768)
    assert tokenizer.picture_size == (256, 256)


def test_sine_positions_are_those_of_mae():
    found = make_mae_positions(3, 8)
    row, column = 2, 1
    for half, place in ((found[row * 3 + column, :4], column), (found[row * 3 + column, 4:], row)):
        angles = [place / 10_000 ** (step / 2) for step in range(2)]
        wanted = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        torch.testing.assert_close(half, torch.tensor(wanted))
