"""Methods that shorten words too: FrugalPrompt and token merging for code, each against its rule written out."""

import pytest
import torch

from tests.compression.test_methods import planned
from unimodal.compression import Span
from unimodal.compression.running.spans import find_word_spans
from unimodal.compression.tokens.code_merging import CodeMerging, find_unit_starts
from unimodal.compression.tokens.frugal_prompt import FrugalPrompt

METHODS = [FrugalPrompt(0.5, scope="prompt"), CodeMerging(0.5, scope="prompt")]


def test_runs_of_words_end_where_something_else_stands():
    words = torch.tensor([[0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 1, 0]]).bool()
    valid = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]).bool()
    found = [(span.row, span.columns, span.end) for span in find_word_spans(words, valid)]
    assert found == [(0, (1, 2), 3), (0, (4,), 5), (1, (2, 3, 4), 5)]  # the last token of a row is in none


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_words_are_shortened_and_rows_are_what_they_are_alone(method, model, vocabulary, prompt, prompts, read):
    rows = [prompt([3, 4, 5, 6, 7, 8]), prompts[0], [3, 4, 5, 6, 7]]
    with torch.no_grad(), type(method)(1.0, scope="prompt")(model, vocabulary):
        whole = read(model, rows, [7])
    assert torch.equal(whole, read(model, rows, [7]))
    with method(model, vocabulary) as session:
        together = read(model, rows, [7])
        assert session.stats.tokens_before == 6 + 2 + 16 + 11 + 1 + 4  # of the last row all words but the last
        assert session.stats.tokens_after == 3 + 1 + 8 + 6 + 1 + 2
        for row, found in zip(rows, together, strict=True):
            assert torch.allclose(read(model, [row], [7])[0], found, atol=2e-5)
    assert not torch.allclose(together[0], whole[0], atol=1e-3)


@torch.no_grad()
def test_frugal_prompt_rolls_out_what_heads_bring(make_model, vocabulary, prompts):
    """Attention times the length of the value, half of each token kept, layer upon layer, seen from the last token."""
    model, ids = make_model(num_layers=4), torch.tensor([prompts[1]])
    seen = {}
    for number in (0, 1):
        layer = model.model.layers[number].self_attn
        layer.v_proj.register_forward_hook(lambda _, __, out, number=number: seen.update({number: out}))
    model.set_attn_implementation("eager")
    attention = model(ids, output_attentions=True).attentions
    flow = torch.eye(ids.shape[1])
    for number in (0, 1):
        lengths = seen[number][0].unflatten(-1, (2, -1)).norm(dim=-1).T.repeat_interleave(2, 0)  # [heads, N]
        brought = (attention[number][0] * lengths[:, None]).sum(0)
        flow = 0.5 * flow + 0.5 * (brought / brought.sum(-1, keepdim=True)) @ flow
    start = prompts[1].index(vocabulary.get_start_id("image")) + 1
    best = flow[-1, start : start + 16].topk(6).indices + start
    with FrugalPrompt(0.4)(model, vocabulary) as session:
        model(ids)
    assert session.kept == [sorted(best.tolist())]


def test_units_are_averaged_in_the_place_of_their_last_token():
    starts = find_unit_starts({1: " get", 2: "_user", 3: "Name", 4: "(", 5: " x", 6: ")"})
    assert starts == {1, 4, 5, 6}
    hidden = torch.randn(1, 6, 8)
    span = Span.from_states(hidden, 6, modality="text")
    span.ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    method = CodeMerging(0.9, scope="prompt", starts=starts)
    assert method.count_kept([span], 4) == [4] and CodeMerging(1.0, starts=starts).count_kept([span], 4) == [6]
    span.count = 4
    plan = method.plan(hidden, span)
    assert plan.index[0].tolist() == [2, 3, 4, 5]
    assert torch.allclose((plan.merge @ hidden)[0, 0], hidden[0, :3].mean(0), atol=1e-6)
    codes = torch.eye(8)[[0, 0, 0, 3, 3, 5]][None]  # of media, neighbours that are alike
    plan = planned(CodeMerging(0.5), codes, 3)
    assert plan.index[0].tolist() == [2, 4, 5] and torch.equal(plan.merge @ codes, torch.eye(8)[[0, 3, 5]][None])
