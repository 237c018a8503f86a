"""One decoder that reads and writes text, images, video and audio: every medium becomes codes of one vocabulary.

Importing this package is light on purpose: no torch and no transformers. Import the parts by name, e.g.
`from unimodal.media.image import load_image`.
"""

from unimodal import _torchaudio

__version__ = "0.1.0"

_torchaudio.prepare()  # any later `import torchaudio`, transformers' own included, works beside a CPU build of torch
