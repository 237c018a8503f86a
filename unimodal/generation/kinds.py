"""The names of what a user may choose of the engine; nothing heavy is imported for them."""

from __future__ import annotations

#: precisions of packed weights (`decoders/products.py`)
WEIGHTS = ("float32", "bfloat16", "int8", "int4")
#: precisions of keys and values (`decoders/kv_cache.py`); "model" is the model's own
CACHES = ("model", "bfloat16", "int8")
