"""Trains the motion codes of the video tokenizer on top of a finished image tokenizer.

    python recipes/train_video_tokenizer.py recipes/configs/video_tokenizer.yaml [--set loop.steps=200] [--dry-run]

Reads data/prepared/{clips.npz,concepts.json} and the image tokenizer; writes checkpoints and metrics under ``run`` and
the finished tokenizer to ``out``. The image tokenizer is frozen: its codes stay what they are.

Shapes: B batch, T frames, C clips.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from unimodal.config import MAY_CHANGE, Config
from unimodal.data.encoded_media import load_concepts
from unimodal.data.prepared_arrays import check_concepts, open_arrays
from unimodal.files import write_text_atomically
from unimodal.tokenizers.nano.image import ImageTokenizer
from unimodal.tokenizers.nano.video import VideoTokenizer, VideoTokenizerConfig
from unimodal.training.checkpoint import State
from unimodal.training.command import Flags, run_training
from unimodal.training.identity import describe_resume, describe_settings, hash_files
from unimodal.training.loop import Trainer
from unimodal.training.settings import LoopConfig


class VideoTokenizerRecipe(Config):
    data: Annotated[Path, MAY_CHANGE] = Path("data/prepared")
    image_tokenizer: Annotated[Path, MAY_CHANGE] = Path("data/models/image_tokenizer")
    run: Annotated[Path, MAY_CHANGE] = Path("data/runs/video_tokenizer")
    out: Annotated[Path, MAY_CHANGE] = Path("data/models/video_tokenizer")
    tokenizer: VideoTokenizerConfig = VideoTokenizerConfig()
    loop: LoopConfig = LoopConfig(
        steps=2000, learning_rate=1.2e-3, ema_decay=0.998, optimizer="muon", precision="bfloat16"
    )
    batch_size: int = 8


class Clips:
    """Clips in memory in four variants (as they are, mirrored, backwards, both), with the decoded first frame of
    each."""

    def __init__(self, folder: Path, num_frames: int, size: int):
        """num_frames, size: of a clip, and its pixels a side. Raises ValueError for arrays that it cannot train on."""
        path = folder / "clips.npz"
        expected = {"frames": ("u", ("C", num_frames, size, size, 3)), "concept": ("iu", ("C",))}
        data = open_arrays(path, "python tools/prepare_clips.py", expected)
        concepts = load_concepts(folder / "concepts.json")
        check_concepts(path, data["concept"], concepts)
        training = np.array([concept.split == "train" for concept in concepts])[data["concept"]]
        self.train_rows, self.heldout_rows = np.flatnonzero(training), np.flatnonzero(~training)
        frames = torch.from_numpy(data["frames"])  # uint8 [C, T, S, S, 3]
        both = torch.stack([frames, frames.flip(3)], dim=1)
        self.frames = torch.cat([both, both.flip(2)], dim=1)  # [C, 4, T, 64, 64, 3]

    def decode_first(self, image: ImageTokenizer) -> None:
        """Decodes the first frame of each clip from its codes: motion begins from that frame."""
        first = self.frames[:, :, 0].flatten(0, 1)  # [4C, S, S, 3]
        decoded = [image.decode(image.encode(_make_pictures(part))) for part in first.split(64)]
        self.first = (torch.cat(decoded) * 255).round().byte().unflatten(0, (-1, 4))  # [C, 4, 3, 64, 64]

    def make_batch(self, rows: Tensor, variants: Tensor) -> tuple[Tensor, Tensor]:
        """→ (clips [B, 3, T, 64, 64], decoded first frames [B, 3, 64, 64]) in [0, 1]."""
        return self.frames[rows, variants].permute(0, 4, 1, 2, 3).float() / 255, self.first[
            rows, variants
        ].float() / 255


def _make_pictures(frames: Tensor) -> Tensor:
    """uint8 [B, 64, 64, 3] → float [B, 3, 64, 64] in [0, 1]."""
    return frames.permute(0, 3, 1, 2).float() / 255


class RandomClips:
    """Endless random draws of a clip and a variant; the state of the generator says how far they are."""

    def __init__(self, rows: np.ndarray, batch_size: int, seed: int):
        self.rows, self.batch_size = torch.from_numpy(rows), batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        picks = torch.randint(len(self.rows), (self.batch_size,), generator=self.generator)
        return self.rows[picks], torch.randint(4, (self.batch_size,), generator=self.generator)

    def state_dict(self) -> State:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        self.generator.set_state(state["generator"])


def rebuild(model: VideoTokenizer, clips: Tensor, first: Tensor) -> Tensor:
    """Encodes and decodes chunk by chunk, with gradients: [B, 3, T, 64, 64] → [B, 3, T - 1, 64, 64]."""
    past, frames, per_chunk = first, [], model.config.frames_per_chunk
    for start in range(1, clips.shape[2], per_chunk):
        values, _ = model.chunk_values(past, clips[:, :, start : start + per_chunk])
        chunk = model.decode_chunk(past, values)
        frames.append(chunk)
        past = chunk[:, :, -1].clamp(0, 1)
    return torch.cat(frames, dim=2)


def measure_held_out_psnr(model: VideoTokenizer, clips: Clips) -> float:
    """Mean over held-out clips of the PSNR of all nine frames, in dB."""
    with torch.inference_mode():
        rows = torch.from_numpy(clips.heldout_rows)
        x, first = clips.make_batch(rows, torch.zeros_like(rows))
        y = torch.cat([first.unsqueeze(2), rebuild(model, x, first)], dim=2).clamp(0, 1)
        return float((-10 * (y - x).square().flatten(1).mean(1).clamp_min(1e-9).log10()).mean())


def run(cfg: VideoTokenizerRecipe, flags: Flags) -> None:
    torch.set_num_threads(cfg.loop.threads or torch.get_num_threads())
    image = ImageTokenizer.load(cfg.image_tokenizer)
    torch.manual_seed(cfg.loop.seed)
    model = VideoTokenizer(cfg.tokenizer.model_copy(update={"image_tokenizer_sha256": image.sha256}), image)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters", file=sys.stderr)
    clips = Clips(cfg.data, model.config.num_frames, image.config.image_size)
    print(f"{len(clips.train_rows)} clips, {len(clips.heldout_rows)} held out", file=sys.stderr)
    identity = describe_settings(cfg) | {
        "clips": hash_files([cfg.data / "clips.npz", cfg.data / "concepts.json"]),
        "image tokenizer": image.sha256[:16],
    }
    if flags.dry_run:
        return print(describe_resume(cfg.run, identity, flags.restart), file=sys.stderr)
    clips.decode_first(image)

    def loss(batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        x, first = clips.make_batch(*batch)
        error = (rebuild(model, x, first) - x[:, :, 1:]).square().flatten(1).mean(1)  # [B]
        psnr = -10 * error.detach().clamp_min(1e-9).log10().mean()
        return (error + 1e-4).sqrt().mean(), {"psnr": float(psnr)}

    def evaluate(record: dict[str, float]) -> None:
        if record["step"] % (cfg.loop.log_every * 5) == 0:
            print(f"held-out concepts: {measure_held_out_psnr(model, clips):.2f} dB", file=sys.stderr, flush=True)

    trainer = Trainer(
        model, RandomClips(clips.train_rows, cfg.batch_size, cfg.loop.seed), loss, cfg.loop, cfg.run, [evaluate],
        identity=identity, restart=flags.restart,
    )  # fmt: skip
    trainer.run()
    trainer.use_ema()
    model.round_to_half()
    print(f"held-out concepts, averaged weights: {measure_held_out_psnr(model, clips):.2f} dB", file=sys.stderr)
    model.save(cfg.out)
    digest = hashlib.sha256((cfg.data / "clips.npz").read_bytes()).hexdigest()
    record = {
        "config": cfg.model_dump(mode="json"),
        "data_sha256": {"clips.npz": digest},
        "weights_sha256": model.sha256,
    }
    write_text_atomically(cfg.out / "recipe.json", json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    run_training(VideoTokenizerRecipe, run)
