"""What the codes of `whisper_bottleneck` and `whisper_codec` are made from: a frozen Whisper encoder (arXiv 2212.04356)
that hears sounds of any length.

A little silence is put in front of a sound, and its steps are left out. Sounds over 30 s are heard in windows.

Shapes: B batch, T samples, M mel bands, F frames, S steps of the trunk, W its width, N codes.
"""

from __future__ import annotations

from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import layer_norm, pad

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions
from unimodal.tokenizers.parts.kept_features import KeptFeatures
from unimodal.tokenizers.parts.quantizers import FiniteScalarQuantizer
from unimodal.tokenizers.parts.quantizers.interface import leave_autocast
from unimodal.tokenizers.parts.speech_encoders import WhisperSpeech
from unimodal.tokenizers.parts.trunks.whisper import WhisperSizes
from unimodal.tokenizers.parts.windows import encode_windows
from unimodal.tokenizers.pretrained.speech_encoders import load_speech_encoder
from unimodal.tokenizers.sounds import encode_rows
from unimodal.tokenizers.systems.sound import SoundConfig, SoundTokenizer


class WhisperHearingConfig(SoundConfig):
    """num_mels, trunk_width, trunk_heads, trunk_layers, context: of the trunk; by default those of Whisper tiny.
    listen: behind which layer the trunk is heard, by default the last. steps_per_code: of 20 ms. lead_steps: of silence
    in front. levels: of the scalars. window_frames, overlap_frames: of long sounds, 100 a second."""

    num_mels: int = Field(default=80, ge=1)
    trunk_width: int = Field(default=384, ge=4)
    trunk_heads: int = Field(default=6, ge=1)
    trunk_layers: int = Field(default=4, ge=1)
    context: int = Field(default=1500, ge=1)
    listen: int | None = None
    steps_per_code: int = Field(default=2, ge=1)
    lead_steps: int = Field(default=10, ge=0)
    levels: tuple[int, ...] = (8, 8, 8, 8)
    window_frames: int = Field(default=2960, ge=4)
    overlap_frames: int = Field(default=400, ge=0)

    @model_validator(mode="after")
    def check_fit(self) -> Self:
        """ValueError for heads that do not divide, a layer that is not there, and windows that do not fit."""
        if self.trunk_width % self.trunk_heads:
            raise ValueError(f"{self.trunk_heads} heads do not divide a trunk_width of {self.trunk_width}")
        if self.listen is not None and not 0 <= self.listen <= self.trunk_layers:
            raise ValueError(f"listen is {self.listen}; the trunk has {self.trunk_layers} layers")
        unit = 4 * self.steps_per_code
        if self.window_frames % unit or self.overlap_frames % unit or self.overlap_frames >= self.window_frames:
            raise ValueError(
                f"window_frames {self.window_frames} and overlap_frames {self.overlap_frames} are not two multiples of "
                f"{unit}, the first larger"
            )
        if self.window_frames // 2 + self.lead_steps > self.context:
            raise ValueError(f"window_frames {self.window_frames} and lead_steps are more than context {self.context}")
        return self


