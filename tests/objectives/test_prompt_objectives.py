"""What a soft prompt learns: near its examples (CPT), from another prompt (PANDA, POST), and in private."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from tests.objectives.prompted import make_vocabulary
from tests.tiny_bases import PADDED, make_base, save_base
from unimodal.model.build import build_model
from unimodal.model.context_prompt import Context, ContextPrompt, join_examples
from unimodal.model.lora import LoraSettings
from unimodal.model.private_gradients import PrivacySettings, PrivateGradients, bound_epsilon
from unimodal.model.prompt_settings import ContextSettings, PromptSettings
from unimodal.model.soft_prompt import find_soft_prompt, list_prompt_ids
from unimodal.objectives.context_prompt import ContextLossConfig, ContextPromptLoss
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.packed import PackedLoss
from unimodal.objectives.prompt_swap import swap_prompt
from unimodal.objectives.prompt_transfer import PromptTransfer, PromptTransferConfig, measure_likeness
from unimodal.objectives.registry import ObjectiveConfig
from unimodal.sequence.packing import pack, pad, stack
from unimodal.sequence.templates.own import IGNORE, Rendered
from unimodal.tuning.loss import to_tensors
from unimodal.tuning.objective import make_objective

EXAMPLES = [([40, 3, 4, 41, 5, 6], 4), ([40, 7, 41, 8, 9], 3)]  # ids, and how many of them are no label


@pytest.fixture(scope="module")
def vocabulary():
    return make_vocabulary()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"), make_base("llama", True))


def render(ids, num_asked):
    ids = torch.tensor(ids).numpy()
    labels = ids.copy()
    labels[:num_asked] = IGNORE
    return Rendered(ids, labels, (ids * 0).astype("uint8"))


def make_context():
    rendered = [render(*example) for example in EXAMPLES]
    return join_examples([(one.ids, one.labels) for one in rendered], frozenset({40, 41}))


def batch_of(model, documents):
    """Documents packed two a row behind the model's prompt."""
    before = list_prompt_ids(model)
    items = [render(*document).put_before(before) for document in documents]
    return to_tensors(stack(pack(items, 2 * max(map(len, items)) + 2, 0)))


DOCUMENTS = [([40, 3, 9, 41, 6, 5], 4), ([40, 8, 41, 2], 3), ([40, 1, 1, 3, 41, 7, 7], 5)]


