"""The reconstruction part of a bench of pictures: tokenizers at each rate, codecs at the bytes that these take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from unimodal.evaluation.suite import ReportProgress
from unimodal.evaluation.tokenizer_bench.entries import Entry
from unimodal.evaluation.tokenizer_bench.items import BenchItems, read_pictures
from unimodal.evaluation.tokenizer_bench.legibility import HEIGHTS, LineReader, draw_words, measure_reading
from unimodal.evaluation.tokenizer_bench.picture_codecs import (
    CODED,
    CodedPicture,
    choose_within,
    list_codecs,
    try_sizes,
)
from unimodal.evaluation.tokenizer_bench.picture_judges import identify_judges, open_judges
from unimodal.evaluation.tokenizer_bench.pictures import (
    PERTURBED_AMONG,
    PERTURBED_SHARE,
    PictureMeasures,
    decode_pictures,
    encode_pictures,
    keep_first,
    list_rates,
    perturb_codes,
    summarise,
)
from unimodal.evaluation.tokenizer_bench.settings import (
    DEFAULT_SIDE,
    PART,
    VERSION,
    BenchReport,
    BenchSettings,
    hash_weights,
)
from unimodal.evaluation.tokenizer_bench.store import Arrays, PartStore
from unimodal.evaluation.tokenizer_bench.timing import Work, measure_speed
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.losses.perceptual import Lpips
from unimodal.tokenizers.usage import CodebookUsage

PERTURBED = "perturbed"
FID_SIDE = 256  # of pictures in the tables of papers: the middle square, resized


class PictureBench:
    """Measures tokenizers of pictures and everyday codecs on the same items."""

    def __init__(
        self, entries: Sequence[Entry], items: BenchItems, settings: BenchSettings, report: ReportProgress
    ) -> None:
        self.entries, self.items, self.settings, self.report = entries, items, settings, report
        sizes = [max(entry.tokenizer.picture_size) for entry in entries if entry.tokenizer.picture_size is not None]
        self.side = settings.side or max(sizes, default=DEFAULT_SIDE)
        if settings.inception is not None and self.side != FID_SIDE:
            raise ValueError(f"rFID is that of pictures of {FID_SIDE} pixels, and these are judged at {self.side}: "
                             f"give --size {FID_SIDE}, or leave --weights inception out")  # fmt: skip
        self.judges = open_judges(settings.judges, settings.inception)
        lpips = None if settings.lpips is None else Lpips.load(settings.lpips)
        self.weights = hash_weights(settings)
        self.measures = PictureMeasures(self.judges, lpips)
        self.store = PartStore(settings.parts)
        self.chunks = [range(start, min(start + PART, len(items))) for start in range(0, len(items), PART)]

    def run(self) -> BenchReport:
        originals = self._join([self._find_originals(chunk) for chunk in self.chunks])
        count = len(originals["names"]) if originals else 0
        if not count:
            first = next(iter(self.items.left_out.items()), ("", "there are no files"))
            raise ValueError(f"none of {len(self.items)} pictures can be read: {first[0]}: {first[1]}")
        made = BenchReport(
            medium="image",
            data={
                "path": str(self.settings.data),
                "sha256": self.items.sha256,
                "items": count,
                "left_out": dict(self.items.left_out),
            },
            seed=self.settings.seed,
            side=self.side,
            judges={**{judge.name: type(judge).__name__ for judge in self.judges}, **self.weights},
        )
        budgets: set[float] = set()
        for entry in self.entries:
            made.tokenizers[entry.label], bytes_used = self._measure_entry(entry, originals)
            budgets |= bytes_used
        for codec in list_codecs():
            made.codecs[codec] = self._measure_codec(codec, sorted(budgets), originals)
        return made

    # ---- originals

    def _subject(self, *what: object) -> str:
        """What decides whether a part is the same: the code's version, the data, the judges and what is measured."""
        weights = [*self.weights.values()] or ["None"]
        judges = identify_judges(self.judges)
        return json.dumps([VERSION, self.items.sha256, self.side, judges, *weights, *map(str, what)])

    def _find_originals(self, chunk: range) -> Arrays:
        def measure() -> Arrays:
            real, read = read_pictures(self.items, chunk, self.side)
            found = self.measures.describe_originals(real) if len(real) else {}
            names = [item.name for item in self.items.items[chunk.start : chunk.stop]]
            why = [[name, self.items.left_out[name]] for name in names if name in self.items.left_out]
            return {**found, "names": np.array([item.name for item in read]), "left_out": np.array(json.dumps(why))}

        self.report("looking at the originals", chunk.start, len(self.items))
        part = self.store.find_or_measure(self._subject("originals"), str(chunk.start), measure)
        self.items.left_out |= dict(json.loads(str(part.pop("left_out"))))
        return part

    @staticmethod
    def _join(parts: Sequence[Arrays]) -> Arrays:
        filled = [part for part in parts if any(len(value) for value in part.values())]
        return {name: np.concatenate([part[name] for part in filled]) for name in (filled[0] if filled else {})}

    # ---- tokenizers

    def _measure_entry(self, entry: Entry, originals: Arrays) -> tuple[dict[str, object], set[float]]:
        tokenizer = entry.tokenizer
        sha256 = tokenizer.sha256
        parts: list[Arrays] = []
        for chunk in self.chunks:
            self.report(f"{entry.label}: coding pictures", chunk.start, len(self.items))
            subject = self._subject("tokenizer", sha256, self.settings.seed)
            parts.append(self.store.find_or_measure(subject, str(chunk.start), partial(self._code, entry, chunk)))
        joined = self._join(parts)
        counts = joined.pop("counts")
        ids, lengths = joined.pop("ids"), joined.pop("lengths")
        rates, bytes_used = [], set()
        names = dict.fromkeys(name.split(":")[0] for name in joined)
        perturbed = None
        for rate in names:
            measured = {name.split(":", 1)[1]: value for name, value in joined.items() if name.startswith(f"{rate}:")}
            figures = summarise(measured, originals, self.judges)
            if rate == PERTURBED:
                kept = [name for name in figures if "_like_" in name or name in ("psnr_db", "rfid")]
                perturbed = {name: figures[name] for name in kept}
                continue
            positions = np.minimum(counts, int(rate))
            bits = float(np.mean([entry.count_bits(int(one)) for one in positions]))
            bytes_used.add(bits / 8)
            rates.append({"codes": float(positions.mean()), "bytes": round(bits / 8, 3), **figures})
        usage = CodebookUsage(tokenizer)
        for row, length in zip(ids, lengths, strict=True):
            usage.add(Codes.whole(torch.from_numpy(row[: int(length)]).long()[None]))
        own = sorted(judge.name for judge in self.judges if judge.parts & entry.list_parts())
        found: dict[str, object] = {
            "family": tokenizer.config.family,
            "sha256": sha256,
            "parameters": sum(weight.numel() for weight in tokenizer.parameters()),
            "picture_size": tokenizer.picture_size,
            "codebooks": list(tokenizer.codebook_sizes),
            "judges_that_are_its_own_parts": own,
            "rates": sorted(rates, key=lambda rate: float(str(rate["codes"]))),
            "usage": {name: round(value, 5) for name, value in usage.report().items()},
            "speed": self._time(entry),
        }
        if perturbed is not None:
            renamed = {name.replace("rfid", "pfid"): value for name, value in perturbed.items()}
            found[PERTURBED] = {"share": PERTURBED_SHARE, "among_nearest": PERTURBED_AMONG, **renamed}
        if self.settings.legibility:
            found["legibility"] = self._measure_legibility(entry, sha256)
        return found, bytes_used

    def _code(self, entry: Entry, chunk: range) -> Arrays:
        """The measures of a part, under "CODES:measure", with the codes themselves."""
        tokenizer = entry.tokenizer
        real, read = read_pictures(self.items, chunk, self.side)
        if not len(real):
            return {"counts": np.zeros(0, dtype=np.int64)}
        originals = self._find_originals(chunk)
        texts = [item.text for item in read]
        codes, maps = encode_pictures(tokenizer, real, texts), self.measures.read_maps(real)
        found: Arrays = {}
        for rate in list_rates(tokenizer, codes.ids.shape[1]):
            made = decode_pictures(tokenizer, keep_first(codes, rate), self.side, texts)
            compared = self.measures.compare(real, made, originals, maps)
            found |= {f"{rate}:{name}": value for name, value in compared.items()}
        generator = torch.Generator().manual_seed(self.settings.seed + chunk.start)
        perturbed = perturb_codes(tokenizer, codes, generator)
        if perturbed is not None:
            made = decode_pictures(tokenizer, perturbed, self.side, texts)
            compared = self.measures.compare(real, made, originals, maps)
            found |= {f"{PERTURBED}:{name}": value for name, value in compared.items()}
        counts = np.array(codes.counts)
        return {**found, "counts": counts, "lengths": counts, "ids": codes.ids.numpy().astype(np.int32)}

    def _time(self, entry: Entry) -> dict[str, float]:
        """The speed of pictures of the first part that can be read."""

        def measure() -> Arrays:
            found = (read_pictures(self.items, chunk, self.side) for chunk in self.chunks)
            real, read = next(part for part in found if len(part[0]))

            def prepare(batch: int) -> tuple[Work, Work]:
                x = real.repeat(-(-batch // len(real)), 1, 1, 1)[:batch]
                texts = [read[index % len(read)].text for index in range(batch)]
                codes = encode_pictures(entry.tokenizer, x, texts)
                return (
                    partial(encode_pictures, entry.tokenizer, x, texts),
                    partial(decode_pictures, entry.tokenizer, codes, self.side, texts),
                )

            return {name: np.array(value) for name, value in measure_speed(prepare).items()}

        self.report(f"{entry.label}: timing", 0, None)
        subject = self._subject("speed", entry.tokenizer.sha256, self.settings.seed)
        return {name: float(value) for name, value in self.store.find_or_measure(subject, "speed", measure).items()}

    def _measure_legibility(self, entry: Entry, sha256: str) -> dict[str, dict[str, float]]:
        def measure(height: float) -> Arrays:
            reader = LineReader()
            pictures, words, lines = draw_words(self.side, height, self.settings.seed)
            told = ["a word"] * len(words)  # to a tokenizer that reads captions; not which
            codes = encode_pictures(entry.tokenizer, pictures, told)
            made = decode_pictures(entry.tokenizer, codes, self.side, told)
            figures: Arrays = {}
            for kind, shown in (("", made), ("original_", pictures)):
                read = measure_reading(reader, shown, words, lines)
                figures |= {f"{kind}{name}": np.array(value) for name, value in read.items()}
            return figures

        found = {}
        for number, height in enumerate(HEIGHTS):
            self.report(f"{entry.label}: reading small text", number, len(HEIGHTS))
            subject = self._subject("legibility", sha256, height, self.settings.seed)
            read = self.store.find_or_measure(subject, "words", partial(measure, height))
            found[f"height_{height:.3f}"] = {name: round(float(value), 4) for name, value in read.items()}
        return found

    # ---- codecs

    def _measure_codec(self, codec: str, budgets: Sequence[float], originals: Arrays) -> dict[str, object]:
        parts = []
        for chunk in self.chunks:
            self.report(f"coding with {codec}", chunk.start, len(self.items))
            subject = self._subject("codec", codec, CODED, *budgets)
            measure = partial(self._code_with_codec, codec, budgets, chunk)
            parts.append(self.store.find_or_measure(subject, str(chunk.start), measure))
        joined = self._join(parts)
        rates = []
        for number, budget in enumerate(budgets):
            measured = {name.split(":", 1)[1]: value for name, value in joined.items() if name.startswith(f"{number}:")}
            used = measured.pop("bytes")
            rates.append(
                {
                    "budget_bytes": round(budget, 3),
                    "bytes": round(float(used.mean()), 2),
                    "within_budget": round(float((used <= budget).mean()), 4),
                    **summarise(measured, originals, self.judges),
                }
            )
        return {"rates": rates}

    def _code_with_codec(self, codec: str, budgets: Sequence[float], chunk: range) -> Arrays:
        real, _ = read_pictures(self.items, chunk, self.side)
        originals = self._find_originals(chunk)
        found: Arrays = {}
        if not len(real):
            return found
        maps = self.measures.read_maps(real)
        with ThreadPoolExecutor(self.settings.workers) as pool:  # codecs run beside Python
            tried = list(pool.map(partial(try_sizes, codec, most_bytes=max(budgets)), real))
        before: list[CodedPicture] = []
        for number, budget in enumerate(budgets):
            chosen = [choose_within(files, budget) for files in tried]
            fresh = [row for row, coded in enumerate(chosen) if not before or coded is not before[row]]
            kept = {name.split(":", 1)[1]: value for name, value in found.items() if name.startswith(f"{number - 1}:")}
            if fresh:  # the others are the files of the smaller budget
                made: Tensor = torch.stack([chosen[row].picture for row in fresh])
                part = {name: value[fresh] for name, value in originals.items() if name != "names"}
                compared = self.measures.compare(real[fresh], made, part, [level[fresh] for level in maps])
                for name, value in compared.items():
                    kept[name] = (
                        kept[name].copy() if name in kept else np.zeros((len(real), *value.shape[1:]), value.dtype)
                    )
                    kept[name][fresh] = value
            found |= {f"{number}:{name}": value for name, value in kept.items()}
            found[f"{number}:bytes"] = np.array([coded.num_bytes for coded in chosen])
            before = chosen
        return found
