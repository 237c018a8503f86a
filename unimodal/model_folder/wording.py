"""The words in which a model was trained to be asked, and how a bare prompt becomes such a request. Imports no torch.

A small model answers best to the wordings it has seen. So a picture without a question gets the trained one, and `red
apple`, to be drawn, becomes `Draw a red apple.` A prompt that already is a request is left as it is.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Literal

from unimodal.config import Config
from unimodal.text.numerals import spell_numerals
from unimodal.text.sentences import split_sentences

ONE_BREATH = 40  # letters that any model says at a time
COUNTS = "no|one|two|three|four|five|six|seven|eight|nine|ten"
UNSPOKEN_MARKS = "%&@#§"  # marks that stand for words; other punctuation is heard as a pause or not at all


class Wording(Config):
    """`{thing}` is what to show, `{text}` what to say, `{voice}` who says it. By default there are no such words."""

    #: by medium: what is asked about one that comes without words
    questions: dict[str, str] = {}
    #: by medium: how a bare prompt becomes the request to make it
    wishes: dict[str, str] = {}
    #: the wish for sound where a voice is named; empty: a named voice has no words
    in_voice: str = ""
    #: the voices that it was trained on; empty: not known, and any name is passed on
    voices: tuple[str, ...] = ()
    #: by medium: the first words, in lower case, of a request that is already complete
    wish_starts: dict[str, tuple[str, ...]] = {}
    #: things named without an article get one: `red apple` → `a red apple`
    add_article: bool = False
    #: what is spoken becomes lower-case words without punctuation
    plain_speech: bool = False
    #: letters that it was trained to say, in lower case; empty: not known, and any text is passed on
    letters: str = ""
    #: language of the words for numbers and common signs that its letters lack; empty: these are refused
    numerals: Literal["", "en"] = ""
    #: length in letters of the longest sentence that it was trained to say; None: what its spans have time for
    breath: int | None = None

    def ask(self, modality: str) -> str:
        """The question about a medium that comes without words; "" if the model has none."""
        return self.questions.get(modality, "")

    def phrase_request(self, prompt: str, to: str, voice: str | None = None) -> str:
        """The request for an answer of modality `to`.

        Raises ValueError for an empty prompt, and for a voice that is unknown or for a medium other than sound.
        """
        prompt = prompt.strip()
        if not prompt:
            raise ValueError("the prompt is empty; say what to make")
        if voice is not None and to != "audio":
            raise ValueError(f"a voice speaks; it cannot be used to make {to}: leave the voice out")
        if voice is not None and self.voices and voice not in self.voices:
            raise ValueError(f"the voice {voice[:40]!r} is unknown; this model speaks as {', '.join(self.voices)}")
        if to not in self.wishes or prompt.lower().startswith(self.wish_starts.get(to, ())):
            return prompt
        if to == "audio":
            if not strip_punctuation(self.spell_numerals(prompt)):
                raise ValueError(f"there is no word to speak in {prompt!r}; write the sentence in letters")
            self.check_sayable(prompt)
            short = len(self.spell_numerals(prompt)) <= ONE_BREATH and len(split_sentences(prompt)) == 1
            spoken = self.spell_utterance(prompt) if short else prompt  # a long one is split at its marks first
            wish = self.in_voice.replace("{voice}", voice) if voice is not None and self.in_voice else self.wishes[to]
            return wish.replace("{text}", spoken)
        thing = prompt.rstrip(".")
        if self.add_article and not re.match(rf"(a|an|the|some|my|{COUNTS}|\d+) ", thing.lower()):
            from unimodal.data.sources import add_article

            thing = add_article(thing)
        return self.wishes[to].replace("{thing}", thing)

    def extract_speech(self, request: str) -> str | None:
        """The words that a request in the trained wording wants spoken: the inverse of `phrase_request` for sound.

        None for a request in other words.
        """
        found = self.find_speech(request)
        return None if found is None else self.spell_utterance(found[1]) or None

    def find_speech(self, request: str) -> tuple[str, str] | None:
        """(the wish with `{text}` open, the text of the request) for a request in the trained wording for speech.

        None for a request in other words.
        """
        for wish in (self.in_voice, self.wishes.get("audio", "")):
            if "{text}" not in wish:
                continue
            pattern = re.escape(wish).replace(re.escape("{voice}"), "(?P<voice>[^:]+)")
            pattern = pattern.replace(re.escape("{text}"), "(?P<text>.+)")
            if found := re.fullmatch(pattern, request.strip(), re.IGNORECASE | re.DOTALL):
                voice = found.groupdict().get("voice")
                return wish if voice is None else wish.replace("{voice}", voice.strip()), found["text"].strip()
        return None

    def spell_numerals(self, text: str) -> str:
        """A text with numbers and common signs as words, if the model's letters have no digits."""
        return spell_numerals(text) if self.numerals and not any(map(str.isdigit, self.letters)) else text

    def spell_utterance(self, text: str) -> str:
        """One utterance in the letters that the model was trained to read."""
        text = self.spell_numerals(text)
        if not self.plain_speech:
            return text
        words = strip_punctuation(text)
        return "".join(self._fold(letter) for letter in words) if self.letters else words

    def check_sayable(self, text: str) -> None:
        """Raises ValueError, with the count, for letters and signs that the model was not trained to say."""
        if not self.letters:
            return
        wrong = Counter(letter for letter in self.spell_numerals(text).lower() if self._is_unsayable(letter))
        if wrong:
            shown = " ".join(letter for letter, _ in wrong.most_common(8))
            raise ValueError(
                f"{wrong.total():,} of {len(text):,} characters cannot be said by this model ({shown}); "
                f"it speaks {self.letters}: write {'such signs' if self.numerals else 'numbers and signs'} as words"
            )

    def _is_unsayable(self, letter: str) -> bool:
        if letter in UNSPOKEN_MARKS or unicodedata.category(letter)[0] == "S":
            return True
        return letter.isalnum() and not all(one in self.letters for one in self._fold(letter))

    def _fold(self, letter: str) -> str:
        """A letter without its accent, if the model knows it only so: é → e."""
        if letter in self.letters or not letter.isalpha():
            return letter
        plain = "".join(one for one in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(one))
        return plain or letter

    def phrase_caption(self, prompt: str, to: str) -> str:
        """What the model would call the answer to a request: `Draw a red apple.` → `red apple`."""
        found = prompt.strip()
        start = next((s for s in self.wish_starts.get(to, ()) if found.lower().startswith(s)), "")
        found = found[len(start) :].strip()
        if to == "audio":
            return strip_punctuation(found) if self.plain_speech else found
        found = found.rstrip(".")
        return re.sub(r"^(an?|the) (?=.)", "", found, flags=re.IGNORECASE) if self.add_article else found


def strip_punctuation(text: str) -> str:
    """`Well, it's 5 o'clock!` → `well it's 5 o'clock`."""
    return " ".join(re.findall(r"\w+(?:['’]\w+)*", text.lower())).replace("’", "'")
