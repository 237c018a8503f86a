"""The small text tokenizer and vocabulary of the sequence tests."""

from tests.sequence.conftest import template, text, text_folder, vocabulary

__all__ = ["template", "text", "text_folder", "vocabulary"]
