"""The bit rates that MOSS-Audio-Tokenizer's authors give of it and of the codecs beside it, and SNAC's, from our
configs."""

import pytest
import torch

from unimodal.tokenizers.configs.facts import count_bits
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system

#: published system, books, bits a second
ROWS = [
    *(("moss-audio", books, 125 * books) for books in (1, 6, 8, 12, 16, 24, 32)),
    ("mimi", 8, 1100), ("mimi", 18, 2475), ("mimi", 32, 4400),
    ("encodec-24", 2, 1500), ("encodec-24", 6, 4500),
    ("dac-24", 2, 1500), ("dac-24", 4, 3000), ("dac-24", 8, 6000),
    ("speechtokenizer", 2, 1000), ("speechtokenizer", 4, 2000), ("speechtokenizer", 8, 4000),
    ("bigcodec", 1, 1040), ("tadicodec", 1, 87.5), ("xcodec2", 1, 800), ("neucodec", 1, 800),
    ("higgs-audio-v2", 4, 1000), ("higgs-audio-v2", 8, 2000), ("mimi", 16, 2200),  # Qwen3-TTS has Mimi's rate and books
    ("snac-24", 7, 984.375), ("snac-32", 15, 1875), ("snac-44", 15, 2583.984375),
]  # fmt: skip


#: systems whose number of books is fixed
FIXED = ("bigcodec", "tadicodec", "xcodec2", "neucodec", "snac-24", "snac-32", "snac-44")


def describe_row(system, books, bits_a_second):
    """What `make test` sees: a row of each system."""
    return {"system": system}


@pytest.mark.sweep
@pytest.mark.sliced(by=describe_row)
@pytest.mark.parametrize(("system", "books", "bits_a_second"), ROWS)
def test_a_published_size_has_its_bits_a_second(system, books, bits_a_second):
    settings = read_system(system).choose_settings()
    with torch.device("meta"):
        tokenizer = build_tokenizer(settings if system in FIXED else {**settings, "num_codebooks": books})
    assert len(tokenizer.codebook_sizes) == books
    assert count_bits(tokenizer) == pytest.approx(bits_a_second, rel=1e-9)
