"""What tokenizers are made of: quantizers, trunks, resamplers, heads."""
