"""Codecs of transformers' networks learn their codebooks from nothing."""

import pytest
import torch

from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.parts.quantizers import VectorQuantizer
from unimodal.tokenizers.pretrained.running_books import ENCODEC_BUFFERS, RunningBooks
from unimodal.tokenizers.usage import CodebookUsage

RUNNING = ("encodec-24", "mimi", "xcodec", "higgs-audio-v2")


def build(name: str):
    torch.manual_seed(0)
    return build_tokenizer(read_system(name).choose_settings(small=True))


def make_sounds(tokenizer, count: int = 6) -> torch.Tensor:
    """Tones of different pitch and loudness in noise, float [B, 1, T] of a quarter of a second."""
    rate = tokenizer.sample_rate_hz
    time = torch.arange(max(rate // 4, 24 * tokenizer.samples_per_code)) / rate
    pitches = torch.linspace(0.01, 0.2, count)[:, None] * rate
    tones = (2 * torch.pi * pitches * time).sin() * torch.linspace(0.1, 0.9, count)[:, None]
    return (tones + 0.05 * torch.randn_like(tones))[:, None].clamp(-1, 1)


def read_buffers(tokenizer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in tokenizer.named_buffers()}


@pytest.mark.sweep
@pytest.mark.parametrize("name", RUNNING)
def test_new_books_come_into_use_in_the_first_steps_and_stay_outside_of_training(name):
    tokenizer = build(name).train()
    sounds = make_sounds(tokenizer)
    optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], 1e-4)
    for _ in range(3):
        loss, _ = tokenizer.training_loss(sounds)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    before = read_buffers(tokenizer.eval())
    usage = CodebookUsage(tokenizer)
    usage.add(tokenizer.encode(sounds))
    used = [value for key, value in usage.report().items() if key.startswith("perplexity")]
    assert len(used) == tokenizer.config.num_codebooks and min(used) > 3, used  # 1 where all sounds have one code
    tokenizer.training_loss(sounds)
    assert all(torch.equal(value, before[key]) for key, value in read_buffers(tokenizer).items())
    made, again = (tokenizer.reconstruct(sounds).decoded for _ in range(2))
    assert torch.equal(made, again)


@pytest.mark.parametrize("name", RUNNING)
def test_books_of_a_checkpoint_go_on_from_what_they_are(name):
    taught, tokenizer = build(name).train(), build(name)
    sounds = make_sounds(taught)
    taught.training_loss(sounds)
    tokenizer.load_state_dict(taught.state_dict())
    ids = tokenizer.eval().encode(sounds).ids
    torch.manual_seed(1)  # of another start by k-means, which does not come
    tokenizer.train().training_loss(sounds)
    assert (tokenizer.eval().encode(sounds).ids == ids).float().mean() > 0.5
    for books in tokenizer.list_books():
        assert all(
            bool(book.get_buffer(books.buffers.started)) for book in books.books[: tokenizer.config.num_codebooks]
        )


def test_they_learn_as_the_books_of_our_own_systems_do():
    level = build("encodec-24").network.quantizer.layers[0].train()
    size, width = level.codebook.embed.shape
    ours = RunningBooks([level], ENCODEC_BUFFERS, 0.9)
    book = VectorQuantizer(
        size, width, commitment=1.0, learned_by="averages", decay=0.9, start="kmeans", dead_share=0.5
    ).train()
    for step in range(4):
        z = torch.randn(3, 50, width, generator=torch.Generator().manual_seed(step))
        torch.manual_seed(step)  # of what is drawn to begin by and to come back
        made = book(z)
        torch.manual_seed(step)
        values, loss = ours.quantize(z.transpose(1, 2), 1)
        torch.testing.assert_close(values.transpose(1, 2), made.values)
        torch.testing.assert_close(loss, made.loss)
        torch.testing.assert_close(level.codebook.embed, book.codebook)


@pytest.mark.parametrize("name", ["dac-16", "xcodec", "higgs-audio-v2"])
def test_a_new_narrow_network_hears_sounds_apart(name):
    """With transformers' weights of 0.02 all latents are one."""
    tokenizer = build(name).eval()
    sounds = make_sounds(tokenizer)
    heard = tokenizer.network.encoder if name == "dac-16" else tokenizer.network.acoustic_encoder
    with torch.no_grad():
        latents = heard(tokenizer.pad_equal(sounds, False)).transpose(1, 2).flatten(0, 1)
    apart = (latents - latents.mean(0)).norm(dim=-1).mean()
    assert apart > 0.3 * latents.norm(dim=-1).mean()


@pytest.mark.parametrize("name", ["dac-16", "snac-24", "bigcodec"])
def test_rows_that_are_searched_by_cosine_begin_as_long_as_the_authors(name):
    """Rows of 1 / C, as of other tables, say next to nothing to the decoder, whose loss then cannot keep them apart."""
    tokenizer = build(name)
    tables = [value.detach() for key, value in tokenizer.named_parameters() if "codebook" in key]
    assert tables and all(0.7 < float(table.std()) < 1.3 for table in tables)
