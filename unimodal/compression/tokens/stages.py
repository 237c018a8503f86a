"""Methods that act in stages: where they lie in a decoder of any depth, and how many tokens each leaves."""

from __future__ import annotations

from collections.abc import Sequence

from unimodal.compression.plan import Span, count_share


def place_sites(depths: Sequence[float], num_layers: int) -> tuple[int, ...]:
    """The sites at these shares of the depth, ascending; at least 1, below `num_layers`, and each once."""
    return tuple(sorted({max(1, min(round(depth * num_layers), num_layers - 1)) for depth in depths}))


def count_by_ratios(spans: Sequence[Span], sites: Sequence[int], ratios: Sequence[float], keep: float) -> list[int]:
    """How many tokens of each span a stage leaves: published ratios, moved in proportion so that the last is `keep`.

    A shallow decoder has fewer sites than ratios: the last ratios count.
    """
    counts = []
    for span in spans:
        ratio = ratios[-len(sites) :][sites.index(span.layer)]
        share = 1 - (1 - keep) * (1 - ratio) / (1 - ratios[-1])
        counts.append(min(len(span), count_share(share, span.original)))
    return counts


def count_evenly(spans: Sequence[Span], sites: Sequence[int], keep: float) -> list[int]:
    """How many tokens of each span a stage leaves where every stage takes the same part of what is left."""
    shares = [keep ** ((sites.index(span.layer) + 1) / len(sites)) for span in spans]
    return [min(len(span), count_share(share, span.original)) for share, span in zip(shares, spans, strict=True)]


def count_linearly(spans: Sequence[Span], sites: Sequence[int], keep: float) -> list[int]:
    """How many tokens of each span a stage leaves where every stage takes the same number of tokens."""
    shares = [1 - (1 - keep) * (sites.index(span.layer) + 1) / len(sites) for span in spans]
    return [min(len(span), count_share(share, span.original)) for share, span in zip(shares, spans, strict=True)]
