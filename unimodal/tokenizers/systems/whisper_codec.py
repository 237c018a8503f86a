"""Speech of any voice ⇄ codes: what is said as 50 codes a second, how it is said as 6.25 a second, who says it as a few
codes of the whole sound (as BiCodec, arXiv 2503.01710, has them), and a decoder.

    voice voice voice voice voice voice | prosody content content content … | prosody content …

Content is read from what a frozen Whisper hears, which knows many voices, and from log-mel frames, which have what it
leaves out; voice and prosody from these frames alone. A decoder rebuilds the frames from all three, and a head makes
sound of them (Vocos, arXiv 2306.00814). The codes are learnt together with the decoder, since codes that only spell do
not tell it how a word sounds; `losses: {spelling: …}` keeps beside it what tells words apart. The head is trained
alone, from the frames of sounds (`train: [head]`).

Prosody has numbers behind those of content in the same block, so that any row of codes decodes: a code of prosody is of
the content behind it, up to the next one. A sound is filled up with silence to whole groups of prosody and content.

The voice can be another one: ``decode`` takes ``Condition(medium=…)``, a clip of it, and `change_voice` the codes of a
clip or one of the voices that the config knows by name.

Shapes: B batch, T samples, M mel bands, F frames, N codes, P prosody codes, V voice codes, K scalars.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import one_hot, pad

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.nano.audio_head import IstftHead
from unimodal.tokenizers.nano.audio_mel import LogMel
from unimodal.tokenizers.parts.quantizers import FiniteScalarQuantizer
from unimodal.tokenizers.parts.quantizers.interface import average_real
from unimodal.tokenizers.registry import load_tokenizer
from unimodal.tokenizers.sounds import check_sounds, join_waves, pad_samples
from unimodal.tokenizers.stored import read_fields
from unimodal.tokenizers.systems.base import Reconstruction
from unimodal.tokenizers.systems.whisper_codec_networks import (
    ContentEncoder,
    MelDecoder,
    ProsodyEncoder,
    VoiceEncoder,
)
from unimodal.tokenizers.systems.whisper_hearing import WhisperHearing, WhisperHearingConfig
from unimodal.tokenizers.voices import VoicedTokenizer


class WhisperCodecConfig(WhisperHearingConfig):
    """encoder_width, encoder_blocks: of the network that reads content. voice_codes, voice_levels, prosody_levels: of
    the codes of a sound and of a group. codes_per_prosody: codes of content in a group. window_size, hop, bands,
    mel_floor, mel_mean, mel_deviation: of the log-mel frames between decoder and head. reader_width: of the networks
    that read voice and prosody. decoder_width, dilations: of the decoder at the codes' rate, frame_width, frame_blocks:
    at the frames'. head_width, head_blocks, head_expansion: of the head. voices: by name, the codes of voices that it
    knows. Others as of `WhisperHearingConfig`."""

    family: Literal["whisper_codec"] = "whisper_codec"
    steps_per_code: int = Field(default=1, ge=1)
    encoder_width: int = Field(default=256, ge=2)
    encoder_blocks: int = Field(default=2, ge=0)
    voice_codes: int = Field(default=6, ge=1)
    voice_levels: tuple[int, ...] = (8, 8, 8)
    codes_per_prosody: int = Field(default=8, ge=1)
    prosody_levels: tuple[int, ...] = (8, 8, 4)
    window_size: int = Field(default=1024, ge=2)
    hop: int = Field(default=256, ge=1)
    bands: int = Field(default=80, ge=1)
    mel_floor: float = Field(default=1e-3, gt=0)
    mel_mean: float = -5.0
    mel_deviation: float = Field(default=2.5, gt=0)
    reader_width: int = Field(default=96, ge=1)
    decoder_width: int = Field(default=320, ge=1)
    dilations: tuple[int, ...] = (1, 2, 4, 1, 2)
    frame_width: int = Field(default=192, ge=1)
    frame_blocks: int = Field(default=2, ge=0)
    head_width: int = Field(default=256, ge=1)
    head_blocks: int = Field(default=5, ge=1)
    head_expansion: int = Field(default=3, ge=1)
    voices: dict[str, tuple[int, ...]] = {}

    @property
    def samples_per_group(self) -> int:
        """Samples that a code of prosody and its content stand for."""
        return 320 * self.steps_per_code * self.codes_per_prosody

    @model_validator(mode="after")
    def check_frames(self) -> Self:
        """ValueError for frames that do not fill a group, and for voices of other codes."""
        if self.samples_per_group % self.hop:
            raise ValueError(f"a hop of {self.hop} does not divide the {self.samples_per_group} samples of a group")
        for name, ids in self.voices.items():
            if len(ids) != self.voice_codes or not all(0 <= code < prod(self.voice_levels) for code in ids):
                raise ValueError(f"the voice {name} is {list(ids)}, not {self.voice_codes} codes of a voice")
        return self


class WhisperCodecTokenizer(WhisperHearing, VoicedTokenizer):
    """``encode``: float [B, 1, T] → Codes [B, V + P + N, 1]; ``decode`` takes ``Condition(medium=…)``, float
    [B, 1, T'], a clip of the voice to speak with."""

    config_class: ClassVar[type[WhisperCodecConfig]] = WhisperCodecConfig
    decode_conditions = frozenset({"medium"})
    optional_conditions = frozenset({"medium"})
    config: WhisperCodecConfig

    def __init__(self, config: WhisperCodecConfig):
        super().__init__(config)
        content, scalars = len(config.levels), len(config.prosody_levels)
        self.voice_quantizer = FiniteScalarQuantizer(config.voice_levels)
        self.prosody_quantizer = FiniteScalarQuantizer(config.prosody_levels)
        self.mel = LogMel(
            config.sample_rate_hz, config.window_size, config.hop, config.bands, config.mel_floor, config.mel_mean,
            config.mel_deviation,
        )  # fmt: skip
        frames = config.samples_per_group // config.hop
        self.voice = VoiceEncoder(config.bands, config.reader_width, config.voice_codes, len(config.voice_levels))
        self.prosody = ProsodyEncoder(config.bands, config.reader_width, frames, scalars)
        samples = 320 * config.steps_per_code
        joined = next(n for n in range(1, config.codes_per_prosody + 1) if n * samples % config.hop == 0)
        together = joined * samples // config.hop
        self.content = ContentEncoder(
            config.steps_per_code * config.trunk_width, config.bands, config.encoder_width, config.encoder_blocks,
            joined, together, content,
        )  # fmt: skip
        self.decoder = MelDecoder(
            (content, scalars + config.codes_per_prosody, config.voice_codes * len(config.voice_levels)),
            config.decoder_width, config.frame_width, config.dilations, config.frame_blocks, joined,
            together, config.bands,
        )  # fmt: skip
        self.head = IstftHead(
            config.bands, config.head_width, config.head_blocks, config.head_expansion, config.window_size, config.hop
        )
        self.samples_per_content = samples
        self.num_content = self.quantizer.codebook_sizes[0]
        sizes = {"voice": self.voice_quantizer.codebook_size}
        sizes["audio"] = self.num_content + self.prosody_quantizer.codebook_size
        self.codebook_sizes, self.block_sizes = (max(sizes.values()),), sizes
        self.segments = (("voice", config.voice_codes), ("audio", None))
        self.code_levels = {"voice": tuple(config.voice_levels)}
        group = config.codes_per_prosody + 1
        self.tokens_per_second = config.sample_rate_hz * group / config.samples_per_group
        self.samples_per_code = config.samples_per_group // group

    def fill_trunk(self, source: str) -> None:
        """source: `whisper-tiny.en` of its package or the folder of a Whisper of these sizes, for the trunk; or the
        folder of a trained `whisper_codec` or `mel_fsq`, for the head; several are joined by `+`. ValueError for one of
        other sizes."""
        for part in source.split("+"):
            folder = Path(part).expanduser()
            family = read_fields(folder).get("family") if (folder / "model.safetensors").is_file() else None
            if family not in ("whisper_codec", "mel_fsq"):
                super().fill_trunk(part)
                continue
            try:
                self.head.load_state_dict(load_tokenizer(folder).get_submodule("head").state_dict())
            except RuntimeError as error:
                reason = str(error).splitlines()[-1].strip()
                raise ValueError(f"{folder} has a head of other sizes: {reason}") from None

    # ---- sound to codes

    def pad_group(self, x: Tensor) -> Tensor:
        """Silence behind sounds [B, 1, T] to whole groups."""
        size = self.config.samples_per_group
        return pad_samples(x, -(-x.shape[-1] // size) * size)

    def read_voice(self, log_mel: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Scalars [B, V, K] and ids int64 [B, V]."""
        return self.voice_quantizer.quantize(self.voice(log_mel, mask))

    @torch.no_grad()
    def encode_voice(self, clips: Tensor) -> Tensor:
        check_sounds(clips)
        log_mel = self.mel(self.pad_group(clips.float())[:, 0])
        return self.read_voice(log_mel, log_mel.new_ones(len(clips), 1, log_mel.shape[-1]))[1]

    def encode_equal(self, x: Tensor) -> Tensor:
        x = self.pad_group(x)
        log_mel, heard = self.mel(x[:, 0]), self.hear_windows(x)
        whole = torch.ones(heard.shape[:2], dtype=torch.bool, device=heard.device)
        ids = self.quantizer(self.content(heard, log_mel, whole)).ids[..., 0]
        content = ids.unflatten(1, (-1, self.config.codes_per_prosody))  # [B, P, …]
        mask = log_mel.new_ones(len(x), 1, log_mel.shape[-1])
        voice = self.read_voice(log_mel, mask)[1]
        prosody = self.prosody_quantizer.quantize(self.prosody(log_mel, mask))[1] + self.num_content
        return torch.cat([voice, torch.cat([prosody.unsqueeze(-1), content], -1).flatten(1)], 1).unsqueeze(-1)

    # ---- codes to sound

    def split_row(self, row: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The codes of an item, int64 [n] → of the voice [V], of content [N], and for each of these the prosody [N] and
        the place behind that code of prosody [N]."""
        voice = pad(row[: self.config.voice_codes], (0, max(0, self.config.voice_codes - len(row))))
        rest = row[self.config.voice_codes :]
        is_content = rest < self.num_content
        told = torch.where(is_content, -1, rest - self.num_content)
        last = torch.cummax(torch.where(is_content, -1, torch.arange(len(rest), device=row.device)), 0).values
        middle = self.prosody_quantizer.codebook_size // 2  # before any is told
        prosody = torch.where(last >= 0, told[last.clamp_min(0)], middle)[is_content]
        places = (torch.arange(len(rest), device=row.device) - last - 1)[is_content] % self.config.codes_per_prosody
        return voice, rest[is_content], prosody, places

    def widen_prosody(self, values: Tensor, places: Tensor) -> Tensor:
        """Scalars of each code's prosody [B, N, K] and its place in the group, int64 [N] → [B, N, K +
        codes_per_prosody]."""
        where = one_hot(places, self.config.codes_per_prosody).float()
        return torch.cat([values, where.expand(len(values), -1, -1)], 2)

    def decode_row(self, row: Tensor, voice: Tensor | None = None) -> Tensor:
        """int64 [n] → [1, t]. voice: int64 [V], in place of the row's own."""
        own, content, prosody, places = self.split_row(row)
        if not len(content):
            return row.new_zeros(1, self.samples_per_content, dtype=torch.float32)
        more = -len(content) % self.decoder.joined
        content, prosody, places = (torch.cat([x, x[-1:].expand(more)]) for x in (content, prosody, places))
        mask = torch.ones_like(content, dtype=torch.bool)[None]
        scalars = self.voice_quantizer.to_values(own if voice is None else voice).flatten()[None]
        log_mel = self.decoder(
            self.quantizer.to_values(content)[None],
            self.widen_prosody(self.prosody_quantizer.to_values(prosody)[None], places), scalars, mask,
        )  # fmt: skip
        wave = self.head(log_mel, log_mel.new_ones(1, 1, log_mel.shape[-1]))
        return wave[:, : wave.shape[1] - more * self.samples_per_content]

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        clips = None if options.condition is None else options.condition.medium
        voices: list[Tensor | None] = [None] * len(codes) if clips is None else [*self.encode_voice(clips)]
        rows = [self.decode_row(codes.row(item)[:, 0], voice) for item, voice in enumerate(voices)]
        lengths = [row.shape[-1] for row in rows]
        return join_waves(rows, lengths, max(lengths))

    # ---- voices

    def name_voice(self, name: str, clip: Tensor) -> None:
        ids = tuple(self.encode_voice(clip[None])[0].tolist())
        self.config = self.config.model_copy(update={"voices": {**self.config.voices, name: ids}})

    def list_voices(self) -> tuple[str, ...]:
        return tuple(self.config.voices)

    def find_voice(self, name: str) -> Tensor:
        if name not in self.config.voices:
            known = ", ".join(self.config.voices) or "none"
            raise ValueError(f"there is no voice {name!r}; there are {known}; or give a clip of it")
        return torch.tensor(self.config.voices[name])

    def change_voice(self, codes: Codes, voice: Tensor) -> Codes:
        """The same said by another voice, int64 [V] or [B, V]."""
        ids = codes.ids.clone()
        ids[:, : self.config.voice_codes, 0] = voice.to(ids.device)
        return Codes(ids, codes.mask, codes.grid, codes.order)

    def code_features(self, block: str, group: int = 0) -> Tensor | None:
        """Scalars of the codes; those of content and of prosody stand in columns of their own."""
        if block == "voice" and group == 0:
            return self.voice_quantizer.make_table()
        if block != "audio" or group != 0:
            return None
        content, prosody = self.quantizer.make_table(), self.prosody_quantizer.make_table()
        width = content.shape[1] + prosody.shape[1] + 1
        table = content.new_zeros(len(content) + len(prosody), width)
        table[: len(content), : content.shape[1]] = content
        table[len(content) :, content.shape[1] : -1] = prosody
        table[len(content) :, -1] = 1
        return table

    # ---- training

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """features: "codes", the content's scalars. loss: the mean error of the log-mel frames. decoded: None in
        training where the head is not trained; where the decoder is not, the head learns from the frames of the sound
        itself, and that is all."""
        check_sounds(x)
        size = self.config.samples_per_group
        given = torch.full((len(x),), x.shape[-1]) if lengths is None else lengths.cpu()
        whole = -(-given // size) * size
        padded = self.pad_group(x.float())
        padded = padded * (torch.arange(padded.shape[-1]) < given[:, None]).to(x.device)[:, None]
        log_mel = self.mel(padded[:, 0])
        frames = (torch.arange(log_mel.shape[-1]) * self.config.hop < whole[:, None]).to(x.device)
        frame_mask = frames[:, None].float()
        if self.training and is_trained(self.head) and not is_trained(self.decoder):
            decoded = self.head(log_mel, frame_mask)[:, None, : x.shape[-1]]
            return Reconstruction(decoded, decoded.new_zeros(()))
        heard, mask = self.hear_items(padded, whole)
        made = self.quantizer(self.content(heard, log_mel, mask), mask)
        voice, _ = self.read_voice(log_mel, frame_mask)
        prosody, _ = self.prosody_quantizer.quantize(self.prosody(log_mel, frame_mask))
        group = self.config.codes_per_prosody
        places = torch.arange(group, device=x.device).repeat(prosody.shape[1])
        spread = self.widen_prosody(prosody.repeat_interleave(group, 1), places)
        rebuilt = self.decoder(made.values, spread, voice.flatten(1), mask)
        error = average_real((rebuilt - log_mel).transpose(1, 2).abs(), frames)
        numbers = {"mel_error": float(error.detach()), **made.numbers}
        wave = self.head(rebuilt, frame_mask) if not self.training or is_trained(self.head) else None
        decoded = None if wave is None else wave[:, None, : x.shape[-1]]
        return Reconstruction(decoded, error, made.ids, numbers, {"codes": made.values}, mask)


def is_trained(part: nn.Module) -> bool:
    """Whether a part of the network is trained at this step."""
    return any(weight.requires_grad for weight in part.parameters())
