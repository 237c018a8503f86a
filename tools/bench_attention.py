"""Measure one training step of a small decoder under the ways to keep packed documents apart.

    OMP_NUM_THREADS=1 python tools/bench_attention.py [--rows 16] [--length 512] [--repeats 3]
    OMP_NUM_THREADS=1 python tools/bench_attention.py --kernels

dense    packed rows, sdpa with an explicit boolean block-diagonal mask [B, 1, N, N]
varlen   packed rows, unimodal.model.attention: documents gathered into short rows inside attention only
flat     no rows: a few documents end to end in one row of just their length [1, T], varlen attention
padded   no packing: documents of similar length in right-padded batches with is_causal
leaky    packed rows, one causal triangle a row (documents see each other): what attention without separation costs

Every variant processes the same documents, whose lengths are those of captioned pictures, utterances and clips.
Prints processor seconds a step and real tokens a second of them, forward and backward, without the head.

One thread of a busy 2.5 GHz AVX-512 processor, --rows 6 --layers 3, tokens a second in two runs: dense 1699 and 1765,
varlen 2055 and 2056, flat 2265 and 2216, padded 2223 and 2261, leaky 1592 and 1898. Keeping documents apart in buckets
is faster than one mask; varlen is slower than flat by the padding at the end of packed rows. So: train on flat rows.

--kernels times sdpa's kernel against attention as two products in bfloat16, forward and backward, for documents of 16
to 1,024 tokens (1,024 in all); unimodal.model.attention.LONGEST_DENSE is the length up to which training takes the
products. On two threads sdpa took 4.2 times as long at 16 tokens, 3.0 at 128, 1.3 at 512 and as long from 768 on. A
second table has one new token over the cache of a decoding step: there float32 was read at 26 GB/s, and bfloat16, half
the bytes, at 5.5 GB/s.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from unimodal.model.attention import Packing, attend_by_products, register_attention, set_attention
from unimodal.model.build import NanoConfig, build_nano


def draw_document_lengths(rng: random.Random, num_tokens: int, row: int) -> list[int]:
    """Half pictures with captions, three tenths utterances, the rest clips, until the tokens are used up."""
    lengths: list[int] = []
    while sum(lengths) < num_tokens:
        kind = rng.random()
        if kind < 0.5:
            lengths.append(66 + rng.randint(10, 26))
        elif kind < 0.8:
            lengths.append(rng.randint(60, 160) + rng.randint(8, 30))
        else:
            lengths.append(196 + rng.randint(10, 26))
    return [min(n, row) for n in lengths]


def pack_first_fit(lengths: list[int], row: int) -> list[list[int]]:
    """Longest first into the first row with room."""
    rows: list[list[int]] = []
    for n in sorted(lengths, reverse=True):
        for r in rows:
            if sum(r) + n <= row:
                r.append(n)
                break
        else:
            rows.append([n])
    return rows


def make_positions(rows: list[list[int]], row: int) -> torch.Tensor:
    """Position ids [B, N] that restart at every document; the padding at the end of a row is one more document."""
    return torch.stack([torch.cat([torch.arange(n) for n in (*r, row - sum(r)) if n]) for r in rows])


def make_dense_mask(position_ids: torch.Tensor) -> torch.Tensor:
    """Boolean [B, 1, N, N]: causal and within the document."""
    starts = torch.ones_like(position_ids)
    starts[:, 1:] = (position_ids[:, 1:] != position_ids[:, :-1] + 1).long()
    segment = starts.cumsum(1)
    same = segment[:, :, None] == segment[:, None, :]
    return (same & torch.ones_like(same).tril())[:, None]


def list_kernels(repeats: int) -> None:
    """Milliseconds of attention, forward and backward, by the length of documents of 1,024 tokens in all."""
    print(f"{'tokens':>6} {'sdpa ms':>9} {'products ms':>12} {'sdpa / products':>16}   (9 heads of 64, bfloat16)")
    for length in (16, 32, 64, 128, 256, 384, 512, 768, 1024):
        shape = (max(1, 1024 // length), 9, length, 64)
        q, k, v = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        grad = torch.randn(shape, dtype=torch.bfloat16)
        ways = {
            "sdpa": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            "products": lambda q=q, k=k, v=v: attend_by_products(q, k, v),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(5 * repeats):
            for name, way in ways.items():
                began = time.perf_counter()
                way().backward(grad)
                taken[name].append(time.perf_counter() - began)
        sdpa, products = (1000 * statistics.median(taken[name]) for name in ("sdpa", "products"))
        print(f"{length:6d} {sdpa:9.2f} {products:12.2f} {sdpa / products:15.1f}×", flush=True)


def measure_cached(repeats: int) -> None:
    """Milliseconds of one new token over a cache, by its length and precision, and how fast the cache is read."""
    print(
        f"\n{'cached':>6} {'float32 ms':>11} {'GB/s':>6} {'bfloat16 ms':>12} {'GB/s':>6}   (16 streams, 4 heads of 64)"
    )
    for length in (256, 1024, 4096):
        shape = (8, 2, 16, 4, length, 64)  # eight layers, so that no processor cache holds them all
        caches = {dtype: torch.randn(shape).to(dtype) for dtype in (torch.float32, torch.bfloat16)}
        taken: dict[torch.dtype, list[float]] = {dtype: [] for dtype in caches}
        for _ in range(3 * repeats):
            for dtype, cache in caches.items():
                query = torch.randn(16, 4, 1, 64, dtype=dtype)
                began = time.perf_counter()
                for keys, values in cache:
                    F.scaled_dot_product_attention(query, keys, values)
                taken[dtype].append(time.perf_counter() - began)
        line = f"{length:6d}"
        for dtype, width in ((torch.float32, 11), (torch.bfloat16, 12)):
            seconds = statistics.median(taken[dtype])
            line += f" {1000 * seconds:{width}.2f} {caches[dtype].nbytes / seconds / 1e9:6.1f}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--micro", type=int, default=8, help="documents in one flat row")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--kernels", action="store_true", help="sdpa's kernel against two products, in bfloat16")
    args = parser.parse_args()
    if args.kernels:
        list_kernels(args.repeats)
        return measure_cached(args.repeats)
    register_attention()
    cfg = NanoConfig(num_layers=args.layers)
    model = build_nano(1024, cfg, pad_id=0, bos_id=1, eos_id=2, seed=0).train()
    lengths = draw_document_lengths(random.Random(0), args.rows * args.length, args.length)
    real = sum(lengths)
    rows = pack_first_fit(lengths, args.length)
    position_ids = make_positions(rows, args.length)
    ids = torch.randint(3, 1024, position_ids.shape)
    mask, packing = make_dense_mask(position_ids), Packing.from_position_ids(position_ids)

    def run(ids: torch.Tensor, **kwargs: object) -> None:
        model.model(input_ids=ids, use_cache=False, **kwargs).last_hidden_state.sum().backward()
        model.zero_grad()

    def run_dense() -> None:
        model.set_attn_implementation("sdpa")
        run(ids, position_ids=position_ids, attention_mask=mask)

    def run_varlen() -> None:
        set_attention(model, "varlen")
        run(ids, position_ids=position_ids, packing=packing)

    def run_flat() -> None:
        set_attention(model, "varlen")
        for start in range(0, len(lengths), args.micro):
            position = torch.cat([torch.arange(n) for n in lengths[start : start + args.micro]])[None]
            run(
                torch.randint(3, 1024, position.shape),
                position_ids=position,
                packing=Packing.from_position_ids(position),
            )

    def run_leaky() -> None:
        model.set_attn_implementation("sdpa")
        run(ids)

    def run_padded() -> None:
        model.set_attn_implementation("sdpa")
        ordered = sorted(lengths)
        batch: list[int] = []
        for n in ordered:
            if batch and (len(batch) + 1) * n > args.micro * 128:
                run(torch.randint(3, 1024, (len(batch), batch[-1])))
                batch = []
            batch.append(n)
        run(torch.randint(3, 1024, (len(batch), batch[-1])))

    print(
        f"{len(lengths)} documents, {real} tokens, {len(rows)} rows of {args.length}, {torch.get_num_threads()} threads"
    )
    variants: dict[str, Callable[[], None]] = {
        "dense": run_dense,
        "varlen": run_varlen,
        "flat": run_flat,
        "padded": run_padded,
        "leaky": run_leaky,
    }
    best = dict.fromkeys(variants, float("inf"))
    for _ in range(args.repeats + 1):  # in turns, so that a busy moment of the machine slows all of them
        for name, step in variants.items():
            began = time.process_time()
            step()
            best[name] = min(best[name], time.process_time() - began)
    for name, seconds in best.items():
        print(f"{name:8s} {seconds:7.3f} s/step {real / seconds:9.0f} tokens/s")


if __name__ == "__main__":
    main()
