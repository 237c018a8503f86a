"""Load on a served model: requests a second, errors, latency and memory, for many clients and for one in the same run.

    python tools/bench_server.py --model model_cards/nano --clients 32 --seconds 60
    python tools/bench_server.py --url http://127.0.0.1:8000 --clients 32 --mix image=2,text=1
    python tools/bench_server.py --model model_cards/nano --clients 8 --beside image,speech,transcript --most-ratio 3

Without --url the model is served by `unimodal serve` in a process of its own, whose memory is read once a second. First
one client asks, then `--clients` at once, each its next request as soon as it has the answer; the ratio of the two
rates is what batching gains. A request counts as lost if it gets no answer at all; every status but 200 is an error.
"long" is a question of some hundred words with a short answer. What the answers hold is checked: pictures are 64 x 64
or whatever the server says, sounds have samples, text is text.
Ends with status 1 if there was an error, a lost request, or a ratio below `--least-ratio`.

`--beside` asks another question: how long one more client waits for a text while `--clients` others ask for nothing but
pictures, nothing but speech, and so on. The kinds take turns, `--rounds` times, so that a busy machine slows all;
prints medians, and their ratio to that of the first kind. Status 1 if one is above `--most-ratio`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx
import numpy as np
import soundfile
from PIL import Image

KINDS = ("image", "speech", "text", "look", "stream", "transcript", "long")
WORDS = ("red apple", "green tree", "blue car", "smiling face", "yellow sun", "brown dog", "white house", "black cat")


LONG_WORDS = 300  # of the question of a "long" request


@dataclass
class Tally:
    """What one phase gave."""

    seconds: list[float] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    sent: int = 0
    lost: int = 0
    elapsed_s: float = 0.0

    @property
    def rate(self) -> float:
        return len(self.seconds) / self.elapsed_s

    def report(self) -> dict[str, object]:
        quantiles = np.quantile(self.seconds, [0.5, 0.95]) if self.seconds else [float("nan")] * 2
        return {
            "requests": len(self.seconds),
            "requests_per_s": round(self.rate, 2),
            "by_kind": self.kinds,
            "p50_s": round(float(quantiles[0]), 3),
            "p95_s": round(float(quantiles[1]), 3),
            "errors": self.errors,
            "lost": self.lost,
        }


def draw_picture() -> str:
    memory = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(memory, "PNG")
    return "data:image/png;base64," + base64.b64encode(memory.getvalue()).decode()


PICTURE = draw_picture()


def make_tone() -> bytes:
    """A WAV file of two seconds."""
    memory = io.BytesIO()
    times = np.arange(32_000) / 16_000
    soundfile.write(memory, 0.3 * np.sin(2 * np.pi * (200 + 100 * times) * times), 16_000, format="WAV")
    return memory.getvalue()


TONE = make_tone()


async def ask(client: httpx.AsyncClient, kind: str, draws: random.Random) -> None:
    """One request; raises ValueError for an answer that is not what was asked for."""
    words, seed = draws.choice(WORDS), draws.randrange(2**31)
    if kind == "image":
        answer = await client.post("/v1/images/generations", json={"prompt": f"a {words}", "seed": seed})
        check(answer)
        shown = Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
        shown.load()
        if min(shown.size) < 8:
            raise ValueError("the picture is empty")
    elif kind == "speech":
        body = {"input": f"the {words} is here", "voice": "default", "response_format": "wav", "seed": seed}
        answer = await client.post("/v1/audio/speech", json=body)
        check(answer)
        if not len(soundfile.read(io.BytesIO(answer.content))[0]):
            raise ValueError("the sound is empty")
    elif kind == "transcript":
        check(await client.post("/v1/audio/transcriptions", files={"file": ("tone.wav", TONE)}))
    elif kind == "stream":
        body = {"messages": [{"role": "user", "content": f"draw a {words}"}], "modalities": ["image"], "stream": True}
        answer = await client.post("/v1/chat/completions", json=body)
        check(answer)
        if not answer.text.endswith("data: [DONE]\n\n") or "content_parts" not in answer.text:
            raise ValueError("the stream has no end or no picture")
    else:
        content: list[dict] = [{"type": "text", "text": f"what is a {words}?"}]
        if kind == "long":
            content[0]["text"] = " ".join(draws.choices(WORDS, k=LONG_WORDS // 2)) + ": which is red?"
        if kind == "look":
            content = [{"type": "image_url", "image_url": {"url": PICTURE}}, {"type": "text", "text": "What is this?"}]
        body = {"messages": [{"role": "user", "content": content}], "modalities": ["text"], "seed": seed}
        body |= {"max_tokens": 8} if kind == "long" else {}
        answer = await client.post("/v1/chat/completions", json=body)
        check(answer)
        if not isinstance(answer.json()["choices"][0]["message"]["content"], str):
            raise ValueError("the answer is no text")


def check(answer: httpx.Response) -> None:
    if answer.status_code != 200:
        raise ValueError(f"status {answer.status_code}")


async def run_phase(url: str, key: str | None, clients: int, seconds: float, mix: list[str]) -> Tally:
    """Lets clients ask without a pause for so many seconds; requests then in flight are waited for and counted."""
    tally = Tally()
    started = time.monotonic()

    async def ask_in_turn(number: int) -> None:
        draws, turn = random.Random(number), 0
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with httpx.AsyncClient(base_url=url, timeout=300, headers=headers) as client:
            while time.monotonic() - started < seconds:
                kind, begun = mix[(number + turn) % len(mix)], time.monotonic()  # the same shares for one and for many
                turn += 1
                tally.sent += 1
                try:
                    await ask(client, kind, draws)
                except ValueError as error:
                    tally.errors[str(error)] = tally.errors.get(str(error), 0) + 1
                except httpx.HTTPError as error:
                    name = type(error).__name__
                    tally.errors[name] = tally.errors.get(name, 0) + 1
                    tally.lost += 1
                else:
                    tally.seconds.append(time.monotonic() - begun)
                    tally.kinds[kind] = tally.kinds.get(kind, 0) + 1

    await asyncio.gather(*(ask_in_turn(number) for number in range(clients)))
    tally.elapsed_s = time.monotonic() - started
    return tally


async def measure_beside(url: str, key: str | None, clients: int, kind: str, num: int) -> list[float]:
    """Seconds of each of `num` texts while so many clients ask for this kind without a pause."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=url, timeout=300, headers=headers) as client:

        async def keep_asking(number: int) -> None:
            draws = random.Random(number)
            while True:
                await ask(client, kind, draws)

        others = [asyncio.create_task(keep_asking(number)) for number in range(clients)]
        try:
            await asyncio.sleep(2.0)
            seconds = []
            for number in range(num):
                begun = time.monotonic()
                await ask(client, "text", random.Random(number))
                seconds.append(time.monotonic() - begun)
                await asyncio.sleep(0.3)
        finally:
            for other in others:
                other.cancel()
            ended = await asyncio.gather(*others, return_exceptions=True)
        if failed := [error for error in ended if not isinstance(error, asyncio.CancelledError)]:
            raise SystemExit(f"{kind}: {failed[0]}")
    await wait_until_idle(url)
    return seconds


