"""UTMOS, the strong learner of 2022 (arXiv 2204.02152): how natural speech sounds to listeners, 1 to 5.

The weights are not ours: `utmos22_strong_step7459_v1.pt` of SpeechMOS, which holds fairseq's wav2vec 2.0, the vectors
of one data set and one listener, and the head. The network inside is that of transformers.

Shapes: T samples at 16 kHz, F frames, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from unimodal.evaluation.tokenizer_bench.named_weights import read_named

RATE = 16_000
SHORTEST = 400  # samples of one frame
EMBEDDED, HIDDEN, PROJECTED = 128, 512, 2048
#: parts of fairseq's names → of transformers'
RENAMED = (
    ("post_extract_proj.", "feature_projection.projection."),
    ("encoder.pos_conv.0.weight_g", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    ("encoder.pos_conv.0.weight_v", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    ("encoder.pos_conv.0.", "encoder.pos_conv_embed.conv."),
    (".self_attn_layer_norm.", ".layer_norm."),
    (".self_attn.", ".attention."),
    (".fc1.", ".feed_forward.intermediate_dense."),
    (".fc2.", ".feed_forward.output_dense."),
)


class Utmos(nn.Module):
    """config: of the trunk, by default wav2vec 2.0 base."""

    def __init__(self, config: Wav2Vec2Config | None = None) -> None:
        super().__init__()
        settings = config or Wav2Vec2Config()
        self.wav2vec2 = Wav2Vec2Model(settings)
        self.domain_emb = nn.Parameter(torch.zeros(1, EMBEDDED))
        self.judge_emb = nn.Parameter(torch.zeros(1, EMBEDDED))
        self.blstm = nn.LSTM(settings.hidden_size + 2 * EMBEDDED, HIDDEN, batch_first=True, bidirectional=True)
        self.projection = nn.Sequential(nn.Linear(2 * HIDDEN, PROJECTED), nn.ReLU(), nn.Linear(PROJECTED, 1))
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def score(self, sound: Tensor) -> float:
        """float [T] in [-1, 1] → its score; what is shorter than a frame is filled up with silence."""
        x = nn.functional.pad(sound.float(), (0, max(0, SHORTEST - len(sound))))
        frames = self.wav2vec2(x[None]).last_hidden_state  # [1, F, D]
        beside = torch.cat([self.domain_emb, self.judge_emb], 1)[:, None].expand(-1, frames.shape[1], -1)
        read, _ = self.blstm(torch.cat([frames, beside], 2))
        return float(self.projection(read).mean() * 2 + 3)

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Weights under SpeechMOS' names. RuntimeError where they are others."""
        self.load_state_dict({rename(name): value for name, value in state.items()})

    @classmethod
    def load(cls, path: Path) -> Utmos:
        """Raises ValueError for a file that holds other weights."""
        made = cls()
        read_named(path, made.load_published, "UTMOS", "SpeechMOS' utmos22_strong file")
        return made


def rename(name: str) -> str:
    """A name of SpeechMOS' file → the same weight's here."""
    trunk, separator, inner = name.partition("wav2vec2.")
    if trunk or not separator:
        return name
    if inner == "mask_emb":
        return "wav2vec2.masked_spec_embed"
    if inner.startswith("layer_norm."):
        return f"wav2vec2.feature_projection.{inner}"
    if inner.startswith("feature_extractor."):
        kind = ".conv." if ".0.weight" in inner.removeprefix("feature_extractor.conv_layers") else ".layer_norm."
        number, tail = inner.split(".")[2], inner.split(".")[-1]
        return f"wav2vec2.feature_extractor.conv_layers.{number}{kind}{tail}"
    for old, new in RENAMED:
        inner = inner.replace(old, new)
    return f"wav2vec2.{inner}"
