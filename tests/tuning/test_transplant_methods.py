"""Each method of transplanting against its authors' formula, written plainly, and what all methods promise."""

import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tuning.conftest import ADVERBS, ENGLISH, GERMAN, NOUNS, VERBS, embed_by_name, make_tokenizer
from unimodal.text.word_alignment import align_words
from unimodal.tuning.transplant.methods import METHODS, MadeRows
from unimodal.tuning.transplant.pieces import decompose
from unimodal.tuning.transplant.request import TransplantRequest
from unimodal.tuning.transplant.translated_tokens import count_translations, group_words, lend_translations
from unimodal.tuning.transplant.wechsel import find_dictionary
from unimodal.tuning.transplant.word_vectors import WordVectors, learn_vectors, read_vectors


def make(method, request, table, **options):
    made = MadeRows(method, request, **options)
    return made.make(table), made


def test_tokens_are_shared_where_they_spell_the_same_bytes(request_pair, old, new):
    expected = {
        row: other
        for row, piece in new.spelled.items()
        for other, known in old.spelled.items()
        if known == piece
    }  # fmt: skip
    assert request_pair.shared == expected and len(expected) > 256
    assert set(request_pair.unshared) == set(new.spelled) - set(expected) and request_pair.unshared


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece", "sentencepiece-bpe", "characters", "bytes"])
def test_every_token_is_decomposed_into_its_bytes_whatever_the_base_s_tokenizer(kind, new):
    sizes = {"characters": None, "bytes": None, "wordpiece": 560}
    base = make_tokenizer(ENGLISH + GERMAN, sizes.get(kind, 370), kind)
    for piece in new.spelled.values():
        assert b"".join(base.spelled[row] for row in decompose(base, piece)) == piece


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_every_row_and_copies_as_published(method, request_pair, table):
    rows, made = make(method, request_pair, table)
    assert rows.shape == (request_pair.num_rows, 8) and rows.isfinite().all()
    assert made.copied == (request_pair.shared if METHODS[method].copies else {})
    assert torch.equal(rows[list(made.copied)], table[list(made.copied.values())])
    assert made.mixed + made.filled + len(made.copied) == len(rows)
    again, _ = make(method, request_pair, table)
    assert torch.equal(rows, again)
    other, made = make(method, request_pair, table, copy=not METHODS[method].copies)
    assert made.copied == ({} if METHODS[method].copies else request_pair.shared) and other.isfinite().all()


@pytest.mark.parametrize("method", [method for method in METHODS if method != "zett"])  # a network is not
def test_a_row_is_linear_in_the_base_s_table(method, request_pair, table):
    """Twice the table gives twice the rows, so that an embedding which scales its rows needs no care."""
    rows, made = make(method, request_pair, table)
    twice, _ = make(method, request_pair, 2 * table)
    torch.testing.assert_close(twice, 2 * rows, rtol=1e-4, atol=1e-4)


def test_fvt_is_the_mean_of_the_pieces_rows(request_pair, old, new, table):
    rows, _ = make("fvt", request_pair, table)
    for row in request_pair.unshared:
        try:
            text = new.spelled[row].decode()
        except UnicodeDecodeError:
            continue
        torch.testing.assert_close(rows[row], table[old.encode(text)].mean(0))


def test_mean_is_the_mean_and_padded_rows_do_not_count(request_pair, table):
    rows, _ = make("mean", request_pair, torch.cat([table, torch.zeros(5, 8)]))
    torch.testing.assert_close(rows[request_pair.unshared[0]], table.mean(0))


