"""S3Tokenizer: the authors' outputs from their weights; long sounds; released ONNX files."""

import json

import pytest
import torch

from unimodal.tokenizers import pretrained
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.parts.windows import list_windows
from unimodal.tokenizers.systems.s3 import S3Tokenizer

NAMES = ("s3tokenizer_v1", "s3tokenizer_v1_25hz", "s3tokenizer_v2_25hz")


def load(reference):
    settings = S3Tokenizer.read_authors_config(reference.config)
    return S3Tokenizer.from_authors(reference.weights, settings, reference.name)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_the_authors_give_their_outputs(open_reference, name):
    reference = open_reference(f"audio/{name}")
    tokenizer = load(reference)
    x, lengths = reference["input"].unsqueeze(1), reference["input_lengths"].long()
    with torch.inference_mode():
        bands = [tokenizer.mel(row[:, :length]) for row, length in zip(x, lengths, strict=True)]
        frames = torch.tensor([band.shape[2] for band in bands])
        reference.check_equal("mel_lengths", frames)
        padded = torch.cat([torch.nn.functional.pad(band, (0, 50 - band.shape[2])) for band in bands])
        if "mel" in reference.tensors:
            reference.check_close("mel", padded, atol=1e-4)
        else:
            reference.check_close("mel_item1", padded[1:], atol=1e-4)
        reference.check_close("latents", tokenizer.encoder(padded, frames), atol=1e-4)
    codes = tokenizer.encode(x, lengths)
    reference.check_equal("code_lengths", codes.mask.sum(1))
    for item, count in enumerate(codes.counts):
        assert torch.equal(codes.row(item)[:, 0], reference["codes"][item, :count].long())
    reference.check_equal("codes_item1_alone", tokenizer.encode(x[1:, :, : lengths[1]]).ids[..., 0])
    made = tokenizer.reconstruct(x, lengths)
    assert torch.equal(made.mask, codes.mask) and torch.equal(made.ids[made.mask], codes.ids[codes.mask])


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_written_back_as_they_came(open_reference, name):
    reference = open_reference(f"audio/{name}")
    state = load(reference).collect_authors_state()
    assert state.keys() == reference.weights.keys()
    assert all(torch.equal(state[key], reference.weights[key]) for key in state)


def build_small(name, **changes):
    torch.manual_seed(0)
    return build_tokenizer({**read_system(name).choose_settings(small=True), **changes}).eval()


@pytest.mark.parametrize("name", ["s3-v1", "s3-v1-25hz", "s3-v2"])
def test_a_long_sound_has_the_codes_of_its_windows_and_loses_none(name):
    tokenizer = build_small(name)
    hop, per_code = 160, tokenizer.config.frames_per_code
    sound = 0.3 * torch.randn(1, 1, 300 * hop + 7, generator=torch.Generator().manual_seed(0))
    for num_frames in (129, 228, 241, 300):
        x = sound[..., : num_frames * hop]
        codes = tokenizer.encode(x)
        assert codes.ids.shape[1] == tokenizer.encoder.count_steps(num_frames)
        with torch.inference_mode():
            mel = tokenizer.mel(x[:, 0])
            first = tokenizer.quantizer(tokenizer.encode_latents(mel[..., :128])).ids
        kept = (128 - 8) // per_code
        assert torch.equal(codes.ids[:, :kept], first[:, :kept])
    whole = tokenizer.encode(sound[..., : 233 * hop]).ids.shape[1]  # a window of 9 frames begins at 224
    published = tokenizer.encode(sound[..., : 233 * hop], published=True).ids.shape[1]
    assert (whole - published) * per_code == pytest.approx(16 - 9, abs=per_code)


def test_windows_are_the_authors_where_these_are_asked_for():
    assert list_windows(3000, 3000, 400, True) == [(0, 3000)]
    assert list_windows(5300, 3000, 400, False) == [(0, 3000), (2600, 5300)]
    assert list_windows(5300, 3000, 400, True) == [(0, 3000), (2600, 5300), (5200, 5300)]
    assert list_windows(5700, 3000, 400, False) == list_windows(5700, 3000, 400, True)


@pytest.mark.parametrize("num_samples", [1, 200, 399])
def test_a_sound_shorter_than_a_window_has_a_code_and_silence_is_finite(num_samples):
    tokenizer = build_small("s3-v2")
    assert tokenizer.encode(torch.zeros(1, 1, num_samples)).counts == [1]
    with pytest.raises(ValueError, match="only encodes"):
        tokenizer.decode(tokenizer.encode(torch.zeros(1, 1, num_samples)))


