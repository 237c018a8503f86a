"""Files ⇄ codes, through the media tokenizers of one model folder."""
