"""Texts for reports that are given none: prose, code and figures, each a kind of text in which heads differ."""

from __future__ import annotations

from collections.abc import Mapping

from unimodal.evaluation.inspection.report import InspectionInput

TEXTS: Mapping[str, str] = {
    "prose": (
        "The old man walked down to the harbour every morning, before the boats came in. He carried a small bag with "
        "bread and an apple, and he sat on the wall until the sun stood over the hills. Nobody knew his name. The "
        "children said that he had been a captain, and that his ship lay at the bottom of the bay. He smiled at them, "
        "gave them the apple, and told them about the wind, the stars and the long way home."
    ),
    "code": (
        "def count_words(text):\n    counts = {}\n    for word in text.split():\n        word = word.strip('.,;:!?')\n"
        "        if word:\n            counts[word] = counts.get(word, 0) + 1\n    return counts\n\n\n"
        "def find_longest(words):\n    longest = ''\n    for word in words:\n        if len(word) > len(longest):\n"
        "            longest = word\n    return longest\n"
    ),
    "figures": (
        "year, city, people, rain\n1900, Paris, 2714068, 641\n1900, London, 6480000, 602\n1950, Paris, 2850189, 650\n"
        "1950, London, 8193000, 599\n2000, Paris, 2125246, 637\n2000, London, 7266000, 621\n2020, Paris, 2145906, 615\n"
    ),
}


def choose_texts(given: InspectionInput) -> Mapping[str, str]:
    """The texts of a report: the given ones, the prompt alone, or `TEXTS`. Raises ValueError for an empty text."""
    texts = given.texts or ({} if given.prompt is None else {"prompt": given.prompt}) or TEXTS
    for name, text in texts.items():
        if not text.strip():
            raise ValueError(f"{name} holds no text; give some words")
    return texts
