"""Prompts with states in the layers (prefix tuning, MMRL's space): as plain keys and values, packed, decoded, saved."""

import copy
import json

import pytest
import torch
from torch.nn import functional as F

from tests.model.test_bases import check_engine, check_equal, make_document
from tests.model.test_soft_prompt import render
from tests.scoring import score_drawn
from tests.tiny_bases import BASES, PADDED, WINDOW, make_base, save_base
from unimodal.compression import DivPrune
from unimodal.generation.continuous import ContinuousBatch
from unimodal.generation.decoders.compiled_decoder import CompiledDecoder
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig, GenerationRequest
from unimodal.model.adapter import load_adapter, merge, save_adapter
from unimodal.model.blocks import find_decoder_blocks
from unimodal.model.build import build_model
from unimodal.model.lora import LoraSettings
from unimodal.model.prefix import PrefixPrompt
from unimodal.model.prompt_files import STATES_FILE, compute_keys_and_values, read_soft_prompt
from unimodal.model.prompt_settings import PrefixSettings, PromptSettings, SpaceSettings
from unimodal.model.shared_space import SpacePrompt
from unimodal.model.soft_prompt import (
    attach_soft_prompt,
    detach_soft_prompt,
    find_soft_prompt,
    has_layer_states,
    list_prompt_ids,
    use_prompt,
)
from unimodal.model.weight_files import PROMPT_FOLDER
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.packed import PackedLoss
from unimodal.objectives.reference import copy_trained
from unimodal.sequence.cutting import RowFitter
from unimodal.sequence.packing import pack, pad, stack
from unimodal.training.activations import checkpoint_activations
from unimodal.tuning.loss import to_tensors
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

LENGTH = 4
KINDS = {
    "prefix": {"prefix": PrefixSettings()},
    "upper": {"prefix": PrefixSettings(first_layer=1)},
    "space": {"space": SpaceSettings(width=6, first_layer=1)},
}


@pytest.fixture(scope="module")
def vocabulary():
    blocks = [Block(name="image", modality="image", size=16), Block(name="audio", modality="audio", size=12)]
    layouts = [SpanLayout("image", [Segment("image", 4)]), SpanLayout("audio", [Segment("audio")])]
    return Vocabulary.build(PADDED, blocks, layouts)


def build(base, vocabulary, kind):
    """A base with new rows, LoRA and such a prompt as after some training."""
    settings = PromptSettings(length=LENGTH, **KINDS[kind])
    model = build_model(base, vocabulary, LoraSettings(rank=2), prompt=settings)
    noise = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=noise) * 0.1
        if ".prompt." in name and parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=noise) * 0.5
    return model.eval()


