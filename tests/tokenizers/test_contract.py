"""What every tokenizer promises, and what published ones ask of the contract: conditions, noise, streams, latents."""

import pytest
import torch

from tests.tiny_model import tiny_tokenizers
from tests.tokenizers.small_tokenizers import CODES, LatentConfig, PatchLatents, make
from unimodal.tokenizers import Codes, Condition, Latents, MediaTokenizer, hash_stored

SHAPES = {"image": (3, 64, 64), "audio": (1, 1700), "video": (3, 9, 64, 64)}


def media(tokenizer: MediaTokenizer, count: int = 3, seed: int = 0) -> torch.Tensor:
    """Random media that the tokenizer takes."""
    shape = list(SHAPES[tokenizer.modality])
    if tokenizer.picture_size is not None:
        shape[-2:] = tokenizer.picture_size
    if tokenizer.num_frames is not None:
        shape[1] = tokenizer.num_frames
    x = torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))
    return x * 2 - 1 if tokenizer.modality == "audio" else x


@pytest.fixture(scope="module", params=[*CODES, "nano image", "nano audio", "nano video"])
def tokenizer(request) -> MediaTokenizer:
    name = request.param.removeprefix("nano ")
    torch.manual_seed(0)
    return tiny_tokenizers()[name] if name in SHAPES else make(name)


@pytest.mark.sweep
def test_a_batch_gives_what_its_items_give_alone(tokenizer):
    x = media(tokenizer)
    lengths = None
    if tokenizer.modality == "audio":
        lengths = torch.tensor([1700, 700, 1])
    codes = tokenizer.encode(x, lengths)
    for row in range(3):
        alone = x[row : row + 1] if lengths is None else x[row : row + 1, :, : lengths[row]]
        assert torch.equal(tokenizer.encode(alone).row(0), codes.row(row))
    assert (codes.ids[~codes.mask] == 0).all()
    if not tokenizer.can_decode:
        return
    condition = Condition(medium=x[:, :, 0]) if tokenizer.decode_conditions else None
    condition = Condition(text=("dark", "light", "")) if "text" in tokenizer.decode_conditions else condition
    together = tokenizer.decode(codes, condition)
    for row in range(3):
        given = None
        if condition is not None:
            given = Condition(
                text=None if condition.text is None else condition.text[row : row + 1],
                medium=None if condition.medium is None else condition.medium[row : row + 1],
            )
        alone = tokenizer.decode(Codes.whole(codes.row(row)[None], codes.grid), given)[0]
        real = alone.shape[1] if tokenizer.modality == "audio" else None
        assert torch.allclose(together[row, :, :real], alone, atol=2e-3)


def test_codes_lie_in_the_blocks_that_it_declares(tokenizer):
    codes = tokenizer.encode(media(tokenizer))
    assert codes.ids.shape[2] == len(tokenizer.codebook_sizes)
    fixed = sum(count or 0 for _, count in tokenizer.segments)
    steps = codes.ids.shape[1]
    assert tokenizer.tokens_per_item in (None, steps)
    at = 0
    for name, count in tokenizer.segments:
        count = steps - fixed if count is None else count
        part = codes.ids[:, at : at + count]
        assert (part >= 0).all() and (part < torch.tensor(tokenizer.group_sizes(name))).all()
        at += count
    assert at == steps
    if tokenizer.tokens_per_second is not None:
        assert steps == -(-1700 // round(tokenizer.sample_rate_hz / tokenizer.tokens_per_second))


def test_features_of_codes_are_a_row_for_each_code(tokenizer):
    for name, _ in tokenizer.segments:
        for group, size in enumerate(tokenizer.group_sizes(name)):
            features = tokenizer.code_features(name, group)
            assert features is None or (features.shape[0] == size and features.device.type == "cpu")
    for name, levels in tokenizer.code_levels.items():
        assert torch.tensor(levels).prod() == tokenizer.group_sizes(name)[0]
    assert tokenizer.code_features("no such block") is None


def test_save_and_load_keep_codes_and_hash(tokenizer, tmp_path):
    if tokenizer.continues is not None:
        pytest.skip("nano's clips lie beside a picture tokenizer: tests/tokenizers/test_visual.py")
    tokenizer.save(tmp_path)
    again = type(tokenizer).load(tmp_path)
    x = media(tokenizer)
    assert torch.equal(again.encode(x).ids, tokenizer.encode(x).ids)
    assert again.sha256 == tokenizer.sha256 == hash_stored(tmp_path)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"condition": Condition(features=torch.zeros(1, 2, 4))}, "leave features out"),
        ({"condition": Condition(text=("a",), features=torch.zeros(1, 2, 4))}, "leave (text|features) out"),
        ({"noise": torch.zeros(1, 8)}, "decodes without noise"),
        ({"steps": 4}, "decodes without steps"),
        ({"guidance": 2.0}, "decodes without guidance"),
    ],
)
def test_what_a_family_does_not_take_is_one_line_and_never_ignored(tokenizer, arguments, said):
    codes = tokenizer.encode(media(tokenizer, 1))
    with pytest.raises(ValueError, match="condition|to encode"):
        tokenizer.encode(media(tokenizer, 1), condition=Condition(text=("a",)))
    if not tokenizer.can_decode or {*arguments} & tokenizer.decode_settings:
        return
    with pytest.raises(ValueError, match=said) as caught:
        tokenizer.decode(codes, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: (x * 255).to(torch.uint8), "float tensor .*; got torch.uint8; x.float\\(\\) / 255 of bytes"),
        (lambda x: x.numpy(), "got ndarray"),
        (lambda x: x[:0], "nothing to encode"),
        (lambda x: x * torch.nan, "not finite"),
        (lambda x: x * 255, "in \\[0, 1\\]; got .*: give x / 255"),
        (lambda x: x * 2 - 1, "in \\[0, 1\\]; got .*: give \\(x \\+ 1\\) / 2"),
    ],
)
def test_media_of_another_scale_or_kind_are_one_line(tokenizer, change, said):
    if tokenizer.modality == "audio" and "0, 1" in said:
        return  # loud sounds are sounds
    with pytest.raises(ValueError, match=said) as caught:
        tokenizer.encode(change(media(tokenizer, 2)))
    assert "\n" not in str(caught.value)


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_media_of_every_float_type_are_those_values_in_the_type_of_the_weights(tokenizer, dtype):
    x = media(tokenizer, 2).to(dtype)
    assert torch.equal(tokenizer.encode(x).ids, tokenizer.encode(x.float()).ids)


