"""What is learnt from a batch, one objective a file: a batch and a model → a loss."""
