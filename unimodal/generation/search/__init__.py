"""Search at test time over what the engine may write, by name; each module has one method.

A verifier scores answers; search spends more tokens to find one that it likes better. Where codes are ordered from
coarse to fine, a few of them already show what the whole will be, so that beams are chosen early (arXiv:2604.15453).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unimodal.generation.search.base import Search

#: name → (module, class)
SEARCHES = {
    "best-of-n": ("unimodal.generation.search.best_of_n", "BestOfN"),
    "beam": ("unimodal.generation.search.beam", "BeamSearch"),
    "lookahead": ("unimodal.generation.search.lookahead", "Lookahead"),
}


def make_search(name: str, **settings: Any) -> Search:
    """A search by its name; ValueError, with the names that there are, for another."""
    if name not in SEARCHES:
        raise ValueError(f"search {name!r} is unknown; choose {', '.join(SEARCHES)}, or none")
    module, kind = SEARCHES[name]
    return getattr(import_module(module), kind)(**settings)
