"""Convolutional grid tokenizers against the authors' code, and what their settings promise."""

import pytest
import torch

from tests.campaigns import is_study
from unimodal.tokenizers import pretrained
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.parts.quantizers import LookupFreeQuantizer, make_quantizer
from unimodal.tokenizers.parts.split_ids import join_ids, split_ids
from unimodal.tokenizers.systems.vqgan import VqganConfig, VqganTokenizer

FILES = ["llamagen-vq", "ibq", "open-magvit2-image", "wetok"]


def open_tokenizer(reference):
    config = VqganTokenizer.read_authors_config(reference.config)
    return VqganTokenizer.from_authors(reference.weights, config)


@pytest.mark.parametrize("name", FILES)
def test_the_authors_code_gives_the_same_codes_and_pictures(open_reference, name):
    reference = open_reference(f"visual/{name}")
    tokenizer = open_tokenizer(reference)
    pictures = (reference["input"] + 1) / 2
    codes = tokenizer.encode(pictures)
    grid = codes.grid[1:]
    ids = codes.ids.unflatten(1, grid)
    reference.check_equal("codes", ids if name == "wetok" else ids[..., 0])
    with torch.no_grad():
        vectors = tokenizer.embed(pictures)
        found = tokenizer.quantizer.look_up(tokenizer.quantizer(vectors).ids)
        painted = tokenizer.paint(found, grid)
    reference.check_close("latents", vectors.transpose(1, 2).unflatten(2, grid))
    reference.check_close("quantized", found.transpose(1, 2).unflatten(2, grid))
    reference.check_close("decoded", painted * 2 - 1)
    assert torch.equal(tokenizer.decode(codes), painted.clamp(0, 1))


@pytest.mark.parametrize(
    ("name", "bits", "outputs"),
    [
        ("open-magvit2-image", None, ("codes_factorised_pre", "codes_factorised_post")),
        ("wetok", (6, 6), ("codes_gfq_6_6",)),
    ],
)
def test_the_same_bits_in_other_groups_are_the_authors_factors(open_reference, name, bits, outputs):
    reference = open_reference(f"visual/{name}")
    config = VqganTokenizer.read_authors_config(reference.config)
    if bits is None:
        first = int(reference[outputs[0]].max()).bit_length()
        bits = (first, config.latent_width - first)
    quantizer = {"kind": "lookup_free", "group_bits": list(bits)}
    tokenizer = VqganTokenizer.from_authors(reference.weights, config.model_copy(update={"quantizer": quantizer}))
    codes = tokenizer.encode((reference["input"] + 1) / 2)
    ids = codes.ids.unflatten(1, codes.grid[1:])
    if len(outputs) == 1:
        reference.check_equal(outputs[0], ids)
    else:
        for group, output in enumerate(outputs):
            reference.check_equal(output, ids[..., group])


@pytest.mark.parametrize("name", FILES)
def test_the_weights_go_back_under_the_authors_names(open_reference, name):
    reference = open_reference(f"visual/{name}")
    state = open_tokenizer(reference).collect_authors_state()
    assert state.keys() == reference.weights.keys()
    assert all(torch.equal(state[key], reference.weights[key]) for key in state)


