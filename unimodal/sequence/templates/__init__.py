"""Templates that write a document as tokens, one format a file; `open.py` chooses one by name."""
