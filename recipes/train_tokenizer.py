"""Trains a tokenizer of any family that has a loss of its own (`training_loss`) on a folder of media files.

    python recipes/train_tokenizer.py --set family=my_family --set media=photos --set out=data/models/my_tokenizer
    UNIMODAL_PLUGINS=my_tokenizer.py python recipes/train_tokenizer.py my_tokenizer.yaml [--dry-run]

The family is one of `unimodal tokenizers list`; ``tokenizer`` holds the settings of its config that differ from the
defaults. Every file of the family's medium in ``media`` and the folders below is used; one in ``one_held_out_of`` is
held out, by its name. Of sounds that are longer than ``crop_s`` a random piece is taken. Writes checkpoints and metrics
to ``run`` and the finished tokenizer to ``out``. Interrupt it when you like; the same command goes on, and with
--restart it begins anew.

At the end it prints what is held out: the error of what is decoded, and how much of each codebook is used.

Shapes: B batch, C channels, N positions, G groups.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, JsonValue, ValidationError
from torch import Tensor

from unimodal.coder.batches import group_by_size, read_medium, stack_media
from unimodal.config import MAY_CHANGE, Config
from unimodal.files import describe_error, write_json
from unimodal.media.registry import find_medium
from unimodal.tokenizers import Codes, MediaTokenizer, find_family_class
from unimodal.training.command import Flags, run_training
from unimodal.training.identity import describe_settings
from unimodal.training.loop import Trainer
from unimodal.training.settings import LoopConfig

Batch = tuple[Tensor, Tensor | None]  # media [B, C, …], and the true lengths of padded ones


class TokenizerRecipe(Config):
    family: str
    media: Annotated[Path, MAY_CHANGE]  # a folder of files
    tokenizer: dict[str, JsonValue] = {}  # settings of the family's config
    run: Annotated[Path, MAY_CHANGE] = Path("data/runs/tokenizer")
    out: Annotated[Path, MAY_CHANGE] = Path("data/models/tokenizer")
    batch_size: int = Field(16, ge=1)
    crop_s: float = Field(2.0, gt=0)
    one_held_out_of: int = Field(10, ge=2)
    loop: LoopConfig = LoopConfig(steps=2000, learning_rate=1e-3, log_every=50)


def make_tokenizer(cfg: TokenizerRecipe) -> MediaTokenizer:
    """A new tokenizer of the family. Raises ValueError for a family without codes and for settings it does not have."""
    kind = find_family_class(cfg.family)
    if not issubclass(kind, MediaTokenizer) or kind.continues is not None:
        raise ValueError(f"{cfg.family} is no tokenizer that stands alone; see its own recipe")
    try:
        config = kind.config_class.model_validate({"family": cfg.family, **cfg.tokenizer})
    except ValidationError as error:
        raise ValueError(f"tokenizer: {describe_error(error)}; `unimodal tokenizers show {cfg.family}`") from None
    torch.manual_seed(cfg.loop.seed)
    return kind(config)


class MediaFiles:
    """The files of one medium below a folder, read as the tokenizer takes them."""

    def __init__(self, cfg: TokenizerRecipe, tokenizer: MediaTokenizer):
        self.tokenizer, self.medium = tokenizer, find_medium(tokenizer.modality)
        found = (path for path in cfg.media.rglob("*") if path.suffix.lower() in self.medium.suffixes)
        self.paths = sorted(path for path in found if path.is_file())
        held_out = [self._hash(path.relative_to(cfg.media)) % cfg.one_held_out_of == 0 for path in self.paths]
        self.train = [path for path, held in zip(self.paths, held_out, strict=True) if not held]
        self.held_out = [path for path, held in zip(self.paths, held_out, strict=True) if held] or self.train[:1]
        if not self.train:
            raise ValueError(f"{cfg.media} has too few {self.medium.noun} files; name a folder with more of them")

    @staticmethod
    def _hash(path: Path) -> int:
        return int.from_bytes(hashlib.sha256(path.as_posix().encode()).digest()[:4])

    def read(self, path: Path) -> Tensor:
        """One file as a medium, without a batch."""
        return read_medium(path, self.tokenizer)

    def hash_contents(self) -> str:
        """One hash of the contents of all files."""
        digest = hashlib.sha256()
        for path in self.paths:
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


class RandomMedia:
    """Endless random batches of training files; the generator's state is the cursor."""

    def __init__(self, cfg: TokenizerRecipe, files: MediaFiles):
        self.cfg, self.files = cfg, files
        self.generator = torch.Generator().manual_seed(cfg.loop.seed)

    def next_batch(self) -> Batch:
        drawn = torch.randint(len(self.files.train), (self.cfg.batch_size,), generator=self.generator).tolist()
        items = [self._crop(self.files.read(self.files.train[number])) for number in drawn]
        groups = group_by_size(self.files.medium, items)
        return stack_media(self.files.medium, [items[number] for number in max(groups, key=len)])

    def _crop(self, medium: Tensor) -> Tensor:
        """A random piece of a padded medium that is longer than `crop_s`."""
        rate, time = self.files.tokenizer.rate, self.files.medium.axes.find("t")
        if not self.files.medium.padded or rate is None:
            return medium
        length = min(medium.shape[time], round(self.cfg.crop_s * rate))
        first = int(torch.randint(medium.shape[time] - length + 1, (), generator=self.generator))
        return medium.narrow(time, first, length)

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])