def test_clp_weighs_shared_rows_by_similarity_in_the_helper(request_pair, table):
    """Written out as clp.py of malteos/clp-transfer has it: cosines over their sum, numpy's weighted average."""
    rows, _ = make("clp", request_pair, table)
    helper = request_pair.donor["input"].numpy().astype(np.float64)
    shared = sorted(request_pair.shared)
    vectors = table.numpy()[[request_pair.shared[row] for row in shared]]
    for row in request_pair.unshared[:20]:
        sims = np.array([
            helper[row] @ helper[other] / np.linalg.norm(helper[row]) / np.linalg.norm(helper[other])
            for other in shared
        ])  # fmt: skip
        expected = np.average(vectors, axis=0, weights=sims / sims.sum())
        np.testing.assert_allclose(rows[row].numpy(), expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(("side", "num_atoms"), [("input", 64), ("output", 64), ("input", 3)])
def test_omp_is_mergekit_s_pursuit_on_either_side(side, num_atoms, request_pair, table):
    """The atom of the greatest product with the rest, least squares over the picked, as `batch_omp` has it."""
    rows = MadeRows("omp", replace(request_pair, num_atoms=num_atoms)).make(table, side)
    donor = request_pair.donor[side].numpy().astype(np.float64)
    shared = sorted(request_pair.shared)
    atoms, vectors = donor[shared], table.numpy()[[request_pair.shared[row] for row in shared]]
    for row in request_pair.unshared[:12]:
        residual, picked = donor[row].copy(), []
        for _ in range(min(num_atoms, 6)):  # at most as many as the donor is wide
            products = np.abs(atoms @ residual)
            products[picked] = -np.inf
            picked.append(int(products.argmax()))
            basis, _ = np.linalg.qr(atoms[picked].T)
            residual = donor[row] - basis @ (basis.T @ donor[row])
        weights = np.linalg.lstsq(atoms[picked].T, donor[row], rcond=None)[0]
        np.testing.assert_allclose(rows[row].numpy(), weights @ vectors[picked], rtol=1e-2, atol=1e-2)


def test_tokenadapt_mixes_the_parts_and_the_nearest_tokens(request_pair, old, new, table):
    """heuristics.py of tinycompany-ai/TokenAdapt, token by token: a local and a global guess, 0.7 and 0.3 of each."""
    rows, _ = make("tokenadapt", request_pair, table)

    def embed(text):
        return embed_by_name([text])[0]

    def soften(values):
        return torch.softmax(torch.as_tensor(values, dtype=torch.float64), 0)

    known = sorted(old.spelled)
    texts = [old.spelled[row].decode("utf-8", "replace") for row in known]
    cosine = torch.nn.functional.cosine_similarity
    for row in request_pair.unshared[:10]:
        text = new.spelled[row].decode("utf-8", "replace")
        parts = old.encode(text)
        pieces = [old.spelled[part].decode("utf-8", "replace") for part in parts]
        alike = soften([float(cosine(embed(text), embed(piece), dim=0)) for piece in pieces])
        lengths = torch.tensor([len(piece) / len(text) for piece in pieces], dtype=torch.float64)
        local = soften((alike + lengths) / 2 / (0.3 + 1e-5)) @ table[parts].double()
        sims = torch.stack([cosine(embed(text), embed(other), dim=0) for other in texts]).double()
        best = sims.topk(3)
        wide = soften(best.values / (0.3 + 1e-5)) @ table[[known[at] for at in best.indices]].double()
        torch.testing.assert_close(rows[row].double(), 0.7 * local + 0.3 * wide, rtol=1e-3, atol=1e-3)


def test_wechsel_mixes_the_ten_tokens_nearest_in_the_space_of_words(old, new, table):
    """wechsel/__init__.py of CPJKU: token vectors from words by frequency, Procrustes, cosines over 0.1, softmax."""
    rng = np.random.default_rng(0)
    english, german = map(list, zip(*{**NOUNS, **VERBS, **ADVERBS}.items(), strict=True))
    ours, theirs = rng.normal(size=(2, len(english), 4))
    counts = [float(len(english) - at) for at in range(len(english))]
    vectors = tuple(
        WordVectors(words, counts, torch.tensor(given)) for words, given in ((english, ours), (german, theirs))
    )
    pairs = list(zip(english, german, strict=True))
    request = TransplantRequest(old, new, vectors=vectors, dictionary=pairs)
    rows, made = make("wechsel", request, table)

    def locate(tokenizer, words, given):
        held = defaultdict(list)
        for at, word in enumerate(words):
            for spelled in (word, " " + word):
                for row in set(tokenizer.encode(spelled)):
                    held[row].append(at)
        found = np.zeros((tokenizer.text.size, 4))
        for row, listed in held.items():
            weights = np.array([counts[at] for at in listed])
            found[row] = (np.stack([given[at] for at in listed]) * (weights / weights.sum())[:, None]).sum(0)
        return found

    left, _, right = np.linalg.svd(ours.T @ theirs)  # every pair once: no word is found in two spellings
    source = locate(old, english, ours) @ (left @ right)
    target = locate(new, german, theirs)
    checked = 0
    for row in range(new.text.size):
        if not target[row].any():
            continue
        sims = (source @ target[row]) / (np.linalg.norm(source, axis=1) + 1e-8) / np.linalg.norm(target[row])
        best = np.argsort(-sims)[:10]
        if np.isclose(np.sort(-sims)[9], np.sort(-sims)[10]):
            continue  # a tie for the last place
        weights = np.exp(sims[best] / 0.1) / np.exp(sims[best] / 0.1).sum()
        np.testing.assert_allclose(rows[row].numpy(), weights @ table.numpy()[best], rtol=1e-3, atol=1e-3)
        checked += 1
    assert checked > 5 and made.filled > 0


def test_wechsel_finds_words_and_dictionary_in_parallel_lines(request_pair, table):
    rows, made = make("wechsel", request_pair, table)
    assert made.mixed > 50
    found = dict(find_dictionary(request_pair))
    assert found.items() >= {**NOUNS, **VERBS, **ADVERBS}.items()


def test_alignment_is_ibm_model_1():
    """Written out as fast_align has it without options: a null word, counts of the last round but one."""
    lines = [([0, 1], [0, 1]), ([0, 2], [0, 2, 2]), ([1], [1]), ([2, 0], [2, 0])]
    scores = defaultdict(lambda: 1e-9)
    for _ in range(6):
        counts = defaultdict(float)
        for source, target in lines:
            for word in target:
                shares = {at: scores[origin, word] for at, origin in enumerate([None, *source])}
                for at, origin in enumerate([None, *source]):
                    counts[origin, word] += shares[at] / sum(shares.values())
        totals = defaultdict(float)
        for (origin, _), count in counts.items():
            totals[origin] += count
        scores = {pair: count / totals[pair[0]] for pair, count in counts.items()}
        scores = defaultdict(float, scores)
    best = defaultdict(float)
    for (origin, _), score in scores.items():
        best[origin] = max(best[origin], score)
    expected = {
        pair: (score, counts[pair])
        for pair, score in scores.items()
        if pair[0] is not None and score >= best[pair[0]] ** 4
    }
    found = {(one.source, one.target): (one.probability, one.count) for one in align_words(lines)}
    assert found.keys() == expected.keys()
    for pair, values in expected.items():
        assert found[pair] == pytest.approx(values)
    assert found[1, 1][0] > 0.9 and align_words([([], [1])]) == []
    with pytest.raises(ValueError, match="two or more"):
        align_words(lines, rounds=1)


def test_words_of_several_tokens_give_their_count_to_all_pairs_and_to_those_at_one_place():
    """add_word_pair of LAGoM-NLP/transtokenizer, for the words that lines align, and one more for shared tokens."""
    old, new = make_tokenizer(ENGLISH, 290), make_tokenizer(GERMAN, 300)  # few rows: most words are several tokens
    request = TransplantRequest(old, new, parallel=(ENGLISH, GERMAN))
    expected = defaultdict(lambda: defaultdict(int))
    words = ({}, {})
    lines = []
    for pair in zip(ENGLISH, GERMAN, strict=True):
        cut = [group_words(tokenizer, line) for tokenizer, line in zip((old, new), pair, strict=True)]
        lines.append(
            [[seen.setdefault(word, len(seen)) for word in line] for seen, line in zip(words, cut, strict=True)]
        )
    listed = [list(known) for known in words]
    pairs = several = 0
    for one in align_words(lines):
        old_word, new_word, count = listed[0][one.source], listed[1][one.target], int(one.count)
        if count < 3:
            continue
        pairs += 1
        if len(old_word) == len(new_word) == 1:
            expected[new_word[0]][old_word[0]] += count
            continue
        several += len(old_word) != len(new_word)
        half = max(1, count // 2)
        for every in (True, False):
            left, right, dilution = list(old_word), list(new_word), 1
            if every:
                dilution = len(left)
                left, right = list(np.tile(left, len(right))), list(np.repeat(right, dilution))
            elif len(left) != len(right):
                common = math.gcd(len(left), len(right))
                dilution = len(left) // common
                left, right = np.repeat(left, len(right) // common), np.repeat(right, dilution)
            for ours, theirs in zip(right, left, strict=True):
                expected[int(ours)][int(theirs)] += max(1, half // dilution)
    assert pairs > 5 and several
    for row, column in request.shared.items():
        expected[row][column] += 1
    found = count_translations(request, fewest=3)
    digits = {row for row, piece in new.spelled.items() if piece.strip().isdigit()}  # these count as numbers besides
    for row, counts in expected.items():
        if row not in digits:
            assert found[new.spelled[row]] == counts, new.spelled[row]


def test_a_token_without_a_translation_borrows_from_longer_ones_and_from_what_it_holds():
    counts = {b"abc": {7: 3, 8: 1}, b"b": {9: 5}, b"xb": {7: 2}}
    lend_translations(counts, [b"ab", b"yxb", b"q"], starts={7})
    # abc begins with ab, which holds b: 2,000 × 3/4 of row 7, 1,000 × 1/4 of row 8, 1,000 of row 9
    assert counts[b"ab"] == {7: 1500, 8: 250, 9: 1000}
    assert counts[b"yxb"] == {7: 2000}  # b lies in xb, which is longer
    assert b"q" not in counts


def test_parallel_text_makes_a_word_the_row_of_its_translation(request_pair, old, new, table):
    rows, _ = make("trans-tokenization", request_pair, table)
    [german] = [row for row, piece in new.spelled.items() if piece == b" Datei"]
    [english] = old.encode(" file")
    nearest = torch.nn.functional.cosine_similarity(rows[german][None], table).argmax()
    assert int(nearest) == english


def test_learned_vectors_bring_words_of_like_surroundings_together():
    lines = [f"the {thing} is {how}" for thing in ("cat", "dog") for how in ("small", "quick", "asleep")] * 4
    lines += [f"a number {number} counts" for number in ("seven", "eight")] * 8
    known = learn_vectors(lines)
    place = {word: at for at, word in enumerate(known.words)}
    unit = torch.nn.functional.normalize(known.vectors, dim=1)
    assert unit[place["cat"]] @ unit[place["dog"]] > 0.9 > unit[place["cat"]] @ unit[place["seven"]]
    assert torch.equal(known.vectors, learn_vectors(lines).vectors)


def test_vectors_are_read_from_text_and_refused_in_one_line(tmp_path):
    path = tmp_path / "a.vec"
    path.write_text("2 3\nin 1 2 3\nout 4 5 6\n")
    known = read_vectors(path)
    assert known.words == ["in", "out"] and known.vectors.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert list(known.counts) == [2, 1]
    for text, said in (("in 1 2\nout 1\n", "has 1 numbers"), ("in a b\n", "no numbers"), ("2 3\n", "no vectors")):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            read_vectors(path)


LACKING = {
    "clp": "--donor", "omp": "--donor", "wechsel": "--vectors A B", "trans-tokenization": "--parallel A B",
    "tokenadapt": "--embedder", "zett": "--hypernetwork",
}  # fmt: skip


@pytest.mark.parametrize("method", LACKING)
def test_a_method_says_what_it_lacks(method, old, new, table):
    with pytest.raises(ValueError, match=LACKING[method]) as error:
        MadeRows(method, TransplantRequest(old, new)).make(table)
    assert "\n" not in str(error.value)


def test_an_unknown_method_is_refused(old, new):
    with pytest.raises(ValueError, match="'best' is unknown; use mean, fvt"):
        MadeRows("best", TransplantRequest(old, new))
