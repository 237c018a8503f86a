"""The vocabulary and small decoders of the model tests."""

from tests.model.conftest import make_model, vocabulary

__all__ = ["make_model", "vocabulary"]
