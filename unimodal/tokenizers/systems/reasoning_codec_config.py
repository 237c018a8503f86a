"""The settings of ReasoningCodec, and how its authors write them (yangdongchao/UniAudio2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.sound import SoundConfig
from unimodal.tokenizers.systems.sqcodec import SQCodecConfig, SQCodecTokenizer

#: frames of 25 Hz, reasoning codes and reconstruction codes in a position of 0.4 s
FRAMES, REASONING, CODES = 10, 2, 5


class ReasoningSettings(BaseModel):
    """interval: frames of 25 Hz between two queries. width is the codec's."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    num_levels: int = Field(default=8, ge=1)
    codebook_size: int = Field(default=4096, ge=2)
    code_width: int = Field(default=64, ge=1)
    interval: int = Field(default=5, ge=1)
    num_layers: int = Field(default=5, ge=1)
    head_width: int = Field(default=128, ge=32)
    expansion: int = Field(default=4, ge=1)


class FlowSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    num_layers: int = Field(default=32, ge=1)
    num_heads: int = Field(default=24, ge=1)
    head_width: int = Field(default=64, ge=2)
    max_frames: int = Field(default=3000, ge=FRAMES)


class ReasoningCodecConfig(SoundConfig):
    """whisper_width, wavlm_width, best_rq_width: of the features that are given. num_acoustic: levels of the acoustic
    book; phones and structure have one each. latent_width: L. sqcodec: None leaves SQ-Codec out, and with it
    ``decode``. film_size, film_drop: how far FiLM scales, and how often it is left out in training. condition_drop: how
    often training leaves out the flow's condition, for guidance. window: positions that are coded together.
    bands: log-mel bands that stand in for the features of all four encoders, so that a small codec hears by itself; 0
    where the features are given."""

    family: Literal["reasoning_codec"] = "reasoning_codec"
    sample_rate_hz: int = Field(default=24000, gt=0)
    width: int = Field(default=768, ge=32)
    whisper_width: int = Field(default=1024, ge=1)
    wavlm_width: int = Field(default=768, ge=1)
    best_rq_width: int = Field(default=1024, ge=1)
    codebook_size: int = Field(default=8192, ge=2)
    code_width: int = Field(default=32, ge=1)
    num_acoustic: int = Field(default=6, ge=1)
    latent_width: int = Field(default=136, ge=1)
    reasoning: ReasoningSettings = ReasoningSettings()
    flow: FlowSettings = FlowSettings()
    sqcodec: SQCodecConfig | None = None
    film_size: float = 0.1
    film_drop: float = Field(default=0.2, ge=0, le=1)
    condition_drop: float = Field(default=0.1, ge=0, le=1)
    steps: int = Field(default=10, ge=1)
    guidance: float = Field(default=1.5, ge=0)
    window: int = Field(default=75, ge=4)
    bands: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def check_parts(self) -> Self:
        """ValueError for parts that do not fit together."""
        if self.width % self.reasoning.head_width:
            raise ValueError(f"a width of {self.width} is not whole heads of {self.reasoning.head_width}")
        if self.bands and {self.whisper_width, self.wavlm_width, self.best_rq_width} != {self.bands}:
            raise ValueError(f"with bands the widths of all features are {self.bands}")
        if FRAMES % self.reasoning.interval or FRAMES // self.reasoning.interval != REASONING:
            raise ValueError(
                f"reasoning codes come every 5 frames of 25 Hz; got an interval of {self.reasoning.interval}"
            )
        if self.window * FRAMES > self.flow.max_frames:
            raise ValueError(f"a window of {self.window} positions is more than {self.flow.max_frames} frames")
        codec = self.sqcodec
        if codec is not None and (
            codec.num_channels != self.latent_width
            or codec.sample_rate_hz != self.sample_rate_hz
            or codec.samples_per_frame * 25 != self.sample_rate_hz
        ):
            raise ValueError(f"SQ-Codec gives {self.latent_width} channels at 25 Hz of {self.sample_rate_hz} Hz here")
        return self

    @property
    def can_decode(self) -> bool:
        return self.sqcodec is not None


def read_sizes(fields: Mapping[str, object]) -> ReasoningCodecConfig:
    """The sizes by the names of the reference file, with `dit` as their model_config.json and `sqcodec` as their
    sqcodec_config.yaml; their class has the other numbers in its code."""
    own, plain = AuthorsFields(fields), ReasoningCodecConfig()
    thinking, block, dit = own.open("reasoning"), own.open("reasoning", "block"), own.open("dit")
    codec = fields.get("sqcodec")
    deep, flow = plain.reasoning, plain.flow
    return ReasoningCodecConfig(
        width=own.take_integer("codec_dim", plain.width),
        whisper_width=own.take_integer("whisper_dim", plain.whisper_width),
        wavlm_width=own.take_integer("wavlm_dim", plain.wavlm_width),
        best_rq_width=own.take_integer("bestrq_dim", plain.best_rq_width),
        latent_width=own.take_integer("sq_latent", plain.latent_width),
        codebook_size=own.take_integer("codebook_size", plain.codebook_size),
        code_width=own.take_integer("codebook_dim", plain.code_width),
        num_acoustic=own.take_integer("acoustic_quantizers", plain.num_acoustic),
        reasoning=ReasoningSettings(
            num_levels=thinking.take_integer("num_quantizers", deep.num_levels),
            codebook_size=thinking.take_integer("codebook_size", deep.codebook_size),
            code_width=thinking.take_integer("codebook_dim", deep.code_width),
            interval=thinking.take_integer("interval", deep.interval),
            num_layers=block.take_integer("depth", deep.num_layers),
            head_width=block.take_integer("dim_heads", deep.head_width),
            expansion=block.take_integer("ff_mult", deep.expansion),
        ),
        flow=FlowSettings(
            num_layers=dit.take_integer("num_layers", flow.num_layers),
            num_heads=dit.take_integer("num_attention_heads", flow.num_heads),
            head_width=dit.take_integer("attention_head_dim", flow.head_width),
            max_frames=dit.take_integer("num_positional_embeddings", flow.max_frames),
        ),
        sqcodec=SQCodecTokenizer.read_authors_config(codec) if isinstance(codec, Mapping) else None,
        window=min(plain.window, dit.take_integer("num_positional_embeddings", flow.max_frames) // FRAMES),
    )
