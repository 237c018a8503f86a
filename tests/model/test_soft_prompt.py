"""A soft prompt before every document: read as peft reads it on every base, packed, decoded, saved, refused."""

import json
import shutil

import pytest
import torch
from torch.nn import functional as F

from tests.model.test_bases import check_engine, check_equal, make_document
from tests.tiny_bases import BASES, PADDED, WINDOW, make_base, save_base
from unimodal.compression import DivPrune
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig
from unimodal.model.adapter import load_adapter, merge, save_adapter
from unimodal.model.base import load_base
from unimodal.model.build import build_model
from unimodal.model.lora import LoraSettings
from unimodal.model.prompt_files import read_soft_prompt
from unimodal.model.prompt_settings import PromptSettings
from unimodal.model.soft_prompt import attach_soft_prompt, detach_soft_prompt, find_soft_prompt, list_prompt_ids
from unimodal.model.weight_files import PROMPT_FOLDER
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.packed import PackedLoss
from unimodal.sequence.cutting import RowFitter
from unimodal.sequence.packing import pack, pad, stack
from unimodal.sequence.templates.own import Rendered, join_group
from unimodal.tuning.loss import to_tensors
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

LENGTH = 5


@pytest.fixture(scope="module")
def vocabulary():
    blocks = [Block(name="image", modality="image", size=16), Block(name="audio", modality="audio", size=12)]
    layouts = [SpanLayout("image", [Segment("image", 4)]), SpanLayout("audio", [Segment("audio")])]
    return Vocabulary.build(PADDED, blocks, layouts)


def build_prompted(base, vocabulary, length=LENGTH, **settings):
    """A base with new rows, LoRA and a prompt as after some training."""
    model = build_model(base, vocabulary, LoraSettings(rank=2), prompt=PromptSettings(length=length), **settings)
    noise = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=noise) * 0.1
    prompt = find_soft_prompt(model)
    prompt.vectors.data += torch.randn(prompt.vectors.shape, generator=noise) * 0.3
    return model.eval()


def render(ids):
    ids = torch.tensor(ids).numpy()
    return Rendered(ids, ids.copy(), (ids * 0).astype("uint8"))


