"""Every base that is accepted: trained, merged, saved, exported and decoded as its own class computes it."""

import pytest
import torch
from torch.nn import functional as F

from tests.campaigns import is_study
from tests.tiny_bases import BASES, MORE_BASES, PADDED, REFUSED, ROWS, WINDOW, make_base, save_base
from unimodal.generation.continuous import ContinuousBatch
from unimodal.generation.engine import Engine
from unimodal.generation.fast.token_recycling import TokenRecycling
from unimodal.generation.grammar import Grammar
from unimodal.generation.request import GenerationConfig, GenerationRequest
from unimodal.generation.sampling import GREEDY
from unimodal.model.adapter import load_adapter, merge, save_adapter
from unimodal.model.base import load_base
from unimodal.model.build import build_model
from unimodal.model.lora import LoraSettings
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.packed import PackedLoss
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary


@pytest.fixture(scope="module")
def vocabulary():
    blocks = [Block(name="image", modality="image", size=16), Block(name="audio", modality="audio", size=12)]
    layouts = [SpanLayout("image", [Segment("image", 4)]), SpanLayout("audio", [Segment("audio")])]
    return Vocabulary.build(PADDED, blocks, layouts)


def make_document(vocabulary, seed, words):
    """Text, a picture, a sound, text: longer than the window of the layers that have one."""
    g = torch.Generator().manual_seed(seed)
    return [
        *torch.randint(0, ROWS, (words,), generator=g).tolist(),
        *vocabulary.encode_span("image", torch.randint(0, 16, (4,), generator=g)),
        *vocabulary.encode_span("audio", torch.randint(0, 12, (6,), generator=g)),
        *torch.randint(0, ROWS, (3,), generator=g).tolist(),
    ]


def build_adapted(base, vocabulary):
    """The base with new rows and LoRA as after some training: nothing of it is zero."""
    model = build_model(base, vocabulary, LoraSettings(rank=2))
    noise = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=noise) * 0.1
    return model.eval()


def check_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


