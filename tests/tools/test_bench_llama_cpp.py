"""The file that llama.cpp is given holds the same model: transformers' own reader gives its logits bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.sweep("tools at work")

gguf = pytest.importorskip("gguf")

from tools import bench_llama_cpp as bench  # noqa: E402
from unimodal.model.build import NanoConfig, build_nano  # noqa: E402


def make_model(**changes):
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 96}
    return build_nano(80, NanoConfig(**sizes, init_std=0.1, **changes), pad_id=0, bos_id=1, eos_id=2, seed=3).eval()


@torch.inference_mode()
def test_heads_are_rotated_by_neighbours_as_they_were_by_halves():
    """A head's row i and i + D / 2 turn together here; llama.cpp turns 2 i and 2 i + 1."""
    weight, width, heads = torch.randn(24, 5), 8, 3
    found = bench.pair_rotated(weight, heads)
    for head in range(heads):
        for i in range(width // 2):
            assert torch.equal(found[head * width + 2 * i], weight[head * width + i])
            assert torch.equal(found[head * width + 2 * i + 1], weight[head * width + width // 2 + i])


@pytest.mark.parametrize("tied", [True, False])
@torch.inference_mode()
def test_every_tensor_is_there_under_its_name(tied, tmp_path):
    model = make_model(tie_embeddings=tied, rope_theta=5000.0, rms_norm_eps=1e-6)
    bench.write_gguf(model, tmp_path / "model.gguf", half=False)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    known = gguf.MODEL_TENSORS[gguf.MODEL_ARCH.LLAMA]
    patterns = {gguf.TENSOR_NAMES[tensor] for tensor in known}
    names = {tensor.name for tensor in reader.tensors}
    assert {
        name.removesuffix(".weight").replace("blk.1.", "blk.{bid}.") for name in names if "blk.0." not in name
    } <= patterns
    assert len(names) == 2 + (not tied) + 2 * 9
    mine = dict(model.state_dict())
    down = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_down.weight")
    assert np.array_equal(down.data, mine["model.layers.1.mlp.down_proj.weight"].numpy())
    assert reader.get_field("llama.rope.freq_base").contents() == 5000.0
    assert reader.get_field("llama.attention.head_count_kv").contents() == 2
    assert reader.get_field("llama.attention.layer_norm_rms_epsilon").contents() == pytest.approx(1e-6)


@torch.inference_mode()
def test_transformers_reads_the_same_model_from_it(tmp_path):
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model = make_model()
    bench.write_gguf(model, tmp_path / "model.gguf", half=False)
    again = make_model()
    for parameter in again.parameters():
        parameter.zero_()
    read = load_gguf_checkpoint(tmp_path / "model.gguf", return_tensors=True, model_to_load=again)
    again.load_state_dict(read["tensors"], strict=False)
    again.tie_weights()
    ids = torch.tensor([[1, 5, 9, 70, 33]])
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_what_it_cannot_write_is_refused():
    with pytest.raises(ValueError, match="q_proj.bias is not a tensor of a stock Llama"):
        bench.name_tensor("model.layers.0.self_attn.q_proj.bias")


@pytest.mark.skipif("UNIMODAL_LLAMA_CPP" not in os.environ, reason="UNIMODAL_LLAMA_CPP names no environment with it")
@torch.inference_mode()
def test_llama_cpp_itself_writes_the_same_ids(tmp_path):
    python = Path(os.environ["UNIMODAL_LLAMA_CPP"]) / "bin" / "python"
    model = make_model()
    bench.write_gguf(model, tmp_path / "f32.gguf", half=False)
    peer = bench.Peer(python, tmp_path, ["f32"], 1, 64)
    ids = [1, 5, 9]
    found = peer.ask(kind="f32", prompt=ids, tokens=12, rows=80)["ids"]
    peer.close()
    for token in found:
        scores = model(torch.tensor([ids])).logits[0, -1]
        assert scores[token] > scores.max() - 1e-3
        ids.append(token)


def test_it_says_what_is_missing():
    tool = Path(bench.__file__)
    said = subprocess.run([sys.executable, tool], capture_output=True, text=True)
    assert said.returncode == 2 and "--environment FOLDER is needed" in said.stderr
