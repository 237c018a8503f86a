"""Fast decoders by name, for `Engine.generate(..., method=make_decoder(name))` and `--decoder`.

A decoder's class is imported when one is made, so listing the names is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from unimodal.config import check_settings

if TYPE_CHECKING:
    from unimodal.generation.fast.protocol import FastDecoder

#: name → (module, class); see each module's page for what it does and whether it is lossless
DECODERS = {
    "jacobi": ("unimodal.generation.fast.jacobi", "Jacobi"),
    "sjd": ("unimodal.generation.fast.sjd", "SpeculativeJacobi"),
    "coupled-sjd": ("unimodal.generation.fast.coupled_sjd", "CoupledSpeculativeJacobi"),
    "gsd": ("unimodal.generation.fast.grouped_sjd", "GroupedSpeculative"),
    "zipar": ("unimodal.generation.fast.zipar", "ZipAR"),
    "masked": ("unimodal.generation.fast.masked_parallel", "MaskedParallel"),
    "enat": ("unimodal.generation.fast.enat", "Enat"),
    "window-diffusion": ("unimodal.generation.fast.window_diffusion", "WindowDiffusion"),
    "explore": ("unimodal.generation.fast.explore", "Explore"),
    "next-x": ("unimodal.generation.fast.next_x", "NextX"),
    "any-order": ("unimodal.generation.fast.any_order", "AnyOrder"),
    "retrieval": ("unimodal.generation.fast.retrieval", "Retrieval"),
    "draft-heads": ("unimodal.generation.fast.draft_heads", "DraftHeadDecoder"),
    "token-recycling": ("unimodal.generation.fast.token_recycling", "TokenRecycling"),
}


def make_decoder(name: str, **settings: object) -> FastDecoder:
    """A fast decoder by its name, with the fields of its class as settings.

    Raises ValueError for an unknown name, and for settings that it does not have or that are not of their kind.
    """
    if name not in DECODERS:
        raise ValueError(f"decoder {name!r} is unknown; choose {', '.join(DECODERS)}, or none")
    module, kind = DECODERS[name]
    owner = getattr(import_module(module), kind)
    check_settings(name, owner, settings)
    return owner(**settings)
