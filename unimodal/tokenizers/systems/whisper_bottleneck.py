"""Speech codes from a frozen speech recogniser's encoder: what Whisper (arXiv 2212.04356) hears, in finite scalars.

Two steps of 20 ms become one code of four scalars through a light network; the same, turned round, rebuilds the
encoder's features from the codes. It is trained by that and, with `losses: {spelling: 1}`, by what is said: a trunk
that knows many voices gives codes that spell voices which the training never heard. It has no way back to sound.

A little silence is put in front of a sound, and its steps are left out. Sounds over 30 s are read in windows.

Shapes: B batch, T samples, M mel bands, F frames, S steps of the trunk, W its width, N codes, D width between.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, pad

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.kept_features import KeptFeatures
from unimodal.tokenizers.parts.quantizers import FiniteScalarQuantizer
from unimodal.tokenizers.parts.quantizers.interface import average_real
from unimodal.tokenizers.parts.speech_encoders import WhisperSpeech
from unimodal.tokenizers.parts.trunks.whisper import WhisperSizes
from unimodal.tokenizers.parts.windows import encode_windows
from unimodal.tokenizers.pretrained.speech_encoders import load_speech_encoder
from unimodal.tokenizers.rows import decode_rows
from unimodal.tokenizers.sounds import encode_rows
from unimodal.tokenizers.systems.base import Reconstruction
from unimodal.tokenizers.systems.sound import SoundConfig, SoundTokenizer


class WhisperBottleneckConfig(SoundConfig):
    """num_mels, trunk_width, trunk_heads, trunk_layers, context: of the trunk; by default those of Whisper tiny.
    listen: behind which layer the trunk is heard, by default the last. steps_per_code: of 20 ms. lead_steps: of silence
    in front. width, num_layers: of the light networks. levels: of the scalars. feature_weight: of the rebuilt features.
    window_frames, overlap_frames: of long sounds, 100 a second."""

    family: Literal["whisper_bottleneck"] = "whisper_bottleneck"
    num_mels: int = Field(default=80, ge=1)
    trunk_width: int = Field(default=384, ge=4)
    trunk_heads: int = Field(default=6, ge=1)
    trunk_layers: int = Field(default=4, ge=1)
    context: int = Field(default=1500, ge=1)
    listen: int | None = None
    steps_per_code: int = Field(default=2, ge=1)
    lead_steps: int = Field(default=10, ge=0)
    width: int = Field(default=256, ge=1)
    num_layers: int = Field(default=2, ge=0)
    levels: tuple[int, ...] = (8, 8, 8, 8)
    feature_weight: float = Field(default=1.0, ge=0)
    window_frames: int = Field(default=2960, ge=4)
    overlap_frames: int = Field(default=400, ge=0)

    @property
    def can_decode(self) -> bool:
        return False

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


class StepNetwork(nn.Module):
    """Residual convolutions over five steps, between two linear layers."""

    def __init__(self, inputs: int, width: int, outputs: int, num_layers: int):
        super().__init__()
        self.enter, self.leave = nn.Linear(inputs, width), nn.Linear(width, outputs)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(num_layers + 1))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv1d(width, width, 5, padding=2, groups=width), nn.Conv1d(width, width, 1))
            for _ in range(num_layers)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, N, inputs], mask: bool [B, N] → [B, N, outputs]; padding is never heard."""
        real = mask.unsqueeze(-1)
        h = self.enter(x)
        for norm, layer in zip(self.norms, self.layers, strict=False):
            h = h + gelu(layer((norm(h) * real).transpose(1, 2)).transpose(1, 2))
        return self.leave(self.norms[-1](h))


