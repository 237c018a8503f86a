"""Searches for the answer that a verifier scores best, by name; each module has one method.

A verifier scores answers; a search writes more answers to find a better one. Where codes are ordered from coarse to
fine, the first few already show what the whole will be, so beams can be chosen early (arXiv:2604.15453).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from unimodal.config import check_settings

if TYPE_CHECKING:
    from unimodal.generation.search.base import Search

#: name → (module, class)
SEARCHES = {
    "best-of-n": ("unimodal.generation.search.best_of_n", "BestOfN"),
    "beam": ("unimodal.generation.search.beam", "BeamSearch"),
    "lookahead": ("unimodal.generation.search.lookahead", "Lookahead"),
}


def make_search(name: str, **settings: object) -> Search:
    """A search by its name, with the fields of its class as settings.

    Raises ValueError for an unknown name, and for settings that it does not have or that are not of their kind.
    """
    if name not in SEARCHES:
        raise ValueError(f"search {name!r} is unknown; choose {', '.join(SEARCHES)}, or none")
    module, kind = SEARCHES[name]
    owner = getattr(import_module(module), kind)
    check_settings(name, owner, settings)
    return owner(**settings)
