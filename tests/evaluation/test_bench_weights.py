"""Networks whose weights the owner names: the FID's and UTMOS, against their definitions, and what is refused."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.nn.functional import avg_pool2d, gelu, max_pool2d
from transformers import Wav2Vec2Config

from unimodal.cli.evaluate import read_weights
from unimodal.evaluation.tokenizer_bench import inception, utmos
from unimodal.evaluation.tokenizer_bench.picture_codecs import count_units
from unimodal.evaluation.tokenizer_bench.picture_judges import InceptionJudge
from unimodal.evaluation.tokenizer_bench.pictures import summarise
from unimodal.evaluation.tokenizer_bench.settings import DOWNSTREAM, BenchSettings, check_read, hash_weights


@pytest.mark.parametrize(("real", "made"), [(7, 9), (40, 30), (40, 6)])
def test_the_distance_of_the_fid_is_that_of_its_formula(real, made):
    draws = np.random.default_rng(0)
    x, y = draws.normal(size=(real, 12)), 2 * draws.normal(size=(made, 12)) + 0.3
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    apart = ((x.mean(0) - y.mean(0)) ** 2).sum()
    wanted = apart + np.trace(a) + np.trace(b) - 2 * np.trace(scipy.linalg.sqrtm(a @ b)).real
    found = inception.measure_inception_distance(torch.from_numpy(x), torch.from_numpy(y))
    assert found == pytest.approx(wanted, rel=1e-4)
    assert inception.measure_inception_distance(torch.from_numpy(x), torch.from_numpy(x)) == pytest.approx(0, abs=1e-9)


def test_pictures_are_read_where_tensorflow_reads_them():
    line = torch.tensor([0.0, 10.0, 20.0, 40.0]).expand(1, 1, 4, 4)
    assert inception.resize_as_tensorflow(line, 8)[0, 0, 0].tolist() == [0, 5, 10, 15, 20, 30, 40, 40]
    assert inception.resize_as_tensorflow(line.mT, 2)[0, 0, :, 1].tolist() == [0, 20]


def test_pools_of_the_network_do_not_count_padding_and_the_last_takes_the_maximum():
    x = torch.rand(1, 1280, 3, 3)
    for last, pooled in (
        (False, avg_pool2d(x, 3, 1, 1, count_include_pad=False)),
        (True, max_pool2d(x, 3, 1, 1)),
    ):
        with torch.inference_mode():
            block = inception.BlockE(1280, last).eval()
            assert torch.allclose(block(x)[:, -192:], block.branch_pool(pooled))
            half = block.branch3x3_1(x)
            assert torch.allclose(block(x)[:, 320:704], block.branch3x3_2a(half))
            assert torch.allclose(block(x)[:, 704:1088], block.branch3x3_2b(half))


def test_names_and_shapes_of_the_network_are_those_of_its_file():
    with torch.device("meta"):
        network = inception.FidInception()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert sum(value.numel() for value in network.parameters()) == 23_850_960  # of torch-fidelity, 1008 classes too
    assert shapes["Mixed_6d.branch7x7dbl_3.conv.weight"] == (160, 160, 1, 7)
    assert shapes["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1) and shapes["fc.weight"] == (1008, 2048)
    assert "Conv2d_3b_1x1.bn.running_var" in shapes


def test_the_true_name_is_that_of_the_network_of_the_fid_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(inception.FidInception, "load", classmethod(lambda cls, path: torch.nn.Flatten()))
    judge = InceptionJudge(tmp_path)
    real, made = torch.rand(5, 3, 2, 2), torch.rand(5, 3, 2, 2)
    assert torch.equal(judge.compute(real), (real * 255).round().flatten(1))  # of bytes
    arrays = {"features_inception": judge.extract(real).numpy()}
    found = summarise({"features_inception": judge.extract(made).numpy()}, arrays, [judge])
    assert list(found) == ["rfid"] and found["rfid"] > 0


def make_published(generator):
    """A small UTMOS under SpeechMOS' names: of each weight its shape is what its definition asks for."""

    def draw(*shape):
        return torch.randn(*shape, generator=generator) * 0.2

    state = {"domain_emb": draw(1, 128), "judge_emb": draw(1, 128)}
    trunk = {"mask_emb": draw(16), "layer_norm.weight": draw(8), "layer_norm.bias": draw(8)}
    trunk |= {"post_extract_proj.weight": draw(16, 8), "post_extract_proj.bias": draw(16)}
    for number, (width, kernel) in enumerate(((1, 10), (8, 3))):
        trunk[f"feature_extractor.conv_layers.{number}.0.weight"] = draw(8, width, kernel)
    trunk |= {f"feature_extractor.conv_layers.0.2.{name}": draw(8) for name in ("weight", "bias")}
    trunk |= {"encoder.pos_conv.0.weight_g": draw(1, 1, 4).abs(), "encoder.pos_conv.0.weight_v": draw(16, 8, 4)}
    trunk |= {"encoder.pos_conv.0.bias": draw(16)}
    trunk |= {f"encoder.layer_norm.{name}": draw(16) for name in ("weight", "bias")}
    for name in ("q", "k", "v", "out"):
        trunk |= {f"encoder.layers.0.self_attn.{name}_proj.weight": draw(16, 16)}
        trunk |= {f"encoder.layers.0.self_attn.{name}_proj.bias": draw(16)}
    for name, (out, width) in {"fc1": (24, 16), "fc2": (16, 24)}.items():
        trunk |= {f"encoder.layers.0.{name}.weight": draw(out, width), f"encoder.layers.0.{name}.bias": draw(out)}
    for name in ("self_attn_layer_norm", "final_layer_norm"):
        trunk |= {f"encoder.layers.0.{name}.{kind}": draw(16) for kind in ("weight", "bias")}
    lstm = torch.nn.LSTM(16 + 256, 512, batch_first=True, bidirectional=True)
    state |= {f"blstm.{name}": value.detach() for name, value in lstm.state_dict().items()}
    state |= {"projection.0.weight": draw(2048, 1024), "projection.0.bias": draw(2048)}
    state |= {"projection.2.weight": draw(1, 2048), "projection.2.bias": draw(1)}
    return state | {f"wav2vec2.{name}": value for name, value in trunk.items()}