# ---- what is held out


def encode_held_out(files: MediaFiles, batch_size: int) -> Iterator[tuple[Batch, Codes]]:
    """The held-out media in batches, with their codes."""
    for start in range(0, len(files.held_out), batch_size):
        items = [files.read(path) for path in files.held_out[start : start + batch_size]]
        for group in group_by_size(files.medium, items):
            batch = stack_media(files.medium, [items[number] for number in group])
            yield batch, files.tokenizer.encode(*batch)


def measure(files: MediaFiles, batch_size: int) -> dict[str, float]:
    """Mean squared error of decoded media where they are real, and of each codebook the share of its values that is
    used and the perplexity, over everything that is held out."""
    tokenizer = files.tokenizer
    errors: list[Tensor] = []
    counts: dict[str, Tensor] = {}
    for (x, lengths), codes in encode_held_out(files, batch_size):
        for name, ids in split_blocks(tokenizer, codes):
            size = tokenizer.group_sizes(name.split(".")[0])[int(name.partition(".")[2] or 0)]
            counts[name] = counts.get(name, torch.zeros(size)) + torch.bincount(ids, minlength=size)
        if tokenizer.can_decode and not tokenizer.decode_conditions:
            decoded = tokenizer.decode(codes)
            for row in range(len(x)):
                end = x.shape[2] if lengths is None else int(lengths[row])
                wanted = x[row, :, :end]
                errors.append((decoded[row, :, : wanted.shape[1]] - wanted).square().mean())
    report = {} if not errors else {"mean_squared_error": float(torch.stack(errors).mean())}
    for name, count in counts.items():
        share = count[count > 0] / count.sum()
        report[f"used_{name}"] = len(share) / len(count)
        report[f"perplexity_{name}"] = math.exp(-float((share * share.log()).sum()))
    return report


def split_blocks(tokenizer: MediaTokenizer, codes: Codes) -> Iterator[tuple[str, Tensor]]:
    """The real ids of each block's group, `audio` and `audio.1`, int64 [n]."""
    fixed = sum(count or 0 for _, count in tokenizer.segments)
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for row in range(len(codes)):
        ids, at = codes.row(row), 0
        for name, count in tokenizer.segments:
            end = at + (len(ids) - fixed if count is None else count)
            for group in range(ids.shape[1]):
                parts[name if group == 0 else f"{name}.{group}"].append(ids[at:end, group])
            at = end
    yield from ((name, torch.cat(found).cpu()) for name, found in parts.items())


def print_table(report: dict[str, float]) -> None:
    width = max(map(len, report))
    for name, value in report.items():
        print(f"{name.ljust(width)}  {value:.6g}")


def show_plan(cfg: TokenizerRecipe, files: MediaFiles, tokenizer: MediaTokenizer, first: Batch) -> None:
    trained = sum(p.numel() for p in tokenizer.parameters() if p.requires_grad)
    blocks: Sequence[str] = [f"{count or 'any number'} × {name}" for name, count in tokenizer.segments]
    print(f"{cfg.family}: {tokenizer.modality}, {trained:,} trained parameters, codes {', '.join(blocks)}")
    print(f"{cfg.media}: {len(files.train)} files to train on, {len(files.held_out)} held out")
    loss, numbers = tokenizer.training_loss(*first)
    print(f"a batch: {list(first[0].shape)}, loss {float(loss.detach()):.4g} {numbers}")


def run(cfg: TokenizerRecipe, flags: Flags) -> None:
    if cfg.loop.threads:
        torch.set_num_threads(cfg.loop.threads)
    tokenizer = make_tokenizer(cfg)
    files = MediaFiles(cfg, tokenizer)
    if flags.dry_run:
        return show_plan(cfg, files, tokenizer, RandomMedia(cfg, files).next_batch())

    def loss(batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        return tokenizer.training_loss(*batch)

    data = files.hash_contents()
    identity = describe_settings(cfg) | {"media files": f"{len(files.paths):,}, {data[:16]}"}
    batches = RandomMedia(cfg, files)
    trainer = Trainer(tokenizer.train(), batches, loss, cfg.loop, cfg.run, identity=identity, restart=flags.restart)
    trainer.run()
    trainer.use_ema()
    tokenizer.round_to_half().eval()
    report = measure(files, cfg.batch_size)
    tokenizer.save(cfg.out)
    record = {
        "config": cfg.model_dump(mode="json"),
        "data_sha256": data,
        "weights_sha256": tokenizer.sha256,
        "held_out": report,
    }
    write_json(cfg.out / "recipe.json", record)
    print_table(report)
    print(f"wrote {cfg.out}", file=sys.stderr)


if __name__ == "__main__":
    run_training(TokenizerRecipe, run)
