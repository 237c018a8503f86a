"""Which losses a tokenizer is trained by, and how much each counts.

losses: {l1: 1, perceptual: 0.1, adversarial: {weight: 0.5, start: 20000}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, Field

from unimodal.config import Config
from unimodal.tokenizers.losses.adversarial import Kind
from unimodal.tokenizers.losses.frozen_features import PACKAGED

#: losses that compare what is decoded with what was encoded
OF_DECODED = ("l1", "l2", "spectral", "perceptual", "adversarial")


def _expand(value: object) -> object:
    """`0.1` in place of `{weight: 0.1}`; 0 in place of none."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"weight": value} if value else None
    return value


class PerceptualSettings(Config):
    """network: `efficientnet`, the folder of a vision encoder of transformers, or one with the weights of LPIPS."""

    weight: float = Field(1.0, gt=0)
    network: str = PACKAGED
    lpips: bool = False


class AdversarialSettings(Config):
    """judge: patch (PatchGAN), features (heads over a frozen `network`), waves (spectra and periods of sounds); by
    default patch for pictures and films, waves for sounds. start: the first step with it. frames: of a clip that are
    judged, drawn at random."""

    weight: float = Field(0.5, gt=0)
    judge: str | None = Field(None, pattern="^(patch|features|waves)$")
    kind: Kind = "hinge"
    start: int = Field(0, ge=0)
    adaptive: bool = True
    lecam: float = Field(0.0, ge=0)
    lecam_decay: float = Field(0.999, gt=0, lt=1)
    width: int = Field(64, ge=1)
    num_layers: int = Field(3, ge=1)
    network: str = PACKAGED


class AlignmentSettings(Config):
    """feature: a name of `Reconstruction.features`. hidden: of REPA's projector; None for one layer."""

    weight: float = Field(1.0, gt=0)
    feature: str
    network: str = PACKAGED
    hidden: int | None = Field(None, ge=1)


class LossSettings(Config):
    """Weights of the losses; 0 or null leaves one out. quantizer: of what quantizer and system add of their own.
    spectral: of sounds, at three resolutions. caption: of the words that a language model reads off the codes;
    caption_model: the folder of that model, one of transformers, which stays as it is. frames: of a clip that pictures'
    losses look at, drawn at random."""

    l1: float = Field(0.0, ge=0)
    l2: float = Field(1.0, ge=0)
    quantizer: float = Field(1.0, ge=0)
    spectral: float = Field(0.0, ge=0)
    perceptual: Annotated[PerceptualSettings | None, BeforeValidator(_expand)] = None
    adversarial: Annotated[AdversarialSettings | None, BeforeValidator(_expand)] = None
    alignment: AlignmentSettings | None = None
    caption: float = Field(0.0, ge=0)
    caption_model: str | None = None
    frames: int = Field(4, ge=1)

    def read_weights(self) -> dict[str, float]:
        """The weight of each loss by its name, 0 where it is left out."""
        parts = {"perceptual": self.perceptual, "adversarial": self.adversarial, "alignment": self.alignment}
        weights = {"l1": self.l1, "l2": self.l2, "quantizer": self.quantizer, "spectral": self.spectral}
        weights |= {name: part.weight if part is not None else 0.0 for name, part in parts.items()}
        return {**weights, "caption": self.caption}

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
            if name in ("perceptual", "adversarial", "alignment") and weight and not weights[name]:
                raise ValueError(f"a stage weighs {name} by {weight:g} but losses has none; set losses.{name} first")
            weights[name] = weight
        return weights
