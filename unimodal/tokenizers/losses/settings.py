"""Which losses a tokenizer is trained by, and how much each counts.

losses: {l1: 1, perceptual: 0.1, adversarial: {weight: 0.5, start: 20000}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field

from unimodal.config import Config
from unimodal.tokenizers.losses.adversarial import Kind
from unimodal.tokenizers.losses.frozen_features import PACKAGED
from unimodal.tokenizers.losses.spectra import MelForm
from unimodal.tokenizers.losses.spelling import collect_characters
from unimodal.tokenizers.losses.wave_adversarial import WaveForm

#: in place of characters: those of the texts that are trained on
OF_DATA = "data"
#: losses that are set up by more than a weight
WITH_SETTINGS = ("mel", "perceptual", "adversarial", "alignment", "spelling", "distillation")
#: losses that compare what is decoded with what was encoded
OF_DECODED = ("l1", "l2", "root", "spectral", "mel", "stft", "perceptual", "adversarial")

#: published codecs whose judges there are
WAVE_FORMS = "|".join(get_args(WaveForm))


def _expand(value: object) -> object:
    """`0.1` in place of `{weight: 0.1}`; 0 in place of none."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"weight": value} if value else None
    return value


class PerceptualSettings(Config):
    """network: `efficientnet`, the folder of a vision encoder of transformers, or one with the weights of LPIPS; for
    sounds `whisper-tiny.en`, or the folder of a speech encoder."""

    weight: float = Field(1.0, gt=0)
    network: str = PACKAGED
    lpips: bool = False


class MelSettings(Config):
    """form: vocos (one resolution) or dac (seven, added up). windows, bands: in place of the form's."""

    weight: float = Field(1.0, gt=0)
    form: MelForm = "vocos"
    windows: tuple[int, ...] = ()
    bands: tuple[int, ...] = ()


class AdversarialSettings(Config):
    """judge: patch (PatchGAN), features (heads over a frozen `network`), waves (small ones of spectra and periods), or
    those of published codecs with their own losses: dac, encodec, wavtokenizer, or several as wavtokenizer+dac; by
    default patch for pictures and films, waves for sounds. kind, lecam, network, num_layers: of the first three.
    matching: of features, of published codecs; by default theirs. adaptive: by default for all but published codecs.
    width: of a judge's first layer, 64 of patch and the published one of codecs. start: the first step with it."""

    weight: float = Field(0.5, gt=0)
    judge: str | None = Field(None, pattern=rf"^(patch|features|waves|({WAVE_FORMS})(\+({WAVE_FORMS}))*)$")
    kind: Kind = "hinge"
    start: int = Field(0, ge=0)
    adaptive: bool | None = None
    lecam: float = Field(0.0, ge=0)
    lecam_decay: float = Field(0.999, gt=0, lt=1)
    width: int | None = Field(None, ge=1)
    num_layers: int = Field(3, ge=1)
    matching: float | None = Field(None, ge=0)
    network: str = PACKAGED

    @property
    def wave_forms(self) -> list[WaveForm]:
        """The published codecs whose judges these are; none where `judge` is another."""
        return [form for form in get_args(WaveForm) if form in (self.judge or "").split("+")]


class AlignmentSettings(Config):
    """feature: a name of `Reconstruction.features`. hidden: of REPA's projector; None for one layer."""

    weight: float = Field(1.0, gt=0)
    feature: str
    network: str = PACKAGED
    hidden: int | None = Field(None, ge=1)


class SpellingSettings(Config):
    """feature: a name of `Reconstruction.features`. characters: that texts are spelled in: null for bytes, `data` for
    those of the texts that are trained on. hidden, num_layers: of the reader. per_code: its steps for each code.
    without_text: an item that has none is left out, or (`skip`) is trained by the other losses alone."""

    weight: float = Field(1.0, gt=0)
    feature: str = "codes"
    without_text: Literal["leave_out", "skip"] = "leave_out"
    characters: str | None = None
    hidden: int = Field(256, ge=1)
    num_layers: int = Field(2, ge=0)
    per_code: int = Field(2, ge=1)


class DistillationSettings(Config):
    """feature: a name of `Reconstruction.features`. network: `whisper-tiny.en`, or the folder of a speech encoder;
    layer: which of its layers, by default the mean of all. language_model: the folder of a text model, whose tokens are
    spread over the sound, or padded behind as DM-Codec's are; language_layer: which of its layers. axis: of the
    cosines. similarity: what they count by time, beside the error."""

    weight: float = Field(1.0, gt=0)
    feature: str = "semantic"
    network: str | None = None
    layer: int | None = None
    language_model: str | None = None
    language_layer: int | None = None
    spread: bool = True
    axis: Literal["dimension", "time"] = "dimension"
    similarity: float = Field(1.0, ge=0)


