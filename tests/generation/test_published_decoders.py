"""The rules of published decoders, each against the authors' formula written out plainly."""

import copy
import math

import pytest
import torch

from tests.generation.test_fast_decoders import sampling
from unimodal.generation import make_decoder
from unimodal.generation.engine import Engine
from unimodal.generation.fast.grouped_sjd import GroupedSpeculative
from unimodal.generation.fast.masked_parallel import _CHOICE, MaskedParallel
from unimodal.generation.fast.protocol import Row
from unimodal.generation.fast.suffix_memory import SuffixMemory
from unimodal.generation.head import Candidates
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import Sampler, SamplingConfig


def make_row(size=8, start=100, written=0, seed=0, segment_written=0):
    """A row inside a block of so many codes."""
    ids = torch.arange(start, start + size)
    candidates = Candidates((range(start, start + size),), ids, None, None)
    sampler = Sampler([SamplingConfig()])
    return Row(
        0, seed, "image", "image", None, written, segment_written, 99, candidates, sampler, 0,
        range(start, start + size), [start], [start],
    )  # fmt: skip


def spread(*shape, seed=0, sharp=1.5):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * sharp).softmax(-1)


@pytest.mark.parametrize("decoder", ["coupled-sjd", "zipar"])
def test_the_maximal_coupling_keeps_what_it_can_and_follows_p(decoder):
    """Over guesses of q: the result follows p, and is the same guess with probability Σ min(p, q)."""
    p, q, num = spread(6, seed=1), spread(6, seed=2), 6000
    guesses = torch.multinomial(q, num, replacement=True, generator=torch.Generator().manual_seed(3)).tolist()
    counts, stayed = torch.zeros(6), 0
    if decoder == "coupled-sjd":
        method = make_decoder(decoder, coupling="maximal")
        method.passes = 1
        for number, guess in enumerate(guesses):
            found = method._couple(make_row(6, seed=number), 100 + guess, p, q, 2) - 100
            counts[found], stayed = counts[found] + 1, stayed + (found == guess)
    else:
        method = make_decoder(decoder, adaptive=True)
        method.done, method.width, method.passes = [3], 9, 1
        for number, guess in enumerate(guesses):
            method.pending = {1: (100 + guess, q)}
            token, settled = method._settle(make_row(6, seed=number), p, -1, 1, 2)
            found = token - 100
            counts[found], stayed = counts[found] + 1, stayed + (found == guess)
            assert settled == (1 not in method.pending) and settled == (found == guess)
            assert settled or method.pending[1][1] is p
    agree = float(torch.minimum(p, q).sum())
    assert stayed / num == pytest.approx(agree, abs=4 * math.sqrt(agree * (1 - agree) / num))
    assert float(((counts - num * p).square() / (num * p)).sum()) < 25  # chi-square of 5 degrees: p of 1e-4


def test_groups_are_those_of_the_authors():
    """Ranks -7 to +6 of ascending scores, probabilities within 0.15, squared distances below 0.5 of raw rows."""
    size, num = 40, 60
    p, q = spread(num, size, seed=4, sharp=0.8), spread(num, size, seed=5, sharp=0.8)
    rows = torch.randn(size, 3, generator=torch.Generator().manual_seed(6)) * 0.45
    index = torch.randint(0, size, (num, 1), generator=torch.Generator().manual_seed(7))
    distances = (rows[:, None] - rows[None]).square().sum(2)

    def judge(number):
        guess = int(index[number])
        order = p[number].sort().indices
        at = int((order == guess).nonzero())
        group = order[at - 7 : at + 7] if at >= 7 else order[:0]  # the authors' slice is empty then
        if not len(group):
            return float(p[number, guess] / q[number, guess])
        near = (p[number, group] - p[number, guess]).abs() < 0.15
        mask = (near & (distances[guess, group] < 0.5)).float()
        return float((p[number, group] * mask).sum() / (q[number, group] * mask).sum())

    method, row = GroupedSpeculative(rows={"image": rows}), make_row(size)
    found = method._compute_ratio(row, p, q, index)
    torch.testing.assert_close(found, torch.tensor([judge(number) for number in range(num)]))
    alone = (p.gather(1, index) / q.gather(1, index))[:, 0]
    assert ((found - alone).abs() > 1e-3).float().mean() > 0.5
    torch.testing.assert_close(GroupedSpeculative(neighbours=0)._compute_ratio(row, p, q, index), alone)
    codebook = GroupedSpeculative(metric="codebook", code_vectors={"image": torch.eye(size)})
    torch.testing.assert_close(codebook._compute_ratio(row, p, q, index), alone)  # all a distance of √2 apart
    with pytest.raises(ValueError, match="metric 'cosine' is unknown; use rows or codebook"):
        GroupedSpeculative(metric="cosine")


