"""One decoder that reads and writes text, images, video and audio: every medium becomes codes of one vocabulary.

    import unimodal

    model = unimodal.load()
    [answer] = model.chat([unimodal.Image(path="apple.png"), "What is this?"])

Importing this package is light on purpose: no torch and no transformers. The names of `__all__` are loaded when they
are first asked for; everything else is imported from the module that has it, e.g.
`from unimodal.media.image import load_image`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from unimodal import _torchaudio
from unimodal._version import __version__

if TYPE_CHECKING:
    from unimodal.pipeline import AnswerSettings, MediaCodes, Output, Unimodal, load
    from unimodal.sequence.document import Audio, Document, Image, Text, Turn, Video

__all__ = [
    "AnswerSettings", "Audio", "Document", "Image", "MediaCodes", "Output", "Text", "Turn", "Unimodal", "Video",
    "__version__", "load",
]  # fmt: skip

_PIPELINE, _DOCUMENT = "unimodal.pipeline", "unimodal.sequence.document"
_LAZY = {
    **dict.fromkeys(("AnswerSettings", "MediaCodes", "Output", "Unimodal", "load"), _PIPELINE),
    **dict.fromkeys(("Audio", "Document", "Image", "Text", "Turn", "Video"), _DOCUMENT),
}

_torchaudio.prepare()  # any later `import torchaudio`, transformers' own included, works beside a CPU build of torch


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(_LAZY[name]), name)
    globals()[name] = found  # asked for once
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
