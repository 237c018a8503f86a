"""TiTok, TA-TiTok and One-D-Piece: the authors' codes and pictures, their checkpoints in and out, prefixes and text."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.tokenizers.small_systems import build_small
from tests.tokenizers.tiny_system import TinyConfig, TinySystem
from unimodal.tokenizers import pretrained
from unimodal.tokenizers.codes import Codes, Latents
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.interface import Condition
from unimodal.tokenizers.losses.bag import LossBag
from unimodal.tokenizers.losses.settings import LossSettings
from unimodal.tokenizers.losses.trained_tokenizer import TrainedTokenizer
from unimodal.tokenizers.parts.codebook_clustering import pull_unused_codes
from unimodal.tokenizers.systems.titok import TATiTokTokenizer, TiTokLatents, TiTokTokenizer
from unimodal.tokenizers.systems.titok_names import SIZES, read_titok_settings

SIZE = {"width": 32, "num_layers": 2, "num_heads": 4}
KINDS = {
    "titok": TiTokTokenizer,
    "titok-legacy": TiTokTokenizer,
    "titok-vae": TiTokLatents,
    "tatitok": TATiTokTokenizer,
    "one-d-piece": TiTokTokenizer,
}


def read_config(kind, reference):
    """Our settings of a reference file: the authors' config, with the constants that were lowered for it."""
    settings = read_titok_settings(reference.config, latents=kind is TiTokLatents, text=kind.reads_text)
    pixel = reference.facts.get("config_pixel")
    if pixel is not None:
        settings["proxy"] = {
            "num_codes": pixel["codebook"][0], "depth": pixel["codebook"][1], "channels": pixel["hidden_channels"],
            "multipliers": pixel["channel_mult"], "num_blocks": pixel["num_res_blocks"],
            "num_groups": pixel["group_norm_groups"],
        }  # fmt: skip
    return kind.config_class.model_validate({**settings, "encoder": SIZE, "decoder": SIZE})


@pytest.fixture(params=KINDS)
def pair(request, open_reference):
    """A reference file and our tokenizer with its weights."""
    reference, kind = open_reference(f"visual/{request.param}"), KINDS[request.param]
    return reference, kind.from_authors(reference.weights, read_config(kind, reference))


@torch.no_grad()
def test_it_gives_the_authors_codes_and_pictures(pair):
    reference, tokenizer = pair
    condition = Condition(features=reference["text_guidance"]) if "text_guidance" in reference.tensors else None
    z = tokenizer.encode_tokens(reference["input"])
    if isinstance(tokenizer, TiTokLatents):
        mean, log_variance = tokenizer.encode_distribution(reference["input"])
        reference.check_close("latents", z.transpose(1, 2).unsqueeze(2))
        reference.check_close("posterior_mean", mean.transpose(1, 2).unsqueeze(2))
        reference.check_close("posterior_logvar", log_variance.transpose(1, 2).unsqueeze(2))
        reference.check_close("decoded_from_mean", tokenizer.decode_tokens(mean))
        assert torch.equal(tokenizer.encode(reference["input"]).values, mean)
        return
    codes = tokenizer.encode(reference["input"])
    quantized = tokenizer.quantizer.look_up(codes.ids)
    reference.check_close("latents", z.transpose(1, 2).unsqueeze(2))
    reference.check_equal("codes", codes.ids.transpose(1, 2))
    reference.check_close("quantized", quantized.transpose(1, 2).unsqueeze(2))
    reference.check_close("decoded", tokenizer.decode_tokens(quantized, condition=condition))
    torch.testing.assert_close(
        tokenizer.decode(codes, condition), reference["decoded"].clamp(0, 1), atol=5e-5, rtol=1e-4
    )
    if "decoder_logits" in reference.tensors:
        reference.check_close("decoder_logits", tokenizer.predict_proxy(quantized))
    for length in (1, 3):
        if f"decoded_prefix_{length}" in reference.tensors:
            reference.check_close(f"decoded_prefix_{length}", tokenizer.decode_tokens(quantized[:, :length]))


