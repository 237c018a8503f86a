"""How many answers of a batch differ from what the same request is answered alone.

    python tools/compare_batches.py [--model model_cards/nano] [--weights float32 --weights int8] [--decoder retrieval]
        [--rows 64]

Rows ask for pictures, clips, speech and words, each with a seed of its own, and are answered in batches of 16 and once
more one by one. Prints for each kind of weights how many of the rows have other ids.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence

from unimodal.pipeline import Unimodal, load
from unimodal.pipeline.settings import AnswerSettings
from unimodal.pipeline.unimodal import BATCH
from unimodal.sequence.document import Document, Turn

THINGS = ("red apple", "owl", "blue car", "green tree", "dancing cat", "house", "yellow flower", "sailing boat", "moon")


def draw_requests(model: Unimodal, num: int) -> tuple[list[Document], list[AnswerSettings]]:
    """Requests for what the model writes, in turn; the same ones for the same number."""
    rng, documents, settings = random.Random(0), [], []
    for seed in range(num):
        to = (*model.writable, "text")[seed % (len(model.writable) + 1)]
        thing = rng.choice(THINGS)
        words = f"what is a {thing}?" if to == "text" else model.wording.phrase_request(thing, to)
        documents.append(Document([Turn("user", words)]))
        settings.append(AnswerSettings(to=to, seed=seed, temperature=1.0, decoder="plain"))
    return documents, settings


def count_changed(model: Unimodal, num: int, decoder: str) -> int:
    """The rows whose parts differ between a batch and alone."""
    documents, settings = draw_requests(model, num)
    settings = [one.replace(decoder=decoder) for one in settings]
    changed = 0
    for start in range(0, num, BATCH):
        rows = slice(start, start + BATCH)
        together = model.answers(documents[rows], settings[rows])
        for document, own, answer in zip(documents[rows], settings[rows], together, strict=True):
            [alone] = model.answers([document], [own])
            changed += [output.part for output in alone] != [output.part for output in answer]
    return changed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="model_cards/nano")
    parser.add_argument("--weights", action="append", help="by default float32, bfloat16 and int8")
    parser.add_argument("--decoder", default="plain")
    parser.add_argument("--rows", type=int, default=64)
    options = parser.parse_args(arguments)
    for weights in options.weights or ("float32", "bfloat16", "int8"):
        model = load(options.model, device="cpu", weights=weights)
        changed = count_changed(model, options.rows, options.decoder)
        print(f"{weights}: {changed} of {options.rows} answers of a batch differ from those alone", flush=True)


if __name__ == "__main__":
    main()
