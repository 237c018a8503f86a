"""Teaches what comes next: latent motions of a clip, or a robot's actions, from a model's states at several frames.

    python recipes/train_motion.py recipes/configs/motion.yaml [--set past=0] [--dry-run]

``model`` is a model folder of ours that reads pictures as codes. ``rows`` is a file of JSON lines, each one sample, its
paths relative to the file:

    {"frames": ["0.png", "1.png", "2.png"], "steps": [[0.1, -0.3], [0.2, 0.0]], "text": "pick up the cup"}
    {"video": "clip.mp4"}                            # for a model whose video tokenizer writes motion, such as nano

The first has the frames that are seen, `past` + 1 of them, oldest first, and the T steps of A numbers that follow. The
second is a clip: its frames up to the newest one that a chunk follows, `stride` apart, and the motion vectors of that
chunk. The cross-frame decoder (CronusVLA, arXiv 2506.19816; `unimodal/model/motion_decoder.py`) learns the steps; with
``lora`` the model learns through it, too. Writes the model's folder, or an adapter on it, with
`motion_decoder.safetensors` to ``out``. Interrupt it when you like; the same command goes on, and with --restart it
begins anew.

At the end it says how far drawn steps are from those of held-out samples, beside the mean of those that were learnt.

Shapes: S samples, M past frames, T steps, A numbers of a step, D width of the model.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from unimodal.coder.media_coder import MediaCoder
from unimodal.config import MAY_CHANGE, Config, save_config
from unimodal.corpus.motion_frames import join_frames
from unimodal.model.adapter_files import is_adapter
from unimodal.model.attention import set_attention
from unimodal.model.lora import LoraSettings, add_lora, make_peft_config
from unimodal.model.motion_decoder import CrossFrameDecoder, MotionSettings
from unimodal.objectives.motion import MotionLoss
from unimodal.pipeline import Unimodal, load
from unimodal.sequence.document import Document, Image, Part, Text, Turn
from unimodal.sequence.packing import pack, stack
from unimodal.sequence.templates.own import Rendered
from unimodal.tokenizers.nano.video import VideoTokenizer
from unimodal.training.command import Flags, run_training
from unimodal.training.identity import hash_files, hash_weights
from unimodal.tuning.in_memory import InMemoryRecipe, train_in_memory
from unimodal.tuning.loss import read_values, to_tensors
from unimodal.tuning.save import save_tuned


class CrossFrameConfig(Config):
    """Of `MotionSettings`; steps and their width are those of the rows. draws: noises that a sample is learnt at."""

    hidden: int = 192
    layers: int = 4
    heads: int = 4
    parts: int = 4
    dropout: float = 0.1
    draws: int = 4


class MotionRecipe(InMemoryRecipe):
    model: Annotated[Path, MAY_CHANGE] = Path("model_cards/nano")
    rows: Path
    past: int = Field(default=2, ge=0)  # frames before the newest
    stride: int = Field(default=2, ge=1)  # of frames of a clip
    motion: CrossFrameConfig = CrossFrameConfig()
    lora: LoraSettings | None = None  # null: the model stays as it is
    length: int = Field(default=512, ge=8)
    out: Annotated[Path, MAY_CHANGE] = Path("data/models/motion")
    run: Annotated[Path, MAY_CHANGE] = Path("data/runs/motion")


def run(cfg: MotionRecipe, flags: Flags) -> None:
    parallel = cfg.begin({"model": cfg.model})
    model = load(cfg.model, device=str(parallel.device))
    if "image" not in model.vocabulary.media or model.vocabulary.get_layout("image").features is not None:
        raise ValueError(f"model: {cfg.model} does not read pictures as codes; name one that does, such as nano")
    if cfg.lora is not None and is_adapter(cfg.model):
        raise ValueError(f"lora: {cfg.model} is an adapter already; set lora=null, or export it and tune that")

    # the samples, each frame encoded once
    samples = read_samples(cfg, model)
    learnt, kept = cfg.split(samples, "samples")
    inputs = {
        "model weights": hash_weights(model.decoder), "rows": f"{len(samples):,} samples, {hash_files([cfg.rows])}"
    }  # fmt: skip

    # the model, and the decoder of what comes next
    decoder = model.decoder.requires_grad_(False)
    decoder.config.use_cache = False
    if cfg.lora is not None:
        add_lora(decoder, make_peft_config(decoder, cfg.lora, str(cfg.model)), cfg.loop.seed)
    set_attention(decoder)
    _, steps = samples[0]
    settings = MotionSettings.model_validate(
        {"past": cfg.past, "steps": len(steps), "width": steps.shape[1], **cfg.motion.model_dump(exclude={"draws"})}
    )
    torch.manual_seed(cfg.loop.seed)
    made = CrossFrameDecoder(settings, int(decoder.config.hidden_size)).to(parallel.device)
    module = MotionLoss(decoder, model.vocabulary, made, draws=cfg.motion.draws)
    pad = model.vocabulary.get_control_id("<|pad|>")
    items, held = ([join_frames(*one) for one in some] for some in (learnt, kept))

    def describe() -> str:
        weights = sum(p.numel() for p in module.parameters() if p.requires_grad)
        return (
            f"{len(items):,} samples of {cfg.past + 1} frames, each with {settings.steps} steps of {settings.width} "
            f"numbers; {len(held)} held out; {weights:,} weights learn"
        )

    trained = train_in_memory(cfg, flags, parallel, module, items, held, pad, inputs, describe)
    if trained and parallel.is_main:
        save_motion(cfg, model, made)
        print(f"wrote {cfg.out}", file=sys.stderr)
        report_steps(module.eval(), held, np.stack([steps for _, steps in learnt]).mean(0), cfg.length, pad)
    parallel.close()


def read_samples(cfg: MotionRecipe, model: Unimodal) -> list[tuple[list[Rendered], np.ndarray]]:
    """Of each row its rendered frames, M + 1 of them, and the steps float32 [T, A].

    Raises ValueError, with the line, for rows that are no samples, and for steps that are not all of one shape.
    """
    samples: list[tuple[list[Rendered], np.ndarray]] = []
    for number, line in enumerate(_read_lines(cfg.rows), start=1):
        place = f"{cfg.rows}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            raise ValueError(f"{place} is no JSON") from None
        if not isinstance(row, dict) or ("video" in row) == ("frames" in row):
            raise ValueError(f"{place} needs either frames and steps, or a video")
        if "video" in row:
            frames, steps = _read_clip(cfg, model.coder, cfg.rows.parent / str(row["video"]), place)
        else:
            frames = [model.coder.read(cfg.rows.parent / str(path), "image") for path in row["frames"]]
            steps = _read_steps(row.get("steps"), place)
        if len(frames) != cfg.past + 1:
            raise ValueError(f"{place} has {len(frames)} frames; with past={cfg.past} a sample is {cfg.past + 1}")
        if samples and steps.shape != samples[0][1].shape:
            raise ValueError(f"{place} has {list(steps.shape)} steps and the first row {list(samples[0][1].shape)}")
        words: list[Part] = [Text(str(row["text"]))] if row.get("text") else []
        pictures = [Image(codes=codes) for codes in model.coder.encode("image", frames)]
        documents = [Document([Turn("user", [picture, *words])]) for picture in pictures]
        rendered = [model.template.render(one, add_generation_prompt=True) for one in documents]
        if sum(map(len, rendered)) > cfg.length:
            raise ValueError(f"{place} has {sum(map(len, rendered))} tokens, and length is {cfg.length}; raise it")
        samples.append((rendered, steps))
    if not samples:
        raise ValueError(f"rows: {cfg.rows} has no samples")
    return samples


def _read_lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"rows: {path} cannot be read; name a file of JSON lines") from None


def _read_steps(given: object, place: str) -> np.ndarray:
    try:
        steps = np.asarray(given, dtype=np.float32)
    except (TypeError, ValueError):
        steps = np.zeros(0, dtype=np.float32)
    if steps.ndim != 2 or not steps.size or not np.isfinite(steps).all():
        raise ValueError(f"{place}: steps are no list of rows with as many finite numbers each")
    return steps


@torch.inference_mode()
def _read_clip(cfg: MotionRecipe, coder: MediaCoder, path: Path, place: str) -> tuple[list[Tensor], np.ndarray]:
    """The frames of a clip up to the newest one that a whole chunk follows, and that chunk's motion vectors [T, A]."""
    if "video" not in coder.vocabulary.media or not isinstance(coder.get_tokenizer("video"), VideoTokenizer):
        raise ValueError(f"{place} is a clip, and {cfg.model} has no video tokenizer of motion; give frames and steps")
    tokenizer = coder.get_tokenizer("video")
    assert isinstance(tokenizer, VideoTokenizer)
    clip, chunk = coder.read(path, "video"), tokenizer.config.frames_per_chunk  # [F, 3, S, S]
    newest = len(clip) - 1 - chunk
    seen = [newest - cfg.stride * back for back in reversed(range(cfg.past + 1))]
    if seen[0] < 0:
        raise ValueError(
            f"{place}: a clip of {len(clip)} frames has no {cfg.past + 1} frames that are {cfg.stride} apart before a "
            f"chunk of {chunk}; lower past or stride"
        )
    coming = clip[None, newest + 1 :].transpose(1, 2)  # [1, 3, chunk, S, S]
    values, _ = tokenizer.chunk_values(clip[None, newest], coming)
    return [clip[at] for at in seen], values[0].float().cpu().numpy()