@pytest.mark.sweep
@pytest.mark.parametrize("name", BASES)
def test_every_base_reads_it_as_peft_reads_keys_and_values(name, vocabulary, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    number = list(BASES).index(name)
    kind = list(KINDS)[number % 3]
    base = save_base(tmp_path / "base", make_base(name, bool(number % 2)))
    model = build(base, vocabulary, kind)
    prompt = list_prompt_ids(model)
    documents = [make_document(vocabulary, seed, WINDOW - LENGTH + 12 * seed) for seed in range(2)]
    save_adapter(tmp_path / "adapter", model, str(base), vocabulary)

    loaded, _ = load_adapter(tmp_path / "adapter")
    ids = torch.tensor([[*prompt, *documents[1]]])
    with torch.no_grad():
        check_equal(loaded(ids).logits, model(ids).logits)
        without = loaded(ids[:, LENGTH:]).logits
    stock = merge(loaded)
    taken = detach_soft_prompt(stock)
    with torch.no_grad():
        check_equal(stock(ids[:, LENGTH:]).logits, without)
    stock.save_pretrained(tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    if name in ("gpt2", "gpt_neox", "falcon", "opt"):
        del plain.config.num_key_value_heads  # the tests' sizes have it, these classes have not, and peft believes it
    theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter" / PROMPT_FOLDER).eval()
    expected = []
    with torch.no_grad():
        for document in documents:
            read = torch.tensor([document])
            mask = torch.ones_like(read)
            logits = theirs(input_ids=read, attention_mask=mask).logits[0]
            check_equal(model(torch.tensor([[*prompt, *document]])).logits[0, LENGTH:], logits)
            expected.append(F.cross_entropy(logits[:-1], read[0, 1:], reduction="sum"))
        begins = [model(torch.tensor([[*prompt, d[0]]])).logits[0, LENGTH - 1] for d in documents]
        expected += [F.cross_entropy(row[None], torch.tensor([d[0]])) for row, d in zip(begins, documents, strict=True)]

    fit = RowFitter(vocabulary, 100, before=prompt)
    items = [piece for document in documents for piece in fit(render(document))]
    module = PackedLoss(model, vocabulary, LossConfig(softmax="joint"))
    trained = {n: p for n, p in model.named_parameters() if ".prompt." in n and p.requires_grad}
    found = []
    for batch in (stack(pack(items, 2 * max(map(len, items)) + 3, 0)), pad(items, 0)):
        total, parts = module(*to_tensors(batch))
        check_equal(total.detach() / parts["weight"], sum(expected) / parts["weight"])
        found.append(torch.autograd.grad(total, list(trained.values())))
    for packed, padded in zip(*found, strict=True):
        check_equal(packed, padded)
    moved = dict(zip(trained, found[0], strict=True))
    assert any("states" in n or "space" in n for n in moved)
    assert all(float(gradient.abs().max()) > 0 for gradient in moved.values())

    attach_soft_prompt(stock, taken)
    special = "sliding_window" in BASES[name] or name in ("gpt2", "granite")
    check_engine(stock, vocabulary, special, prompt)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"), make_base("llama", True, num_hidden_layers=3))


def run_plainly(model, vectors, states, first, document):
    """The states of a document behind vectors [P, D], block by block, with states [F, P, D] put in from `first` on."""
    decoder = model.get_decoder()
    x = torch.cat([vectors, model.get_input_embeddings().base(torch.tensor(document))])[None]
    places = torch.arange(x.shape[1])[None]
    turns = decoder.rotary_emb(x, places)
    for number, block in enumerate(find_decoder_blocks(model)):
        if number >= first:
            x = torch.cat([states[number - first][None], x[:, len(vectors) :]], 1)
        hooks, block._forward_pre_hooks = block._forward_pre_hooks, type(block._forward_pre_hooks)()
        x = block(x, position_embeddings=turns, position_ids=places)
        block._forward_pre_hooks = hooks
    return decoder.norm(x)[0, len(vectors) :]


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_reads_what_it_is_given(base, vocabulary, kind):
    model = build(base, vocabulary, kind)
    prompt, document = find_soft_prompt(model), make_document(vocabulary, 3, 9)
    states = prompt.compute_states()
    if kind == "space":
        assert isinstance(prompt, SpacePrompt) and prompt.space.shape == (2, 6) and states.shape == (2, LENGTH, 32)
        for layer in range(2):
            for maps, part in ((prompt.words, states[layer, :2]), (prompt.media, states[layer, 2:])):
                check_equal(part.detach(), (prompt.space @ maps[layer].weight.T + maps[layer].bias).detach())
    with torch.no_grad():
        expected = run_plainly(model, prompt.vectors, states, prompt.first_layer, document)
        ids = torch.tensor([[*prompt.ids, *document]])
        check_equal(model.get_decoder()(input_ids=ids).last_hidden_state[0, LENGTH:], expected)


def test_a_prefix_begins_as_the_soft_prompt_of_its_words(base, vocabulary):
    words, ids = [4, 9, 2], torch.tensor([[*range(3), 7, 8, 3, 5]])
    found = []
    for settings in ({}, {"prefix": PrefixSettings()}, {"prefix": PrefixSettings(first_layer=2)}):
        model = build_model(base, vocabulary, None, prompt=PromptSettings(length=3, **settings), prompt_words=words)
        ids[0, :3] = torch.tensor(list_prompt_ids(model))
        found.append(model.eval()(ids).logits.detach())
        trained = {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad and ".prompt." in n}
        begins = settings.get("prefix") and settings["prefix"].first_layer
        assert trained == {None: {"vectors"}, 0: {"vectors", "states"}, 2: {"states"}}[begins]
    check_equal(found[1], found[0])
    check_equal(found[2], found[0])
    model = build_model(base, vocabulary, None, prompt=PromptSettings(length=4, space=SpaceSettings()))
    prompt = find_soft_prompt(model)
    assert prompt.first_layer == 1 and len(prompt.compute_states()) == 2, "half of three layers"
    table = model.get_input_embeddings().base
    check_equal(prompt.vectors, table(torch.tensor([vocabulary.get_control_id("<|bos|>")] * 4)).detach())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decoder", ["lean", "reference"])
def test_it_is_read_once_and_by_every_way_of_asking(base, vocabulary, kind, decoder):
    model = build(base, vocabulary, kind)
    engine = Engine(model, vocabulary, decoder)
    config = GenerationConfig(max_new_tokens=5, allow=("text",), min_text_tokens=4)
    prompts = [make_document(vocabulary, 1, 4), make_document(vocabulary, 2, 90)]
    first = engine.generate(prompts, config)
    alone = [engine.generate([prompt], config)[0] for prompt in prompts]
    session = engine.open_session()
    assert first == alone == engine.generate(prompts, config, session=session)
    assert engine.generate(prompts, config, session=session) == first and engine.parts.prompt.num_read == 1
    given = list_prompt_ids(model)
    with torch.no_grad():
        for prompt, answer in zip(prompts, first, strict=True):
            logits = model(torch.tensor([[*given, *prompt, *answer]])).logits[0]
            score = score_drawn(logits[LENGTH + len(prompt) - 1 : -1], vocabulary, prompt, answer).sum()
            [own] = engine.compute_log_likelihood([prompt], [answer])
            assert own == pytest.approx(float(score), abs=1e-3)
            last = logits[LENGTH + len(prompt) - 1 :][:1]
            chances = [score_drawn(last, vocabulary, prompt, [row]).exp()[0] for row in answer[:2]]
            check_equal(engine.compute_next(prompt)[answer[:2]], torch.stack(chances))

    rows = {}
    batch = ContinuousBatch(engine)
    long = GenerationRequest(prompts[1], config)
    while not batch.read_ahead(long, 16):
        pass
    for request in (long, GenerationRequest(prompts[0], config)):
        [key] = batch.admit([request])
        rows[key] = request
    done = {}
    while len(batch):
        for finished in batch.advance_rows():
            done[finished.key] = finished.answer
    assert [done[key] for key, request in sorted(rows.items())] == [first[1], first[0]]

    prompt = find_soft_prompt(model)
    with torch.no_grad():
        (prompt.states if isinstance(prompt, PrefixPrompt) else prompt.space).mul_(-3)
    assert engine.compute_log_likelihood(prompts[:1], first[:1]) != [own] and engine.parts.prompt.num_read == 2
    with pytest.raises(ValueError, match="compression moves the tokens"), DivPrune(keep=0.5)(engine):
        pass


def test_every_decoder_and_cache_is_given_it(base, vocabulary):
    model, config = build(base, vocabulary, "prefix"), GenerationConfig(max_new_tokens=6, allow=("text",))
    prompts = [make_document(vocabulary, 1, 4), make_document(vocabulary, 2, 9)]
    expected = Engine(model, vocabulary, "reference").generate(prompts, config)
    next_row = Engine(model, vocabulary, "reference").compute_next(prompts[0])
    assert Engine(merge_of(model), vocabulary, "lean", weights="float32").generate(prompts, config) == expected
    assert Engine(model, vocabulary, CompiledDecoder(model, None)).generate(prompts, config) == expected
    for kv, tolerance in (("bfloat16", 0.02), ("int8", 0.02)):
        narrow = Engine(model, vocabulary, "lean", weights="model", kv=kv)
        assert float((narrow.compute_next(prompts[0]) - next_row).abs().max()) < tolerance


def merge_of(model):
    """A stock copy with the same prompt, whose weights can be packed."""
    return merge(copy.deepcopy(model))


def test_copies_checkpoints_and_other_prompts_keep_apart(base, vocabulary):
    model = build(base, vocabulary, "prefix")
    prompt, ids = find_soft_prompt(model), torch.tensor([[*find_soft_prompt(model).ids, 5, 6, 7]])
    before = model(ids).logits
    other = copy_trained(model)
    assert copy.deepcopy(model)(ids).logits.equal(before), "what was read with gradients is not copied"
    with torch.no_grad():
        prompt.states.zero_()
    assert torch.equal(other(ids).logits, before) and not torch.equal(model(ids).logits, before)
    taken = detach_soft_prompt(other)
    with torch.no_grad():
        assert torch.equal(other(ids[:, LENGTH:]).logits, model(ids[:, LENGTH:]).logits)
        with use_prompt(model, taken):
            check_equal(model(ids).logits, before.detach())
    shallow = build_model(base, vocabulary, None, prompt=PromptSettings(length=LENGTH)).eval()
    assert not has_layer_states(shallow) and has_layer_states(model)
    deeper = build_model(base, vocabulary, None, prompt=PromptSettings(length=LENGTH, prefix=PrefixSettings())).eval()
    with torch.no_grad():
        find_soft_prompt(deeper).states.mul_(-1)
        own, theirs = shallow(ids).logits, deeper(ids).logits
        with use_prompt(shallow, find_soft_prompt(deeper)):
            check_equal(shallow(ids).logits, theirs)
        assert torch.equal(shallow(ids).logits, own) and not torch.equal(own, theirs)
    assert not any(block._forward_pre_hooks for block in find_decoder_blocks(shallow))

    gradients = []
    for checkpointed in (False, True):
        again = build(base, vocabulary, "space").train()
        if checkpointed:
            checkpoint_activations(again)
        loss = again(ids, use_cache=False).logits.square().sum()
        with torch.no_grad():
            again(ids[:, LENGTH:])  # as a reference is read between forward and backward
        loss.backward()
        gradients.append(find_soft_prompt(again).space.grad)
    check_equal(*gradients)


def test_it_is_saved_trained_on_and_refused_in_one_line(base, vocabulary, tmp_path):
    model = build(base, vocabulary, "space")
    save_adapter(tmp_path / "adapter", model, str(base), vocabulary)
    read = read_soft_prompt(tmp_path / "adapter")
    assert isinstance(read, PrefixPrompt) and read.begins == 1 and not read.vectors.requires_grad
    check_equal(read.states.detach(), find_soft_prompt(model).compute_states().detach())
    held = compute_keys_and_values(model, find_soft_prompt(model))
    stored = json.loads((tmp_path / "adapter" / PROMPT_FOLDER / "adapter_config.json").read_text())
    assert stored["peft_type"] == "PREFIX_TUNING" and held.shape == (LENGTH, 3, 2, 2, 8)
    further = build_model(base, vocabulary, None, prompt=PromptSettings(source=tmp_path / "adapter"))
    assert find_soft_prompt(further).states.requires_grad

    place = tmp_path / "adapter" / PROMPT_FOLDER / STATES_FILE
    whole = place.read_bytes()
    place.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="cannot be read"):
        load_adapter(tmp_path / "adapter")
    place.unlink()
    with pytest.raises(ValueError, match="as peft trains one; train it here") as found:
        load_adapter(tmp_path / "adapter")
    assert "\n" not in str(found.value)
    place.write_bytes(whole)
    deeper = save_base(tmp_path / "deeper", make_base("llama", True, num_hidden_layers=4))
    with pytest.raises(ValueError, match="has states for 3 layers, but the base has 4"):
        build_model(deeper, vocabulary, None, prompt=PromptSettings(source=tmp_path / "adapter"))
    with pytest.raises(ValueError, match=r"prompt.prefix.first_layer is 3, but the base has 3 layers"):
        build_model(base, vocabulary, None, prompt=PromptSettings(prefix=PrefixSettings(first_layer=3)))
    with pytest.raises(ValueError, match=r"prompt.space.first_layer is 9, but the base has 3 layers"):
        build_model(base, vocabulary, None, prompt=PromptSettings(space=SpaceSettings(first_layer=9)))
    with pytest.raises(ValueError, match="half of prompt.space is for media; make it even"):
        PromptSettings(length=5, space=SpaceSettings())
    with pytest.raises(ValueError, match=r"prompt.prefix and source exclude each other"):
        PromptSettings(prefix=PrefixSettings(), source=tmp_path)
    with pytest.raises(ValueError, match=r"prompt.prefix and space exclude each other"):
        PromptSettings(prefix=PrefixSettings(), space=SpaceSettings())
    summed = Vocabulary.build(
        PADDED,
        [Block(name="image", modality="image", group=g, size=8, layout="summed") for g in range(2)],
        [SpanLayout("image", [Segment("image", 4)])],
    )
    with pytest.raises(ValueError, match="a summed position has several"):
        build_model(base, summed, None, prompt=PromptSettings(prefix=PrefixSettings()))
    embedded = model.get_input_embeddings()(torch.tensor([[*list_prompt_ids(model), 3, 4]]))
    with pytest.raises(ValueError, match="take a prompt without prompt.prefix"):
        model(inputs_embeds=embedded[:, :3])
