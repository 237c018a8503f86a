"""What a tokenizer of speech can do whose codes begin with who speaks: other voices, by name and from a clip.

Shapes: B batch, T samples, V codes of a voice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class VoicedTokenizer(ABC):
    """A tokenizer of sound with codes of the voice in front of a row."""

    @abstractmethod
    def list_voices(self) -> tuple[str, ...]:
        """The names of the voices that it knows."""

    @abstractmethod
    def find_voice(self, name: str) -> Tensor:
        """The codes of a voice by its name, int64 [V]. ValueError for one that is not known."""

    @abstractmethod
    def encode_voice(self, clips: Tensor) -> Tensor:
        """Clips of one length, float [B, 1, T] → the codes of who speaks in them, int64 [B, V]."""

    @abstractmethod
    def name_voice(self, name: str, clip: Tensor) -> None:
        """Keeps the voice of a clip, float [1, T], under a name; ``save`` writes it with the settings."""
