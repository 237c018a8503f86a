"""Whether a rebuilt sound still has its speaker's voice: the cosine of two vectors of the voice encoder of Resemblyzer
(generalized end-to-end loss, arXiv 1710.10467).

The network and its weights are the package's. Its front end is not used, since that needs librosa and webrtcvad: the
bands are computed here as it does, quiet sounds are raised to -30 dBFS as it does, and long silences stay.

Shapes: T samples at 16 kHz, F frames, P parts of a sound.
"""

from __future__ import annotations

import importlib.util
import math
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

RATE = 16_000
INSTALL = "pip install --no-deps Resemblyzer"
WINDOW, HOP, NUM_MELS, WIDTH, LAYERS = 400, 160, 40, 256, 3
#: frames of a part, and from one part's beginning to the next one's: 1.3 parts a second
PART, PART_HOP = 160, round(RATE / 1.3 / HOP)
LEAST_FILLED = 0.75  # share of a last part that must be sound
LOUDNESS = 10 ** (-30 / 20)


class SpeakerJudge(nn.Module):
    """Raises ValueError where the package or its weights are missing, with the command that installs them."""

    window: Tensor
    bands: Tensor

    def __init__(self) -> None:
        super().__init__()
        from torchaudio.functional import melscale_fbanks

        self.lstm = nn.LSTM(NUM_MELS, WIDTH, LAYERS, batch_first=True)
        self.linear = nn.Linear(WIDTH, WIDTH)
        bands = melscale_fbanks(WINDOW // 2 + 1, 0.0, RATE / 2, NUM_MELS, RATE, norm="slaney", mel_scale="slaney")
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("bands", bands, persistent=False)  # [WINDOW / 2 + 1, NUM_MELS]
        self._load(find_weights())
        self.eval().requires_grad_(False)

    def _load(self, path: Path | None) -> None:
        if path is None:
            raise ValueError(f"the bench compares speakers by Resemblyzer: {INSTALL}")
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
            own = {name: found[name] for name in self.state_dict()}
            self.load_state_dict(own)
        except (OSError, KeyError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
            said = " ".join(str(error).split())
            raise ValueError(
                f"{path} does not hold Resemblyzer's weights ({said}); install it again: {INSTALL}"
            ) from None

    def compute_bands(self, sound: Tensor) -> Tensor:
        """float [T] → power in Slaney's bands, not its logarithm, [F, NUM_MELS]."""
        spectrum = torch.stft(sound, WINDOW, HOP, window=self.window, pad_mode="constant", return_complex=True)
        return spectrum.abs().square().T @ self.bands

    @torch.inference_mode()
    def embed(self, sounds: Sequence[Tensor]) -> Tensor:
        """Sounds float [T] at 16 kHz in [-1, 1] → unit vectors of their speakers [sounds, WIDTH], each the mean over
        parts of 1.6 s; all 0 of digital silence. The parts of all sounds are read together."""
        parts = [self._cut_parts(sound.float()) for sound in sounds]
        counts = [len(each) for each in parts]
        if not sum(counts):
            return torch.zeros(len(sounds), WIDTH)
        _, (hidden, _) = self.lstm(torch.cat(parts))
        vectors = nn.functional.normalize(self.linear(hidden[-1]).relu(), dim=1)
        means = [each.mean(0) if len(each) else torch.zeros(WIDTH) for each in vectors.split(counts)]
        return nn.functional.normalize(torch.stack(means), dim=1)

    def _cut_parts(self, sound: Tensor) -> Tensor:
        """float [T] → the bands of its parts [P, PART, NUM_MELS], raised where it is quiet; none of digital silence."""
        loudness = float(sound.square().mean().sqrt()) if len(sound) else 0.0
        if not loudness:
            return torch.zeros(0, PART, NUM_MELS)
        if loudness < LOUDNESS:
            sound = sound * (LOUDNESS / loudness)
        starts = list_parts(len(sound))
        sound = nn.functional.pad(sound, (0, max(0, (starts[-1] + PART) * HOP - len(sound))))
        bands = self.compute_bands(sound)
        return torch.stack([bands[start : start + PART] for start in starts])


def list_parts(num_samples: int) -> list[int]:
    """The frames at which the parts of a sound begin; a last one that is less than three quarters sound is left out."""
    frames = math.ceil((num_samples + 1) / HOP)
    starts = list(range(0, max(1, frames - PART + PART_HOP + 1), PART_HOP))
    filled = (num_samples - starts[-1] * HOP) / (PART * HOP)
    return starts[:-1] if filled < LEAST_FILLED and len(starts) > 1 else starts


def find_weights() -> Path | None:
    """Where the package keeps its weights; None where it is not installed."""
    package = importlib.util.find_spec("resemblyzer")
    if package is None or not package.submodule_search_locations:
        return None
    return Path(package.submodule_search_locations[0]) / "pretrained.pt"
