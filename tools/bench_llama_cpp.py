"""Tokens a second of the engine beside llama.cpp: same weights, same prompt, same number of tokens, in turns.

    OMP_NUM_THREADS=2 python tools/bench_llama_cpp.py --environment FOLDER [--model EXPORTED] [--rounds 7]

FOLDER is a virtual environment of its own. If it is not there it is made, and PyPI's `llama-cpp-python` is built from
source in it with native flags (GGML_NATIVE=ON; a C++ compiler, cmake, and half an hour of two cores). Where its AMX
code fails (0.3.36 ended with a segmentation fault at q8_0 on a virtual machine with AMX), build it without:
`--flags "-DGGML_NATIVE=ON -DCMAKE_C_FLAGS=-mno-amx-int8 -DCMAKE_CXX_FLAGS=-mno-amx-int8"`. EXPORTED is what
`unimodal export` wrote of a model on a stock Llama; without it the weights are random, in the shape of SmolLM2-135M
with the 67,588 rows of `smol`.

The weights are written as GGUF in float16 (the names and the order of a head's rows that llama.cpp expects), and
llama.cpp makes q8_0 and q4_0 of that itself. Both programs read the prompt, compute the scores of every row, take the
likeliest and feed it, so many times; what counts is the time behind the prompt. They take turns, each in a process of
its own, and medians count: wall-clock, and processor time, which is what to read on a machine that is not idle.

`GB/s` is what the tokens of a second read of weights. `same` counts the ids that both wrote alike, up to the first
difference: with random weights rows are all but equally likely, so they part soon.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from unimodal.generation.engine import Engine
    from unimodal.vocabulary import Vocabulary

VERSION = "0.3.36"  # of llama-cpp-python
FLAGS = "-DGGML_NATIVE=ON"
PAIRS = {"float32": "f32", "bfloat16": "f16", "int8": "q8_0", "int4": "q4_0"}
BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0625, "int4": 0.5625}  # of a weight
ROWS = 67_588
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def name_tensor(name: str) -> str:
    """llama.cpp's name of a tensor of `LlamaForCausalLM`. Raises ValueError for one that it has none for."""
    if name in NAMES:
        return NAMES[name]
    parts = name.split(".")
    if parts[:2] == ["model", "layers"] and parts[-1] == "weight" and ".".join(parts[3:-1]) in LAYER_NAMES:
        return f"blk.{parts[2]}.{LAYER_NAMES['.'.join(parts[3:-1])]}.weight"
    raise ValueError(f"{name} is not a tensor of a stock Llama without biases")


