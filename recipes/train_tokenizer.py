"""Trains a tokenizer of pictures, films or sounds on files of your own.

    python recipes/train_tokenizer.py --set system=llamagen-vq16 --set small=true --set media=photos --set sizes=[128]
    python recipes/train_tokenizer.py recipes/configs/tokenizer.yaml [--set loop.steps=200] [--dry-run]
    torchrun --nproc-per-node 8 recipes/train_tokenizer.py my_tokenizer.yaml

``system`` is a published one of `unimodal tokenizers list` (``small``: its form that trains on a processor), ``family``
any other there, also one of `$UNIMODAL_PLUGINS`; ``tokenizer`` changes single settings of either. ``initial`` tunes a
finished tokenizer (its folder) or released weights (`titok=FOLDER`); with ``train: decoder`` its codes stay the same.

``media`` is a folder of files, a dataset of any format that `docs/training.md` lists, or a pattern of WebDataset tars.
Pictures and frames are cropped at random and resized to one of ``sizes``. One item in ``one_held_out_of`` is held out,
by a hash of the column ``group`` or else of its name. ``stages`` change data, sizes, losses or what is trained at a
step. Writes checkpoints, metrics and sheets of reconstructions to ``run``, the finished tokenizer to ``out``. Interrupt
it when you like; the same command goes on, and with --restart it begins anew.

At the end it prints what is held out: the error of what is decoded, and how much of each codebook is used.

Shapes: B batch, C channels, N positions, G groups.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, JsonValue, ValidationError, model_validator
from torch import Tensor

from unimodal.coder.batches import group_by_size, stack_media
from unimodal.config import MAY_CHANGE, Config
from unimodal.data.labelled_media import read_labelled
from unimodal.data.media_items import FileItems, ItemOptions, MediaItems, is_held_out, open_media_items
from unimodal.data.media_stream import LeftOut, MediaStream, StreamPart, View
from unimodal.data.media_views import Size, ViewOptions
from unimodal.files import describe_error, write_json
from unimodal.media.registry import find_medium
from unimodal.tokenizers import (
    LatentTokenizer,
    MediaTokenizer,
    find_family_class,
)
from unimodal.tokenizers.conditions import ConditionMaker
from unimodal.tokenizers.configs.facts import describe_trained
from unimodal.tokenizers.configs.registry import merge_settings, read_system
from unimodal.tokenizers.losses.bag import LossBag
from unimodal.tokenizers.losses.held_out import MediaBatch, measure_tokenizer
from unimodal.tokenizers.losses.settings import LossSettings
from unimodal.tokenizers.losses.trained_tokenizer import (
    ALL,
    AnyTokenizer,
    StageParts,
    TrainedTokenizer,
    choose_trained,
    find_encoder_names,
    find_sizes,
)
from unimodal.tokenizers.pretrained.starting import load_initial, open_beginning, open_continued
from unimodal.tokenizers.systems.base import ReconstructingModule, SystemModule
from unimodal.training.checkpoint import load_checkpoint
from unimodal.training.command import Flags, run_training
from unimodal.training.distributed import Parallel, start
from unimodal.training.identity import describe_resume, describe_settings, hash_weights
from unimodal.training.loop import Trainer
from unimodal.training.settings import LoopConfig

SHEETS = "reconstructions"


class Stage(Config):
    """What is different from a step on; what is left out is that of the recipe."""

    first_step: int = Field(ge=0)
    media: Annotated[str | None, MAY_CHANGE] = None
    medium: str | None = None  # image: pictures as clips of one frame, for a tokenizer of films
    sizes: tuple[int | Size, ...] | None = None
    batch_size: int | None = Field(None, ge=1)
    losses: dict[str, float] = {}  # weights of losses that are set up
    train: str | tuple[str, ...] | None = None


class TokenizerRecipe(Config):
    system: str | None = None  # what is trained
    small: bool = False
    family: str | None = None
    tokenizer: dict[str, JsonValue] = {}  # settings of the family's config, over those of the system
    initial: Annotated[str | None, MAY_CHANGE] = None
    trunk: str | None = None  # of a system with a frozen one: a folder, `whisper-tiny.en` or `efficientnet`
    trunk_memory_mb: Annotated[int, MAY_CHANGE] = Field(0, ge=0)  # for what it makes of whole media that come again
    trunk_folder: Annotated[Path | None, MAY_CHANGE] = None  # keeps it for later runs
    begin_from: Annotated[str | None, MAY_CHANGE] = None  # the folder of a tokenizer whose weights are taken that fit
    losses_from: Annotated[Path | None, MAY_CHANGE] = None  # the run whose reader, judges or projections go on learning
    continued: Annotated[str | None, MAY_CHANGE] = None  # folder of the one that it continues, as clips do pictures
    labelled: str | None = None  # media in one folder for each thing shown, for what is fitted before training
    train: str | tuple[str, ...] = ALL  # all, decoder, or names of parts
    losses: LossSettings | None = None  # by default the tokenizer's own, or else `l2`
    media: Annotated[str, MAY_CHANGE]  # what it is trained on
    media_root: Annotated[Path | None, MAY_CHANGE] = None
    from_hub: bool = False  # media is a dataset of the hub
    split: str = "train"
    columns: dict[str, str] = {}  # our name of a column → the dataset's
    text_network: str | None = None  # the text model that a tokenizer reads captions through: a folder, or `words`
    group: str | None = None  # the column whose values are held out whole; folder: the folder that a file lies in
    one_held_out_of: int = Field(10, ge=2)
    held_out: Annotated[str | None, MAY_CHANGE] = None  # media that are measured in place of those held out
    held_out_items: Annotated[int, MAY_CHANGE] = Field(128, ge=1)  # that are measured, at most
    sizes: tuple[int | Size, ...] = ()  # pixels, or height and width; each batch has one of them
    crop_scale: tuple[float, float] = (0.8, 1.0)  # area of a random crop
    flip: bool = True
    upscale: bool = False  # magnify pictures that are smaller than the size
    crop_s: float = Field(2.0, gt=0)  # of longer sounds
    workers: Annotated[int, MAY_CHANGE] = Field(2, ge=0)  # that decode files
    batch_size: int = Field(16, ge=1)
    sorted_batches: int = Field(1, ge=1)  # of so many in a row, items of like length go together
    stages: tuple[Stage, ...] = ()
    in_8_bits: tuple[str, ...] = ()  # beginnings of the names of weights that are stored so: half the room
    processor_s: Annotated[float | None, MAY_CHANGE] = Field(None, gt=0)  # to train for, anew after an interruption
    run: Annotated[Path, MAY_CHANGE] = Path("data/runs/tokenizer")
    out: Annotated[Path, MAY_CHANGE] = Path("data/models/tokenizer")
    loop: LoopConfig = LoopConfig(steps=2000, learning_rate=1e-3, log_every=50, evaluate_every=500)

    @model_validator(mode="after")
    def _check(self) -> TokenizerRecipe:
        if self.system is not None and self.family is not None:
            raise ValueError(f"system {self.system} and family {self.family} are both given; leave one out")
        if not (self.system or self.family or self.initial):
            raise ValueError("name a system or family of `unimodal tokenizers list`, or an initial tokenizer")
        steps = [stage.first_step for stage in self.stages]
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale is {list(self.crop_scale)}; give two shares, 0 < low <= high <= 1")
        if steps != sorted(set(steps)):
            raise ValueError(f"stages begin at {steps}; give them in order, each later than the one before")
        return self


# ---- the tokenizer


def make_tokenizer(cfg: TokenizerRecipe) -> AnyTokenizer:
    """A new tokenizer, or the initial one. Raises ValueError for a family that is not trained here and for settings
    that it does not have."""
    torch.manual_seed(cfg.loop.seed)
    if cfg.initial is not None:
        if cfg.trunk is not None:
            raise ValueError("the initial tokenizer has its own trunk; leave trunk out")
        if cfg.tokenizer or cfg.small:
            raise ValueError("the initial tokenizer has its own settings; leave tokenizer and small out")
        return round_frozen(load_initial(cfg.initial, cfg.system, cfg.family, cfg.continued), cfg.in_8_bits)
    settings: dict[str, JsonValue] = {"family": cfg.family, **cfg.tokenizer}
    if cfg.system is not None:
        system = read_system(cfg.system)
        settings = merge_settings(system.choose_settings(cfg.small), cfg.tokenizer)
    kind = find_family_class(str(settings["family"]))
    if not issubclass(kind, LatentTokenizer | MediaTokenizer):
        raise ValueError(f"{settings['family']} is no tokenizer: it gives no codes or latents to train")
    try:
        config = kind.config_class.model_validate(settings)
    except ValidationError as error:
        shown = cfg.system or cfg.family
        raise ValueError(f"tokenizer: {describe_error(error)}; `unimodal tokenizers show {shown}`") from None
    continued = open_continued(kind, str(settings["family"]), cfg.continued)
    made = kind(config) if continued is None else kind(config, continued)
    if cfg.trunk is not None:
        if not isinstance(made, SystemModule):
            raise ValueError(f"the {made.config.family} tokenizer has no trunk that is filled; leave trunk out")
        made.fill_trunk(cfg.trunk)
    if cfg.begin_from is not None:
        count = made.take_weights(open_beginning(cfg.begin_from, cfg.continued))
        print(f"{count} of {len(made.state_dict())} weights are from {cfg.begin_from}", file=sys.stderr)
    round_frozen(made, cfg.in_8_bits)
    if cfg.trunk is not None and isinstance(made, SystemModule):  # what is kept is of the trunk as it stays
        made.keep_trunk(cfg.trunk_memory_mb * 2**20, cfg.trunk_folder)
    return made


def round_frozen(tokenizer: AnyTokenizer, starts: Sequence[str]) -> AnyTokenizer:
    """Rounds what is stored in 8 bits, so that what stays frozen is what is stored from the first step on. ValueError
    for a beginning that no weight has."""
    names = [tokenizer.to_stored_name(name) for name in tokenizer.state_dict()]
    for given in starts:
        if not any(name.startswith(given) for name in names):
            parts = ", ".join(sorted({name.split(".")[0] for name in names}))
            raise ValueError(f"in_8_bits: no weight begins with {given!r}; there are {parts}")
    return tokenizer.round_to_8_bits(tuple(starts))


def fit_to_labels(tokenizer: AnyTokenizer, folder: str, stream: MediaStream) -> None:
    """What no gradient learns, by every medium below the folder. ValueError for a tokenizer that fits nothing."""
    if not isinstance(tokenizer, SystemModule):
        raise ValueError(f"the {tokenizer.config.family} tokenizer fits nothing to labels; leave labelled out")
    size = next(iter(stream.parts[0].sizes), None)
    tokenizer.fit_to_labels(read_labelled(folder, tokenizer.modality, tokenizer.file_target, size))


def choose_picture_size(cfg: TokenizerRecipe, tokenizer: AnyTokenizer) -> AnyTokenizer:
    """The tokenizer that reads files at the size it is measured at, where that changes no weight; tells where not."""
    asked = [sizes for sizes in (cfg.sizes, *(stage.sizes for stage in cfg.stages)) if sizes]
    if not asked or not isinstance(tokenizer, SystemModule) or tokenizer.picture_size is None:
        return tokenizer
    size = find_sizes(tokenizer, asked[-1])[0]
    if size[0] == size[1] and "image_size" not in cfg.tokenizer:
        tokenizer = tokenizer.change_picture_size(size[0])
    if size != tokenizer.picture_size:
        own = "{}×{}".format(*tokenizer.picture_size or size)
        print(f"files will be tokenized at {own}, the image_size, and not at {size[0]}×{size[1]}", file=sys.stderr)
    return tokenizer


def make_trained(
    cfg: TokenizerRecipe, tokenizer: AnyTokenizer, stream: MediaStream, conditions: ConditionMaker
) -> TrainedTokenizer:
    """The tokenizer with its losses and stages, tried at every size. Raises ValueError for parts that do not fit."""
    features: dict[str, int] = {}
    example: MediaBatch | None = None
    reconstructs = isinstance(tokenizer, ReconstructingModule) and tokenizer.reconstructs
    for place, part in enumerate(stream.parts):
        for size in part.sizes or (None,):
            views = stream.read_held_out(place, 1, size)
            if views and reconstructs:
                batch = stack_views(part.items.modality, tokenizer, views)
                example = example or batch
                features = try_once(tokenizer, batch, size, conditions)
    bag: LossBag | None = None
    if isinstance(tokenizer, SystemModule) and tokenizer.taught_by and cfg.losses is None:
        raise ValueError(f"{tokenizer.config.family} learns nothing alone; teach it: --set '{tokenizer.taught_by}'")
    if reconstructs and not (tokenizer.has_own_loss and cfg.losses is None):
        settings, decodes = (cfg.losses or LossSettings()).name_characters(list_texts(stream)), tokenizer.can_decode
        family, rate = tokenizer.config.family, tokenizer.sample_rate_hz
        bag = LossBag(settings, tokenizer.modality, features, rate, decodes=decodes, family=family)
    elif cfg.losses is not None:
        raise ValueError(f"{tokenizer.config.family} is trained by a loss of its own; leave losses out")
    chosen = [cfg.train] + [stage.train if stage.train is not None else cfg.train for stage in cfg.stages]
    encoder: set[str] = set()
    if any(train != ALL for train in chosen):
        if example is None:
            raise ValueError(f"train {cfg.train!r} is of published systems, not of {tokenizer.config.family}")
        condition = conditions.make(example.media, example.captions)
        encoder = find_encoder_names(tokenizer, example.media, conditions.choose(condition, conditions.encode_kinds))
    stages = []
    for stage, train in zip((Stage(first_step=0), *cfg.stages), chosen, strict=True):
        if stage.losses and bag is None:
            raise ValueError(f"{tokenizer.config.family} is trained by a loss of its own; leave losses out of stages")
        weights = bag.settings.change_weights(stage.losses) if bag is not None and stage.losses else None
        trained = None if train == ALL else choose_trained(tokenizer, train, encoder)
        stages.append(StageParts(stage.first_step, trained, weights))
    return TrainedTokenizer(tokenizer, bag, stages, conditions)


def list_texts(stream: MediaStream) -> Iterator[str]:
    """The texts of all stages' media that can be read."""
    for items in dict.fromkeys(part.items for part in stream.parts):
        for index in range(len(items)):
            with suppress(ValueError):  # left out and told when its turn comes
                yield from (item.text for item in items.read(index))


