"""Who speaks: a name that the model was trained to read in a request, a name that its tokenizer knows, or a clip.

The first is put into the words of the request. The codes of the others take the place of those that the model wrote.

Shapes: V codes of a voice.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from unimodal.coder.outputs import Output
from unimodal.pipeline.parts import LoadedModel
from unimodal.sequence.document import MEDIA_PARTS, Text
from unimodal.tokenizers.voices import VoicedTokenizer


def find_voice_codes(model: LoadedModel, voice: str | Path | None, to: str | None) -> Tensor | None:
    """The codes of a clip's voice, or of one that only the tokenizer knows, int64 [V]; None for a voice that belongs
    into the words of the request.

    Raises ValueError for a clip where the tokenizer has no codes of a voice, and for one that cannot be read.
    """
    if voice is None or to != "audio" or (isinstance(voice, str) and voice in model.wording.voices):
        return None
    tokenizer = model.coder.get_tokenizer("audio")
    if not isinstance(tokenizer, VoicedTokenizer):
        if isinstance(voice, str):
            return None
        known = ", ".join(model.wording.voices) or "none by name"
        raise ValueError(f"this model cannot speak with the voice of a clip; its voices are {known}")
    if isinstance(voice, str):
        return tokenizer.find_voice(voice) if voice in tokenizer.list_voices() else None
    clip = model.coder.read(voice, "audio").to(model.coder.device)
    return tokenizer.encode_voice(clip[None, None])[0].cpu()


def give_voice(model: LoadedModel, output: Output, voice: Tensor) -> Output:
    """A sound that is said by another voice, int64 [V]."""
    assert not isinstance(output.part, Text)
    codes = np.array(output.part.require_codes())
    codes.reshape(len(codes), -1)[: len(voice), 0] = voice.numpy()[: len(codes)]
    [sound] = model.coder.decode("audio", [codes])
    return Output(MEDIA_PARTS["audio"](codes=codes), sound, output.rate)
