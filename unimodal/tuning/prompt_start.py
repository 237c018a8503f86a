"""What a soft prompt begins as: the rows of its words, or examples of a dataset as the model reads them."""

from __future__ import annotations

from unimodal.coder.media_coder import MediaCoder
from unimodal.corpus.corpus import Corpus, CorpusConfig
from unimodal.data.datasets import DatasetConfig
from unimodal.model.context_prompt import Context, join_examples
from unimodal.model.prompt_settings import PromptSettings
from unimodal.sequence.templates.own import Template


def read_prompt_start(
    prompt: PromptSettings | None,
    corpus: CorpusConfig,
    template: Template,
    media: MediaCoder | None,
    keep_codes: bool = True,
) -> list[int] | Context:
    """The rows that a prompt begins as, or its examples; none where its settings name neither.

    corpus: whose folder of codes is used. Raises ValueError for a text without tokens, for a vocabulary with summed
    positions, and for a dataset with fewer examples than are asked for.
    """
    if prompt is None:
        return []
    if prompt.text is not None:
        rows = list(template.text.encode(prompt.text))
        if not rows:
            raise ValueError(f"prompt.text is {prompt.text!r}, which has no tokens; give words, or leave it out")
        return rows
    asked = prompt.context
    if asked is None:
        return []
    vocabulary = template.vocabulary
    if not vocabulary.positions.is_flat:
        raise ValueError("prompt.context: examples are read code by code, and summed positions hold several")
    dataset = DatasetConfig(path=str(asked.path), format=asked.format or "auto", limit=asked.examples)
    settings = CorpusConfig(datasets=(dataset,), codes=corpus.codes, condition_dropout=0.0, length=corpus.length)
    opened = Corpus(settings, template, media, keep_codes)
    opened.encode()
    [documents] = opened.sets.values()
    if len(documents) < asked.examples:
        raise ValueError(f"prompt.context: {asked.path} has {len(documents)} examples, not {asked.examples}")
    examples = [documents[number] for number in range(asked.examples)]
    if any(example.read for example in examples):
        raise ValueError("prompt.context: media that the model reads through features cannot be examples of a prompt")
    marks = frozenset(range(vocabulary.text_size, vocabulary.text_size + len(vocabulary.controls)))
    return join_examples([(example.ids, example.labels) for example in examples], marks)
