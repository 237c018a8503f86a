"""Sources: prepared, encoded data → documents, in both directions of every medium.

    picture → name    text → picture
    clip → name       text → clip
    speech → text     text → speech

A source is a numbered set of items. `make_document(item, draw)` makes document `draw` of an item. Its wording, the
style or voice it asks for and the augmented view come from a generator seeded with (seed, source, item, draw), so that
any worker can make any document. `plan_draws` chooses how often each item is drawn; items of rare groups are drawn more
often than their share.

"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

from unimodal.data.encoded_media import EncodedConcepts, EncodedSpeech
from unimodal.data.order import make_generator
from unimodal.sequence.document import Audio, Document, Part, Text, Turn
from unimodal.vocabulary import Vocabulary

STYLE_WORDS = {"noto": "noto", "fluent3d": "3d", "fluentflat": "flat", "twemoji": "twemoji"}

ASK = {
    "image": (
        "What is this?", "What is in the picture?", "What does this picture show?", "Name it.", "What do you see?",
        "Describe this picture.", "Describe the image.",
    ),
    "video": (
        "What is this?", "What happens in this clip?", "What does the video show?", "Describe this clip.",
        "What moves here?", "What do you see?", "Describe the video.",
    ),
    "audio": (
        "What is said?", "Write down what you hear.", "Transcribe this.", "What does the speaker say?",
        "Transcribe the audio.", "Write it down.",
    ),
}  # fmt: skip
ASK_TAGS = ("Give tags.", "Which words fit?", "List some keywords.", "Tags, please.")
WISH = {
    "image": (
        "Draw {thing}.", "Draw me {thing}.", "A picture of {thing}.", "Show me {thing}.", "Paint {thing}.",
        "Make a picture of {thing}.", "{name}, a picture", "{name}",
    ),
    "video": (
        "A clip of {thing}.", "Make a video of {thing}.", "Show me {thing} in motion.", "Animate {thing}.",
        "Film {thing}.", "{name}, a video", "{name}",
    ),
}  # fmt: skip
IN_STYLE = (" In {style} style.", " Style: {style}.", " Make it {style}.")
SAY = ("Say: {text}", "Read aloud: {text}", "Speak: {text}", "Say this: {text}", "Read this: {text}")
SAY_IN_VOICE = ("Say in the voice of {voice}: {text}", "Voice {voice}: {text}", "Read aloud as {voice}: {text}")

ChoiceT = TypeVar("ChoiceT")


class Source(Protocol):
    """A numbered set of items that become documents."""

    name: str

    def __len__(self) -> int: ...

    def get_group(self, item: int) -> Hashable:
        """The item's group; `plan_draws` balances groups."""
        ...

    def make_document(self, item: int, draw: int = 0) -> Document: ...


class MediaToName:
    """Asks what a picture or clip shows; the answer is its label, sometimes its tags."""

    def __init__(self, media: EncodedConcepts, seed: int = 0, tag_share: float = 0.2) -> None:
        self.name = f"{media.part.modality}_to_name"
        self.media, self.seed, self.tag_share = media, seed, tag_share

    def __len__(self) -> int:
        return len(self.media)

    def get_group(self, item: int) -> str:
        return self.media.get_concept(item).group

    def make_document(self, item: int, draw: int = 0) -> Document:
        draws = make_generator(self.seed, self.name, item, draw)
        concept = self.media.get_concept(item)
        if concept.tags and draws.random() < self.tag_share:
            question, answer = pick(draws, ASK_TAGS), ", ".join(draw_some(draws, concept.tags, 5))
        else:
            question, answer = pick(draws, ASK[self.media.part.modality]), concept.label
        medium = self.media.part(codes=self.media.get_view(item, draw))
        asked: list[Part] = [medium, Text(make_informal(draws, question))]
        if draws.random() < 0.3:
            asked.reverse()
        return Document([Turn("user", asked), Turn("assistant", answer)])


