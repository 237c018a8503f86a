"""S3Tokenizer: the supervised speech tokens of CosyVoice (arXiv 2407.05407) and CosyVoice 2 (arXiv 2412.10117).

Half of a speech recogniser's encoder reads log-mel bands, and its steps are quantized: by a table of rows (version 1,
50 or 25 codes a second), or by eight scalars of three levels (version 2, 25). There is no way back to sound but a
speech synthesizer, which is no part of it.

A sound over 30 s is read in windows that overlap by 4 s, of which each gives away half. The authors' code begins a
window wherever one could begin, also where the window before has reached the end already, and so loses up to 4 s at the
end of some sounds; ``published=True`` does the same. Otherwise no code is lost.

Shapes: B batch, T samples, M mel bands, F frames, N codes, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.onnx_weights import OnnxGraph, OnnxNode
from unimodal.tokenizers.parts.mel import WhisperMel
from unimodal.tokenizers.parts.quantizers import FiniteScalarQuantizer, VectorQuantizer
from unimodal.tokenizers.parts.quantizers.interface import Quantizer
from unimodal.tokenizers.parts.trunks.whisper import WhisperEncoder, WhisperSizes, mark_real
from unimodal.tokenizers.parts.windows import encode_windows
from unimodal.tokenizers.sounds import encode_rows
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction
from unimodal.tokenizers.systems.key_map import KeyMap
from unimodal.tokenizers.systems.sound import SoundConfig, SoundTokenizer

POSITIONS = "encoder.positional_embedding"
#: version 2: scalars of a code, their levels, and how far tanh reaches
SCALARS, LEVELS, REACH = 8, 3, 0.9990000128746033


class S3Config(SoundConfig):
    """version: 2 has rotary positions, a memory beside attention, and scalars in place of a table. stride: of the first
    convolution; the second has 2. codebook_size: of version 1. window_frames, overlap_frames: of long sounds, 100 a
    second. commitment: of vectors to the rows of version 1, in training."""

    family: Literal["s3"] = "s3"
    version: Literal[1, 2] = 1
    num_mels: int = Field(default=128, ge=1)
    context: int = Field(default=1500, ge=1)
    width: int = Field(default=1280, ge=2)
    num_heads: int = Field(default=20, ge=1)
    num_layers: int = Field(default=6, ge=1)
    stride: Literal[1, 2] = 1
    codebook_size: int = Field(default=4096, ge=2)
    memory: int = Field(default=31, ge=1)
    window_frames: int = Field(default=3000, ge=4)
    overlap_frames: int = Field(default=400, ge=0)
    commitment: float = 0.25

    @property
    def frames_per_code(self) -> int:
        return 2 * self.stride

    @property
    def can_decode(self) -> bool:
        return False

    @model_validator(mode="after")
    def check_fit(self) -> Self:
        """ValueError for heads that do not divide, and for windows that are no whole codes or too long."""
        if self.width % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not divide a width of {self.width}")
        unit = 2 * self.frames_per_code
        if self.window_frames % unit or self.overlap_frames % unit or self.overlap_frames >= self.window_frames:
            raise ValueError(
                f"window_frames {self.window_frames} and overlap_frames {self.overlap_frames} are not two multiples of "
                f"{unit}, the first larger"
            )
        if self.version == 1 and self.window_frames > self.context * self.frames_per_code:
            raise ValueError(f"window_frames {self.window_frames} is more than context {self.context} codes")
        return self


class S3Tokenizer(SoundTokenizer):
    """Speech of 16 kHz → 50 or 25 codes a second.

    ``encode``: float [B, 1, T] → Codes [B, N, 1]: a frame for each 10 ms (whole ones, at least one), a code for each 2
    or 4 of them. There is no ``decode``.
    """

    config_class: ClassVar[type[S3Config]] = S3Config
    taught_by = "losses={spelling: 1}"
    no_decoder = (
        "S3Tokenizer only encodes: its codes say what is spoken, and CosyVoice's flow model makes speech of them"
    )
    key_map: ClassVar[KeyMap] = KeyMap(
        rules=(
            (r"quantizer\.codebook", "quantizer._codebook.embed"),
            (r"project_down\.(.*)", r"quantizer._codebook.project_down.\1"),
        )
    )
    config: S3Config

    def __init__(self, config: S3Config):
        super().__init__(config)
        new = config.version == 2
        self.mel = WhisperMel(config.num_mels)
        self.encoder = WhisperEncoder(
            WhisperSizes(
                config.num_mels,
                config.width,
                config.num_heads,
                config.num_layers,
                None if new else config.context,
                (config.stride, 2),
                config.memory if new else 0,
                final_norm=False,
                attention_eps=1e-6 if new else 1e-5,
            )
        )
        self.project_down = nn.Linear(config.width, SCALARS) if new else None
        self.quantizer: Quantizer
        if new:
            self.quantizer = FiniteScalarQuantizer((LEVELS,) * SCALARS, REACH)
        else:
            self.quantizer = VectorQuantizer(
                config.codebook_size, config.width, normalize_latents=True, commitment=config.commitment
            )
        self.describe(self.quantizer.codebook_sizes, self.mel.hop * config.frames_per_code, self.mel.sample_rate_hz)

    # ---- codes

    def encode_latents(self, mel: Tensor, frames: Tensor | None = None) -> Tensor:
        """Bands [B, M, F], of which `frames` (int64 [B]) are real → what is quantized, [B, N, D or 8]."""
        hidden = self.encoder(mel, frames)
        return hidden if self.project_down is None else self.project_down(hidden)

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        rows = encode_rows(x, lengths, lambda sounds: self.encode_windows(self.mel(sounds[:, 0]), options.published))
        return Codes.from_rows([row.cpu() for row in rows], order="time").to(x.device)

    def encode_windows(self, mel: Tensor, published: bool = False) -> Tensor:
        """Bands of sounds of one length, [B, M, F] → ids [B, N, 1], window by window where they are long."""
        size, overlap = self.config.window_frames, self.config.overlap_frames
        return encode_windows(mel, self._encode_window, size, overlap, self.config.frames_per_code, published)

    def _encode_window(self, mel: Tensor) -> Tensor:
        return self.quantizer(self.encode_latents(mel)).ids

    # ---- training

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """The codes' vectors as the features "codes", for losses of spelling and distillation; nothing is decoded.
        loss: of the vectors to their rows; scalars have none, which would draw all of them to the middle level.
        ValueError for sounds of more than one window."""
        rows = encode_rows(x, lengths, lambda sounds: self.mel(sounds[:, 0]).transpose(1, 2))
        frames = torch.tensor([len(row) for row in rows], device=x.device)
        if int(frames.max()) > self.config.window_frames:
            raise ValueError(f"a sound to train on is at most {self.config.window_frames / 100:g} s long; cut it")
        latents = self.encode_latents(pad_sequence(rows, batch_first=True).transpose(1, 2), frames)
        counts = torch.tensor([self.encoder.count_steps(len(row)) for row in rows], device=x.device)
        mask = mark_real(counts, latents.shape[1])
        made = self.quantizer(latents, mask)
        return Reconstruction(None, made.loss, made.ids, made.numbers, {"codes": made.values}, mask)

    # ---- the authors' files

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> S3Config:
        """Their `ModelConfig`, with the name of the model, which says the rate. ValueError for an unknown name."""
        own, released = AuthorsFields(fields), S3Config()
        name = own.take_text("name", "speech_tokenizer_v1")
        if name not in RELEASED:
            raise ValueError(f"the model {name!r} is none of {', '.join(RELEASED)}")
        version, stride = RELEASED[name]
        codes = own.take_integer("n_codebook_size", released.codebook_size)
        if version == 2 and codes not in (released.codebook_size, LEVELS**SCALARS):
            raise ValueError(f"version 2 has {LEVELS**SCALARS} codes, and n_codebook_size is {codes}")
        context = own.take_integer("n_audio_ctx", released.context)
        window = released.window_frames if version == 2 else min(released.window_frames, context * 2 * stride)
        return S3Config.model_validate(
            {
                "version": version,
                "stride": stride,
                "num_mels": own.take_integer("n_mels", released.num_mels),
                "context": context,
                "width": own.take_integer("n_audio_state", released.width),
                "num_heads": own.take_integer("n_audio_head", released.num_heads),
                "num_layers": own.take_integer("n_audio_layer", released.num_layers),
                "codebook_size": codes if version == 1 else released.codebook_size,
                "window_frames": window,
                "overlap_frames": min(released.overlap_frames, window // 2),
            }
        )

    @classmethod
    def name_onnx_weights(cls, graph: OnnxGraph) -> dict[str, Tensor]:
        """By the node that uses them, whose name is the path of a module: convolutions as they are, all matrices turned
        round, since ONNX multiplies from the right. The two convolutions of the stem come in their order."""
        found: dict[str, Tensor] = {}
        stem = 0
        for node in graph.nodes:
            if node.kind == "Conv" and "fsmn_block" not in node.name:
                stem += 1
            for place, read in enumerate(node.inputs):
                name = name_onnx_weight(node, read, place, stem)
                tensor = graph.weights.get(read)
                if name is not None and tensor is not None and tensor.dim():
                    turned = tensor.dim() == 2 and name != POSITIONS
                    found[name] = tensor.T.contiguous() if turned else tensor
        return found


def name_onnx_weight(node: OnnxNode, read: str, place: int, stem: int) -> str | None:
    """What S3Tokenizer's code calls the input `read` of a node; None for what is no weight of it. place: of the input
    among the node's. stem: how many convolutions of the stem there were, this node included."""
    if read.endswith("positional_embedding"):
        return POSITIONS
    if node.kind == "Conv" and "fsmn_block" not in node.name:
        return f"encoder.conv{stem}.{'weight' if place == 1 else 'bias'}"
    if read == "quantizer.project_in.bias":
        return "quantizer._codebook.project_down.bias"
    if node.kind == "MatMul" and (read == "onnx::MatMul_2536" or "project_in" in node.name):  # of the released file
        return "quantizer._codebook.project_down.weight"
    if node.name.endswith("_codebook/Pow_1"):  # the rows, squared for their distances
        return "quantizer._codebook.embed"
    if "/blocks." not in node.name:
        return None
    *path, operation = node.name.strip("/").split("/")
    if operation == "LayerNormalization":
        part = {1: "weight", 2: "bias"}.get(place)
    else:
        part = {"MatMul": "weight", "Mul": "weight", "Conv": "weight", "Add": "bias", "Add_1": "bias"}.get(operation)
    return None if part is None else f"encoder.{'.'.join(path)}.{part}".replace("mlp.mlp", "mlp")


#: the names of released models → version, stride of the first convolution
RELEASED: dict[str, tuple[Literal[1, 2], Literal[1, 2]]] = {
    "speech_tokenizer_v1": (1, 1),
    "speech_tokenizer_v1_25hz": (1, 2),
    "speech_tokenizer_v2_25hz": (2, 2),
}
