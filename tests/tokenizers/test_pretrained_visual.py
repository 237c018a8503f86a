"""Pretrained picture and clip tokenizers: the codes, pixels and fitted sizes of transformers' own classes."""

import json

import pytest
import torch
from PIL import Image

from tests import tiny_networks
from unimodal.tokenizers import load_tokenizer, pretrained
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.pretrained.chameleon import ChameleonDecoder

NETWORKS = {
    "emu3": tiny_networks.emu3_vq, "chameleon": tiny_networks.chameleon_vq, "janus": tiny_networks.janus_vq,
}  # fmt: skip
SETTINGS = {"emu3": {"image_size": 32}, "chameleon": {}, "janus": {}}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.sweep) for name in NETWORKS])
def both(request, tmp_path_factory):
    """(family, tokenizer read from a saved checkpoint, the reference network)"""
    network = NETWORKS[request.param]()
    folder = tmp_path_factory.mktemp(request.param)
    network.save_pretrained(folder)
    return request.param, pretrained.load(request.param, folder, **SETTINGS[request.param]), network


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    network = tiny_networks.emu3_vq()
    folder = tmp_path_factory.mktemp("emu3_video")
    network.save_pretrained(folder)
    return pretrained.load("emu3_video", folder, image_size=16, num_frames=8), network


def pictures(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(5))


def reference_codes(name, network, x):
    """[N] of one picture [3, H, W] in [0, 1]."""
    with torch.inference_mode():
        if name == "emu3":
            return network.encode((x[None] - 0.5) / 0.5, torch.tensor([x.shape[1:]])).image_tokens[0].flatten()
        scaled = x * 255 * 0.0078 - 1 if name == "chameleon" else (x - 0.5) / 0.5
        return network.encode(scaled[None]).image_tokens


def test_codes_are_the_references_alone_and_in_a_batch(both):
    name, tokenizer, network = both
    x = pictures(3, 3, 32, 32)
    codes = tokenizer.encode(x)
    assert codes.grid is not None and codes.grid[1] * codes.grid[2] == codes.ids.shape[1] == tokenizer.tokens_per_item
    for row in range(3):
        assert torch.equal(codes.ids[row, :, 0], reference_codes(name, network, x[row]))
        assert torch.equal(tokenizer.encode(x[row : row + 1]).ids[0], codes.ids[row])
    assert len(codes.ids.unique()) > 8


def test_pictures_are_the_references(both):
    name, tokenizer, network = both
    codes = tokenizer.encode(pictures(2, 3, 32, 32))
    if name == "chameleon":
        with pytest.raises(ValueError, match=r"no decoder of Chameleon's pictures; .*vqgan.ckpt") as error:
            tokenizer.decode(codes)
        assert "\n" not in str(error.value)
        return
    with torch.inference_mode():
        ids = codes.ids[..., 0]
        pixels = network.decode(ids.view(2, 16, 16) if name == "emu3" else ids)
    assert (tokenizer.decode(codes) - (pixels * 0.5 + 0.5).clamp(0, 1)).abs().max() < 1e-5


def test_every_code_survives_a_saved_folder(both, tmp_path):
    name, tokenizer, _ = both
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.sha256 == tokenizer.sha256 == pretrained.load(name, tmp_path).sha256
    x = pictures(2, 3, 32, 32)
    assert torch.equal(again.encode(x).ids, tokenizer.encode(x).ids)
    assert again.codebook_sizes == tokenizer.codebook_sizes == (64,)
    with pytest.raises(ValueError, match="a saved tokenizer with its own settings"):
        pretrained.load(name, tmp_path, image_size=64)
    other = "janus" if name != "janus" else "emu3"
    with pytest.raises(ValueError, match=f"holds the tokenizer family '{name}', not '{other}'"):
        pretrained.load(other, tmp_path)