def test_a_context_is_changed_as_peft_changes_it():
    """Same start, same gradients, same projection as peft's CPTEmbedding, over steps that reach the limits."""
    from peft import CPTConfig
    from peft.tuners.cpt import CPTEmbedding

    context = make_context()
    assert context.types == (1, 2, 2, 3, 4, 4, 5, 6, 7, 8, 8)
    table = torch.nn.Embedding(PADDED, 32)
    config = CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=list(context.rows), cpt_mask=[1] * len(context.rows),
        cpt_tokens_type_mask=list(context.types), opt_projection_epsilon=0.4, opt_projection_format_epsilon=0.2,
    )  # fmt: skip
    config.token_dim = 32
    theirs = CPTEmbedding(config, table)
    ours = ContextPrompt(table.weight[list(context.rows)], context, 0.4, 0.2)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.3) for module in (ours, theirs)]
    wanted = torch.randn(len(context.rows), 32)
    for _ in range(4):
        found = [ours.compute_vectors(), theirs(torch.arange(len(context.rows)))]
        torch.testing.assert_close(found[0], found[1])
        for vectors, optimizer in zip(found, optimizers, strict=True):
            optimizer.zero_grad()
            (vectors - wanted).square().sum().backward()
            optimizer.step()
    ours.eval()
    moved = (ours.compute_vectors() - ours.start).norm(dim=1)
    limits = torch.tensor([0.2, 0.4, 0.4, 0.2, 0, 0, 0.2, 0.4, 0.2, 0, 0]) * (32 / 2048) ** 0.5
    torch.testing.assert_close(moved, limits, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(ours.compute_vectors(), theirs(torch.arange(len(context.rows))))


def test_the_loss_of_a_context_is_peft_s(base, vocabulary):
    """Packed documents against peft's calculate_loss of each alone, whose labels hold the context's too."""
    from peft.tuners.cpt import CPTEmbedding

    context = make_context()
    settings = PromptSettings(context=ContextSettings(path="examples.jsonl", examples=2))
    model = build_model(base, vocabulary, None, prompt=settings, prompt_words=context)
    prompt = find_soft_prompt(model)
    assert isinstance(prompt, ContextPrompt)
    module = ContextPromptLoss(model, vocabulary, LossConfig(softmax="joint"), ContextLossConfig(decay=0.7))
    batch = batch_of(model, DOCUMENTS)
    total, parts = module(*batch)
    summed, count = 0.0, 0
    config = SimpleNamespace(opt_weighted_loss_type="decay", opt_loss_decay_factor=0.7)
    for ids, num_asked in DOCUMENTS:
        read = torch.tensor([[*prompt.ids, *ids]])
        known = [row if kind % 4 == 0 else IGNORE for row, kind in zip(context.rows, context.types, strict=True)]
        labels = torch.tensor([[*known, *([IGNORE] * num_asked), *ids[num_asked:]]])
        types = torch.tensor([[*context.types, *([9] * num_asked), *([12] * (len(ids) - num_asked))]])
        output = SimpleNamespace(logits=model(read).logits)
        mean = CPTEmbedding.calculate_loss(output, labels, types, config).loss
        num = int((labels[:, 1:] != IGNORE).sum())
        summed, count = summed + float(mean.detach()) * num, count + num
    assert parts["weight"] == count
    assert float(total.detach()) == pytest.approx(summed, rel=1e-5)
    total.backward()
    assert prompt.vectors.grad[prompt.types % 4 == 0].abs().max() == 0, "labels of the context stay what they are"
    assert prompt.vectors.grad[prompt.types % 4 != 0].abs().sum(1).min() > 0
    plain = build_model(base, vocabulary, None, prompt=PromptSettings(length=3))
    with pytest.raises(ValueError, match="name them in prompt.context"):
        ContextPromptLoss(plain, vocabulary, None, ContextLossConfig())


def test_a_batch_reads_another_prompt_in_the_place_of_its_own(base, vocabulary):
    model = build_model(base, vocabulary, None, prompt=PromptSettings(length=3))
    ids, _, positions = batch_of(model, DOCUMENTS)
    for prompt in ((), (-90, -91), tuple(range(-99, -94))):
        new_ids, new_positions, index = swap_prompt(ids, positions, prompt)
        content = (ids >= 0).reshape(-1)
        assert torch.equal(new_ids.reshape(-1)[index[content]], ids.reshape(-1)[content])
        assert bool((index[~content] == -1).all())
        found = [row[row != 0].tolist() for row in new_ids]
        assert sorted(len(row) for row in found) == sorted(
            int((row > 0).sum()) + len(prompt) * int((row == -(1 << 32)).sum()) for row in ids
        )
        starts = new_ids[new_positions == 0].tolist()
        assert starts.count(prompt[0] if prompt else 40) == len(DOCUMENTS)


def test_panda_adds_the_distance_to_what_the_source_prompt_says(base, vocabulary):
    model = build_model(base, vocabulary, None, prompt=PromptSettings(length=3)).eval()
    made = [build_model(base, vocabulary, None, prompt=PromptSettings(length=num), seed=num) for num in (2, 5)]
    prompts = [find_soft_prompt(one) for one in made]
    own = PromptTransferConfig(source="source", target="target", weight=0.3)
    batch = batch_of(model, DOCUMENTS)
    cfg = LossConfig(softmax="joint")
    total, parts = PromptTransfer(model, vocabulary, cfg, own, prompts=prompts)(*batch)
    mine = find_soft_prompt(model).vectors
    table = model.get_input_embeddings().base

    def read(vectors, ids):
        given = torch.cat([vectors, table(torch.tensor(ids))])[None]
        logits = model(inputs_embeds=given).logits[0, len(vectors) :]
        states = model.get_decoder()(inputs_embeds=given).last_hidden_state[0, len(vectors) :]
        return logits, states

    entropy, squares, states = 0.0, 0.0, ([], [])
    for ids, num_asked in DOCUMENTS:
        logits = read(mine, ids)[0][num_asked - 1 : -1]
        others = [read(prompt.vectors, ids) for prompt in prompts]
        entropy += F.cross_entropy(logits, torch.tensor(ids[num_asked:]), reduction="sum")
        squares += (logits - others[0][0][num_asked - 1 : -1]).square().mean(1).sum()
        for kept, (_, found) in zip(states, others, strict=True):
            kept.append(found[num_asked:])
    like = F.cosine_similarity(*(torch.cat(one).mean(0) for one in states), dim=0)
    assert like > 0 and parts["metrics"]["likeness"][0] == pytest.approx(float(like), rel=1e-4)
    assert float(total) == pytest.approx(float(entropy + 0.3 * like * squares), rel=1e-5)
    alike = PromptTransfer(model, vocabulary, cfg, own.model_copy(update={"target": None}), prompts=prompts[:1])
    assert float(alike(*batch)[0]) == pytest.approx(float(entropy + 0.3 * squares), rel=1e-5)
    total.backward()
    assert mine.grad.abs().sum(1).min() > 0 and prompts[0].vectors.grad is None
    assert measure_likeness(torch.ones(3, 4), -torch.ones(3, 4)) == 0.0
    wide = find_soft_prompt(build_model(base, vocabulary, None, prompt=PromptSettings(length=2)))
    wide.vectors = torch.nn.Parameter(torch.zeros(2, 8))
    with pytest.raises(ValueError, match="a prompt of width 8 does not fit a base of width 32"):
        PromptTransfer(model, vocabulary, cfg, own, prompts=[wide])


def test_post_moves_what_a_small_model_s_prompt_changes(base, vocabulary, tmp_path):
    """The loss of the authors' `mix_transfer`: what is said, and how a prompt changes it, at temperature 2."""
    small_base = save_base(tmp_path, make_base("llama", True, seed=4, hidden_size=16, num_hidden_layers=1))
    small = build_model(small_base, vocabulary, None, prompt=PromptSettings(length=2)).eval()
    model = build_model(base, vocabulary, None, prompt=PromptSettings(length=4)).eval()
    own = PromptTransferConfig(kind="post", source="small", alpha=0.3)
    module = PromptTransfer(model, vocabulary, LossConfig(softmax="joint"), own, small)
    total, parts = module(*batch_of(model, DOCUMENTS))
    expected, num = 0.0, 0
    for ids, num_asked in DOCUMENTS:
        said = []
        for one in (model, small):
            prompted = one(torch.tensor([[*list_prompt_ids(one), *ids]])).logits[0, len(list_prompt_ids(one)) :]
            bare = one(torch.tensor([ids])).logits[0]
            said.append([rows[num_asked - 1 : -1] for rows in (prompted, bare)])
        (mine, mine_bare), (theirs, theirs_bare) = said
        kl = torch.nn.KLDivLoss(reduction="sum")

        def diverge(student, teacher, kl=kl):
            return kl(F.log_softmax(student / 2.0, dim=-1), F.softmax(teacher / 2.0, dim=-1)) * 2.0**2

        expected += 0.3 * diverge(mine - mine_bare, theirs - theirs_bare) + 0.7 * diverge(mine, theirs)
        num += len(mine)
    assert parts["weight"] == num
    assert float(total) == pytest.approx(float(expected), rel=1e-4)
    total.backward()
    assert find_soft_prompt(model).vectors.grad.abs().sum(1).min() > 0
    assert all(parameter.grad is None for parameter in small.parameters())
    with pytest.raises(ValueError, match="leave it out of post"):
        PromptTransferConfig(kind="post", source="small", target="x")
    with pytest.raises(ValueError, match="exclude each other"):
        ObjectiveConfig(prompt_transfer=own, context_prompt=ContextLossConfig())


def test_a_private_gradient_is_the_sum_of_clipped_ones(base, vocabulary):
    """Against the gradient of each document by itself, clipped; packed, padded and with documents that are shorter."""
    model = build_model(base, vocabulary, None, prompt=PromptSettings(length=3)).eval()
    prompt = find_soft_prompt(model)
    module = PackedLoss(model, vocabulary, LossConfig(softmax="joint"))
    items = [render(*document).put_before(prompt.ids) for document in DOCUMENTS]
    alone = []
    for item in items:
        [gradient] = torch.autograd.grad(module(*to_tensors(pad([item], 0)))[0], [prompt.vectors])
        alone.append(gradient)
    lengths = sorted(float(gradient.norm()) for gradient in alone)
    clip = (lengths[0] + lengths[1]) / 2  # one document is shorter than the limit
    expected = sum(gradient * min(1.0, clip / float(gradient.norm())) for gradient in alone)
    prompt.private = PrivateGradients(PrivacySettings(clip=clip, noise=0.0))
    for arranged in (stack(pack(items, 30, 0)), pad(items, 0)):
        [found] = torch.autograd.grad(module(*to_tensors(arranged))[0], [prompt.vectors])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    prompt.private = PrivateGradients(PrivacySettings(clip=clip, noise=2.0))
    arranged = to_tensors(stack(pack(items, 30, 0)))
    drawn = [torch.autograd.grad(module(*arranged)[0], [prompt.vectors])[0] - expected for _ in range(40)]
    deviation = float(torch.stack(drawn).std())
    assert deviation == pytest.approx(2.0 * clip, rel=0.08) and not torch.equal(drawn[0], drawn[1])
    # a Gaussian of deviation σ over one pass is (ρ = 1 / 2σ²)-zCDP
    assert bound_epsilon(2.0, 1, 1e-5) == pytest.approx(0.125 + 2 * math.sqrt(0.125 * math.log(1e5)))
    assert bound_epsilon(0.0, 1, 1e-5) == math.inf
    with pytest.raises(ValueError, match="delta is 2"):
        bound_epsilon(1.0, 1, 2.0)
    with pytest.raises(ValueError, match="prompt.private hides what the prompt learns, and .* learns beside it"):
        private = PromptSettings(length=3, private=PrivacySettings())
        build_model(base, vocabulary, LoraSettings(rank=2), prompt=private)


def test_contexts_that_say_nothing_or_too_much_are_refused():
    with pytest.raises(ValueError, match="leave length out"):
        PromptSettings(length=4, context=ContextSettings(path="x.jsonl"))
    with pytest.raises(ValueError, match="text and context are given"):
        PromptSettings(text="a", context=ContextSettings(path="x.jsonl"))
    with pytest.raises(AssertionError):
        Context((1, 2), (1,))


def test_documents_whose_losses_meet_cannot_be_hidden(base, vocabulary):
    model = build_model(base, vocabulary, None, prompt=PromptSettings(length=3))
    find_soft_prompt(model).private = PrivateGradients(PrivacySettings())
    template = SimpleNamespace(vocabulary=vocabulary)
    assert isinstance(make_objective(ObjectiveConfig(), LossConfig(), model, template), PackedLoss)
    for settings, loss in (
        (ObjectiveConfig(sinks={}), {}),
        (ObjectiveConfig(kto={}), {}),
        (ObjectiveConfig(), {"keep_share": 0.5}),
    ):
        with pytest.raises(ValueError, match="prompt.private hides documents whose losses depend on no other"):
            make_objective(settings, LossConfig(**loss), model, template)
