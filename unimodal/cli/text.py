"""`unimodal text`: tokenizers trained, measured and put under a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from unimodal.cli.progress import Reporter
from unimodal.cli.shared import Command, check_choice, check_folder

text = typer.Typer(
    name="text",
    help="Tokenizers of plain text: train one, measure one, compare several, put one under a model.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

KINDS = (
    "bpe",
    "unigram",
    "wordpiece",
    "sentencepiece-bpe",
    "sentencepiece-unigram",
    "characters",
    "bytes",
    "less-is-better",
)
DIGITS = ("free", "single", "left", "right")
#: how rows begin under another tokenizer → the options that are read for it
TRANSPLANTS: dict[str, tuple[str, ...]] = {
    "mean": (),
    "fvt": (),
    "wechsel": ("--parallel", "--vectors", "--dictionary"),
    "clp": ("--donor",),
    "trans-tokenization": ("--parallel",),
    "tokenadapt": ("--embedder",),
    "omp": ("--donor", "--atoms"),
    "zett": ("--hypernetwork",),
}


class ManyCommand(Command):
    """A command whose options that may be repeated also take several values at once: `--corpus a.txt b.txt`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # as `Command`
        many = {name for param in self.params if getattr(param, "multiple", False) for name in param.opts}
        spread: list[str] = []
        option = None
        for word in args:
            if word in many:
                option = word
            elif word.startswith("-") and word != "-":
                option = None
                spread.append(word)
            elif option is not None:
                spread += [option, word]
            else:
                spread.append(word)
        return super().parse_args(ctx, spread)


Corpus = Annotated[
    list[Path], typer.Option("--corpus", metavar="FILE…", help="UTF-8 text, plain or gzipped; one or more files.")
]
Parallel = Annotated[
    list[Path] | None,
    typer.Option("--parallel", metavar="A B…", help="Files whose lines translate each other; premiums are over A."),
]
Segments = Annotated[
    Path | None,
    typer.Option("--segments", metavar="FILE", help="Words and their morphemes: a word, a tab, parts with spaces."),
]
Bytes = Annotated[
    int | None, typer.Option("--bytes", metavar="N", help="Measure whole lines from the start, at most so many bytes.")
]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers, too.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with the tables, too.")]


@text.command("train", cls=Command)
def train_tokenizer(
    corpora: Annotated[list[Path], typer.Argument(metavar="CORPUS...", help="UTF-8 text, plain or gzipped.")],
    kind: Annotated[str, typer.Option("--kind", metavar="K", help=f"What to learn: {', '.join(KINDS)}.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A new folder, which AutoTokenizer opens.")],
    size: Annotated[
        int | None, typer.Option("--size", metavar="N", help="Rows; may be left out for characters and bytes.")
    ] = None,
    digits: Annotated[
        str, typer.Option("--digits", metavar="D", help="Numbers: free, single digits, threes from left or right.")
    ] = "free",
    superwords: Annotated[
        float, typer.Option("--superwords", metavar="S", help="The share of the rows learned across spaces (bpe).")
    ] = 0.0,
    segmenter: Annotated[
        str | None,
        typer.Option("--segmenter", metavar="MODULE:FUNCTION", help="Cuts words into morphemes before learning."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", metavar="N", help="The longest piece, in characters.")
    ] = None,
    byte_fallback: Annotated[
        bool, typer.Option("--byte-fallback/--no-byte-fallback", help="Spell rare characters by their bytes.")
    ] = True,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Another seed reads otherwise (less-is-better).")
    ] = 0,
) -> None:
    """Train a tokenizer on text, and save it as a folder that transformers opens."""
    check_choice("--kind", kind, KINDS)
    check_choice("--digits", digits, DIGITS)
    from unimodal.text.corpora import read_lines
    from unimodal.text.trainers import TrainingSettings, check_target, save, train

    settings = TrainingSettings(
        kind=kind,
        size=size,
        digits=digits,  # type: ignore[arg-type]  # checked above
        superwords=superwords,
        segmenter=segmenter,
        max_length=max_length,
        byte_fallback=byte_fallback,
        seed=seed,
    )
    settings.check()
    check_target(out)
    with Reporter() as report:
        report("reading")
        lines = read_lines(corpora)
        report(f"training {kind} on {len(lines):,} lines")
        data = train(lines, settings)
        save(data, out, settings, lines)
    print(f"{out}: {kind}, {len(data['model']['vocab']):,} rows")


