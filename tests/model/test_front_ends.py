"""Every front end: costs that add up, see nothing ahead and are a text's own, and what each paper's way is known by."""

import math

import numpy as np
import pytest
import torch

from unimodal.model.build import NanoConfig
from unimodal.model.front_ends import FRONT_ENDS, FrontEndRequest, make_front_end
from unimodal.model.front_ends.boundaries import PRIORS, BoundaryFrontEnd, find_script, pool_segments, spread_segments
from unimodal.model.front_ends.equal_information import BITS, LONGEST, WindowCoder
from unimodal.model.front_ends.glyphs import draw_texts, name_piece, reduce_pictures
from unimodal.model.front_ends.words import split_words
from unimodal.text.reports.opened import OpenedTokenizer
from unimodal.text.trainers import TrainingSettings, train

#: tables of stock models that are not read, and predictors of scripts that a batch has not
UNUSED = ("embed_tokens", "lm_head", "predictors")
SIZES = NanoConfig(hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=2, intermediate_size=48, max_positions=64)
LINES = ["the file is open", "a user reads the file", "Größe der Datei", "файл открыт", "  spaces\tand\nlines"] * 4
TEXTS = [line.encode() for line in LINES[:5]]


@pytest.fixture(scope="module")
def request_():
    tokenizer = OpenedTokenizer(train(LINES, TrainingSettings("bpe", 290)), "bpe")
    return FrontEndRequest(SIZES, tokenizer, [line.encode() for line in LINES])


