"""ReasoningCodec of UniAudio 2 (arXiv 2602.04683): sound ⇄ reasoning codes at 5 Hz and reconstruction codes at 12.5 Hz.

Four frozen encoders hear the sound: two layers of a BEST-RQ encoder at 25 Hz, Whisper and WavLM at 50 Hz. Query tokens
after every five frames read Whisper and the semantic layer and become the reasoning codes; these scale and shift (FiLM)
three branches, for phones (WavLM), structure (semantic) and the rest (acoustic and Whisper), each with its own books.
All books together are the condition of a flow that gives the latents of SQ-Codec, which decodes them to sound.

The encoders' features are given to ``encode`` as ``Condition(features=…)``, made by `join_features`: the encoders are
four models of their own, and their weights are no part of this one. A small codec may hear by log-mel bands instead.

- The authors leave out each FiLM with probability 0.2 for an item even in evaluation, so that their codes differ from
  call to call. Here they are never left out; `published=True` draws as they do, from torch's own random state.
- One position is 0.4 s: the codes of the two streams in that time, 2 · 8 and 5 · 8, in the order of time.
- Long sounds are coded in windows of `window` positions on their own. Their latents are made in windows, too, the last
  quarter of which is the known beginning of the next.

Shapes: B batch, T samples, N positions of 0.4 s, F = 10 N frames of 25 Hz, D width, L latents of SQ-Codec.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.nano.audio_mel import LogMel
from unimodal.tokenizers.parts.heads.forward_flow import draw_forward_step, sample_forward
from unimodal.tokenizers.parts.quantizers.library_residual import LibraryResidualQuantizer
from unimodal.tokenizers.parts.trunks.pixart import FrameTransformer
from unimodal.tokenizers.parts.trunks.power_normed import PowerNormedBlock
from unimodal.tokenizers.rows import group_by_size
from unimodal.tokenizers.sounds import check_sounds, join_waves, pad_samples
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.streams import InterleavedStreams
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig
from unimodal.tokenizers.systems.key_map import KeyMap
from unimodal.tokenizers.systems.reasoning_codec_config import (
    CODES,
    FRAMES,
    REASONING,
    ReasoningCodecConfig,
    read_sizes,
)
from unimodal.tokenizers.systems.reasoning_codec_names import KEY_MAP
from unimodal.tokenizers.systems.sound import SoundTokenizer
from unimodal.tokenizers.systems.sqcodec import SQCodecTokenizer

SIGMA = 1e-4


def join_features(acoustic: Tensor, semantic: Tensor, whisper: Tensor, wavlm: Tensor) -> Tensor:
    """What the four encoders give, as ``Condition(features=…)`` takes it: float [B, F, width].

    acoustic, semantic: [B, F, D'] of BEST-RQ's two layers at 25 Hz; whisper, wavlm: [B, 2 F, D'] at 50 Hz.
    """
    return torch.cat([acoustic, semantic, *(part.unflatten(1, (-1, 2)).flatten(2) for part in (whisper, wavlm))], -1)


class AudioThinking(nn.Module):
    """Query tokens among merged features of Whisper and the semantic layer → reasoning codes."""

    def __init__(self, config: ReasoningCodecConfig):
        super().__init__()
        settings = config.reasoning
        self.interval = settings.interval
        self.cls_token = nn.Parameter(torch.randn(1, config.width))
        self.down_sampling_layer_whisper = nn.Conv1d(config.whisper_width, config.whisper_width, 2, 2)
        self.semantic_merge_proj = nn.Linear(config.whisper_width + config.best_rq_width, config.width)
        self.encoder_transformers = nn.Sequential(
            *[
                PowerNormedBlock(config.width, settings.head_width, settings.expansion)
                for _ in range(settings.num_layers)
            ]
        )
        self.reasoning_vq = LibraryResidualQuantizer(
            config.width, settings.codebook_size, settings.num_levels, settings.code_width, dead_below=0.1
        )

    def forward(self, whisper: Tensor, semantic: Tensor) -> Tensor:
        """whisper: [B, D', 2 F], semantic: [B, D'', F] → what the queries read, [B, F / interval, D]."""
        halved = self.down_sampling_layer_whisper(whisper)
        merged = self.semantic_merge_proj(torch.cat([halved, semantic], 1).transpose(1, 2))
        groups = merged.unflatten(1, (-1, self.interval))  # [B, F / interval, interval, D]
        queries = self.cls_token.expand(*groups.shape[:2], 1, -1)
        tokens = torch.cat([groups, queries], dim=2)
        return self.encoder_transformers(tokens.flatten(1, 2)).unflatten(1, tokens.shape[1:3])[:, :, -1]


class ReasoningCodecTokenizer(SoundTokenizer):
    """Sound, with its features, ⇄ positions of 0.4 s with 56 codes each (2 · 8 reasoning, 5 · 8 reconstruction)."""

    config_class: ClassVar[type[TokenizerConfig]] = ReasoningCodecConfig
    config: ReasoningCodecConfig
    encode_conditions = frozenset({"features"})
    decode_settings = frozenset({"noise", "steps", "guidance"})
    no_decoder = "this ReasoningCodec has no SQ-Codec, which turns its latents into sound: set sqcodec in its config"
    streams: InterleavedStreams

    def __init__(self, config: ReasoningCodecConfig):
        super().__init__(config)
        width, rows = config.width, (config.width, config.codebook_size)
        self.d_conv_whisper = nn.Conv1d(config.whisper_width, config.whisper_width, 4, 4)
        self.d_conv_wavlm = nn.Conv1d(config.wavlm_width, config.wavlm_width, 4, 4)
        self.d_conv_embedding_semantic = nn.Conv1d(config.best_rq_width, config.best_rq_width, 2, 2)
        self.d_conv_embedding_acoustic = nn.Conv1d(config.best_rq_width, config.best_rq_width, 2, 2)
        self.vq_pronunciation_semantic = LibraryResidualQuantizer(*rows, 1, config.code_width)
        self.vq_structure_semantic = LibraryResidualQuantizer(*rows, 1, config.code_width)
        self.vq_acoustic = LibraryResidualQuantizer(*rows, config.num_acoustic, config.code_width)
        self.cond_fusion_layer_phone = nn.Linear(config.wavlm_width, width)
        self.cond_fusion_layer_semantic = nn.Linear(config.best_rq_width, width)
        self.cond_fusion_layer_acoustic = nn.Linear(config.best_rq_width + config.whisper_width, width)
        self.time_film_phone, self.time_film_semantic, self.time_film_acoustic = (
            nn.Linear(width, 2 * width) for _ in range(3)
        )
        self.reason_adaptor, self.cond_feature_emb = nn.Linear(width, width), nn.Linear(width, width)
        self.zero_cond_embedding1 = nn.Parameter(torch.randn(width))
        self.audio_thinking = AudioThinking(config)
        flow = config.flow
        self.flow = FrameTransformer(
            2 * config.latent_width + width,
            config.latent_width,
            flow.num_heads * flow.head_width,
            flow.num_layers,
            flow.num_heads,
            flow.max_frames,
        )
        self.mel = None
        if config.bands:
            self.optional_conditions = frozenset({"features"})
            hop = config.sample_rate_hz // 50
            with torch.device("cpu"):  # it computes with its constants, also where the rest is built without storage
                self.mel = LogMel(config.sample_rate_hz, 2 * hop, hop, config.bands, 1e-5, -5.0, 3.0)
        self.sqcodec = None if config.sqcodec is None else SQCodecTokenizer(config.sqcodec)
        self.books = (self.vq_pronunciation_semantic, self.vq_structure_semantic, self.vq_acoustic)
        self.streams = InterleavedStreams((REASONING, CODES), (config.reasoning.num_levels, 2 + config.num_acoustic))
        own = tuple(size for book in self.books for size in book.codebook_sizes)
        sizes = self.streams.sizes([self.audio_thinking.reasoning_vq.codebook_sizes, own])
        self.describe(sizes, config.sample_rate_hz * 2 // 5, config.sample_rate_hz)

    def code_features(self, block: str, group: int = 0) -> Tensor | None:
        if block not in self.block_sizes or not 0 <= group < len(self.codebook_sizes):
            return None
        stream, _, level = self.streams.places[group]
        if stream == 0:
            return self.audio_thinking.reasoning_vq.make_table(level)
        return self.books[min(level, 2)].make_table(max(level - 2, 0))

    # ---- features to codes

    def split_features(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The inverse of `join_features`, each [B, D', F] or [B, D', 2 F]."""
        config = self.config
        sizes = [config.best_rq_width, config.best_rq_width, 2 * config.whisper_width, 2 * config.wavlm_width]
        acoustic, semantic, whisper, wavlm = features.split(sizes, dim=-1)
        slow = (acoustic.transpose(1, 2), semantic.transpose(1, 2))
        fast = (part.unflatten(-1, (2, -1)).flatten(1, 2).transpose(1, 2) for part in (whisper, wavlm))
        return (*slow, *fast)

    def quantize_features(
        self, features: Tensor, drop: float = 0.0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """features: float [B, F, width] → (reasoning ids int64 [B, 2 N, 8], ids [B, 5 N, 8], the sums of the rows of
        both float [B, 2 N, D] and [B, 5 N, D], the books' loss). drop: how often FiLM is left out for an item."""
        acoustic, semantic, whisper, wavlm = self.split_features(features)
        thought = self.audio_thinking.reasoning_vq(self.audio_thinking(whisper, semantic))
        told = self._spread_reasoning(thought.values)
        heard = torch.cat([self.d_conv_embedding_acoustic(acoustic), self.d_conv_whisper(whisper)], 1)
        branches = (
            (self.d_conv_wavlm(wavlm), self.cond_fusion_layer_phone, self.time_film_phone),
            (self.d_conv_embedding_semantic(semantic), self.cond_fusion_layer_semantic, self.time_film_semantic),
            (heard, self.cond_fusion_layer_acoustic, self.time_film_acoustic),
        )
        total, loss, ids = torch.zeros_like(told), thought.loss, []
        for (mixed, fuse, film), book in zip(branches, self.books, strict=True):
            delta, shift = film(told).chunk(2, dim=-1)
            kept = torch.ones(len(told), 1, 1, device=told.device)
            if drop:
                drawn = torch.rand(len(told), 1, 1, generator=generator, device=None if generator else told.device)
                kept = (drawn >= drop).to(told)
            scaled = fuse(mixed.transpose(1, 2)) * (1 + self.config.film_size * delta.tanh() * kept) + shift * kept
            found = book(scaled)
            total, loss = total + found.values, loss + found.loss
            ids.append(found.ids)
        return thought.ids, torch.cat(ids, -1), thought.values, total, loss

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        check_sounds(x)
        given = [x.shape[2]] * len(x) if lengths is None else lengths.tolist()
        counts = [-(-each // self.samples_per_code) for each in given]
        real = (torch.arange(x.shape[2], device=x.device) < torch.tensor(given, device=x.device)[:, None])[:, None]
        features = self.hear(x * real, counts, options.condition)
        rows: dict[int, Tensor] = {}
        for count, items in group_by_size(counts).items():
            own, parts = features[items, : count * FRAMES], []
            for window in own.split(self.config.window * FRAMES, dim=1):
                drop = self.config.film_drop if options.published else 0.0
                reasoning, ids, *_ = self.quantize_features(window, drop)
                parts.append(self.streams.join([Codes.whole(reasoning), Codes.whole(ids)]).ids)
            rows.update(zip(items, torch.cat(parts, 1), strict=True))
        return Codes.from_rows([rows[item].cpu() for item in range(len(x))], order="time").to(x.device)

    def hear(self, x: Tensor, counts: list[int], condition: Condition | None) -> Tensor:
        """Sounds [B, 1, T], of so many positions each, and what is given with them → features [B, F, width]. ValueError
        for features that are not there, too few, or of another width."""
        config = self.config
        width = 2 * (config.best_rq_width + config.whisper_width + config.wavlm_width)
        if condition is not None and condition.features is not None:
            features, mask = condition.features, condition.features_mask
            there = [features.shape[1]] * len(counts) if mask is None else mask.sum(1).tolist()
            fits = features.dim() == 3 and features.shape[2] == width
            if not fits or any(have < count * FRAMES for have, count in zip(there, counts, strict=True)):
                raise ValueError(
                    f"features are [B, {FRAMES} for each 0.4 s, {width}], 25 a second; got {tuple(features.shape)} for "
                    f"{max(counts)} positions"
                )
            return features.to(self.zero_cond_embedding1)
        if self.mel is None:
            raise ValueError(
                "ReasoningCodec hears through BEST-RQ, Whisper and WavLM: give Condition(features=join_features(…))"
            )
        fast = self.mel(pad_samples(x, max(counts) * self.samples_per_code)[:, 0]).transpose(1, 2)  # [B, 2 F, bands]
        slow = fast.unflatten(1, (-1, 2)).mean(2)
        return join_features(slow, slow, fast, fast)

    # ---- codes to sound

    def _spread_reasoning(self, values: Tensor) -> Tensor:
        """Rows of reasoning codes [B, 2 N, D], adapted, at the rate of the others: [B, 5 N, D]."""
        adapted = self.reason_adaptor(values).transpose(1, 2)
        return interpolate(adapted, scale_factor=CODES / REASONING, mode="nearest").transpose(1, 2)

    def make_condition(self, reasoning: Tensor, total: Tensor) -> Tensor:
        """Rows of both kinds of codes, [B, 2 N, D] and [B, 5 N, D] → the flow's condition, [B, F, D]."""
        return self.cond_feature_emb(total + self._spread_reasoning(reasoning)).repeat_interleave(2, dim=1)

    def _list_kept(self) -> list[int]:
        """Books of reconstruction that a coarser sound has: both of meaning, and 1, 2, … of sound."""
        return [2 + 2**power for power in range(8) if 2**power < self.config.num_acoustic]

    def _choose_groups(self, kept: int) -> tuple[int, ...]:
        return self.streams.choose_groups([self.streams.groups[0], kept])

    @property
    def coarser_groups(self) -> tuple[tuple[int, ...], ...]:
        return tuple(self._choose_groups(kept) for kept in self._list_kept())

    def look_up_condition(self, ids: Tensor) -> Tensor:
        """Joined codes int64 [B, N, 56], or those of `coarser_groups` → the flow's condition, [B, F, D]."""
        reasoned, every = self.streams.groups
        kept = next((count for count in self._list_kept() if len(self._choose_groups(count)) == ids.shape[-1]), every)
        streams = InterleavedStreams(self.streams.rates, (reasoned, kept))
        reasoning, codes = (stream.ids for stream in streams.split(Codes.whole(ids)))
        parts = zip(self.books, codes.split([1, 1, kept - 2], -1), strict=True)
        total = sum(book.look_up(part) for book, part in parts)
        assert isinstance(total, Tensor)
        return self.make_condition(self.audio_thinking.reasoning_vq.look_up(reasoning), total)

    def sample_latents(
        self,
        condition: Tensor,
        noise: Tensor,
        steps: int,
        guidance: float,
        context: Tensor | None = None,
        num_real: int | None = None,
    ) -> Tensor:
        """condition: [B, F, D], noise: [B, F, L] → SQ-Codec's latents [B, F, L].

        context: [B, C, L], the known first latents. num_real: how many frames count; the others have a condition of
        nothing.
        """
        real = torch.arange(condition.shape[1], device=condition.device) < (num_real or condition.shape[1])
        condition = torch.where(real[:, None], condition, self.zero_cond_embedding1)
        count = 0 if context is None else context.shape[1]
        known = torch.zeros_like(noise)
        if context is not None:
            known[:, :count] = context

        def hold(x: Tensor, time: Tensor) -> Tensor:
            t = time[:, None, None]
            return torch.cat([((1 - (1 - SIGMA) * t) * noise + t * known)[:, :count], x[:, count:]], 1)

        def measure(x: Tensor, time: Tensor) -> Tensor:
            told = self.flow(torch.cat([x, known, condition], -1), time)
            if guidance == 1:
                return told
            free = self.flow(torch.cat([x, known, torch.zeros_like(condition)], -1), time)
            return free + guidance * (told - free)

        made = sample_forward(measure, noise, steps, hold=hold)
        return torch.cat([known[:, :count], made[:, count:]], 1)

    def noise_shape(self, num_positions: int) -> tuple[int, ...]:
        return num_positions * FRAMES, self.config.latent_width

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        assert self.sqcodec is not None and options.noise is not None
        steps = self.config.steps if options.steps is None else options.steps
        guidance = self.config.guidance if options.guidance is None else options.guidance
        waves: dict[int, Tensor] = {}
        for count, items in group_by_size(codes.counts).items():
            condition = self.look_up_condition(torch.stack([codes.row(item) for item in items]))
            latents = self._sample_windows(condition, options.noise[items, : count * FRAMES], steps, guidance)
            waves.update(zip(items, self.sqcodec.decode_latents(latents), strict=True))
        lengths = [count * self.samples_per_code for count in codes.counts]
        return join_waves([waves[item] for item in range(len(codes))], lengths, max(lengths))

    def _sample_windows(self, condition: Tensor, noise: Tensor, steps: int, guidance: float) -> Tensor:
        """``sample_latents`` of any number of frames, window by window behind the end of the one before."""
        size = self.config.window * FRAMES
        overlap = size // 4
        made = self.sample_latents(condition[:, :size], noise[:, :size], steps, guidance)
        while made.shape[1] < condition.shape[1]:
            place = slice(made.shape[1] - overlap, made.shape[1] - overlap + size)
            context = made[:, place.start :]
            found = self.sample_latents(condition[:, place], noise[:, place], steps, guidance, context)
            made = torch.cat([made, found[:, overlap:]], 1)
        return made

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """decoded: what one step of the flow points at. loss: the flow's and the books'. All items are whole."""
        if self.sqcodec is None:
            raise ValueError(self.no_decoder)
        check_sounds(x)
        count = -(-x.shape[-1] // self.samples_per_code)
        features = self.hear(x, [count] * len(x), condition)[:, : count * FRAMES]
        drop = self.config.film_drop if self.training else 0.0
        reasoning, ids, thought, total, loss = self.quantize_features(features, drop, generator)
        with torch.no_grad():
            wanted = self.sqcodec.encode_latents(pad_samples(x, count * self.samples_per_code))
        step = draw_forward_step(wanted, SIGMA, generator)
        told = self.make_condition(thought, total)
        if self.training:
            told = told * (torch.rand(len(x), 1, 1, generator=generator) >= self.config.condition_drop).to(told)
        velocity = self.flow(torch.cat([step.noisy, torch.zeros_like(wanted), told], -1), step.time)
        flow = (velocity - step.target).square().mean()
        estimate = step.noisy + (1 - step.time)[:, None, None] * velocity
        joined = self.streams.join([Codes.whole(reasoning), Codes.whole(ids)]).ids
        decoded = self.sqcodec.decode_latents(estimate)[..., : x.shape[-1]]
        return Reconstruction(decoded, loss + flow, joined, {"flow": float(flow.detach())})

    # ---- the authors' files

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> ReasoningCodecConfig:
        return read_sizes(fields)

    @classmethod
    def find_key_map(cls, config: SystemConfig) -> KeyMap:
        assert isinstance(config, ReasoningCodecConfig)
        if config.sqcodec is None:
            return KEY_MAP
        codec = SQCodecTokenizer.find_key_map(config.sqcodec)
        inner = [(rf"sqcodec\.{ours}", f"sqcodec.{theirs}") for ours, theirs in codec.rules]
        endings = [
            (ours + re.escape(ending.removeprefix(".")), theirs + written.removeprefix("."))
            for ours, theirs in inner
            for ending, written in codec.endings
        ]  # of SQ-Codec alone, whose weight norm has the older form
        ignored = tuple(rf"sqcodec\.{name}" for name in codec.ignored)
        return KeyMap((*endings, *inner, *KEY_MAP.rules), (*KEY_MAP.ignored, *ignored))

    @classmethod
    def from_authors(cls, weights: Mapping[str, Tensor], config: SystemConfig, source: str = "the checkpoint") -> Self:
        plain = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
        return super().from_authors(plain, config, source)

    @classmethod
    def add_companion(cls, weights: Mapping[str, Tensor], companion: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """companion: sqcodec.pth."""
        return {**weights, **{f"sqcodec.{name}": tensor for name, tensor in companion.items()}}