def test_what_does_not_fit(both):
    name, tokenizer, _ = both
    with pytest.raises(ValueError, match="takes pictures"):
        tokenizer.encode(torch.rand(1, 1, 32, 32))
    if name == "chameleon":
        tokenizer = type(tokenizer)(tokenizer.config.model_copy(update={"has_decoder": True}))
    with pytest.raises(ValueError, match=r"must lie in \[0, 64\); got 64…64"):
        tokenizer.decode(Codes.from_rows([torch.full((256,), 64)]))
    if name != "emu3":
        with pytest.raises(ValueError, match=r"a picture is 256 codes; got \[255\]"):
            tokenizer.decode(Codes.from_rows([torch.zeros(255, dtype=torch.int64)]))


# ---- Emu3: any shape, and clips


def emu3(tmp_path, **settings):
    """(tokenizer, reference) with codes of 8×8 pixels, as the released one has."""
    network = tiny_networks.emu3_vq(channel_multiplier=[1, 1, 1, 1], attn_resolutions=[3])
    network.save_pretrained(tmp_path)
    return pretrained.load("emu3", tmp_path, **settings), network


@pytest.mark.sweep("tokenizers at work")
def test_pictures_of_other_sizes_in_a_padded_batch_do_not_change_codes(tmp_path):
    tokenizer, network = emu3(tmp_path, image_size=None)
    assert tokenizer.tokens_per_item is None and tokenizer.segments == (("image", None),)
    sizes = torch.tensor([[16, 40], [32, 24], [16, 40]])
    x = pictures(3, 3, 32, 40)
    codes = tokenizer.encode(x, sizes)
    assert codes.grid is None
    for row, (height, width) in enumerate(sizes.tolist()):
        alone = x[row, :, :height, :width]
        assert torch.equal(codes.row(row)[:, 0], reference_codes("emu3", network, alone))
    one = tokenizer.encode(x[:1, :, :16])
    assert one.grid == (1, 2, 5)
    assert tokenizer.decode(one).shape == (1, 3, 16, 40)
    with pytest.raises(ValueError, match="10 codes are no square picture; give their grid"):
        tokenizer.decode(Codes(one.ids, one.mask))
    with pytest.raises(ValueError, match=r"multiples of 8 pixels; got \[16, 42\]"):
        tokenizer.encode(torch.rand(1, 3, 16, 42))


def describe_shape(shape):
    """Whether the picture has too many pixels, too few or neither, and is a square."""
    pixels = shape[0] * shape[1]
    return {"large": pixels > 96 * 96, "small": pixels < 48 * 48, "square": shape[0] == shape[1]}


@pytest.mark.sweep
@pytest.mark.sliced(by=describe_shape)
@pytest.mark.parametrize("shape", [(50, 70), (300, 40), (17, 17), (90, 200), (64, 64)])
def test_a_file_is_fitted_as_emu3s_own_processor_fits_it(shape, tmp_path):
    from transformers.models.emu3.image_processing_emu3 import Emu3ImageProcessor

    processor = Emu3ImageProcessor(min_pixels=48 * 48, max_pixels=96 * 96, image_mean=[0.4] * 3, image_std=[0.3] * 3)
    processor.save_pretrained(tmp_path)
    tokenizer, network = emu3(tmp_path, image_size=None)
    picture = (pictures(3, *shape) * 255).to(torch.uint8)
    given = processor(Image.fromarray(picture.permute(1, 2, 0).numpy()), return_tensors="pt")
    fitted = tokenizer.fit(picture)
    assert fitted.shape == given["pixel_values"][0].shape
    assert (tokenizer.scale_pixels(fitted[None]) - given["pixel_values"]).abs().max() < 1e-5
    with torch.inference_mode():
        expected = network.encode(given["pixel_values"], given["image_sizes"]).image_tokens[0]
    assert torch.equal(tokenizer.encode(fitted[None]).ids[0, :, 0], expected.flatten())


@pytest.mark.sweep("tokenizers at work")
def test_a_square_is_cropped_from_the_middle(tmp_path):
    tokenizer, _ = emu3(tmp_path, image_size=32)
    picture = torch.zeros(3, 64, 128, dtype=torch.uint8)
    picture[:, :, 32:96] = 255
    assert (tokenizer.fit(picture)[:, :, 4:-4] > 0.99).all()
    with pytest.raises(ValueError, match="image_size 30 is no multiple of 8"):
        pretrained.load("emu3", tmp_path, image_size=30)


