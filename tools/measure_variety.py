"""How different the pictures are that a model draws for one prompt with ten seeds, and how like what was asked for.

    python tools/measure_variety.py [--model model_cards/nano] [--data data/prepared] [--prompts 12]
        [--settings temperature=0.9 --settings first_codes=48,temperature=1.2,first_temperature=0.2]
        [--settings temperature=0.9,search=best-of-n,n=8]

The suite `picture_variety` for the model's own sampling, and for it with every `--settings`, a line each: different
drawings of ten, those that an eye tells apart, copies of training pictures, and the shares whose concept a network
outside of ours finds. `search` has several drawings written for each, of which the model itself chooses; other names
beside it are its settings. Needs the prepared pictures: python tools/fetch_data.py --set images, then
python tools/prepare_images.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from unimodal.evaluation.picture_variety import run
from unimodal.model_folder.settings import MediumSettings
from unimodal.pipeline import load
from unimodal.pipeline.settings import SearchSettings

Search = tuple[str, SearchSettings] | None


def read_setting(own: MediumSettings, text: str) -> tuple[MediumSettings, Search]:
    """The sampling of pictures with some fields changed, and a search: "temperature=0.9,search=best-of-n,n=8"."""
    named = dict(part.split("=", 1) for part in text.split(",") if part)
    search, more = named.pop("search", None), {}
    if search is not None:
        more = {name: int(named.pop(name)) for name in list(named) if name not in MediumSettings.model_fields}
    sampling = MediumSettings.model_validate(own.model_dump() | named)
    return sampling, None if search is None else (search, more)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="model_cards/nano")
    parser.add_argument("--data", type=Path, default=Path("data/prepared"))
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--settings", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    model = load(options.model, device="cpu")
    own = model.sampling["image"]
    for text in ("", *options.settings):
        model.sampling["image"], search = read_setting(own, text)
        found = run(model, options.data, options.prompts, options.seed, lambda *_: None, search)
        print(f"{text or 'own'}: {describe(found)}", flush=True)


def describe(found: dict[str, object]) -> str:
    """A line of the suite's figures, with their intervals."""
    told = []
    for name in ("different_of_10", "visible_of_10", "copies", "among_5", "by_classifier"):
        figure = found[name]
        assert isinstance(figure, dict)
        if "mean" in figure:
            told.append(f"{name} {figure['mean']} ± {figure['interval']}")
        else:
            told.append(f"{name} {figure['percent']}% [{figure['low']}, {figure['high']}]")
    return ", ".join(told)


if __name__ == "__main__":
    main()