def save_motion(cfg: MotionRecipe, model: Unimodal, made: CrossFrameDecoder) -> None:
    """The model's folder, or an adapter on it, with the motion decoder in it."""
    if cfg.lora is None:
        shutil.copytree(cfg.model, cfg.out, dirs_exist_ok=True)
    else:
        save_tuned(cfg.out, model.decoder, str(cfg.model), model.template, model.coder, cfg)
    made.save(cfg.out)
    save_config(cfg, cfg.out / "motion.yaml")


@torch.no_grad()
def report_steps(module: MotionLoss, held: Sequence[Rendered], mean: np.ndarray, length: int, pad: int) -> None:
    """Print the mean squared error of drawn steps on held-out samples, beside that of the mean step."""
    if not held:
        return
    errors: dict[str, list[float]] = {"drawn": [], "mean of 8 drawn": [], "mean": []}
    device = module.decoder.absent.device
    for number, item in enumerate(held):
        batch = stack(pack([item], length, pad))
        ids, _, positions = to_tensors(batch, device)
        features, steps = module.collect(ids, positions, None, read_values(batch, device)["values"])
        noise = torch.randn(8, *steps.shape[1:], generator=torch.Generator().manual_seed(number)).to(device)
        drawn = module.decoder.draw(features.expand(8, -1, -1), noise, guidance=1.0)
        for name, found in (("drawn", drawn[:1]), ("mean of 8 drawn", drawn.mean(0)[None])):
            errors[name].append(float((found - steps).square().mean()))
        errors["mean"].append(float((torch.from_numpy(mean).to(device) - steps).square().mean()))
    told = ", ".join(f"{np.mean(found):.4f} {name}" for name, found in errors.items())
    print(f"{len(held)} held-out samples: mean squared error of a step {told}")


if __name__ == "__main__":
    run_training(MotionRecipe, run)
