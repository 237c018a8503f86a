"""What `trust_remote_code` loads from an exported folder: a processor and a model with `generate`."""