# ---- ONNX


def write_varint(value):
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + write_varint(rest) if rest else bytes([low])


def write_field(number, value):
    if isinstance(value, int):
        return write_varint(number << 3) + write_varint(value)
    value = value.encode() if isinstance(value, str) else value
    return write_varint(number << 3 | 2) + write_varint(len(value)) + value


def write_onnx(path, nodes):
    """nodes: (name, kind, [(name of a weight, its tensor)])."""
    graph = b""
    for name, kind, weights in nodes:
        inputs = b"".join(write_field(1, read) for read in ["x", *(read for read, _ in weights)])
        graph += write_field(1, inputs + write_field(3, name) + write_field(4, kind))
        for read, tensor in weights:
            sizes = b"".join(write_field(1, size) for size in tensor.shape)
            kind_of = {torch.float32: 1, torch.float16: 10}[tensor.dtype]
            raw = tensor.contiguous().numpy().tobytes()
            graph += write_field(5, sizes + write_field(2, kind_of) + write_field(8, read) + write_field(9, raw))
    path.write_bytes(write_field(1, 8) + write_field(7, graph))


def list_onnx_nodes(state, version):
    """The weights of S3Tokenizer's code as they lie in the released files: anonymous, most matrices turned round."""
    nodes = []
    for number, name in enumerate(state):
        value, anonymous = state[name], f"onnx::MatMul_{number}"
        *path, part = name.removeprefix("encoder.").split(".")
        node = "/" + "/".join(path[:2] if len(path) > 1 else path).replace("blocks/", "blocks.")
        node = node + "".join(f"/{step}" for step in path[2:])
        node = node.replace("/mlp/0", "/mlp/mlp.0").replace("/mlp/2", "/mlp/mlp.2")
        if part == "bias" and ("conv" in name or ("_ln." in name and version == 2)):
            continue  # beside its weight
        if "conv" in name:
            nodes.append(("", "Conv", [(anonymous, value), (f"{anonymous}b", state[name.replace("weight", "bias")])]))
        elif "positional" in name:
            nodes.append(("/Add", "Add", [("encoders.positional_embedding", value)]))
        elif "embed" in name:
            nodes.append(("/quantizer/rq/model/layers.0/_codebook/Pow_1", "Pow", [(anonymous, value.T)]))
        elif "project_down" in name:
            weight = part == "weight"
            read = "onnx::MatMul_2536" if weight else "quantizer.project_in.bias"
            nodes.append(("", "MatMul" if weight else "Add", [(read, value.T if weight else value)]))
        elif "fsmn_block" in name:
            nodes.append((f"{node}/Conv", "Conv", [(anonymous, value)]))
        elif "_ln." in name and version == 2:
            pair = [(anonymous, value), (f"{anonymous}b", state[name.replace("weight", "bias")])]
            nodes.append((f"{node}/LayerNormalization", "LayerNormalization", pair))
        elif "_ln." in name:
            nodes.append((f"{node}/{'Mul' if part == 'weight' else 'Add_1'}", "Mul", [(anonymous, value)]))
        elif part == "weight":
            nodes.append((f"{node}/MatMul", "MatMul", [(anonymous, value.T)]))
        else:
            nodes.append((f"{node}/Add", "Add", [(anonymous, value)]))
    return nodes


@pytest.mark.parametrize("name", ["s3-v1", "s3-v2"])
def test_a_released_onnx_file_is_read_without_its_package(name, tmp_path):
    tokenizer = build_small(name)
    nodes = list_onnx_nodes(tokenizer.collect_authors_state(), tokenizer.config.version)
    assert any(read == "onnx::MatMul_2536" for _, _, weights in nodes for read, _ in weights) == (name == "s3-v2")
    write_onnx(tmp_path / "speech_tokenizer.onnx", nodes)
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(tokenizer.config.model_dump(mode="json")))
    row = name.replace("-", "_")
    loaded = pretrained.load(row, tmp_path / "speech_tokenizer.onnx", config=settings)
    assert loaded.sha256 == tokenizer.sha256
    (tmp_path / "half.onnx").write_bytes((tmp_path / "speech_tokenizer.onnx").read_bytes()[:999])
    for source, family, said in [
        ("half.onnx", row, "is no ONNX file that can be read .*download it again"),
        ("speech_tokenizer.onnx", "titok", "is of the family s3"),
    ]:
        with pytest.raises(ValueError, match=said):
            pretrained.load(family, tmp_path / source, config=settings)
