"""How a document is written as tokens, one template a file; `open.py` chooses."""