def test_its_weights_are_written_back_as_its_authors_have_them(pair):
    reference, tokenizer = pair
    written = tokenizer.collect_authors_state()
    assert set(written) == set(reference.weights)
    assert all(torch.equal(written[name], tensor) for name, tensor in reference.weights.items())
    for change, said in (
        (lambda w: w.pop("encoder.ln_pre.bias"), "lacks encoder.ln_pre.bias"),
        (lambda w: w.update(other=torch.zeros(1)), "beside what this system has other"),
        (lambda w: w.update({"encoder.ln_pre.bias": torch.zeros(2)}), r"encoder.ln_pre.bias of shape \(2,\)"),
    ):
        spoilt = dict(reference.weights)
        change(spoilt)
        with pytest.raises(ValueError, match=said):
            type(tokenizer).from_authors(spoilt, tokenizer.config)


# ---- without reference files

CONFIG = {
    "model": {
        "vq_model": {
            "codebook_size": 64, "token_size": 6, "use_l2_norm": False, "commitment_cost": 0.25,
            "vit_enc_model_size": "small", "vit_dec_model_size": "small", "vit_enc_patch_size": 8,
            "vit_dec_patch_size": 8, "num_latent_tokens": 8, "finetune_decoder": False, "is_legacy": False,
        }
    },
    "dataset": {"preprocessing": {"crop_size": 32}},
}  # fmt: skip


def build(**changes):
    """A tiny TiTok."""
    settings = {"image_size": 16, "patch_size": 4, "num_tokens": 6, "token_width": 6, "codebook_size": 32}
    torch.manual_seed(0)
    kind = TATiTokTokenizer if "text" in changes else TiTokTokenizer
    return kind(kind.config_class.model_validate({**settings, "encoder": SIZE, "decoder": SIZE, **changes}))


TINY = {"image_size": 8, "encoder": {**SIZE, "num_layers": 1}, "decoder": {**SIZE, "num_layers": 1}}


def train(tokenizer, compute_loss, steps):
    """A few steps; the tokenizer in eval."""
    optimizer = torch.optim.AdamW(tokenizer.train().parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        compute_loss().backward()
        optimizer.step()
    return tokenizer.eval()


@pytest.mark.sweep("tokenizers at work")
@pytest.mark.parametrize("kind", ["config.json", "pickle"])
def test_it_loads_a_folder_as_the_hub_has_it_and_a_bare_pickle(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(SIZES, "small", (32, 2, 4))
    tokenizer = build(image_size=32, patch_size=8, num_tokens=8, codebook_size=64).eval()
    state = {name: tensor.detach().clone() for name, tensor in tokenizer.collect_authors_state().items()}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    if kind == "pickle":
        torch.save(state, tmp_path / "tokenizer_titok.bin")
        with pytest.raises(ValueError, match="pickle=True"):
            pretrained.load("titok", tmp_path)
        loaded = pretrained.load("titok", tmp_path, pickle=True)
    else:
        save_file(state, tmp_path / "model.safetensors")
        loaded = pretrained.load("titok", tmp_path)
    picture = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.encode(picture).ids, tokenizer.encode(picture).ids)
    assert loaded.config.licence == "Apache-2.0" and loaded.config.origin == str(tmp_path)
    for change, said in (
        ({"quantize_mode": "vae"}, "load_latents"),
        ({"is_legacy": True}, "first stage"),
        ({"vit_enc_model_size": "huge"}, "sizes are small, base, large"),
        ({"num_latent_tokens": 9}, "of another size"),
        ({"token_size": None}, "no model.vq_model.token_size where"),
        ({"vit_enc_patch_size": 5, "vit_dec_patch_size": 5}, "not whole patches"),
    ):
        model = {**CONFIG["model"]["vq_model"], **change}
        (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "model": {"vq_model": model}}))
        with pytest.raises(ValueError, match=said) as error:
            pretrained.load("titok", tmp_path, pickle=True)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="use load for it"):
        pretrained.load_latents("titok", tmp_path)


