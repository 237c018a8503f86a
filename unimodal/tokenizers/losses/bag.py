"""All losses of one training, added up by settings.

`LossBag` takes what `reconstruct` of a tokenizer gave and the media themselves; it is a module, since judges and
projections are trained with the tokenizer, by the same optimizer and in the same backward pass (`adversarial.py` says
how and why).

Shapes: B batch, C channels, T frames or samples; pictures are [B, 3, H, W], sounds [B, 1, T], clips [B, 3, T, H, W].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from unimodal.tokenizers.losses.adversarial import AdversarialLoss
from unimodal.tokenizers.losses.alignment import CosineAlignment
from unimodal.tokenizers.losses.caption import CaptionLoss, CaptionModel, HubCaptionModel
from unimodal.tokenizers.losses.distillation import DistillationLoss, TextTeacher
from unimodal.tokenizers.losses.frozen_features import PACKAGED as PICTURES
from unimodal.tokenizers.losses.frozen_features import FrozenFeatures, load_frozen
from unimodal.tokenizers.losses.heard import HeardLoss
from unimodal.tokenizers.losses.imitation import CodeTeacher
from unimodal.tokenizers.losses.judges import FeatureJudge, PatchJudge, WaveJudge
from unimodal.tokenizers.losses.perceptual import Lpips, PerceptualLoss
from unimodal.tokenizers.losses.reconstruction import mask_padding, measure_l1, measure_l2, measure_root
from unimodal.tokenizers.losses.settings import (
    OF_DECODED,
    AdversarialSettings,
    DistillationSettings,
    LossSettings,
    MelSettings,
    PerceptualSettings,
    SpellingSettings,
)
from unimodal.tokenizers.losses.spectra import MelLoss, StftLoss
from unimodal.tokenizers.losses.spelling import SpellingLoss
from unimodal.tokenizers.losses.wave_adversarial import WaveAdversarialLoss
from unimodal.tokenizers.pretrained.speech_encoders import load_speech_encoder
from unimodal.tokenizers.systems.base import Reconstruction

Result = tuple[Tensor, dict[str, float]]


class LossBag(nn.Module):
    """The losses of `settings` for media of one kind.

    features: name → width of what the tokenizer gives for alignment. sample_rate_hz: of sounds. caption_model: of the
    caption loss, with the widths of the codes' vectors and of itself. decodes: False of a tokenizer that only encodes.
    family: what the tokenizer is called in messages.
    Raises ValueError for a loss that the medium or the tokenizer does not have, and for an alignment with features that
    the tokenizer does not give.
    """

    def __init__(
        self,
        settings: LossSettings,
        modality: str,
        features: Mapping[str, int] | None = None,
        sample_rate_hz: int | None = None,
        caption_model: CaptionModel | None = None,
        caption_widths: tuple[int, int] | None = None,
        decodes: bool = True,
        family: str = "this tokenizer",
    ):
        super().__init__()
        settings = settings if decodes else settings.leave_out_decoded()
        self.settings, self.modality = settings, modality
        if modality == "audio" and settings.alignment:
            raise ValueError("the loss alignment is of pictures, and this tokenizer is one of sounds")
        self.frozen: dict[str, FrozenFeatures] = {}  # shared; not a submodule twice
        self.spectral = self._make_spectral(settings.spectral, modality, sample_rate_hz)
        self.mel = self._make_mel(settings.mel, modality, sample_rate_hz)
        if settings.root and modality == "audio":
            raise ValueError("the loss root is of pictures and films, and this tokenizer is one of sounds")
        if settings.stft and modality != "audio":
            raise ValueError(f"the loss stft is of sounds, and this tokenizer is one of {modality}")
        self.stft = StftLoss() if settings.stft else None
        self.perceptual = self._make_perceptual(settings.perceptual, sample_rate_hz if modality == "audio" else None)
        self.adversarial = self._make_adversarial(settings.adversarial)
        self.alignment: CosineAlignment | None = None
        self.teacher: FrozenFeatures | None = None
        if settings.alignment is not None:
            width = find_width("alignment", settings.alignment.feature, features or {})
            self.teacher = self._load_frozen(settings.alignment.network)
            self.alignment = CosineAlignment(width, self.teacher.widths[-1], settings.alignment.hidden)
        self.spelling = self._make_spelling(settings.spelling, features or {})
        self.distillation = self._make_distillation(settings.distillation, features or {}, sample_rate_hz)
        self.imitation: CodeTeacher | None = None
        if settings.imitation is not None:
            own = settings.imitation
            num_codes = find_width("imitation", own.feature, features or {})
            self.imitation = CodeTeacher(own.teacher, modality, num_codes, own.pickle)
        self.caption: CaptionLoss | None = None
        if settings.caption:
            if caption_model is None and settings.caption_model is not None:
                caption_model, caption_widths = load_captioner(settings.caption_model, features or {}, family)
            if caption_model is None or caption_widths is None:
                raise ValueError("the caption loss needs a language model; name its folder in losses.caption_model")
            self.caption = CaptionLoss(*caption_widths, caption_model)

    @property
    def begins_from_teacher(self) -> bool:
        """Whether the teacher's decoder is copied before training."""
        return self.settings.imitation is not None and self.settings.imitation.copy_decoder

    @staticmethod
    def _make_spelling(settings: SpellingSettings | None, features: Mapping[str, int]) -> SpellingLoss | None:
        if settings is None:
            return None
        width = find_width("spelling", settings.feature, features)
        skip, form = settings.without_text == "skip", (settings.hidden, settings.per_code, settings.num_layers)
        return SpellingLoss(width, settings.characters, *form, skip_empty=skip)

    @staticmethod
    def _make_distillation(
        settings: DistillationSettings | None, features: Mapping[str, int], sample_rate_hz: int | None
    ) -> DistillationLoss | None:
        if settings is None:
            return None
        if sample_rate_hz is None:
            raise ValueError("the loss distillation is of sounds; leave it out")
        width = find_width("distillation", settings.feature, features)
        speech = load_speech_encoder(settings.network) if settings.network is not None else None
        text = None
        if settings.language_model is not None:
            text = TextTeacher(settings.language_model, settings.language_layer, settings.spread)
        return DistillationLoss(width, speech, text, settings.axis, settings.layer, settings.similarity, sample_rate_hz)

    @staticmethod
    def _make_spectral(weight: float, modality: str, sample_rate_hz: int | None) -> nn.Module | None:
        if not weight:
            return None
        if modality != "audio" or sample_rate_hz is None:
            raise ValueError(f"the loss spectral is of sounds, and this tokenizer is one of {modality}")
        from unimodal.tokenizers.nano.audio_losses import SpectralLoss

        return SpectralLoss(sample_rate_hz)

    @staticmethod
    def _make_mel(settings: MelSettings | None, modality: str, sample_rate_hz: int | None) -> MelLoss | None:
        if settings is None:
            return None
        if modality != "audio" or sample_rate_hz is None:
            raise ValueError(f"the loss mel is of sounds, and this tokenizer is one of {modality}")
        return MelLoss(sample_rate_hz, settings.form, settings.windows, settings.bands)

    def _make_perceptual(self, settings: PerceptualSettings | None, sample_rate_hz: int | None) -> nn.Module | None:
        if settings is None:
            return None
        if sample_rate_hz is not None:
            if settings.lpips or settings.network == PICTURES:
                raise ValueError(
                    "perceptual compares sounds by a speech encoder: name whisper-tiny.en or a folder as its network"
                )
            return HeardLoss(load_speech_encoder(settings.network), sample_rate_hz)
        if settings.lpips:
            return Lpips.load(Path(settings.network).expanduser())
        return PerceptualLoss(self._load_frozen(settings.network))

    def _make_adversarial(self, settings: AdversarialSettings | None) -> AdversarialLoss | WaveAdversarialLoss | None:
        if settings is None:
            return None
        chosen, forms = settings.judge or ("waves" if self.modality == "audio" else "patch"), settings.wave_forms
        if (chosen == "waves" or bool(forms)) != (self.modality == "audio"):
            raise ValueError(f"the judge {chosen} does not fit a tokenizer of {self.modality}; leave judge out")
        if forms:
            odd = sorted(settings.model_fields_set & {"kind", "lecam", "lecam_decay", "network", "num_layers"})
            if odd:
                raise ValueError(f"the judges of {chosen} have losses of their own; leave {', '.join(odd)} out")
            return WaveAdversarialLoss(forms, settings.width, settings.matching, bool(settings.adaptive))
        if settings.matching is not None:
            raise ValueError(f"the judge {chosen} matches no features; leave matching out, or take dac or encodec")
        judge: nn.Module
        if chosen == "waves":
            judge = WaveJudge()
        elif chosen == "features":
            judge = FeatureJudge(self._load_frozen(settings.network))
        else:
            judge = PatchJudge(64 if settings.width is None else settings.width, settings.num_layers)
        adaptive = settings.adaptive is not False
        return AdversarialLoss(judge, settings.kind, adaptive, settings.lecam, settings.lecam_decay)

    def _load_frozen(self, network: str) -> FrozenFeatures:
        if network not in self.frozen:
            self.frozen[network] = load_frozen(network)
        return self.frozen[network]

    def forward(
        self,
        made: Reconstruction,
        real: Tensor,
        step: int,
        lengths: Tensor | None = None,
        generator: torch.Generator | None = None,
        weights: Mapping[str, float] | None = None,
        captions: Sequence[str] | None = None,
    ) -> Result:
        """→ (scalar to go back from, numbers to log).

        real: [B, C, …] as it was encoded. lengths: int64 [B] of padded sounds. generator: of the frames that are
        looked at. weights: in place of those of the settings, as a stage has them (`LossSettings.change_weights`).
        """
        weights = self.settings.read_weights() if weights is None else weights
        numbers = dict(made.numbers)
        total = real.new_zeros(())
        if made.decoded is None and (asked := [name for name in OF_DECODED if weights[name]]):
            raise ValueError(f"losses {', '.join(asked)} compare what is decoded, and this tokenizer only encodes")
        decoded = real if made.decoded is None else mask_padding(_cut_alike(made.decoded, real), lengths)

        def add(name: str, value: Tensor) -> None:
            nonlocal total
            numbers[name] = float(value.detach())
            total = total + weights[name] * value

        if weights["l1"]:
            add("l1", measure_l1(decoded, real, lengths))
        if weights["l2"]:
            add("l2", measure_l2(decoded, real, lengths))
        if weights["root"]:
            add("root", measure_root(decoded, real))
        if weights["spectral"]:
            assert self.spectral is not None
            value, more = self.spectral(decoded[:, 0], mask_padding(real, lengths)[:, 0])
            add("spectral", value)
            numbers |= more
        if self.modality == "audio" and (weights["mel"] or weights["stft"]):
            waves = (decoded[:, 0], mask_padding(real, lengths)[:, 0])
            if weights["mel"]:
                assert self.mel is not None
                add("mel", self.mel(*waves))
            if weights["stft"]:
                assert self.stft is not None
                add("stft", self.stft(*waves))
        masked = mask_padding(real, lengths) if self.modality == "audio" else real
        made_pictures, real_pictures = self._draw_pictures(decoded, masked, generator)
        if weights["perceptual"]:
            assert self.perceptual is not None
            if isinstance(self.perceptual, HeardLoss):
                add("perceptual", self.perceptual(decoded[:, 0], masked[:, 0], lengths))
            else:
                add("perceptual", self.perceptual(made_pictures, real_pictures))
        reconstruction = total
        if weights["quantizer"]:
            add("quantizer", made.loss)
        if weights["alignment"]:
            add("alignment", self._align(made, real))
        if weights["imitation"]:
            assert self.settings.imitation is not None and self.imitation is not None
            add("imitation", self.imitation(made.features[self.settings.imitation.feature], real))
        if weights["spelling"]:
            add("spelling", self._spell(made, captions))
            if captions is not None and not all(captions):
                numbers["with_text"] = sum(map(bool, captions)) / len(captions)
        if weights["distillation"]:
            assert self.settings.distillation is not None and self.distillation is not None
            values, mask = choose_features(made, self.settings.distillation.feature)
            add("distillation", self.distillation(values, mask, real, lengths, captions))
        if weights["caption"]:
            add("caption", self._caption(made, captions))
        if weights["adversarial"] and self.settings.adversarial and step >= self.settings.adversarial.start:
            assert self.adversarial is not None
            loss, more = self.adversarial(decoded, made_pictures, real_pictures, reconstruction, weights["adversarial"])
            total = total + loss
            numbers |= more
        if self.modality != "audio" and made.decoded is not None:
            error = measure_l2(decoded.detach().clamp(0, 1), real)
            numbers["psnr"] = float(-10 * error.clamp_min(1e-10).log10())
        return total, numbers

    def _draw_pictures(self, made: Tensor, real: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Both as pictures [B, 3, H, W], of clips the same few frames of each; sounds as they are."""
        if made.dim() != 5:
            return made, real
        count = min(self.settings.frames, made.shape[2])
        chosen = torch.randperm(made.shape[2], generator=generator)[:count].sort().values.to(made.device)
        return made[:, :, chosen].transpose(1, 2).flatten(0, 1), real[:, :, chosen].transpose(1, 2).flatten(0, 1)

    def _align(self, made: Reconstruction, real: Tensor) -> Tensor:
        assert self.settings.alignment is not None and self.alignment is not None and self.teacher is not None
        if real.dim() != 4:
            raise ValueError("alignment compares pictures; leave it out for clips")
        with torch.no_grad():
            wanted = self.teacher.read_patches(real)
        return self.alignment(made.features[self.settings.alignment.feature], wanted)

    def measure_spelling(self, made: Reconstruction, texts: Sequence[str] | None) -> dict[str, float]:
        """Character errors of what the reader reads from the codes, where there is a reader."""
        if self.spelling is None or self.settings.spelling is None or texts is None or not any(texts):
            return {}
        values, mask = choose_features(made, self.settings.spelling.feature)
        return {"character_errors": self.spelling.measure_errors(values, mask, texts)}

    def _spell(self, made: Reconstruction, texts: Sequence[str] | None) -> Tensor:
        assert self.settings.spelling is not None and self.spelling is not None
        if texts is None and not self.spelling.skip_empty:
            raise ValueError("the spelling loss needs what is said in each item; give sounds with texts")
        values, mask = choose_features(made, self.settings.spelling.feature)
        if texts is None:
            texts = [""] * len(values)
        loss: Tensor = self.spelling(values, mask, texts)
        return loss

    def _caption(self, made: Reconstruction, captions: Sequence[str] | None) -> Tensor:
        assert self.caption is not None
        if captions is None or "codes" not in made.features:
            raise ValueError('the caption loss needs a caption for each item, and a tokenizer with features "codes"')
        return self.caption(made.features["codes"], captions)


def load_captioner(folder: str, features: Mapping[str, int], family: str) -> tuple[CaptionModel, tuple[int, int]]:
    """The language model of the caption loss, with the widths of the codes' vectors and of itself. ValueError for a
    tokenizer that has no such vectors in training."""
    if "codes" not in features:
        raise ValueError(f"{family} has no vectors of codes while it is trained (continuous latents, or codes that are "
                         "set afterwards); leave losses.caption out")  # fmt: skip
    model = HubCaptionModel(folder)
    return model, (features["codes"], model.width)


def find_width(loss: str, feature: str, features: Mapping[str, int]) -> int:
    """The width of the features that a loss looks at. ValueError for features that the tokenizer does not give."""
    if feature not in features:
        there = ", ".join(features) or "none"
        raise ValueError(f"{loss} compares the features {feature!r}, and this tokenizer gives {there}")
    return features[feature]


def choose_features(made: Reconstruction, name: str) -> tuple[Tensor, Tensor]:
    """Features [B, N, D] of a reconstruction, and which of them are real, bool [B, N]: as many for each code."""
    values = made.features[name]
    if made.mask is None:
        return values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
    return values, made.mask.repeat_interleave(values.shape[1] // made.mask.shape[1], 1)


def _cut_alike(made: Tensor, real: Tensor) -> Tensor:
    """Sounds that a decoder made a little longer than they were, cut to their length."""
    if made.dim() == 3 and made.shape[2] > real.shape[2]:
        made = made[:, :, : real.shape[2]]
    if made.shape != real.shape:
        raise ValueError(f"the tokenizer decodes {list(real.shape)} to {list(made.shape)}; give media of its own size")
    return made