@torch.no_grad()
def try_once(
    tokenizer: AnyTokenizer, batch: MediaBatch, size: Size | None, conditions: ConditionMaker
) -> dict[str, int]:
    """Name → width of what a tokenizer gives for alignment. ValueError where it does not take media of that size."""
    assert isinstance(tokenizer, ReconstructingModule)
    at = "" if size is None else f" at {size[0]}×{size[1]}"
    try:
        condition = conditions.make(batch.media, batch.captions)
        made = tokenizer.eval().reconstruct_codes(batch.media, batch.lengths, condition)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        own = "" if tokenizer.picture_size is None else "; its own size is {}×{}".format(*tokenizer.picture_size)
        raise ValueError(f"{tokenizer.config.family} does not fit the data{at}: {reason}{own}") from None
    if made.decoded is not None and tokenizer.modality != "audio" and made.decoded.shape[2:] != batch.media.shape[2:]:
        shapes = [" × ".join(map(str, x.shape[2:])) for x in (batch.media, made.decoded)]
        raise ValueError(f"{tokenizer.config.family} decodes {shapes[0]} to {shapes[1]}; choose other sizes")
    return {name: values.shape[-1] for name, values in made.features.items()}


# ---- the data


def open_stream(
    cfg: TokenizerRecipe, tokenizer: AnyTokenizer, parallel: Parallel, left_out: LeftOut, reads_text: bool
) -> MediaStream:
    """All stages' media. Raises ValueError where there are none of the tokenizer's kind, or no size is known."""
    opened: dict[tuple[str, str], MediaItems] = {}
    captioned = reads_text or (cfg.losses is not None and cfg.losses.reads_texts)
    optional = not reads_text and (cfg.losses is None or not cfg.losses.needs_texts)
    options = ItemOptions(cfg.group, cfg.columns, cfg.split, cfg.from_hub, cfg.media_root, captioned, optional)
    parts = []
    for stage in (Stage(first_step=0), *cfg.stages):
        medium, media = stage.medium or tokenizer.modality, stage.media or cfg.media
        if medium != tokenizer.modality and (medium, tokenizer.modality) != ("image", "video"):
            raise ValueError(f"a stage has the medium {medium}, and the tokenizer is one of {tokenizer.modality}")
        if (media, medium) not in opened:
            opened[media, medium] = open_media_items(media, medium, options)
        whole = captioned and medium == "audio"  # texts are of whole sounds
        views = ViewOptions(cfg.crop_scale, cfg.flip, cfg.upscale, cfg.crop_s, medium != tokenizer.modality, whole)
        given = cfg.sizes if stage.sizes is None else stage.sizes
        sizes = find_sizes(tokenizer, given) if medium in ("image", "video") else ()
        size = stage.batch_size or cfg.batch_size
        parts.append(StreamPart(stage.first_step, opened[media, medium], sizes, size, views, cfg.sorted_batches))
    return MediaStream(
        parts, tokenizer.file_target, cfg.one_held_out_of, cfg.loop.seed, cfg.workers, cfg.loop.accumulation,
        parallel.rank, parallel.num_ranks, left_out,
    )  # fmt: skip


