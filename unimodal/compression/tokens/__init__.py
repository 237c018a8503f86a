"""Methods that shorten what the decoder reads, one a file."""