def test_what_is_no_codes_or_condition_is_one_line(tokenizer):
    x = media(tokenizer, 1)
    with pytest.raises(ValueError, match="give a Condition"):
        tokenizer.encode(x, condition={"text": ["a"]})
    if tokenizer.can_decode:
        with pytest.raises(ValueError, match="decode takes Codes, .*; got a Tensor; Codes.whole"):
            tokenizer.decode(tokenizer.encode(x).ids)


# ---- each ability


def test_a_caption_reaches_the_decoder_row_by_row():
    tokenizer = make("captioned")
    x = torch.full((2, 3, 16, 16), 0.5)
    codes = tokenizer.encode(x)
    dark, light = tokenizer.decode(codes, Condition(text=("dark", "light")))
    assert dark.mean() < 0.3 and light.mean() > 0.7
    assert tokenizer.decode(codes).mean() == pytest.approx(0.5, abs=0.02)  # without words, neither
    with pytest.raises(ValueError, match="has 1 rows of text for 2 items"):
        tokenizer.decode(codes, Condition(text=("dark",)))


def test_noise_is_each_items_own_and_steps_and_guidance_are_heard():
    tokenizer = make("flow")
    x = media(tokenizer, 2)
    codes = tokenizer.encode(x, torch.tensor([1700, 300]))
    default = tokenizer.decode(codes)
    assert torch.equal(default, tokenizer.decode(codes, noise=tokenizer.draw_noise(codes, [0, 0])))
    other = tokenizer.decode(codes, noise=tokenizer.draw_noise(codes, [0, 5]))
    assert torch.equal(other[0], default[0]) and not torch.equal(other[1], default[1])
    alone = Codes.whole(codes.row(1)[None])
    noise = tokenizer.draw_noise(alone, [5])
    assert torch.equal(tokenizer.decode(alone, noise=noise)[0], other[1, :, : noise.shape[1]])
    held = codes.ids[0, :, 0].float() / 63 * 2 - 1

    def error(**settings):
        decoded = tokenizer.decode(codes, **settings)[0, 0].unflatten(0, (-1, 8)).mean(1)
        return (decoded - held).abs().mean()

    assert error(steps=64) < error(steps=4) < error(steps=1)
    assert error(steps=64, guidance=3.0) > error(steps=64)
    for wrong in ({"steps": 0}, {"guidance": -1.0}, {"guidance": float("nan")}):
        with pytest.raises(ValueError, match="steps is 0|is not usable"):
            tokenizer.decode(codes, **wrong)
    with pytest.raises(ValueError, match="1 seeds are given for 2 items"):
        tokenizer.draw_noise(codes, [0])


