"""The tokenizers of the released model."""
