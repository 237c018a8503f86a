"""The `unimodal` command: one file a group of commands; `app.py` begins."""
