"""Whether the meaning codes of a picture tokenizer name things, also such as it never saw, in a style it never saw.

    python tools/measure_naming.py data/models/picture_tokenizer [--prepared data/prepared] [--out naming.json]

From the codes of one block alone, as the values that they stand for (`code_features`), compared by cosine:

- seen: the nearest of the training concepts (the mean of its training pictures) to each of their pictures in the style
  that is never trained on.
- one look: for each pair of styles, a held-out concept's picture in the one is looked for among the pictures of *all*
  concepts in the other, its own and only one of them; nothing was fitted on it in either.

Shares with 95% intervals (Wilson's, of concepts: one is asked for in several styles). Every picture is encoded, which
takes some minutes.

Shapes: M pictures, S codes, K dimensions of a code, Q queries, G of a gallery.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from unimodal.data.encoded_media import TRAINING_STYLES, load_concepts  # noqa: E402
from unimodal.evaluation.shares import count_independent, find_interval  # noqa: E402
from unimodal.files import write_json  # noqa: E402
from unimodal.tokenizers import MediaTokenizer, load_tokenizer  # noqa: E402

AT_ONCE = 64


@dataclass(frozen=True)
class Pictures:
    """pixels: uint8 [M, 64, 64, 3]; concept: int64 [M]; style: str [M]; held_out: bool [M], of concepts that are never
    trained on."""

    pixels: np.ndarray
    concept: np.ndarray
    style: np.ndarray
    held_out: np.ndarray


def read_pictures(prepared: Path) -> Pictures:
    """What `tools/prepare_images.py` wrote."""
    concepts = load_concepts(prepared / "concepts.json")
    held_out = np.array([concept.split != "train" for concept in concepts])
    with np.load(prepared / "images.npz") as arrays:
        concept = arrays["concept"].astype(np.int64)
        return Pictures(arrays["pixels"], concept, arrays["style"], held_out[concept])


def describe_pictures(tokenizer: MediaTokenizer, pixels: np.ndarray, block: str) -> Tensor:
    """The values of a block's codes, one unit vector a picture: [M, S · K]. ValueError for a block without values."""
    names = [name for name, _ in tokenizer.segments]
    values = tokenizer.code_features(block) if block in names else None
    if values is None:
        raise ValueError(f"the tokenizer has no block {block!r} whose codes have values; it has {', '.join(names)}")
    first = sum(count or 0 for _, count in tokenizer.segments[: names.index(block)])
    count = dict(tokenizer.segments)[block] or 0
    made = []
    for start in range(0, len(pixels), AT_ONCE):
        x = torch.from_numpy(pixels[start : start + AT_ONCE]).permute(0, 3, 1, 2).float() / 255
        made.append(values[tokenizer.encode(x).ids[:, first : first + count, 0]].flatten(1))
        print(f"{start + len(x)} of {len(pixels)} pictures", end="\r", file=sys.stderr, flush=True)
    return normalize(torch.cat(made), dim=-1)


def describe_share(right: Tensor, concepts: np.ndarray) -> dict[str, object]:
    """right: bool [Q]; concepts: int [Q], of the queries, which are alike where they show one."""
    share = float(right.float().mean())
    low, high = find_interval(share, count_independent(right.tolist(), concepts.tolist()))
    return {"share": round(share, 4), "n": len(right), "interval_95": [round(low, 4), round(high, 4)]}


def name_seen(vectors: Tensor, pictures: Pictures, style: str) -> tuple[Tensor, np.ndarray]:
    """Whether the nearest concept of each picture in that style is its own, bool [Q], of concepts that were trained on;
    and these concepts, int [Q]."""
    known = ~pictures.held_out
    trained = known & np.isin(pictures.style, TRAINING_STYLES)
    labels = np.unique(pictures.concept[trained])
    sums = torch.zeros(int(pictures.concept.max()) + 1, vectors.shape[1])
    sums.index_add_(0, torch.from_numpy(pictures.concept[trained]), vectors[torch.from_numpy(trained)])
    asked = known & (pictures.style == style) & np.isin(pictures.concept, labels)
    nearest = (vectors[torch.from_numpy(asked)] @ normalize(sums[labels], dim=-1).T).argmax(1)
    return torch.from_numpy(labels[nearest.numpy()] == pictures.concept[asked]), pictures.concept[asked]


def find_again(vectors: Tensor, pictures: Pictures, seen: str, asked: str) -> tuple[Tensor, np.ndarray]:
    """Whether each held-out picture in the style `asked` has its own concept's picture in the style `seen` nearest,
    bool [Q]; and their concepts, int [Q]."""
    gallery = pictures.style == seen
    wanted = pictures.held_out & (pictures.style == asked) & np.isin(pictures.concept, pictures.concept[gallery])
    nearest = (vectors[torch.from_numpy(wanted)] @ vectors[torch.from_numpy(gallery)].T).argmax(1)
    return torch.from_numpy(pictures.concept[gallery][nearest.numpy()] == pictures.concept[wanted]), (
        pictures.concept[wanted]
    )


def measure_naming(vectors: Tensor, pictures: Pictures) -> dict[str, object]:
    """All shares. vectors: [M, D], of length 1."""
    styles = sorted(set(pictures.style.tolist()))
    new = [style for style in styles if style not in TRAINING_STYLES]
    pairs = {f"{a} → {b}": find_again(vectors, pictures, a, b) for a, b in permutations(styles, 2)}
    both = torch.cat([right for right, _ in pairs.values()]), np.concatenate([of for _, of in pairs.values()])
    return {
        "seen": {style: describe_share(*name_seen(vectors, pictures, style)) for style in new},
        "one_look": {name: describe_share(*pair) for name, pair in pairs.items() if len(pair[0])},
        "one_look_all": describe_share(*both),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tokenizer", type=Path, help="its folder")
    parser.add_argument("--prepared", type=Path, default=Path("data/prepared"), help="what prepare_images.py wrote")
    parser.add_argument("--block", default="semantic", help="whose codes are compared")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args(arguments)
    try:
        pictures, tokenizer = read_pictures(options.prepared), load_tokenizer(options.tokenizer)
        report = measure_naming(describe_pictures(tokenizer, pictures.pixels, options.block), pictures)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    print(f"\nseen, in a style that is never trained on: {report['seen']}")
    print(f"held out, after one look in another style: {report['one_look_all']}")
    if options.out is not None:
        write_json(options.out, {"tokenizer": str(options.tokenizer), "sha256": tokenizer.sha256, **report})


if __name__ == "__main__":
    main()
