"""The sentences that voices speak, with their splits, and which of them each voice speaks."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from hashlib import sha256
from pathlib import Path

from unimodal.data.speaking_programs import find_one
from unimodal.data.spoken_text import DIGITS, UNWANTED, Sentence, make_short_utterances, normalise, split_words

# voice -> number of training sentences it speaks (validation and test sentences come on top)
TRAIN_SENTENCES = {
    "slt": 9000, "rms": 9000, "kal16": 9000, "awb": 200, "joe": 2500,
}  # fmt: skip
# voice -> number of validation and of test sentences it speaks
HELD_OUT_SENTENCES = {"slt": 200, "rms": 200, "kal16": 200, "awb": 200, "joe": 200}
NUM_VAL = NUM_TEST = 200
TEMPLATES = (
    "a picture of {a}", "this is {a}", "draw {a}", "i see {a}", "where is the {l}", "the {l} is {c}", "i like the {l}",
    "look at the {l}", "show me {a}", "there are {n} of them", "give me the {l}", "{a} in the {p}", "we found {a}",
    "the {l} is in the {p}", "do you see the {l}", "it looks like {a}", "she has {a}", "he drew {a} for me",
)  # fmt: skip
TEMPLATES_PER_LABEL = 5
COLOURS = split_words("red blue green yellow black white brown big small old new nice")
PLACES = split_words("house garden street city water box picture window car school")


def read_wordnet_examples(raw: Path) -> list[str]:
    """All quoted example sentences of WordNet without digits, normalised, in file order."""
    examples = []
    for part in ("adj", "adv", "noun", "verb"):
        text = find_one(raw, f"data.{part}", "wordnet-base").read_text(encoding="latin-1")
        for line in text.splitlines():
            if not line.startswith("  ") and "|" in line:
                examples += re.findall(r'"([^"]+)"', line.split("|", 1)[1])
    return [normalise(example) for example in examples if not re.search(r"[0-9]", example)]


def read_emoji_labels(raw: Path) -> list[str]:
    """Labels of pictures (no flags, skin tones, symbols, people): one to three plain words."""
    entries = json.loads(find_one(raw, "en/data.json", "emojibase-data").read_text(encoding="utf-8"))
    labels = []
    for entry in entries:
        label = entry["label"].lower()
        plain = re.fullmatch(r"[a-z]+( [a-z]+){0,2}", label.replace("-", " "))
        if entry.get("group") in (0, 3, 4, 5, 6, 7) and plain:
            labels.append(label.replace("-", " "))
    return sorted(set(labels))


def build_sentences(raw: Path, vocabulary_size: int = 1500, seed: int = 0) -> list[Sentence]:
    """The fixed list of sentences with their splits; the same list on every machine."""
    rng = random.Random(seed)
    examples = read_wordnet_examples(raw)
    counts = Counter(word for example in examples for word in example.split())
    frequent = {word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:vocabulary_size]}
    kinds: dict[str, str] = dict.fromkeys(make_short_utterances(rng), "short")
    for label in read_emoji_labels(raw):
        article = ("an " if label[0] in "aeiou" else "a ") + label
        for template in rng.sample(TEMPLATES, TEMPLATES_PER_LABEL):
            number = rng.choice(DIGITS[2:])
            text = template.format(a=article, l=label, c=rng.choice(COLOURS), p=rng.choice(PLACES), n=number)
            if len(text.split()) <= 8:
                kinds.setdefault(text, "emoji")
    for text in examples:
        spoken = text.split()
        if 2 <= len(spoken) <= 8 and frequent.issuperset(spoken) and not UNWANTED.search(text):
            kinds.setdefault(text, "example")
    texts = sorted(kinds)
    rng.shuffle(texts)
    splits = draw_held_out_splits(texts, kinds)
    return [Sentence(index, text, kinds[text], splits.get(text, "train")) for index, text in enumerate(texts)]


def draw_held_out_splits(texts: list[str], kinds: dict[str, str]) -> dict[str, str]:
    """Sentences of at least three words for `test` and `val`, whose words each stay in three training ones."""
    occurrences = Counter(word for text in texts for word in set(text.split()))
    splits: dict[str, str] = {}
    for text in texts:
        if len(splits) == NUM_TEST + NUM_VAL:
            break
        spoken = set(text.split())
        if kinds[text] == "short" or len(spoken) < 3 or min(occurrences[word] for word in spoken) <= 3:
            continue
        occurrences.subtract(spoken)
        splits[text] = "test" if len(splits) % 2 == 0 else "val"
    return splits


def list_sentences(voice: str, sentences: list[Sentence]) -> list[Sentence]:
    """The sentences of a voice in a fixed shuffled order: its window of the training ones, then validation and
    test."""
    train = [sentence for sentence in sentences if sentence.split == "train"]
    start = list(TRAIN_SENTENCES).index(voice) * 997 % len(train)
    chosen = (train[start:] + train[:start])[: TRAIN_SENTENCES[voice]]
    if TRAIN_SENTENCES[voice] >= 1000:  # the large voices all say every short utterance
        known = {sentence.id for sentence in chosen}
        chosen += [sentence for sentence in train if sentence.kind == "short" and sentence.id not in known]
    for split in ("val", "test"):
        chosen += [sentence for sentence in sentences if sentence.split == split][: HELD_OUT_SENTENCES[voice]]
    return sorted(chosen, key=lambda sentence: sha256(f"{voice}-{sentence.id}".encode()).digest())