def score_by_definition(state, sound):
    """SpeechMOS' UTMOS22Strong, literally, at these sizes."""
    w = {name.removeprefix("wav2vec2."): value for name, value in state.items()}
    f = torch.nn.functional
    x = f.conv1d(sound[None, None], w["feature_extractor.conv_layers.0.0.weight"], stride=5)
    norm = [w[f"feature_extractor.conv_layers.0.2.{name}"] for name in ("weight", "bias")]
    x = gelu(f.group_norm(x, 8, *norm))
    x = gelu(f.conv1d(x, w["feature_extractor.conv_layers.1.0.weight"], stride=2)).mT
    x = f.layer_norm(x, (8,), w["layer_norm.weight"], w["layer_norm.bias"])
    x = f.linear(x, w["post_extract_proj.weight"], w["post_extract_proj.bias"])
    v = w["encoder.pos_conv.0.weight_v"]
    kernel = v * w["encoder.pos_conv.0.weight_g"] / v.norm(dim=(0, 1), keepdim=True)
    x = x + gelu(f.conv1d(x.mT, kernel, w["encoder.pos_conv.0.bias"], padding=2, groups=2)[..., :-1]).mT
    x = f.layer_norm(x, (16,), w["encoder.layer_norm.weight"], w["encoder.layer_norm.bias"])
    at = "encoder.layers.0."
    q, k, v = (  # [1, heads, F, 8]
        f.linear(x, w[f"{at}self_attn.{n}_proj.weight"], w[f"{at}self_attn.{n}_proj.bias"])
        .unflatten(2, (2, 8))
        .transpose(1, 2)
        for n in "qkv"
    )
    mixed = (torch.softmax(q @ k.mT / 8**0.5, -1) @ v).transpose(1, 2).flatten(2)
    x = x + f.linear(mixed, w[f"{at}self_attn.out_proj.weight"], w[f"{at}self_attn.out_proj.bias"])
    x = f.layer_norm(x, (16,), w[f"{at}self_attn_layer_norm.weight"], w[f"{at}self_attn_layer_norm.bias"])
    inner = gelu(f.linear(x, w[f"{at}fc1.weight"], w[f"{at}fc1.bias"]))
    x = x + f.linear(inner, w[f"{at}fc2.weight"], w[f"{at}fc2.bias"])
    x = f.layer_norm(x, (16,), w[f"{at}final_layer_norm.weight"], w[f"{at}final_layer_norm.bias"])
    beside = torch.cat([w["domain_emb"], w["judge_emb"]], 1)[:, None].expand(-1, x.shape[1], -1)
    lstm = torch.nn.LSTM(16 + 256, 512, batch_first=True, bidirectional=True)
    lstm.load_state_dict({name.removeprefix("blstm."): value for name, value in w.items() if "blstm" in name})
    x = lstm(torch.cat([x, beside], 2))[0]
    x = f.linear(x, w["projection.0.weight"], w["projection.0.bias"]).relu()
    return float(f.linear(x, w["projection.2.weight"], w["projection.2.bias"]).mean() * 2 + 3)