@pytest.mark.parametrize("initial", ["random", "repeat", "sample"])
def test_new_places_begin_as_the_authors_scheme_says(initial):
    """Two known places of a window of six in rows of four: new ones at columns 3, 0, 1 and 2."""
    row = make_row(size=12, written=5, segment_written=1)  # the answer's 5th token is behind the block's first code
    method = make_decoder("sjd", initial=initial, columns={"image": 4}, window=6)
    method.begin(row)
    scores = torch.randn(2, 12, generator=torch.Generator().manual_seed(8))
    p, likeliest = scores.softmax(1), 100 + int(scores[1].argmax())
    method._guess_next(row, scores, p, [])
    assert method.first == 4 and len(method.guesses) == 6
    known, new = method.guesses[:2], method.guesses[2:]  # codes 1 and 2, then 3, 4 (a row begins), 5 and 6
    torch.testing.assert_close(torch.stack(method.drawn_from[:2]), p)
    for guess, q in zip(new, method.drawn_from[2:], strict=True):
        assert guess in row.ordinary and q[guess - 100] == 1 and q.sum() == 1
    neighbour = {"repeat": known[-1], "sample": likeliest}.get(initial)
    if neighbour is not None:
        assert [new[0], *new[2:]] == [neighbour] * 3
    begun = set()
    for seed in range(60):
        other = make_row(size=12, written=5, segment_written=1, seed=seed)
        method._guess_next(other, scores, p, [])
        begun.add(method.guesses[3])
    assert len(begun) > 9  # any code begins a row
    with pytest.raises(ValueError, match="initial 'zero' is unknown; use draw, random, repeat or sample"):
        make_decoder("sjd", initial="zero")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("passes", [1, 2, 5, 9])
def test_masked_decoding_is_maskgits(model, vocabulary, ask, temperature, passes):
    """Its loop written out: log-probability and annealed Gumbel noise, at least one code more and one less a pass."""
    seen = []

    class Spy(MaskedParallel):
        def verify(self, row, draft, logits):
            before = list(self.known)
            verdict = super().verify(row, draft, logits)
            seen.append((copy.copy(row), draft, logits, before, list(self.known), list(verdict.tokens)))
            return verdict

    config = GenerationConfig(max_new_tokens=9, force="image", sampling=sampling(temperature), seed=4)
    Engine(model, vocabulary).generate([ask([3])], config, method=Spy(passes=passes))
    seen = [one for one in seen if one[3]]
    total = 6
    passes = min(passes, total)  # more would hide the last code again and again
    assert len(seen) == passes
    for step, (row, draft, logits, before, after, tokens) in enumerate(seen, start=1):
        scores, ratio = row.scale(logits), step / passes
        drawn = row.to_ids(row.sampler.choose(scores, None if temperature == 0 else row.make_noise(draft.depths, step)))
        sampled = [old if old is not None else new for old, new in zip(before, drawn, strict=True)]
        if tokens:
            assert tokens == sampled
            break
        chances = row.draw_uniform(draft.depths, _CHOICE + step).tolist()
        confidence = []
        for place, token in enumerate(sampled):
            noise = -math.log(-math.log(chances[place])) if temperature else 0.0
            likely = float(scores[place].log_softmax(0)[row.candidates.find_index(token)])
            confidence.append(math.inf if before[place] is not None else likely + 4.5 * (1 - ratio) * noise)
        unknown = sum(token is None for token in before)
        mask_len = max(1, min(unknown - 1, math.floor(total * math.cos(math.pi / 2 * ratio))))
        cut_off = sorted(confidence)[mask_len]
        assert after == [None if c < cut_off else t for c, t in zip(confidence, sampled, strict=True)]
    with pytest.raises(ValueError, match="choice_temperature is -1"):
        Engine(model, vocabulary).generate([ask([3])], config, method=MaskedParallel(choice_temperature=-1))


