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
from unimodal.tokenizers.losses.frozen_features import FrozenFeatures, load_frozen
from unimodal.tokenizers.losses.judges import FeatureJudge, PatchJudge, WaveJudge
from unimodal.tokenizers.losses.perceptual import Lpips, PerceptualLoss
from unimodal.tokenizers.losses.reconstruction import mask_padding, measure_l1, measure_l2
from unimodal.tokenizers.losses.settings import OF_DECODED, AdversarialSettings, LossSettings, PerceptualSettings
from unimodal.tokenizers.systems.base import Reconstruction

Result = tuple[Tensor, dict[str, float]]


class LossBag(nn.Module):
    """The losses of `settings` for media of one kind.

    features: name → width of what the tokenizer gives for alignment. sample_rate_hz: of sounds. caption_model: of the
    caption loss, with the widths of the codes' vectors and of itself. decodes: False of a tokenizer that only encodes.
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
    ):
        super().__init__()
        settings = settings if decodes else settings.leave_out_decoded()
        self.settings, self.modality = settings, modality
        if modality == "audio" and (settings.perceptual or settings.alignment):
            raise ValueError("losses perceptual and alignment are of pictures, and this tokenizer is one of sounds")
        self.frozen: dict[str, FrozenFeatures] = {}  # shared; not a submodule twice
        self.spectral = self._make_spectral(settings.spectral, modality, sample_rate_hz)
        self.perceptual = self._make_perceptual(settings.perceptual)
        self.adversarial = self._make_adversarial(settings.adversarial)
        self.alignment: CosineAlignment | None = None
        self.teacher: FrozenFeatures | None = None
        if settings.alignment is not None:
            name, widths = settings.alignment.feature, features or {}
            if name not in widths:
                there = ", ".join(widths) or "none"
                raise ValueError(f"alignment compares the features {name!r}, and this tokenizer gives {there}")
            self.teacher = self._load_frozen(settings.alignment.network)
            width = self.teacher.widths[-1]
            self.alignment = CosineAlignment(widths[name], width, settings.alignment.hidden)
        self.caption: CaptionLoss | None = None
        if settings.caption:
            if caption_model is None and settings.caption_model is not None:
                caption_model, caption_widths = self._load_captioner(settings.caption_model, features or {})
            if caption_model is None or caption_widths is None:
                raise ValueError("the caption loss needs a language model; name its folder in losses.caption_model")
            self.caption = CaptionLoss(*caption_widths, caption_model)

    @staticmethod
    def _make_spectral(weight: float, modality: str, sample_rate_hz: int | None) -> nn.Module | None:
        if not weight:
            return None
        if modality != "audio" or sample_rate_hz is None:
            raise ValueError(f"the loss spectral is of sounds, and this tokenizer is one of {modality}")
        from unimodal.tokenizers.nano.audio_losses import SpectralLoss

        return SpectralLoss(sample_rate_hz)

    def _make_perceptual(self, settings: PerceptualSettings | None) -> nn.Module | None:
        if settings is None:
            return None
        if settings.lpips:
            return Lpips.load(Path(settings.network).expanduser())
        return PerceptualLoss(self._load_frozen(settings.network))

    def _make_adversarial(self, settings: AdversarialSettings | None) -> AdversarialLoss | None:
        if settings is None:
            return None
        chosen = settings.judge or ("waves" if self.modality == "audio" else "patch")
        if (chosen == "waves") != (self.modality == "audio"):
            raise ValueError(f"the judge {chosen} does not fit a tokenizer of {self.modality}; leave judge out")
        judge: nn.Module
        if chosen == "waves":
            judge = WaveJudge()
        elif chosen == "features":
            judge = FeatureJudge(self._load_frozen(settings.network))
        else:
            judge = PatchJudge(settings.width, settings.num_layers)
        return AdversarialLoss(judge, settings.kind, settings.adaptive, settings.lecam, settings.lecam_decay)

    @staticmethod
    def _load_captioner(folder: str, features: Mapping[str, int]) -> tuple[CaptionModel, tuple[int, int]]:
        if "codes" not in features:
            there = ", ".join(features) or "none"
            raise ValueError(f'the caption loss reads the features "codes", and this tokenizer gives {there}')
        model = HubCaptionModel(folder)
        return model, (features["codes"], model.width)

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
        if weights["spectral"]:
            assert self.spectral is not None
            value, more = self.spectral(decoded[:, 0], mask_padding(real, lengths)[:, 0])
            add("spectral", value)
            numbers |= more
        made_pictures, real_pictures = self._draw_pictures(decoded, real, generator)
        if weights["perceptual"]:
            assert self.perceptual is not None
            add("perceptual", self.perceptual(made_pictures, real_pictures))
        reconstruction = total
        if weights["quantizer"]:
            add("quantizer", made.loss)
        if weights["alignment"]:
            add("alignment", self._align(made, real))
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

    def _caption(self, made: Reconstruction, captions: Sequence[str] | None) -> Tensor:
        assert self.caption is not None
        if captions is None or "codes" not in made.features:
            raise ValueError('the caption loss needs a caption for each item, and a tokenizer with features "codes"')
        return self.caption(made.features["codes"], captions)


def _cut_alike(made: Tensor, real: Tensor) -> Tensor:
    """Sounds that a decoder made a little longer than they were, cut to their length."""
    if made.dim() == 3 and made.shape[2] > real.shape[2]:
        made = made[:, :, : real.shape[2]]
    if made.shape != real.shape:
        raise ValueError(f"the tokenizer decodes {list(real.shape)} to {list(made.shape)}; give media of its own size")
    return made
