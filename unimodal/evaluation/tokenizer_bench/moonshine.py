"""Moonshine tiny (arXiv 2410.15608), which hears English: the networks of the package moonshine-voice by onnxruntime.

The package's own program is not used: it looks for speech with a second network first, hears nothing where that finds
none, and takes ten times as long.

Shapes: T samples at 16 kHz, L tokens.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from torch import Tensor

RATE = 16_000
SILENCE = 1e-4  # RMS below which nothing is heard
SHORTEST, LONGEST = RATE // 5, 20 * RATE  # samples that are heard at one time
TOKENS_PER_SECOND = 6.5  # at most; more are repetitions
BEGIN, END = 1, 2
LAYERS, HEADS, HEAD_WIDTH = 6, 8, 36
INSTALL = "pip install 'unimodal[bench]'"


class Moonshine:
    """Raises ValueError where the package, its weights or onnxruntime are missing, with what installs them."""

    def __init__(self, num_threads: int = 1) -> None:
        package = importlib.util.find_spec("moonshine_voice")
        if package is None or not package.submodule_search_locations:
            raise ValueError(f"the bench reads speech by moonshine-voice: {INSTALL}")
        folder = Path(package.submodule_search_locations[0]) / "assets" / "tiny-en"
        if not folder.is_dir():
            raise ValueError(f"this moonshine-voice ships no weights: {INSTALL}")
        try:
            import onnxruntime
        except ImportError:
            raise ValueError(f"the bench reads speech by onnxruntime: {INSTALL}") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(str(folder / f"{name}.ort"), options, providers=["CPUExecutionProvider"])
            for name in ("encoder_model", "decoder_model_merged")
        )
        self._names = [output.name.replace("present", "past_key_values") for output in self._decoder.get_outputs()[1:]]
        self._pieces = read_pieces((folder / "tokenizer.bin").read_bytes())

    def transcribe(self, sound: Tensor) -> str:
        """float [T] → text, decoded greedily, "" of silence; a long sound is cut at its quietest places."""
        parts = [part for part in cut_at_quiet(sound.float()) if len(part) >= SHORTEST]
        heard = [self._transcribe_part(part) for part in parts if float(part.square().mean().sqrt()) > SILENCE]
        return " ".join(text for text in heard if text)

    def _transcribe_part(self, sound: Tensor) -> str:
        x = sound.numpy()[None]
        mask = np.ones(x.shape, np.int64)  # of samples on both sides; the decoder thins it out itself
        hidden = self._encoder.run(None, {"input_values": x, "attention_mask": mask})[0]
        past = {name: np.zeros((1, HEADS, 0, HEAD_WIDTH), np.float32) for name in self._names}
        given = {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}
        ids = [BEGIN]
        for step in range(max(1, int(TOKENS_PER_SECOND * len(sound) / RATE))):
            fed = {"input_ids": np.array([ids[-1:]], np.int64), "use_cache_branch": np.array([step > 0])}
            logits, *fresh = self._decoder.run(None, {**given, **past, **fed})
            for name, value in zip(self._names, fresh, strict=True):
                if step == 0 or "decoder" in name:  # those of the encoder stand after the first step
                    past[name] = value
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == END:
                break
        text = b"".join(self._pieces[one] for one in ids[1:] if one != END)
        return text.decode("utf-8", errors="ignore").replace("▁", " ").strip()


def cut_at_quiet(sound: Tensor) -> list[Tensor]:
    """[T] → parts of `LONGEST` samples at most, cut in the quietest tenth of a second of their second half."""
    parts, hop = [], RATE // 10
    while len(sound) > LONGEST:
        loudness = sound[LONGEST // 2 : LONGEST].unfold(0, hop, hop).square().mean(1)
        at = LONGEST // 2 + int(loudness.argmin()) * hop + hop // 2
        parts.append(sound[:at])
        sound = sound[at:]
    return [*parts, sound]


def read_pieces(data: bytes) -> list[bytes]:
    """The pieces of text in the package's file: each is its length, in one byte below 128 or in two, and its bytes."""
    pieces, at = [], 0
    while at < len(data):
        size = data[at]
        at += 1
        if size >= 128:
            size += 128 * data[at] - 128
            at += 1
        pieces.append(data[at : at + size])
        at += size
    return pieces