@text.command("report", cls=ManyCommand)
def report_tokenizer(
    tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER", help="A folder, a tokenizer.json or a hub id.")],
    corpus: Corpus,
    parallel: Parallel = None,
    segments: Segments = None,
    mixture: Annotated[
        list[str] | None,
        typer.Option("--mixture", metavar="NAME=FILE…", help="Samples of what it may have been trained on (BPE)."),
    ] = None,
    merges: Annotated[
        int, typer.Option("--merges", metavar="N", help="For --mixture: at most so many of its merges.")
    ] = 1000,
    ids: Annotated[
        Path | None,
        typer.Option("--ids", metavar="FILE", help="Ids that a model wrote, one JSON list a line: are they canonical?"),
    ] = None,
    html: Html = None,
    json: Json = None,
) -> None:
    """Measure a tokenizer on text: fertility, premium, entropies, scripts, numbers, round trip, rows, mixture."""
    _check_outputs(html, json)
    if merges < 1:
        raise ValueError(f"--merges {merges}: give one or more")
    from unimodal.text.reports.layout import format_report
    from unimodal.text.reports.opened import open_tokenizer
    from unimodal.text.reports.report import make_report, read_input

    with Reporter() as report:
        report("reading")
        given = read_input(corpus, parallel or (), mixture or (), segments, ids, merges)
        made = make_report(open_tokenizer(tokenizer), given, report)
    _write(tokenizer, made, html, json)
    print(format_report(made))


@text.command("compare", cls=ManyCommand)
def compare_tokenizers(
    tokenizers: Annotated[list[str], typer.Argument(metavar="TOKENIZER...", help="Folders, files or hub ids.")],
    corpus: Corpus,
    parallel: Parallel = None,
    segments: Segments = None,
    html: Html = None,
    json: Json = None,
) -> None:
    """Measure tokenizers on one text, side by side in one table."""
    _check_outputs(html, json)
    from unimodal.text.reports.layout import format_rows, list_rows
    from unimodal.text.reports.opened import open_tokenizer
    from unimodal.text.reports.report import compare, read_input

    with Reporter() as report:
        report("reading")
        given = read_input(corpus, parallel or (), (), segments)
        table = compare([open_tokenizer(name) for name in tokenizers], given, report)
    made: dict[str, dict[str, object]] = {"comparison": dict(table)}
    _write(", ".join(tokenizers), made, html, json)
    print(format_rows(list_rows(made["comparison"])))


@text.command("transplant", cls=ManyCommand)
def transplant_tokenizer(
    base: Annotated[str, typer.Argument(metavar="BASE", help="A stock model or one of ours: a folder or a hub id.")],
    tokenizer: Annotated[str, typer.Option("--tokenizer", metavar="T", help="The new one: a folder, file or hub id.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A new folder: the model with that tokenizer.")],
    method: Annotated[
        str, typer.Option("--method", metavar="M", help=f"How new rows begin: {', '.join(TRANSPLANTS)}.")
    ] = "fvt",
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data", metavar="FILE…", help="Text of the new kind: its bits a byte before and after are said."
        ),
    ] = None,
    parallel: Annotated[
        list[Path] | None,
        typer.Option("--parallel", metavar="A B", help="Lines in the base's language, and the same in the new one."),
    ] = None,
    donor: Annotated[
        str | None, typer.Option("--donor", metavar="MODEL", help="A model with the new tokenizer, for clp and omp.")
    ] = None,
    atoms: Annotated[
        int | None,
        typer.Option("--atoms", metavar="N", help="Shared rows that make a new one, for omp: by default 64."),
    ] = None,
    embedder: Annotated[
        str | None, typer.Option("--embedder", metavar="MODEL", help="A model of sentences, for tokenadapt.")
    ] = None,
    vectors: Annotated[
        list[Path] | None,
        typer.Option("--vectors", metavar="A B", help="Vectors of both languages' words, for wechsel."),
    ] = None,
    dictionary: Annotated[
        Path | None, typer.Option("--dictionary", metavar="FILE", help="Words and their translations, for wechsel.")
    ] = None,
    hypernetwork: Annotated[
        Path | None,
        typer.Option("--hypernetwork", metavar="FILE", help="Made by tools/train_hypernetwork.py, for zett."),
    ] = None,
    copy: Annotated[
        bool | None,
        typer.Option(
            "--copy-shared/--no-copy-shared", help="Keep the rows of tokens that both have; else as published."
        ),
    ] = None,
    most_bytes: Bytes = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of rows that a method leaves to chance.")] = 0,
) -> None:
    """Give a model another text tokenizer: its text rows are made anew, its media rows stay."""
    check_choice("--method", method, tuple(TRANSPLANTS))
    _check_bytes(most_bytes)
    if most_bytes is not None and not data:
        raise ValueError("--bytes is of the text that is measured; give --data")
    more = {
        "--parallel": parallel, "--donor": donor, "--embedder": embedder, "--vectors": vectors,
        "--dictionary": dictionary, "--hypernetwork": hypernetwork, "--atoms": atoms,
    }  # fmt: skip
    for option, value in more.items():
        if value not in (None, []) and option not in TRANSPLANTS[method]:
            raise ValueError(f"{option} is not read for --method {method}; leave it out")
    for option, given in (("--parallel", parallel), ("--vectors", vectors)):
        if given and len(given) != 2:
            raise ValueError(f"{option} takes two files, the base's language first; {len(given)} are given")
    from unimodal.export.new_folder import check_target
    from unimodal.text.corpora import read_lines, read_parallel, take_bytes
    from unimodal.text.reports.opened import open_tokenizer
    from unimodal.tuning.transplant import transplant as moving
    from unimodal.tuning.transplant.hypernetwork import RowHypernetwork, stack_tables
    from unimodal.tuning.transplant.inputs import open_embedder, read_dictionary, read_donor_rows
    from unimodal.tuning.transplant.word_vectors import read_vectors

    check_target(out, replace=False)
    with Reporter() as report:
        report("reading")
        lines = take_bytes(read_lines(data), most_bytes) if data else []
        both = read_parallel(parallel) if parallel else None
        new = open_tokenizer(tokenizer)
        read = [read_vectors(path) for path in vectors or ()]
        opened = moving.open_base(base)
        plan = moving.plan_transplant(opened, new)
        request = replace(
            plan.request,
            num_atoms=plan.request.num_atoms if atoms is None else atoms,
            parallel=None if both is None else (both[0], both[1]),
            donor=None if donor is None else read_donor_rows(donor, new),
            embed=None if embedder is None else open_embedder(embedder),
            vectors=(read[0], read[1]) if read else None,
            dictionary=None if dictionary is None else read_dictionary(dictionary),
            hypernetwork=None if hypernetwork is None else RowHypernetwork.load(hypernetwork),
            base_rows=None if hypernetwork is None else stack_tables(opened.tables, opened.old.text.size),
        )
        made = moving.transplant(opened, replace(plan, request=request), out, method, copy, seed, lines, report)
    print(f"{out}: {new.text.size:,} text rows; {made.copied:,} copied, {made.mixed:,} mixed, {made.filled:,} filled")
    if made.before is not None and made.after is not None:
        saved = 1 - made.after.tokens / made.before.tokens
        print(f"tokens: {made.before.tokens:,} → {made.after.tokens:,} ({saved:+.1%} saved)")
        for name, cost in (("before", made.before), ("after", made.after)):
            print(f"bits a byte {name}: {cost.format()}")


