"""How new rows should begin: the loss of every initialiser before training and after some steps, on real codes.

    python tools/compare_initialisers.py --donor model_cards/nano
    python tools/compare_initialisers.py --only codebook --sharing both --steps 150
    python tools/compare_initialisers.py --data my.jsonl

The same base, documents, batches and learning rate for all; only the new rows differ (and LoRA, with --rank above 0):
how they begin, and whether those of a block share what they learn (`unimodal.model.rows.share_rows`). Prints a table to
stdout: the loss at step 0, after the steps, and held out, of media and of text.

`--data` is a dataset of any known format, a tenth of which is held out, or the folder of tools/prepare_images.py: then
it is --pictures emoji in one style, each asked about and asked for in the words of the quickstart, and held out are
concepts that are not trained on. `--layers 8` keeps the base's first layers only: a smaller base where time is short.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from unimodal.corpus.corpus import Corpus, CorpusConfig
from unimodal.data.datasets import DatasetConfig
from unimodal.data.encoded_media import load_concepts
from unimodal.data.sources import add_article
from unimodal.model.base import SMOLLM2, LoadedBase, load_base
from unimodal.model.build import build_model
from unimodal.model.initialisers import INITIALISERS
from unimodal.model.lora import LoraSettings
from unimodal.objectives.packed import PackedLoss
from unimodal.tuning.loss import to_tensors
from unimodal.tuning.rows import collect_block_features, collect_shared_features, describe_controls, read_donor
from unimodal.tuning.vocabulary import make_joint_template, open_media

SHARING = {"off": (False,), "on": (True,), "both": (False, True)}


def measure(module: PackedLoss, batches: list) -> dict[str, float]:
    """The losses by modality over some batches, `all` among them."""
    sums: dict[str, list[float]] = {}
    module.eval()
    with torch.no_grad():
        for batch in batches:
            _, found = module(*to_tensors(batch))
            for name, (total, count) in found["modalities"].items():
                for key in (name, "all"):
                    pair = sums.setdefault(key, [0.0, 0.0])
                    pair[0] += total
                    pair[1] += count
    return {name: total / count for name, (total, count) in sums.items()}


def make_picture_rows(prepared: Path, folder: Path, count: int) -> dict[str, DatasetConfig]:
    """The pictures of one style as rows: `count` of the concepts of training, and all that are held out."""
    from PIL import Image

    concepts = load_concepts(prepared / "concepts.json")
    arrays = np.load(prepared / "images.npz")
    noto = np.flatnonzero(arrays["style"] == "noto")
    shown = dict(zip(arrays["concept"][noto].tolist(), arrays["pixels"][noto], strict=True))
    found = {}
    for split in ("train", "heldout"):
        ours = [concept for concept in concepts if concept.split == split and concept.id in shown]
        order = np.random.default_rng(0).permutation(len(ours))[: count if split == "train" else None]
        lines = []
        for concept in (ours[number] for number in order):
            Image.fromarray(shown[concept.id]).save(folder / f"{concept.id}.png")
            picture, what = {"type": "image", "path": f"{concept.id}.png"}, add_article(concept.label)
            asked = [picture, {"type": "text", "text": "What is this?"}]
            for user, assistant in ((asked, f"This is {what}."), (f"Draw {what}.", [picture])):
                messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
                lines.append(json.dumps({"messages": messages}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        found[split] = DatasetConfig(path=str(folder / f"{split}.jsonl"))
    return found


def shorten(base: LoadedBase, num_layers: int | None) -> LoadedBase:
    """The base with its first layers only."""
    if num_layers is not None:
        decoder = base.model.get_decoder()
        decoder.layers = decoder.layers[:num_layers]
        base.model.config.num_hidden_layers = len(decoder.layers)
    return base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=SMOLLM2)
    parser.add_argument("--layers", type=int, help="of the base; all by default")
    parser.add_argument("--media", type=Path, default=Path("model_cards/nano"))
    parser.add_argument(
        "--donor", type=Path, help="a trained model with the same tokenizers; without it omp is left out"
    )
    parser.add_argument("--data", type=Path, default=Path("data/prepared"))
    parser.add_argument("--pictures", type=int, default=200, help="of the prepared pictures")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=512, help="tokens of a batch")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=8, help="of LoRA; 0 trains the rows alone")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=sorted(INITIALISERS), default=list(INITIALISERS))
    parser.add_argument("--sharing", choices=tuple(SHARING), default="off", help="rows of a block that learn together")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


def compare(args: argparse.Namespace, folder: Path) -> None:
    media = open_media(args.media)
    template = make_joint_template(load_base(args.base), media)
    if (args.data / "images.npz").is_file():
        rows = make_picture_rows(args.data, folder, args.pictures)
        data = {"datasets": (rows["train"],), "validation": (rows["heldout"],)}
    else:
        data = {"datasets": (DatasetConfig(path=str(args.data)),), "validation_share": 0.1}
    cfg = CorpusConfig(
        **data, length=args.tokens, tokens_per_batch=args.tokens, condition_dropout=0.0, seed=args.seed,
        validation_batches=64,
    )  # fmt: skip
    corpus = Corpus(cfg, template, media, keep_codes=False)
    stream = corpus.make_batches()
    batches = [stream.next_batch() for _ in range(args.steps)]
    held_out = corpus.make_validation_batches()
    features, words = collect_block_features(template.vocabulary, media), describe_controls(template)
    donor = read_donor(args.donor, template) if args.donor else None
    table = [f"{'initialiser':<12} {'rows':>8} {'':>6} {'step 0':>8} {'after':>8} {'held out':>9}"]
    for name, shares in ((name, shares) for name in args.only for shares in SHARING[args.sharing]):
        if name == "omp" and donor is None:
            continue
        began = time.monotonic()
        model = build_model(
            shorten(load_base(args.base, args.precision), args.layers), template.vocabulary,
            LoraSettings(rank=args.rank) if args.rank else None, initialiser=name, features=features, words=words,
            donor=donor, shared=collect_shared_features(template.vocabulary, media) if shares else None, seed=args.seed,
        )  # fmt: skip
        module = PackedLoss(model, template.vocabulary)
        half = torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bfloat16")
        with half:
            before = measure(module, batches[:4])
        trained = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=0.0)
        module.train()
        for batch in batches:
            optimizer.zero_grad()
            with half:
                total, found = module(*to_tensors(batch))
            (total / found["weight"]).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        with half:
            after, outside = measure(module, batches[:4]), measure(module, held_out)
        for kind in before:
            shown = f"{outside[kind]:9.3f}" if kind in outside else f"{'-':>9}"
            how = "shared" if shares else "free"
            table.append(f"{name:<12} {how:>8} {kind:>6} {before[kind]:8.3f} {after[kind]:8.3f} {shown}")
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print("\n".join(table))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