class WhisperBottleneckTokenizer(SoundTokenizer):
    """Speech of 16 kHz → 25 codes a second.

    ``encode``: float [B, 1, T] → Codes [B, N, 1]. There is no ``decode``: see `decode_features`.
    """

    config_class: ClassVar[type[WhisperBottleneckConfig]] = WhisperBottleneckConfig
    #: the trunk's own weights are in half precision
    stored_dtype = torch.float16
    no_decoder = (
        "these codes stand for a speech encoder's features, not for sound: decode_features(codes) gives them, and a "
        "speech synthesizer makes sound of them"
    )
    config: WhisperBottleneckConfig

    def __init__(self, config: WhisperBottleneckConfig):
        super().__init__(config)
        self.trunk = WhisperSpeech(
            WhisperSizes(config.num_mels, config.trunk_width, config.trunk_heads, config.trunk_layers, config.context)
        )
        joined = config.steps_per_code * config.trunk_width
        self.quantizer = FiniteScalarQuantizer(config.levels)
        self.down = StepNetwork(joined, config.width, len(config.levels), config.num_layers)
        self.up = StepNetwork(len(config.levels), config.width, joined, config.num_layers)
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

    def keep_trunk(self, most_bytes: int) -> None:
        self.kept = KeptFeatures(most_bytes) if most_bytes else None

    # ---- from bands to codes

    @torch.no_grad()
    def hear(self, mel: Tensor) -> Tensor:
        """Bands of sounds of one length, [B, M, F], with the frames of silence in front → the trunk's features without
        them, [B, S, W], each step of mean 0 and variance 1."""
        layer = self.config.trunk_layers if self.config.listen is None else self.config.listen
        hidden = list(self.trunk.encoder.list_hidden(mel))[layer]
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

    def encode_equal(self, x: Tensor) -> Tensor:
        bands, lead = self.read_bands(x), 2 * self.config.lead_steps
        front = bands[..., :lead]  # every window has the silence in front

        def encode(window: Tensor) -> Tensor:
            silence = front.repeat(len(window) // len(front), 1, 1)
            joined = self.join_steps(self.hear(torch.cat([silence, window], dim=-1)))
            whole = torch.ones(joined.shape[:2], dtype=torch.bool, device=joined.device)
            return self.quantizer(self.down(joined, whole)).ids

        size, overlap = self.config.window_frames, self.config.overlap_frames
        return encode_windows(bands[..., lead:], encode, size, overlap, self.frames_per_code)

    def decode_features(self, codes: Codes) -> list[Tensor]:
        """What the trunk heard, rebuilt from each item's codes: [N · steps_per_code, W], as `hear` gives it."""
        self.check_codes(codes)

        def decode(ids: Tensor) -> Tensor:
            whole = torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device)
            made = self.up(self.quantizer.look_up(ids), whole)
            return made.unflatten(2, (self.config.steps_per_code, -1)).flatten(1, 2)

        with torch.inference_mode():
            return decode_rows(codes, decode)

    # ---- training

    def hear_items(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sounds [B, 1, T] → what the trunk hears of each, joined to codes and padded, [B, N, steps_per_code · W], and
        which codes are real, bool [B, N]. ValueError for sounds of more than one window."""
        frames = max(self.trunk.mel.count_frames(int(n)) for n in ([x.shape[-1]] if lengths is None else lengths))
        if frames > self.config.window_frames:
            raise ValueError(f"a sound to train on is at most {self.config.window_frames / 100:g} s long; cut it")

        def hear(sounds: Tensor) -> Tensor:
            return self.join_steps(self.hear(self.read_bands(sounds)))

        def find(sounds: Tensor) -> Tensor:
            assert self.kept is not None
            return torch.cat([self.kept.find(sound, hear) for sound in sounds.split(1)])

        rows = encode_rows(x, lengths, hear if self.kept is None else find)
        counts = torch.tensor([len(row) for row in rows], device=x.device)
        joined = torch.stack([pad(row, (0, 0, 0, int(counts.max()) - len(row))) for row in rows])
        return joined, torch.arange(joined.shape[1], device=x.device) < counts.unsqueeze(1)

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """The codes' scalars as the features "codes", for the spelling loss; nothing is decoded. loss: the squared
        error of the rebuilt features. ValueError for sounds of more than one window."""
        joined, mask = self.hear_items(x, lengths)
        made = self.quantizer(self.down(joined, mask), mask)
        error = average_real((self.up(made.values, mask) - joined).square(), mask)
        numbers = {"feature_error": float(error.detach()), **made.numbers}
        return Reconstruction(None, self.config.feature_weight * error, made.ids, numbers, {"codes": made.values}, mask)
