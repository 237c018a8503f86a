"""The executor: it applies plans to hidden states, positions, masks and the cache of a running model."""
