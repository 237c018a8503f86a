"""Pictures that are read with codes replaced by matched prompts (Croc), and new rows that stay near their start."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from tests.tiny_bases import PADDED, make_base, save_base
from unimodal.model.build import build_model
from unimodal.model.lora import LoraSettings
from unimodal.model.rows import get_new_rows
from unimodal.objectives.next_token import IGNORE, LossConfig
from unimodal.objectives.objective import number_documents
from unimodal.objectives.packed import PackedLoss
from unimodal.objectives.restored_codes import (
    RestoredCodeConfig,
    RestoredCodes,
    choose_replaced,
    find_questions,
    match_prompts,
)
from unimodal.objectives.row_prior import RowPrior, RowPriorConfig
from unimodal.objectives.sinks import SinkDecorrelation
from unimodal.sequence.packing import pack, stack
from unimodal.sequence.templates.own import Rendered
from unimodal.tuning.loss import to_tensors
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary


@pytest.fixture(scope="module")
def vocabulary():
    layouts = [SpanLayout("image", [Segment("image", 4)])]
    return Vocabulary.build(PADDED, [Block(name="image", modality="image", size=16)], layouts)


@pytest.fixture
def model(vocabulary, tmp_path):
    base = save_base(tmp_path, make_base("llama", True))
    made = build_model(base, vocabulary, LoraSettings(rank=2), attention="sdpa")
    return made.eval()


def make_batch(vocabulary):
    """Two documents that read a picture and one of text alone, packed: ids, labels, positions."""
    picture = [list(vocabulary.encode_span("image", codes)) for codes in ([1, 5, 9, 13], [2, 2, 3, 4])]
    documents = [([1, *picture[0], 5], [7, 8, 2]), ([4, *picture[1]], [9, 2]), ([3, 6], [5, 2])]
    items = []
    for asked, said in documents:
        ids = torch.tensor([*asked, *said]).numpy()
        labels = ids.copy()
        labels[: len(asked)] = IGNORE
        items.append(Rendered(ids, labels, (ids * 0).astype("uint8")))
    return to_tensors(stack(pack(items, 32, 0)))


def test_prompts_are_matched_one_to_one_at_the_least_distance():
    """Against every assignment of 4 codes to 6 prompts; the nearest prompt alone may be taken twice."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        inputs, pool = torch.randn(4, 3, generator=generator), torch.randn(6, 3, generator=generator)
        found = match_prompts(inputs, pool)
        costs = {
            chosen: sum(float((inputs[n] - pool[m]).norm()) for n, m in enumerate(chosen))
            for chosen in itertools.permutations(range(6), 4)
        }
        assert tuple(found.tolist()) == min(costs, key=costs.get)
        assert torch.equal(match_prompts(inputs, pool, "nearest"), torch.cdist(inputs, pool).argmin(1))
    with pytest.raises(ValueError, match="pool has 2 prompts, and 3 codes of a medium are replaced by different ones"):
        match_prompts(torch.zeros(3, 2), torch.zeros(2, 2))


