"""Vectors in place of codes: read in prompts, drawn behind them, and the loss that a decoder learns both by."""

import pytest
import torch
import torch.nn.functional as F

from tests.tiny_bases import BASES, make_base
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import GREEDY
from unimodal.generation.vector_writer import VectorWriter
from unimodal.model.attention import set_attention
from unimodal.model.build import NanoConfig, build_nano
from unimodal.model.continuous_media import (
    CONTINUOUS_FILE,
    ContinuousSettings,
    add_continuous_media,
    attach_continuous_media,
    find_continuous_media,
    take_continuous_media,
)
from unimodal.model.logits import read_logit_rule
from unimodal.objectives.continuous import ContinuousLoss
from unimodal.objectives.next_token import LossConfig
from unimodal.sequence.packing import pack, stack
from unimodal.sequence.templates.own import Rendered
from unimodal.tuning.loss import read_values, to_tensors
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

COUNT, WIDTH = 3, 5
SMALL = NanoConfig(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48, max_positions=64)
HEADS = ("mse", "cosine", "flow")


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.build(
        20, [Block(name="image", modality="image", size=1)], [SpanLayout("image", [Segment("image", COUNT)])]
    )


def settings(head):
    return ContinuousSettings(width=WIDTH, head=head, hidden=16, layers=2)


def make_model(vocabulary, head, seed=0, **changes):
    control = vocabulary.get_control_id
    model = build_nano(
        vocabulary.size, SMALL.model_copy(update={"init_std": 0.2, **changes}), seed=seed,
        pad_id=control("<|pad|>"), bos_id=control("<|bos|>"), eos_id=control("<|eos|>"),
    ).eval()  # fmt: skip
    media = add_continuous_media(model, vocabulary, settings(head), seed)
    media.fit(torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(seed)) * 3 + 1)
    wake(media, seed)
    return model


