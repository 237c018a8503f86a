"""Continuous media in prompts and answers: vectors are read in place of rows, and drawn by a head, one after the other.

The engine writes rows of the vocabulary. A model with continuous media (`model/continuous_media.py`) writes vectors
too, which a `VectorWriter` draws beside it: it reads the prompts up to the start of the medium, draws a vector from the
last state, feeds it back, and goes on until the span is full. In a prompt vectors stand as ids of features
(`model/feature_rows.py`), so that the engine answers in words about media that are given or were drawn.

A row's vectors do not depend on its neighbours, up to rounding: streams are padded on the left, and noise is drawn from
the row's own seed.

Shapes: B prompts, S streams (prompts, and their unconditional twins), N vectors of a span, K width of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimodal.generation.decoders.reference_decoder import ReferenceDecoder
from unimodal.generation.engine import Engine
from unimodal.model.continuous_media import find_continuous_media
from unimodal.model.feature_rows import FeatureRows, Features, attach_feature_rows
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class VectorPrompt(list[int]):
    """The ids of a prompt, some of which stand for vectors; it keeps these alive."""

    vectors: tuple[Features, ...] = ()


class VectorWriter:
    """Reads and draws the continuous media of a model. engine: answers in words; it is made here.

    Raises ValueError for a model without continuous media.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: Vocabulary) -> None:
        media = find_continuous_media(model)
        if media is None:
            raise ValueError("the model has no continuous media: its media are codes, which the engine writes")
        table = model.get_input_embeddings()
        self.media, self.vocabulary = media, vocabulary
        self.rows = table if isinstance(table, FeatureRows) else attach_feature_rows(model)
        self.engine = Engine(model, vocabulary)
        self._decoder = ReferenceDecoder(model)
        #: N
        self.num_vectors = vocabulary.get_layout(media.settings.medium).fixed_steps

    @torch.inference_mode()
    def fill_prompt(self, ids: Sequence[int], vectors: Sequence[Tensor]) -> VectorPrompt:
        """The ids of a prompt, with the vectors [N, K] of its media, in order, where the medium's row stands.

        Raises ValueError for vectors of another number or width than the row stands for.
        """
        filled, width = VectorPrompt(ids), self.media.settings.width
        for given in vectors:
            if given.dim() != 2 or given.shape[1] != width or not bool(torch.isfinite(given).all()):
                raise ValueError(f"vectors {list(given.shape)} are given; they are [N, {width}], all finite")
        kept = [self.rows.add(self.media.embed(given.to(self.engine.device))) for given in vectors]
        places = [place for place, row in enumerate(filled) if row == self.media.row]
        rows = [row for one in kept for row in one.ids]
        if len(places) != len(rows):
            raise ValueError(f"the prompt has room for {len(places)} vectors and {len(rows)} are given")
        for place, row in zip(places, rows, strict=True):
            filled[place] = row
        filled.vectors = tuple(kept)
        return filled

    @torch.inference_mode()
    def write(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int] | int = 0,
        steps: int = 20,
        temperature: float = 1.0,
        guidance: float = 1.0,
        unconditional: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """Draw a medium behind every prompt, float32 [B, N, K], as the latent tokenizer takes them.

        prompts: ids up to where the medium may begin; its start mark is added. steps, temperature: of the flow, the
        times its network runs for a vector and the deviation of its noise; 0 begins at the mean. guidance: 1 turns it
        off, any other needs ``unconditional``, a prompt for each. Raises ValueError for settings and prompts that
        cannot be met, before anything is computed.
        """
        num, medium = len(prompts), self.media.settings.medium
        each = [seeds] * num if isinstance(seeds, int) else list(seeds)
        twins = list(unconditional or ()) if guidance != 1.0 else []
        self._check(prompts, each, steps, temperature, guidance, twins)
        if not num:
            return torch.zeros(0, self.num_vectors, self.media.settings.width)
        start = self.vocabulary.get_start_id(medium)
        noise = self._draw_noise(each) * temperature
        streams = [[*prompt, start] for prompt in (*prompts, *twins)]
        pad, longest = self.vocabulary.get_control_id("<|pad|>"), max(map(len, streams))
        state = self._decoder.prefill(streams, pad, longest + self.num_vectors)  # [S, D]
        found: list[Tensor] = []
        for place in range(self.num_vectors):
            free = state[num:] if twins else None
            drawn = self.media.draw(state[:num], noise[:, place], steps, free, guidance)  # [B, K]
            found.append(drawn.float())
            if place + 1 < self.num_vectors:
                embedded = self.media.embed(drawn).to(state.dtype)[:, None]
                state = self._decoder.step_embedded(torch.cat([embedded, embedded]) if twins else embedded)
        return torch.stack(found, 1)

    def _draw_noise(self, seeds: Sequence[int]) -> Tensor:
        shape = (self.num_vectors, self.media.settings.width)
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows).to(self.engine.device)

    def _check(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        steps: int,
        temperature: float,
        guidance: float,
        twins: Sequence[Sequence[int]],
    ) -> None:
        """Raises ValueError for what `write` cannot do."""
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts came with {len(seeds)} seeds; give one or one for each")
        if steps < 1 or not temperature >= 0:
            raise ValueError(f"steps {steps} and temperature {temperature:g} are to be at least 1 and 0")
        if guidance != 1.0 and len(twins) != len(prompts):
            raise ValueError("guidance needs `unconditional`, the ids of each prompt without its text")
        if guidance != 1.0 and self.media.settings.head != "flow":
            raise ValueError(f"a {self.media.settings.head} head is not guided; leave guidance at 1")
        for prompt in (*prompts, *twins):
            if not len(prompt) or not self.engine.can_read(prompt):
                raise ValueError(f"a prompt is empty or has an id outside the {self.vocabulary.size} rows")
            need = len(prompt) + 1 + self.num_vectors
            if need > self.engine.max_positions:
                raise ValueError(
                    f"a prompt of {len(prompt)} tokens and {self.num_vectors} vectors exceed the model's "
                    f"{self.engine.max_positions} positions; shorten the prompt"
                )