class ImitationSettings(Config):
    """teacher: the folder of a tokenizer whose codes the decoder predicts, or released weights as NAME=FOLDER; pickle:
    these may be a pickle. copy_decoder: codebook and decoder of the teacher are what the second stage begins from.
    feature: a name of `Reconstruction.features`, the logits."""

    weight: float = Field(1.0, gt=0)
    teacher: str
    pickle: bool = False
    copy_decoder: bool = False
    feature: str = "proxy"


class PerturbationSettings(Config):
    """Codes that training replaces by near ones before they are decoded (RobusTok): in that share of the batch's items
    each with that chance, by one of the `near` nearest codes. steps: between which chance and near sink to `last` of
    what they are; None for never."""

    share: float = Field(0.1, ge=0, le=1)
    chance: float = Field(1.0, ge=0, le=1)
    near: int = Field(100, ge=1)
    steps: tuple[int, int] | None = None
    last: float = Field(0.5, ge=0, le=1)


class LossSettings(Config):
    """Weights of the losses; 0 or null leaves one out. root: of each item's root of mean square error.
    quantizer: of what quantizer and system add of their own.
    spectral, mel, stft: of sounds; spectral is of three resolutions, stft DAC's. caption: of the words that a language
    model reads off the codes; caption_model: the folder of that model, one of transformers, which stays as it is.
    frames: of a clip that pictures' losses look at, drawn at random. spelling and distillation: of speech.
    imitation: of another tokenizer's codes."""

    l1: float = Field(0.0, ge=0)
    l2: float = Field(1.0, ge=0)
    root: float = Field(0.0, ge=0)
    quantizer: float = Field(1.0, ge=0)
    spectral: float = Field(0.0, ge=0)
    mel: Annotated[MelSettings | None, BeforeValidator(_expand)] = None
    stft: float = Field(0.0, ge=0)
    perceptual: Annotated[PerceptualSettings | None, BeforeValidator(_expand)] = None
    adversarial: Annotated[AdversarialSettings | None, BeforeValidator(_expand)] = None
    alignment: AlignmentSettings | None = None
    imitation: ImitationSettings | None = None
    perturbation: PerturbationSettings | None = None
    caption: float = Field(0.0, ge=0)
    caption_model: str | None = None
    spelling: Annotated[SpellingSettings | None, BeforeValidator(_expand)] = None
    distillation: DistillationSettings | None = None
    frames: int = Field(4, ge=1)

    def read_weights(self) -> dict[str, float]:
        """The weight of each loss by its name, 0 where it is left out."""
        weights = {"l1": self.l1, "l2": self.l2, "quantizer": self.quantizer, "spectral": self.spectral}
        weights |= {"stft": self.stft, "root": self.root}
        for name, part in (
            ("mel", self.mel),
            ("perceptual", self.perceptual),
            ("adversarial", self.adversarial),
            ("alignment", self.alignment),
            ("imitation", self.imitation),
            ("spelling", self.spelling),
            ("distillation", self.distillation),
        ):
            weights[name] = part.weight if part is not None else 0.0
        return {**weights, "caption": self.caption}

    @property
    def reads_texts(self) -> bool:
        """Whether a loss needs what is said or shown in each item."""
        return self.spelling is not None or self.needs_texts

    @property
    def needs_texts(self) -> bool:
        """Whether an item without a text cannot be trained on."""
        taught = self.distillation is not None and self.distillation.language_model is not None
        spelled = self.spelling is not None and self.spelling.without_text == "leave_out"
        return self.caption > 0 or spelled or taught

    def name_characters(self, texts: Iterable[str]) -> LossSettings:
        """The same with the characters of `texts` where spelling takes those of the data; texts are read only there."""
        if self.spelling is None or self.spelling.characters != OF_DATA:
            return self
        characters = collect_characters(texts)
        if not characters:
            raise ValueError("spelling has the characters of the data, and the data has no texts")
        return self.model_copy(update={"spelling": self.spelling.model_copy(update={"characters": characters})})

    def leave_out_decoded(self) -> LossSettings:
        """The same for a tokenizer that decodes nothing, without l2, which counts by default. ValueError for a loss of
        what is decoded that was asked for."""
        weights = self.read_weights()
        asked = [name for name in OF_DECODED if name in self.model_fields_set and weights[name]]
        if asked:
            raise ValueError(f"losses {', '.join(asked)} compare what is decoded, and this tokenizer only encodes")
        return self.model_copy(update={"l2": 0.0})

    def change_weights(self, changes: Mapping[str, float]) -> dict[str, float]:
        """The weights with those in `changes` in their place. Raises ValueError for a loss that is not set up."""
        weights = self.read_weights()
        for name, weight in changes.items():
            if name not in weights:
                raise ValueError(f"there is no loss {name!r}; there are {', '.join(weights)}")
            if name in WITH_SETTINGS and weight and not weights[name]:
                raise ValueError(f"a stage weighs {name} by {weight:g} but losses has none; set losses.{name} first")
            weights[name] = weight
        return weights