@text.command("cost", cls=ManyCommand)
def measure_cost(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Stock models or ours: folders or hub ids.")],
    data: Annotated[list[Path], typer.Option("--data", metavar="FILE…", help="UTF-8 text, plain or gzipped.")],
    most_bytes: Bytes = None,
    json: Json = None,
) -> None:
    """Measure what a text costs models, whatever their tokenizers: its tokens, and bits a byte with 95% intervals."""
    _check_bytes(most_bytes)
    _check_outputs(None, json)
    from unimodal.text.corpora import read_lines, take_bytes
    from unimodal.text.reports.layout import format_rows
    from unimodal.tuning.transplant.measure import TextCost, measure_text
    from unimodal.tuning.transplant.transplant import open_base

    found: dict[str, dict[str, object]] = {}
    rows: list[list[str]] = [["", "text rows", "tokens", "bits a byte", "more than the first"]]
    first: TextCost | None = None
    with Reporter() as report:
        lines = take_bytes(read_lines(data), most_bytes)
        for name in models:
            report(f"reading {name}")
            opened = open_base(name)
            report(f"measuring {name}")
            cost = measure_text(opened.model, opened.old, opened.find_start(opened.vocabulary), lines)
            more = None if first is None else cost.compare(first)
            first = first or cost
            found[name] = cost.describe() | {"text_rows": opened.num_text_rows, "more_than_first": more}
            said = "" if more is None else f"{more[0]:+.3f} ± {more[1]:.3f}"
            rows.append([name, f"{opened.num_text_rows:,}", f"{cost.tokens:,}", cost.format(), said])
    if json is not None:
        from unimodal.files import write_json

        write_json(json, found)
    print(format_rows(rows))


def _check_bytes(most_bytes: int | None) -> None:
    if most_bytes is not None and most_bytes < 1:
        raise ValueError(f"--bytes {most_bytes}: give one or more")


def _check_outputs(html: Path | None, json: Path | None) -> None:
    """Raises ValueError, before anything is computed, for files that cannot be written."""
    for option, path in (("--html", html), ("--json", json)):
        if path is not None:
            check_folder(path, option)


def _write(title: str, made: dict[str, dict[str, object]], html: Path | None, json: Path | None) -> None:
    from unimodal.files import write_json, write_text_atomically
    from unimodal.text.reports.layout import write_html

    if json is not None:
        write_json(json, made)
    if html is not None:
        write_text_atomically(html, write_html(title, made))
