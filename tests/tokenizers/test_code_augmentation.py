"""Training on stored codes alone: augmentations of codes and of their vectors, and classification (SeiT++)."""

import pytest
import torch

from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.parts.code_augmentation import (
    TokenAdapter,
    adapt_colors,
    add_code_noise,
    crop_vectors,
    find_synonyms,
    replace_by_synonyms,
    swap_regions,
)
from unimodal.tokenizers.parts.heads.labels import CodeClassifier

TABLE = torch.randn(20, 4, generator=torch.Generator().manual_seed(3))


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_synonym_is_one_of_the_nearest_codes_and_never_the_code_itself():
    synonyms = find_synonyms(TABLE, 3)
    distances = torch.cdist(TABLE, TABLE)
    for code in range(20):
        assert code not in synonyms[code]
        assert distances[code, synonyms[code]].max() <= distances[code].sort().values[3]
    ids = torch.randint(20, (2, 8, 8), generator=draw())
    replaced = replace_by_synonyms(ids, synonyms, 1.0, draw())
    assert (synonyms[ids] == replaced[..., None]).any(-1).all()
    assert torch.equal(replace_by_synonyms(ids, synonyms, 0.0, draw()), ids)
    with pytest.raises(ValueError, match="20 has 1 to 19 synonyms; 20 are asked for"):
        find_synonyms(TABLE, 20)


@pytest.mark.parametrize("seed", range(4))
def test_two_squares_change_places_and_no_code_is_lost(seed):
    ids = torch.arange(2 * 12 * 10).view(2, 12, 10)
    swapped = swap_regions(ids, 0.5, draw(seed))
    assert all(torch.equal(a.flatten().sort().values, b.flatten()) for a, b in zip(swapped, ids, strict=True))
    moved = swapped[0] != ids[0]
    places = moved.flatten().nonzero()[:, 0]  # of the first item, whose codes are their own places
    assert torch.equal(swapped[0].flatten()[swapped[0].flatten()[places]], places)


def test_vectors_keep_the_statistics_that_an_augmentation_does_not_touch():
    vectors = torch.randn(6, 4, 8, 8, generator=draw())
    adapted = adapt_colors(vectors, 1.0, draw())
    means, deviations = adapted.mean((2, 3)), adapted.std((2, 3))
    sources = torch.cdist(means, vectors.mean((2, 3))).argmin(1)  # each has the colours of one of the batch
    assert torch.allclose(means, vectors.mean((2, 3))[sources], atol=1e-5)
    assert torch.allclose(deviations, vectors.std((2, 3))[sources], atol=1e-4)
    centred = [x - x.mean((2, 3), keepdim=True) for x in (vectors, adapted)]
    likeness = torch.cosine_similarity(centred[0].flatten(2), centred[1].flatten(2), dim=-1)
    assert torch.allclose(likeness, torch.ones_like(likeness), atol=1e-4)  # what lies where stays
    assert torch.equal(adapt_colors(vectors, 0.0, draw()), vectors)
    assert torch.equal(add_code_noise(vectors, 0.0, generator=draw()), vectors)
    one = add_code_noise(vectors, 1.0, 1.0, 0.0, draw()) - vectors
    assert torch.allclose(one.std((2, 3)), torch.zeros(6, 4), atol=1e-5)  # one number for each channel
    assert crop_vectors(vectors, (5, 7), generator=draw()).shape == (6, 4, 5, 7)
    whole = crop_vectors(torch.full((1, 2, 6, 6), 3.0), (6, 6), generator=draw())
    assert torch.allclose(whole, torch.full_like(whole, 3.0))


def draw_pictures(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of colour, upright (label 0) or across (label 1): float [count, 3, 32, 32], labels [count]."""
    generator = draw(seed)
    labels = torch.arange(count) % 2
    ramp = torch.linspace(0, 1, 32)
    tint = torch.rand(count, 3, 1, 1, generator=generator)
    pictures = torch.where(labels.view(-1, 1, 1, 1) == 0, ramp.view(1, 1, 32, 1), ramp.view(1, 1, 1, 32))
    return 0.7 * pictures + 0.3 * tint, labels


@pytest.fixture(scope="session")
def stored():
    """Codes of a small tokenizer with random weights: its table, the tokenizer, training and unseen codes."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(read_system("seit").choose_settings(small=True)).eval()  # 8×8 codes
    return tokenizer, tokenizer.code_features("image")


def encode(tokenizer, pictures: torch.Tensor) -> torch.Tensor:
    return tokenizer.encode(pictures).ids[..., 0].view(-1, 8, 8).clone()


def test_a_classifier_learns_from_stored_codes_and_tells_unseen_ones(stored):
    tokenizer, table = stored
    (seen, labels), (unseen, answers) = draw_pictures(0, 16), draw_pictures(1, 32)
    ids, generator = encode(tokenizer, seen), draw()
    torch.manual_seed(0)
    classifier = CodeClassifier(table, (8, 8), 32, 1, 4, 2)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=3e-3)
    for _ in range(30):
        vectors = adapt_colors(classifier.embed(ids), 0.5, generator)
        loss = torch.nn.functional.cross_entropy(classifier(vectors), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (classifier.classify(encode(tokenizer, unseen)) == answers).float().mean() >= 0.9
    assert all(name != "table" for name, _ in classifier.named_parameters())


def test_a_learned_space_bears_the_flip_that_spoils_codes(stored):
    """The codes of mirrored pictures: the codes mirrored are far from them, the adapter's are nearer."""
    tokenizer, table = stored
    seen, unseen = draw_pictures(0, 16)[0], draw_pictures(1, 16)[0]
    flip = lambda maps: maps.flip(-1)  # noqa: E731
    torch.manual_seed(0)
    adapter = TokenAdapter(table, (8, 8), width=48, num_layers=1, num_heads=4)
    ids, wanted = encode(tokenizer, seen), encode(tokenizer, flip(seen))
    optimizer = torch.optim.Adam(adapter.parameters(), lr=5e-3)
    for _ in range(20):
        loss = adapter.measure_loss(ids, wanted, flip)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ids, wanted = encode(tokenizer, unseen), encode(tokenizer, flip(unseen))
    plain = (ids.flip(-1) == wanted).float().mean()
    learned = (adapter.augment(ids, flip) == wanted).float().mean()
    assert learned > plain + 0.1, (learned, plain)
