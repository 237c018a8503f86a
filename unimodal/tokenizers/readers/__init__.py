"""Readers of pictures for language models: frozen encoders, and what maps their features to embeddings."""
