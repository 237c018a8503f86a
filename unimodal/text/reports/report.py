"""Everything that is measured of a tokenizer on a corpus, as sections of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unimodal.text.corpora import read_lines, read_parallel
from unimodal.text.reports.entropy import measure_entropies
from unimodal.text.reports.mixture import MOST_MERGES, infer_mixture, read_merges
from unimodal.text.reports.morphemes import measure_morphemes, read_segments
from unimodal.text.reports.numbers import measure_numbers
from unimodal.text.reports.opened import OpenedTokenizer
from unimodal.text.reports.premium import compute_premiums
from unimodal.text.reports.round_trip import measure_outputs, measure_round_trip, read_ids
from unimodal.text.reports.rows import measure_rows
from unimodal.text.reports.words import TextCounts, count_rows_by_script, count_text

#: a section: what is measured → its value, or a table: row → column → value
Section = dict[str, object]


@dataclass(frozen=True)
class ReportInput:
    """What a report is made of. parallel: names and texts that translate each other. samples: category → lines, for the
    mixture of the training data, of at most `most_merges`. segmented: words and their morphemes. outputs: ids that a
    model wrote.
    """

    lines: Sequence[str]
    parallel: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None
    samples: Mapping[str, Sequence[str]] = field(default_factory=dict)
    segmented: Sequence[tuple[str, Sequence[str]]] = ()
    outputs: Sequence[Sequence[int]] = ()
    most_merges: int = MOST_MERGES


def read_input(
    corpora: Sequence[Path],
    parallel: Sequence[Path] = (),
    mixture: Sequence[str] = (),
    segments: Path | None = None,
    ids: Path | None = None,
    most_merges: int = MOST_MERGES,
) -> ReportInput:
    """Reads all files of a report. Raises ValueError, in one line, for the first that is not as it should be.

    mixture: `NAME=FILE` for each category.
    """
    named: dict[str, Sequence[str]] = {}
    for text in mixture:
        name, equals, file = text.partition("=")
        if not (name and equals and file) or name in named:
            raise ValueError(f"--mixture {text}: give each category once, as NAME=FILE")
        named[name] = read_lines([Path(file)])
    if len(named) == 1:
        raise ValueError("--mixture: a mixture is of two categories or more")
    return ReportInput(
        lines=read_lines(corpora),
        parallel=(name_files(parallel), read_parallel(parallel)) if parallel else None,
        samples=named,
        segmented=read_segments(segments) if segments else (),
        outputs=read_ids(ids) if ids else (),
        most_merges=most_merges,
    )


def name_files(paths: Sequence[Path]) -> list[str]:
    """The names of files; whole paths where two have one name."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def make_report(
    tokenizer: OpenedTokenizer, given: ReportInput, on_step: Callable[[str], None] = lambda _: None
) -> dict[str, Section]:
    """Section → what was measured. Raises ValueError for what this tokenizer has not, before anything is measured."""
    if given.samples:
        read_merges(tokenizer)
    check_outputs(tokenizer, given.outputs)
    on_step("encoding the corpus")
    counts = count_text(tokenizer, given.lines)
    report: dict[str, Section] = {"text": counts.describe(tokenizer.num_rows)}
    report["entropy, in bits a token"] = dict(
        measure_entropies([tokenizer.encode(line) for line in given.lines], tokenizer.num_rows)
    )
    if given.parallel:
        report["premium"] = dict(compute_premiums(tokenizer, *given.parallel))
    report |= measure_places(tokenizer, counts)
    on_step("cutting texts in two")
    report["round trip"] = dict(measure_round_trip(tokenizer, given.lines))
    if given.outputs:
        report["a model's ids"] = dict(measure_outputs(tokenizer, given.outputs))
    report["numbers, by their digits"] = dict(measure_numbers(tokenizer))
    if given.segmented:
        report["morphemes"] = dict(measure_morphemes(tokenizer, given.segmented))
    on_step("looking for rows that no text reaches")
    report["rows"] = measure_rows(tokenizer, counts.rows)
    if given.samples:
        on_step("following the merges")
        mixture = infer_mixture(tokenizer, given.samples, given.most_merges)
        report["mixture of the training data"] = {
            **mixture.shares,
            "merges": mixture.merges,
            "merges of no sample": mixture.missing,
        }
    return report


def measure_places(tokenizer: OpenedTokenizer, counts: TextCounts) -> dict[str, Section]:
    """Where tokens of the corpus stand in words, and rows of the vocabulary, by script."""
    return {
        "tokens of the corpus, by script": dict(counts.list_scripts()),
        "rows of the vocabulary, by script": dict(count_rows_by_script(tokenizer)),
    }


def check_outputs(tokenizer: OpenedTokenizer, outputs: Sequence[Sequence[int]]) -> None:
    """Raises ValueError for ids that are no rows of text."""
    for ids in outputs:
        for row in ids:
            if row not in tokenizer.spelled:
                raise ValueError(f"row {row} of --ids is not a text row of {tokenizer.name}")


def compare(
    tokenizers: Sequence[OpenedTokenizer], given: ReportInput, on_step: Callable[[str], None] = lambda _: None
) -> dict[str, dict[str, object]]:
    """What is measured → tokenizer → value, for what is one number; names that are given twice are told apart."""
    names = [tokenizer.name for tokenizer in tokenizers]
    table: dict[str, dict[str, object]] = {}
    for number, tokenizer in enumerate(tokenizers):
        name = names[number] if names.count(names[number]) == 1 else f"{names[number]} ({number + 1})"
        on_step(f"measuring {name}")
        counts = count_text(tokenizer, given.lines)
        values: dict[str, object] = {"rows": tokenizer.num_rows, **counts.describe(tokenizer.num_rows)}
        sequences = [tokenizer.encode(line) for line in given.lines]
        values |= measure_entropies(sequences, tokenizer.num_rows)
        if given.parallel:
            premiums = compute_premiums(tokenizer, *given.parallel)
            values |= {f"premium of {file}": row["premium"] for file, row in list(premiums.items())[1:]}
        values |= measure_round_trip(tokenizer, given.lines)
        values["split of 7 digits"] = measure_numbers(tokenizer)["7"]["split"]
        if given.segmented:
            morphemes = measure_morphemes(tokenizer, given.segmented)
            values |= {f"morphemes: {what}": morphemes[what] for what in ("F1", "purity", "stems of one token")}
        rows = measure_rows(tokenizer, counts.rows)
        values |= {what: rows[what] for what in ("unreached", "scaffolds")}
        for what, value in values.items():
            table.setdefault(what, {})[name] = value
    return table
