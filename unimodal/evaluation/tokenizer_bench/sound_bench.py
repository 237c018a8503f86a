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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from unimodal.data.media_items import MediaItem
from unimodal.evaluation.judges import compute_word_error_rate, has_words
from unimodal.evaluation.suite import ReportProgress
from unimodal.evaluation.tokenizer_bench.entries import Entry
from unimodal.evaluation.tokenizer_bench.items import BenchItems
from unimodal.evaluation.tokenizer_bench.pictures import Figure
from unimodal.evaluation.tokenizer_bench.settings import PART, SOUND_VERSION, BenchReport, BenchSettings, hash_weights
from unimodal.evaluation.tokenizer_bench.sound_codecs import LOWEST_RATE, choose_bit_rate, is_within
from unimodal.evaluation.tokenizer_bench.sound_judges import (
    MEASURES,
    Asked,
    SoundJudge,
    describe_originals,
    judge_opus,
    judge_sounds,
)
from unimodal.evaluation.tokenizer_bench.sound_measures import RATE
from unimodal.evaluation.tokenizer_bench.sound_rates import (
    choose_rate,
    explain_one_rate,
    keep_groups,
    list_group_counts,
)
from unimodal.evaluation.tokenizer_bench.speaker_judge import INSTALL
from unimodal.evaluation.tokenizer_bench.store import Arrays, PartStore
from unimodal.evaluation.tokenizer_bench.timing import Work, measure_speed
from unimodal.evaluation.tokenizer_bench.workers import Workers
from unimodal.media.access import load_medium
from unimodal.media.audio import resample
from unimodal.media.registry import FileTarget
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import Condition, MediaTokenizer
from unimodal.tokenizers.usage import CodebookUsage

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
        make = partial(SoundJudge, settings.recognisers, settings.utmos)
        self.has_speaker = make().speaker is not None  # and what is missing is said before processes begin
        self.workers = Workers(make, max(1, min(settings.workers, len(items))))
        self.weights = hash_weights(settings)
        self.store = PartStore(settings.parts)
        self.chunks = [range(start, min(start + PART, len(items))) for start in range(0, len(items), PART)]

    def run(self) -> BenchReport:
        with self.workers:
            return self._run()

    def _run(self) -> BenchReport:
        tokenizers: dict[str, dict[str, object]] = {}
        opus: list[dict[str, object]] = []
        originals = self._join([self._find_originals(chunk) for chunk in self.chunks])
        count = len(originals["seconds"])
        if not count:
            first = next(iter(self.items.left_out.items()), ("", "there are no files"))
            raise ValueError(f"none of {len(self.items)} sounds can be read: {first[0]}: {first[1]}")
        for entry in self.entries:
            measured = self._join([self._find_coded(entry, chunk) for chunk in self.chunks])
            tokenizers[entry.label] = self._describe(entry, measured, originals)
            for groups in list_group_counts(entry.tokenizer):
                said = f"coding with Opus at the bits of {entry.label} ({groups} of each position)"
                full = groups == len(entry.tokenizer.codebook_sizes)
                opus.append(self._measure_opus(said, measured[f"{groups}:bytes"], originals, full))
        data: dict[str, object] = {
            "path": str(self.settings.data),
            "sha256": self.items.sha256,
            "items": count,
            "left_out": dict(self.items.left_out),
        }
        judges: dict[str, object] = {name: "recogniser" for name in self.settings.recognisers}
        judges[SPEAKER] = "SpeakerJudge" if self.has_speaker else f"not measured: {INSTALL}"
        judges |= self.weights
        made = BenchReport(medium="audio", data=data, seed=self.settings.seed, side=None, judges=judges)
        made.tokenizers = tokenizers
        made.codecs = {"opus": {"rates": sorted(opus, key=lambda rate: float(str(rate["budget_bytes"])))}}
        made.originals = self._summarise_originals(originals)
        return made

    # ---- items

    def _subject(self, *what: object) -> str:
        """What decides whether a part is the same: the code's version, the data, the judges and what is measured."""
        judges = [self.settings.recognisers, self.has_speaker, *(self.weights.values() or ["None"])]
        return json.dumps([SOUND_VERSION, "audio", self.items.sha256, *judges, *what])

    @staticmethod
    def _join(parts: Sequence[Arrays]) -> Arrays:
        """Arrays of all parts, of those names that all have."""
        filled = [part for part in parts if len(part["seconds"])] or list(parts[:1])
        names = [name for name in filled[0] if all(name in part for part in filled)]
        return {name: np.concatenate([part[name] for part in filled]) for name in names}

    def _find_originals(self, chunk: range) -> Arrays:
        """Of the sounds of a part that can be read: "name", "seconds", "told" (what is said in them, "" where nothing
        tells it), "heard:RECOGNISER", "dnsmos" and the voices of the speakers, [M, D]."""

        def measure() -> Arrays:
            read = self._read(chunk, RATE)
            found = self.workers.run_shared([sound.numpy() for _, sound in read], describe_originals)
            rows: list[dict[str, object]] = [
                {"name": item.name, "seconds": len(sound) / RATE, "dnsmos": one.dnsmos}
                | ({} if one.utmos is None else {"utmos": one.utmos})
                | {f"heard:{name}": text for name, text in one.heard.items()}
                for (item, sound), one in zip(read, found, strict=True)
            ]
            names = [item.name for item in self.items.items[chunk.start : chunk.stop]]
            why = [[name, self.items.left_out[name]] for name in names if name in self.items.left_out]
            known = [one.voice for one in found if one.voice is not None]
            voices = {"voice": np.stack(known)} if known else {}
            return {**_pack(rows), **voices, "left_out": np.array(json.dumps(why))}

        self.report("hearing the originals", chunk.start, len(self.items))
        part = self.store.find_or_measure(self._subject("originals"), str(chunk.start), measure)
        self.items.left_out |= dict(json.loads(str(part.pop("left_out"))))
        texts = {item.name: item.text for item in self.items.items}  # as they are now
        return part | {"told": np.array([texts[name] for name in part["name"].tolist()])} if "name" in part else part

    def _read(self, chunk: range, rate_hz: int) -> list[tuple[MediaItem, Tensor]]:
        """The items of a part that can be read, with their sounds [T] at rate_hz. Those that cannot are named in
        `left_out`."""
        found = []
        for item in self.items.items[chunk.start : chunk.stop]:
            if item.name in self.items.left_out:
                continue
            try:
                found.append((item, load_medium("audio", item.source, FileTarget(sample_rate_hz=rate_hz))))
            except (ValueError, OSError) as error:
                self.items.left_out[item.name] = " ".join(str(error).split())
        return found

    def _find_coded(self, entry: Entry, chunk: range) -> Arrays:
        self.report(f"{entry.label}: coding sounds", chunk.start, len(self.items))
        tokenizer, items = entry.tokenizer, self.items.items[chunk.start : chunk.stop]
        reads_text = "text" in tokenizer.encode_conditions | tokenizer.decode_conditions
        texts = [item.text for item in items] if reads_text else []
        subject = self._subject(tokenizer.sha256, self.settings.seed, self.settings.every_rate, *texts)
        return self.store.find_or_measure(subject, str(chunk.start), partial(self._code, entry, chunk))

    def _code(self, entry: Entry, chunk: range) -> Arrays:
        """The measures of a part, under "GROUPS:measure"."""
        tokenizer = entry.tokenizer
        rows: list[dict[str, object]] = []
        asked: list[Asked] = []
        assert tokenizer.sample_rate_hz is not None
        pairs = zip(self._ask(chunk), self._read(chunk, tokenizer.sample_rate_hz), strict=True)
        for original, (item, sound) in pairs:
            told, x = item.text, sound[None, None]
            if chunk.start == 0 and not rows:  # what is slow the first time alone
                self._rebuild(tokenizer, tokenizer.encode(x, condition=make_condition(tokenizer, "encode", told)), told)
            begun = time.perf_counter()
            codes = tokenizer.encode(x, condition=make_condition(tokenizer, "encode", told))
            encoded = time.perf_counter()
            made = self._rebuild(tokenizer, codes, told)
            spent = {"encode_s": encoded - begun, "decode_s": time.perf_counter() - encoded}
            positions = codes.ids.shape[1]
            ids = codes.row(0).cpu().flatten().tolist()
            length = len(original.original)
            rows.append({"codes": positions, "ids": json.dumps(ids), "seconds": length / RATE, **spent})
            waves: dict[str, np.ndarray] = {}
            for groups in list_group_counts(tokenizer):
                fewer = keep_groups(tokenizer, codes, groups)
                wave = made if fewer is codes else self._rebuild(tokenizer, fewer, told)
                waves[str(groups)] = resample(wave, tokenizer.sample_rate_hz, RATE)[:length].numpy()
                rows[-1][f"{groups}:bytes"] = entry.count_bits(positions, groups) / 8
            full = str(len(tokenizer.codebook_sizes))
            asked.append(replace(original, made=waves, heard=frozenset(waves if self.settings.every_rate else [full])))
        for row, figures in zip(rows, self.workers.run_shared(asked, judge_sounds), strict=True):
            row |= figures
        return _pack(rows)

    def _ask(self, chunk: range) -> list[Asked]:
        """The originals of a part that can be read, with the voices of their speakers, and nothing beside them yet."""
        voices = self._find_originals(chunk).get("voice")
        return [
            Asked(sound.numpy(), None if voices is None else voices[row], {}, frozenset())
            for row, (_, sound) in enumerate(self._read(chunk, RATE))
        ]

    def _rebuild(self, tokenizer: MediaTokenizer, codes: Codes, told: str) -> Tensor:
        """codes of one sound → float32 [T] at the tokenizer's rate."""
        noise = tokenizer.draw_noise(codes, [self.settings.seed]) if "noise" in tokenizer.decode_settings else None
        return tokenizer.decode(codes, make_condition(tokenizer, "decode", told), noise)[0, 0].float()

    # ---- Opus

    def _measure_opus(self, said: str, spent: np.ndarray, originals: Arrays, full: bool) -> dict[str, object]:
        """Opus at the bytes [M] of the codes of each sound. full: whether these are all codes, at which networks judge
        too."""
        seconds = originals["seconds"]
        budgets = 8 * spent / np.maximum(seconds, 1 / RATE)
        rates = [choose_bit_rate(float(budget)) for budget in budgets]
        at = dict(zip(originals["name"].tolist(), rates, strict=True))
        parts = []
        for chunk in self.chunks:
            self.report(said, chunk.start, len(self.items))
            asked = [at[item.name] for item in self.items.items[chunk.start : chunk.stop] if item.name in at]
            # at the lowest rate all budgets below give one sound, so it is judged whole at once
            heard = full or self.settings.every_rate or set(asked) == {LOWEST_RATE}
            code = partial(self._code_with_opus, asked, heard, chunk)
            parts.append(self.store.find_or_measure(self._subject("opus", asked, heard), str(chunk.start), code))
        coded = self._join(parts)
        reached = [is_within(8 * b, s, budget) for b, s, budget in zip(coded["bytes"], seconds, budgets, strict=True)]
        within = {"budget_bytes": round(float(spent.mean()), 3), "within_budget": round(float(np.mean(reached)), 4)}
        return {**within, **self._summarise(coded, originals)}

    def _code_with_opus(self, bit_rates: Sequence[int], heard: bool, chunk: range) -> Arrays:
        asked = list(zip(self._ask(chunk), bit_rates, strict=True))
        found = self.workers.run_shared(asked, partial(judge_opus, heard=heard))
        return _pack(
            [{"seconds": len(each.original) / RATE, **figures} for (each, _), figures in zip(asked, found, strict=True)]
        )

    # ---- figures

    def _describe(self, entry: Entry, measured: Arrays, originals: Arrays) -> dict[str, object]:
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
                    **explain_one_rate(entry.tokenizer),
                    **self._summarise(choose_rate(measured, groups), originals),
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
            item, sound = max(read, key=lambda part: len(part[1]))
            x, told = sound[None, None, : int(TIMED_SECONDS * rate)], item.text

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
        subject = json.dumps([SOUND_VERSION, "speed", self.items.sha256, tokenizer.sha256, self.settings.seed])
        return {name: float(value) for name, value in self.store.find_or_measure(subject, "speed", measure).items()}

    def _summarise(self, measured: Arrays, originals: Arrays) -> dict[str, object]:
        """Means of every measure, with how many items it could be taken of where these are not all. What networks do
        not judge at a rate is not there."""
        seconds = float(originals["seconds"].sum())
        found: dict[str, object] = {
            "bytes": round(float(measured["bytes"].mean()), 3),
            "bits_per_second": round(8 * float(measured["bytes"].sum()) / max(seconds, 1e-9), 2),
        }
        for name in MEASURES:
            if name in measured and (name != SPEAKER or self.has_speaker):
                found |= _describe_values(name, measured[name])
        for name in self.settings.recognisers:
            if f"heard:{name}" in measured:
                found |= self._count_word_errors(name, measured[f"heard:{name}"], originals)
        return found

    def _count_word_errors(self, name: str, heard: np.ndarray, originals: Arrays) -> dict[str, object]:
        """Against what is said, or else what the same recogniser hears in the original."""
        pairs = zip(originals["told"].tolist(), originals[f"heard:{name}"].tolist(), strict=True)
        said = [str(told or first) for told, first in pairs]
        return {f"wer_{name}": compute_word_error_rate(said, heard.tolist())} if any(map(has_words, said)) else {}

    def _summarise_originals(self, originals: Arrays) -> dict[str, object]:
        """What judges say of the originals; word errors of those alone of which it is known what is said."""
        found: dict[str, object] = {}
        for name in ("dnsmos", "utmos"):
            found |= _describe_values(name, originals[name]) if name in originals else {}
        known = [number for number, told in enumerate(originals["told"].tolist()) if told]
        for name in self.settings.recognisers:
            part = {key: originals[key][known] for key in ("told", f"heard:{name}")}
            found |= self._count_word_errors(name, part[f"heard:{name}"], part)
        return found


def _describe_values(name: str, values: np.ndarray) -> dict[str, object]:
    """The mean of values [M], nan where a measure could not be taken, and of how many it could where not of all."""
    known = values[~np.isnan(values)]
    found: dict[str, object] = {}
    if len(known):
        figure = Figure.of(known)
        found[name] = {"mean": figure.mean, "ci95": figure.ci95}
    return found | ({f"{name}_items": len(known)} if len(known) < len(values) else {})


def _pack(rows: Sequence[Mapping[str, object]]) -> Arrays:
    """Rows of figures as arrays [M]; None is nan."""
    packed: Arrays = {"seconds": np.zeros(0)}
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        texts = any(isinstance(value, str) for value in values)
        packed[name] = np.array(values) if texts else np.array(values, dtype=np.float64)
    return packed


def make_condition(tokenizer: MediaTokenizer, side: str, told: str, batch: int = 1) -> Condition | None:
    """The transcript, so many times, for a tokenizer that reads one on that side; None where there is none."""
    kinds = tokenizer.encode_conditions if side == "encode" else tokenizer.decode_conditions
    return Condition(text=(told,) * batch) if "text" in kinds and told else None
