"""What applies a plan: to hidden states, positions, masks and the cache of a running model."""
