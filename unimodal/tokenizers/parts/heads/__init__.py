"""Heads: what makes a medium of the last vectors of a decoder; one idea a file."""