def brute_force(sequences, latest, longest, shortest, reach, num, depth):
    """REST's search and its trie, on plain lists."""
    for length in range(longest, shortest - 1, -1):
        if length > len(latest):
            continue
        suffix = latest[-length:]
        found = [
            own[end : end + reach]
            for own in sequences
            for end in range(length, len(own))
            if own[end - length : end] == suffix
        ]
        if found:
            break
    else:
        return {}
    counts = {}
    for tokens in found:
        for end in range(1, min(len(tokens), depth) + 1):
            path = tuple(tokens[:end])
            counts[path] = counts.get(path, 0) + 1
    return counts


def test_the_memory_finds_the_longest_suffix_and_the_commonest_of_what_followed():
    generator = torch.Generator().manual_seed(9)
    sequences = [torch.randint(0, 4, (40,), generator=generator).tolist() for _ in range(12)]
    memory = SuffixMemory(longest=8, shortest=2, reach=6)
    for ids in sequences:
        memory.extend(memory.begin(ids[:15]), ids[15:])
    for _ in range(40):
        latest = torch.randint(0, 4, (10,), generator=generator).tolist()
        counts = brute_force(sequences, latest, 8, 2, 6, 9, 4)
        nodes = memory.recall(latest, range(4), 9, 4)
        paths = []
        for parent, token in nodes:
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
        assert len(set(paths)) == len(paths) == min(9, len(counts))
        least = sorted(counts.values(), reverse=True)[: len(paths)]
        assert sorted((counts[path] for path in paths), reverse=True) == least
    assert memory.recall([7, 7], range(4), 9, 4) == [] and memory.recall([1], range(4), 9, 4) == []
    assert all(token < 2 for _, token in memory.recall(sequences[0][:6], range(2), 9, 4))


def test_the_memory_drops_its_oldest_sequences():
    memory = SuffixMemory(longest=2, most=6)
    first = memory.begin([1, 2, 3, 4])
    memory.begin([1, 2, 5])
    assert memory.recall([1, 2], range(9), 4, 1) == [(-1, 5)] and list(memory.sequences) == [1]
    memory.extend(first, [6])  # no longer remembered
    assert memory.num_tokens == 3 and set(memory.places) == {(1, 2), (2, 5)}
    for longest, shortest in ((17, 2), (2, 3), (4, 0)):
        with pytest.raises(ValueError, match="both are between 1 and 16"):
            SuffixMemory(longest=longest, shortest=shortest)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_adaptive_windows_are_the_plain_loop_with_a_whole_row_and_wait_no_longer(model, vocabulary, ask, temperature):
    engine = Engine(model, vocabulary)
    configs = [
        GenerationConfig(max_new_tokens=40, force="image", seed=seed, sampling=sampling(temperature))
        for seed in range(6)
    ]
    prompts = [ask([3 + seed]) for seed in range(6)]
    plain, most = engine.generate(prompts, configs), engine.stats.forwards
    whole = make_decoder("zipar", window=3, adaptive=True, columns={"image": 3})
    assert engine.generate(prompts, configs, method=whole) == plain and engine.stats.forwards == most
    method = make_decoder("zipar", window=1, adaptive=True, columns={"image": 3})
    together = engine.generate(prompts, configs, method=method)
    assert engine.stats.forwards <= most
    assert [engine.generate([p], c, method=method)[0] for p, c in zip(prompts, configs, strict=True)] == together
    for answer in together:
        assert vocabulary.decode_span(answer[: answer.index(vocabulary.get_end_id("image")) + 1])[0] == "image"
