"""Decoders of models that learnt spans under masks of their own: what a pass sees, their distribution, their passes."""

import pytest
import torch

from tests.generation.test_fast_decoders import sampling
from tests.objectives.test_masked_codes import arrange
from unimodal.generation import make_decoder
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import GREEDY, SamplingConfig
from unimodal.model.build import NanoConfig, build_nano
from unimodal.objectives.any_order import AnyOrderConfig, AnyOrderLoss
from unimodal.objectives.masked_codes import MaskedCodeConfig, MaskedCodes
from unimodal.objectives.next_token import IGNORE
from unimodal.objectives.next_x import NextXConfig, NextXLoss
from unimodal.objectives.parallel_copies import ParallelCopies
from unimodal.objectives.token_unify import TokenUnify
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

pytestmark = pytest.mark.sweep("decoders of what was learnt in spans")


@pytest.fixture(scope="module")
def small():
    """Pictures of 2 rows of 2 codes out of four: 256 possible answers."""
    return Vocabulary.build(
        6, [Block(name="image", modality="image", size=4)], [SpanLayout("image", [Segment("image", 4)])]
    )


@pytest.fixture(scope="module")
def make_small(small):
    def make(seed=4, **changes):
        cfg = NanoConfig(
            **{"hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 16,
               "max_positions": 48, "init_std": 0.4} | changes
        )  # fmt: skip
        return build_nano(small.size, cfg, pad_id=0, bos_id=1, eos_id=2, seed=seed).eval()

    return make


def ask(vocabulary, word=3):
    return [*(vocabulary.get_control_id(name) for name in ("<|bos|>", "<|user|>")), word,
            vocabulary.get_control_id("<|assistant|>")]  # fmt: skip


@torch.inference_mode()
def predict(model, vocabulary, prompt, read, seen, positions, wanted):
    """The probabilities [W, size] of codes at these tokens, by one forward of the prompt, the mark and what is read.

    seen: bool [n, n], what each of the read tokens sees of them; all see the prompt. positions: of the span.
    """
    start = [*prompt, vocabulary.get_start_id("image")]
    num, n = len(start), len(read)
    mask = torch.ones(num + n, num + n, dtype=torch.bool).tril()
    mask[num:, num:] = seen
    added = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)[None, None]
    places = torch.tensor([[*range(num), *(num + place for place in positions)]])
    logits = model(torch.tensor([[*start, *read]]), position_ids=places, attention_mask=added).logits[0]
    rows = vocabulary.get_block_range("image")
    return logits[[num + one for one in wanted], rows.start : rows.stop].double().softmax(1)


def compute_any_order(model, vocabulary, prompt, order):
    """The probability of each of the 256 pictures, code by code in that order, each by a forward of its own."""
    rows, pad = vocabulary.get_block_range("image"), vocabulary.get_control_id("<|pad|>")
    found = torch.ones(256, dtype=torch.float64)
    for number, picture in enumerate(torch.cartesian_prod(*[torch.arange(4)] * 4).tolist()):
        for rank, place in enumerate(order):
            known = order[:rank]
            read = [*(rows.start + picture[one] for one in known), pad]
            chances = predict(
                model, vocabulary, prompt, read, torch.ones(rank + 1, rank + 1, dtype=torch.bool).tril(),
                [*known, place], [rank],
            )  # fmt: skip
            found[number] *= chances[0, picture[place]]
    return found


@pytest.mark.parametrize("window", [1, 2, 4])
def test_any_order_follows_the_models_joint_distribution(small, make_small, window):
    """Chi-square over 600 pictures against the chain of single predictions, rare pictures pooled."""
    model, num, prompt = make_small(), 600, ask(small)
    expected = compute_any_order(model, small, prompt, [0, 1, 2, 3]) * num
    configs = [
        GenerationConfig(max_new_tokens=8, force="image", sampling={"image": SamplingConfig()}, seed=seed)
        for seed in range(num)
    ]
    engine = Engine(model, small)
    answers = engine.generate([prompt] * num, configs, method=make_decoder("any-order", window=window))
    codes = torch.tensor([answer[1:5] for answer in answers]) - small.get_block_range("image").start
    counts = torch.bincount(codes @ torch.tensor([64, 16, 4, 1]), minlength=256).double()
    common = expected >= 5
    counts, expected = (torch.cat([one[common], one[~common].sum()[None]]) for one in (counts, expected))
    statistic = ((counts - expected).square() / expected).sum()
    p = torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2, dtype=torch.float64), statistic / 2)
    assert len(expected) > 8 and float(p) > 1e-3
    assert window == 1 or engine.stats.accepted > num // 2


