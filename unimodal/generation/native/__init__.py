"""A step of all layers in one call of compiled code, for processors with AVX2."""
