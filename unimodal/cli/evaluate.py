"""`unimodal evaluate`: a model on held-out data, or tokenizers beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unimodal.cli.progress import Reporter
from unimodal.cli.shared import Compress, Model, Seed, check_choice, check_compress, check_folder, load_model

if TYPE_CHECKING:
    from unimodal.evaluation.tokenizer_bench.settings import BenchSettings

WEIGHTS = ("inception", "lpips", "utmos")


def evaluate(
    suite: Annotated[
        list[str], typer.Option("--suite", metavar="S", help="A suite, `all` or `tokenizers`; may be repeated.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="report.json", help="The report; finished parts are kept.")],
    more: Annotated[list[str] | None, typer.Argument(metavar="[MORE TOKENIZERS]", show_default=False)] = None,
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="The prepared data; for `tokenizers` any folder of files or dataset.")
    ] = Path("data/prepared"),
    limit: Annotated[int | None, typer.Option(metavar="N", help="At most so many items of a suite.")] = None,
    seed: Seed = 0,
    model: Model = None,
    compress: Compress = None,
    compared: Annotated[
        list[str] | None,
        typer.Option(
            "--tokenizers", metavar="A B …", help="For `tokenizers`: folders, LABEL=FOLDER, or NAME=CHECKPOINT."
        ),
    ] = None,
    side: Annotated[
        int | None, typer.Option("--size", metavar="PIXELS", help="For `tokenizers`: at which pictures are judged.")
    ] = None,
    judges: Annotated[
        list[Path] | None,
        typer.Option("--judge", metavar="DIR", help="For `tokenizers`: one more vision encoder that judges."),
    ] = None,
    lpips: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For `tokenizers`: the weights of LPIPS on VGG-16.")
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH", help="For `tokenizers`: weights of inception (rFID), lpips or utmos; may be repeated."
        ),
    ] = None,
    part: Annotated[
        str, typer.Option(metavar="PART", help="For `tokenizers`: reconstruction (by default) or downstream.")
    ] = "reconstruction",
    reading: Annotated[
        bool, typer.Option("--reading/--no-reading", help="For `tokenizers`: read small text in pictures.")
    ] = True,
    recognisers: Annotated[
        str,
        typer.Option(metavar="R,R", help="For `tokenizers`: who reads speech: moonshine, pocketsphinx, or none."),
    ] = "moonshine",
    every_rate: Annotated[
        bool,
        typer.Option("--every-rate", help="For `tokenizers`: networks judge sounds at every rate, not the full alone."),
    ] = False,
    workers: Annotated[
        int, typer.Option(metavar="N", help="For `tokenizers`: processes that judge, by default 2.", show_default=False)
    ] = 2,
) -> None:
    """Measure the model on held-out data, or compare tokenizers, and write a report."""
    from unimodal.evaluation import TOKENIZERS, choose_suites, run_suites
    from unimodal.evaluation.tokenizer_bench.settings import BenchSettings

    check_folder(out)
    if limit is not None and limit < 1:
        raise ValueError(f"--limit {limit}: give the number of items to try, at least 1")
    named = [*(compared or []), *(more or [])]
    if TOKENIZERS in suite:
        if len(set(suite)) > 1 or model is not None:
            raise ValueError("--suite tokenizers compares tokenizers and no model; run it alone, without --model")
        if compress:
            raise ValueError("--compress shortens what a model reads, and --suite tokenizers has none; leave it out")
        if workers < 1:
            raise ValueError(f"--workers {workers}: give the number of processes that judge, at least 1")
        hearing = tuple(name.strip() for name in recognisers.split(",") if name.strip() not in ("", "none"))
        parts = out.with_name(f"{out.stem}.parts")
        files = read_weights([*(weights or ()), *([] if lpips is None else [f"lpips={lpips}"])])
        settings = BenchSettings(
            data, parts, limit, seed, side, tuple(judges or ()), files.get("lpips"), files.get("inception"),
            files.get("utmos"), reading, part, recognisers=hearing, every_rate=every_rate, workers=workers,
        )  # fmt: skip
        _compare_tokenizers(named, settings, out)
        return
    others = {
        "--tokenizers": named,
        "--size": side,
        "--judge": judges,
        "--lpips": lpips,
        "--weights": weights,
        "--no-reading": not reading,
        "--part": part != "reconstruction",
        "--recognisers": recognisers != "moonshine",
        "--every-rate": every_rate,
        "--workers": workers != 2,
    }
    for option, value in others.items():
        if value:
            raise ValueError(f"{option} belongs to --suite {TOKENIZERS}")
    names = choose_suites(suite)
    if not data.is_dir():
        raise ValueError(f"--data {data}: no such folder; fetch and prepare the data first (make nano)")
    with Reporter() as report:
        report("starting")
        from unimodal.pipeline.compression import load_methods

        methods = load_methods(check_compress(compress) or ())
        loaded = load_model(model, report)
        for table in run_suites(names, loaded, data, out, limit, seed, report, methods):
            report.clear()
            print(table, flush=True)


def read_weights(named: Sequence[str]) -> dict[str, Path]:
    """NAME=PATH of networks that judge. ValueError for other names, one that is given twice, and for files that are not
    there."""
    found: dict[str, Path] = {}
    for each in named:
        name, separator, path = each.partition("=")
        if name not in WEIGHTS or not separator:
            raise ValueError(f"--weights {each}: give NAME=PATH with a name of {', '.join(WEIGHTS)}")
        if name in found:
            raise ValueError(f"--weights {each}: the weights of {name} are given twice; name them once")
        found[name] = Path(path).expanduser()
        if not found[name].exists():
            raise ValueError(f"--weights {each}: there is no such file")
    return found


def _compare_tokenizers(named: list[str], settings: BenchSettings, out: Path) -> None:
    from unimodal.evaluation.tokenizer_bench.entries import open_entries
    from unimodal.evaluation.tokenizer_bench.run import run_bench
    from unimodal.evaluation.tokenizer_bench.settings import PARTS
    from unimodal.evaluation.tokenizer_bench.write import write_bench

    if not settings.data.exists():
        raise ValueError(f"--data {settings.data}: no such folder or dataset")
    if settings.side is not None and not 16 <= settings.side <= 2048:
        raise ValueError(f"--size {settings.side}: give pixels from 16 to 2048")
    check_choice("--part", settings.part, PARTS)
    with Reporter() as report:
        found = run_bench(open_entries(named), settings, report)
        report.clear()
        print(write_bench(found, out))