def test_utmos_scores_as_its_definition_with_weights_under_the_published_names():
    state = make_published(torch.Generator().manual_seed(0))
    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, conv_dim=(8, 8),
        conv_kernel=(10, 3), conv_stride=(5, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    network = utmos.Utmos(config)
    network.load_published(state)
    for length in (900, 411):
        sound = torch.randn(length, generator=torch.Generator().manual_seed(length)) * 0.1
        with torch.inference_mode():
            assert network.score(sound) == pytest.approx(score_by_definition(state, sound), abs=1e-4)
    with pytest.raises(RuntimeError, match="Missing key"):
        network.load_published({name: value for name, value in state.items() if "fc1" not in name})


def test_other_files_and_names_are_one_line(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="name SpeechMOS'") as said:
        utmos.Utmos.load(tmp_path / "x.pt")
    assert "\n" not in str(said.value)
    with pytest.raises(ValueError, match="does not hold the Inception-v3 of the FID") as said:
        inception.FidInception.load(tmp_path / "x.pt")
    assert "\n" not in str(said.value)
    assert read_weights([f"utmos={tmp_path / 'x.pt'}"]) == {"utmos": tmp_path / "x.pt"}
    twice = [f"lpips={tmp_path}"] * 2
    for named in (["fvd=x"], ["inception"], [f"lpips={tmp_path / 'nowhere'}"], twice):
        with pytest.raises(ValueError, match="--weights"):
            read_weights(named)


def test_weights_are_known_by_what_they_hold_and_refused_where_nothing_reads_them(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"one")
    settings = BenchSettings(tmp_path, tmp_path, lpips=tmp_path, utmos=tmp_path / "a.pth")
    first = hash_weights(settings)
    assert set(first) == {"lpips_sha256", "utmos_sha256"} and first == hash_weights(settings)
    (tmp_path / "a.pth").write_bytes(b"two")
    assert {name for name, value in hash_weights(settings).items() if value != first[name]} == set(first)
    check_read(BenchSettings(tmp_path, tmp_path, utmos=tmp_path), "audio")
    check_read(BenchSettings(tmp_path, tmp_path, side=64, lpips=tmp_path), "video")
    for given, medium, says in (
        ({"utmos": tmp_path}, "image", "--weights utmos is of audio, and these tokenizers are of image"),
        ({"inception": tmp_path}, "video", "--weights inception is of image"),
        ({"every_rate": True}, "image", "--every-rate is of audio"),
        ({"side": 64}, "audio", "--size is of image and video"),
        ({"lpips": tmp_path, "part": DOWNSTREAM}, "image", "--lpips is of the reconstruction part"),
    ):
        with pytest.raises(ValueError, match=says):
            check_read(BenchSettings(tmp_path, tmp_path, **given), medium)


def test_units_of_av1_that_pictures_share_do_not_count():
    sequence, mark, frame = bytes([1 << 3 | 2, 3]) + b"abc", bytes([2 << 3 | 2, 0]), bytes([6 << 3 | 2, 0x81, 1])
    assert count_units(mark + sequence + frame + b"x" * 129) == 3 + 129
    assert count_units(bytes([6 << 3]) + b"xyz") == 4  # without a size: to the end
