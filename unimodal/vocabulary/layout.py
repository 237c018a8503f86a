"""What the rows of a vocabulary stand for, as plain records with their checks: blocks, controls, span layouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

from pydantic import ConfigDict

from unimodal.media.registry import find_medium
from unimodal.vocabulary.grid import GridMarks

ROLES = ("system", "user", "assistant")
#: of every vocabulary, in this order; the controls of further media follow them
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

_STRICT = ConfigDict(extra="forbid")  # of records that are read from a file


@dataclass(frozen=True, kw_only=True)
class Block:
    """The rows of one codebook: code `c` of group `group` is row `start + c`, for `0 <= c < size`."""

    name: str
    modality: str
    group: int = 0
    start: int = 0
    size: int
    sha256: str = ""
    __pydantic_config__: ClassVar = _STRICT

    @property
    def rows(self) -> range:
        return range(self.start, self.start + self.size)

    @property
    def label(self) -> str:
        """`image` for the first group, `image.1` for the second, …: the stem of the token strings."""
        return self.name if self.group == 0 else f"{self.name}.{self.group}"

    def make_token_string(self, code: int) -> str:
        """`<|image_0003|>`: as many digits for every code of the block, at least four."""
        return f"<|{self.label}_{code:0{self.digits}d}|>"

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

    With `mark` a `<|frame|>` stands before it, unless it is the first of its span. Without, it continues the segment
    before, which then has a fixed length: the codes of a picture whose first eight come from another codebook, say.
    """

    block: str
    count: int | None = None
    mark: bool = True
    __pydantic_config__: ClassVar = _STRICT


@dataclass(frozen=True)
class FeatureSpan:
    """How a medium stands in the ids that is read through continuous features and not through its codes.

    Between the start and the end of its span stand `count` times the reserved row `row`; what the decoder is fed there
    are the features that the reader with these weights (`sha256`) makes of the medium.
    """

    row: int
    count: int
    sha256: str = ""
    __pydantic_config__: ClassVar = _STRICT


@dataclass(frozen=True)
class SpanLayout:
    """The segments of one medium's span, in order, with `<|frame|>` before each but the first and the unmarked.

    With `grid` the one segment is written in rows, as `grid.py` says, and may have any number of them; its
    count is that of the grid that is drawn. With `features` the medium is written as these segments say and read
    otherwise.
    """

    modality: str
    segments: tuple[Segment, ...]
    grid: GridMarks | None = None
    features: FeatureSpan | None = None

    def __init__(
        self,
        modality: str,
        segments: Iterable[Segment],
        grid: GridMarks | None = None,
        features: FeatureSpan | None = None,
    ) -> None:
        object.__setattr__(self, "modality", modality)
        object.__setattr__(self, "segments", tuple(segments))
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "features", features)

    def to_dict(self) -> dict[str, object]:
        """What `vocabulary.json` holds of it: `grid` and `features` only where there are some."""
        fields: dict[str, object] = {"modality": self.modality, "segments": [asdict(one) for one in self.segments]}
        if self.grid is not None:
            fields["grid"] = asdict(self.grid)
        if self.features is not None:
            fields["features"] = asdict(self.features)
        return fields

    @property
    def fixed_steps(self) -> int:
        """Code steps of the segments of fixed length."""
        return sum(segment.count or 0 for segment in self.segments)

    @property
    def open_segment(self) -> int | None:
        """Index of the segment of free length, if there is one."""
        return next((i for i, segment in enumerate(self.segments) if segment.count is None), None)

    @property
    def num_marks(self) -> int:
        return sum(segment.mark for segment in self.segments[1:])

    @property
    def min_steps(self) -> int:
        return self.fixed_steps + (self.open_segment is not None)


def make_standard_layouts(
    names: Iterable[str] = FIRST_MEDIA, image_codes: int = 64, motion_codes: int = 64, chunks: int = 2
) -> list[SpanLayout]:
    """The layouts of the blocks in `names`: those drawn at the top of `vocabulary.py`, and for any further medium one
    span of free length of the block that has its name."""
    motion = [Segment("video", motion_codes)] * chunks
    layouts = {
        "image": SpanLayout("image", [Segment("image", image_codes)]),
        "video": SpanLayout("video", [Segment("image", image_codes), *motion]),
    }
    return [layouts.get(name) or SpanLayout(name, [Segment(name)]) for name in names]


def find_further_media(blocks: Iterable[Block], layouts: Iterable[SpanLayout]) -> tuple[str, ...]:
    """The media beside `FIRST_MEDIA` that blocks and then layouts name, in the order of their first mention."""
    named = [block.modality for block in blocks] + [layout.modality for layout in layouts]
    return tuple(name for name in dict.fromkeys(named) if name not in FIRST_MEDIA)


def name_controls(blocks: Iterable[Block], layouts: Iterable[SpanLayout]) -> tuple[str, ...]:
    """The names of all controls, in the order of their rows: `CONTROLS`, then a start and an end for each further
    medium. So a vocabulary without further media has the rows it always had."""
    further = find_further_media(blocks, layouts)
    return (*CONTROLS, *(f"<|{name}_{side}|>" for name in further for side in ("start", "end")))


def check_blocks(blocks: Sequence[Block], start: int) -> dict[str, tuple[Block, ...]]:
    """The blocks by name, a block for each group. ValueError unless they lie without a gap from row `start` on."""
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
        groups[block.name] = (*earlier, block)
        start += block.size
    return groups


def check_layouts(layouts: Sequence[SpanLayout], groups: Mapping[str, Sequence[Block]]) -> None:
    """ValueError unless every layout uses blocks that exist and can be told apart when it is read back."""
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
        if layout.features is not None and (name != "image" or layout.features.count < 1):
            raise ValueError(f"span layout {name!r} has features; they are of pictures, and at least one of each")
