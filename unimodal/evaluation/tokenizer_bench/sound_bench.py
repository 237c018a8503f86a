"""The reconstruction part of a bench of sounds: tokenizers at their own rates, compared at 16 kHz, and Opus at the
bits of each. Residual codes are decoded at 1, 2, 4, … and all of their codebooks.

A sound is read from its file at each tokenizer's rate. What a measure cannot be taken of (PESQ of silence) counts in no
mean; `…_items` says of how many it could. Word errors are of a .txt beside the sound, or else of what the same
recogniser hears in the original.

Shapes: T samples, M sounds, N positions, G groups.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from unimodal.data.media_items import MediaItem
from unimodal.evaluation.judges import compute_word_error_rate
from unimodal.evaluation.suite import ReportProgress
from unimodal.evaluation.tokenizer_bench.entries import Entry
from unimodal.evaluation.tokenizer_bench.items import BenchItems
from unimodal.evaluation.tokenizer_bench.pictures import Figure
from unimodal.evaluation.tokenizer_bench.settings import PART, VERSION, BenchReport, BenchSettings
from unimodal.evaluation.tokenizer_bench.sound_codecs import code_with_opus
from unimodal.evaluation.tokenizer_bench.sound_judges import MEASURES, RATE, SoundJudge, load_recogniser
from unimodal.evaluation.tokenizer_bench.speaker_judge import INSTALL
from unimodal.evaluation.tokenizer_bench.store import Arrays, PartStore
from unimodal.evaluation.tokenizer_bench.timing import Work, measure_speed
from unimodal.media.access import load_medium
from unimodal.media.audio import resample
from unimodal.media.registry import FileTarget
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import Condition, MediaTokenizer
from unimodal.tokenizers.usage import CodebookUsage

T = TypeVar("T")
TIMED_SECONDS = 4.0  # of a sound
SPEAKER = "speaker_cosine"


class SoundBench:
    """Measures tokenizers of sounds and Opus on the same items."""

    def __init__(
        self, entries: Sequence[Entry], items: BenchItems, settings: BenchSettings, report: ReportProgress
    ) -> None:
        """ValueError for a tokenizer that does not decode, or reads what files of sounds do not give, and for a package
        that is missing."""
        for entry in entries:
            tokenizer = entry.tokenizer
            if not tokenizer.can_decode:
                raise ValueError(f"{entry.label}: {tokenizer.no_decoder}; leave it out")
            needed = (tokenizer.encode_conditions | tokenizer.decode_conditions) - tokenizer.optional_conditions
            if needed - {"text"}:
                raise ValueError(
                    f"{entry.label} reads {', '.join(sorted(needed))}, which files of sounds do not give; leave it out"
                )
        self.entries, self.items, self.settings, self.report = entries, items, settings, report
        self.judge = SoundJudge()
        self.recognisers: dict[str, Callable[[Tensor], str]] = {
            name: load_recogniser(name) for name in settings.recognisers
        }
        self.lock = Lock()  # of the recognisers
        self.store = PartStore(settings.parts)
        self.heard: dict[tuple[str, str], str] = {}  # (recogniser, item) → what it hears in the original
        self.by_opus: dict[tuple[str, int], dict[str, float | str | None]] = {}  # (item, bit rate) → measures
        self.chunks = [range(start, min(start + PART, len(items))) for start in range(0, len(items), PART)]

    def run(self) -> BenchReport:
        tokenizers: dict[str, dict[str, object]] = {}
        opus: list[dict[str, object]] = []
        count = 0
        for entry in self.entries:
            measured = self._collect(entry, f"{entry.label}: coding sounds", [], self._code)
            count = len(measured["bytes"])
            if not count:
                first = next(iter(self.items.left_out.items()), ("", "there are no files"))
                raise ValueError(f"none of {len(self.items)} sounds can be read: {first[0]}: {first[1]}")
            tokenizers[entry.label] = self._describe(entry, measured)
            for groups in list_group_counts(entry.tokenizer):
                spent = choose_rate(measured, groups)["bytes"]
                code = partial(self._code_with_opus, dict(zip(measured["name"].tolist(), spent.tolist(), strict=True)))
                said = f"coding with Opus at the bits of {entry.label} ({groups} of each position)"
                coded = self._collect(entry, said, ["opus", groups], code)
                opus.append(
                    {
                        "budget_bytes": round(float(spent.mean()), 3),
                        "within_budget": round(float(coded["reached"].mean()), 4),
                        **self._summarise(coded),
                    }
                )
        data: dict[str, object] = {
            "path": str(self.settings.data),
            "sha256": self.items.sha256,
            "items": count,
            "left_out": dict(self.items.left_out),
        }
        judges: dict[str, object] = {name: "recogniser" for name in self.recognisers}
        judges[SPEAKER] = f"not measured: {INSTALL}" if self.judge.speaker is None else "SpeakerJudge"
        made = BenchReport(medium="audio", data=data, seed=self.settings.seed, side=None, judges=judges)
        made.tokenizers = tokenizers
        made.codecs = {"opus": {"rates": sorted(opus, key=lambda rate: float(str(rate["budget_bytes"])))}}
        return made

    # ---- items

    def _collect(
        self, entry: Entry, said: str, what: Sequence[str | int], measure: Callable[[Entry, range], Arrays]
    ) -> Arrays:
        """The measures of all items, part by part."""
        subject = json.dumps(
            [VERSION, "audio", self.items.sha256, self.settings.recognisers, entry.tokenizer.sha256, *what]
            + [self.settings.seed, self.judge.speaker is not None]
        )
        parts: list[Arrays] = []
        for chunk in self.chunks:
            self.report(said, chunk.start, len(self.items))
            part = self.store.find_or_measure(subject, str(chunk.start), partial(measure, entry, chunk))
            self.items.left_out |= dict(json.loads(str(part.pop("left_out"))))
            parts.append(part)
        filled = [part for part in parts if len(part["bytes"])] or parts[:1]
        return {name: np.concatenate([part[name] for part in filled]) for name in filled[0]}

    def _read(self, chunk: range, rate_hz: int) -> list[tuple[MediaItem, Tensor, Tensor]]:
        """The items of a part that can be read, with their sounds [T] at 16 kHz and at rate_hz."""
        found = []
        for item in self.items.items[chunk.start : chunk.stop]:
            try:
                sounds = [load_medium("audio", item.source, FileTarget(sample_rate_hz=hz)) for hz in (RATE, rate_hz)]
                found.append((item, sounds[0], sounds[1]))
            except (ValueError, OSError) as error:
                self.items.left_out[item.name] = " ".join(str(error).split())
        return found

    def _code(self, entry: Entry, chunk: range) -> Arrays:
        """The measures of a part, under "GROUPS:measure"."""
        tokenizer = entry.tokenizer
        rows: list[dict[str, float | str | None]] = []
        tasks: list[Callable[[], dict[str, float | str | None]]] = []
        assert tokenizer.sample_rate_hz is not None
        for item, original, sound in self._read(chunk, tokenizer.sample_rate_hz):
            told, x = read_transcript(item), sound[None, None]
            if chunk.start == 0 and not rows:  # what is slow the first time alone
                self._rebuild(tokenizer, tokenizer.encode(x, condition=make_condition(tokenizer, "encode", told)), told)
            begun = time.perf_counter()
            codes = tokenizer.encode(x, condition=make_condition(tokenizer, "encode", told))
            encoded = time.perf_counter()
            made = self._rebuild(tokenizer, codes, told)
            spent = {"encode_s": encoded - begun, "decode_s": time.perf_counter() - encoded}
            positions = codes.ids.shape[1]
            ids = codes.row(0).cpu().flatten().tolist()
            rows.append({"name": item.name, "codes": positions, "ids": json.dumps(ids), **spent})
            rows[-1] |= {"bytes": entry.count_bits(positions) / 8, "seconds": len(original) / RATE}
            rebuilt: dict[int, Tensor] = {}
            for groups in list_group_counts(tokenizer):
                fewer = keep_groups(codes, groups)
                wave = made if fewer is codes else self._rebuild(tokenizer, fewer, told)
                rebuilt[groups] = resample(wave, tokenizer.sample_rate_hz, RATE)[: len(original)]
                rows[-1][f"{groups}:bytes"] = entry.count_bits(positions, groups) / 8
            tasks.append(partial(self._measure_rates, item, original, rebuilt))
        for row, figures in zip(rows, run_side_by_side(tasks), strict=True):
            row |= figures
        return self._pack(rows, chunk)

    def _measure_rates(
        self, item: MediaItem, original: Tensor, rebuilt: Mapping[int, Tensor]
    ) -> dict[str, float | str | None]:
        """rebuilt: groups → what they decode to."""
        return {
            f"{groups}:{name}": value
            for groups, made in rebuilt.items()
            for name, value in self._measure(item, original, made).items()
        }

    def _rebuild(self, tokenizer: MediaTokenizer, codes: Codes, told: str) -> Tensor:
        """codes of one sound → float32 [T] at the tokenizer's rate."""
        noise = tokenizer.draw_noise(codes, [self.settings.seed]) if "noise" in tokenizer.decode_settings else None
        return tokenizer.decode(codes, make_condition(tokenizer, "decode", told), noise)[0, 0].float()

    def _code_with_opus(self, budgets: Mapping[str, float], entry: Entry, chunk: range) -> Arrays:
        """budgets: name → bytes of the codes of that item."""
        read = self._read(chunk, RATE)
        tasks = [partial(self._measure_opus, item, original, budgets[item.name]) for item, original, _ in read]
        return self._pack(run_side_by_side(tasks), chunk)

    def _measure_opus(self, item: MediaItem, original: Tensor, budget: float) -> dict[str, float | str | None]:
        """One sound, coded by Opus in so many bytes."""
        coded = code_with_opus(original, RATE, 8 * budget * RATE / max(len(original), 1))
        key = (item.name, coded.bit_rate)
        if key not in self.by_opus:  # below its lowest rate all budgets give one sound
            self.by_opus[key] = self._measure(item, original, coded.samples)
        return {"bytes": coded.num_bits / 8, "reached": float(coded.reached), **self.by_opus[key]}

    def _measure(self, item: MediaItem, original: Tensor, made: Tensor) -> dict[str, float | str | None]:
        figures: dict[str, float | str | None] = {"seconds": len(original) / RATE}
        figures |= self.judge.measure(original, made)
        told = read_transcript(item)
        with self.lock:
            for name, hear in self.recognisers.items():
                if not told and (name, item.name) not in self.heard:
                    self.heard[name, item.name] = hear(original)
                figures |= {f"heard:{name}": hear(made), f"said:{name}": told or self.heard[name, item.name]}
        return figures

    def _pack(self, rows: Sequence[Mapping[str, object]], chunk: range) -> Arrays:
        """Rows of figures as arrays [M]; None is nan."""
        names = [item.name for item in self.items.items[chunk.start : chunk.stop]]
        why = [[name, self.items.left_out[name]] for name in names if name in self.items.left_out]
        packed: Arrays = {"bytes": np.zeros(0), "left_out": np.array(json.dumps(why))}
        for name in rows[0] if rows else ():
            values = [row[name] for row in rows]
            texts = any(isinstance(value, str) for value in values)
            packed[name] = np.array(values if texts else [np.nan if value is None else value for value in values])
            if not texts:
                packed[name] = packed[name].astype(np.float64)
        return packed

    # ---- figures

    def _describe(self, entry: Entry, measured: Arrays) -> dict[str, object]:
        tokenizer = entry.tokenizer
        usage = CodebookUsage(tokenizer)
        for ids in measured["ids"]:
            row = torch.tensor(json.loads(str(ids)), dtype=torch.int64).view(1, -1, len(tokenizer.codebook_sizes))
            usage.add(Codes.whole(row))
        seconds = float(measured["seconds"].sum())
        return {
            "family": tokenizer.config.family,
            "sha256": tokenizer.sha256,
            "parameters": sum(weight.numel() for weight in tokenizer.parameters()),
            "sample_rate_hz": tokenizer.sample_rate_hz,
            "codebooks": list(tokenizer.codebook_sizes),
            "judges_that_are_its_own_parts": [],
            "rates": [
                {
                    "codes": round(float(measured["codes"].mean()), 2),
                    "groups": groups,
                    **self._summarise(choose_rate(measured, groups)),
                }
                for groups in list_group_counts(tokenizer)
            ],
            "usage": {name: round(value, 5) for name, value in usage.report().items()},
            "speed": {
                **{
                    f"{side}_times_real_time": round(seconds / max(float(measured[f"{side}_s"].sum()), 1e-9), 2)
                    for side in ("encode", "decode")
                },
                **self._find_speed(entry),
            },
        }

    def _find_speed(self, entry: Entry) -> dict[str, float]:
        """The speed of the longest sound of the first part that can be read, or its first seconds."""
        tokenizer = entry.tokenizer
        assert tokenizer.sample_rate_hz is not None
        rate = tokenizer.sample_rate_hz

        def measure() -> dict[str, np.ndarray]:
            read = next(found for chunk in self.chunks if (found := self._read(chunk, rate)))
            item, _, sound = max(read, key=lambda part: len(part[2]))
            x, told = sound[None, None, : int(TIMED_SECONDS * rate)], read_transcript(item)

            def prepare(batch: int) -> tuple[Work, Work]:
                many = x.repeat(batch, 1, 1)
                condition = make_condition(tokenizer, "encode", told, batch)
                codes = tokenizer.encode(many, condition=condition)
                seeds = [self.settings.seed] * batch
                noise = tokenizer.draw_noise(codes, seeds) if "noise" in tokenizer.decode_settings else None
                return (
                    partial(tokenizer.encode, many, condition=condition),
                    partial(tokenizer.decode, codes, make_condition(tokenizer, "decode", told, batch), noise),
                )

            figures = measure_speed(prepare, x.shape[-1] / rate)
            return {name: np.array(value) for name, value in figures.items()}

        self.report(f"{entry.label}: timing", 0, None)
        subject = json.dumps([VERSION, "speed", self.items.sha256, tokenizer.sha256, self.settings.seed])
        return {name: float(value) for name, value in self.store.find_or_measure(subject, "speed", measure).items()}

    def _summarise(self, measured: Arrays) -> dict[str, object]:
        """Means of every measure, with how many items it could be taken of where these are not all."""
        seconds = float(measured["seconds"].sum())
        found: dict[str, object] = {
            "bytes": round(float(measured["bytes"].mean()), 3),
            "bits_per_second": round(8 * float(measured["bytes"].sum()) / max(seconds, 1e-9), 2),
        }
        for name in MEASURES:
            values = measured[name][~np.isnan(measured[name])]
            if len(values):
                figure = Figure.of(values)
                found[name] = {"mean": figure.mean, "ci95": figure.ci95}
            if len(values) < len(measured[name]) and (name != SPEAKER or self.judge.speaker is not None):
                found[f"{name}_items"] = len(values)
        for name in self.recognisers:
            said, heard = ([str(text) for text in measured[f"{side}:{name}"]] for side in ("said", "heard"))
            if any(said):
                found[f"wer_{name}"] = compute_word_error_rate(said, heard)
        return found


