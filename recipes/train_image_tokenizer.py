"""Trains the image tokenizer of nano from scratch in three stages: the pixel codes, the semantic codes, then the
decoder that reads both.

    python recipes/train_image_tokenizer.py recipes/configs/image_tokenizer.yaml [--set pixel.steps=200] [--dry-run]

Reads data/prepared/{views.npz,images.npz,concepts.json}; writes checkpoints and metrics under ``run`` and the finished
tokenizer to ``out``. Interrupt it when you like; the same command goes on.

Shapes: B batch, M pictures, V views, S semantic codes, L discriminant dimensions.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unimodal.config import Config, atomic_write_text
from unimodal.tokenizers.efficientnet import load_pretrained
from unimodal.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from unimodal.training.command import recipe_main
from unimodal.training.loop import LoopConfig, Trainer

TRAINING_STYLES = ("noto", "fluent3d", "fluentflat")
ENCODER = ("encoder_", "resample")
DECODER = ("decoder_", "semantic_in", "pixel_in", "scatter", "code_positions")


class ImageTokenizerRecipe(Config):
    data: Path = Path("data/prepared")
    run: Path = Path("data/runs/image_tokenizer")
    out: Path = Path("data/models/image_tokenizer")
    tokenizer: ImageTokenizerConfig = ImageTokenizerConfig()
    pixel: LoopConfig = LoopConfig(steps=4000, learning_rate=1e-3, ema_decay=0.999)
    decoder: LoopConfig = LoopConfig(steps=1000, learning_rate=5e-4, ema_decay=0.998)
    batch_size: int = 24
    shrinkage: float = 0.3  # of the semantic codes' discriminants
    spoilt_pictures: float = (
        0.4  # share of the pictures whose pixel codes are partly random while the decoder is trained
    )


class Pictures:
    """The training views in memory, and who may be trained on."""

    def __init__(self, folder: Path):
        views, images = np.load(folder / "views.npz"), np.load(folder / "images.npz")
        self.concepts: list[dict[str, Any]] = json.loads((folder / "concepts.json").read_text())
        self.pixels, self.features = views["pixels"], views["features"]  # [M, V, 64, 64, 3], [M, V, 1280]
        self.style, self.concept = images["style"], images["concept"]
        training = np.array([concept["split"] == "train" for concept in self.concepts])
        known = np.isin(self.style, TRAINING_STYLES)
        self.train_rows = np.flatnonzero(training[self.concept] & known)
        self.heldout_rows = np.flatnonzero(~training[self.concept] & known)


class RandomRows:
    """Endless random (picture, view, flip) draws; the generator's state is the cursor."""

    def __init__(self, rows: np.ndarray, num_views: int, batch_size: int, seed: int):
        self.rows, self.num_views, self.batch_size = torch.from_numpy(rows), num_views, batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def next_batch(self) -> tuple[Tensor, Tensor, Tensor]:
        rows = self.rows[torch.randint(len(self.rows), (self.batch_size,), generator=self.generator)]
        views = torch.randint(self.num_views, (self.batch_size,), generator=self.generator)
        flips = torch.rand(self.batch_size, generator=self.generator) < 0.5
        return rows, views, flips

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


def fit_semantic(cfg: ImageTokenizerRecipe, model: ImageTokenizer, pictures: Pictures) -> None:
    """The semantic codebook: a prototype for every training concept, from all styles and views."""
    rows = torch.from_numpy(pictures.train_rows)
    concepts, labels = torch.from_numpy(pictures.concept)[rows].long().unique(return_inverse=True)
    assert len(concepts) == model.config.num_prototypes
    model.semantic.fit(torch.from_numpy(pictures.features)[rows], labels, cfg.shrinkage)
    model.semantic.half().float()  # as stored, so that codes made now equal codes made after a load


