"""Encodes the prepared pictures, clips and utterances with the finished tokenizers, once, for the training of nano.

    python recipes/encode_media.py [--set data=data/prepared]

Writes data/prepared/image_codes.npz (codes int16 [M, V, 64]: every view of every picture), clip_codes.npz (codes
int16 [C, 2, 192]: each clip and its mirror image) and speech/codes.npz (codes int16 [ΣN] with offsets int64 [U + 1]),
each with the hash of the tokenizer that made it.

Shapes: M pictures, V views, S pixels a side, C clips, U utterances, N codes of one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unimodal.config import Config
from unimodal.data.prepared_arrays import open_views
from unimodal.evaluation.prepared import Speech
from unimodal.tokenizers.nano.audio import AudioTokenizer
from unimodal.tokenizers.nano.image import ImageTokenizer
from unimodal.tokenizers.nano.video import VideoTokenizer
from unimodal.training.command import run_recipe


class EncodeRecipe(Config):
    data: Path = Path("data/prepared")
    models: Path = Path("data/models")
    batch_size: int = 128
    images: bool = True
    clips: bool = True
    speech: bool = True
    threads: int = 0


def save(path: Path, **arrays: np.ndarray) -> None:
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(part, path)


def encode_pictures(cfg: EncodeRecipe, image: ImageTokenizer) -> None:
    views = open_views(cfg.data, image.config.image_size)
    pixels, features = map(torch.from_numpy, (views["pixels"], views["features"]))  # [M, V, S, S, 3], [M, V, 1280]
    flat = pixels.flatten(0, 1)
    codes = []
    seen = features.flatten(0, 1)
    with torch.inference_mode():
        for start in range(0, len(flat), cfg.batch_size):
            some = slice(start, start + cfg.batch_size)
            x = flat[some].permute(0, 3, 1, 2).float() / 255
            codes.append(image.encode_ids(x, seen[some].float()))
            if start % (cfg.batch_size * 40) == 0:
                print(f"pictures {start}/{len(flat)}", file=sys.stderr, flush=True)
    ids = torch.cat(codes).unflatten(0, pixels.shape[:2])
    save(cfg.data / "image_codes.npz", codes=ids.numpy().astype(np.int16), sha256=np.array(image.sha256))


def encode_clips(cfg: EncodeRecipe, video: VideoTokenizer) -> None:
    frames = torch.from_numpy(np.load(cfg.data / "clips.npz")["frames"])  # [C, T, 64, 64, 3]

    def encode(clips: Tensor) -> Tensor:
        batches = (part.permute(0, 4, 1, 2, 3).float() / 255 for part in clips.split(32))
        return torch.cat([video.encode(batch).ids[..., 0] for batch in batches])

    codes = torch.stack([encode(frames), encode(frames.flip(3))], dim=1)
    save(cfg.data / "clip_codes.npz", codes=codes.numpy().astype(np.int16), sha256=np.array(video.sha256))


def encode_speech(cfg: EncodeRecipe, audio: AudioTokenizer, at_once: int = 32) -> None:
    speech = Speech.load(cfg.data)
    order = sorted(range(len(speech.utterances)), key=lambda row: speech.utterances[row].num_samples)
    codes: dict[int, np.ndarray] = {}
    for first in range(0, len(order), at_once):
        rows = order[first : first + at_once]
        waves = [speech.take(speech.utterances[row]) for row in rows]
        lengths = torch.tensor([len(wave) for wave in waves])
        encoded = audio.encode(torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)[:, None], lengths)
        codes |= {row: encoded.row(index)[:, 0].numpy().astype(np.int16) for index, row in enumerate(rows)}
        if first % (at_once * 100) == 0:
            print(f"utterances {first}/{len(order)}", file=sys.stderr, flush=True)
    flat = np.concatenate([codes[row] for row in range(len(order))])
    offsets = np.cumsum([0, *(len(codes[row]) for row in range(len(order)))])
    print(f"{len(flat)} codes, {np.unique(flat).size} of {audio.codebook_sizes[0]} values used", file=sys.stderr)
    save(cfg.data / "speech" / "codes.npz", codes=flat, offsets=offsets, sha256=np.array(audio.sha256))


def run(cfg: EncodeRecipe, dry_run: bool) -> None:
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    image = ImageTokenizer.load(cfg.models / "image_tokenizer")
    if cfg.images and not dry_run:
        encode_pictures(cfg, image)
    if cfg.clips and not dry_run:
        encode_clips(cfg, VideoTokenizer.load(cfg.models / "video_tokenizer", image))
    if cfg.speech and not dry_run:
        encode_speech(cfg, AudioTokenizer.load(cfg.models / "audio_tokenizer"))


if __name__ == "__main__":
    run_recipe(EncodeRecipe, run)
