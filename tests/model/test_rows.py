"""New rows: only they are trained, they agree with the merged stock model, and they begin like the base's rows."""

import pytest
import torch
from torch.optim import SGD

from unimodal.model.rows import cut_head, draw_initial_rows, extend_rows, get_new_rows, merge_rows, read_head_rows
from unimodal.objectives.next_token import HeadGroup, HeadGroups, compute_sliced_cross_entropy

BASE, NEW = 40, 12


@pytest.fixture
def base(make_model):
    """A base whose table has 40 rows, the last 4 of them zero padding."""

    def make(tied):
        model = make_model(vocab_size=60, tie_embeddings=tied)
        model.resize_token_embeddings(BASE)
        with torch.no_grad():
            model.get_input_embeddings().weight[36:] = 0
            model.get_output_embeddings().weight[36:] = 0
        return model

    return make


def train(model, steps=2):
    groups = HeadGroups(
        [HeadGroup("text", "text", range(BASE)), HeadGroup("new", "image", range(BASE, BASE + NEW))], 52
    )
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    ids = torch.cat([torch.randperm(BASE + NEW), torch.zeros(1, dtype=torch.int64)])[None]  # every row, and read
    for _ in range(steps):
        optimizer.zero_grad()
        compute_sliced_cross_entropy(model, ids, ids, groups).mean.backward()
        optimizer.step()


@pytest.mark.parametrize("tied", [True, False])
def test_training_moves_the_new_rows_on_every_side_and_nothing_else(base, tied):
    torch.manual_seed(0)
    model = base(tied)
    before = {name: p.clone() for name, p in model.named_parameters()}
    extend_rows(model, NEW)
    rows = {side: p.clone() for side, p in get_new_rows(model).items()}
    assert set(rows) == ({"input"} if tied else {"input", "output"})
    assert {p.shape for p in model.parameters() if p.requires_grad} == {(NEW, 32)}
    train(model)
    for side, p in get_new_rows(model).items():
        assert bool((p != rows[side]).any(1).all()), f"{side} rows that did not move"
    after = dict(model.named_parameters())
    for name, p in before.items():
        moved = after[
            name.replace("embed_tokens.weight", "embed_tokens.base.weight").replace("head.weight", "head.base.weight")
        ]
        assert torch.equal(moved, p), name


@pytest.mark.parametrize("tied", [True, False])
def test_merged_model_is_stock_and_equal(base, tied, tmp_path):
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = extend_rows(base(tied), NEW)
    train(model)
    ids = torch.randint(0, BASE + NEW, (2, 20))
    expected = model(ids).logits
    assert expected.shape[-1] == BASE + NEW
    merge_rows(model)
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-6)
    model.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.vocab_size == BASE + NEW == len(again.get_input_embeddings().weight)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) is tied
    torch.testing.assert_close(again(ids).logits, expected, rtol=0, atol=1e-6)


def test_base_ids_give_what_the_base_gave(base):
    model = base(False)
    ids = torch.randint(0, BASE, (1, 9))
    expected = model(ids).logits
    extend_rows(model, NEW)
    torch.testing.assert_close(model(ids).logits[..., :BASE], expected)


@pytest.mark.parametrize("span", [range(0, 5), range(35, 45), range(40, 52), range(44, 46), range(50, 51)])
def test_head_slices_equal_the_whole_head(base, span):
    model = extend_rows(base(False), NEW)
    hidden = torch.randn(3, 32)
    weight = read_head_rows(model.get_output_embeddings(), span)
    whole = model.get_output_embeddings()(hidden)
    torch.testing.assert_close(hidden @ weight.T, whole[:, span.start : span.stop])


def test_new_rows_look_like_used_base_rows_and_differ_from_each_other():
    torch.manual_seed(0)
    direction = torch.linspace(0.1, 2.0, 32)
    table = torch.randn(4000, 32) * direction + 3.0
    table[3000:] = 0  # padding rows do not count
    rows = draw_initial_rows(table, 2000)
    torch.testing.assert_close(rows.mean(0), table[:3000].mean(0), rtol=0, atol=0.2)
    torch.testing.assert_close(rows.std(0), table[:3000].std(0), rtol=0.1, atol=0)
    assert torch.equal(rows, draw_initial_rows(table, 2000)) and not torch.equal(
        rows, draw_initial_rows(table, 2000, seed=1)
    )
    assert len(rows.unique(dim=0)) == 2000


def test_what_cannot_be_done_is_refused(base):
    model = base(True)
    with pytest.raises(ValueError, match="no new rows to merge"):
        merge_rows(model)
    with pytest.raises(ValueError, match="num_rows is 0"):
        extend_rows(model, 0)
    extend_rows(model, NEW)
    with pytest.raises(ValueError, match="already has new rows"):
        extend_rows(model, NEW)
    with pytest.raises(ValueError, match="only zero rows"):
        draw_initial_rows(torch.zeros(3, 4), 2)


def test_lora_trains_beside_the_new_rows_and_merges_with_them(base):
    """The commonest defect of released unified models is an adapter that leaves the new rows untrained."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = extend_rows(base(False), NEW)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    for p in get_new_rows(model).values():
        p.requires_grad_(True)  # peft freezes everything that is not an adapter
    rows = {side: p.clone() for side, p in get_new_rows(model).items()}
    train(adapted.base_model.model)
    assert all(bool((p != rows[side]).any(1).all()) for side, p in get_new_rows(model).items())
    adapted.eval()
    ids = torch.randint(0, BASE + NEW, (1, 12))
    expected = adapted(ids).logits
    merged = merge_rows(adapted.merge_and_unload())
    torch.testing.assert_close(merged(ids).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "pieces", [[range(3, 20), range(10, 12)], [range(5)], [], [range(45, 50), range(44), range(39, 42)]]
)
@pytest.mark.parametrize("extended", [False, True])
def test_pieces_cut_at_once_have_the_values_and_gradients_of_slices(base, pieces, extended):
    model = extend_rows(base(False), NEW) if extended else base(False)
    head = model.get_output_embeddings() if extended else torch.nn.Embedding(BASE + NEW, 32)
    tables = [head.base.weight, head.new_rows] if extended else [head.weight]
    for table in tables:
        table.requires_grad_()
    parts, whole = cut_head(head, pieces), torch.cat(tables)
    assert len(parts) == len(pieces)
    ours = theirs = 0.0 * whole.sum()
    for piece, found in zip(pieces, parts, strict=True):
        expected, factor = whole[piece.start : piece.stop], torch.randn(len(piece), 32)
        assert torch.equal(torch.cat(found), expected)
        ours, theirs = ours + (torch.cat(found) * factor).sum(), theirs + (expected * factor).sum()
    gradients = zip(*(torch.autograd.grad(total, tables, retain_graph=True) for total in (ours, theirs)), strict=True)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in gradients)
