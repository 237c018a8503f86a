"""The one id space of a model: text rows, then control rows, then one block of rows per codebook.

    rows   0 … text_size-1 | 14 controls | image block | audio block | video block | …

`text_size` is the number of embedding rows of the base model, padded rows included, so nothing of ours ever shares a
row with the base. A code becomes a row by adding an integer offset and a row becomes a code by subtracting it; no
string is ever parsed. The layout is saved as `vocabulary.json` beside the weights, with the sha256 of every tokenizer
that wrote codes into it: loading with another tokenizer is an error that names both hashes.

A *span* is one medium inside a sequence. Its `SpanLayout` fixes it completely:

    image  <|image_start|> 64 × image <|image_end|>
    audio  <|audio_start|> 1 or more × audio <|audio_end|>
    video  <|video_start|> 64 × image <|frame|> 64 × video <|frame|> 64 × video <|video_end|>

A tokenizer with G groups owns G blocks of one name; its codes `[N, G]` are written step by step: the G codes of step
0, then those of step 1, …, or as the layout's `pattern` says. `positions` says which of them stand at one position.

Legend: N code steps of a span, G groups (codebooks) of a tokenizer, V rows of the vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from unimodal.files import write_text_atomically
from unimodal.vocabulary.grid import Grid
from unimodal.vocabulary.layout import (
    FIRST_MEDIA,
    Block,
    Control,
    SpanLayout,
    check_blocks,
    check_layouts,
    find_further_media,
    make_standard_layouts,
    name_controls,
)
from unimodal.vocabulary.positions import PositionMap
from unimodal.vocabulary.stored import FORMAT_VERSION, StoredVocabulary


class Vocabulary:
    """Integer arithmetic between codes and rows. Build one with `build`, read one with `read_vocabulary`."""

    def __init__(
        self,
        text_size: int,
        controls: Sequence[Control],
        blocks: Sequence[Block],
        layouts: Sequence[SpanLayout],
        text_reserved: Iterable[int] = (),
        text_sha256: str = "",
    ) -> None:
        self.text_size = int(text_size)
        self.controls = tuple(controls)
        self.blocks = tuple(blocks)
        self.layouts = tuple(layouts)
        self.text_reserved = tuple(sorted({int(row) for row in text_reserved}))
        self.text_sha256 = text_sha256
        self._groups = self._check()
        self._layouts = {layout.modality: layout for layout in self.layouts}
        self._control_ids = {control.name: control.id for control in self.controls}
        #: text and all media that could have a span here; the position is the number used in `Rendered.modality`
        self.modalities = ("text", *FIRST_MEDIA, *find_further_media(self.blocks, self.layouts))
        self.modality_index = {name: index for index, name in enumerate(self.modalities)}
        self._index_rows()
        self.positions = PositionMap(self.blocks, self.size)
        self._start_modality = {self.get_start_id(name): name for name in self._layouts}

    def _index_rows(self) -> None:
        """Set `size` and the kind of every row, int16 [V]: the index of its block, -1 for text, -2 for controls."""
        self.size = self.text_size + len(self.controls) + sum(block.size for block in self.blocks)
        self._row_block = np.full(self.size, -1, dtype=np.int16)
        self._row_block[self.text_size : self.text_size + len(self.controls)] = -2
        for index, block in enumerate(self.blocks):
            self._row_block[block.start : block.start + block.size] = index

    # ---- making, saving, loading

    @classmethod
    def build(
        cls,
        text_size: int,
        blocks: Iterable[Block],
        layouts: Iterable[SpanLayout] | None = None,
        text_reserved: Iterable[int] = (),
        text_sha256: str = "",
    ) -> Vocabulary:
        """Put the controls and then the blocks, in the given order, behind `text_size` text rows.

        The `start` of the given blocks is ignored. layouts: by default the standard ones of the media that have a
        block. text_reserved: text rows that plain text never uses (the base's own special tokens, padded rows). Raises
        ValueError for blocks or layouts that do not fit together.
        """
        blocks = list(blocks)
        if layouts is None:
            names = {block.name for block in blocks}
            media = (*FIRST_MEDIA, *find_further_media(blocks, ()))
            layouts = make_standard_layouts([m for m in media if m in names and (m != "video" or "image" in names)])
        layouts = list(layouts)
        controls = [Control(name, text_size + i) for i, name in enumerate(name_controls(blocks, layouts))]
        placed: list[Block] = []
        start = text_size + len(controls)
        for block in blocks:
            placed.append(replace(block, start=start))
            start += block.size
        return cls(text_size, controls, placed, layouts, text_reserved, text_sha256)

    def save(self, path: str | Path) -> None:
        """Write `vocabulary.json`, whole or not at all."""
        write_text_atomically(path, json.dumps(self.to_dict(), indent=1) + "\n")

    def check_hashes(self, tokenizer_hashes: Mapping[str, str], source: str = "vocabulary") -> None:
        """Raises ValueError if a tokenizer in use is not the one that this vocabulary was built with.

        tokenizer_hashes: block name (or `text`) → sha256. source: the vocabulary's name in the message.
        """
        for name, found in tokenizer_hashes.items():
            if name == "text":
                expected = self.text_sha256
            elif name in self._groups:
                expected = self._groups[name][0].sha256
            else:
                known = ", ".join(["text", *self._groups])
                raise ValueError(f"{source}: no block named {name!r}; it has {known}")
            if expected and found != expected:
                raise ValueError(
                    f"{source}: the {name} tokenizer has sha256 {found} but the model was trained with {expected}; "
                    f"put the tokenizer that came with the model back"
                )

    def to_dict(self) -> dict[str, object]:
        """The content of `vocabulary.json`."""
        return {
            "format": FORMAT_VERSION,
            "size": self.size,
            "text": {"size": self.text_size, "sha256": self.text_sha256, "reserved": list(self.text_reserved)},
            "controls": [asdict(control) for control in self.controls],
            "blocks": [block.to_dict() for block in self.blocks],
            "layouts": [layout.to_dict() for layout in self.layouts],
        }

    @classmethod
    def from_stored(cls, stored: StoredVocabulary) -> Self:
        """The inverse of `to_dict`, for a vocabulary of this class; `read.py` chooses the class.

        Raises ValueError for parts that do not fit together.
        """
        vocabulary = cls(
            stored.text.size,
            stored.controls,
            stored.blocks,
            [layout.build() for layout in stored.layouts],
            stored.text.reserved,
            stored.text.sha256,
        )
        if vocabulary.size != stored.size:
            raise ValueError(f"the vocabulary says it has {stored.size} rows but its parts add up to {vocabulary.size}")
        return vocabulary

    def _check(self) -> dict[str, tuple[Block, ...]]:
        """The blocks by name. Raises ValueError unless the rows are contiguous and spans can be read back."""
        if self.text_size < 1:
            raise ValueError(f"text_size is {self.text_size}; it is the number of text rows, at least 1")
        if self.text_reserved and not 0 <= self.text_reserved[0] <= self.text_reserved[-1] < self.text_size:
            raise ValueError(f"reserved rows {self.text_reserved} must lie in the text rows 0..{self.text_size - 1}")
        controls = name_controls(self.blocks, self.layouts)
        if [(c.name, c.id) for c in self.controls] != [(n, self.text_size + i) for i, n in enumerate(controls)]:
            raise ValueError(f"the rows from {self.text_size} on must be the controls {' '.join(controls)}")
        groups = check_blocks(self.blocks, self.text_size + len(controls))
        check_layouts(self.layouts, groups)
        return groups

    # ---- rows

    def get_control_id(self, name: str) -> int:
        """The row of a control, by its name with or without `<|` and `|>`. Raises ValueError for an unknown name."""
        row = self._control_ids.get(name, self._control_ids.get(f"<|{name}|>"))
        if row is None:
            raise ValueError(f"no control token {name!r}; there are {', '.join(self._control_ids)}")
        return row

    @property
    def media(self) -> tuple[str, ...]:
        """The modalities that have a span here."""
        return tuple(self._layouts)

    def has_control(self, name: str) -> bool:
        """Whether there is a control of this name."""
        return name in self._control_ids

    def get_start_id(self, modality: str) -> int:
        """The row that starts a span of this modality."""
        return self.get_control_id(f"<|{modality}_start|>")

    def get_end_id(self, modality: str) -> int:
        """The row that ends a span of this modality."""
        return self.get_control_id(f"<|{modality}_end|>")

    def find_opened_medium(self, row: int) -> str | None:
        """The modality whose span starts with this row; None for other rows."""
        return self._start_modality.get(row)

    def is_text(self, row: int) -> bool:
        """Whether a row is text, reserved ones included."""
        return 0 <= row < self.text_size

    def is_control(self, row: int) -> bool:
        """Whether a row is a control."""
        return self.text_size <= row < self.text_size + len(self.controls)

    def find_block(self, row: int) -> Block | None:
        """The block of a row; None for text and control rows."""
        self._check_row(row)
        index = self._row_block[row]
        return self.blocks[index] if index >= 0 else None

    def group_blocks(self, name: str) -> tuple[Block, ...]:
        """The blocks of one name, one for each group. Raises ValueError for an unknown name."""
        if name not in self._groups:
            raise ValueError(f"no block named {name!r}; there are {', '.join(self._groups) or 'none'}")
        return self._groups[name]

    def get_block_range(self, name: str, group: int = 0) -> range:
        """The rows of a block. Raises ValueError for an unknown name."""
        return self.group_blocks(name)[group].rows

    @property
    def text_range(self) -> range:
        return range(self.text_size)

    @property
    def control_range(self) -> range:
        return range(self.text_size, self.text_size + len(self.controls))

    @property
    def text_ranges(self) -> tuple[range, ...]:
        """The text rows that plain text uses: all but the reserved ones, as ranges."""
        ranges, start = [], 0
        for row in (*self.text_reserved, self.text_size):
            if row > start:
                ranges.append(range(start, row))
            start = row + 1
        return tuple(ranges)

    def make_token_string(self, row: int) -> str:
        """The token string of a control or code: `<|user|>`, `<|image_0003|>`. Raises ValueError for a text row."""
        block = self.find_block(row)
        if block is not None:
            return block.make_token_string(row - block.start)
        if self.is_text(row):
            raise ValueError(f"row {row} is a text row; decode it with the text tokenizer")
        return self.controls[row - self.text_size].name

    def list_token_strings(self) -> list[str]:
        """The strings of all rows behind the text rows, in order."""
        return [self.make_token_string(row) for row in range(self.text_size, self.size)]

    # ---- spans

    def count_span_rows(self, modality: str, steps: int | None = None, grid: Grid | None = None) -> int:
        """The number of rows of a span, its start and end included.

        steps: code steps, by default the fewest. grid: rows and columns of a picture that is written in rows.
        """
        layout = self.get_layout(modality)
        if layout.grid is not None:
            return layout.grid.count_rows(grid or layout.grid.grid)
        if steps is None:
            steps = layout.min_steps
        groups = len(self._groups[layout.segments[0].block])
        return 2 + layout.num_marks + steps * groups

    def is_summed(self, modality: str) -> bool:
        """Whether the codes of a step of this medium stand at one position."""
        return self._groups[self.get_layout(modality).segments[0].block][0].layout == "summed"

    def count_span_positions(self, modality: str, steps: int | None = None, grid: Grid | None = None) -> int:
        """`count_span_rows` in positions of the sequence, which are what a model has room for."""
        layout = self.get_layout(modality)
        if not self.is_summed(modality):
            return self.count_span_rows(modality, steps, grid)
        return 2 + layout.num_marks + (layout.min_steps if steps is None else steps)

    def get_layout(self, modality: str) -> SpanLayout:
        """The span layout of a modality. Raises ValueError for one without a span."""
        if modality not in self._layouts:
            raise ValueError(f"this model has no {modality!r} span; it has {', '.join(self._layouts) or 'text only'}")
        return self._layouts[modality]

    def encode_span(self, modality: str, ids: ArrayLike, grid: Grid | None = None) -> list[int]:
        """Codes int64 `[N]` or `[N, G]` → the rows of the whole span. grid: for pictures that are written in rows.

        Raises ValueError for codes that are no integers, lie outside their blocks, or do not fit the span's layout.
        """
        codes = np.asarray(ids)  # [N] or [N, G]
        if codes.size and codes.dtype.kind not in "iu":
            raise ValueError(f"{modality} codes must be integers, got {codes.dtype}")
        if codes.ndim == 1:
            codes = codes[:, None]
        layout = self.get_layout(modality)
        groups = len(self._groups[layout.segments[0].block])
        if codes.ndim != 2 or codes.shape[1] != groups:
            raise ValueError(f"{modality} codes have shape {list(np.shape(ids))}; expected [N, {groups}]")
        rows = [self.get_start_id(modality)]
        if layout.grid is not None:
            [block] = self._groups[layout.segments[0].block]
            return [*rows, *layout.grid.encode(codes[:, 0], block.rows, grid), self.get_end_id(modality)]
        counts = self._count_segments(layout, len(codes))
        offset = 0
        for index, (segment, count) in enumerate(zip(layout.segments, counts, strict=True)):
            if index and segment.mark:
                rows.append(self.get_control_id("<|frame|>"))
            blocks = self._groups[segment.block]
            part = codes[offset : offset + count].astype(np.int64)  # [count, G]
            sizes = np.array([block.size for block in blocks])
            if ((part < 0) | (part >= sizes)).any():
                bad = part[(part < 0) | (part >= sizes)][0]
                raise ValueError(f"{modality} code {bad} is outside 0..{sizes.min() - 1} of block {segment.block!r}")
            part += np.array([block.start for block in blocks])
            pattern, mark = layout.pattern, self._find_step_mark(layout)
            rows += part.reshape(-1).tolist() if pattern is None else pattern.write(part, mark)
            offset += count
        rows.append(self.get_end_id(modality))
        return rows

    def decode_span(self, rows: Sequence[int]) -> tuple[str, np.ndarray]:
        """The inverse of `encode_span`: the modality, and codes int64 `[N]`, or `[N, G]` for several groups.

        Raises ValueError unless `rows` is exactly one well-formed span.
        """
        return self.read_span(rows)[:2]

    def read_span(self, rows: Sequence[int]) -> tuple[str, np.ndarray, Grid | None]:
        """`decode_span`, and the grid of a picture that is written in rows, else None."""
        ids = np.asarray(rows, dtype=np.int64)
        modality = self._start_modality.get(int(ids[0])) if len(ids) else None
        if modality is None:
            raise ValueError("a span must begin with the start token of a medium of this model")
        layout = self._layouts[modality]
        groups = len(self._groups[layout.segments[0].block])
        if layout.grid is not None and ids[-1] == self.get_end_id(modality):
            [block] = self._groups[layout.segments[0].block]
            return modality, *layout.grid.decode(ids[1:-1], block.rows)
        marks = layout.num_marks
        if layout.pattern is not None:
            within = layout.pattern.read(ids[1:-1], groups, self._find_step_mark(layout))
            ids, marks = np.concatenate([ids[:1], within, ids[-1:]]), 0
        steps, left_over = divmod(len(ids) - 2 - marks, groups)
        if left_over or ids[-1] != self.get_end_id(modality):
            raise ValueError(f"the {modality} span of {len(ids)} tokens is cut off or badly formed")
        parts, at = [], 1
        for index, (segment, count) in enumerate(
            zip(layout.segments, self._count_segments(layout, steps), strict=True)
        ):
            if index and segment.mark:
                if ids[at] != self.get_control_id("<|frame|>"):
                    raise ValueError(f"token {at} of the {modality} span should be <|frame|>")
                at += 1
            blocks = self._groups[segment.block]
            part = ids[at : at + count * groups].reshape(count, groups) - np.array([block.start for block in blocks])
            if ((part < 0) | (part >= np.array([block.size for block in blocks]))).any():
                raise ValueError(f"the {modality} span holds a token outside block {segment.block!r}")
            parts.append(part)
            at += count * groups
        codes = np.concatenate(parts)  # [N, G]
        return modality, codes[:, 0] if groups == 1 else codes, None

    def _find_step_mark(self, layout: SpanLayout) -> int | None:
        """What a pattern writes behind the last step of a span of free length."""
        return None if layout.open_segment is None else self.get_control_id("<|frame|>")

    def _count_segments(self, layout: SpanLayout, steps: int) -> list[int]:
        free = steps - layout.fixed_steps
        if layout.open_segment is None and free != 0:
            raise ValueError(f"{layout.modality} has {steps} codes; this model uses exactly {layout.fixed_steps}")
        if layout.open_segment is not None and free < 1:
            raise ValueError(f"{layout.modality} has {steps} codes; this model needs at least {layout.min_steps}")
        return [free if segment.count is None else segment.count for segment in layout.segments]

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.size:
            raise ValueError(f"row {row} is outside the vocabulary of {self.size} rows")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        parts = " + ".join(f"{block.size} {block.label}" for block in self.blocks)
        return f"Vocabulary({self.text_size} text + {len(self.controls)} control + {parts} = {self.size} rows)"
