"""Reports on text tokenizers: what is measured, one file each, and how it is laid out."""
