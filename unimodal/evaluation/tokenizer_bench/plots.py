"""The curves of a bench: measures over bytes, tokenizers as lines and codecs dashed."""

from __future__ import annotations

from pathlib import Path

from unimodal.evaluation.tokenizer_bench.settings import BenchReport
from unimodal.evaluation.tokenizer_bench.tables import list_rates, read_figure

PICTURE_CURVES = (
    ("psnr_db", "PSNR, dB (higher is better)"),
    ("distance_lite0", "feature distance, EfficientNet-lite0 (lower is better)"),
    ("distance_lite2", "feature distance, EfficientNet-lite2 (lower is better)"),
)
SOUND_CURVES = (
    ("stoi", "STOI (higher is better)"),
    ("pesq", "PESQ, wide band (higher is better)"),
    ("mel_distance", "distance of log-mel bands (lower is better)"),
)


def draw_curves(report: BenchReport, path: Path) -> None:
    """Writes a PNG. Raises ValueError where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("the plot of a bench needs matplotlib: pip install 'unimodal[bench]'") from None
    figure = Figure(figsize=(15, 4.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    curves = SOUND_CURVES if report.medium == "audio" else PICTURE_CURVES
    spent = "bytes" if report.medium == "image" else "bits_per_second"
    for axes, (measure, title) in zip(figure.subplots(1, len(curves)), curves, strict=True):
        for kind, subjects in (("-o", report.tokenizers), ("--s", report.codecs)):
            for label, figures in subjects.items():
                points = sorted(
                    (float(str(rate[spent])), value)
                    for rate in list_rates(figures)
                    if spent in rate and (value := read_figure(rate, measure)) is not None
                )
                if points:
                    axes.plot(*zip(*points, strict=True), kind, label=label, markersize=4, linewidth=1.4)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("bytes a picture" if spent == "bytes" else "bits a second")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    names = {"image": "pictures", "audio": "sounds", "video": "films"}
    judged = f"{names[report.medium]} at " + ("16 kHz" if report.side is None else f"{report.side} × {report.side}")
    figure.suptitle(f"{report.data['items']} {judged}", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
