"""Encodes the prepared pictures, clips, scenes, utterances and sounds with finished tokenizers, once, for nano.

    python recipes/encode_media.py [--set data=data/prepared] [--set tokenizers.image=FOLDER]

Writes in the folder of the data, of what it finds there: image_codes.npz (codes int32 [M, V, N]: every view of every
picture), clip_codes.npz ([C, 2, N]: each clip and its mirror image), scenes/scene_codes.npz and scenes/move_codes.npz
([M, N]), speech/codes.npz and sounds/codes.npz (codes [ΣN] with offsets int64 [U + 1]), with a last axis G where a
tokenizer has several groups. Each file holds the hash of the tokenizer that made it and that of the media; what is done
already is left. Finished parts are kept, so that an interrupted run goes on where it was.

Shapes: M pictures, V views, S pixels a side, C clips, U utterances or sounds, N codes of one, G groups.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unimodal.config import Config
from unimodal.data.named_sounds import read_sounds
from unimodal.data.prepared_arrays import hash_file, open_arrays, open_views
from unimodal.evaluation.prepared import Speech
from unimodal.model_folder.layout import locate_tokenizer
from unimodal.tokenizers import MediaTokenizer
from unimodal.tokenizers.registry import find_continued_medium, load_tokenizer
from unimodal.training.command import run_recipe

PART = 2048  # items of a part that is kept when the run is interrupted
PICTURE_SIDE, SAMPLE_RATE_HZ = 64, 16_000


class EncodeRecipe(Config):
    data: Path = Path("data/prepared")
    models: Path = Path("data/models")
    #: medium → folder of its tokenizer, where it is not `models`/MEDIUM_tokenizer
    tokenizers: dict[str, Path] = {}
    batch_size: int = 128
    images: bool = True
    clips: bool = True
    speech: bool = True
    scenes: bool = True
    sounds: bool = True
    threads: int = 0


@dataclass(frozen=True)
class Job:
    """One file of codes. encode: numbers of items → the codes of each. stacked: all of one length."""

    out: Path
    media: Path
    count: int
    tokenizer: MediaTokenizer
    encode: Callable[[range], list[np.ndarray]]
    views: int = 0  # of each item; 0: none, 1 and more: an axis of its own
    stacked: bool = True


def save(path: Path, **arrays: np.ndarray) -> None:
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    os.replace(part, path)


def list_rows(tokenizer: MediaTokenizer, x: Tensor, lengths: Tensor | None = None) -> list[np.ndarray]:
    """The codes of each item of a batch, int32 [N], or [N, G] of several groups."""
    codes = tokenizer.encode(x, lengths)
    rows = [codes.row(index).numpy().astype(np.int32) for index in range(len(x))]
    return [row[:, 0] if row.shape[1] == 1 else row for row in rows]


def fit_pictures(tokenizer: MediaTokenizer, pixels: np.ndarray) -> Tensor:
    """Pictures uint8 [B, S, S, 3] → what the tokenizer takes of them, float [B, 3, h, w]."""
    x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    if tokenizer.picture_size in (None, tuple(x.shape[-2:])):
        return x.float() / 255
    return torch.stack([tokenizer.fit(picture) for picture in x])


def encode_all(job: Job) -> None:
    """Encodes in parts, kept beside the file under the hashes of the media and the tokenizer, and joins them.

    Raises ValueError for pictures and clips that become different numbers of codes."""
    source = hash_file(job.media)
    if job.out.is_file():
        with np.load(job.out) as stored:
            have = {name: str(stored[name]) for name in ("sha256", "source_sha256") if name in stored.files}
        if have == {"sha256": job.tokenizer.sha256, "source_sha256": source}:
            print(f"{job.out} is there already", file=sys.stderr)
            return
    parts = job.out.parent / f".{job.out.stem}-{job.tokenizer.sha256[:12]}-{source[:12]}"
    parts.mkdir(parents=True, exist_ok=True)
    counts: set[int] = set()
    for first in range(0, job.count, PART):
        path = parts / f"{first:08}.npz"
        if not path.is_file():
            rows = job.encode(range(first, min(first + PART, job.count)))
            counts |= {len(row) for row in rows}
            if job.stacked and len(counts) > 1:
                raise ValueError(f"{job.media} becomes {min(counts)} to {max(counts)} codes an item; "
                                 "take a tokenizer that makes as many of each")  # fmt: skip
            save(path, codes=np.concatenate(rows), lengths=np.array([len(row) for row in rows]))
            print(f"{job.out.name}: {min(first + PART, job.count)} of {job.count}", file=sys.stderr, flush=True)
    found = [np.load(path) for path in sorted(parts.glob("*.npz"))]
    codes, lengths = (np.concatenate([part[name] for part in found]) for name in ("codes", "lengths"))
    hashes = {"sha256": np.array(job.tokenizer.sha256), "source_sha256": np.array(source)}
    if job.stacked:
        assert len(np.unique(lengths)) == 1
        views = (job.views,) if job.views else ()
        save(job.out, codes=codes.reshape(job.count // (job.views or 1), *views, -1, *codes.shape[1:]), **hashes)
    else:
        save(job.out, codes=codes, offsets=np.concatenate([[0], np.cumsum(lengths)]), **hashes)
    print(f"wrote {job.out}: {len(codes)} codes, {len(np.unique(codes))} values used", file=sys.stderr)
    shutil.rmtree(parts)


def plan_pictures(cfg: EncodeRecipe, image: MediaTokenizer) -> Job:
    pixels = open_views(cfg.data, PICTURE_SIDE)["pixels"]  # [M, V, S, S, 3]
    flat = pixels.reshape(-1, *pixels.shape[2:])

    def encode(items: range) -> list[np.ndarray]:
        return encode_pictures(cfg, image, flat[items.start : items.stop])

    return Job(cfg.data / "image_codes.npz", cfg.data / "views.npz", len(flat), image, encode, views=pixels.shape[1])


def encode_pictures(cfg: EncodeRecipe, image: MediaTokenizer, pixels: np.ndarray) -> list[np.ndarray]:
    """Pictures uint8 [B, S, S, 3] → the codes of each."""
    starts = range(0, len(pixels), cfg.batch_size)
    batches = (pixels[start : start + cfg.batch_size] for start in starts)
    return [row for batch in batches for row in list_rows(image, fit_pictures(image, batch))]


def plan_scenes(cfg: EncodeRecipe, image: MediaTokenizer) -> Job:
    path = cfg.data / "scenes" / "scenes.npz"
    shape = {"pixels": ("u", ("M", PICTURE_SIDE, PICTURE_SIDE, 3))}
    pixels = open_arrays(path, "python tools/prepare_scenes.py", shape)["pixels"]

    def encode(items: range) -> list[np.ndarray]:
        return encode_pictures(cfg, image, pixels[items.start : items.stop])

    return Job(path.with_name("scene_codes.npz"), path, len(pixels), image, encode)


def plan_clips(media: Path, out: Path, command: str, video: MediaTokenizer, mirrored: bool) -> Job:
    """Clips of an array `frames` uint8 [C, T, S, S, 3]; mirrored: each is followed by its mirror image."""
    shape = {"frames": ("u", ("C", "T", PICTURE_SIDE, PICTURE_SIDE, 3))}
    frames = open_arrays(media, command, shape)["frames"]
    views = 2 if mirrored else 1

    def encode(items: range) -> list[np.ndarray]:
        rows = []
        for start in range(items.start, items.stop, 32):
            numbers = range(start, min(start + 32, items.stop))
            some = [frames[n // views, :, :, ::-1] if n % views else frames[n // views] for n in numbers]
            x = torch.from_numpy(np.stack(some)).permute(0, 4, 1, 2, 3).float() / 255
            rows += list_rows(video, x)
        return rows

    return Job(out, media, len(frames) * views, video, encode, views=2 if mirrored else 0)


def plan_sounds(out: Path, media: Path, audio: MediaTokenizer, waves: Sequence[Callable[[], Tensor]]) -> Job:
    """Sounds of 16 kHz, each read when it is asked for. Those of a part are encoded in order of their lengths."""
    if audio.sample_rate_hz != SAMPLE_RATE_HZ:
        raise ValueError(
            f"the sounds have {SAMPLE_RATE_HZ} samples a second; the tokenizer takes {audio.sample_rate_hz}"
        )

    def encode(items: range, at_once: int = 32) -> list[np.ndarray]:
        found: dict[int, np.ndarray] = {}
        heard = {item: waves[item]() for item in items}
        order = sorted(items, key=lambda item: len(heard[item]))
        for first in range(0, len(order), at_once):
            some = order[first : first + at_once]
            lengths = torch.tensor([len(heard[item]) for item in some])
            x = torch.nn.utils.rnn.pad_sequence([heard[item] for item in some], batch_first=True)[:, None]
            found |= dict(zip(some, list_rows(audio, x, lengths), strict=True))
        return [found[item] for item in items]

    return Job(out, media, len(waves), audio, encode, stacked=False)


def plan_speech(cfg: EncodeRecipe, audio: MediaTokenizer) -> Job:
    speech, folder = Speech.load(cfg.data), cfg.data / "speech"
    waves = [lambda item=item: speech.take(item) for item in speech.utterances]
    return plan_sounds(folder / "codes.npz", folder / "audio.int16", audio, waves)


def plan_named_sounds(cfg: EncodeRecipe, audio: MediaTokenizer) -> Job:
    folder = cfg.data / "sounds"
    samples = np.memmap(folder / "audio.int16", np.int16, "r")

    def take(start: int, count: int) -> Tensor:
        return torch.from_numpy(np.array(samples[start : start + count])).float() / 32768

    waves = [lambda one=one: take(one.start, one.num_samples) for one in read_sounds(folder)]
    return plan_sounds(folder / "codes.npz", folder / "audio.int16", audio, waves)


def open_tokenizer(cfg: EncodeRecipe, medium: str) -> MediaTokenizer:
    """The tokenizer of a medium, with the one that it continues."""
    folder = cfg.tokenizers.get(medium, locate_tokenizer(cfg.models, medium))
    continued = find_continued_medium(folder)
    return load_tokenizer(folder, None if continued is None else open_tokenizer(cfg, continued))


def run(cfg: EncodeRecipe, dry_run: bool) -> None:
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    scenes, sounds = cfg.scenes and (cfg.data / "scenes").is_dir(), cfg.sounds and (cfg.data / "sounds").is_dir()
    wanted: list[tuple[str, Callable[[MediaTokenizer], Job]]] = []
    if cfg.images:
        wanted.append(("image", lambda image: plan_pictures(cfg, image)))
    if scenes:
        wanted.append(("image", lambda image: plan_scenes(cfg, image)))
    if cfg.clips:
        media, out = cfg.data / "clips.npz", cfg.data / "clip_codes.npz"
        wanted.append(("video", lambda video: plan_clips(media, out, "python tools/prepare_clips.py", video, True)))
    if scenes and cfg.clips:
        moves, codes = cfg.data / "scenes" / "moves.npz", cfg.data / "scenes" / "move_codes.npz"
        wanted.append(("video", lambda video: plan_clips(moves, codes, "python tools/prepare_scenes.py", video, False)))
    if cfg.speech:
        wanted.append(("audio", lambda audio: plan_speech(cfg, audio)))
    if sounds:
        wanted.append(("audio", lambda audio: plan_named_sounds(cfg, audio)))
    tokenizers = {medium: open_tokenizer(cfg, medium) for medium in dict.fromkeys(medium for medium, _ in wanted)}
    for medium, plan in wanted:
        if dry_run:
            print(f"{medium}: {type(tokenizers[medium]).__name__} {tokenizers[medium].sha256[:12]}", file=sys.stderr)
        else:
            encode_all(plan(tokenizers[medium]))


if __name__ == "__main__":
    run_recipe(EncodeRecipe, run)