@pytest.mark.sweep
@pytest.mark.parametrize("kind", BASES)
def test_every_base_reads_it_as_peft_does(kind, vocabulary, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tied = bool(list(BASES).index(kind) % 2)
    base = save_base(tmp_path / "base", make_base(kind, tied))
    model = build_prompted(base, vocabulary)
    prompt = list_prompt_ids(model)
    documents = [make_document(vocabulary, seed, 2 * WINDOW + seed) for seed in range(2)]
    save_adapter(tmp_path / "adapter", model, str(base), vocabulary)

    stock = merge(load_adapter(tmp_path / "adapter")[0])
    taken = detach_soft_prompt(stock)
    stock.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    theirs = PeftModel.from_pretrained(loaded, tmp_path / "adapter" / PROMPT_FOLDER).eval()
    expected = []
    with torch.no_grad():
        for document in documents:
            ids = torch.tensor([document])
            logits = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, LENGTH:]
            check_equal(model(torch.tensor([[*prompt, *document]])).logits[0, LENGTH:], logits)
            expected.append(F.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum"))
    count = sum(len(document) - 1 for document in documents)

    fit = RowFitter(vocabulary, 100, before=prompt)
    items = [piece for document in documents for piece in fit(render(document))]
    module = PackedLoss(model, vocabulary, LossConfig(softmax="joint"))
    arrangements = {"packed": stack(pack(items, 2 * max(map(len, items)) + 3, 0)), "padded": pad(items, 0)}
    for name, batch in arrangements.items():
        found, parts = module(*to_tensors(batch))
        first = (batch.labels != -100).sum() - parts["weight"]
        assert first == 0 and parts["weight"] == count + len(documents), name
        with torch.no_grad():  # the first token of a document is learnt too: what the prompt says comes first
            begins = [model(torch.tensor([[*prompt, d[0]]])).logits[0, LENGTH - 1] for d in documents]
            more = [F.cross_entropy(row[None], torch.tensor([d[0]])) for row, d in zip(begins, documents, strict=True)]
        check_equal(found.detach() / parts["weight"], (sum(expected) + sum(more)) / parts["weight"])
        found.backward()
        gradient = find_soft_prompt(model).vectors.grad
        assert gradient.abs().sum(1).min() > 0, "every vector learns"
        find_soft_prompt(model).vectors.grad = None

    attach_soft_prompt(stock, taken)
    special = "sliding_window" in BASES[kind] or kind in ("gpt2", "granite")
    check_engine(stock, vocabulary, special, prompt)


@pytest.mark.parametrize("decoder", ["lean", "reference"])
def test_a_prompt_is_read_once_and_again_when_it_has_changed(vocabulary, tmp_path, decoder):
    base = save_base(tmp_path, make_base("llama", True))
    model = build_prompted(base, vocabulary)
    engine = Engine(model, vocabulary, decoder)
    config = GenerationConfig(max_new_tokens=4, allow=("text",), min_text_tokens=3)
    prompts = [make_document(vocabulary, 1, 4), make_document(vocabulary, 2, 9)]
    first = engine.generate(prompts, config)
    assert engine.stats.cached_tokens > 0
    assert engine.generate(prompts, config) == first and engine.parts.prompt.num_read == 1
    before = engine.compute_log_likelihood(prompts, first)
    prompt = find_soft_prompt(model)
    with torch.no_grad():
        prompt.vectors.mul_(-2)
    engine.generate(prompts, config)
    assert engine.parts.prompt.num_read == 2
    assert engine.compute_log_likelihood(prompts, first) != before
    alone = Engine(model, vocabulary, decoder)
    changed = alone.generate(prompts, config)
    assert engine.generate(prompts, config) == changed
    with DivPrune(keep=1.0)(engine):
        assert engine.generate(prompts, config) == changed, "compression reads the prompt too"
    ids = torch.tensor([[*prompt.ids, *prompts[0]]])
    with torch.no_grad():
        own = engine.compute_next(prompts[0])
        rows = own.nonzero()[:, 0]
        assert len(rows) > PADDED // 2
        check_equal(own[rows], model(ids).logits[0, -1, rows].softmax(-1))
    assert engine.max_positions == model.config.max_position_embeddings - LENGTH
    with pytest.raises(ValueError, match="exceed the model's 155 positions"):
        engine.generate([[3] * 152], config)


@pytest.mark.parametrize("length", [1, 2])
def test_a_short_prompt_before_a_short_question(vocabulary, tmp_path, length):
    base = save_base(tmp_path, make_base("qwen3", False))
    model = build_prompted(base, vocabulary, length)
    config = GenerationConfig(max_new_tokens=3, allow=("text",), min_text_tokens=2)
    [answer] = Engine(model, vocabulary).generate([[7]], config)
    assert answer == Engine(model, vocabulary, "reference").generate([[7]], config)[0]


def test_groups_keep_a_prompt_for_each_of_their_documents(vocabulary):
    fit = RowFitter(vocabulary, 10, row_length=20, before=(-7, -8))
    pair = join_group([render([3, 4, 5]).give_values(1.0), render([3, 6]).give_values(-1.0)])
    [found] = fit(pair)
    assert found.ids.tolist() == [-7, -8, 3, 4, 5, -7, -8, 3, 6] and found.starts == (5,)
    assert found.values[:, 0].tolist() == [1.0] * 5 + [-1.0] * 4
    assert found.labels.tolist()[:2] == [-100, -100] and found.labels.tolist()[5:7] == [-100, -100]
    assert fit(join_group([render([3] * 9), render([3] * 8)])) == [], "17 tokens and two prompts"
    assert len(fit(join_group([render([3] * 8), render([3] * 8)]))) == 1
    truncating = RowFitter(vocabulary, 4, "split", before=(-7,))
    assert [piece.ids.tolist() for piece in truncating(render([3] * 6))] == [[-7, 3, 3, 3, 3], [-7, 3, 3]]


def test_it_begins_as_words_or_rows_or_another_prompt(vocabulary, tmp_path):
    base = save_base(tmp_path / "base", make_base("gemma", True))  # scales what it looks up
    settings = PromptSettings(length=5, text="abc")
    model = build_model(base, vocabulary, None, prompt=settings, prompt_words=[4, 9, 2])
    table = load_base(base).model.get_input_embeddings()
    check_equal(find_soft_prompt(model).vectors.detach(), table(torch.tensor([4, 9, 2, 4, 9])).detach())
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "new_rows" not in name}
    assert trained == {"model.embed_tokens.prompt.vectors"}
    save_adapter(tmp_path / "adapter", model, str(base), vocabulary)
    again = build_model(base, vocabulary, None, prompt=PromptSettings(source=tmp_path / "adapter"))
    assert torch.equal(find_soft_prompt(again).vectors, find_soft_prompt(model).vectors)
    with pytest.raises(ValueError, match=r"prompt.length is 7, but the prompt in .* has 5 tokens"):
        build_model(base, vocabulary, None, prompt=PromptSettings(length=7, source=tmp_path / "adapter"))
    drawn = find_soft_prompt(build_model(base, vocabulary, None, prompt=PromptSettings())).vectors.detach()
    assert len(drawn) == 20 and (table.weight * table.embed_scale == drawn[0]).all(1).any()


def test_what_cannot_be_used_is_refused_in_one_line(vocabulary, tmp_path):
    base = save_base(tmp_path / "base", make_base("llama", True))
    model = build_prompted(base, vocabulary)
    save_adapter(tmp_path / "adapter", model, str(base), vocabulary)
    with pytest.raises(ValueError, match="already has a soft prompt"):
        attach_soft_prompt(model, find_soft_prompt(model))
    other = save_base(tmp_path / "other", make_base("llama", True, hidden_size=16))
    with pytest.raises(ValueError, match="vectors of width 32, but the base reads 16"):
        build_model(other, vocabulary, None, prompt=PromptSettings(source=tmp_path / "adapter"))
    with pytest.raises(ValueError, match="a soft prompt of 159 tokens leaves no room in the base's 160 positions"):
        build_model(base, vocabulary, None, prompt=PromptSettings(length=159))
    with pytest.raises(ValueError, match="leave one of them out"):
        PromptSettings(text="a", source=tmp_path)

    def read_broken(name, change):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "adapter", folder)
        change(folder / PROMPT_FOLDER)
        with pytest.raises(ValueError) as found:
            load_adapter(folder)
        assert "\n" not in str(found.value)
        return str(found.value)

    def cut(folder):
        path = folder / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-9])

    def rename(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": "LORA"}))

    assert "cannot be read" in read_broken("cut", cut)
    assert "is an adapter of the kind LORA, not PROMPT_TUNING" in read_broken("kind", rename)
    assert "has no soft prompt" in read_broken("gone", lambda folder: shutil.rmtree(folder))
    with pytest.raises(ValueError, match="has no soft prompt"):
        read_soft_prompt(base)
