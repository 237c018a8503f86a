"""tools/make_voices.py: what a voice speaks, and that an interrupted run leaves nothing out."""

import argparse

import numpy as np
import pytest

from tools import make_voices
from unimodal.data.spoken_text import Sentence

SENTENCES = [Sentence(i, f"sentence {i}", "gloss", "train" if i else "test") for i in range(7)]


def test_an_interrupted_voice_goes_on_with_every_worse_copy(tmp_path, monkeypatch):
    wave = (3000 * np.sin(np.arange(8000) / 9)).astype(np.int16)
    monkeypatch.setattr(make_voices, "load_sentences", lambda out: SENTENCES)
    monkeypatch.setattr(make_voices, "find_speaker", lambda *_: lambda wanted: ((one, wave) for one in wanted))
    monkeypatch.setattr(make_voices, "draw_change", lambda identity: None)
    monkeypatch.setattr(make_voices, "wear", lambda clip, identity: clip // 2)
    monkeypatch.setitem(make_voices.SENTENCES, "slt", (6, 1))
    args, save, saved = argparse.Namespace(out=tmp_path, limit=None), make_voices.save_clip, []

    def save_some(*clip):
        if len(saved) == 4:
            raise KeyboardInterrupt
        saved.append(clip)
        save(*clip)

    monkeypatch.setattr(make_voices, "save_clip", save_some)
    with pytest.raises(KeyboardInterrupt):
        make_voices.speak("slt", args)
    monkeypatch.setattr(make_voices, "save_clip", save)
    make_voices.speak("slt", args)
    found = {folder: [f"{i:05}" for i in numbers] for folder, numbers in
             {"train/slt": range(1, 7), "train/slt-worn": (3, 6), "test/slt": (0,)}.items()}  # fmt: skip
    for folder, names in found.items():
        assert sorted(path.stem for path in (tmp_path / folder).glob("*.wav")) == names
        assert all((tmp_path / folder / f"{name}.txt").read_text() == "sentence" for name in names)