def test_clips_keep_all_their_codes(clips):
    """Though transformers' encode crops time and height where it should crop height and width."""
    tokenizer, network = clips
    x = pictures(2, 3, 8, 16, 32)
    codes = tokenizer.encode(x)
    assert codes.grid == (2, 8, 16) and codes.order == "time+raster"
    with torch.inference_mode():
        frames = (x.transpose(1, 2) - 0.5) / 0.5  # [B, T, 3, H, W]
        hidden = network.quant_conv(network.encoder(frames).permute(0, 2, 1, 3, 4)).permute(0, 2, 1, 3, 4)
        expected = network.quantize(hidden)  # [B, t, h, w]
        pixels = network.decode(expected).transpose(1, 2) * 0.5 + 0.5
    assert torch.equal(codes.ids[..., 0], expected.flatten(1))
    assert expected.shape[1:] == (2, 8, 16)
    assert (tokenizer.decode(codes) - pixels.clamp(0, 1)).abs().max() < 1e-5
    assert len(codes.ids.unique()) > 8


@pytest.mark.sweep("tokenizers at work")
def test_clips_taller_than_long_are_what_the_reference_crops(tmp_path):
    tokenizer, network = emu3(tmp_path)
    video = pretrained.load("emu3_video", tmp_path, image_size=16, num_frames=4)
    x = pictures(1, 3, 8, 16, 16)
    with torch.inference_mode():
        wrong = network.encode((x.transpose(1, 2) - 0.5) / 0.5, torch.tensor([[8, 8]])).image_tokens[0]
    assert wrong.shape == (1, 1, 2)  # of 2 × 2 × 2 codes, cropped to a time of 1 and a height of 1
    assert video.encode(x).ids.shape == (1, 8, 1)
    assert tokenizer.codebook_sizes == video.codebook_sizes


def test_a_shorter_clip_of_a_batch(clips):
    tokenizer, _ = clips
    x = pictures(2, 3, 8, 16, 16)
    codes = tokenizer.encode(x, torch.tensor([4, 8]))
    assert torch.equal(codes.row(0), tokenizer.encode(x[:1, :, :4]).row(0))
    assert torch.equal(codes.row(1), tokenizer.encode(x[1:]).row(0))
    decoded = tokenizer.decode(codes)
    assert decoded.shape == (2, 3, 8, 16, 16)
    assert (decoded[0, :, :4] - tokenizer.decode(tokenizer.encode(x[:1, :, :4]))[0]).abs().max() < 1e-5
    with pytest.raises(ValueError, match=r"a multiple of 4 frames, at most 8; got \[6, 8\]"):
        tokenizer.encode(x, torch.tensor([6, 8]))
    with pytest.raises(ValueError, match="takes clips"):
        tokenizer.encode(x[:, :, 0])


# ---- Chameleon and Janus: fitting, the decoder, whole checkpoints


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize("shape", [(50, 70), (300, 40), (32, 32), (33, 90), (20, 20)])
@pytest.mark.parametrize("name", ["chameleon", "janus"])
def test_a_file_is_fitted_as_the_checkpoints_processor_fits_it(name, shape, tmp_path):
    from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    if name == "chameleon":
        processor = ChameleonImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    else:
        processor = JanusImageProcessorPil(
            size={"height": 32, "width": 32}, image_mean=[0.5, 0.4, 0.3], image_std=[0.5] * 3
        )
    NETWORKS[name]().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    tokenizer = pretrained.load(name, tmp_path)
    picture = (pictures(3, *shape) * 255).to(torch.uint8)
    given = processor(Image.fromarray(picture.permute(1, 2, 0).numpy()), return_tensors="pt")["pixel_values"]
    assert (tokenizer.scale_pixels(tokenizer.fit(picture)[None]) - given).abs().max() < 1e-5