def stack_views(modality: str, tokenizer: AnyTokenizer, views: Sequence[View]) -> MediaBatch:
    """The largest group of views that can share a batch, with captions where any has one (\"\" for the others)."""
    medium = find_medium(tokenizer.modality if modality == "image" else modality)
    groups = group_by_size(medium, [view.medium for view in views])
    chosen = [views[number] for number in max(groups, key=len)]
    captions = tuple(view.text for view in chosen)
    return MediaBatch(*stack_media(medium, [view.medium for view in chosen]), captions if any(captions) else None)


class Batches:
    """The stream's batches, on the device that is trained on."""

    def __init__(self, stream: MediaStream, tokenizer: AnyTokenizer, device: torch.device):
        self.stream, self.tokenizer, self.device = stream, tokenizer, device

    def next_batch(self) -> MediaBatch:
        views = self.stream.next_views()
        return stack_views(self.stream.parts[0].items.modality, self.tokenizer, views).move(self.device)

    def state_dict(self) -> dict[str, int]:
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.stream.load_state_dict(state)


def read_held_out(cfg: TokenizerRecipe, stream: MediaStream, tokenizer: AnyTokenizer) -> list[MediaBatch]:
    """What is held out of the last stage's media, in batches, at the first of its sizes."""
    part = stream.parts[-1]
    others = None if cfg.held_out is None else open_media_items(cfg.held_out, part.items.modality, ItemOptions())
    views = stream.read_held_out(len(stream.parts) - 1, cfg.held_out_items, next(iter(part.sizes), None), others)
    medium = find_medium(tokenizer.modality)
    batches = []
    for first in range(0, len(views), part.batch_size):
        some = views[first : first + part.batch_size]
        for group in group_by_size(medium, [view.medium for view in some]):
            batches.append(stack_views(part.items.modality, tokenizer, [some[number] for number in group]))
    return batches


