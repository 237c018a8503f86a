"""The names of what a user may choose of the engine; nothing heavy is imported for them."""

from __future__ import annotations

#: precisions of packed weights (`decoders/products.py`)
WEIGHTS = ("float32", "bfloat16", "int8", "int4")
#: those of them that lose a little, and that only the lean step reads
NARROW = ("bfloat16", "int8", "int4")
#: precisions of keys and values (`decoders/kv_cache.py`); "model" is the model's own
CACHES = ("model", "bfloat16", "int8")

_SIGNS_OF_SHORTAGE = ("not enough memory", "out of memory", "can't allocate memory")


def is_memory_short(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on a processor or a GPU."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS_OF_SHORTAGE)
    )