def run_side_by_side(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """What tasks give, in their order, as many at once as torch has threads."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(lambda task: task(), tasks))


def list_group_counts(tokenizer: MediaTokenizer) -> list[int]:
    """The numbers of groups that are decoded: all; of residual codes also 1, 2, 4, …."""
    every = len(tokenizer.codebook_sizes)
    powers = [2**power for power in range(every.bit_length()) if 2**power < every]
    return [*(powers if tokenizer.residual else []), every]


def keep_groups(codes: Codes, groups: int) -> Codes:
    """The first so many groups of every position."""
    return codes if groups >= codes.ids.shape[2] else replace(codes, ids=codes.ids[..., :groups])


def choose_rate(measured: Arrays, groups: int) -> Arrays:
    """What was measured at so many groups, without that number before the names."""
    mark = f"{groups}:"
    return {name.removeprefix(mark): value for name, value in measured.items() if name.startswith(mark)}


def read_transcript(item: MediaItem) -> str:
    """What is said in a sound: of a dataset's row, or the .txt beside its file; "" where neither says."""
    if item.text or not isinstance(item.source, str):
        return item.text
    beside = Path(item.source).with_suffix(".txt")
    return beside.read_text("utf-8-sig", errors="replace").strip() if beside.is_file() else ""


def make_condition(tokenizer: MediaTokenizer, side: str, told: str, batch: int = 1) -> Condition | None:
    """The transcript, so many times, for a tokenizer that reads one on that side; None where there is none."""
    kinds = tokenizer.encode_conditions if side == "encode" else tokenizer.decode_conditions
    return Condition(text=(told,) * batch) if "text" in kinds and told else None
