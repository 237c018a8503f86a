"""What a bench is asked, and what it answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from unimodal.evaluation.tokenizer_bench.downstream import ModelPlan
from unimodal.evaluation.tokenizer_bench.named_weights import hash_named

PART = 16  # items that are measured and kept together
DEFAULT_SIDE = 128
VERSION, SOUND_VERSION, FILM_VERSION = 4, 6, 5  # of the measures: another one measures anew
PARTS = RECONSTRUCTION, DOWNSTREAM = "reconstruction", "downstream"


@dataclass(frozen=True)
class BenchSettings:
    """What is compared and on what.

    data: a folder of files or a dataset. limit: items at most, drawn by `seed`. side: pixels at which pictures are
    judged, by default the largest of the tokenizers'. judges: folders of vision encoders that judge beside the packaged
    networks. lpips: the folder of its weights. inception, utmos: files of the weights of the FID and of UTMOS. parts:
    where measured parts are kept. part: what is measured. plan: of the language model of the downstream part.
    recognisers: who reads speech, by name. every_rate: whether networks judge sounds at each rate; by default at the
    full one. workers: processes that judge.
    """

    data: Path
    parts: Path
    limit: int | None = None
    seed: int = 0
    side: int | None = None
    judges: tuple[Path, ...] = ()
    lpips: Path | None = None
    inception: Path | None = None
    utmos: Path | None = None
    legibility: bool = True
    part: str = RECONSTRUCTION
    plan: ModelPlan = ModelPlan()
    recognisers: tuple[str, ...] = ("moonshine",)
    every_rate: bool = False
    workers: int = 1


#: setting → the option that gives it, and the media whose reconstruction part reads it
READ_BY = {
    "side": ("--size", ("image", "video")), "judges": ("--judge", ("image", "video")),
    "lpips": ("--lpips", ("image", "video")), "inception": ("--weights inception", ("image",)),
    "utmos": ("--weights utmos", ("audio",)), "every_rate": ("--every-rate", ("audio",)),
}  # fmt: skip


def check_read(settings: BenchSettings, medium: str) -> None:
    """Raises ValueError for a setting that the part of this medium does not read."""
    given, plain = vars(settings), vars(BenchSettings(settings.data, settings.parts))
    for name, (option, media) in READ_BY.items():
        if given[name] == plain[name]:
            continue
        if settings.part == DOWNSTREAM:
            raise ValueError(f"{option} is of the reconstruction part; leave it out, or leave out --part {DOWNSTREAM}")
        if medium not in media:
            raise ValueError(
                f"{option} is of {' and '.join(media)}, and these tokenizers are of {medium}; leave it out"
            )


def hash_weights(settings: BenchSettings) -> dict[str, str]:
    """The hashes of the weights that an owner names, by network."""
    files = {"lpips": settings.lpips, "inception": settings.inception, "utmos": settings.utmos}
    return {f"{name}_sha256": hash_named(path) for name, path in files.items() if path is not None}


@dataclass
class BenchReport:
    """The figures: settings and hashes; tokenizers by label and codecs by name, each with its rates, cheapest first.
    originals: what judges that need no original say of the originals."""

    medium: str
    data: dict[str, object]
    seed: int
    side: int | None
    judges: dict[str, object]
    tokenizers: dict[str, dict[str, object]] = field(default_factory=dict)
    codecs: dict[str, dict[str, object]] = field(default_factory=dict)
    originals: dict[str, object] = field(default_factory=dict)
    part: str = RECONSTRUCTION

    def to_dict(self) -> dict[str, object]:
        """The report as its file has it; the part is said by the figures that are there."""
        found = asdict(self)
        del found["part"]
        return found
