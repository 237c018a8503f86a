"""What a report is given and what it is: sections of figures, which are printed and written as JSON, and a plot."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from unimodal.files import write_bytes_atomically, write_json
from unimodal.sequence.document import Media
from unimodal.text.reports.layout import format_report
from unimodal.text.reports.report import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: called with what is being done
Tell = Callable[[str], None]

PLOT_SUFFIXES = (".svg", ".png")


@dataclass(frozen=True)
class InspectionInput:
    """What a report is made of; each reads what it needs and has a default where it can.

    prompt: words of a user. files: media beside them. answer: what the model is held to say; None: what it says itself.
    to: the medium of the answer. texts: name → plain text. num_tokens: of a text that is read at once. settings: of
    single reports, by name.
    """

    prompt: str | None = None
    files: Sequence[Media] = ()
    answer: str | None = None
    to: str | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    num_tokens: int = 128
    seed: int = 0
    settings: Mapping[str, int | float | str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class InspectionReport:
    """sections: name → figures, or a table: row → column → figure. draw: puts the plot on an empty figure. arrays: what
    is drawn, for the JSON alone. size: of the plot in inches."""

    sections: dict[str, Section]
    draw: Callable[[Figure], None]
    arrays: dict[str, object] = field(default_factory=dict)
    size: tuple[float, float] = (12.0, 7.0)

    def format(self) -> str:
        """The sections for a terminal."""
        return format_report(self.sections)

    def save(self, json: Path | None = None, plot: Path | None = None) -> None:
        """Writes the figures as JSON and the plot as SVG or PNG, by its suffix; each whole or not at all.

        Raises ValueError where matplotlib is missing and for another suffix.
        """
        drawn = None if plot is None else self.render(plot.suffix.lower())
        if json is not None:
            write_json(json, {**self.sections, **({"arrays": self.arrays} if self.arrays else {})})
        if plot is not None and drawn is not None:
            write_bytes_atomically(plot, drawn, make_folder=False)

    def render(self, suffix: str) -> bytes:
        """The plot as the bytes of an SVG or PNG file."""
        check_plot(suffix)
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=self.size, dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        data = io.BytesIO()
        # "none": letters stay letters, which a reader's machine has fonts for; a token may be of any script
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "unimodal", "axes.titlesize": 10}):
            self.draw(figure)
            metadata = {"Date": None} if suffix == ".svg" else None
            figure.savefig(data, format=suffix[1:], metadata=metadata)
        return data.getvalue()


def check_plot(suffix: str) -> None:
    """Raises ValueError for a plot that cannot be drawn: another suffix, or no matplotlib."""
    if suffix not in PLOT_SUFFIXES:
        raise ValueError(
            f"a plot is written as {' or '.join(PLOT_SUFFIXES)}, not as {suffix or 'a file without suffix'}"
        )
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("a plot needs matplotlib: pip install 'unimodal[bench]'") from None
