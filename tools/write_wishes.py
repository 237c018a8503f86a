"""Writes wishes for pictures of the training concepts, for a recipe that learns from a model's own answers.

    python tools/write_wishes.py [--model model_cards/nano] [--concepts 700] [--out data/prepared/wishes.jsonl]

Of each concept, chosen by a seed, three: by name, in a style, and as "A picture of …". The answer of a row stands for
the medium alone (its codes are all 0), so `own_answers` has to be set: `recipes/configs/draft_nano.yaml`. Needs the
prepared concepts: python tools/fetch_data.py --set images, then python tools/prepare_images.py.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

from unimodal.data.sources import IN_STYLE, STYLE_WORDS
from unimodal.files import write_text_atomically
from unimodal.pipeline import load


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="model_cards/nano", help="whose wording and codes")
    parser.add_argument("--data", type=Path, default=Path("data/prepared"))
    parser.add_argument("--concepts", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("data/prepared/wishes.jsonl"))
    options = parser.parse_args(arguments)
    model = load(options.model, device="cpu")
    codes = [0] * model.vocabulary.get_layout("image").fixed_steps
    concepts = json.loads((options.data / "concepts.json").read_text("utf-8"))
    chance = random.Random(options.seed)
    labels = [concept["label"] for concept in concepts if concept["split"] == "train"]
    chance.shuffle(labels)
    rows = []
    for label in labels[: options.concepts]:
        wish = model.wording.phrase_request(label, "image")
        styled = wish + chance.choice(IN_STYLE).format(style=chance.choice(list(STYLE_WORDS.values())))
        for asked in (wish, styled, f"A picture of {label}."):
            answer = {"role": "assistant", "content": [{"type": "image", "codes": codes}]}
            rows.append({"messages": [{"role": "user", "content": asked}, answer]})
    chance.shuffle(rows)
    write_text_atomically(options.out, "".join(json.dumps(row) + "\n" for row in rows))
    print(f"wrote {options.out}: {len(rows)} wishes")


if __name__ == "__main__":
    main()
