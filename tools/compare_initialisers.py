"""How new rows should begin: the loss of every initialiser before training and after some steps, on real codes.

    python tools/compare_initialisers.py --data tests/fixtures/quickstart/data.jsonl --steps 20
    python tools/compare_initialisers.py --base HuggingFaceTB/SmolLM2-135M-Instruct --donor model_cards/nano …

The same base, documents, batches and learning rate for all; only the new rows differ (and LoRA, with --rank above 0).
Prints a table to stdout: loss at step 0, after the steps, and on held-out documents, of media and of text.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from unimodal.data.datasets import DatasetConfig
from unimodal.model.base import SMOLLM2, load_base
from unimodal.model.build import build_model
from unimodal.model.initialisers import INITIALISERS
from unimodal.model.lora import LoraSettings
from unimodal.model.packed_loss import PackedLoss
from unimodal.pipeline_batches import Corpus, CorpusConfig, tensors_of
from unimodal.pipeline_tuning import block_features, described_rows, donor_rows, joint_template, open_media


def measure(module: PackedLoss, batches: list) -> dict[str, float]:
    """The losses by modality over some batches, `all` among them."""
    sums: dict[str, list[float]] = {}
    module.eval()
    with torch.no_grad():
        for batch in batches:
            _, found = module(*tensors_of(batch))
            for name, (total, count) in found["modalities"].items():
                for key in (name, "all"):
                    pair = sums.setdefault(key, [0.0, 0.0])
                    pair[0] += total
                    pair[1] += count
    return {name: total / count for name, (total, count) in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=SMOLLM2)
    parser.add_argument("--media", type=Path, default=Path("model_cards/nano"))
    parser.add_argument(
        "--donor", type=Path, help="a trained model with the same tokenizers; without it omp is left out"
    )
    parser.add_argument("--data", required=True, help="a dataset of any known format")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=512, help="tokens of a batch")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=8, help="of LoRA; 0 trains the rows alone")
    parser.add_argument("--only", nargs="*", choices=sorted(INITIALISERS), default=list(INITIALISERS))
    args = parser.parse_args()
    media = open_media(args.media)
    base = load_base(args.base)
    template = joint_template(base, media)
    cfg = CorpusConfig(
        datasets=(DatasetConfig(path=args.data),), length=args.tokens, tokens_per_batch=args.tokens,
        validation_share=0.1, condition_dropout=0.0, validation_batches=4,
    )  # fmt: skip
    corpus = Corpus(cfg, template, media, keep_codes=False)
    stream = corpus.batches()
    batches = [stream.next_batch() for _ in range(args.steps)]
    held_out = corpus.validation_batches()
    features, words = block_features(template.vocabulary, media), described_rows(template)
    donor = donor_rows(args.donor, template) if args.donor else None
    rows = [f"{'initialiser':<12} {'':>10} {'step 0':>8} {'after':>8} {'held out':>9}"]
    for name in args.only:
        if name == "omp" and donor is None:
            continue
        began = time.monotonic()
        model = build_model(
            load_base(args.base), template.vocabulary, LoraSettings(rank=args.rank) if args.rank else None,
            initialiser=name, features=features, words=words, donor=donor,
        )  # fmt: skip
        module = PackedLoss(model, template.vocabulary)
        before = measure(module, batches[:4])
        trained = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=0.0)
        module.train()
        for batch in batches:
            optimizer.zero_grad()
            total, found = module(*tensors_of(batch))
            (total / found["weight"]).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        after, outside = measure(module, batches[:4]), measure(module, held_out)
        for kind in before:
            shown = f"{outside[kind]:9.3f}" if kind in outside else f"{'-':>9}"
            rows.append(f"{name:<12} {kind:>10} {before[kind]:8.3f} {after[kind]:8.3f} {shown}")
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print("\n".join(rows))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