class TokenizerTrainer(Trainer[MediaBatch]):
    """A trainer that measures the codes of what is held out, draws it, and says what is left, at every validation."""

    began: tuple[float, int] | None = None
    last_psnr: float | None = None
    budget_s: float | None = None
    processor_s = 0.0  # of this process, in all steps but the first, which also sets things up

    def train_step(self) -> dict[str, float | tuple[float, float]]:
        first, begun = self.began is None, time.process_time()
        self.began = self.began or (time.monotonic(), self.step)
        logged = super().train_step()
        if not first:
            self.processor_s += time.process_time() - begun
            if self.budget_s is not None:
                each = self.processor_s / (self.step - self.began[1] - 1)
                left = max(0, round((self.budget_s - self.processor_s) / each))
                self.cfg = self.cfg.model_copy(update={"steps": self.step + left})
        return logged

    def evaluate(self) -> dict[str, float]:
        losses = super().evaluate()
        assert isinstance(self.model, TrainedTokenizer)
        self.model.eval()
        sheet = self.folder / SHEETS / f"{self.step:07d}.png" if self.parallel.is_main else None
        report = measure_tokenizer(self.model.tokenizer, self.validation, self.model.conditions, sheet)
        self.model.train()
        if sheet is not None:
            self.say(report)
            for tracker in self.trackers if sheet.is_file() else ():
                tracker.log_picture(SHEETS, sheet, self.step)
        return {**losses, **report}

    def say(self, report: Mapping[str, float]) -> None:
        """One line: how good it is, and how long it goes on."""
        assert self.began is not None
        seconds, parts = (time.monotonic() - self.began[0]) / max(1, self.step - self.began[1]), []
        if "psnr" in report:
            more = "" if self.last_psnr is None else f" ({report['psnr'] - self.last_psnr:+.2f})"
            parts.append(f"{report['psnr']:.2f} dB{more}")
            self.last_psnr = report["psnr"]
        parts += [f"overlap {report['iou']:.1%}"] if "iou" in report else []
        used = [value for name, value in report.items() if name.startswith("used_")]
        parts += [f"{sum(used) / len(used):.0%} of the codes used"] if used else []
        left_min = (self.cfg.steps - self.step) * seconds / 60
        parts.append(f"{left_min:,.1f} min left for {self.cfg.steps - self.step:,} steps")
        print(f"step {self.step}/{self.cfg.steps}: {', '.join(parts)}", file=sys.stderr, flush=True)


