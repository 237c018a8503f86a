"""One step of a decoder, several ways: reference, lean, packed, compiled, slots."""
