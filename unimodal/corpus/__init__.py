"""Datasets → rendered documents, with codes that are made once."""