async def wait_until_idle(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while True:
            state = (await client.get("/health")).json()
            if not state["running"] and not state["waiting"]:
                return
            await asyncio.sleep(0.1)


def compare_neighbours(url: str, arguments: argparse.Namespace) -> tuple[dict[str, object], bool]:
    """The figures of `--beside`, and whether a ratio is too high."""
    kinds = arguments.beside.split(",")
    seconds: dict[str, list[float]] = {kind: [] for kind in ("none", *kinds)}
    for _ in range(arguments.rounds):
        for kind in seconds:
            clients = 0 if kind == "none" else arguments.clients
            seconds[kind] += asyncio.run(measure_beside(url, arguments.key, clients, kind, 5))
    medians = {kind: float(np.median(found)) for kind, found in seconds.items()}
    ratios = {kind: medians[kind] / medians[kinds[0]] for kind in kinds}
    figures = {
        kind: {
            "texts": len(found),
            "median_s": round(medians[kind], 3),
            "worst_s": round(max(found), 3),
            **({"ratio": round(ratios[kind], 2)} if kind in ratios else {}),
        }
        for kind, found in seconds.items()
    }
    return {"clients": arguments.clients, "text_beside": figures}, max(ratios.values()) > arguments.most_ratio


def read_resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Memory(threading.Thread):
    """Reads the resident memory of a process once a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.readings = pid, []  # type: ignore[var-annotated]
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(1.0):
            try:
                self.readings.append((time.monotonic(), read_resident_mb(self.pid)))
            except (OSError, IndexError):
                return

    def report(self, started: float, ended: float) -> dict[str, float]:
        """Mean memory in the second and in the last third of the phase: a leak would drive them apart."""
        found = [mb for when, mb in self.readings if started <= when <= ended]
        third = max(1, len(found) // 3)
        if len(found) < 3:
            return {"last_mb": round(found[-1], 1)} if found else {}
        middle, last = float(np.mean(found[third : 2 * third])), float(np.mean(found[-third:]))
        return {
            "first_mb": round(found[0], 1),
            "middle_mb": round(middle, 1),
            "last_mb": round(last, 1),
            "growth_percent": round(100 * (last / middle - 1), 2),
        }


def serve(arguments: argparse.Namespace) -> tuple[subprocess.Popen[str], str]:
    """`unimodal serve` on a free port, and its address once it listens."""
    command = [sys.executable, "-m", "unimodal", "serve", "--port", "0"]
    command += ["--max-batch", str(arguments.max_batch), "--queue-limit", str(max(64, arguments.clients))]
    command += ["--model", arguments.model] if arguments.model else []
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        found = re.search(r"served at (\S+)", line)
        if found:
            threading.Thread(target=lambda: [print(rest, end="", file=sys.stderr) for rest in process.stderr]).start()
            return process, found[1]
        print(line, end="", file=sys.stderr)
    raise SystemExit(process.wait() or 1)


def parse_mix(text: str) -> list[str]:
    mix: list[str] = []
    for item in text.split(","):
        kind, _, weight = item.partition("=")
        if kind not in KINDS or not (weight or "1").isdigit():
            raise SystemExit(f"--mix {item!r} is unknown; use {', '.join(KINDS)}, each with =N")
        mix += [kind] * int(weight or 1)
    return mix


def write_figures(figures: dict[str, object], out: Path | None) -> None:
    print(json.dumps(figures, indent=1))
    if out is not None:
        out.write_text(json.dumps(figures, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model folder; by default the nano that is here")
    parser.add_argument("--url", help="a server that runs already, instead of one of its own")
    parser.add_argument("--key", help="its API key")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--alone-seconds", type=float, help="of the one client; by default a third of --seconds")
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--mix", default="image", help=f"kinds of requests with weights, of {', '.join(KINDS)}")
    parser.add_argument("--least-ratio", type=float, default=0.0)
    parser.add_argument("--beside", help=f"kinds, of {', '.join(KINDS)}, beside which a text is timed")
    parser.add_argument("--rounds", type=int, default=3, help="of --beside")
    parser.add_argument("--most-ratio", type=float, default=float("inf"), help="of --beside, to the first kind")
    parser.add_argument("--out", type=Path, help="the figures as JSON")
    arguments = parser.parse_args()
    mix = parse_mix(arguments.mix)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the server, too
    process, url = (None, arguments.url) if arguments.url else serve(arguments)
    memory = None if process is None else Memory(process.pid)
    try:
        if memory is not None:
            memory.start()
        if arguments.beside:
            parse_mix(arguments.beside)
            figures, failed = compare_neighbours(url, arguments)
            write_figures(figures, arguments.out)
            raise SystemExit(int(failed))
        alone_s = arguments.alone_seconds or arguments.seconds / 3
        asyncio.run(run_phase(url, arguments.key, min(4, arguments.clients), min(5.0, alone_s), mix))  # warm up
        alone = asyncio.run(run_phase(url, arguments.key, 1, alone_s, mix))
        started = time.monotonic()
        many = asyncio.run(run_phase(url, arguments.key, arguments.clients, arguments.seconds, mix))
        ended = time.monotonic()
    finally:
        if process is not None:
            process.terminate()
            process.wait(30)
    ratio = many.rate / alone.rate if alone.seconds else float("nan")
    figures = {
        "mix": arguments.mix,
        "one_client": alone.report(),
        f"{arguments.clients}_clients": many.report(),
        "ratio": round(ratio, 2),
        "memory": None if memory is None else memory.report(started, ended),
    }
    write_figures(figures, arguments.out)
    failed = bool(alone.errors or many.errors or many.lost) or not ratio >= arguments.least_ratio
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
