"""Recordings of people: what of the packages is speech, whose it is, and what of it can be used."""

import numpy as np
import pytest
import soundfile

from tools import make_recordings as tool


@pytest.mark.parametrize("package, path, expected", [
    ("asterisk-core-sounds-fr-g722", "usr/share/asterisk/sounds/fr_CA_f_June/digits/6.g722", ("asterisk-fr", "")),
    ("asterisk-core-sounds-ru-g722", "usr/share/asterisk/sounds/ru_RU_f_IvrvoiceRU/silence/3.g722", None),
    ("fillets-ng-data-cs", "usr/share/games/fillets-ng/sound/airplane/cs/let-m-oko.ogg", ("fillets-cs", "")),
    ("fillets-ng-data-cs", "usr/share/games/fillets-ng/sound/airplane/nl/let-m-oko.ogg", None),
    ("klettres-data", "usr/share/klettres/en_GB/syllab/ball.ogg", ("klettres-en_GB", "ball")),
    ("klettres-data", "usr/share/klettres/de/alpha/ae.ogg", ("klettres-de", "")),
    ("ktuberling-data", "usr/share/ktuberling/sounds/en/eyebrow.ogg", ("ktuberling-en", "eyebrow")),
    ("ktuberling-data", "usr/share/ktuberling/sounds/sr@latin/hat.ogg", ("ktuberling-sr@latin", "")),
    ("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps/animals/cat_desc_pt_BR.ogg", ("stamps-pt_BR", "")),
    ("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps/animals/cat_desc.ogg", ("stamps-en", "")),
    ("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps/animals/cat.ogg", None),  # how it sounds
    ("hedgewars-data", "usr/share/games/hedgewars/Data/Sounds/voices/Pirate/Amazing.ogg", None),
])  # fmt: skip
def test_a_file_belongs_to_its_speaker(package, path, expected):
    assert tool.find_speakers(package, path) == expected


def write_tone(path, seconds, level=0.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(int(8000 * seconds)) / 8000
    soundfile.write(path, level * np.sin(2 * np.pi * 440 * times), 8000)


def test_usable_clips_are_made_once_up_to_the_limit(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    names = raw / "klettres-data" / "usr/share/klettres/en/alpha"
    for letter in "ABC":
        write_tone(names / f"{letter}.ogg", 0.5)
    write_tone(names / "D.ogg", 0.05)  # too short
    write_tone(names / "E.ogg", 0.5, level=0)  # silent
    (names / "F.ogg").write_bytes(b"no sound")
    for language in ("en", "es"):  # the speaker of the test set
        write_tone(raw / f"asterisk-core-sounds-{language}-g722" / "digits" / "1.wav", 0.5)
    lines = list(tool.make_recordings(raw, out, limit=9))
    assert lines == ["klettres-en: 3 clips of 6 files, 3 unusable"]
    made = sorted((out / "klettres-en").glob("*.wav"))
    assert sorted(path.with_suffix(".txt").read_text() for path in made) == ["a", "b", "c"]
    wave, rate_hz = soundfile.read(made[0])
    assert rate_hz == 16_000 and wave.ndim == 1 and 0.5 <= len(wave) / rate_hz <= 0.75 and abs(wave).max() > 0.8
    times = [path.stat().st_mtime_ns for path in made]
    assert next(tool.make_recordings(raw, out, limit=2)).startswith("klettres-en: 2 clips of 6 files")
    assert [path.stat().st_mtime_ns for path in made] == times
    with pytest.raises(ValueError, match="--set recordings"):
        list(tool.make_recordings(tmp_path / "none", out, 9))