class WhisperHearing(SoundTokenizer):
    """A tokenizer of 16 kHz whose codes are scalars of what the trunk hears."""

    #: the trunk's own weights are in half precision
    stored_dtype = torch.float16
    config: WhisperHearingConfig

    def __init__(self, config: WhisperHearingConfig):
        super().__init__(config)
        self.trunk = WhisperSpeech(
            WhisperSizes(config.num_mels, config.trunk_width, config.trunk_heads, config.trunk_layers, config.context)
        )
        self.quantizer = FiniteScalarQuantizer(config.levels)
        self.kept: KeptFeatures | None = None
        hop = self.trunk.mel.hop
        self.frames_per_code = 2 * config.steps_per_code
        self.describe(self.quantizer.codebook_sizes, hop * self.frames_per_code, self.trunk.sample_rate_hz)

    def fill_trunk(self, source: str) -> None:
        """source: `whisper-tiny.en` of its package, or the folder of a Whisper of these sizes."""
        found = load_speech_encoder(source)
        if not isinstance(found, WhisperSpeech) or found.encoder.sizes != self.trunk.encoder.sizes:
            raise ValueError(f"the trunk {source} is no Whisper of the sizes in the tokenizer's settings")
        self.trunk.load_state_dict(found.state_dict())

    def keep_trunk(self, most_bytes: int, folder: Path | None = None) -> None:
        maker = blake2b(f"{self.config.listen} {self.config.lead_steps} {self.config.steps_per_code}".encode())
        for value in self.trunk.state_dict().values():
            maker.update(value.contiguous().numpy().tobytes())
        self.kept = KeptFeatures(most_bytes, folder, maker.digest()) if most_bytes else None

    # ---- from bands to codes

    @torch.no_grad()
    def hear(self, mel: Tensor) -> Tensor:
        """Bands of sounds of one length, [B, M, F], with the frames of silence in front → the trunk's features without
        them, [B, S, W], each step of mean 0 and variance 1."""
        layer = self.config.trunk_layers if self.config.listen is None else self.config.listen
        hidden = next(islice(self.trunk.encoder.list_hidden(mel), layer, None))
        return layer_norm(hidden[:, self.config.lead_steps :], hidden.shape[-1:])

    def join_steps(self, features: Tensor) -> Tensor:
        """[B, S, W] → [B, N, steps_per_code · W], with zeros behind the last step where it is not whole."""
        count = self.config.steps_per_code
        return pad(features, (0, 0, 0, -features.shape[1] % count)).unflatten(1, (-1, count)).flatten(2)

    def read_bands(self, x: Tensor) -> Tensor:
        """Sounds of one length, [B, 1, T], with silence in front → bands [B, M, F]; at least one frame behind it."""
        hop = self.trunk.mel.hop
        return self.trunk.mel(pad(x[:, 0].float(), (2 * self.config.lead_steps * hop, max(0, hop - x.shape[-1]))))

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        rows = encode_rows(x, lengths, self.encode_equal)
        return Codes.from_rows([row.cpu() for row in rows], order="time").to(x.device)

    def hear_windows(self, x: Tensor) -> Tensor:
        """Sounds of one length, [B, 1, T], as long as they are → what the trunk hears in windows, joined to codes,
        [B, N, steps_per_code · W]."""
        bands, lead = self.read_bands(x), 2 * self.config.lead_steps
        front = bands[..., :lead]  # every window has the silence in front

        def hear(window: Tensor) -> Tensor:
            silence = front.repeat(len(window) // len(front), 1, 1)
            return self.join_steps(self.hear(torch.cat([silence, window], dim=-1)))

        size, overlap = self.config.window_frames, self.config.overlap_frames
        return encode_windows(bands[..., lead:], hear, size, overlap, self.frames_per_code)

    # ---- training

    def hear_items(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sounds [B, 1, T] → what the trunk hears of each, joined to codes and padded, [B, N, steps_per_code · W], and
        which codes are real, bool [B, N]. ValueError for sounds of more than one window."""
        frames = max(self.trunk.mel.count_frames(int(n)) for n in ([x.shape[-1]] if lengths is None else lengths))
        if frames > self.config.window_frames:
            raise ValueError(f"a sound to train on is at most {self.config.window_frames / 100:g} s long; cut it")

        def hear(sounds: Tensor) -> Tensor:
            with leave_autocast(sounds.device):  # what is kept on disk is the same for trainings of any precision
                return self.join_steps(self.hear(self.read_bands(sounds)))

        def find(sounds: Tensor) -> Tensor:
            assert self.kept is not None
            return torch.cat([self.kept.find(sound, hear) for sound in sounds.split(1)])

        rows = encode_rows(x, lengths, hear if self.kept is None else find)
        counts = torch.tensor([len(row) for row in rows], device=x.device)
        joined = torch.stack([pad(row, (0, 0, 0, int(counts.max()) - len(row))) for row in rows])
        return joined, torch.arange(joined.shape[1], device=x.device) < counts.unsqueeze(1)