def test_a_prefix_beside_longer_ones_is_decoded_as_it_is_alone():
    tokenizer = build(prefixes="uniform").eval()
    rows = [torch.randint(32, (length,)) for length in (6, 1, 4)]
    pictures = tokenizer.decode(Codes.from_rows(rows))
    for row, picture in zip(rows, pictures, strict=True):
        torch.testing.assert_close(tokenizer.decode(Codes.from_rows([row]))[0], picture, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(pictures[0], tokenizer.decode(Codes.from_rows([rows[0][:1]]))[0], atol=1e-4)
    with pytest.raises(ValueError, match="1 to 6 codes"):
        tokenizer.decode(Codes.whole(torch.zeros(1, 7, dtype=torch.int64)))
    with pytest.raises(ValueError, match="is 6 codes"):
        build().eval().decode(Codes.from_rows(rows))


def test_ids_do_not_depend_on_autocast():
    tokenizer = build(normalize=True).eval()
    z = torch.randn(2, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        inside = tokenizer.quantizer(z).ids
    assert torch.equal(inside, tokenizer.quantizer(z).ids) and inside.dtype == torch.int64


@pytest.mark.sweep("tokenizers at work")
def test_a_longer_prefix_is_nearer_once_the_tail_was_dropped_in_training():
    colours = torch.rand(32, 3)  # a code says one channel of a picture of one colour
    pictures, ids = colours[:, :, None, None].expand(-1, -1, 8, 8), (colours[:, :2] * 8).long().unsqueeze(-1)
    tokenizer = build(**TINY, num_tokens=2, codebook_size=8, prefixes="uniform")

    def compute_loss():
        kept = tokenizer.draw_prefixes(len(ids))
        return (tokenizer.decode_tokens(tokenizer.quantizer.look_up(ids), kept) - pictures).square().mean()

    train(tokenizer, compute_loss, 100)
    errors = [(tokenizer.decode(Codes.whole(ids[:, :length])) - pictures).square().mean().item() for length in (1, 2)]
    assert errors[1] < 0.75 * errors[0], errors


@pytest.mark.sweep("tokenizers at work")
def test_a_decoder_that_reads_the_caption_is_nearer_at_equal_codes():
    colours = torch.rand(32, 3)  # the caption says the colour, which one code of two cannot
    pictures, text = colours[:, :, None, None].expand(-1, -1, 8, 8), Condition(features=4 * colours[:, None] - 2)
    tokenizer = build(**TINY, num_tokens=1, codebook_size=2, text={"length": 1, "width": 3, "dropout": 0.3})

    def compute_loss():
        made = tokenizer.reconstruct(pictures, condition=text)
        return (made.decoded - pictures).square().mean() + made.loss

    train(tokenizer, compute_loss, 80)
    codes = tokenizer.encode(pictures)
    errors = [(tokenizer.decode(codes, given) - pictures).square().mean().item() for given in (None, text)]
    assert errors[1] < errors[0] / 3, errors


def test_text_is_asked_for_and_padding_of_it_is_not_read():
    tokenizer = build(text={"length": 5, "width": 12}).eval()
    codes = tokenizer.encode(torch.rand(2, 3, 16, 16))
    with pytest.raises(ValueError, match="reads text"):
        tokenizer.decode(codes)
    with pytest.raises(ValueError, match="up to 5 vectors of width 12"):
        tokenizer.decode(codes, Condition(features=torch.rand(2, 6, 12)))
    text = torch.rand(2, 3, 12)
    alone = tokenizer.decode(codes, Condition(features=text))
    padded = torch.cat([text, torch.rand(2, 2, 12)], 1)
    real = torch.arange(5).expand(2, -1) < 3
    torch.testing.assert_close(tokenizer.decode(codes, Condition(features=padded, features_mask=real)), alone)


def test_codes_that_are_never_used_move_to_the_data():
    codebook, usage = torch.randn(8, 3), torch.zeros(8)
    vectors = 0.1 * torch.randn(200, 3) + 5
    codebook[0] = vectors.mean(0)
    pull_unused_codes(codebook, usage, vectors, torch.zeros(200, dtype=torch.int64))
    assert (codebook - 5).abs().max() < 0.5 and usage[0] == pytest.approx(0.01) and usage[1:].sum() == 0
    used = codebook[0].clone()
    for _ in range(200):
        pull_unused_codes(codebook, usage, vectors, torch.zeros(200, dtype=torch.int64))
    torch.testing.assert_close(codebook[0], used, atol=1e-3, rtol=0)


def test_continuous_tokens_vary_in_training_alone_and_of_another_number_are_refused():
    config = TiTokLatents.config_class.model_validate(
        {"image_size": 16, "patch_size": 4, "num_tokens": 6, "token_width": 6, "encoder": SIZE, "decoder": SIZE}
    )
    tokenizer = TiTokLatents(config)
    picture = torch.rand(2, 3, 16, 16)
    one, other = (tokenizer.train().reconstruct(picture).decoded for _ in range(2))
    assert not torch.equal(one, other)
    latents = tokenizer.eval().encode(picture)
    torch.testing.assert_close(tokenizer.decode(latents), tokenizer.reconstruct(picture).decoded.clamp(0, 1))
    with pytest.raises(ValueError, match="is 6 tokens of width 6"):
        tokenizer.decode(Latents(latents.values[:, :5], latents.mask[:, :5]))


@pytest.mark.sweep("tokenizers at work")
def test_the_second_stage_begins_from_the_teachers_decoder(tmp_path):
    teacher = build_small("maskgit-vqgan")
    torch.save(teacher.collect_authors_state(), tmp_path / "maskgit.bin")
    teacher.save(tmp_path / "teacher")
    sizes = teacher.config.model_dump(
        include={"num_codes", "depth", "channels", "multipliers", "num_blocks", "num_groups"}
    )
    known = read_system("titok-b64").choose_settings(small=True)
    student = build_tokenizer(known | {"image_size": 32, "patch_size": teacher.config.factor, "proxy": sizes})
    x = torch.rand(2, 3, 32, 32)

    def train(model, source=tmp_path / "teacher", **more):
        loss = LossSettings(l2=0, imitation={"teacher": str(source), "copy_decoder": True, **more})
        bag = LossBag(loss, "image", {"proxy": sizes["num_codes"]})
        TrainedTokenizer(model, bag)
        return bag.imitation

    held = train(student)
    codes = held.tokenizer.encode(x)
    logits = 1e4 * torch.nn.functional.one_hot(codes.ids[..., 0].clone(), sizes["num_codes"]).float()
    drawn = student.draw_proxy(logits.transpose(1, 2).unflatten(2, codes.grid[1:])).clamp(0, 1)
    assert torch.allclose(drawn, held.tokenizer.decode(codes), atol=1e-5)
    place = f"maskgit_vqgan={tmp_path}/maskgit.bin"
    with pytest.raises(ValueError, match=r"maskgit.bin lacks .*no published size"):  # not the released size
        train(student, place, pickle=True)
    with pytest.raises(ValueError, match="pickle"):
        train(student, place)
    with pytest.raises(ValueError, match="nowhere is not there; give a tokenizer's folder, or NAME=FOLDER"):
        train(student, "nowhere")
    with pytest.raises(ValueError, match="other sizes than tokenizer.proxy .*set its depth, channels"):
        train(
            build_tokenizer(
                known | {"image_size": 32, "patch_size": teacher.config.factor, "proxy": sizes | {"channels": 4}}
            )
        )
    with pytest.raises(ValueError, match="is of a MaskGIT VQGAN and the teacher is a tiny_system"):
        student.copy_decoder(TinySystem(TinyConfig()))
    with pytest.raises(ValueError, match="tiny_system has no decoder of another tokenizer's codes"):
        TinySystem(TinyConfig()).copy_decoder(teacher)
