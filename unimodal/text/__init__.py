"""Text tokenizers: our own SentencePiece pieces, and those that a base brings."""