def picture_loss(rebuilt: Tensor, x: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Both [B, 3, 64, 64] → (loss, numbers). The root weighs pictures as PSNR does: hard ones do not drown the rest."""
    error = (rebuilt - x).square().flatten(1).mean(1)  # [B]
    psnr = -10 * error.detach().clamp_min(1e-9).log10().mean()
    return (error + 1e-4).sqrt().mean(), {"psnr": float(psnr), "mse": float(error.detach().mean())}


def train_pixels(cfg: ImageTokenizerRecipe, model: ImageTokenizer, pictures: Pictures) -> None:
    """The pixel codes, with a decoder that sees nothing else."""
    pixels = torch.from_numpy(pictures.pixels)  # uint8 [M, V, 64, 64, 3]

    def loss(batch: tuple[Tensor, Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        rows, views, flips = batch
        x = pictures_of(pixels[rows, views])
        x = torch.where(flips[:, None, None, None], x.flip(-1), x).contiguous(memory_format=torch.channels_last)
        meaning = torch.zeros(len(x), model.config.num_semantic, model.config.semantic_dims)
        return picture_loss(model.decode_values(meaning, model.pixel_values(x)[0]), x)

    fit(cfg, model, pictures, loss, cfg.pixel, "pixel", ENCODER + DECODER, use_semantic=False)


def train_decoder(cfg: ImageTokenizerRecipe, model: ImageTokenizer, pictures: Pictures) -> None:
    """The decoder alone, from the final codes of every view, some of them spoilt.

    A language model's codes are not an encoder's: a share of the pictures has random codes in place of some pixel
    codes, so that the decoder learns to lean on the semantic codes where the pixel codes make no sense (decoder
    post-training, "Image Tokenizer Needs Post-Training", arXiv 2509.12474).
    """
    pixels = torch.from_numpy(pictures.pixels)
    codes = all_codes(cfg, model, pictures)  # int64 [M, V, 64]
    num_semantic, size = model.config.num_semantic, model.quantizer.codebook_size

    def loss(batch: tuple[Tensor, Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        rows, views, _ = batch
        x = pictures_of(pixels[rows, views]).contiguous(memory_format=torch.channels_last)
        ids = codes[rows, views]
        semantic, pixel = ids[:, :num_semantic], ids[:, num_semantic:]
        share = torch.rand(len(ids), 1) * (torch.rand(len(ids), 1) < cfg.spoilt_pictures)  # of each picture's codes
        pixel = torch.where(torch.rand(pixel.shape) < share, torch.randint(size, pixel.shape), pixel)
        return picture_loss(model.decode_values(model.semantic.values(semantic), model.quantizer.values(pixel)), x)

    fit(cfg, model, pictures, loss, cfg.decoder, "decoder", DECODER, use_semantic=True)


def fit(
    cfg: ImageTokenizerRecipe,
    model: ImageTokenizer,
    pictures: Pictures,
    loss: Any,
    loop: LoopConfig,
    name: str,
    trained: tuple[str, ...],
    use_semantic: bool,
) -> None:
    """One stage: trains the parameters whose names begin so, reports held-out PSNR, and keeps the averaged weights."""
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name.startswith(trained))

    def evaluate(record: dict[str, Any]) -> None:
        if record["step"] % (loop.log_every * 5) == 0 or record["step"] == loop.steps:
            print(
                f"held-out concepts: {heldout_psnr(model, pictures, use_semantic):.2f} dB", file=sys.stderr, flush=True
            )

    model.to(memory_format=torch.channels_last)
    batches = RandomRows(pictures.train_rows, pictures.pixels.shape[1], cfg.batch_size, loop.seed)
    trainer = Trainer(model, batches, loss, loop, cfg.run / name, on_log=[evaluate])
    trainer.run()
    trainer.use_ema()
    model.to(memory_format=torch.contiguous_format).eval()
    print(
        f"held-out concepts, averaged weights: {heldout_psnr(model, pictures, use_semantic):.2f} dB",
        file=sys.stderr,
        flush=True,
    )


def pictures_of(pixels: Tensor) -> Tensor:
    """uint8 [B, 64, 64, 3] → float [B, 3, 64, 64] in [0, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 255


def all_codes(cfg: ImageTokenizerRecipe, model: ImageTokenizer, pictures: Pictures) -> Tensor:
    """The codes of every view, int64 [M, V, 64]; kept beside the checkpoint, since the encoder changes no more."""
    path = cfg.run / "decoder" / f"codes-{model.sha256[:16]}.npy"  # of the encoder as it is: another one makes its own
    if path.exists():
        return torch.from_numpy(np.load(path)).long()
    pixels = torch.from_numpy(pictures.pixels).flatten(0, 1)
    with torch.inference_mode():
        flat = torch.from_numpy(pictures.features).flatten(0, 1)
        semantic = torch.cat([model.semantic(part.float()) for part in flat.split(4096)])
        pixel = torch.cat([model.pixel_values(pictures_of(part))[1] for part in pixels.split(128)])
    codes = torch.cat([semantic, pixel], dim=1).unflatten(0, pictures.features.shape[:2])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, codes.numpy().astype(np.int16))
    return codes.clone()


def heldout_psnr(model: ImageTokenizer, pictures: Pictures, use_semantic: bool) -> float:
    """Mean PSNR in dB over the training styles of concepts that were never trained on, view 0, range [0, 1]."""
    values = []
    with torch.inference_mode():
        for rows in torch.from_numpy(pictures.heldout_rows).split(64):
            x = pictures_of(torch.from_numpy(pictures.pixels[rows.numpy(), 0]))
            meaning = torch.zeros(len(x), model.config.num_semantic, model.config.semantic_dims)
            if use_semantic:
                meaning = model.semantic.values(
                    model.semantic(torch.from_numpy(pictures.features[rows.numpy(), 0]).float())
                )
            y = model.decode_values(meaning, model.pixel_values(x)[0]).clamp(0, 1)
            values.append(-10 * (y - x).square().flatten(1).mean(1).clamp_min(1e-9).log10())
    return float(torch.cat(values).mean())


def run(cfg: ImageTokenizerRecipe, dry_run: bool) -> None:
    pictures = Pictures(cfg.data)
    num_prototypes = len(np.unique(pictures.concept[pictures.train_rows]))
    torch.manual_seed(cfg.pixel.seed)
    model = ImageTokenizer(cfg.tokenizer.model_copy(update={"num_prototypes": num_prototypes}))
    model.trunk = load_pretrained()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(
        f"{len(pictures.train_rows)} pictures, {num_prototypes} concepts, {trained / 1e6:.1f} M trained parameters",
        file=sys.stderr,
    )
    if dry_run:
        return
    fit_semantic(cfg, model, pictures)
    train_pixels(cfg, model, pictures)
    model.round_to_half().save(cfg.out)  # its codes are final: what is trained on them can begin
    print(f"the codes are final: {cfg.out}", file=sys.stderr, flush=True)
    train_decoder(cfg, model, pictures)
    model.round_to_half().save(cfg.out)
    hashes = {
        name: hashlib.sha256((cfg.data / name).read_bytes()).hexdigest() for name in ("images.npz", "concepts.json")
    }
    record = {"config": cfg.model_dump(mode="json"), "data_sha256": hashes, "weights_sha256": model.sha256}
    atomic_write_text(cfg.out / "recipe.json", json.dumps(record, indent=2) + "\n")
    print(f"wrote {cfg.out}", file=sys.stderr)


if __name__ == "__main__":
    recipe_main(ImageTokenizerRecipe, run)
