"""Prompts that are read a slice at a time, so that the rows which are being written do not wait for a long one.

A long prompt is read between the steps of the others (Sarathi, arXiv 2308.16369, calls it chunked prefill; there both
are one forward). `LeanSlots` hold what was read where its row goes on; another decoder is given it as a prefix, which a
twin of it has read.

Shapes: N tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from unimodal.generation.decoders.flush_streams import stack_positions
from unimodal.generation.decoders.slot_decoders import LeanSlots, make_twin
from unimodal.generation.decoders.step_decoder import CachedPrefix, Prompts, SlotDecoder, StepDecoder
from unimodal.generation.parts import EngineParts
from unimodal.vocabulary.positions import Position


class PromptReader:
    """parts: of whose decoder, and with whose soft prompt. slots: what the rows will join. num_read: tokens that were
    read in all."""

    def __init__(self, parts: EngineParts, slots: SlotDecoder) -> None:
        self.parts, self.slots = parts, slots
        self.decoder, self.pad_id, self.device = parts.decoder, parts.pad_id, parts.device
        self.num_read = 0
        self._held: dict[tuple[Position, ...], CachedPrefix | None] = {}
        self._open: tuple[tuple[Position, ...], StepDecoder, int] | None = None  # a prompt, its reader, tokens read

    def read(self, prompts: Prompts, most: int) -> bool:
        """Read at most ``most`` further tokens of these prompts; whether no more than that are left of any."""
        left = most
        for prompt in dict.fromkeys(map(tuple, prompts)):
            if len(prompt) <= most or prompt in self._held:
                continue
            if left <= 0:
                return False
            left -= self._read_slice(prompt, left, most)
            if prompt not in self._held:
                return False
        return True

    def _read_slice(self, prompt: tuple[Position, ...], num: int, most: int) -> int:
        """Read the next tokens of a prompt; once no more than ``most`` are left it is held. Returns how many."""
        if isinstance(self.slots, LeanSlots):
            if self.parts.prompt is not None:
                self.slots.begin(self.parts.prompt.read(), prompt)
            begin = self.slots.count_begun(prompt)
            end = min(begin + num, len(prompt) - 1)
            if len(prompt) - begin > most:
                self.slots.read_ahead(prompt, self.pad_id, end)
                self.num_read += end - begin
            if len(prompt) - end <= most:
                self._held[prompt] = None
            return end - begin
        if self._open is None or self._open[0] != prompt:
            self._open = (prompt, make_twin(self.decoder), 0)
        _, reader, begin = self._open
        end = min(begin + num, len(prompt) - 1)  # the last token is read when the row joins
        if begin:
            reader.step(stack_positions([prompt[begin:end]], self.device))
        else:
            reader.prefill([prompt[:end]], self.pad_id, len(prompt), self.parts.begin_streams(1))
        self.num_read += end - begin
        self._open = (prompt, reader, end)
        if len(prompt) - end <= most:
            self._held[prompt] = CachedPrefix(reader.export(0), end)
            self._open = None
        return end - begin

    def find_prefixes(self, prompts: Prompts) -> Sequence[CachedPrefix | None]:
        """What was read of each prompt; nothing where none was."""
        found = [self._held.get(tuple(prompt)) for prompt in prompts] if self._held else []
        return found if any(prefix is not None for prefix in found) else []

    def forget(self) -> None:
        """Drop what was read."""
        if isinstance(self.slots, LeanSlots):
            self.slots.forget_begun()
        self._held.clear()
        self._open = None
