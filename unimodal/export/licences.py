"""The licences of released weights in a model folder: told in its card, and looked at before it is published.

A tokenizer's config.json says where its weights are from and under which licence, where others released them
(`SystemConfig`); training goes on from them, so that the licence stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unimodal.files import read_json
from unimodal.model_folder.layout import CONFIG_FILE

HEADING = "## Licences of its tokenizers"


@dataclass(frozen=True)
class WeightsLicence:
    """Of the weights in `part`, a subfolder. commercial: False where the licence forbids commercial use."""

    part: str
    licence: str
    origin: str
    commercial: bool


def list_licences(folder: Path) -> Iterator[WeightsLicence]:
    """Those of all tokenizers and readers of a model folder whose weights others released."""
    for path in sorted([*folder.glob(f"*_tokenizer/{CONFIG_FILE}"), *folder.glob(f"*_reader/{CONFIG_FILE}")]):
        fields = read_json(path)
        if fields.get("origin") or fields.get("licence"):
            yield WeightsLicence(
                path.parent.name,
                str(fields.get("licence") or "no licence that its authors name"),
                str(fields.get("origin") or "an unknown place"),
                fields.get("commercial") is not False,
            )


def check_licences(folder: Path, accepted: Sequence[str] = ()) -> None:
    """Raises ValueError, in one line, for weights that may not be used commercially under a licence that is not named
    in `accepted`."""
    known = {name.strip().casefold() for name in accepted}
    for found in list_licences(folder):
        if not found.commercial and found.licence.casefold() not in known:
            raise ValueError(
                f"{found.part} has weights of {found.origin} under {found.licence}, which forbids commercial use; "
                f'if you may publish them, say so with --accept-licence "{found.licence}"'
            )


def describe_licences(folder: Path) -> str:
    """The section of the card, in Markdown; "" where all weights were trained by the maker."""
    lines = [
        f"- `{found.part}`: weights of {found.origin}, {found.licence}"
        f"{'' if found.commercial else '; **not for commercial use**'}"
        for found in list_licences(folder)
    ]
    return "\n".join([HEADING, "", *lines]) if lines else ""