def wake(media, seed=0):
    """What begins at zero gets values, so that every weight counts."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in media.head.parameters():
            parameter += torch.randn(parameter.shape, generator=g) * 0.2


def picture(seed):
    return torch.randn(COUNT, WIDTH, generator=torch.Generator().manual_seed(seed)) * 2


def make_document(vocabulary, parts, learnt_from):
    """Words (ints) and pictures (tensors) → a rendered document with its vectors."""
    ids, vectors = [], []
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
            vectors.append(torch.zeros(1, WIDTH))
        else:
            ids += vocabulary.encode_span("image", [0] * COUNT)
            vectors += [torch.zeros(1, WIDTH), part, torch.zeros(1, WIDTH)]
    array = torch.tensor(ids).numpy()
    labels = array.copy()
    labels[:learnt_from] = -100
    return Rendered(array, labels, array.astype("uint8") * 0, values=torch.cat(vectors).numpy())


def make_documents(vocabulary):
    return [
        make_document(vocabulary, [1, 4, picture(1), 6], 2),  # drawn
        make_document(vocabulary, [1, picture(2), 5, 9, 2], 7),  # read, then answered in words
        make_document(vocabulary, [1, picture(3), 3, picture(4), 8], 6),  # both
        make_document(vocabulary, [1, 3, 8, 9], 1),  # words alone
    ]


def compute(objective, documents, length=40):
    batch = stack(pack(documents, length, 0))
    return objective(*to_tensors(batch), **read_values(batch))


@torch.no_grad()
def explain(model, vocabulary, document, seed):
    """The summed losses of one document, token by token, from the definition; (sum, words, vectors)."""
    media, table, rule = find_continuous_media(model), model.get_input_embeddings(), read_logit_rule(model)
    ids, values = torch.from_numpy(document.ids), torch.from_numpy(document.values)
    read = [
        media.read_in((values[i] - media.mean) / media.deviation) if row == media.row else table(ids[i][None])[0]
        for i, row in enumerate(ids.tolist())
    ]
    states = model.get_decoder()(inputs_embeds=torch.stack(read)[None], use_cache=False).last_hidden_state[0]
    logits, words, total, wanted = rule.apply(model.get_output_embeddings()(states)), 0, 0.0, []
    for at in range(1, len(ids)):
        row = int(ids[at])
        if document.labels[at] == -100:
            continue
        if row == media.row:
            wanted.append((states[at - 1], (values[at] - media.mean) / media.deviation))
            continue
        legal = [r for r in range(vocabulary.size) if r != media.row]
        total += float(logits[at - 1, legal].logsumexp(0) - logits[at - 1, row])
        words += 1
    if wanted:
        states, vectors = (torch.stack(column) for column in zip(*wanted, strict=True))
        if media.settings.head == "flow":
            torch.manual_seed(seed)
            total += float(explain_flow(media.head, states, vectors).sum())
        elif media.settings.head == "mse":
            total += float(((media.head.linear(states) - vectors) ** 2).mean(1).sum())
        else:
            total += float((1 - F.cosine_similarity(media.head.linear(states), vectors)).sum())
    return total, words, len(wanted)


def explain_flow(head, states, vectors):
    """Rectified flow from its definition: the velocity on the line between vector and noise is noise - vector."""
    num = head.draws * len(vectors)
    noise, time = torch.randn(num, WIDTH), torch.randn(num).sigmoid()
    losses = []
    for draw in range(num):
        state, x, z, t = states[draw % len(vectors)], vectors[draw % len(vectors)], noise[draw], time[draw]
        velocity = head((t * z + (1 - t) * x)[None], t[None], state[None])[0]
        losses.append((velocity - (z - x)).square().mean())
    return torch.stack(losses).view(head.draws, -1).mean(0)


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_is_that_of_each_document_by_hand(vocabulary, head):
    model = make_model(vocabulary, head)
    objective = ContinuousLoss(model, vocabulary)
    for document in make_documents(vocabulary):
        total, words, vectors = explain(model, vocabulary, document, 5)
        torch.manual_seed(5)
        found, parts = compute(objective, [document])
        assert parts["weight"] == words + vectors
        assert float(found.detach()) == pytest.approx(total, rel=1e-4)
        counted = parts["metrics"].get(f"image_{head}", (0.0, 0))[1]
        assert counted == vectors and sum(n for _, n in parts["blocks"].values()) == words


@pytest.mark.parametrize("head", ["mse", "cosine"])  # a flow draws other noise for another order
def test_packed_documents_are_as_alone_and_the_gradient_is_numeric(vocabulary, head):
    model = make_model(vocabulary, head).double()
    set_attention(model)
    objective = ContinuousLoss(model, vocabulary, LossConfig(modality_weights={"image": 0.5}), weight=3.0)
    documents = make_documents(vocabulary)
    alone = sum(float(compute(objective, [one])[0].detach()) for one in documents)
    total, parts = compute(objective, documents)
    assert float(total.detach()) == pytest.approx(alone, rel=1e-6)
    assert parts["weight"] == sum((one.labels != -100).sum() for one in documents) + 6 * (0.5 * 3.0 - 1)
    total.backward()
    media = find_continuous_media(model)
    for weight in (media.read_in.weight, media.head.linear.weight, model.get_input_embeddings().weight):
        at = int(weight.grad.abs().argmax())
        with torch.no_grad():
            sides = []
            for step in (1e-3, -2e-3):  # a norm in float32 is within
                weight.view(-1)[at] += step
                sides.append(float(compute(objective, documents)[0]))
            weight.view(-1)[at] += 1e-3
        assert (sides[0] - sides[1]) / 2e-3 == pytest.approx(float(weight.grad.view(-1)[at]), rel=5e-3)
    assert not model.get_input_embeddings().weight.grad[media.row].any()  # its row is never looked up or scored


@pytest.mark.sweep
@pytest.mark.parametrize("kind", BASES)
def test_every_base_reads_and_draws_vectors_as_without_a_cache(kind, vocabulary):
    """Unequal prompts with pictures in one batch, against the whole sequence run anew for every vector."""
    model = make_base(kind, None, vocab_size=vocabulary.size)
    wake(add_continuous_media(model, vocabulary, settings("mse")))
    with torch.no_grad():
        loss = ContinuousLoss(model, vocabulary)
        document = make_documents(vocabulary)[2]
        total, words, vectors = explain(model, vocabulary, document, 0)
        found, parts = compute(loss, [document], len(document))
    assert float(found) == pytest.approx(total, rel=1e-4, abs=1e-4) and parts["weight"] == words + vectors
    expected = []
    prompts, given = [[1, 3, 4], [1, *vocabulary.encode_span("image", [0] * COUNT), 6]], [[], [picture(7)]]
    for prompt, pictures in zip(prompts, given, strict=True):
        expected.append(draw_anew(model, vocabulary, prompt, pictures))
    writer = VectorWriter(model, vocabulary)
    filled = [writer.fill_prompt(*pair) for pair in zip(prompts, given, strict=True)]
    torch.testing.assert_close(writer.write(filled), torch.stack(expected), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def draw_anew(model, vocabulary, prompt, pictures):
    media, table = find_continuous_media(model), model.get_input_embeddings()
    embedded = table(torch.tensor([*prompt, vocabulary.get_start_id("image")]))
    vectors = torch.cat([*pictures, torch.zeros(0, WIDTH)])
    place = torch.tensor([row == media.row for row in prompt] + [False])
    embedded[place] = media.embed(vectors)
    drawn = []
    for _ in range(COUNT):
        state = model.get_decoder()(inputs_embeds=embedded[None], use_cache=False).last_hidden_state[0, -1:]
        drawn.append(media.draw(state, torch.zeros(1, WIDTH))[0])
        embedded = torch.cat([embedded, media.embed(drawn[-1])[None]])
    return torch.stack(drawn)


def test_a_flow_draws_by_its_seed_alone_and_guidance_goes_beyond_the_prompt(vocabulary):
    model = make_model(vocabulary, "flow")
    writer = VectorWriter(model, vocabulary)
    prompts, other = [[1, 3, 4], [1, 5, 6, 7, 8]], [[1], [1]]
    both = writer.write(prompts, [4, 9], steps=4)
    alone = torch.cat([writer.write([prompt], seed, steps=4) for prompt, seed in zip(prompts, (4, 9), strict=True)])
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both[:1], writer.write(prompts[:1], 5, steps=4), atol=0.1)
    assert torch.equal(writer.write(prompts, [4, 9], steps=4, temperature=0), writer.write(prompts, 0, 4, 0))
    guided = writer.write(prompts, [4, 9], 4, guidance=1.5, unconditional=other)
    single = writer.write(prompts[1:], 9, 4, guidance=1.5, unconditional=other[1:])
    torch.testing.assert_close(guided[1:], single, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(guided, both, atol=1e-2)
    same = writer.write(prompts, [4, 9], 4, guidance=1.5, unconditional=prompts)  # nothing to go away from
    torch.testing.assert_close(same, both, rtol=1e-3, atol=1e-3)


@pytest.mark.sweep("small trainings")
@pytest.mark.parametrize("head", HEADS)
def test_a_decoder_learns_to_draw_for_words_and_to_name_what_it_is_shown(vocabulary, head):
    torch.manual_seed(0)
    model = make_model(vocabulary, head, num_layers=1)
    set_attention(model)
    media = find_continuous_media(model)
    pictures = [picture(20 + n) for n in range(3)]
    media.fit(torch.cat(pictures))
    control = vocabulary.get_control_id
    bos, user, end, assistant = (control(f"<|{n}|>") for n in ("bos", "user", "end_of_turn", "assistant"))
    documents = []
    for number, one in enumerate(pictures):
        documents.append(make_document(vocabulary, [bos, user, 3 + number, end, assistant, one, end], 5))
        documents.append(make_document(vocabulary, [bos, user, one, end, assistant, 3 + number, end], 9))
    objective = ContinuousLoss(model.train(), vocabulary)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120 if head == "flow" else 70):
        total, parts = compute(objective, documents)
        (total / parts["weight"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    writer = VectorWriter(model.eval(), vocabulary)
    drawn = writer.write([[bos, user, 3 + n, end, assistant] for n in range(3)], seeds=[1, 2, 3])
    distances = torch.cdist(media.standardise(drawn).flatten(1), media.standardise(torch.stack(pictures)).flatten(1))
    assert distances.argmin(1).tolist() == [0, 1, 2] and float(distances.diagonal().max()) < 0.5 * float(
        distances.mean()
    )
    shown = [bos, user, *vocabulary.encode_span("image", [0] * COUNT), end, assistant]
    config = GenerationConfig(max_new_tokens=4, allow=("text",), force="text", sampling={"text": GREEDY})
    prompts = [writer.fill_prompt(shown, [one]) for one in pictures]
    assert [answer[0] for answer in writer.engine.generate(prompts, config)] == [3, 4, 5]
    named = writer.engine.generate([writer.fill_prompt(shown, [one]) for one in drawn], config)
    assert [answer[0] for answer in named] == [3, 4, 5]  # what was drawn is read as it is


@pytest.mark.parametrize("head", HEADS)
def test_the_file_comes_back_and_a_damaged_one_is_one_line(vocabulary, head, tmp_path):
    model = make_model(vocabulary, head)
    media = find_continuous_media(model)
    media.save(tmp_path)
    assert take_continuous_media(model) is media and find_continuous_media(model) is None
    attach_continuous_media(model, tmp_path, vocabulary)
    back = find_continuous_media(model)
    assert back is not media and back.settings == media.settings
    for (name, one), two in zip(media.state_dict().items(), back.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    take_continuous_media(model)
    other = make_model(vocabulary, head, hidden_size=16)
    take_continuous_media(other)
    with pytest.raises(ValueError, match="into a width of 32, but this decoder has width 16"):
        attach_continuous_media(other, tmp_path, vocabulary)
    (tmp_path / CONTINUOUS_FILE).write_bytes((tmp_path / CONTINUOUS_FILE).read_bytes()[:-9])
    with pytest.raises(ValueError, match="is damaged"):
        attach_continuous_media(model, tmp_path, vocabulary)


def test_what_cannot_be_read_or_drawn_is_one_line(vocabulary):
    model = make_model(vocabulary, "mse")
    objective, writer = ContinuousLoss(model, vocabulary), VectorWriter(model, vocabulary)
    ids = torch.tensor([[1, *vocabulary.encode_span("image", [0] * COUNT)]])
    places = torch.arange(ids.shape[1])[None]
    with pytest.raises(ValueError, match="vectors of width 5; the batch has none"):
        objective(ids, ids, places)
    with pytest.raises(ValueError, match="the batch has those of width 2"):
        objective(ids, ids, places, values=torch.zeros(1, ids.shape[1], 2))
    with pytest.raises(ValueError, match="not finite"):
        objective(ids, ids, places, values=torch.full((1, ids.shape[1], WIDTH), float("nan")))
    with pytest.raises(ValueError, match="room for 3 vectors and 0 are given"):
        writer.fill_prompt(ids[0].tolist(), [])
    with pytest.raises(ValueError, match="all finite"):
        writer.fill_prompt(ids[0].tolist(), [picture(0) / 0])
    for given, words in (
        ({"seeds": [1, 2]}, "2 seeds"), ({"steps": 0}, "steps 0"), ({"guidance": 2.0}, "needs `unconditional`"),
        ({"guidance": 2.0, "unconditional": [[1]]}, "a mse head is not guided"), ({"temperature": float("nan")}, "nan"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            writer.write([[1, 3]], **given)
    for prompt, words in (([], "empty"), ([99], "outside the 35 rows"), ([1] * 61, "exceed the model's 64 positions")):
        with pytest.raises(ValueError, match=words):
            writer.write([prompt])
    take_continuous_media(model)
    with pytest.raises(ValueError, match="no continuous media"):
        ContinuousLoss(model, vocabulary)
    with pytest.raises(ValueError, match="no continuous media"):
        VectorWriter(model, vocabulary)
    codes = [Block(name="image", modality="image", size=9)]
    coded = Vocabulary.build(20, codes, [SpanLayout("image", [Segment("image", 4)])])
    with pytest.raises(ValueError, match="has 9 codes"):
        add_continuous_media(model, coded, settings("mse"))
