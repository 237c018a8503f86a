"""Methods that act on the cache: some drop entries for good, some choose which to attend at every step."""