@pytest.mark.parametrize("order", ["ascending", "random"])
def test_in_any_order_greedy_answers_do_not_depend_on_the_window(small, make_small, order):
    model, prompts = make_small(), [ask(small, word) for word in (1, 2, 3, 4, 5)]
    config = GenerationConfig(max_new_tokens=8, force="image", sampling={"image": GREEDY}, seed=3)
    found, passes = [], []
    for window in (1, 2, 3, 9):
        engine = Engine(model, small)
        found.append(engine.generate(prompts, config, method=make_decoder("any-order", window=window, order=order)))
        passes.append(engine.stats.forwards)
    assert found[1:] == found[:-1] and passes[0] == 1 + 4 and max(passes) <= 1 + 4 + 1
    if order == "ascending":
        rows, pad = small.get_block_range("image"), small.get_control_id("<|pad|>")
        known = []
        for place in range(4):
            seen = torch.ones(place + 1, place + 1, dtype=torch.bool).tril()
            chances = predict(model, small, prompts[0], [*known, pad], seen, range(place + 1), [place])
            known.append(rows.start + int(chances.argmax()))
        assert found[0][0][1:5] == known


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("unit", ["token", "subsample", "whole"])
def test_next_x_sees_what_its_training_showed(small, make_small, unit, steps):
    """Greedy, by forwards of whole spans: finished entities, the entity's noisy codes, and nothing behind them."""
    model, prompt = make_small(), ask(small)
    method = make_decoder("next-x", unit=unit, size=2, columns={"image": 2}, wrong=0.0, steps=steps)
    seen_drafts = []

    class Spy(type(method)):
        def verify(self, row, draft, logits):
            if self.entities:
                seen_drafts.append((self.number, list(self.noisy), dict(self.known), logits.clone()))
            return super().verify(row, draft, logits)

    method.__class__ = Spy
    config = GenerationConfig(max_new_tokens=8, force="image", sampling={"image": GREEDY})
    engine = Engine(model, small)
    engine.generate([prompt], config, method=method)
    entities = {"token": [[0], [1], [2], [3]], "subsample": [[0], [1], [2], [3]], "whole": [[0, 1, 2, 3]]}[unit]
    assert engine.stats.forwards == 1 + steps * len(entities) == 1 + len(seen_drafts)
    for number, noisy, known, logits in seen_drafts:
        before = [place for entity in entities[:number] for place in entity]
        read = [*(known[place] for place in before), *noisy]
        rank = [one for one, entity in enumerate(entities[: number + 1]) for _ in entity]
        seen = torch.tensor(rank)[None] <= torch.tensor(rank)[:, None]
        wanted = range(len(before), len(read))
        expected = predict(model, small, prompt, read, seen, [*before, *entities[number]], wanted)
        torch.testing.assert_close(logits.double().softmax(1), expected, rtol=1e-4, atol=1e-5)


