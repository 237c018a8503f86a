"""Decoders that write several tokens a step, one method a file; `unimodal.generation.DECODERS` names them."""
