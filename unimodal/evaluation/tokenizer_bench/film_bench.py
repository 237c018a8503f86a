"""The reconstruction part of a bench of films: each tokenizer takes the frames that it was made for, and every frame
that it decodes is judged as a picture.

Tokenizers of other frame rates see other frames of the same film, so that their rates are compared by the second:
`bits_per_second`. Beside them stand H.264 and VP9 at the bytes of each, and the first frame, repeated (`still`): what
is kept without any code of motion.

Shapes: T frames, S side of a frame, N positions, G groups.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from unimodal.data.media_items import MediaItem
from unimodal.evaluation.suite import ReportProgress
from unimodal.evaluation.tokenizer_bench.entries import Entry
from unimodal.evaluation.tokenizer_bench.film_codecs import CODECS, FilmCoder
from unimodal.evaluation.tokenizer_bench.items import BenchItems
from unimodal.evaluation.tokenizer_bench.picture_judges import (
    identify_judges,
    measure_frechet_distance,
    measure_kernel_distance,
    open_judges,
)
from unimodal.evaluation.tokenizer_bench.pictures import Figure, PictureMeasures, keep_first, list_rates
from unimodal.evaluation.tokenizer_bench.settings import (
    DEFAULT_SIDE,
    FILM_VERSION,
    PART,
    BenchReport,
    BenchSettings,
    hash_weights,
)
from unimodal.evaluation.tokenizer_bench.store import Arrays, PartStore
from unimodal.evaluation.tokenizer_bench.timing import Work, measure_speed
from unimodal.media.access import load_medium
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import Condition, MediaTokenizer
from unimodal.tokenizers.losses.perceptual import Lpips
from unimodal.tokenizers.usage import CodebookUsage

STILL, REAL = "still", "real"


class FilmBench:
    """Measures tokenizers of films on the same items."""

    def __init__(
        self, entries: Sequence[Entry], items: BenchItems, settings: BenchSettings, report: ReportProgress
    ) -> None:
        """ValueError for a tokenizer that does not decode, or reads features of a text."""
        for entry in entries:
            tokenizer = entry.tokenizer
            needed = (tokenizer.encode_conditions | tokenizer.decode_conditions) - tokenizer.optional_conditions
            if not tokenizer.can_decode:
                raise ValueError(f"{entry.label}: {tokenizer.no_decoder}; leave it out")
            if "features" in needed:
                raise ValueError(f"{entry.label} reads features, which films do not give; leave it out")
        self.entries, self.items, self.settings, self.report = entries, items, settings, report
        sizes = [max(entry.tokenizer.picture_size) for entry in entries if entry.tokenizer.picture_size is not None]
        self.side = settings.side or max(sizes, default=DEFAULT_SIDE)
        self.judges = open_judges(settings.judges)
        self.measures = PictureMeasures(self.judges, None if settings.lpips is None else Lpips.load(settings.lpips))
        self.weights = hash_weights(settings)
        self.store = PartStore(settings.parts)
        self.chunks = [range(start, min(start + PART, len(items))) for start in range(0, len(items), PART)]

    def run(self) -> BenchReport:
        tokenizers: dict[str, dict[str, object]] = {}
        beside: dict[str, list[dict[str, object]]] = {name: [] for name in (*CODECS, STILL)}
        count = 0
        for entry in self.entries:
            measured = self._collect(entry)
            count = len(measured["seconds"])
            if not count:
                first = next(iter(self.items.left_out.items()), ("", "there are no files"))
                raise ValueError(f"none of {len(self.items)} films can be read: {first[0]}: {first[1]}")
            tokenizers[entry.label] = self._describe(entry, measured)
            figures = _summarise(measured, STILL)
            named: dict[str, object] = {"frames_of": entry.label}
            beside[STILL].append({"budget_bytes": 0.0, "bytes": 0.0, "within_budget": 1.0, **named, **figures})
            for codec in CODECS:
                beside[codec] += [{**figures, **named} for figures in _describe_codec(codec, entry, measured)]
        data: dict[str, object] = {
            "path": str(self.settings.data),
            "sha256": self.items.sha256,
            "items": count,
            "left_out": dict(self.items.left_out),
        }
        judges: dict[str, object] = {**{judge.name: type(judge).__name__ for judge in self.judges}, **self.weights}
        made = BenchReport("video", data, self.settings.seed, self.side, judges, tokenizers)
        for name, found in beside.items():
            made.codecs[name] = {"rates": sorted(found, key=lambda rate: float(str(rate["budget_bytes"])))}
        return made

    def _collect(self, entry: Entry) -> Arrays:
        """The measures of all items, part by part."""
        weights = [*self.weights.values()] or ["None"]
        subject = json.dumps(
            [FILM_VERSION, "video", self.items.sha256, self.side, identify_judges(self.judges), *weights]
            + [entry.tokenizer.sha256, self.settings.seed]
        )
        parts: list[Arrays] = []
        for chunk in self.chunks:
            self.report(f"{entry.label}: coding films", chunk.start, len(self.items))
            part = self.store.find_or_measure(subject, str(chunk.start), partial(self._code, entry, chunk))
            self.items.left_out |= dict(json.loads(str(part.pop("left_out"))))
            parts.append(part)
        filled = [part for part in parts if len(part["seconds"])] or parts[:1]
        names = dict.fromkeys(name for part in filled for name in part)
        return {name: _join(filled, name) for name in names}

    def _code(self, entry: Entry, chunk: range) -> Arrays:
        """The measures of a part, under "CODES:measure" and "CODEC@CODES:measure"; nan where a film has fewer codes."""
        tokenizer = entry.tokenizer
        rows: list[dict[str, float | str | np.ndarray]] = []
        for item in self.items.items[chunk.start : chunk.stop]:
            try:
                x, real = self._read(tokenizer, item)
            except (ValueError, OSError) as error:
                self.items.left_out[item.name] = " ".join(str(error).split())
                continue
            if chunk.start == 0 and not rows:  # what is slow the first time alone
                first = tokenizer.encode(x, condition=make_condition(tokenizer, "encode", x, item))
                self._rebuild(tokenizer, first, x, item)
            begun = time.perf_counter()
            codes = tokenizer.encode(x, condition=make_condition(tokenizer, "encode", x, item))
            encoded = time.perf_counter()
            self._rebuild(tokenizer, codes, x, item)
            row: dict[str, float | str | np.ndarray] = {
                "encode_s": encoded - begun,
                "decode_s": time.perf_counter() - encoded,
                "seconds": x.shape[2] / (tokenizer.frames_per_second or 1.0),
                "count": codes.ids.shape[1],
                "ids": json.dumps(codes.row(0).cpu().flatten().tolist()),
            }
            coders = {codec: FilmCoder(codec, real, tokenizer.frames_per_second or 1.0) for codec in CODECS}
            film = _Film(self.measures, real)
            for rate in list_rates(tokenizer, codes.ids.shape[1]):
                made = self._rebuild(tokenizer, keep_first(codes, rate), x, item)
                name = "all" if rate == codes.ids.shape[1] else str(rate)
                row |= {f"{name}:{key}": value for key, value in film.compare(made).items()}
                for codec, coder in coders.items():
                    coded = coder.choose_within(entry.count_bits(rate) / 8)
                    figures = {"bytes": float(coded.num_bytes), **film.compare(coded.frames)}
                    row |= {f"{codec}@{name}:{key}": value for key, value in figures.items()}
            row |= {f"{REAL}:{name}": value.mean(0) for name, value in film.originals.items()}
            row |= {f"{STILL}:{key}": value for key, value in film.compare(real[:1].expand_as(real)).items()}
            rows.append(row)
        names = [item.name for item in self.items.items[chunk.start : chunk.stop]]
        why = [[name, self.items.left_out[name]] for name in names if name in self.items.left_out]
        packed: Arrays = {"seconds": np.zeros(0), "left_out": np.array(json.dumps(why))}
        for key in dict.fromkeys(name for row in rows for name in row):
            shape = np.shape(next(row[key] for row in rows if key in row))
            packed[key] = np.array([row.get(key, np.full(shape, np.nan)) for row in rows])
        return packed

    def _read(self, tokenizer: MediaTokenizer, item: MediaItem) -> tuple[Tensor, Tensor]:
        """A film as the tokenizer takes it, [1, 3, T, h, w], and its frames at the bench's size, [T, 3, S, S]."""
        target, square = tokenizer.file_target, (self.side, self.side)
        own = load_medium("video", item.source, replace(target, picture_size=target.picture_size or square))
        real = load_medium("video", item.source, replace(target, picture_size=square))
        return own.float().transpose(0, 1)[None].contiguous(), real.float()

    def _rebuild(self, tokenizer: MediaTokenizer, codes: Codes, x: Tensor, item: MediaItem) -> Tensor:
        """Codes of one film → frames [T, 3, S, S]."""
        noise = tokenizer.draw_noise(codes, [self.settings.seed]) if "noise" in tokenizer.decode_settings else None
        made = tokenizer.decode(codes, make_condition(tokenizer, "decode", x, item), noise)[0].float().transpose(0, 1)
        if made.shape[-2:] != (self.side, self.side):
            made = interpolate(made, (self.side, self.side), mode="bicubic", antialias=True)
        return made.clamp(0, 1)

    def _describe(self, entry: Entry, measured: Arrays) -> dict[str, object]:
        tokenizer, usage = entry.tokenizer, CodebookUsage(entry.tokenizer)
        for ids in measured["ids"]:
            row = torch.tensor(json.loads(str(ids)), dtype=torch.int64).view(1, -1, len(tokenizer.codebook_sizes))
            usage.add(Codes.whole(row))
        rates = []
        for name in _list_names(measured):
            counts, bits = _count_codes(entry, measured, name)
            rates.append(
                {
                    "codes": round(float(counts.mean()), 2),
                    "bytes": round(float(bits.mean()) / 8, 3),
                    "bits_per_second": round(float(bits.sum() / measured["seconds"].sum()), 2),
                    **_summarise(measured, name),
                }
            )
        seconds = float(measured["seconds"].sum())
        return {
            "family": tokenizer.config.family,
            "sha256": tokenizer.sha256,
            "parameters": sum(weight.numel() for weight in tokenizer.parameters()),
            "picture_size": tokenizer.picture_size,
            "frames_per_second": tokenizer.frames_per_second,
            "codebooks": list(tokenizer.codebook_sizes),
            "judges_that_are_its_own_parts": sorted(
                judge.name for judge in self.judges if judge.parts & entry.list_parts()
            ),
            "rates": rates,
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
        """The speed of the first film that can be read."""
        tokenizer = entry.tokenizer

        def measure() -> dict[str, np.ndarray]:
            item = next(item for item in self.items.items if item.name not in self.items.left_out)
            x, _ = self._read(tokenizer, item)

            def prepare(batch: int) -> tuple[Work, Work]:
                many = x.repeat(batch, 1, 1, 1, 1)
                conditions = [make_condition(tokenizer, side, many, item) for side in ("encode", "decode")]
                codes = tokenizer.encode(many, condition=conditions[0])
                seeds = [self.settings.seed] * batch
                noise = tokenizer.draw_noise(codes, seeds) if "noise" in tokenizer.decode_settings else None
                return (
                    partial(tokenizer.encode, many, condition=conditions[0]),
                    partial(tokenizer.decode, codes, conditions[1], noise),
                )

            figures = measure_speed(prepare, x.shape[2] / (tokenizer.frames_per_second or 1.0))
            return {name: np.array(value) for name, value in figures.items()}

        self.report(f"{entry.label}: timing", 0, None)
        subject = json.dumps(
            [FILM_VERSION, "video speed", self.items.sha256, self.side, tokenizer.sha256, self.settings.seed]
        )
        return {name: float(value) for name, value in self.store.find_or_measure(subject, "speed", measure).items()}


class _Film:
    """The frames [T, 3, S, S] of a film, with what networks see in them, once for all that is compared with them."""

    def __init__(self, measures: PictureMeasures, real: Tensor) -> None:
        self.measures, self.real = measures, real
        self.originals, self.maps = measures.describe_originals(real), measures.read_maps(real)

    def compare(self, made: Tensor) -> dict[str, float | np.ndarray]:
        """The means over the frames, as far as the decoded film goes; of features [D] too."""
        count = min(len(self.real), len(made))
        originals = {name: value[:count] for name, value in self.originals.items()}
        compared = self.measures.compare(
            self.real[:count], made[:count], originals, [part[:count] for part in self.maps]
        )
        return {
            **{name: float(value.mean()) for name, value in compared.items() if not name.startswith("features_")},
            **{name: value.mean(0) for name, value in compared.items() if name.startswith("features_")},
        }


def _list_names(measured: Arrays) -> list[str]:
    """The numbers of codes that films were decoded at, the fewest first, as they stand before the measures."""
    prefixes = {name.split(":")[0] for name in measured if ":" in name and "@" not in name} - {STILL, REAL, "all"}
    return [*sorted(prefixes, key=int), "all"]


def _count_codes(entry: Entry, measured: Arrays, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The codes of each film at such a number, and their bits."""
    counts = measured["count"] if name == "all" else np.minimum(measured["count"], int(name))
    return counts, np.array([entry.count_bits(int(one)) for one in counts])


def _describe_codec(codec: str, entry: Entry, measured: Arrays) -> Iterator[dict[str, object]]:
    """The rates of a codec at the bytes of a tokenizer's codes; films with fewer codes than a rate count at all."""
    for name in _list_names(measured):
        used, budgets = measured[f"{codec}@{name}:bytes"], _count_codes(entry, measured, name)[1] / 8
        there = ~np.isnan(used)
        used, budgets, seconds = used[there], budgets[there], measured["seconds"][there]
        figures = _summarise(measured, f"{codec}@{name}")
        del figures["bytes"]
        yield {
            "budget_bytes": round(float(budgets.mean()), 3),
            "bytes": round(float(used.mean()), 3),
            "bits_per_second": round(8 * float(used.sum() / seconds.sum()), 2),
            "within_budget": round(float((used <= budgets).mean()), 4),
            **figures,
        }


def _join(parts: Sequence[Arrays], name: str) -> np.ndarray:
    """A measure of all parts; nan where none of a part's films has it."""
    shape = next(part[name].shape[1:] for part in parts if name in part)
    return np.concatenate(
        [part[name] if name in part else np.full((len(part["seconds"]), *shape), np.nan) for part in parts]
    )


def _summarise(measured: Arrays, rate: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, values in measured.items():
        own, _, measure = name.partition(":")
        if own == rate and measure.startswith("features_"):
            there = ~np.isnan(values).any(1)
            real, made = (torch.from_numpy(each[there]) for each in (measured[f"{REAL}:{measure}"], values))
            judge = measure.removeprefix("features_")
            if len(real) > 1:
                found[f"kid_like_{judge}"] = round(measure_kernel_distance(real, made), 5)
                found[f"rfid_like_{judge}"] = round(measure_frechet_distance(real, made), 4)
        elif own == rate and measure:
            figure = Figure.of(values[~np.isnan(values)])
            found[measure] = {"mean": figure.mean, "ci95": figure.ci95}
    return found


def make_condition(tokenizer: MediaTokenizer, side: str, x: Tensor, item: MediaItem) -> Condition | None:
    """What the tokenizer reads on that side beside films [B, 3, T, h, w] of one item: their first frame, its text."""
    kinds = tokenizer.encode_conditions if side == "encode" else tokenizer.decode_conditions
    told = "text" in kinds and (item.text or "text" not in tokenizer.optional_conditions)
    text = (item.text,) * len(x) if told else None
    medium = x[:, :, 0] if "medium" in kinds else None
    return None if text is None and medium is None else Condition(text=text, medium=medium)
