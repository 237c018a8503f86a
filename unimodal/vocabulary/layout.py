"""The records of a vocabulary and their checks: blocks, controls, span layouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from unimodal.media.registry import find_medium
from unimodal.vocabulary.grid import GridMarks
from unimodal.vocabulary.patterns import CodePattern

ROLES = ("system", "user", "assistant")
#: the controls of every vocabulary, in this order; those of further media follow
CONTROLS = (
    "<|image_start|>",
    "<|image_end|>",
    "<|audio_start|>",
    "<|audio_end|>",
    "<|video_start|>",
    "<|video_end|>",
    "<|frame|>",
    "<|bos|>",
    "<|eos|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end_of_turn|>",
    "<|pad|>",
)
#: the media whose spans `CONTROLS` open and close in every vocabulary
FIRST_MEDIA = ("image", "audio", "video")

_STRICT = ConfigDict(extra="forbid")  # for records that are read from a file


@dataclass(frozen=True, kw_only=True)
class Block:
    """The rows of one codebook: code `c` of group `group` is row `start + c`, for `0 <= c < size`.

    layout: whether the codes of a step are one position each (`flat`) or all groups' together one (`summed`,
    `positions.py`).
    """

    name: str
    modality: str
    group: int = 0
    start: int = 0
    size: int
    sha256: str = ""
    layout: Literal["flat", "summed"] = "flat"
    __pydantic_config__: ClassVar = _STRICT

    @property
    def rows(self) -> range:
        return range(self.start, self.start + self.size)

    @property
    def label(self) -> str:
        """`image` for the first group, `image.1` for the second, …: the stem of the token strings."""
        return self.name if self.group == 0 else f"{self.name}.{self.group}"

    def make_token_string(self, code: int) -> str:
        """The token string of a code, such as `<|image_0003|>`; all of a block have as many digits, at least four."""
        return f"<|{self.label}_{code:0{self.digits}d}|>"

    def to_dict(self) -> dict[str, object]:
        """The block as in `vocabulary.json`; `layout` only if it is not `flat`."""
        fields = asdict(self)
        if self.layout == "flat":
            del fields["layout"]
        return fields

    @property
    def digits(self) -> int:
        return max(4, len(str(self.size - 1)))


@dataclass(frozen=True)
class Control:
    """A row that is neither text nor a code: `<|user|>`."""

    name: str
    id: int
    __pydantic_config__: ClassVar = _STRICT


@dataclass(frozen=True)
class Segment:
    """A run of `count` code steps of one block; `count=None` is any number from one upwards.

    mark: whether `<|frame|>` stands before it, unless it is the first of its span. Without a mark it continues the
    segment before, which must have a fixed length: for example a picture whose first eight codes have another codebook.
    """

    block: str
    count: int | None = None
    mark: bool = True
    __pydantic_config__: ClassVar = _STRICT


@dataclass(frozen=True)
class FeatureSpan:
    """The span of a medium that is read through continuous features and not through its codes.

    Between its start and end stands `count` times the reserved row `row`. The decoder is fed features there, which the
    reader whose weights have the hash `sha256` computes from the medium.
    """

    row: int
    count: int
    sha256: str = ""
    __pydantic_config__: ClassVar = _STRICT


@dataclass(frozen=True)
class SpanLayout:
    """The segments of one medium's span, in order.

    grid: the only segment is written in rows, as in `grid.py`, and may have any number of them; its count is that of
    the default grid. features: the medium is written as these segments and read as features. pattern: the order in
    which the codes of its one segment are written; None: step by step.
    """

    modality: str
    segments: tuple[Segment, ...]
    grid: GridMarks | None = None
    features: FeatureSpan | None = None
    pattern: CodePattern | None = None

    def __init__(
        self,
        modality: str,
        segments: Iterable[Segment],
        grid: GridMarks | None = None,
        features: FeatureSpan | None = None,
        pattern: CodePattern | None = None,
    ) -> None:
        object.__setattr__(self, "modality", modality)
        object.__setattr__(self, "segments", tuple(segments))
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "pattern", pattern)

    def to_dict(self) -> dict[str, object]:
        """The layout as in `vocabulary.json`; `grid`, `features` and `pattern` only if it has
        them."""
        fields: dict[str, object] = {"modality": self.modality, "segments": [asdict(one) for one in self.segments]}
        if self.grid is not None:
            fields["grid"] = asdict(self.grid)
        if self.features is not None:
            fields["features"] = asdict(self.features)
        if self.pattern is not None:
            fields["pattern"] = asdict(self.pattern)
        return fields

    @property
    def fixed_steps(self) -> int:
        """The number of code steps in segments of fixed length."""
        return sum(segment.count or 0 for segment in self.segments)

    @property
    def open_segment(self) -> int | None:
        """The index of the segment of free length; None if there is none."""
        return next((i for i, segment in enumerate(self.segments) if segment.count is None), None)

    @property
    def num_marks(self) -> int:
        """The marks between segments, and the one that a pattern has in a segment of free length."""
        closing = self.pattern is not None and self.open_segment is not None
        return closing + sum(segment.mark for segment in self.segments[1:])

    @property
    def min_steps(self) -> int:
        return self.fixed_steps + (self.open_segment is not None)


def make_standard_layouts(
    names: Iterable[str] = FIRST_MEDIA, image_codes: int = 64, motion_codes: int = 64, chunks: int = 2
) -> list[SpanLayout]:
    """The layouts of the media `names`: those at the top of `vocabulary.py`, and one of free length for further media.

    image_codes, motion_codes: codes of a picture, and of a chunk of motion. chunks: chunks of motion in a clip.
    """
    motion = [Segment("video", motion_codes)] * chunks
    layouts = {
        "image": SpanLayout("image", [Segment("image", image_codes)]),
        "video": SpanLayout("video", [Segment("image", image_codes), *motion]),
    }
    return [layouts.get(name) or SpanLayout(name, [Segment(name)]) for name in names]


def find_further_media(blocks: Iterable[Block], layouts: Iterable[SpanLayout]) -> tuple[str, ...]:
    """The media in blocks and layouts that are not in `FIRST_MEDIA`, in the order of their first mention."""
    named = [block.modality for block in blocks] + [layout.modality for layout in layouts]
    return tuple(name for name in dict.fromkeys(named) if name not in FIRST_MEDIA)


def name_controls(blocks: Iterable[Block], layouts: Iterable[SpanLayout]) -> tuple[str, ...]:
    """The names of all controls, in the order of their rows: `CONTROLS`, then start and end of each further medium."""
    further = find_further_media(blocks, layouts)
    return (*CONTROLS, *(f"<|{name}_{side}|>" for name in further for side in ("start", "end")))


def check_blocks(blocks: Sequence[Block], start: int) -> dict[str, tuple[Block, ...]]:
    """The blocks by name, one for each group. Raises ValueError unless they follow each other from row `start` on."""
    groups: dict[str, tuple[Block, ...]] = {}
    for block in blocks:
        try:
            find_medium(block.modality)
        except ValueError as error:
            raise ValueError(f"block {block.name!r}: {error}") from None
        if not block.name.isascii() or not block.name.replace("_", "").isalnum():
            raise ValueError(f"block name {block.name!r} may hold letters, digits and _ only")
        if not 1 <= block.size <= 2**16:
            raise ValueError(f"block {block.label} has {block.size} codes; split codes of more than 65536 into groups")
        if block.start != start:
            raise ValueError(f"block {block.label} starts at row {block.start}, expected row {start}")
        earlier = groups.get(block.name, ())
        if block.group != len(earlier) or any(block.modality != other.modality for other in earlier):
            raise ValueError(f"block {block.label} does not follow on; number the groups of one tokenizer 0, 1, 2, …")
        if any(block.layout != other.layout for other in earlier):
            raise ValueError(f"block {block.label} is {block.layout} and {earlier[0].label} {earlier[0].layout}")
        groups[block.name] = (*earlier, block)
        start += block.size
    return groups


def check_layouts(layouts: Sequence[SpanLayout], groups: Mapping[str, Sequence[Block]]) -> None:
    """Raises ValueError unless every layout uses existing blocks and can be read back from its rows."""
    if len({layout.modality for layout in layouts}) != len(layouts):
        raise ValueError("a modality has two span layouts; give it one")
    for layout in layouts:
        name = layout.modality
        find_medium(name)
        if not layout.segments:
            raise ValueError(f"span layout {name!r} is empty; give it at least one segment")
        missing = [segment.block for segment in layout.segments if segment.block not in groups]
        if missing:
            raise ValueError(f"span layout {name!r} names block {missing[0]!r}, which does not exist")
        if len({len(groups[segment.block]) for segment in layout.segments}) != 1:
            raise ValueError(f"span layout {name!r} mixes blocks with different numbers of groups")
        if len({groups[segment.block][0].layout for segment in layout.segments}) != 1:
            raise ValueError(f"span layout {name!r} mixes flat and summed blocks; lay them out alike")
        if sum(segment.count is None for segment in layout.segments) > 1:
            raise ValueError(f"span layout {name!r} has two segments of free length; only one can be read back")
        unmarked = [index for index, segment in enumerate(layout.segments) if index and not segment.mark]
        if any(layout.segments[index - 1].count is None for index in unmarked):
            raise ValueError(f"span layout {name!r} has no mark behind its segment of free length; set mark=True there")
        if layout.grid is not None and (
            [segment.count for segment in layout.segments] != [layout.grid.grid[0] * layout.grid.grid[1]]
            or len(groups[layout.segments[0].block]) != 1
        ):
            raise ValueError(f"span layout {name!r} has a grid; it needs one segment of one group and as many codes")
        if any(segment.count is not None and segment.count < 1 for segment in layout.segments):
            raise ValueError(f"span layout {name!r} has an empty segment; counts start at 1")
        if layout.pattern is not None:
            first = groups[layout.segments[0].block][0]
            if len(layout.segments) != 1 or layout.grid is not None or first.layout != "flat":
                raise ValueError(f"span layout {name!r} has a pattern; it needs one segment of codes at positions of "
                                 "their own")  # fmt: skip
            try:
                layout.pattern.check(len(groups[layout.segments[0].block]))
            except ValueError as error:
                raise ValueError(f"span layout {name!r}: {error}") from None
        if layout.features is not None and (name != "image" or layout.features.count < 1):
            raise ValueError(f"span layout {name!r} has features; they are of pictures, and at least one of each")
