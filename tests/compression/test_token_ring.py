"""TokenRing: attention by two devices and by four is attention by one, in a stock decoder too (gloo, on the CPU)."""

import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import scaled_dot_product_attention

from tests.commands import ROOT, Commands
from tests.free_ports import free_ports
from unimodal.compression.attention.token_ring import (
    SequenceSplit,
    attend_block,
    attend_ring,
    make_empty,
    merge_rows,
    read_split,
)
from unimodal.training.distributed import leave

CASES = [(23, None), (32, None), (29, 5)]  # tokens, window: padded at the end, whole, and of a sliding window


def draw(num):
    generator = torch.Generator().manual_seed(num)
    return [torch.randn(2, heads, num, 8, generator=generator) for heads in (4, 2, 2)]


def find_dense(num, window):
    query, key, value = draw(num)
    apart = torch.arange(num)[:, None] - torch.arange(num)
    seen = (apart >= 0) & (apart < (window or num))
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=0.4, enable_gqa=True)


def build(kind):
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, max_position_embeddings=128)  # fmt: skip
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    return MistralForCausalLM(MistralConfig(**sizes, sliding_window=6)).eval()


def worker(rank: int, port: int, folder: str) -> None:
    """One of two devices: parts of every case, and a decoder's logits."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo")
    made = {}
    for num, window in CASES:
        split = SequenceSplit(num, 2)
        places = split.list_positions(rank)
        parts = [x[:, :, places.clamp(max=num - 1)] for x in draw(num)]
        made[num] = (places, attend_ring(*parts, split, 0.4, window))
    ids = torch.arange(3 * 21).reshape(3, 21) * 7 % 40
    for kind in ("llama", "mistral"):
        model = build(kind)
        reading = read_split(model, ids)
        made[kind] = reading.gather()
        assert model.config._attn_implementation == "sdpa" and len(reading.positions) == reading.logits.shape[1] == 12
    torch.save(made, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
    leave()


RANK = """
import pickle, sys
from tests.compression.test_token_ring import worker
worker(int(sys.argv[1]), *pickle.loads(bytes.fromhex(sys.argv[2])))
"""


@pytest.mark.sweep("ranks")
def test_two_devices_read_as_one(tmp_path: Path, commands: Commands) -> None:
    given = pickle.dumps((free_ports(1)[0], str(tmp_path))).hex()
    ranks = [commands.begin([sys.executable, "-c", RANK, str(rank), given], cwd=ROOT) for rank in range(2)]
    try:
        for rank in ranks:
            _, err = rank.communicate(timeout=120)
            assert rank.returncode == 0, err
    finally:
        for rank in ranks:
            rank.kill()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for num, window in CASES:
        places, parts = (torch.cat([one[num][at] for one in found], [0, 2][at]) for at in range(2))
        whole = parts[:, :, places.argsort()][:, :, :num]
        torch.testing.assert_close(whole, find_dense(num, window), atol=1e-5, rtol=1e-4)
    ids = torch.arange(3 * 21).reshape(3, 21) * 7 % 40
    for kind in ("llama", "mistral"):
        with torch.no_grad():
            dense = build(kind)(ids).logits
        for one in found:
            torch.testing.assert_close(one[kind], dense, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_outputs_of_parts_merge_to_attention_over_all_of_them(num_parts: int) -> None:
    """What the devices compute, one after another: every block once, merged by the logarithms of their weights."""
    num = 26
    query, key, value = draw(num)
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    split = SequenceSplit(num, num_parts)
    places = [split.list_positions(part) for part in range(num_parts)]
    assert torch.cat(places).sort()[0].tolist() == list(range(2 * num_parts * split.stretch))
    dense = find_dense(num, None)
    work = []
    for own in places:
        mine = query[:, :, own.clamp(max=num - 1)]
        made, pairs = make_empty(mine, 8), 0
        for held in places[::-1]:  # in any order
            seen = own[:, None] >= held[None]
            pairs += int(seen.any(1).sum() * seen.any(0).sum())
            inside = held.clamp(max=num - 1)
            merge_rows(made, attend_block(mine, key[:, :, inside], value[:, :, inside], seen, 0.4), seen.any(1))
        real = own < num
        torch.testing.assert_close(made[:, :, real, :-1], dense[:, :, own[real]], atol=1e-5, rtol=1e-4)
        work.append(pairs)
    assert max(work) == min(work)  # all devices do the same


def test_what_cannot_be_is_one_line() -> None:
    with pytest.raises(ValueError, match="torchrun"):
        read_split(build("llama"), torch.zeros(1, 8, dtype=torch.int64))