def test_chameleons_decoder_is_the_vqgan_that_janus_has(tmp_path):
    """The same network by other names: Janus numbers its levels from the coarsest."""
    from transformers import ChameleonVQVAEConfig

    janus = tiny_networks.janus_vq()
    decoder = ChameleonDecoder(ChameleonVQVAEConfig(**tiny_networks.CHAMELEON_VQ)).eval()
    levels = len(tiny_networks.JANUS_VQ["channel_multiplier"])
    weights = {}
    for name, tensor in janus.decoder.state_dict().items():
        parts = name.split(".")
        if parts[0] == "up":
            parts[1] = str(levels - 1 - int(parts[1]))
        weights[".".join(parts)] = tensor
    decoder.load_state_dict(weights)
    latent = torch.randn(2, 8, 16, 16)
    with torch.inference_mode():
        assert torch.allclose(decoder(latent), janus.decoder(latent), atol=1e-5)


@pytest.mark.sweep("tokenizers at work")
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_decoder_that_is_given_draws_and_is_saved(suffix, tmp_path):
    from safetensors.torch import save_file
    from transformers import ChameleonVQVAEConfig

    network = tiny_networks.chameleon_vq()
    network.save_pretrained(tmp_path)
    decoder = tiny_networks.spread(ChameleonDecoder(ChameleonVQVAEConfig(**tiny_networks.CHAMELEON_VQ)), seed=1)
    weights = {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    weights |= {f"encoder.{name}": tensor for name, tensor in network.encoder.state_dict().items()}
    path = tmp_path / f"vqgan{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": weights}, path)
    else:
        (tmp_path / "decoder").mkdir()
        path = tmp_path / "decoder" / path.name
        save_file(weights, path)
    tokenizer = pretrained.load("chameleon", tmp_path, decoder=path)
    x = pictures(2, 3, 32, 32)
    codes = tokenizer.encode(x)
    drawn = tokenizer.decode(codes)
    with torch.inference_mode():
        latent = network.quantize.embedding(codes.ids[..., 0]).view(2, 16, 16, 8).permute(0, 3, 1, 2)
        expected = (decoder(network.post_quant_conv(latent)) + 1) / 2
    assert (drawn - expected.clamp(0, 1)).abs().max() < 1e-5 and drawn.std() > 0.01
    tokenizer.save(tmp_path / "saved")
    assert torch.equal(load_tokenizer(tmp_path / "saved").decode(codes), drawn)


def test_a_decoder_file_that_is_not_one(tmp_path):
    tiny_networks.chameleon_vq().save_pretrained(tmp_path)
    bad = tmp_path / "vqgan.ckpt"
    with pytest.raises(ValueError, match="no such file; give the vqgan.ckpt"):
        pretrained.load("chameleon", tmp_path, decoder=bad)
    bad.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        pretrained.load("chameleon", tmp_path, decoder=bad)

    class Evil:
        def __reduce__(self):
            return (print, ("code was run",))

    torch.save({"state_dict": {"decoder.conv_in.weight": Evil()}}, bad)
    with pytest.raises(ValueError, match="cannot be read as weights"):
        pretrained.load("chameleon", tmp_path, decoder=bad)
    torch.save({"state_dict": {"encoder.conv_in.weight": torch.ones(1)}}, bad)
    with pytest.raises(ValueError, match=r"has no weights named decoder"):
        pretrained.load("chameleon", tmp_path, decoder=bad)


def test_a_whole_models_checkpoint_gives_its_tokenizer_alone(tmp_path):
    from transformers import Emu3Config, Emu3ForConditionalGeneration

    network = tiny_networks.emu3_vq()
    text = {
        "vocab_size": 80, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    model = Emu3ForConditionalGeneration(
        Emu3Config(vq_config=network.config, text_config=text, vocabulary_map={"<image>": 3})
    )
    model.model.vqmodel.load_state_dict(network.state_dict())
    model.save_pretrained(tmp_path)
    tokenizer = pretrained.load("emu3", tmp_path, image_size=32)
    x = pictures(1, 3, 32, 32)
    assert torch.equal(tokenizer.encode(x).ids[0, :, 0], reference_codes("emu3", network, x[0]))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(ValueError, match="holds a 'llama' checkpoint; Emu3 needs one of type emu3 or emu3_vqgan"):
        pretrained.load("emu3", tmp_path)
