"""Compression of stock vision-language models of transformers: `with DivPrune(keep=0.25)(model): model.generate(…)`."""