def describe_data(cfg: TokenizerRecipe, stream: MediaStream) -> Iterator[str]:
    """A line for each stage: what is trained on, what is held out, at which sizes."""
    for part in stream.parts:
        items, from_step = part.items, f" from step {part.first_step:,} on" if part.first_step else ""
        sizes = f", at {', '.join(f'{h}×{w}' for h, w in part.sizes)}" if part.sizes else ""
        if isinstance(items, FileItems):
            groups = [items.find_group(index) for index in range(len(items))]
            held = sum(is_held_out(group, cfg.one_held_out_of) for group in groups)
            kept = f"{held:,} held out" if held else "none held out, so one of them is measured"
            yield f"{items.folder}: {len(items) - held:,} files to train on, {kept}{sizes}{from_step}"
        else:
            yield f"{cfg.media}: {len(items):,} rows, one in {cfg.one_held_out_of} held out{sizes}{from_step}"


def show_plan(cfg: TokenizerRecipe, stream: MediaStream, module: TrainedTokenizer, first: MediaBatch) -> None:
    print(describe_trained(module.tokenizer, cfg.system), *describe_data(cfg, stream), sep="\n")
    loss, numbers = module(first.media, first.lengths, 0, first.captions)
    parts = [f"{name} {value:.4g}" for name, value in {"loss": float(loss.detach()), **numbers}.items()]
    print(f"a batch of {' × '.join(map(str, first.media.shape))}: {', '.join(parts)}")