def learn(make_small, small, objective, steps=140, rate=1e-2):
    """A model that has learnt two pictures by heart, the questions, and the pictures."""
    torch.manual_seed(0)
    model = make_small(seed=1, hidden_size=32, intermediate_size=48, init_std=0.1)
    module = objective(model)
    questions = [ask(small, word) for word in (2, 5)]
    pictures = [[0, 3, 1, 2], [2, 1, 3, 3]]
    rows = []
    for question, picture in zip(questions, pictures, strict=True):
        span = [*small.encode_span("image", picture), small.get_control_id("<|end_of_turn|>")]
        rows.append([([*question, *span], [IGNORE] * len(question) + span)])
    batch = arrange(rows)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    module.train()
    for _ in range(steps):
        total, parts = module(*batch)
        (total / parts["weight"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), questions, pictures


LEARNT = {
    "masked_codes": (
        lambda voc: lambda model: MaskedCodes(model, voc, own=MaskedCodeConfig(own_place=True)),
        {"masked": {"passes": 2, "sees_ahead": True, "own_place": True}, "explore": {"own_place": True},
         "window-diffusion": {"passes": 4, "window": 3, "active": 2, "refresh": 2, "own_place": True}},
    ),
    "masked_codes, before": (
        lambda voc: lambda model: MaskedCodes(model, voc),
        {"masked": {"passes": 2, "sees_ahead": True}, "explore": {},
         "window-diffusion": {"passes": 4, "window": 4, "active": 2, "refresh": 2}},
    ),
    "masked_codes, asymmetric": (
        lambda voc: lambda model: MaskedCodes(model, voc, own=MaskedCodeConfig(own_place=True, asymmetric=True)),
        {"enat": {"passes": 2}, "masked": {"passes": 2, "sees_ahead": True, "own_place": True, "asymmetric": True}},
    ),
    "next_x": (
        lambda voc: lambda model: NextXLoss(model, voc, own=NextXConfig(unit="subsample", columns={"image": 2})),
        {"next-x": {"unit": "subsample", "columns": {"image": 2}, "steps": 1}},
    ),
    "any_order": (
        lambda voc: lambda model: AnyOrderLoss(model, voc, own=AnyOrderConfig(order="random")),
        {"any-order": {"order": "random", "window": 4}},
    ),
    "parallel_copies": (
        lambda voc: lambda model: ParallelCopies(model, voc),
        {"next-x": {"unit": "whole", "steps": 2}, "jacobi": {}},
    ),
    "token_unify": (
        lambda voc: lambda model: TokenUnify(model, voc), {"masked": {"passes": 2, "sees_ahead": True}, "jacobi": {}},
    ),
}  # fmt: skip


@pytest.mark.sweep("small trainings")
@pytest.mark.parametrize("name", LEARNT)
def test_what_was_learnt_is_written(small, make_small, name):
    """Two pictures by heart, in the passes that each decoder is meant to take, and what is behind them as ever."""
    make, decoders = LEARNT[name]
    short = ("masked_codes", "next_x", "any_order")  # the others learn two things at once, or see less
    longer = {} if name in short else {"steps": 300, "rate": 5e-3}
    model, questions, pictures = learn(make_small, small, make(small), **longer)
    config = GenerationConfig(max_new_tokens=8, force="image", sampling={"image": GREEDY})
    most = {"masked": 2, "enat": 2, "window-diffusion": 4, "explore": 4, "next-x": 4, "any-order": 4, "jacobi": 4}
    for decoder, settings in decoders.items():
        engine = Engine(model, small)
        answers = engine.generate(questions, config, method=make_decoder(decoder, **settings))
        found = [
            list(map(int, small.decode_span(answer[: answer.index(small.get_end_id("image")) + 1])[1]))
            for answer in answers
        ]
        assert found == pictures, decoder
        assert engine.stats.forwards <= 1 + most[decoder], decoder


def test_settings_out_of_range_are_one_line(small, make_small):
    engine, config = Engine(make_small(), small), GenerationConfig(max_new_tokens=8, force="image")
    for decoder, settings, message in (
        ("next-x", {}, "next-x: block 'image': a cell is a part of a raster, and the codes are not in raster order"),
        ("next-x", {"steps": 0, "unit": "whole"}, "next-x takes 0 passes for an entity"),
        ("any-order", {"window": 0}, "any-order's window is 0"),
        ("any-order", {"order": "raster"}, "order 'raster' is unknown; use ascending or random"),
        ("enat", {"passes": 0}, "enat takes 0 passes"),
        ("enat", {"choice_temperature": -1}, "choice_temperature is -1"),
        ("window-diffusion", {"refresh": 0}, "window-diffusion's refresh is 0"),
        ("window-diffusion", {"window": 3, "active": 4}, "window is 3; give at least its active 4"),
        ("explore", {"threshold": 0}, "explore's threshold is 0"),
        ("explore", {"branches": 0}, "explore tries 0 codes"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.generate([ask(small)], config, method=make_decoder(decoder, **settings))


@pytest.mark.parametrize(
    ("decoder", "settings"),
    [("any-order", {"window": 2}), ("any-order", {"window": 3, "order": "random"}),
     ("next-x", {"unit": "token", "steps": 1, "wrong": 0.0})],
)  # fmt: skip
def test_the_next_block_reads_what_was_written_as_any_prompt(model, vocabulary, ask, decoder, settings):
    """Greedy: the first code of each block of a clip is asked for behind a causal reading of all before it."""
    config = GenerationConfig(max_new_tokens=20, force="video", sampling=sampling(0))
    prompts = [ask([3]), ask([5, 6, 8]), ask([9, 9])]
    answers = Engine(model, vocabulary).generate(prompts, config, method=make_decoder(decoder, **settings))
    pad = vocabulary.get_control_id("<|pad|>")
    for prompt, answer in zip(prompts, answers, strict=True):
        blocks = [vocabulary.get_block_range(name) for name in ("image", "video")]
        starts = [
            (place, rows)
            for place in range(1, len(answer))
            for rows in blocks
            if answer[place] in rows and answer[place - 1] not in rows
        ]
        assert len(starts) == 3
        for first, rows in starts if settings.get("order") != "random" else ():  # there another code may come first
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *answer[:first], pad]])).logits[0, -1]
            assert answer[first] == rows.start + int(logits[rows.start : rows.stop].argmax())
        assert vocabulary.decode_span(answer[: answer.index(vocabulary.get_end_id("video")) + 1])[0] == "video"
