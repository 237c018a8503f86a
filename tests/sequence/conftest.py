"""A small text tokenizer trained once, and a vocabulary and template over it."""

import random

import pytest

from unimodal.sequence.templates.own import Template
from unimodal.text.tokenizer import TextTokenizer, train_text_tokenizer
from unimodal.vocabulary import Block, Vocabulary

TEXT = """the cat apple red draws a picture of what is this sound green tree house dog 42 clip smiling face with
hearts Paris say it slowly describe name moon bird water train hello world an old man walks under seven trees"""


def sentences(count: int = 600, seed: int = 0) -> list[str]:
    rng, words = random.Random(seed), TEXT.split()
    return [" ".join(rng.choices(words, k=rng.randint(2, 10))) + "." for _ in range(count)]


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text_tokenizer")
    train_text_tokenizer(sentences(), 500, folder)
    return folder


@pytest.fixture(scope="session")
def text(text_folder) -> TextTokenizer:
    return TextTokenizer.load(text_folder)


@pytest.fixture(scope="session")
def vocabulary(text) -> Vocabulary:
    blocks = [
        Block(name="image", modality="image", size=4096),
        Block(name="audio", modality="audio", size=4096),
        Block(name="video", modality="video", size=4096),
    ]
    return Vocabulary.build(text.size, blocks, text_reserved=text.reserved_ids, text_sha256=text.sha256)


@pytest.fixture(scope="session")
def template(vocabulary, text) -> Template:
    return Template(vocabulary, text)