def build(name: str, **changes: object) -> VqganTokenizer:
    """The small form of a published system, with random weights."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer({**read_system(name).choose_settings(small=True), **changes})
    assert isinstance(tokenizer, VqganTokenizer)
    return tokenizer.eval()


def test_a_training_checkpoint_gives_its_moving_averages_and_no_discriminator():
    tokenizer = build("ibq-16384")
    averages = tokenizer.collect_authors_state()
    state = {name: tensor + 1 for name, tensor in averages.items()}
    state |= {"model_ema." + name.replace(".", ""): tensor for name, tensor in averages.items()}
    extra = {"loss.discriminator.main.0.weight": torch.zeros(1), "model_ema.decay": torch.zeros(())}
    again = VqganTokenizer.from_authors({**state, **extra}, tokenizer.config)
    assert again.sha256 == tokenizer.sha256
    with pytest.raises(ValueError, match="lacks encoder.conv_in.weight"):
        VqganTokenizer.from_authors(
            {name: tensor for name, tensor in state.items() if name != "model_ema.encoderconv_inweight"},
            tokenizer.config,
        )
    with pytest.raises(ValueError, match="has beside what this system has model_ema.encoderodd"):
        VqganTokenizer.from_authors({**state, "model_ema.encoderodd": torch.zeros(1)}, tokenizer.config)


def test_a_missing_a_surplus_and_a_misshapen_tensor_are_named():
    tokenizer = build("llamagen-vq16")
    state = tokenizer.collect_authors_state()
    name = "decoder.conv_blocks.0.res.0.conv1.weight"
    for weights, message in [
        ({key: value for key, value in state.items() if key != name}, f"lacks {name}"),
        ({**state, "decoder.odd": torch.zeros(1)}, "has beside what this system has decoder.odd"),
        ({**state, name: state[name][:, :1]}, rf"has {name} of shape \(.*\) where this config has"),
    ]:
        with pytest.raises(ValueError, match=message):
            VqganTokenizer.from_authors(weights, tokenizer.config)
    VqganTokenizer.from_authors({**state, "quantize.codebook_used": torch.zeros(65536)}, tokenizer.config)


@pytest.mark.parametrize("name", ["llamagen-vq16", "ibq-262144", "open-magvit2-256", "wetok-768"])
def test_pictures_of_other_shapes_keep_their_shape_and_ids_do_not_depend_on_autocast(name):
    tokenizer = build(name)
    factor = tokenizer.config.factor
    pictures = torch.rand(2, 3, 2 * factor, 3 * factor)
    codes = tokenizer.encode(pictures)
    assert codes.grid == (1, 2, 3) and codes.ids.shape[1:] == (6, len(tokenizer.codebook_sizes))
    assert tokenizer.decode(codes).shape == pictures.shape
    vectors = tokenizer.embed(pictures).detach()
    with torch.autocast("cpu", torch.bfloat16):
        inside = tokenizer.quantizer(vectors).ids
    assert torch.equal(inside, tokenizer.quantizer(vectors).ids)
    with pytest.raises(ValueError, match=f"sides that {factor} divides"):
        tokenizer.encode(torch.rand(1, 3, 2 * factor + 1, 2 * factor))
    with pytest.raises(ValueError, match="a picture is 2×3 codes"):
        tokenizer.decode(Codes.whole(codes.ids[:, :5], codes.grid))
    high = codes.ids.clone()
    high[0, -1, 0] = tokenizer.codebook_sizes[0]
    with pytest.raises(ValueError, match="codes must lie in"):
        tokenizer.decode(Codes.whole(high, codes.grid))


def test_a_large_id_is_split_and_joined_and_the_first_part_is_the_least():
    ids = torch.cat([torch.arange(100), torch.randint(262144, (1000,)), torch.tensor([262143])])
    parts = split_ids(ids, (512, 512))
    assert torch.equal(join_ids(parts, (512, 512)), ids) and int(parts.max()) == 511
    assert split_ids(torch.tensor([1]), (512, 512)).tolist() == [[1, 0]]
    flat = build("ibq-262144", split=(), flat_ids=True)
    split = VqganTokenizer(VqganConfig.model_validate(flat.config.model_dump() | {"split": (8, 8), "flat_ids": False}))
    split.load_state_dict(flat.state_dict())
    pictures = torch.rand(1, 3, 32, 32)
    codes = split.eval().encode(pictures)
    assert torch.equal(join_ids(codes.ids, (8, 8)), flat.encode(pictures).ids[..., 0])
    assert torch.equal(split.decode(codes), flat.decode(flat.encode(pictures)))


def test_the_factors_of_open_magvit2_are_the_low_and_the_high_bits_of_its_id():
    flat, factors = LookupFreeQuantizer((18,)).eval(), LookupFreeQuantizer((6, 12)).eval()
    vectors = torch.randn(2, 50, 18)
    pre, post = factors(vectors).ids.unbind(-1)
    assert torch.equal(pre + 2**6 * post, flat(vectors).ids[..., 0])
    assert factors.codebook_sizes == (64, 4096)


@pytest.mark.parametrize(
    ("name", "ratio"), [("wetok-24", 24), ("wetok-48", 48), ("wetok-192", 192), ("wetok-768", 768)]
)
def test_the_compression_ratio_of_wetok_is_that_of_its_name(name, ratio):
    config = VqganConfig.model_validate(read_system(name).choose_settings())
    assert 24 * config.factor**2 / sum(config.quantizer["group_bits"]) == ratio


def test_the_generative_decoder_draws_a_picture_for_each_seed():
    tokenizer = build("wetok-768")
    codes = tokenizer.encode(torch.rand(2, 3, 64, 64))
    pictures = [tokenizer.decode(codes, noise=tokenizer.draw_noise(codes, [seed, 0])) for seed in (1, 2)]
    assert not torch.equal(pictures[0][0], pictures[1][0]) and torch.equal(pictures[0][1], pictures[1][1])
    assert torch.equal(tokenizer.decode(codes), tokenizer.decode(codes))  # seed 0 by default


def test_a_code_is_the_row_of_the_greatest_product_in_ibq_and_the_nearest_direction_in_llamagen():
    for name, long_wins in (("ibq-16384", True), ("llamagen-vq16", False)):
        quantizer = build(name).quantizer
        with torch.no_grad():
            torch.nn.init.normal_(quantizer.codebook)
            z = quantizer.codebook[:1].clone()
            quantizer.codebook[1] = 100 * (z[0] + 0.1)  # a long row in nearly the same direction
        assert int(quantizer(z[None]).ids) == int(long_wins)


SIGNS = {"kind": "lookup_free", "group_bits": [3, 4]}
BOOK = {"kind": "vector", "codebook_size": 64, "num_dims": 4}


@pytest.mark.parametrize(("name", "all_rows"), [("ibq-16384", True), ("llamagen-vq16", False)])
def test_every_row_of_ibq_learns_from_each_picture_and_only_the_chosen_ones_of_llamagen(name, all_rows):
    tokenizer = build(name).train()
    made = tokenizer.reconstruct(torch.rand(1, 3, 32, 32))
    ((made.decoded - 0.5).square().mean() + made.loss).backward()
    touched = tokenizer.quantizer.codebook.grad.abs().sum(1) > 0
    assert bool(touched.all()) == all_rows
    assert touched[made.ids.unique()].all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 18}, "width 18 times multiplier 1 does not divide into num_norm_groups"),
        ({"image_size": 33}, "image_size 33 is no multiple of"),
        ({"quantizer": SIGNS, "project": False}, "the quantizer takes 7 dimensions and latent_width is 16"),
        ({"attention_levels": (9,)}, "attention_levels"),
        ({"quantizer": {**BOOK, "codebook_size": 2**17}}, "a group has 131,072 values"),
        ({"quantizer": BOOK, "split": (8, 9)}, r"split \(8, 9\) is 72 values and the codebook has 64"),
        ({"quantizer": SIGNS, "split": (8, 16)}, "gives 2 codes at a position; leave split"),
        ({"quantizer": {"kind": "multi_scale", "scales": [1, 2, 8], "book": BOOK}}, "gives 69 codes for a map of 16"),
    ],
)
def test_parts_that_do_not_fit_are_both_named(changes, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_tokenizer({**read_system("llamagen-vq16").choose_settings(small=True), **changes})


def test_the_configs_of_the_authors_are_the_published_settings():
    network = {"z_channels": 18, "resolution": 128, "ch": 128, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 4}
    data = {"init_args": {"train": {"params": {"config": {"size": 256}}}}}
    arguments = {"ddconfig": network, "n_embed": 262144, "embed_dim": 18}
    signs = {"model": {"class_path": "lfqgan.VQModel", "init_args": arguments}, "data": data}
    rows = {**network, "z_channels": 256, "resolution": 256, "attn_resolutions": [16]}
    rows = {"ddconfig": rows, "n_embed": 262144, "embed_dim": 256, "use_entropy_loss": True}
    grouped = {**arguments, "n_embed": 256, "num_codebooks": 4, "embed_dim": 32}
    grouped["ddconfig"] = {**network, "z_channels": 32, "ch": 256}
    for name, fields in [
        ("open-magvit2-256", signs),
        ("ibq-262144", {"model": {"init_args": rows}}),
        ("llamagen-vq16", {"codebook_size": 16384, "codebook_embed_dim": 8}),
        ("wetok-192", {"model": {"init_args": grouped}, "data": data}),
    ]:
        found = VqganTokenizer.read_authors_config(fields)
        published = VqganConfig.model_validate(read_system(name).choose_settings())
        assert found.model_copy(update={"quantizer": published.quantizer}) == published
        assert found.quantizer.items() >= published.quantizer.items()  # what ours leaves out is the default
        with torch.device("meta"):
            ours, theirs = (make_quantizer(config.quantizer) for config in (published, found))
        skipped = ("_modules", "_parameters", "_buffers")
        assert all(str(value) == str(vars(ours)[key]) for key, value in vars(theirs).items() if key not in skipped)
    for fields, message in [
        ({"ddconfig": {"ch_mult": "wide"}, "n_embed": 4}, "ch_mult 'wide' where a list of whole numbers belongs"),
        ({"depth": 3}, "is neither"),
        ({"model": {**signs["model"], "class_path": "video_lfqgan.VQModel"}}, "of video_lfqgan.VQModel, of clips"),
    ]:
        with pytest.raises(ValueError, match=message):
            VqganTokenizer.read_authors_config(fields)


def test_released_weights_load_from_the_file_of_the_hub_that_the_table_names(tmp_path, monkeypatch):
    """A small checkpoint stands in for the hub's repository: the file, the config and the licence are those of the
    table, and a pickle is read only on request."""
    from unimodal.tokenizers.pretrained import checkpoint

    tokenizer = build("llamagen-vq16")
    weights = {**tokenizer.collect_authors_state(), "quantize.codebook_used": torch.zeros(65536)}
    torch.save({"ema": weights, "model": {}, "steps": 3}, tmp_path / "vq_ds16_c2i.pt")
    asked = []
    monkeypatch.setattr(
        checkpoint, "download_folder", lambda name, patterns: asked.append((name, patterns)) or tmp_path
    )
    monkeypatch.setattr(
        "unimodal.tokenizers.configs.registry.PublishedSystem.choose_settings",
        lambda system: {**(system.tokenizer or {}), **system.small},
    )
    with pytest.raises(ValueError, match=r"vq_ds16_c2i.pt is a pickle; allow its bare tensors with pickle=True"):
        pretrained.load("llamagen_vq")
    assert not asked  # before gigabytes are downloaded
    again = pretrained.load("llamagen_vq", pickle=True)
    assert asked[0][0] == "FoundationVision/LlamaGen" and "vq_ds16_c2i.pt" in asked[0][1]
    assert again.sha256 == tokenizer.sha256 and again.config.licence == "MIT"


def draw_text(generator: torch.Generator, count: int) -> torch.Tensor:
    """Pictures of strokes as letters have them: dark bars of 2 pixels on white, float [count, 3, 32, 32]."""
    pictures = torch.ones(count, 3, 32, 32)
    for picture in pictures:
        for row in range(2, 28, 8):
            for column in range(2, 28, 8):
                upright, place = torch.randint(2, (2,), generator=generator).tolist()
                rows, columns = (slice(0, 6), slice(0, 2)) if upright else (slice(0, 2), slice(0, 6))
                shift = 4 * place
                cell = picture[:, row : row + 6, column : column + 6]
                cell[
                    :, rows if upright else slice(shift, shift + 2), slice(shift, shift + 2) if upright else columns
                ] = 0
    return pictures


@pytest.mark.sweep("tokenizers at work")
def test_a_binary_tokenizer_trained_on_drawn_text_keeps_strokes_that_it_has_not_seen():
    tokenizer = build("beyond-words").train()
    generator = torch.Generator().manual_seed(0)
    unseen = draw_text(torch.Generator().manual_seed(1), 4)
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=4e-3)
    for _ in range(200 if is_study() else 48):
        loss, _ = tokenizer.training_loss(draw_text(generator, 2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokenizer.eval()
    codes = tokenizer.encode(unseen)
    dark = tokenizer.decode(codes).mean(1) < unseen.mean()
    found = (dark & (unseen[:, 0] < 0.5)).sum() / (unseen[:, 0] < 0.5).sum()
    false = (dark & (unseen[:, 0] > 0.5)).sum() / (unseen[:, 0] > 0.5).sum()
    assert found - false > 0.5, (found, false)
    flipped = codes.ids.clone()
    flipped[:, :, 0] ^= 1  # a bit is one channel's sign and no other's
    before, after = (tokenizer.quantizer.look_up(ids) for ids in (codes.ids, flipped))
    assert torch.equal(before[..., 1:], after[..., 1:]) and torch.equal(before[..., 0], -after[..., 0])
