"""Make rows of noisy speech in, clean speech out, from clean sounds and noises: what a model learns to enhance from.

    python tools/prepare_noisy_speech.py CLEAN [--noise NOISE] [--out data/noisy] [--snr -5 0 5 10 15] [--copies 2]
                                         [--rate 16000] [--seed 0] [--one-held-out-of 20]

CLEAN and NOISE are folders of sound files. Each clean sound is mixed `--copies` times with a noise from a random place,
which is repeated where it is too short, at one of the signal-to-noise ratios (in dB, by the powers of both). Without
`--noise` the noises are made: white and pink noise, the hum of mains, and babble, which is three other clean sounds at
once. A mixture that would clip is made quieter.

Writes `noisy/NAME-COPY.wav`, `clean/NAME.wav`, and rows in `rows.jsonl` (to train on) and `heldout.jsonl`, as
`recipes/configs/enhance_speech.yaml` reads them. What is held out is chosen by the names of the clean sounds, so that
no sound is on both sides, and of several noises by theirs too.

Shapes: T samples.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from unimodal.data.media_items import is_held_out
from unimodal.media.audio import load_audio, save_audio
from unimodal.media.registry import find_medium

MADE = ("white", "pink", "hum", "babble")
SPEAKERS = 3  # of babble
REQUEST = "Remove the noise."


def make_noise(kind: str, length: int, rate: int, others: Sequence[Tensor], rng: random.Random) -> Tensor:
    """A noise of one of `MADE`, float [length]. others: sounds that babble is made of, at least one."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    white = torch.randn(length, generator=generator)
    if kind == "white":
        return white
    if kind == "pink":  # power falls with frequency
        bands = torch.fft.rfft(white)
        return torch.fft.irfft(bands / torch.arange(1, len(bands) + 1).sqrt(), length)
    if kind == "hum":
        moments = torch.arange(length) / rate
        base = rng.choice((50.0, 60.0))
        tones = [torch.sin(2 * torch.pi * base * n * moments + rng.uniform(0, 6.28)) / n for n in range(1, 8)]
        return torch.stack(tones).sum(0)
    assert kind == "babble"
    return torch.stack([take_part(rng.choice(others), length, rng) for _ in range(SPEAKERS)]).sum(0)


def take_part(sound: Tensor, length: int, rng: random.Random) -> Tensor:
    """`length` samples from a random place of a sound, which is repeated where it is too short."""
    first = rng.randrange(len(sound))
    repeated = sound.repeat(1 + (first + length) // len(sound))
    return repeated[first : first + length]


def mix_at_ratio(clean: Tensor, noise: Tensor, ratio_db: float) -> Tensor:
    """Speech and noise, float [T] each, at a signal-to-noise ratio; quieter where it would clip. Raises ValueError for
    silence on either side."""
    powers = [float(sound.square().mean()) for sound in (clean, noise)]
    if min(powers) == 0:
        raise ValueError("is silent; leave it out")
    mixed = clean + noise * (powers[0] / powers[1] / 10 ** (ratio_db / 10)) ** 0.5
    return mixed / max(1.0, float(mixed.abs().max()))


def list_sounds(folder: Path) -> list[Path]:
    """The sound files of a folder and those below it. ValueError where there are none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in find_medium("audio").suffixes)
    if not found:
        raise ValueError(f"{folder} has no sound files; name another folder")
    return found


def write_rows(args: argparse.Namespace) -> dict[str, int]:
    """Writes all files; returns how many rows each list has."""
    paths = list_sounds(args.clean)
    clean = {path.relative_to(args.clean).with_suffix("").as_posix().replace("/", "-"): path for path in paths}
    if len(clean) < len(paths):
        raise ValueError(f"{args.clean} has sounds of one name with different endings; rename them")
    sounds = {name: load_audio(path, args.rate) for name, path in clean.items()}
    held = {name: is_held_out(name, args.one_held_out_of) for name in sounds}
    noises = {path: load_audio(path, args.rate) for path in list_sounds(args.noise)} if args.noise else {}
    for folder in ("clean", "noisy"):
        (args.out / folder).mkdir(parents=True, exist_ok=True)
    rows: dict[bool, list[str]] = {False: [], True: []}
    for name, sound in sounds.items():
        rng = random.Random(f"{args.seed} {name}")
        others = [sounds[other] for other in sounds if held[other] == held[name] and other != name] or [sound]
        usable = [n for path, n in noises.items() if is_held_out(path.name, args.one_held_out_of) == held[name]]
        chosen_of = usable or list(noises.values())  # where one side has no noise of its own
        save_audio(sound, args.out / "clean" / f"{name}.wav", args.rate)
        for copy in range(args.copies):
            if chosen_of:
                noise = take_part(rng.choice(chosen_of), len(sound), rng)
            else:
                noise = make_noise(rng.choice(MADE), len(sound), args.rate, others, rng)
            try:
                mixed = mix_at_ratio(sound, noise, rng.choice(args.snr))
            except ValueError as error:
                print(f"left out: {clean[name]} or its noise {error}", file=sys.stderr)
                continue
            save_audio(mixed, args.out / "noisy" / f"{name}-{copy}.wav", args.rate)
            rows[held[name]].append(json.dumps(describe_row(f"noisy/{name}-{copy}.wav", f"clean/{name}.wav")))
    for is_held, file in ((False, "rows.jsonl"), (True, "heldout.jsonl")):
        (args.out / file).write_text("".join(f"{row}\n" for row in rows[is_held]), encoding="utf-8")
    return {"rows.jsonl": len(rows[False]), "heldout.jsonl": len(rows[True])}


def describe_row(noisy: str, clean: str) -> dict[str, object]:
    """Noisy speech and the request, then clean speech, as messages."""
    asked = [{"type": "audio", "path": noisy}, {"type": "text", "text": REQUEST}]
    return {"messages": [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [{"type": "audio", "path": clean}]},
    ]}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clean", type=Path)
    parser.add_argument("--noise", type=Path)
    parser.add_argument("--out", type=Path, default=Path("data/noisy"))
    parser.add_argument("--snr", type=float, nargs="+", default=[-5.0, 0.0, 5.0, 10.0, 15.0])
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--rate", type=int, default=16000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one-held-out-of", type=int, default=20)
    args = parser.parse_args(arguments)
    try:
        counts = write_rows(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for file, count in counts.items():
        print(f"{args.out / file}: {count} rows")


if __name__ == "__main__":
    main()
