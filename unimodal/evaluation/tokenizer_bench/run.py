"""Runs a bench: every tokenizer on the same items, by the part that is asked."""

from __future__ import annotations

from collections.abc import Sequence

from unimodal.evaluation.suite import ReportProgress
from unimodal.evaluation.tokenizer_bench.downstream_bench import run_downstream
from unimodal.evaluation.tokenizer_bench.entries import Entry
from unimodal.evaluation.tokenizer_bench.film_bench import FilmBench
from unimodal.evaluation.tokenizer_bench.items import choose_items
from unimodal.evaluation.tokenizer_bench.picture_bench import PictureBench
from unimodal.evaluation.tokenizer_bench.settings import DOWNSTREAM, BenchReport, BenchSettings, check_read
from unimodal.evaluation.tokenizer_bench.sound_bench import SoundBench


def run_bench(entries: Sequence[Entry], settings: BenchSettings, report: ReportProgress) -> BenchReport:
    """The figures of tokenizers of one medium. Raises ValueError for media without a bench, for settings that it does
    not read and for missing data."""
    medium = entries[0].tokenizer.modality
    check_read(settings, medium)
    if settings.part == DOWNSTREAM:
        items = choose_items(settings.data, medium, settings.limit, settings.seed, by_folder=True)
        return run_downstream(entries, items, settings, report)
    if medium not in BENCHES:
        raise ValueError(f"there is no bench of {medium} tokenizers; there is one of {', '.join(BENCHES)}")
    items = choose_items(settings.data, medium, settings.limit, settings.seed)
    return BENCHES[medium](entries, items, settings, report).run()


#: medium → its reconstruction part
BENCHES: dict[str, type[PictureBench] | type[SoundBench] | type[FilmBench]] = {
    "image": PictureBench,
    "audio": SoundBench,
    "video": FilmBench,
}
