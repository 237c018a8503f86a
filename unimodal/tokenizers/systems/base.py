"""What published systems have in common: a reconstruction to train by, and the authors' names of their weights.

Shapes: B batch, C channels, N positions, G groups, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from unimodal.tokenizers.interface import Condition, LatentTokenizer, MediaTokenizer
from unimodal.tokenizers.onnx_weights import OnnxGraph
from unimodal.tokenizers.parts.quantizers.interface import Quantized, Quantizer
from unimodal.tokenizers.stored import StoredModule, TokenizerConfig
from unimodal.tokenizers.systems.key_map import KeyMap, fill_strictly, rename_to_authors


class SystemConfig(TokenizerConfig):
    """licence and origin are those of loaded weights; None where the weights were trained here. commercial: False where
    that licence forbids commercial use."""

    licence: str | None = None
    origin: str | None = None
    commercial: bool = True


@dataclass(frozen=True)
class Reconstruction:
    """One pass through encoder, quantizer and decoder, with gradient.

    decoded: float [B, C, …] in the range of what came in, not clamped; None of a system that only encodes. loss:
    scalar, what the quantizer and the system add of their own. ids: int64 [B, N, G], or None of continuous tokenizers.
    numbers: to log. features: by name, what losses of alignment compare, float [B, N, D]. mask: bool [B, N], False
    where codes and features of a shorter item are padding; None where all are real.
    """

    decoded: Tensor | None
    loss: Tensor
    ids: Tensor | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    features: Mapping[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None


#: the quantizer, the vectors [B, N, D] that it was given, and what it made of them → what is used in its place
ChangeQuantized = Callable[[Quantizer, Tensor, Quantized], Quantized]


class ReconstructingModule(StoredModule):
    """A tokenizer that is trained by what it makes of media, with the losses of `unimodal.tokenizers.losses`."""

    #: False of a system that has a loss of its own and no `reconstruct`
    reconstructs: ClassVar[bool] = True
    #: True of one whose `training_loss` is what it learns by where no other losses are asked for
    has_own_loss: ClassVar[bool] = False

    @abstractmethod
    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """x: float [B, C, …] as ``encode`` takes it → its reconstruction. generator: of what is drawn in training
        (prefix lengths, noise); the default generator where it is None."""

    def reconstruct_codes(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        change: ChangeQuantized | None = None,
    ) -> Reconstruction:
        """``reconstruct``, whose features hold "codes" too, the quantized vectors [B, N, D] with gradient, where the
        system has any. change: what is decoded in place of what the quantizer gave. ValueError for a change where there
        is no quantizer."""
        if change is not None:
            raise ValueError(f"{self.config.family} has no quantizer whose codes could be changed")
        return self.reconstruct(x, lengths, condition)


class SystemModule(ReconstructingModule):
    """A published system, of codes or of latents, stored in float32: its codes stay those of the authors' code."""

    #: losses to train by, as the recipe takes them, of a system that rebuilds nothing and learns nothing without them
    taught_by: ClassVar[str] = ""
    stored_dtype: ClassVar[torch.dtype] = torch.float32
    #: our names of weights → the authors', where they do not depend on the settings
    key_map: ClassVar[KeyMap] = KeyMap()
    config: SystemConfig

    @property
    def perturbs_codes(self) -> bool:
        """Whether its own settings replace codes by near ones in training (RobusTok)."""
        return False

    def training_loss(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
        """Mean squared error of what is decoded, and the system's own losses; `unimodal.tokenizers.losses` has the
        others."""
        made = self.reconstruct(x, lengths)
        if made.decoded is None:
            return made.loss, {"loss": float(made.loss.detach()), **made.numbers}
        error = (made.decoded - x).square().mean()
        return error + made.loss, {"mean_squared_error": float(error.detach()), **made.numbers}

    def change_picture_size(self, side: int) -> Self:
        """The same weights for square pictures of `side` pixels, which files are then read at; itself where weights
        hang on the size, and where the system takes no pictures of that one."""
        if self.config.model_dump().get("image_size") in (None, side):
            return self
        try:
            made = type(self)(type(self.config).model_validate({**self.config.model_dump(), "image_size": side}))
        except ValueError:  # pydantic's is one
            return self
        ours, theirs = self.state_dict(), made.state_dict()
        if {name: value.shape for name, value in ours.items()} != {name: value.shape for name, value in theirs.items()}:
            return self
        made.load_state_dict(ours)
        return made.train(self.training)

    def fill_trunk(self, source: str) -> None:
        """Takes the weights of a frozen trunk from `source`, before training: a package's name or a folder. ValueError
        for a system without one."""
        raise ValueError(f"the {self.config.family} tokenizer has no trunk that is filled; leave trunk out")

    def fit_to_labels(self, labelled: Iterable[tuple[Tensor, str]]) -> None:
        """Fits in closed form, before training, what no gradient learns, by media [C, …] and what each shows.
        ValueError for a system that has nothing of the kind."""
        raise ValueError(f"the {self.config.family} tokenizer fits nothing to labels; leave labelled out")

    def keep_trunk(self, most_bytes: int, folder: Path | None = None) -> None:
        """Keeps what a frozen trunk makes of media that come again in training, up to so much memory, and in a folder
        for later runs; of systems with one."""

    def copy_decoder(self, teacher: MediaTokenizer) -> None:
        """Takes the codebook and the decoder of the tokenizer whose codes it predicts. ValueError for a system that
        predicts none, and for a teacher with others."""
        raise ValueError(f"{self.config.family} has no decoder of another tokenizer's codes; leave copy_decoder out")

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> SystemConfig:
        """Our settings from the authors' config, as their file has it. ValueError where the family cannot."""
        raise ValueError(f"{cls.__name__} reads no config of its authors; name one of `unimodal tokenizers list`")

    def write_authors_config(self) -> dict[str, object] | None:
        """The settings as the authors' config.json has them, which `read_authors_config` reads; None where its form is
        not known or cannot say these settings."""
        return None

    @classmethod
    def name_onnx_weights(cls, graph: OnnxGraph) -> dict[str, Tensor]:
        """The weights of a released ONNX file by the names of the authors' code. ValueError for a system that has
        none."""
        raise ValueError(f"the weights of {cls.__name__} were not released as ONNX; name a file of another kind")

    @classmethod
    def find_key_map(cls, config: SystemConfig) -> KeyMap:
        """The key map of weights of these settings; overridden where names depend on them."""
        return cls.key_map

    @classmethod
    def lacks_companion(cls, weights: Mapping[str, Tensor]) -> bool:
        """Whether released weights leave out a part that comes from elsewhere."""
        return False

    @classmethod
    def add_companion(cls, weights: Mapping[str, Tensor], companion: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Released weights together with the part that they leave out. ValueError for a system that is whole."""
        raise ValueError(f"the weights of {cls.__name__} are whole; leave companion out")

    @classmethod
    def from_authors(cls, weights: Mapping[str, Tensor], config: SystemConfig, source: str = "the checkpoint") -> Self:
        """A tokenizer with weights under the authors' names. Raises MisfitError that names a missing, a surplus or a
        misshapen tensor; source: what the weights are called in that message."""
        tokenizer = cls(config)
        fill_strictly(tokenizer, weights, cls.find_key_map(config), source)
        return tokenizer.eval()

    def collect_authors_state(self) -> dict[str, Tensor]:
        """The weights under the authors' names: what their code loads. ValueError for a mixer that it has not."""
        if (mixer := self.config.model_dump().get("mixer", "attention")) != "attention":
            raise ValueError(f"their code of {self.config.family} has no mixer {mixer}; keep its folder as it is")
        key_map = self.find_key_map(self.config)
        return {rename_to_authors(name, key_map): tensor.contiguous() for name, tensor in self.state_dict().items()}


class SystemTokenizer(SystemModule, MediaTokenizer):
    """A published system of codes, made by its module `quantizer`."""

    def code_features(self, block: str, group: int = 0) -> Tensor | None:
        """What the quantizer turns the codes of a group into, float [size, K]; None of blocks and groups that are not
        there, and where there are too many codes to list."""
        quantizer = self.get_submodule("quantizer")
        assert isinstance(quantizer, Quantizer)
        known = block in self.block_sizes and 0 <= group < len(self.codebook_sizes)
        return quantizer.make_table(group) if known else None

    def reconstruct_codes(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        change: ChangeQuantized | None = None,
    ) -> Reconstruction:
        quantizer = dict(self.named_children()).get("quantizer")
        if not isinstance(quantizer, Quantizer):
            return super().reconstruct_codes(x, lengths, condition, change)
        found: list[Tensor] = []

        def watch(_: nn.Module, given: tuple[Tensor, ...], made: Quantized) -> Quantized:
            made = made if change is None else change(quantizer, given[0], made)
            found.append(made.values)
            return made

        hook = quantizer.register_forward_hook(watch)
        try:
            made = self.reconstruct(x, lengths, condition)
        finally:
            hook.remove()
        if not found or "codes" in made.features:
            return made
        return replace(made, features={**made.features, "codes": self.join_values(found, x, lengths)})

    def join_values(self, found: Sequence[Tensor], x: Tensor, lengths: Tensor | None) -> Tensor:
        """What the quantizer gave in each call of one ``reconstruct`` → the codes' vectors of the batch, [B, N, D]."""
        return found[-1].reshape(len(x), -1, found[-1].shape[-1])  # of clips in chunks as many as there are


class SystemLatents(SystemModule, LatentTokenizer):
    """A published system of continuous latents."""
