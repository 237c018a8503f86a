"""Makes the released folder of smol from a tuned one: LoRA in half precision, new rows in 8 bits, the base by name.

    python recipes/assemble_smol.py [--set out=model_cards/smol]

Takes the adapter folder of `recipes/finetune_lora.py recipes/configs/smol.yaml`. The evaluation reads the result, so
the figures of the card are those of the rounded weights. The corpus's hashes are written beside the weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import torch

from unimodal.config import Config
from unimodal.files import write_text_atomically
from unimodal.model.adapter import load_adapter, save_adapter
from unimodal.model.adapter_files import read_adapter_record
from unimodal.training.command import run_recipe

COPIED = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "recipe.yaml",
    "image_tokenizer", "audio_tokenizer", "video_tokenizer", "processor_config.json",
)  # fmt: skip
MIB = 2**20


class AssembleSmol(Config):
    model: Path = Path("data/models/smol")
    run: Path = Path("data/runs/smol")
    corpus: Path = Path("data/prepared/smol")
    out: Path = Path("model_cards/smol")
    most_mib: int = 60
    sampling: dict[str, dict[str, float | int]] = {
        "text": {"temperature": 0.0},
        "image": {"temperature": 0.2, "top_k": 50},
        "audio": {"temperature": 0.2, "top_k": 50},
        "video": {"temperature": 0.2, "top_k": 50},
    }


def run(cfg: AssembleSmol, dry_run: bool) -> None:
    model, vocabulary = load_adapter(cfg.model)
    base = read_adapter_record(cfg.model).base
    if dry_run:
        return
    cfg.out.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        source, target = cfg.model / name, cfg.out / name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)
    generation = json.loads((cfg.model / "generation_config.json").read_text()) | {"unimodal": cfg.sampling}
    write_text_atomically(cfg.out / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    hashes = {
        f"{path.parent.parent.name}/{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(cfg.corpus.glob("*/*/ids.bin"))
    }
    trained = [json.loads(line) for line in (cfg.run / "metrics.jsonl").read_text().splitlines()]
    record = {
        "steps": trained[-1]["step"],
        "tokens": round(sum(r["tokens_per_second"] * r["seconds_per_step"] * n for r, n in _count_steps(trained))),
        "hours": round(sum(r["seconds_per_step"] * n for r, n in _count_steps(trained)) / 3600, 2),
        "last": trained[-1],
        "corpus_sha256": hashes,
    }
    write_text_atomically(cfg.out / "training.json", json.dumps(record, indent=2) + "\n")
    save_adapter(cfg.out, model, base, vocabulary, torch.float16, rows_in_8_bits=True)
    size = sum(path.stat().st_size for path in cfg.out.rglob("*") if path.is_file()) / MIB
    if size > cfg.most_mib:
        raise ValueError(f"{cfg.out} holds {size:.1f} MiB, more than the {cfg.most_mib} of a released model")
    print(f"wrote {cfg.out}, {size:.1f} MiB", file=sys.stderr)


def _count_steps(records: list[dict]) -> list[tuple[dict, int]]:
    """Pairs of a logged record and the number of steps that it covers."""
    before, found = 0, []
    for record in records:
        found.append((record, record["step"] - before))
        before = record["step"]
    return found


if __name__ == "__main__":
    run_recipe(AssembleSmol, run)