def test_a_published_rule_over_the_batch_is_followed_when_asked():
    tokenizer = make("flow")
    loud, quiet = torch.ones(1, 1, 800) * 0.9, torch.ones(1, 1, 800) * 0.1
    codes = tokenizer.encode(torch.cat([loud, quiet]))
    alone = tokenizer.encode(quiet)
    assert torch.equal(tokenizer.decode(codes)[1], tokenizer.decode(alone)[0])
    assert not torch.equal(tokenizer.decode(codes, published=True)[1], tokenizer.decode(alone, published=True)[0])


def test_streams_of_rates_of_their_own_give_the_sound_back():
    tokenizer = make("multi_rate")
    time_s = torch.arange(1600) / 800
    x = (0.6 * torch.sin(2 * torch.pi * 9 * time_s))[None, None]
    codes = tokenizer.encode(x)
    assert codes.ids.shape == (1, 100, 7)
    coarse, middle, fine = tokenizer.streams.split(codes)
    assert [part.ids.shape[1] for part in (coarse, middle, fine)] == [100, 200, 400]
    quarters = x[0, 0].unflatten(0, (-1, 4)).mean(1)
    decoded = tokenizer.decode(codes)[0, 0].unflatten(0, (-1, 4)).mean(1)
    assert (decoded - quarters).abs().max() < 0.02  # one step of the finest quantizer


def test_scales_decode_from_whole_scales():
    tokenizer = make("scales")
    x = media(tokenizer)
    codes = tokenizer.encode(x)
    errors = []
    for count in (1, 5, 21):
        cut = tokenizer.decode(Codes(codes.ids[:, :count], codes.mask[:, :count]))
        masked = tokenizer.decode(Codes(codes.ids, codes.mask & (torch.arange(21) < count)))
        assert torch.equal(cut, masked)
        errors.append((cut.mean(1) - torch.nn.functional.avg_pool2d(x.mean(1), 4).repeat_interleave(4, 1)
                       .repeat_interleave(4, 2)).abs().mean())  # fmt: skip
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.01
    with pytest.raises(ValueError, match="end within a scale; give one of 1, 5, 21"):
        tokenizer.decode(Codes(codes.ids[:, :7], codes.mask[:, :7]))


def test_an_encoder_alone_says_so():
    tokenizer = make("labels")
    assert not tokenizer.can_decode and make("flow").can_decode
    with pytest.raises(ValueError, match="only encodes"):
        tokenizer.decode(tokenizer.encode(media(tokenizer)))


def test_motion_is_decoded_from_the_frame_before():
    tokenizer = make("motion")
    clip = media(tokenizer, 2)
    clip = torch.nn.functional.interpolate(clip.flatten(1, 2)[:, :2, ::4, ::4], size=(16, 16))  # two grey frames
    clip = clip.unsqueeze(1).expand(-1, 3, -1, -1, -1)
    codes = tokenizer.encode(clip)
    decoded = tokenizer.decode(codes, Condition(medium=clip[:, :, 0]))
    assert decoded.shape == (2, 3, 2, 16, 16) and torch.equal(decoded[:, :, 0], clip[:, :, 0])
    assert (decoded[:, :, 1] - clip[:, :, 1]).abs().max() < 0.02
    with pytest.raises(ValueError, match="give the one before"):
        tokenizer.decode(codes)


def test_latents_are_the_sibling_of_codes(tmp_path):
    tokenizer = PatchLatents(LatentConfig(width=48)).eval()
    x = torch.rand(2, 3, 16, 16)
    latents = tokenizer.encode(x)
    assert isinstance(latents, Latents) and latents.values.shape == (2, 16, 48) and latents.grid == (1, 4, 4)
    assert latents.row(1).shape == (16, 48)
    assert torch.allclose(tokenizer.decode(latents), x, atol=1e-4)  # 48 of 48 dimensions: nothing is lost
    with pytest.raises(ValueError, match="decodes without guidance"):
        tokenizer.decode(latents, guidance=2.0)
    with pytest.raises(ValueError, match="latents of width 48; got those of width 47"):
        tokenizer.decode(Latents(latents.values[..., 1:], latents.mask))
    with pytest.raises(ValueError, match="latents hold numbers that are not finite"):
        tokenizer.decode(Latents(latents.values * torch.inf, latents.mask))
    tokenizer.save(tmp_path)
    assert PatchLatents.load(tmp_path).sha256 == tokenizer.sha256
    with pytest.raises(ValueError, match="Latents.values must be float"):
        Latents(torch.zeros(1, 2, 3, dtype=torch.int64), torch.ones(1, 2, dtype=torch.bool))
