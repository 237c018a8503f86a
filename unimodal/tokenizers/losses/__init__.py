"""What a tokenizer is trained by, one idea a file; `bag.py` adds them up by settings. Entropy and commitment are of the
quantizer and come with its own loss (`parts/quantizers`)."""
