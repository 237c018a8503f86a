"""The vocabulary of a converted checkpoint, whose rows keep the order of its own tables.

Our own vocabularies put controls and blocks behind the text. A checkpoint that was trained with another order keeps it,
so that its ids, weights and tokenizer files stay unchanged. Every row that is neither code nor control is text, or
reserved: never written in text. Only the checkpoint's own controls exist; two of them may be the same row.

Legend: V rows of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from unimodal.vocabulary.layout import Block, Control, SpanLayout, check_blocks, check_layouts, name_controls
from unimodal.vocabulary.vocabulary import Vocabulary

RESERVED = -3
#: the text tokenizer's files, which a converted folder keeps as its checkpoint has them
TEXT_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
REQUIRED = ("<|bos|>", "<|end_of_turn|>", "<|pad|>")


class AdoptedVocabulary(Vocabulary):
    """`size` rows, with blocks and controls at their own places. text_reserved: rows that are never written in text."""

    def __init__(
        self,
        size: int,
        controls: Sequence[Control],
        blocks: Sequence[Block],
        layouts: Sequence[SpanLayout],
        text_reserved: Iterable[int] = (),
        text_sha256: str = "",
    ) -> None:
        taken = {control.id for control in controls}
        inside = [block.rows for block in blocks]
        free = (row for row in text_reserved if row not in taken and not any(row in rows for rows in inside))
        super().__init__(size, controls, blocks, layouts, free, text_sha256)
        for layout in self.layouts:
            if layout.features is not None and layout.features.row not in self.text_reserved:
                raise ValueError(f"row {layout.features.row} stands for features, so it must be a reserved row")

    def _index_rows(self) -> None:
        self.size = self.text_size
        self._row_block = np.full(self.size, -1, dtype=np.int16)
        self._row_block[list(self.text_reserved)] = RESERVED
        self._row_block[[control.id for control in self.controls]] = -2
        for index, block in enumerate(self.blocks):
            self._row_block[block.start : block.start + block.size] = index
        text = np.flatnonzero(np.diff(np.concatenate([[False], self._row_block == -1, [False]]).astype(np.int8)))
        self._text_ranges = tuple(range(int(a), int(b)) for a, b in zip(text[::2], text[1::2], strict=True))

    def _check(self) -> dict[str, tuple[Block, ...]]:
        names, known = [control.name for control in self.controls], name_controls(self.blocks, self.layouts)
        missing = [name for name in REQUIRED if name not in names]
        wrong = [name for name in names if name not in known or names.count(name) > 1]
        if missing or wrong:
            raise ValueError(f"the control {(missing or wrong)[0]} is {'missing' if missing else 'not one of ours'}")
        groups: dict[str, tuple[Block, ...]] = {}
        rows: list[tuple[int, int, str]] = []
        for block in self.blocks:
            groups.update(check_blocks([block], block.start))
            rows.append((block.start, block.start + block.size, f"block {block.label}"))
        rows += [(row, row + 1, "a control") for row in {control.id for control in self.controls}]
        rows.sort()
        for (_, end, name), (start, _, other) in zip(rows, rows[1:], strict=False):
            if start < end:
                raise ValueError(f"{name} and {other} share row {start}")
        if rows[0][0] < 0 or max(end for _, end, _ in rows) > self.text_size:
            raise ValueError(f"a block or a control lies outside the {self.text_size} rows of the checkpoint")
        check_layouts(self.layouts, groups)
        return groups

    def is_text(self, row: int) -> bool:
        return 0 <= row < self.size and self._row_block[row] == -1

    def is_control(self, row: int) -> bool:
        return 0 <= row < self.size and self._row_block[row] == -2

    @property
    def control_range(self) -> range:
        raise ValueError("the rows of a converted checkpoint lie in its own order; its controls are not one range")

    @property
    def text_ranges(self) -> tuple[range, ...]:
        return self._text_ranges

    def make_token_string(self, row: int) -> str:
        block = self.find_block(row)
        if block is not None:
            return block.make_token_string(row - block.start)
        name = next((control.name for control in self.controls if control.id == row), None)
        if name is None:
            kind = "text" if self.is_text(row) else "reserved"
            raise ValueError(f"row {row} is a {kind} row; decode it with the text tokenizer")
        return name

    def list_token_strings(self) -> list[str]:
        raise ValueError("a converted checkpoint has token strings of its own; use the tokenizer files of its folder")

    def to_dict(self) -> dict[str, object]:
        return {**super().to_dict(), "adopted": True}

    def __repr__(self) -> str:
        parts = " + ".join(f"{block.size} {block.label} from {block.start}" for block in self.blocks)
        return f"AdoptedVocabulary({self.size} rows with {len(self.controls)} controls, {parts})"
