"""A base and media tokenizers → a model to train → a model folder."""