@pytest.mark.parametrize("target", ["codes", "embeddings"])
def test_the_loss_by_hand(model, vocabulary, target):
    """Replaced inputs, a mask by the rule of each pair of tokens, captions and what was replaced."""
    ids, labels, positions = make_batch(vocabulary)
    own = RestoredCodeConfig(pool=8, share=0.75, target=target, weight=0.7)
    module = RestoredCodes(model, vocabulary, LossConfig(softmax="joint"), own)
    torch.manual_seed(5)
    total, parts = module(ids, labels, positions)
    torch.manual_seed(5)
    documents = number_documents(positions).view_as(ids)
    codes = torch.tensor([[vocabulary.find_block(row) is not None for row in ids[0].tolist()]])
    runs = torch.where(codes, documents + 1, 0)
    hidden = choose_replaced(runs, 0.75)
    assert [int(hidden[documents == number].sum()) for number in documents[codes].unique()] == [3, 3]
    table = model.get_input_embeddings()
    inputs = table(ids).detach()
    given = inputs.clone()
    for run in runs[codes].unique():
        places = ((runs == run) & hidden).nonzero()[:, 1]
        given[0, places] = module.pool[match_prompts(inputs[0, places], module.pool)].detach()
    first = {
        int(d): int((labels[0] != IGNORE)[documents[0] == d].nonzero()[0]) for d in documents[labels != IGNORE].unique()
    }
    size = ids.shape[1]
    mask = torch.zeros(1, 1, size, size, dtype=torch.bool)
    for q, k in itertools.product(range(size), repeat=2):
        if documents[0, q] == documents[0, k]:
            limit = first.get(int(documents[0, q]), 0)
            read = int(positions[0, q]) < limit and int(positions[0, k]) < limit
            mask[0, 0, q, k] = k <= q or read
    states = model.get_decoder()(
        inputs_embeds=given, position_ids=positions, attention_mask=mask, use_cache=False
    ).last_hidden_state[0]
    logits = model.get_output_embeddings()(states)
    at = [n for n in range(1, size) if labels[0, n] != IGNORE and positions[0, n] > 0]
    expected = F.cross_entropy(logits[[n - 1 for n in at]], labels[0, at], reduction="sum")
    if target == "codes":
        places = hidden[0].nonzero()[:, 0]
        term = F.cross_entropy(logits[places], ids[0, places], reduction="sum")
    else:
        wanted = inputs[0, codes[0]] / inputs[0, codes[0]].norm(dim=1, keepdim=True)
        term = torch.nn.SmoothL1Loss(beta=0.01)(module.project(states[codes[0]]), wanted) * 10 * int(codes.sum())
    assert float(total.detach()) == pytest.approx(float((expected + 0.7 * term).detach()), rel=1e-4)
    assert parts["weight"] == len(at)
    total.backward()
    assert module.pool.grad.abs().sum(1).gt(0).sum() >= 3, "prompts that were taken learn"


def test_questions_end_at_the_first_label():
    labels = torch.tensor([[IGNORE, IGNORE, 5, IGNORE, 6, IGNORE, IGNORE, 7, IGNORE, IGNORE]])
    documents = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 2, 2]])
    found = find_questions(labels, documents)[0].tolist()
    assert found == [True, True, False, False, False, True, True, False, True, True]


def test_new_rows_are_drawn_back_to_their_start(model, vocabulary):
    batch = make_batch(vocabulary)
    plain = PackedLoss(model, vocabulary)
    start = get_new_rows(model)["input"].detach().clone()
    module = RowPrior(SinkDecorrelation(plain), model, RowPriorConfig(weight=0.5))
    other = SinkDecorrelation(plain)
    assert float(module(*batch)[0]) == pytest.approx(float(other(*batch)[0]), rel=1e-6), "no distance yet"
    with torch.no_grad():
        get_new_rows(model)["input"].add_(torch.randn(start.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
    moved = (get_new_rows(model)["input"] - start).square().sum()
    total, parts = module(*batch)
    expected = float(other(*batch)[0]) + 0.5 * parts["weight"] * float(moved)
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert parts["metrics"]["row_distance"][0] == pytest.approx(float(moved), rel=1e-5)

    def train(weight):
        with torch.no_grad():
            get_new_rows(model)["input"].copy_(start)
        one = plain if weight is None else RowPrior(plain, model, RowPriorConfig(weight=weight))
        optimizer = torch.optim.SGD([get_new_rows(model)["input"]], lr=0.3)
        for _ in range(8):
            optimizer.zero_grad()
            loss, found = one(*batch)
            (loss / found["weight"]).backward()
            optimizer.step()
        return float((get_new_rows(model)["input"] - start).square().sum(1).mean())

    assert train(1.0) < 0.5 * train(None)
    with pytest.raises(ValueError, match="there are none"):
        RowPrior(plain, make_base("llama", True), RowPriorConfig())
