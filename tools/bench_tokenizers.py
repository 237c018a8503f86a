"""How fast our tokenizers encode and decode beside packages that have the same, in one run and in turns.

    python tools/bench_tokenizers.py                      # quantizers, and the small form of a LlamaGen VQ at 32 pixels
    python tools/bench_tokenizers.py --real               # and VQ-16 whole, at 128 pixels
    python tools/bench_tokenizers.py --repeats 21 --threads 2

Peers: the quantizers of vector-quantize-pytorch at equal settings (a codebook of random vectors each), and JanusVQVAE
of transformers with our weights, whose codes are ours. Ours and the peer run one after the other, `--repeats` times.
Ratios are medians of ours over medians of the peer's, of wall and of processor time: below 1 ours is faster.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.parts.quantizers import make_quantizer
from unimodal.tokenizers.pretrained.write_authors import write_janus_checkpoint
from unimodal.tokenizers.systems.vqgan import VqganTokenizer

Call = Callable[[], object]
REAL_PIXELS = 128


@dataclass(frozen=True)
class Duel:
    """The same work by ours and by the peer."""

    name: str
    ours: Call
    peer: Call


def list_quantizer_duels(batch: int = 4, positions: int = 256) -> Iterator[Duel]:
    """Vectors [batch, positions, D] to ids and back."""
    import vector_quantize_pytorch as peers

    def pair_up(name: str, settings: dict[str, object], peer: torch.nn.Module, num_dims: int) -> Iterator[Duel]:
        ours = make_quantizer(settings).eval()
        peer.eval()
        x = torch.randn(batch, positions, num_dims)
        ids = ours(x).ids
        look_up = peer.get_output_from_indices if isinstance(peer, peers.VectorQuantize) else peer.indices_to_codes
        yield Duel(f"{name}, encode", lambda: ours(x).ids, lambda: peer(x)[1])
        yield Duel(f"{name}, decode", lambda: ours.look_up(ids), lambda: look_up(ids[..., 0]))

    table = {"kind": "vector", "codebook_size": 8192, "num_dims": 32}
    yield from pair_up("VQ 8,192 of 32", table, peers.VectorQuantize(dim=32, codebook_size=8192), 32)
    unit = {**table, "codebook_size": 16384, "num_dims": 8, "normalize_latents": True, "normalize_codes": True}
    cosine = peers.VectorQuantize(dim=8, codebook_size=16384, use_cosine_sim=True)
    yield from pair_up("VQ 16,384 of 8, length 1", unit, cosine, 8)
    levels = [8, 8, 8, 5, 5, 5]
    yield from pair_up("FSQ 64,000", {"kind": "finite_scalar", "levels": levels}, peers.FSQ(levels=levels), 6)
    signs = {"kind": "lookup_free", "group_bits": [14]}
    yield from pair_up("LFQ 16,384", signs, peers.LFQ(dim=14, codebook_size=2**14), 14)


def list_network_duels(real: bool) -> Iterator[Duel]:
    """A LlamaGen VQ and transformers' class with its weights: pictures to codes and back, after their codes agree."""
    from transformers.models.janus.modeling_janus import JanusVQVAE

    system = read_system("llamagen-vq16")
    tiny = {"num_norm_groups": 32, "width": 32, "latent_width": 32}
    for name, settings, pixels, batch in [
        ("VQ-16 small, 32 px", {**system.choose_settings(small=True), **tiny}, 32, 4),
        (f"VQ-16, {REAL_PIXELS} px", {**system.choose_settings(), "image_size": REAL_PIXELS}, REAL_PIXELS, 1),
    ][: 2 if real else 1]:
        torch.manual_seed(0)
        ours = build_tokenizer(settings)
        assert isinstance(ours, VqganTokenizer)
        ours.eval()
        with tempfile.TemporaryDirectory() as place:
            ours.save(Path(place) / "ours")
            write_janus_checkpoint(Path(place) / "ours", Path(place) / "peer")
            peer = JanusVQVAE.from_pretrained(Path(place) / "peer").eval()
        x = torch.rand(batch, 3, pixels, pixels)
        codes = ours.encode(x)
        ids = codes.ids[..., 0]
        same = (peer.encode(x * 2 - 1).image_tokens.view(batch, -1) == ids).float().mean()
        if same < 0.99:
            raise ValueError(f"{name}: only {same:.0%} of the peer's codes are ours; nothing can be compared")

        def encode(ours=ours, x=x) -> object:
            return ours.encode(x)

        def decode(ours=ours, codes=codes) -> object:
            return ours.decode(codes)

        def encode_peer(peer=peer, x=x) -> object:
            return peer.encode(x * 2 - 1)

        def decode_peer(peer=peer, ids=ids) -> object:
            return peer.decode(ids).div(2).add(0.5).clamp(0, 1)

        yield Duel(f"{name}, encode", encode, encode_peer)
        yield Duel(f"{name}, decode", decode, decode_peer)


def measure(call: Call) -> tuple[float, float]:
    """Seconds of wall time and of processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def compare(duel: Duel, repeats: int) -> str:
    """A row of the table."""
    for call in (duel.ours, duel.peer):
        call()  # caches are filled
    runs = [(measure(duel.ours), measure(duel.peer)) for _ in range(repeats)]
    (our_wall, our_cpu), (peer_wall, peer_cpu) = (
        [statistics.median(run[who][what] for run in runs) for what in (0, 1)] for who in (0, 1)
    )
    return (
        f"| {duel.name} | {our_wall * 1e3:.1f} | {peer_wall * 1e3:.1f} | {our_wall / peer_wall:.2f} "
        f"| {our_cpu / max(peer_cpu, 1e-9):.2f} |"
    )


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="the whole VQ-16 too")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(f"load {os.getloadavg()[0]:.1f} at the beginning, {options.threads} threads", file=sys.stderr)
    print("| what | ours, ms | peer, ms | wall, ours / peer | processor, ours / peer |\n|---|---|---|---|---|")
    for duels in (list_quantizer_duels(), list_network_duels(options.real)):
        for duel in duels:
            print(compare(duel, options.repeats), flush=True)
    print(f"load {os.getloadavg()[0]:.1f} at the end", file=sys.stderr)


if __name__ == "__main__":
    main()
