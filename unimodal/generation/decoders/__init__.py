"""Implementations of one decoding step: reference, lean, packed, compiled, slots."""
