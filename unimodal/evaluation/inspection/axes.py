"""How the axes of the reports' plots are scaled and labelled: whole numbers for layers, plain numbers for powers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

DECADES = 3  # that a range must span for marks at powers of ten alone


def count_in_whole_numbers(axes: Axes, axis: Literal["x", "y", "both"]) -> None:
    """Layers and heads have no halves."""
    from matplotlib.ticker import MaxNLocator

    for name, one in (("x", axes.xaxis), ("y", axes.yaxis)):
        if axis in (name, "both"):
            one.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def write_plain_numbers(axis: Axis) -> None:
    """`100` in place of 10²."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def scale_by_powers(axes: Axes) -> None:
    """A logarithmic scale upwards whose marks stand far enough apart to be read: at 1, 2 and 5 of every power where
    the range is small, at the powers alone where it is not."""
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    narrow = high / low < 10**DECADES
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
    write_plain_numbers(axes.yaxis)


def say_in_plot(axes: Axes, words: str) -> None:
    """Words in the middle of a plot that shows nothing."""
    axes.text(0.5, 0.5, words, ha="center", va="center", transform=axes.transAxes, color="grey")


def shorten(name: str, most: int = 28) -> str:
    """A name for an axis or a title: of a long one the beginning and the end; dollar signs stand for themselves."""
    kept = name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"
    return kept.replace("$", r"\$")
