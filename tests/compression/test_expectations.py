"""What a method is measured by and learns from: the rows that could come next, and no others."""

import pytest
import torch
import torch.nn.functional as F

from unimodal.compression import DivPrune
from unimodal.compression.distillation import compute_distillation_loss
from unimodal.compression.expectations import compute_expectations, find_following, group_rows
from unimodal.compression.tokens.cacovid import expect, measure_rows
from unimodal.compression.tokens.calibration import measure_drift


def test_every_row_belongs_to_one_kind(vocabulary):
    kinds = group_rows(vocabulary)
    assert len(kinds) == vocabulary.size and not kinds[: vocabulary.text_size].any()
    for number, block in enumerate(vocabulary.blocks, start=1):
        assert (kinds == number).nonzero()[:, 0].tolist() == list(block.rows)
    assert (kinds == 0).sum() == vocabulary.size - sum(block.size for block in vocabulary.blocks)


def test_they_are_a_softmax_over_the_kind_of_what_follows(vocabulary):
    torch.manual_seed(0)
    following = torch.tensor([vocabulary.text_size - 1, *[block.start for block in vocabulary.blocks],
                              vocabulary.get_control_id("<|end_of_turn|>")])  # fmt: skip
    logits, kinds = torch.randn(len(following), vocabulary.size + 3) * 5, group_rows(vocabulary)  # rows of padding too
    found = compute_expectations(logits, following, vocabulary)
    for row, scores, logs in zip(following.tolist(), logits, found, strict=True):
        rows = (kinds == kinds[row]).nonzero()[:, 0]
        torch.testing.assert_close(logs[rows], scores[rows].log_softmax(0))
        assert float(logs.exp().sum()) == pytest.approx(1, abs=1e-5) and not logs.exp()[kinds != kinds[row]].any()
    torch.testing.assert_close(compute_expectations(logits, following, None), logits.log_softmax(-1))
    assert find_following(torch.tensor([[4, 5, 6]])).tolist() == [[5, 6, 6]]


def test_rows_that_cannot_come_change_no_measure(model, vocabulary, prompts, monkeypatch):
    ids = torch.tensor([prompts[1]])
    valid = torch.ones_like(ids, dtype=torch.bool)
    learnt = F.pad(torch.ones(1, 1, dtype=torch.bool), (ids.shape[1] - 1, 0))
    assert int(ids[0, -1]) < vocabulary.text_size or vocabulary.find_block(int(ids[0, -1])) is None
    method, kinds, forward, calls = DivPrune(0.3), group_rows(vocabulary), type(model).forward, []

    def measure():
        whole = expect(model, vocabulary, ids, valid)
        with method(model, vocabulary):
            found = expect(model, vocabulary, ids, valid)
        return [float(measure_rows(whole, found, learnt)), measure_drift(method, model, vocabulary, [prompts[1]]),
                float(compute_distillation_loss(method, model, vocabulary, ids, valid, learnt)[0])]  # fmt: skip

    def change(self, *args, **given):
        output = forward(self, *args, **given)
        calls.append(1)
        noise = torch.randn(output.logits.shape[-1], generator=torch.Generator().manual_seed(len(calls))) * 30
        noise[: len(kinds)][kinds == 0] = 0
        output.logits = output.logits + noise
        return output

    with torch.no_grad():
        before = measure()
        monkeypatch.setattr(type(model), "forward", change)
        after = measure()
    assert calls and before == pytest.approx(after, abs=1e-4) and min(before) > 0