def run(cfg: TokenizerRecipe, flags: Flags) -> None:
    if cfg.loop.threads:
        torch.set_num_threads(cfg.loop.threads)
    if cfg.out.exists() and not cfg.out.is_dir():
        raise ValueError(f"out {cfg.out} is a file; name a folder for the tokenizer")
    parallel, left_out = start("ddp", find_unused=True), LeftOut()
    tokenizer = choose_picture_size(cfg, make_tokenizer(cfg))
    if cfg.text_network is not None:
        if tokenizer.text_settings is None:
            raise ValueError(f"{tokenizer.config.family} reads no texts; leave text_network out")
        tokenizer.name_text_network(cfg.text_network)
    initial = hash_weights(tokenizer) if cfg.initial is not None else "none"
    conditions = ConditionMaker(tokenizer)
    stream = open_stream(cfg, tokenizer, parallel, left_out, conditions.reads_text)
    try:
        module = make_trained(cfg, tokenizer, stream, conditions).to(parallel.device).train()
        if cfg.losses_from is not None:
            count = module.take_losses((load_checkpoint(cfg.losses_from) or {}).get("model", {}), str(cfg.losses_from))
            print(f"{count} weights of losses are from {cfg.losses_from}", file=sys.stderr)
        batches = Batches(stream, tokenizer, parallel.device)
        data = " ".join(dict.fromkeys(part.items.compute_fingerprint() for part in stream.parts))
        identity = describe_settings(cfg) | {"media files": data[:32], "initial": initial}
        if cfg.labelled is not None:  # also when a run goes on: the shapes of what is fitted are those of the labels
            fit_to_labels(tokenizer, cfg.labelled, stream)
        if flags.dry_run:
            show_plan(cfg, stream, module, batches.next_batch())
            return print(describe_resume(cfg.run, identity, flags.restart))
        if parallel.is_main:
            print(describe_trained(tokenizer, cfg.system), *describe_data(cfg, stream), sep="\n", file=sys.stderr)
        held_out = read_held_out(cfg, stream, tokenizer)
        wrapped = parallel.wrap(module)

        def loss(batch: MediaBatch, step: int) -> tuple[Tensor, dict[str, float]]:
            result: tuple[Tensor, dict[str, float]] = wrapped(batch.media, batch.lengths, step, batch.captions)
            return result

        validation = [batch.move(parallel.device) for batch in held_out] if cfg.loop.evaluate_every else None
        trainer = TokenizerTrainer(
            module, batches, loss, cfg.loop, cfg.run, validation=validation, parallel=parallel, identity=identity,
            restart=flags.restart,
        )  # fmt: skip
        trainer.budget_s = cfg.processor_s
        trainer.run()
    finally:
        stream.close()
    trainer.use_ema()
    module.eval().cpu()
    tokenizer.round_to_half().round_to_8_bits(cfg.in_8_bits)
    if parallel.is_main:
        report = measure_tokenizer(tokenizer, held_out, conditions, cfg.run / SHEETS / "last.png")
        if module.bag is not None and module.bag.spelling is not None:
            told = [module(b.media, b.lengths, 0, b.captions)[1] for b in held_out if b.captions]
            if errors := [numbers["character_errors"] for numbers in told if "character_errors" in numbers]:
                report["character_errors"] = sum(errors) / len(errors)
        tokenizer.save(cfg.out, cfg.in_8_bits)
        record = {
            "config": cfg.model_dump(mode="json"), "data_sha256": data, "weights_sha256": tokenizer.sha256,
            "held_out": report, "left_out": dict(left_out.reasons), "processor_s": round(trainer.processor_s, 3),
            "steps": trainer.step,
        }  # fmt: skip
        write_json(cfg.out / "recipe.json", record)
        print(*(f"{name:24}  {value:.6g}" for name, value in report.items()), sep="\n")
        ending = f"; {len(left_out)} files could not be used, see its recipe.json" if len(left_out) else ""
        print(f"wrote {cfg.out}{ending}", file=sys.stderr)
    parallel.close()


if __name__ == "__main__":
    run_training(TokenizerRecipe, run)
