"""New rows that share what they learn: nothing changes at the start, neighbours move, what is saved are plain rows."""

import pytest
import torch
from torch.nn.utils import parametrize
from transformers import LlamaConfig, LlamaForCausalLM

from unimodal.model.rows import extend_rows, get_new_rows, merge_rows, read_head_rows, share_rows

BASE, NEW, WIDTH = 20, 12, 8
FEATURES = torch.nn.functional.one_hot(torch.arange(8) // 4, 2).float()  # codes 0–3 alike, 4–7 alike


def make(tied: bool):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=BASE, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=tied, initializer_range=0.5,
    )  # fmt: skip
    model = extend_rows(LlamaForCausalLM(config).eval(), NEW)
    for rows in get_new_rows(model).values():
        rows.requires_grad_(True)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_sharing_changes_nothing_at_the_start_and_neighbours_move_together(tied):
    model = make(tied)
    ids = torch.tensor([[1, 22, 25, 31]])
    before_rows = {side: rows.detach().clone() for side, rows in get_new_rows(model).items()}
    before = model(ids).logits.detach()
    share_rows(model, {range(BASE + 2, BASE + 10): FEATURES})
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=0)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    with parametrize.cached():
        hidden = model.get_input_embeddings()(torch.tensor([[BASE + 2]]))  # code 0, read
        scored = read_head_rows(model.get_output_embeddings(), range(BASE + 6, BASE + 7))  # code 4, written
        (hidden.sum() + 3 * scored.sum()).backward()
    optimizer.step()
    moved = {side: (rows - before_rows[side]).detach().abs().sum(1) for side, rows in get_new_rows(model).items()}
    read, written = moved["input"], moved.get("output", moved["input"])
    assert bool((read[2:6] > 0).all()) and bool((written[6:10] > 0).all())
    if not tied:  # tied, code 4 pulls at them from the other side
        assert float(read[2]) > float(read[3])  # the code itself moves more than those like it
    for side in moved.values():
        assert float(side[:2].sum()) == float(side[10:].sum()) == 0  # rows of other blocks stay


@pytest.mark.parametrize("tied", [True, False])
def test_shared_rows_merge_to_a_stock_model(tied):
    model = make(tied)
    share_rows(model, {range(BASE + 2, BASE + 10): FEATURES})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "tables" in name:
                parameter.normal_()
    ids = torch.tensor([[1, 22, 25, 31]])
    expected = model(ids).logits.detach()
    assert expected.shape[-1] == BASE + NEW
    merge_rows(model)
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-5)
    assert not any("parametrizations" in name or "new_rows" in name for name in model.state_dict())


def test_features_must_fit_their_rows():
    with pytest.raises(ValueError, match="8 feature rows do not fit"):
        share_rows(make(True), {range(BASE + 8, BASE + 16): FEATURES})
