"""Files to tensors and back: `image.py`, `audio.py`, `video.py`, all under the limits of `limits.py`.

What a file holds is decided by its first bytes, never by its name. Sizes and durations are read from the headers and
checked before anything is decoded. A file that cannot be used gives one `ValueError` line that names it and the fix.
"""