@pytest.fixture(scope="module")
def front_ends(request_):
    return {name: make_front_end(name, request_).eval() for name in FRONT_ENDS}


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_costs_are_those_of_every_byte_and_of_a_text_by_itself(name, front_ends):
    front_end = front_ends[name]
    with torch.no_grad():
        scores = front_end.score(TEXTS)
        assert scores.sizes.sum(1).tolist() == [len(text) for text in TEXTS]
        assert scores.nats.shape == scores.sizes.shape and (scores.nats >= 0).all() and scores.nats.isfinite().all()
        for text, nats, sizes in zip(TEXTS, scores.nats, scores.sizes, strict=True):
            alone = front_end.score([text])
            count = alone.nats.shape[1]
            torch.testing.assert_close(nats[:count], alone.nats[0], rtol=1e-4, atol=1e-4)
            assert not nats[count:].any() and sizes[:count].tolist() == alone.sizes[0].tolist()
        empty = front_end.score([b"", TEXTS[0]])
        assert not empty.nats[0].any() and empty.sizes[0].sum() == 0
        torch.testing.assert_close(empty.nats[1], front_end.score([TEXTS[0]]).nats[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_a_cost_depends_on_what_comes_before_alone(name, front_ends):
    """Two texts that begin with the same units: these cost the same, whatever follows, and the next ones do not."""
    front_end = front_ends[name]
    with torch.no_grad():
        one, other = (front_end.score([text]) for text in (b"the file is open", b"the file is shut, again"))
    shared, end = 0, 0
    same = len(b"the file is ") if name != "equal-information" else 0
    for index, (left, right) in enumerate(zip(one.sizes[0].tolist(), other.sizes[0].tolist(), strict=False)):
        if left != right or end + left > same:
            break
        end, shared = end + left, index + 1
    if name == "equal-information":  # a window's number holds bytes to come; its own ids are tested below
        ids = [front_end.encode(text) for text in (b"the file is open", b"the file is shut, again")]
        shared = next(at for at, (left, right) in enumerate(zip(*ids, strict=False)) if left != right)
    assert shared >= 2
    torch.testing.assert_close(one.nats[0, :shared], other.nats[0, :shared], rtol=1e-4, atol=1e-4)
    count = min(one.nats.shape[1], other.nats.shape[1])
    assert not torch.allclose(one.nats[0, :count], other.nats[0, :count], atol=1e-3)


@pytest.mark.parametrize("name", ["bytes", "magnet", "lexinvariant"])
def test_the_probabilities_of_all_next_bytes_add_up_to_one(name, front_ends):
    with torch.no_grad():
        scores = front_ends[name].score([b"file " + bytes([byte]) for byte in range(256)])
    assert float((-scores.nats[:, -1]).exp().sum()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["pooled", "hierarchical"])
def test_the_probabilities_of_all_next_words_add_up_to_one(name, front_ends):
    """Words of a byte, and of more: what begins with each byte has the rest, so that no word is counted twice."""
    front_end = front_ends[name]
    with torch.no_grad():
        short = (-front_end.score([b"file " + bytes([byte]) for byte in range(33, 127)]).nats[:, -1]).exp().sum()
    # a word of one byte is that byte and the end; both are softmaxes, so the sum over words is below one
    assert 0 < float(short) < 1
    words = split_words(b"the  file\nis" + b"x" * 50)
    assert words == [b"the", b"  file", b"\nis" + b"x" * 21, b"x" * 24, b"x" * 5]
    assert b"".join(words) == b"the  file\nis" + b"x" * 50 and split_words(b" ") == [b" "] and split_words(b"") == []


@pytest.mark.sweep("trainings of front ends")
@pytest.mark.parametrize("name", FRONT_ENDS)
def test_every_front_end_learns_a_text(name, request_):
    torch.manual_seed(0)
    front_end = make_front_end(name, request_).train()
    optimizer = torch.optim.AdamW([p for p in front_end.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        loss = front_end.score(TEXTS[:2]).compute_loss()
        losses.append(float(loss.detach()))
        extra = front_end.extra_loss()
        (loss if extra is None else loss + extra).backward()
        missing = [key for key, p in front_end.named_parameters() if p.requires_grad and p.grad is None]
        assert all(any(part in key for part in UNUSED) for key in missing), missing
        optimizer.step()
        optimizer.zero_grad()
    assert min(losses[-3:]) < losses[0] - 0.2


def test_a_text_that_is_too_long_is_refused(front_ends):
    for name, front_end in front_ends.items():
        with pytest.raises(ValueError, match="64"):
            front_end.score([b"a b c d e " * 40])
        assert name


def test_an_unknown_front_end_is_refused(request_):
    with pytest.raises(ValueError, match="'letters' is unknown; use tokens, bytes, "):
        make_front_end("letters", request_)


# ---- each by what it is known by


def test_tokens_that_do_not_spell_a_text_are_refused(front_ends):
    with pytest.raises(ValueError, match="no UTF-8 at byte 2"):
        front_ends["tokens"].score([b"ab\xff"])


def test_a_lexinvariant_model_cares_for_no_byte_by_itself(front_ends):
    """Under a permutation of the bytes and of their vectors every cost is the same; drawn anew, training differs."""
    front_end = front_ends["lexinvariant"]
    order = torch.randperm(256, generator=torch.Generator().manual_seed(3))
    text = b"abracadabra"
    moved = bytes(int(order[byte]) for byte in text)
    vectors = front_end.draw_vectors(1)
    with torch.no_grad():
        plain = front_end.score([text]).nats
        permuted = torch.empty_like(vectors)
        permuted[:, order] = vectors
        front_end.draw_vectors = lambda count: permuted.expand(count, -1, -1)
        torch.testing.assert_close(front_end.score([moved]).nats, plain, rtol=1e-4, atol=1e-4)
        del front_end.draw_vectors
        front_end.train()
        assert not torch.equal(front_end.draw_vectors(2)[0], front_end.draw_vectors(2)[1])
        front_end.eval()
    assert not [key for key, _ in front_end.named_parameters() if key.startswith("table")]


def test_windows_are_read_back_and_hold_as_much_information_each():
    rng = np.random.default_rng(0)
    text = "".join(LINES).encode()
    coder = WindowCoder.learn([text])
    noise = rng.integers(0, 256, 300, np.uint8).tobytes()
    for given in (text, noise, b"", b"a", bytes(range(256)), b"e" * 200):
        windows = coder.encode(given)
        assert coder.decode([number for number, _ in windows]) == given
        assert sum(length for _, length in windows) == len(given)
        assert all(0 <= number < 1 << BITS and 1 <= length <= LONGEST for number, length in windows)
    lengths = [length for _, length in coder.encode(text)]
    assert sum(lengths) / len(lengths) > 1.5 * len(noise) / len(coder.encode(noise))
    # every byte has its part of the interval, and the end the eighth that it was promised
    for borders in coder.borders:
        assert borders[0] == 0 and borders[-1] == 1 << 14 and min(np.diff(borders)) >= 2
        assert borders[-1] - borders[-2] >= (1 << 14) / 8
    # the longest beginning whose interval, with the end, holds a number: written out with fractions
    from fractions import Fraction

    for number, length in coder.encode(b"the file is open")[:3]:
        start = 0
        assert length
        low, width, before = Fraction(0), Fraction(1), 256
        for at, byte in enumerate(b"the file is open"[start : start + length + 1]):
            borders = coder.borders[before]
            low += width * Fraction(borders[byte], 1 << 14)
            width *= Fraction(borders[byte + 1] - borders[byte], 1 << 14)
            first = math.ceil((low + width * Fraction(coder.borders[byte][256], 1 << 14)) * (1 << BITS))
            fits = first < (low + width) * (1 << BITS)
            assert fits == (at < length) and (at != length - 1 or first == number)
            before = byte
        break


def test_pictures_of_letters_are_frozen_and_told_apart(front_ends, request_):
    glyphs = front_ends["glyphs"]
    assert [key for key, p in glyphs.named_parameters() if "embed_tokens" in key and p.requires_grad] == []
    texts = ["a", "b", "file", "File", name_piece(b" file"), name_piece(b"\n"), name_piece(b"\xd0")]
    assert texts[4:] == ["␣file", "␤", "d0"]
    pictures = draw_texts(texts[:4] + ["d0"])
    assert pictures.shape == (5, 32 * 32) and 0 <= pictures.min() < pictures.max() <= 1
    apart = torch.cdist(pictures, pictures) + torch.eye(5) * 99
    assert apart.min() > 1
    assert torch.equal(pictures, draw_texts(texts[:4] + ["d0"]))
    rows = reduce_pictures(pictures, 3)
    # the first components of numpy's decomposition, up to their signs
    centred = (pictures - pictures.mean(0)).numpy()
    expected = np.linalg.svd(centred, full_matrices=False)
    found = expected[0][:, :3] * expected[1][:3]
    np.testing.assert_allclose(rows.abs().numpy(), np.abs(found / found.std(ddof=1)), rtol=1e-2, atol=1e-3)
    assert reduce_pictures(pictures, 40).shape == (5, 40)
    with pytest.raises(ValueError, match="no font that can be read"):
        draw_texts(["a"], __file__)


def test_segments_are_pooled_and_given_to_the_bytes_behind_them():
    """downsample and upsample of the authors' shortening.py, segment by segment."""
    boundaries = torch.tensor([[0, 0, 1, 0, 1, 0.0], [0, 1, 0, 0, 0, 0.0]])
    states = torch.arange(12.0).reshape(2, 6, 1)
    null = torch.tensor([-1.0])
    pooled = pool_segments(boundaries, states, null)
    # a byte that begins a segment ends the one before: 0 1 2 | 3 4 | 5, of which the last is open
    assert pooled[0, :, 0].tolist() == [-1, pytest.approx(1), pytest.approx(3.5)]
    assert pooled[1, :2, 0].tolist() == [-1, pytest.approx(6.5)]
    spread = spread_segments(boundaries, pooled)
    assert spread[0, :, 0].tolist() == pytest.approx([-1, -1, 1, 1, 3.5, 3.5], abs=1e-5)
    assert spread[1, :, 0].tolist() == pytest.approx([-1, 6.5, 6.5, 6.5, 6.5, 6.5], abs=1e-5)
    none = torch.zeros(1, 3)
    assert spread_segments(none, pool_segments(none, states[:1, :3], null))[0, :, 0].tolist() == [-1, -1, -1]


def test_every_script_has_a_predictor_and_its_prior(request_):
    assert [find_script(text.encode()) for text in ("Größe", "файл is", "12 3", "")] == ["LATIN", "CYRILLIC", "", ""]
    front_end = BoundaryFrontEnd(SIZES).train()
    states = torch.randn(2, 40, 32, generator=torch.Generator().manual_seed(0))
    real = torch.ones(2, 40, dtype=torch.bool)
    optimizer = torch.optim.Adam(front_end.parameters(), lr=0.02)
    for _ in range(150):
        front_end.find_boundaries(states, ["LATIN", "CYRILLIC"], real)
        front_end.extra_loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    shares = torch.stack([front_end.find_boundaries(states, ["LATIN", "CYRILLIC"], real).detach() for _ in range(20)])
    assert shares.mean((0, 2)).tolist() == pytest.approx([PRIORS["LATIN"], PRIORS["CYRILLIC"]], abs=0.05)
    # the loss is the binomial's, a byte
    hard = front_end.find_boundaries(states, ["LATIN", "LATIN"], real)
    counts = hard.detach().sum(1)
    chance = [
        math.lgamma(41) - math.lgamma(n + 1) - math.lgamma(41 - n) + n * math.log(0.2) + (40 - n) * math.log(0.8)
        for n in counts.tolist()
    ]
    assert float(front_end.extra_loss().detach()) == pytest.approx(-sum(chance) / 80, rel=1e-4)
    with pytest.raises(ValueError, match="between 0 and 1"):
        BoundaryFrontEnd(SIZES, {"LATIN": 1.0})