class NameToMedia:
    """Asks for a picture or clip, by name, sometimes with a style, sometimes by tags alone; it is the answer.

    target_views: how many of the first views may be the answer; 1 takes the picture as it was drawn.
    """

    def __init__(
        self,
        media: EncodedConcepts,
        seed: int = 0,
        tag_share: float = 0.2,
        style_share: float = 0.5,
        target_views: int = 1,
        name: str | None = None,
    ) -> None:
        if target_views < 1:
            raise ValueError(f"target_views is {target_views}; an answer needs at least one view")
        self.name = name or f"text_to_{media.part.modality}"
        self.media, self.seed = media, seed
        self.tag_share, self.style_share, self.target_views = tag_share, style_share, target_views

    def __len__(self) -> int:
        return len(self.media)

    def get_group(self, item: int) -> str:
        return self.media.get_concept(item).group

    def make_document(self, item: int, draw: int = 0) -> Document:
        draws = make_generator(self.seed, self.name, item, draw)
        concept = self.media.get_concept(item)
        if concept.tags and draws.random() < self.tag_share:
            name = thing = ", ".join(draw_some(draws, concept.tags, 5))
        else:
            name, thing = concept.label, add_article(concept.label)
        wish = pick(draws, WISH[self.media.part.modality]).format(name=name, thing=thing)
        style = STYLE_WORDS.get(self.media.get_style(item))
        if style is not None and draws.random() < self.style_share:
            wish = wish.rstrip(".") + "." + pick(draws, IN_STYLE).format(style=style)
        answer = self.media.part(codes=self.media.get_view(item, draw % self.target_views))
        return Document([Turn("user", make_informal(draws, wish)), Turn("assistant", [answer])])


class SpeechToText:
    """Asks to write down an utterance; the answer is its text."""

    def __init__(self, speech: EncodedSpeech, seed: int = 0) -> None:
        self.name = "audio_to_text"
        self.speech, self.seed = speech, seed

    def __len__(self) -> int:
        return len(self.speech)

    def get_group(self, item: int) -> str:
        return self.speech.get_voice(item)

    def make_document(self, item: int, draw: int = 0) -> Document:
        draws = make_generator(self.seed, self.name, item, draw)
        asked: list[Part] = [
            Audio(codes=self.speech.get_codes(item)),
            Text(make_informal(draws, pick(draws, ASK["audio"]))),
        ]
        if draws.random() < 0.3:
            asked.reverse()
        return Document([Turn("user", asked), Turn("assistant", self.speech.get_text(item))])


class TextToSpeech:
    """Asks to speak a sentence, sometimes in a named voice; the answer is the utterance."""

    def __init__(self, speech: EncodedSpeech, seed: int = 0, voice_share: float = 0.5) -> None:
        self.name = "text_to_audio"
        self.speech, self.seed, self.voice_share = speech, seed, voice_share

    def __len__(self) -> int:
        return len(self.speech)

    def get_group(self, item: int) -> str:
        return self.speech.get_voice(item)

    def make_document(self, item: int, draw: int = 0) -> Document:
        draws = make_generator(self.seed, self.name, item, draw)
        wordings = SAY_IN_VOICE if draws.random() < self.voice_share else SAY
        # the sentence itself is kept as it is: only the wording around it is made informal
        before, _, after = pick(draws, wordings).partition("{text}")
        before = make_informal(draws, before).replace("{voice}", self.speech.get_voice(item))
        answer = Audio(codes=self.speech.get_codes(item))
        return Document([Turn("user", f"{before}{self.speech.get_text(item)}{after}"), Turn("assistant", [answer])])


def list_labels(pictures: EncodedConcepts) -> list[str]:
    """The labels of the pictures in lower case, sorted, each once."""
    return sorted({pictures.get_concept(item).label.lower() for item in range(len(pictures))})