def pair_rotated(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys [heads * D, K], halves of a head that are rotated together → its pairs, side by side."""
    halves = weight.unflatten(0, (heads, 2, -1))  # [heads, 2, D / 2, K]
    return halves.transpose(1, 2).reshape(weight.shape)


def write_gguf(model: PreTrainedModel, out: Path, half: bool = True) -> None:
    """Write a stock Llama for llama.cpp, without a tokenizer; in float16, or in float32.

    Raises ValueError for another architecture and for rotations that are scaled.
    """
    import gguf

    config = model.config
    if config.model_type != "llama":
        raise ValueError(f"{config.model_type} is not a Llama; use llama.cpp's own converter")
    rope = config.rope_parameters
    if rope["rope_type"] != "default":
        raise ValueError(f"its rotation is scaled ({rope['rope_type']}); use llama.cpp's own converter")
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = weight.detach().float()
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            weight = pair_rotated(weight, heads)
        weight = weight.half() if half and weight.dim() > 1 else weight
        writer.add_tensor(name_tensor(name), weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---- llama.cpp, in its own process and environment


def serve_peer(folder: Path, kinds: list[str], threads: int, positions: int) -> None:
    """Answer requests, a line of JSON each, with the ids and times of llama.cpp. It runs in that environment."""
    import ctypes

    import llama_cpp
    import numpy as np

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    contexts = {}
    for kind in kinds:
        path = folder / f"{kind}.gguf"
        if not path.exists():
            params = llama_cpp.llama_model_quantize_default_params()
            params.ftype = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}[kind]
            source = str(folder / "f16.gguf").encode()
            if llama_cpp.llama_model_quantize(source, str(path).encode(), params):
                sys.exit(f"llama.cpp could not make {kind}")
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = positions
        settings.n_threads = settings.n_threads_batch = threads
        context = llama_cpp.llama_init_from_model(model, settings) if model else None
        if not context:
            sys.exit(f"llama.cpp could not load {kind}")
        contexts[kind] = context, path.stat().st_size
    system = llama_cpp.llama_print_system_info().decode()
    print(json.dumps({"version": llama_cpp.__version__, "system": system}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        context, size = contexts[asked["kind"]]
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)

        def feed(ids: list[int], context: object = context, rows: int = asked["rows"]) -> int:
            """The likeliest id behind these."""
            held = (llama_cpp.llama_token * len(ids))(*ids)
            if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(held, len(ids))):
                sys.exit("llama.cpp could not decode")
            return int(np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (rows,)).argmax())

        found = [feed(asked["prompt"])]
        began, worked = time.perf_counter(), time.process_time()
        while len(found) <= asked["tokens"]:
            found.append(feed(found[-1:]))
        times = time.perf_counter() - began, time.process_time() - worked
        print(json.dumps({"ids": found, "wall": times[0], "worked": times[1], "size": size}), flush=True)


class Peer:
    """llama.cpp in a process of its own. Raises RuntimeError if it ends."""

    def __init__(self, python: Path, folder: Path, kinds: list[str], threads: int, positions: int) -> None:
        command = [python, __file__, "--peer", folder, *kinds, "--threads", threads, "--positions", positions]
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about = self._read()

    def ask(self, **asked: object) -> dict[str, object]:
        stdin = cast("IO[str]", self.process.stdin)
        stdin.write(json.dumps(asked) + "\n")
        stdin.flush()
        return self._read()

    def _read(self) -> dict[str, object]:
        line = cast("IO[str]", self.process.stdout).readline()
        if not line:
            raise RuntimeError("llama.cpp ended before it answered; what it said stands above")
        answer: dict[str, object] = json.loads(line)
        return answer

    def close(self) -> None:
        cast("IO[str]", self.process.stdin).close()
        self.process.wait()


def make_environment(folder: Path, flags: str = FLAGS) -> Path:
    """The python of the environment, which is made if it is not there. Raises RuntimeError if that fails.

    flags: what cmake is told. What is there already is taken as it was built.
    """
    python = folder / "bin" / "python"
    if python.exists() and subprocess.run([python, "-c", "import llama_cpp"], capture_output=True).returncode == 0:
        return python
    print(f"llama-cpp-python {VERSION} is built in {folder} with {flags}; this takes a while", file=sys.stderr)
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-binary",
        "llama-cpp-python",
        f"llama-cpp-python=={VERSION}",
    ]
    for command in ([sys.executable, "-m", "venv", folder], install):
        if subprocess.run([str(part) for part in command], env=os.environ | {"CMAKE_ARGS": flags}).returncode:
            raise RuntimeError(f"llama-cpp-python could not be built in {folder}; what pip said stands above")
    return python


# ---- the engine


def make_random_model() -> tuple[PreTrainedModel, Vocabulary]:
    """Random weights in the shape of SmolLM2-135M, with as many rows as `smol`."""
    from unimodal.model.build import NanoConfig, build_nano
    from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

    blocks = [Block(name="image", modality="image", size=ROWS - 49_152 - 14)]
    vocabulary = Vocabulary.build(49_152, blocks, [SpanLayout("image", [Segment("image", 64)])])
    config = NanoConfig(
        hidden_size=576, num_layers=30, num_heads=9, num_kv_heads=3, intermediate_size=1536, init_std=0.04
    )
    return build_nano(ROWS, config, pad_id=0, bos_id=1, eos_id=2, seed=0).eval(), vocabulary


def load_exported(folder: Path) -> tuple[PreTrainedModel, Vocabulary]:
    import torch
    import transformers

    from unimodal.vocabulary import read_vocabulary

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), read_vocabulary(folder / "vocabulary.json")


def decode(engine: Engine, rows: int, prompt: list[int], tokens: int) -> tuple[list[int], float, float]:
    """The likeliest ids behind a prompt, and the wall-clock and processor seconds of all but the first."""
    import torch

    with torch.inference_mode():
        engine.refresh_head()
        whole = engine.head.select(((0, rows),))
        hidden = engine.decoder.prefill([prompt], engine.pad_id, len(prompt) + tokens + 1)
        found = [int(engine.head.compute_logits(hidden, whole).argmax())]
        began, worked = time.perf_counter(), time.process_time()
        while len(found) <= tokens:
            hidden = engine.decoder.step(torch.tensor([found[-1:]]))
            found.append(int(engine.head.compute_logits(hidden, whole).argmax()))
        return found, time.perf_counter() - began, time.process_time() - worked


def compare(model: PreTrainedModel, vocabulary: Vocabulary, given: argparse.Namespace, folder: Path) -> None:
    """Write the files, take turns and print the table."""
    import torch

    from unimodal.generation.engine import Engine

    rows, kinds = int(model.config.vocab_size), list(given.weights)
    if "float32" in kinds:
        write_gguf(model, folder / "f32.gguf", half=False)
    write_gguf(model, folder / "f16.gguf")
    python, threads = make_environment(given.environment, given.flags), torch.get_num_threads()
    prompt = [1, *[10 + 7 * number % 900 for number in range(given.prompt - 1)]]
    peer = Peer(python, folder, [PAIRS[kind] for kind in kinds], threads, given.prompt + given.tokens + 8)
    engines = {kind: Engine(model, vocabulary, weights=kind) for kind in kinds}
    weights = sum(p.numel() for p in model.get_decoder().layers.parameters()) + rows * model.config.hidden_size
    print(f"llama-cpp-python {peer.about['version']}: {peer.about['system']}")
    print(
        f"torch {torch.__version__}, {threads} threads; {weights / 1e6:.1f} M weights a token, {rows:,} rows, one"
        f" stream; prompt {given.prompt}, then {given.tokens} tokens, medians of {given.rounds} rounds"
    )
    walls: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}  # ours and llama.cpp's, seconds a token
    works: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    loads, same, sizes = [], {}, {}
    for number in range(given.rounds + 1):
        for kind in kinds:
            own, wall, worked = decode(engines[kind], rows, prompt, given.tokens)
            told = peer.ask(kind=PAIRS[kind], prompt=prompt, tokens=given.tokens, rows=rows)
            ids = cast("list[int]", told["ids"])
            same[kind] = next((at for at, (a, b) in enumerate(zip(own, ids, strict=True)) if a != b), len(own))
            sizes[kind] = cast("int", told["size"])
            if number:  # the first round is to warm up
                walls[kind].append((wall / given.tokens, cast("float", told["wall"]) / given.tokens))
                works[kind].append((worked / given.tokens, cast("float", told["worked"]) / given.tokens))
        loads.append(os.getloadavg()[0])
        print(f"round {number} of {given.rounds}, load {loads[-1]:.1f}", file=sys.stderr)
    peer.close()
    print(f"load {min(loads):.1f} to {max(loads):.1f}")
    print(f"{'':18s} tokens/s: ours  llama.cpp  ratio   a processor second: ours  llama.cpp  ratio     GB/s    same")
    for kind in kinds:
        ours, theirs = (statistics.median(part) for part in zip(*walls[kind], strict=True))
        own, other = (statistics.median(part) for part in zip(*works[kind], strict=True))
        print(
            f"{kind + ' / ' + PAIRS[kind]:18s} {1 / ours:14.1f} {1 / theirs:10.1f} {theirs / ours:6.2f}"
            f" {1 / own:25.1f} {1 / other:10.1f} {other / own:6.2f}"
            f" {weights * BYTES[kind] / ours / 1e9:8.1f} {same[kind]:3d}/{given.tokens + 1}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, help="the virtual environment of llama-cpp-python")
    parser.add_argument("--flags", default=FLAGS, help="what cmake is told when llama.cpp is built")
    parser.add_argument("--model", type=Path, default=None, help="an exported model; otherwise random weights")
    parser.add_argument("--weights", nargs="+", choices=PAIRS, default=["bfloat16", "int8", "int4"])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the prompt")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer", nargs="+", help=argparse.SUPPRESS)  # the folder of files, and kinds
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--positions", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        serve_peer(Path(given.peer[0]), given.peer[1:], given.threads, given.positions)
        return
    if given.environment is None:
        parser.error("--environment FOLDER is needed: where llama-cpp-python is, or is to be built")
    if given.tokens < 1 or given.prompt < 1 or given.rounds < 1:
        parser.error("--tokens, --prompt and --rounds are 1 or more")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    try:
        model, vocabulary = load_exported(given.model) if given.model else make_random_model()
        with tempfile.TemporaryDirectory() as folder:
            compare(model, vocabulary, given, Path(folder))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
