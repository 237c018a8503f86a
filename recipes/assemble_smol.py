"""Makes the released folder of smol from a tuned one: LoRA in half precision, new rows in 8 bits, the base by name.

    python recipes/assemble_smol.py [recipes/configs/assemble_smol2.yaml] [--set out=model_cards/smol]

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
from torch import Tensor

from unimodal.config import Config
from unimodal.files import write_text_atomically
from unimodal.model.adapter import load_adapter, save_adapter
from unimodal.model.adapter_files import read_adapter_record
from unimodal.model.few_levels import round_weights
from unimodal.model.lora import ADAPTER, find_lora_layers
from unimodal.model.structured_rows import encode_levels
from unimodal.tokenizers.parts.quantizers import list_levels
from unimodal.training.command import run_recipe
from unimodal.tuning.vocabulary import open_media
from unimodal.vocabulary import Vocabulary

COPIED = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "recipe.yaml",
    "image_tokenizer", "audio_tokenizer", "video_tokenizer", "processor_config.json",
)  # fmt: skip
MIB = 2**20


class AssembleSmol(Config):
    model: Path = Path("data/models/smol")
    run: Path = Path("data/runs/smol")
    earlier: tuple[Path, ...] = ()  # the runs of the parts before it, from whose adapters it began
    corpus: Path = Path("data/prepared/smol")
    out: Path = Path("model_cards/smol")
    most_mib: int = 60
    #: levels of the stored weights on either side of 0: of LoRA (0 keeps half precision), and of the new rows
    lora_levels: int = 0
    row_levels: int = 127
    #: store apart what the levels of a code explain of its row (unimodal/model/few_levels.py)
    structured: bool = False
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
    trained = [_read_metrics(folder) for folder in (*cfg.earlier, cfg.run)]
    pairs = [pair for part in trained for pair in _count_steps(part)]
    record = {
        "steps": sum(part[-1]["step"] for part in trained),
        "parts": [part[-1]["step"] for part in trained],
        "tokens": round(sum(r["tokens_per_second"] * r["seconds_per_step"] * n for r, n in pairs)),
        "hours": round(sum(r["seconds_per_step"] * n for r, n in pairs) / 3600, 2),
        "last": trained[-1][-1],
        "corpus_sha256": hashes,
    }
    write_text_atomically(cfg.out / "training.json", json.dumps(record, indent=2) + "\n")
    if cfg.lora_levels:
        with torch.no_grad():
            for layer in find_lora_layers(model).values():
                for part in (layer.lora_A, layer.lora_B):
                    weight = part[ADAPTER].weight
                    weight.copy_(round_weights(weight, cfg.lora_levels))
    features = collect_level_features(vocabulary, cfg.model) if cfg.structured else None
    save_adapter(cfg.out, model, base, vocabulary, torch.float16, row_levels=cfg.row_levels, features=features)
    size = sum(path.stat().st_size for path in cfg.out.rglob("*") if path.is_file()) / MIB
    if size > cfg.most_mib:
        raise ValueError(f"{cfg.out} holds {size:.1f} MiB, more than the {cfg.most_mib} of a released model")
    print(f"wrote {cfg.out}, {size:.1f} MiB", file=sys.stderr)


def collect_level_features(vocabulary: Vocabulary, folder: Path) -> Tensor:
    """The levels of every code of a scalar quantizer, one-hot, [R, F]: zero for rows of anything else."""
    media = open_media(folder)
    assert media is not None
    blocks = {
        block.rows: encode_levels(list_levels(levels), levels).to(torch.int8)
        for block in vocabulary.blocks
        if (levels := media.get_tokenizer(block.modality).code_levels.get(block.name)) is not None
    }
    first, width = vocabulary.text_size, sum(part.shape[1] for part in blocks.values())
    found, at = torch.zeros(vocabulary.size - first, width, dtype=torch.int8), 0
    for rows, part in blocks.items():
        found[rows.start - first : rows.stop - first, at : at + part.shape[1]] = part
        at += part.shape[1]
    return found


def _read_metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _count_steps(records: list[dict]) -> list[tuple[dict, int]]:
    """Pairs of a logged record and the number of steps that it covers."""
    before, found = 0, []
    for record in records:
        found.append((record, record["step"] - before))
        before = record["step"]
    return found


if __name__ == "__main__":
    run_recipe(AssembleSmol, run)