@torch.no_grad()
def check_loss(model, vocabulary, documents):
    """The loss of packed documents is that of the model's own logits for each alone."""
    expected = []
    for document in documents:
        ids = torch.tensor([document])
        expected.append(F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum"))
    module = PackedLoss(model, vocabulary, LossConfig(softmax="joint"))
    ids = torch.tensor([[row for document in documents for row in document]])
    positions = torch.tensor([[at for document in documents for at in range(len(document))]])
    total, found = module(ids, ids, positions)
    assert found["weight"] == sum(len(document) - 1 for document in documents)
    check_equal(total / found["weight"], sum(expected) / found["weight"])


@torch.no_grad()
def check_engine(model, vocabulary, thorough=True, before=()):
    """Greedy ids are the model's own, alone, in a batch, in one that rows join, in a session, and written ahead.

    before: ids that the model reads before every prompt.
    """
    engine = Engine(model, vocabulary)
    greedy = dict.fromkeys(("text", "image", "audio"), GREEDY)
    configs = [
        GenerationConfig(max_new_tokens=8, force="image", sampling=greedy),
        GenerationConfig(max_new_tokens=4, allow=("text",), min_text_tokens=3, sampling=greedy),
        GenerationConfig(max_new_tokens=5, force="audio", max_codes={"audio": 3}, sampling=greedy),
    ]
    prompts = [make_document(vocabulary, 10 + row, 2 * WINDOW * row + 2) for row in range(3)]
    together = engine.generate(prompts, configs)
    for prompt, config, answer in zip(prompts, configs, together, strict=True):
        given = [*before, *prompt]
        logits = model(torch.tensor([[*given, *answer]])).logits[0, len(given) - 1 : -1]
        grammar = Grammar(vocabulary, config, prompt)
        state = grammar.start()
        for scores, token in zip(logits, answer, strict=True):
            rows = torch.cat([torch.arange(*ends) for ends in grammar.list_allowed(state)])
            assert int(rows[scores[rows].argmax()]) == token
            grammar.advance(state, token)
    batch = ContinuousBatch(engine)
    keys, found = [], {}
    for prompt, config in zip(prompts, configs, strict=True):
        keys += batch.admit([GenerationRequest(prompt, config)])
        found |= {done.key: done.answer for done in batch.advance_rows()}
    while len(batch):
        found |= {done.key: done.answer for done in batch.advance_rows()}
    assert [found[key] for key in keys] == together, "rows that join and leave"
    if not thorough:
        return
    session = engine.open_session()
    assert engine.generate(prompts[2:], configs[2], session=session) == together[2:], "alone"
    behind, beginning = (
        [*prompts[2], *together[2], 3, 4],
        [*prompts[2][:-3], 5, 6],
    )  # a second turn; a text that differs
    for prompt in (behind, beginning):
        expected = engine.generate([prompt], configs[1])
        assert engine.generate([prompt], configs[1], session=session) == expected
        assert engine.stats.cached_tokens >= len(prompts[2]) - 3
    assert engine.generate(prompts, configs, method=TokenRecycling()) == together, "a tree of guesses"


def check_base_everywhere(kind, tied, vocabulary, folder, thorough=True):
    """Logits of text and media: adapter = reloaded = merged = saved = the stock class; the loss; the engine."""
    from transformers import AutoModelForCausalLM

    base = save_base(folder / "base", make_base(kind, tied))
    documents = [make_document(vocabulary, seed, 2 * WINDOW) for seed in range(2)]
    ids = torch.tensor(documents)
    with torch.no_grad():
        model = build_adapted(base, vocabulary)
        expected = model(ids).logits
        assert expected.shape[-1] == vocabulary.size
        save_adapter(folder / "adapter", model, str(base), vocabulary)
        check_equal(load_adapter(folder / "adapter")[0](ids).logits, expected)
        check_loss(model, vocabulary, documents)
        merge(model)
        check_equal(model(ids).logits, expected)
        model.save_pretrained(folder / "merged")
        stock = AutoModelForCausalLM.from_pretrained(folder / "merged").eval()
        check_equal(stock(ids).logits, expected)
    assert stock.config.vocab_size == vocabulary.size
    assert (stock.get_output_embeddings().weight is stock.get_input_embeddings().weight) is tied
    check_engine(stock, vocabulary, thorough)


@pytest.mark.sweep
@pytest.mark.parametrize("kind", BASES)
def test_a_base_is_the_same_everywhere(kind, campaign, vocabulary, tmp_path):
    special = is_study() or "sliding_window" in BASES[kind] or kind in ("gpt2", "granite")
    for number, _ in enumerate(campaign(slice=1, whole=2)):
        tied = bool((list(BASES).index(kind) + number) % 2)
        check_base_everywhere(kind, tied, vocabulary, tmp_path / str(number), special)


@pytest.mark.study
@pytest.mark.parametrize("kind", MORE_BASES)
def test_another_base_is_the_same_everywhere(kind, vocabulary, tmp_path):
    if is_study():
        for tied in (True, False):
            check_base_everywhere(kind, tied, vocabulary, tmp_path / str(tied))


@pytest.mark.sweep
@pytest.mark.parametrize("kind", REFUSED)
def test_a_base_that_cannot_be_built_on_is_refused_in_one_line(kind, tmp_path):
    settings, reason = REFUSED[kind]
    base = save_base(tmp_path, make_base(kind, None, **settings))
    with pytest.raises(ValueError, match=f"ForCausalLM|LMHead.*cannot be used: {reason}") as error:
        load_base(base)
    assert "\n" not in str(error.value)


def test_new_rows_are_scaled_as_the_base_s_are(vocabulary, tmp_path):
    """Gemma looks up sqrt(D) times its rows: so does a new row that is a copy of an old one."""
    base = save_base(tmp_path / "gemma", make_base("gemma", True))
    model = build_model(base, vocabulary, LoraSettings(rank=2))
    table = model.get_input_embeddings()
    assert table.scale == pytest.approx(32**0.5)
    with torch.no_grad():
        table.new_rows[0] = table.base.weight[5]
        found = table(torch.tensor([[5, PADDED]]))
    assert torch.equal(found[0, 0], found[0, 1])
    assert type(merge(model).get_input_embeddings()).__name__ == "GemmaTextScaledWordEmbedding"
