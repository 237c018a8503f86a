"""Other ways for a decoder to read text, trained beside tokens: at equal bytes and at equal compute.

    python tools/compare_front_ends.py train.txt test.txt [--only tokens bytes …] [--seconds 60] [--bytes 200000]
                                       [--rows 2000] [--width 128] [--layers 4] [--save FOLDER]

Every front end of `unimodal/model/front_ends` stands before a decoder of the same sizes and reads the same texts in
the same order, each for so many seconds of processor time. Prints bits a byte on the test text when each had read
`--bytes` bytes (equal data) and when its time was up (equal compute), what it read by then, how many bytes of text it
trains on and scores in a second of processor time, the bytes of what is scored at once, and bits a byte of the test
text with a tenth of its letters changed: dropped, doubled, swapped with the next or in the other case. `--save` keeps
the decoder of `tokens` with its tokenizer as a stock folder, which is a donor for `unimodal text transplant`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from unimodal.files import write_text_atomically
from unimodal.model.build import NanoConfig
from unimodal.model.front_ends import FRONT_ENDS, FrontEnd, FrontEndRequest, make_front_end
from unimodal.text.corpora import cut_pieces, read_lines
from unimodal.text.reports.opened import OpenedTokenizer
from unimodal.text.trainers import TrainingSettings, train

PIECE_BYTES, BATCH = 256, 16
LEARNING_RATE, WARM_UP = 2e-3, 20
NOISE = 0.1  # of the letters
COLUMNS = ("trained", "weights", "bits a byte, equal bytes", "bits a byte, equal time", "bytes read",
           "trained on a second", "scored a second", "bytes a unit", "bits a byte, noisy text")  # fmt: skip


def add_noise(text: str, rng: random.Random) -> str:
    """A text with a tenth of its letters dropped, doubled, swapped with the next or in the other case."""
    letters = list(text)
    for at, letter in enumerate(letters):
        if letter.isalpha() and rng.random() < NOISE:
            kind = rng.randrange(4)
            if kind == 3 and at + 1 < len(letters):
                letters[at], letters[at + 1] = letters[at + 1], letters[at]
            else:
                letters[at] = ("", letter * 2, letter.swapcase(), letter)[kind]
    return "".join(letters)


@torch.no_grad()
def measure(front_end: FrontEnd, pieces: Sequence[bytes]) -> tuple[float, float, float]:
    """Bits a byte, bytes a second of processor time, and bytes a unit."""
    front_end.eval()
    nats = num_bytes = num_units = 0.0
    begun = time.process_time()
    for at in range(0, len(pieces), BATCH):
        scores = front_end.score(pieces[at : at + BATCH])
        nats += float(scores.nats.sum())
        num_bytes += int(scores.sizes.sum())
        num_units += int((scores.nats > 0).sum())
    front_end.train()
    spent = max(time.process_time() - begun, 1e-9)
    return nats / num_bytes / torch.log(torch.tensor(2.0)).item(), num_bytes / spent, num_bytes / num_units


def train_front_end(
    front_end: FrontEnd, pieces: Sequence[bytes], test: Sequence[bytes], seconds: float, num_bytes: int, seed: int
) -> tuple[float | None, int, float]:
    """Train for so many seconds of processor time. → bits a byte behind so many bytes (None where time was up before),
    the bytes that were read, and the seconds that training took."""
    optimizer = torch.optim.AdamW(
        [weight for weight in front_end.parameters() if weight.requires_grad], lr=LEARNING_RATE, betas=(0.9, 0.98)
    )
    order = random.Random(seed)
    spent, read, step, at_bytes = 0.0, 0, 0, None
    waiting: list[bytes] = []
    while spent < seconds:
        begun = time.process_time()
        if len(waiting) < BATCH:
            waiting = list(pieces)
            order.shuffle(waiting)
        batch = [waiting.pop() for _ in range(BATCH)]
        # linear warm-up, then down with the time that is left
        scale = min((step + 1) / WARM_UP, max(0.05, 1 - spent / seconds))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * scale
        loss = front_end.score(batch).compute_loss()
        extra = front_end.extra_loss()
        (loss if extra is None else loss + extra).backward()
        torch.nn.utils.clip_grad_norm_(front_end.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        read, step, spent = read + sum(map(len, batch)), step + 1, spent + time.process_time() - begun
        if at_bytes is None and read >= num_bytes:
            at_bytes = measure(front_end, test)[0]
        if step % 20 == 0:
            print(
                f"{step} steps, {read:,} bytes, {spent:.0f} s: {float(loss.detach()):.3f} nats a byte", file=sys.stderr
            )
    return at_bytes, read, spent


def save_donor(folder: Path, front_end: FrontEnd, tokenizer: OpenedTokenizer) -> None:
    """The decoder of tokens as a stock folder: its rows without the one that starts a text, which is put last."""
    lm = front_end.lm
    table = lm.get_input_embeddings()
    table.weight = torch.nn.Parameter(torch.cat([table.weight[1:], table.weight[:1]]).detach())
    lm.tie_weights()
    start = tokenizer.text.size
    for config in (lm.config, lm.generation_config):
        config.bos_token_id = config.eos_token_id = config.pad_token_id = start
    lm.save_pretrained(folder)
    data = tokenizer.data
    token = {"id": start, "content": "<|start|>", "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}  # fmt: skip
    write_text_atomically(
        folder / "tokenizer.json", json.dumps({**data, "added_tokens": [*data["added_tokens"], token]})
    )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|start|>", "eos_token": "<|start|>"}
    write_text_atomically(folder / "tokenizer_config.json", json.dumps(settings))


def run(options: argparse.Namespace) -> None:
    for name in options.only:
        if name not in FRONT_ENDS:
            raise ValueError(f"front end {name!r} is unknown; use {', '.join(FRONT_ENDS)}")
    if options.save is not None and "tokens" not in options.only:
        raise ValueError("--save keeps the decoder of `tokens`; add it to --only")
    torch.set_num_threads(1)
    lines, held_out = read_lines([options.train]), read_lines([options.test])
    if options.tokenizer is None:
        tokenizer = OpenedTokenizer(train(lines, TrainingSettings("bpe", options.rows)), "bpe")
    else:
        from unimodal.text.reports.opened import open_tokenizer

        tokenizer = open_tokenizer(options.tokenizer)
    pieces = [piece.encode() for piece in cut_pieces(lines, PIECE_BYTES)]
    test = [piece.encode() for piece in cut_pieces(held_out, PIECE_BYTES)][: options.test_pieces]
    rng = random.Random(options.seed)
    noisy = [add_noise(piece.decode(), rng).encode() for piece in test]
    heads = max(1, options.width // 32)
    sizes = NanoConfig(
        hidden_size=options.width, num_layers=options.layers, num_heads=heads, num_kv_heads=heads,
        intermediate_size=options.width * 8 // 3, max_positions=PIECE_BYTES * 2,
    )  # fmt: skip
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    request = FrontEndRequest(sizes, tokenizer, pieces, options.font, options.seed)
    for name in options.only:
        front_end = make_front_end(name, request).train()
        at_bytes, read, spent = train_front_end(
            front_end, pieces, test, options.seconds, options.bytes, options.seed
        )  # fmt: skip
        bits, scored, unit = measure(front_end, test)
        noisy_bits, *_ = measure(front_end, noisy)
        weights = sum(weight.numel() for weight in front_end.parameters() if weight.requires_grad)
        cells = [f"`{name}`", f"{weights / 1e6:.2f} M", "–" if at_bytes is None else f"{at_bytes:.3f}", f"{bits:.3f}",
                 f"{read:,}", f"{read / spent:,.0f}", f"{scored:,.0f}", f"{unit:.2f}", f"{noisy_bits:.3f}"]  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)
        if name == "tokens" and options.save is not None:
            save_donor(options.save, front_end, tokenizer)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--only", nargs="+", default=list(FRONT_ENDS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=60.0, help="of processor time, for each")
    parser.add_argument("--bytes", type=int, default=200_000, help="behind which the first column is measured")
    parser.add_argument("--test-pieces", type=int, default=64, help=f"of {PIECE_BYTES} bytes")
    parser.add_argument("--rows", type=int, default=2000, help="of the byte-level BPE that tokens and glyphs have")
    parser.add_argument("--tokenizer", help="another tokenizer in its place")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--font", help="the font of glyphs")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="keep the decoder of tokens")
    parser.add_argument("--seed", type=int, default=0)
    try:
        run(parser.parse_args(arguments))
    except ValueError as error:
        print(f"compare_front_ends: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
