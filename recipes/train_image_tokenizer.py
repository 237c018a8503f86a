"""Trains the image tokenizer of nano from scratch: the semantic codes and looks in closed form, then pixel
codes and decoder together.

    python recipes/train_image_tokenizer.py recipes/configs/image_tokenizer.yaml [--set loop.steps=200] [--dry-run]

Reads data/prepared/{views.npz,images.npz,concepts.json}; writes checkpoints and metrics under ``run`` and the finished
tokenizer to ``out``. Interrupt it when you like; the same command goes on.

Shapes: B batch, M pictures, V views, S semantic codes, L discriminant dimensions.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from unimodal.config import MAY_CHANGE, Config
from unimodal.data.encoded_media import TRAINING_STYLES, load_concepts
from unimodal.data.prepared_arrays import check_concepts, check_styles, open_arrays, open_views
from unimodal.files import write_text_atomically
from unimodal.tokenizers.nano.efficientnet import load_pretrained
from unimodal.tokenizers.nano.image import ImageTokenizer
from unimodal.tokenizers.nano.image_config import ImageTokenizerConfig
from unimodal.training.checkpoint import State
from unimodal.training.command import Flags, run_training
from unimodal.training.identity import Identity, describe_resume, describe_settings, hash_files, hash_weights
from unimodal.training.loop import Trainer
from unimodal.training.settings import LoopConfig

MOST_THUMBNAIL_VALUES = 4096  # the eigenvectors of so many take a minute; their time grows as the cube


class ImageTokenizerRecipe(Config):
    data: Annotated[Path, MAY_CHANGE] = Path("data/prepared")
    run: Annotated[Path, MAY_CHANGE] = Path("data/runs/image_tokenizer")
    out: Annotated[Path, MAY_CHANGE] = Path("data/models/image_tokenizer")
    initial: Annotated[Path | None, MAY_CHANGE] = None  # a finished tokenizer of the same sizes to begin from
    tokenizer: ImageTokenizerConfig = ImageTokenizerConfig()
    loop: LoopConfig = LoopConfig(
        steps=6000, learning_rate=1.5e-3, ema_decay=0.999, optimizer="muon", precision="bfloat16"
    )
    batch_size: int = 32
    shrinkage: float = 0.3  # of the semantic codes' discriminants
    prefix_pictures: float = 0.35  # share of the pictures of which the decoder sees a prefix of the codes only
    spoilt_pictures: float = 0.3  # share of those whose remaining pixel codes are partly random
    stranger_pictures: float = 0.4  # share of all pictures whose own concept and look are withheld, as if they were new


class Pictures:
    """The training views in memory, and who may be trained on."""

    def __init__(self, folder: Path, size: int):
        """size: pixels a side. Raises ValueError for arrays that are missing or that this recipe cannot train on."""
        sizes: dict[str, int] = {}
        images = open_arrays(
            folder / "images.npz", "python tools/prepare_images.py",
            {"concept": ("iu", ("M",)), "style": ("U", ("M",))}, sizes,
        )  # fmt: skip
        views = open_views(folder, size, sizes)
        self.concepts = load_concepts(folder / "concepts.json")
        self.pixels, self.features = views["pixels"], views["features"]  # [M, V, S, S, 3], [M, V, 1280]
        self.style, self.concept = images["style"], images["concept"]
        check_styles(folder / "images.npz", self.style)
        training = np.array([concept.split == "train" for concept in self.concepts])
        known = np.isin(self.style, TRAINING_STYLES)
        check_concepts(folder / "images.npz", self.concept, self.concepts, known)
        self.train_rows = np.flatnonzero(training[self.concept] & known)
        self.heldout_rows = np.flatnonzero(~training[self.concept] & known)

    def make_batch(self, rows: Tensor, views: Tensor) -> Tensor:
        """→ float [B, 3, 64, 64] in [0, 1]."""
        return torch.from_numpy(self.pixels[rows.numpy(), views.numpy()]).permute(0, 3, 1, 2).float() / 255


class RandomRows:
    """Endless random draws, each a dict of tensors; the state of the generator says how far they are.

    ``rows``, ``views``, ``flips`` [B]: which picture, how seen; ``kept`` bool [B, N]: the codes that the decoder sees;
    ``spoilt`` [B, N - S - 1]: an id where a pixel code is replaced, else -1; ``stranger`` bool [B].
    """

    def __init__(self, cfg: ImageTokenizerRecipe, rows: np.ndarray, num_views: int, codebook_size: int):
        self.cfg, self.rows, self.num_views, self.codebook_size = cfg, torch.from_numpy(rows), num_views, codebook_size
        self.generator = torch.Generator().manual_seed(cfg.loop.seed)

    def next_batch(self) -> dict[str, Tensor]:
        size, num_pixel, draw = self.cfg.batch_size, self.cfg.tokenizer.num_pixel, self.generator
        num_first = self.cfg.tokenizer.grid**2 - num_pixel

        def draw_chance(share: float) -> Tensor:
            return torch.rand(size, generator=draw) < share

        prefix = draw_chance(self.cfg.prefix_pictures)
        length = num_first + torch.randint(num_pixel + 1, (size,), generator=draw)
        length = torch.where(prefix, length, num_first + num_pixel)
        share = torch.rand(size, 1, generator=draw) * (prefix & draw_chance(self.cfg.spoilt_pictures)).unsqueeze(1)
        replaced = torch.rand(size, num_pixel, generator=draw) < share
        random_ids = torch.randint(self.codebook_size, (size, num_pixel), generator=draw)
        return {
            "rows": self.rows[torch.randint(len(self.rows), (size,), generator=draw)],
            # what is drawn from few codes is the picture as it was made
            "views": torch.where(prefix, 0, torch.randint(self.num_views, (size,), generator=draw)),
            "flips": draw_chance(0.5) & ~prefix,
            "kept": torch.arange(num_first + num_pixel) < length.unsqueeze(1),
            "spoilt": torch.where(replaced, random_ids, -1),
            "stranger": draw_chance(self.cfg.stranger_pictures),
        }

    def state_dict(self) -> State:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        self.generator.set_state(state["generator"])


@dataclass(frozen=True)
class FirstCodes:
    """The codes of every view that are not learned by gradient: ``semantic`` int64 [M, V, S] and ``look`` [M, V]."""

    semantic: Tensor
    look: Tensor


def fit_first_codes(
    cfg: ImageTokenizerRecipe, model: ImageTokenizer, pictures: Pictures
) -> tuple[FirstCodes, FirstCodes]:
    """A prototype for every training concept and a look for every training picture.

    → the codes of every view, and the same with the picture's own concept and its own look left out.
    """
    rows = torch.from_numpy(pictures.train_rows)
    concepts, labels = torch.from_numpy(pictures.concept)[rows].long().unique(return_inverse=True)
    assert len(concepts) == model.config.num_prototypes and len(rows) == model.config.num_looks
    features = torch.from_numpy(pictures.features)
    model.semantic.fit(features[rows], labels, cfg.shrinkage)
    model.look.fit(pictures.make_batch(rows, torch.zeros_like(rows)))
    for branch in (model.semantic, model.look):
        branch.half().float()  # as stored, so that codes made now equal codes made after a load
    own_concept, own_look = torch.full((2, len(pictures.concept)), -1)
    own_concept[rows], own_look[rows] = labels, torch.arange(len(rows))
    num = cfg.tokenizer.num_semantic
    every = torch.cartesian_prod(torch.arange(len(features)), torch.arange(features.shape[1]))  # [M · V, 2]
    with torch.inference_mode():
        nearest = torch.cat(
            [model.semantic.find_nearest(f.float(), num + 1) for f in features.flatten(0, 1).split(4096)]
        )
        looks = torch.cat(
            [model.look.find_nearest(pictures.make_batch(*part.unbind(1)), 2) for part in every.split(512)]
        )
    codes, others = drop_own(nearest.unflatten(0, features.shape[:2]), own_concept)  # [M, V, S]
    look, other_look = drop_own(looks.unflatten(0, features.shape[:2]), own_look)  # [M, V, 1]
    return FirstCodes(codes, look[..., 0]), FirstCodes(others, other_look[..., 0])


def drop_own(nearest: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """nearest [M, V, n + 1], nearest first, and own [M] → the first n, and the first n without the own one."""
    # stable: the others keep their order, the own one goes last and is cut off
    order = (nearest == own[:, None, None]).to(torch.uint8).argsort(dim=-1, stable=True)
    return nearest[..., :-1].clone(), nearest.gather(-1, order)[..., :-1].clone()


def compute_picture_loss(rebuilt: Tensor, x: Tensor) -> Tensor:
    """Both [B, 3, 64, 64] → [B]. The root weighs pictures as PSNR does: hard ones do not drown the rest."""
    return ((rebuilt.float() - x).square().flatten(1).mean(1) + 1e-4).sqrt()


def train(
    cfg: ImageTokenizerRecipe, model: ImageTokenizer, pictures: Pictures, identity: Identity, restart: bool
) -> None:
    """Pixel codes and decoder together; reports held-out PSNR, and leaves the averaged weights in the model."""
    codes, strangers = fit_first_codes(cfg, model, pictures)

    def loss(batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        rows, views, stranger = batch["rows"], batch["views"], batch["stranger"]
        x = pictures.make_batch(rows, views)
        x = torch.where(batch["flips"][:, None, None, None], x.flip(-1), x).contiguous(
            memory_format=torch.channels_last
        )
        semantic = torch.where(stranger.unsqueeze(1), strangers.semantic[rows, views], codes.semantic[rows, views])
        look = torch.where(stranger, strangers.look[rows, views], codes.look[rows, views])
        pixel, _ = model.encode_pixels(x)
        random_values = model.quantizer.to_values(batch["spoilt"].clamp_min(0))
        pixel = torch.where((batch["spoilt"] >= 0).unsqueeze(-1), random_values, pixel)
        errors = compute_picture_loss(model.decode_values(semantic, look, pixel, batch["kept"]), x)
        whole = batch["kept"].all(1)
        return errors.mean(), {"psnr": float((-20 * errors.detach()[whole].log10()).mean())}

    def evaluate(record: dict[str, float]) -> None:
        if record["step"] % (cfg.loop.log_every * 5) == 0 or record["step"] == cfg.loop.steps:
            report(model, pictures, codes)

    model.to(memory_format=torch.channels_last)
    batches = RandomRows(cfg, pictures.train_rows, pictures.pixels.shape[1], model.quantizer.codebook_size)
    trainer = Trainer(model, batches, loss, cfg.loop, cfg.run, on_log=[evaluate], identity=identity, restart=restart)
    trainer.run()
    trainer.use_ema()
    model.to(memory_format=torch.contiguous_format).round_to_half().eval()
    report(model, pictures, codes)


def report(model: ImageTokenizer, pictures: Pictures, codes: FirstCodes) -> None:
    """Mean PSNR in dB over the training styles, view 0, range [0, 1]: of concepts that were never trained on from 64
    codes and from prefixes, and of known ones from their first codes alone."""
    num = model.config.grid**2
    known = pictures.train_rows[:: max(1, len(pictures.train_rows) // 200)]
    heldout = {
        count: measure_psnr(model, pictures, codes, pictures.heldout_rows, count) for count in (num, num // 2, num // 4)
    }
    text = ", ".join(f"{value:.2f} dB from {count} codes" for count, value in heldout.items())
    drawn = measure_psnr(model, pictures, codes, known, num - model.config.num_pixel)
    print(f"unseen concepts: {text}; known ones {drawn:.2f} dB without pixel codes", file=sys.stderr, flush=True)


def measure_psnr(
    model: ImageTokenizer, pictures: Pictures, codes: FirstCodes, rows: np.ndarray, num_codes: int
) -> float:
    values = []
    with torch.inference_mode():
        for part in torch.from_numpy(rows).split(64):
            x = pictures.make_batch(part, torch.zeros_like(part))
            kept = (torch.arange(model.config.grid**2) < num_codes).expand(len(x), -1)
            pixel, _ = model.encode_pixels(x)
            y = model.decode_values(codes.semantic[part, 0], codes.look[part, 0], pixel, kept).clamp(0, 1)
            values.append(-10 * (y - x).square().flatten(1).mean(1).clamp_min(1e-9).log10())
    return float(torch.cat(values).mean())


def check_size(cfg: ImageTokenizerConfig) -> None:
    """ValueError for pictures whose looks cannot be fitted in closed form, and for a size that is no whole grid."""
    values = 3 * (cfg.grid * cfg.look_patch) ** 2
    if cfg.image_size % 8 or values > MOST_THUMBNAIL_VALUES:
        raise ValueError(
            f"tokenizer.image_size is {cfg.image_size}; this recipe fits the looks of nano's pictures in closed form, "
            "which needs a multiple of 8 up to 96: train other sizes by recipes/train_tokenizer.py"
        )


def run(cfg: ImageTokenizerRecipe, flags: Flags) -> None:
    check_size(cfg.tokenizer)
    pictures = Pictures(cfg.data, cfg.tokenizer.image_size)
    num_prototypes = len(np.unique(pictures.concept[pictures.train_rows]))
    if cfg.loop.threads:
        torch.set_num_threads(cfg.loop.threads)
    torch.manual_seed(cfg.loop.seed)
    sizes = {"num_prototypes": num_prototypes, "num_looks": len(pictures.train_rows)}
    model = ImageTokenizer(cfg.tokenizer.model_copy(update=sizes))
    model.trunk = load_pretrained()
    if cfg.initial is not None:
        model.load_state_dict(ImageTokenizer.load(cfg.initial).state_dict())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(
        f"{len(pictures.train_rows)} pictures, {num_prototypes} concepts, {trained / 1e6:.1f} M trained parameters",
        file=sys.stderr,
    )
    files = [cfg.data / name for name in ("images.npz", "views.npz", "concepts.json")]
    identity = describe_settings(cfg) | {"pictures": hash_files(files)}
    if cfg.initial is not None:
        identity["initial"] = hash_weights(model)
    if flags.dry_run:
        return print(describe_resume(cfg.run, identity, flags.restart), file=sys.stderr)
    train(cfg, model, pictures, identity, flags.restart)
    model.save(cfg.out)
    hashes = {
        name: hashlib.sha256((cfg.data / name).read_bytes()).hexdigest() for name in ("images.npz", "concepts.json")
    }
    record = {"config": cfg.model_dump(mode="json"), "data_sha256": hashes, "weights_sha256": model.sha256}
    write_text_atomically(cfg.out / "recipe.json", json.dumps(record, indent=2) + "\n")
    print(f"wrote {cfg.out}", file=sys.stderr)


if __name__ == "__main__":
    run_training(ImageTokenizerRecipe, run)