def name_codes(pictures: EncodedConcepts, vocabulary: Vocabulary) -> dict[str, list[str]]:
    """Names of the codes that stand for one thing: block → a name for each of its codes, in order.

    The first block of a picture has a code for each training concept, named by its label; the second has one for each
    training picture, named by its label and style. Raises ValueError for a style without a word.
    """
    unknown = {pictures.get_style(item) for item in range(len(pictures))} - set(STYLE_WORDS)
    if unknown:
        raise ValueError(f"style {sorted(unknown)[0]!r} is unknown; use {', '.join(STYLE_WORDS)}")
    concepts = {pictures.get_concept(item).id: pictures.get_concept(item).label for item in range(len(pictures))}
    looks = [
        f"{pictures.get_concept(item).label} {STYLE_WORDS[pictures.get_style(item)]}" for item in range(len(pictures))
    ]
    blocks = list(dict.fromkeys(segment.block for segment in vocabulary.get_layout("image").segments))
    assert len(blocks) > 2, "nano's pictures have codes of their own behind those with names"
    names = [[concepts[number] for number in sorted(concepts)], looks]
    return {block: [words.lower() for words in named] for block, named in zip(blocks, names, strict=False)}


def name_known(
    pictures: EncodedConcepts,
    vocabulary: Vocabulary,
    exemplar_blocks: Sequence[str],
    code_names: Mapping[str, Sequence[str]],
) -> dict[str, list[str]]:
    """`name_codes` of any picture tokenizer: of its exemplars, or of the labels of what its codes were trained to name.

    code_names: block → the key of the concept of each of its codes.
    """
    if exemplar_blocks:
        return name_codes(pictures, vocabulary)
    labels = {concept.key: concept.label.lower() for concept in pictures.concepts}
    return {block: [labels.get(key, key) for key in keys] for block, keys in code_names.items() if keys}


def plan_draws(source: Source, num_documents: int, balance: float = 0.5, seed: int = 0) -> np.ndarray:
    """Plans which documents to make: int64 [num_documents, 2] of (item, draw), each item drawn 0, 1, 2, … times.

    A group of n items gets a share ∝ n^(1 - balance): 0 draws every item equally often, 1 every group. Each item is
    drawn at most once more or once less than its share.
    """
    if not 0 <= balance <= 1:
        raise ValueError(f"balance is {balance}; give 0 (every item alike) to 1 (every group alike)")
    if len(source) == 0:
        raise ValueError(f"source {source.name} has no items in this split")
    groups = [source.get_group(item) for item in range(len(source))]
    sizes = Counter(groups)
    weights = np.array([sizes[group] ** -balance for group in groups])
    quotas = num_documents * weights / weights.sum()
    counts = np.floor(quotas + 1e-9).astype(np.int64)
    # ties in the remainder are broken by a seeded rank, so that not always the first items win
    rank = np.array([make_generator(seed, source.name, item).random() for item in range(len(source))])
    order = np.lexsort((rank, -np.round(quotas - counts, 9)))
    counts[order[: num_documents - counts.sum()]] += 1
    items = np.repeat(np.arange(len(source)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([items, np.arange(num_documents) - first], axis=1)


def pick(draws: random.Random, choices: Sequence[ChoiceT]) -> ChoiceT:
    """One of the choices, at random."""
    return choices[int(draws.random() * len(choices))]


def draw_some(draws: random.Random, choices: Sequence[ChoiceT], most: int) -> list[ChoiceT]:
    """1 to `most` of the choices, at random and in random order."""
    count = 1 + int(draws.random() * min(most, len(choices)))
    return sorted(choices, key=lambda _: draws.random())[:count]


def make_informal(draws: random.Random, text: str) -> str:
    """Writes a text as people type: half of the time without a capital, and then mostly without the full stop."""
    if draws.random() < 0.5:
        return text
    text = text[:1].lower() + text[1:]
    return text.removesuffix(".") if draws.random() < 0.7 else text


def add_article(label: str) -> str:
    """`red apple` → `a red apple`; plurals, names and signs are left as they are."""
    noun = label.partition(" with ")[0].partition(" of ")[0].partition(" in ")[0].partition(":")[0]
    if not noun[:1].islower() or (noun.endswith("s") and not noun.endswith(("ss", "us"))):
        return label
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {label}"
