"""Two byte-level tokenizers that share some tokens, and requests between them."""

import random
import zlib

import pytest
import torch

from unimodal.text.reports.opened import OpenedTokenizer
from unimodal.text.trainers import TrainingSettings, train
from unimodal.tuning.transplant.hypernetwork import HypernetworkSettings, RowHypernetwork
from unimodal.tuning.transplant.request import TransplantRequest

NOUNS = {"file": "Datei", "memory": "Speicher", "user": "Benutzer", "kernel": "Systemkern", "page": "Seite",
         "process": "Prozess", "message": "Nachricht"}  # fmt: skip
VERBS = {"reads": "liest", "writes": "schreibt", "opens": "öffnet", "closes": "schließt"}
ADVERBS = {"always": "immer", "never": "niemals", "twice": "zweimal", "again": "erneut"}


def write_lines(count, seed=0):
    """Lines of the same sense in both languages, word by word."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        words = [rng.choice(list(known.items())) for known in (NOUNS, VERBS, NOUNS, ADVERBS)]
        lines.append([" ".join(pair[side] for pair in words) + f" {rng.randrange(30)}" for side in (0, 1)])
    return [line[0] for line in lines], [line[1] for line in lines]


ENGLISH, GERMAN = write_lines(150)


def make_tokenizer(lines, size, kind="bpe", name="made"):
    return OpenedTokenizer(train(lines, TrainingSettings(kind, size)), name)


@pytest.fixture(scope="session")
def old():
    return make_tokenizer(ENGLISH, 340, name="english")


@pytest.fixture(scope="session")
def new():
    return make_tokenizer(GERMAN, 360, name="german")


@pytest.fixture(scope="session")
def table(old):
    return torch.randn(old.text.size, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def request_pair(old, new, table):
    """The request with parallel lines, a donor and a stand-in for a model of sentences: letters counted."""
    generator = torch.Generator().manual_seed(2)
    donor = {side: torch.randn(new.text.size, 6, generator=generator) for side in ("input", "output")}
    network = RowHypernetwork(8, 1, HypernetworkSettings(num_heads=2, num_layers=1))
    network.fit_scales(table[:, None])
    return TransplantRequest(
        old, new, donor=donor, parallel=(ENGLISH, GERMAN), embed=embed_by_name, hypernetwork=network,
        base_rows=table[:, None],
    )  # fmt: skip


def embed_by_name(texts):
    """Meanings [n, 16] that a text alone decides."""
    return torch.stack(
        [torch.randn(16, generator=torch.Generator().manual_seed(zlib.crc32(t.encode()))) for t in texts]
    )
