"""Packed attention keeps documents apart and equals stock sdpa with a dense mask; on CUDA xformers must do the same."""

import inspect
import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.campaigns import examples
from unimodal.model import attention
from unimodal.model.attention import (
    Packing,
    attend_by_torch,
    attend_by_xformers,
    attend_packed,
    find_xformers_problem,
    register_attention,
    set_attention,
)


def positions_of(lengths):
    return torch.cat([torch.arange(n) for n in lengths])


def dense_attention(query, key, value, position_ids):
    """query [B, H, N, D], key and value [B, K, N, D]: one softmax at a time, written out."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    segment = (position_ids == 0).long().cumsum(1)
    allowed = (segment[:, :, None] == segment[:, None, :]) & torch.ones(query.shape[2], query.shape[2]).tril().bool()
    scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
    return (scores.masked_fill(~allowed[:, None], -torch.inf).softmax(-1) @ value).transpose(1, 2)


@given(st.data())
def test_varlen_equals_dense_for_any_packing_and_grouping(data):
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=12))
    heads, groups = data.draw(st.sampled_from([(4, 4), (4, 2), (3, 1)]))
    positions = positions_of(lengths)[None]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    query, key, value = (torch.randn(1, n, positions.shape[1], 8, generator=generator) for n in (heads, groups, groups))
    out = attend_packed(query, key, value, Packing.from_position_ids(positions))
    torch.testing.assert_close(out, dense_attention(query, key, value, positions), rtol=1e-5, atol=1e-5)


def test_gradients_equal_dense():
    positions = torch.stack([positions_of([5, 1, 9, 30]), positions_of([45])])
    inputs = [torch.randn(2, n, 45, 8, dtype=torch.float64, requires_grad=True) for n in (4, 2, 2)]
    weights = torch.randn(2, 45, 4, 8, dtype=torch.float64)
    packed = torch.autograd.grad((attend_packed(*inputs, Packing.from_position_ids(positions)) * weights).sum(), inputs)
    dense = torch.autograd.grad((dense_attention(*inputs, positions) * weights).sum(), inputs)
    for a, b in zip(packed, dense, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("longest", [0, 40, 512])
def test_half_precision_is_near_to_exact_by_products_and_by_the_kernel(monkeypatch, longest, autocast):
    """longest 0: all by sdpa's kernel, 40: some, 512: none; outputs and gradients against float64."""
    kernel, seen = F.scaled_dot_product_attention, []
    monkeypatch.setattr(attention, "LONGEST_DENSE", longest)
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, *rest, **more: seen.append(q.shape[2]) or kernel(q, *rest, **more)
    )
    positions = torch.stack([positions_of([1, 7, 30, 90]), positions_of([128])])
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, n, 128, 32, generator=generator).mul_(2).bfloat16() for n in (4, 2, 2)]
    weights = torch.randn(2, 128, 4, 32, generator=generator)
    found = []
    for dtype, way in ((torch.bfloat16, attend_packed), (torch.float64, None)):
        given = [x.to(dtype).requires_grad_() for x in inputs]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and way is not None):
            out = (
                way(*given, Packing.from_position_ids(positions))
                if way is not None
                else dense_attention(*given, positions)
            )
        assert out.dtype == dtype
        found.append([out, *torch.autograd.grad((out * weights.to(dtype)).sum(), given)])
    assert all(length > longest for length in seen) and len(seen) == {0: 4, 40: 2, 512: 0}[longest]
    for half, exact in zip(*found, strict=True):
        assert float((half.detach().double() - exact.detach()).norm() / exact.detach().norm()) < 0.01


def test_packing_reads_boundaries_from_positions():
    packing = Packing.from_position_ids(torch.tensor([[0, 1, 2, 0, 1, 0], [7, 8, 9, 10, 0, 1]]))
    assert packing.lengths == (3, 2, 1, 4, 2)  # a row may begin in the middle of a document
    assert packing.cu_seqlens.tolist() == [0, 3, 5, 6, 10, 12]
    assert packing.cu_seqlens.dtype == torch.int32


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_buckets_hold_every_token_once_with_little_padding(lengths):
    packing = Packing(tuple(lengths))
    tokens = torch.cat([index[valid] for index, valid in packing.bucket_documents()])
    assert sorted(tokens.tolist()) == list(range(sum(lengths)))
    for index, valid in packing.bucket_documents():
        shortest = int(valid.sum(1).min())
        assert index.shape[1] <= max(shortest * 1.25, shortest + 8)


def test_a_packing_of_another_batch_is_refused():
    x = torch.zeros(1, 1, 4, 2)
    with pytest.raises(ValueError, match="covers 5 tokens but the batch has 1 x 4"):
        attend_packed(x, x, x, Packing((5,)))


def test_both_kernels_have_one_signature():
    """The varlen path that runs here is the one that xformers runs in on CUDA: same arguments, same shapes."""
    assert inspect.signature(attend_by_torch) == inspect.signature(attend_by_xformers)


def test_xformers_mask_holds_the_documents():
    """Its own materialised mask, which needs no CUDA, is ours."""
    pytest.importorskip("xformers")
    lengths = (3, 1, 4)
    bias = Packing(lengths).make_xformers_bias().materialize((8, 8))
    segment = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    allowed = (segment[:, None] == segment) & torch.ones(8, 8).tril().bool()
    assert torch.equal(bias == 0, allowed)
    assert bool(torch.isneginf(bias[~allowed]).all())


# ---- through a model


@pytest.fixture
def packed_rows(vocabulary):
    positions = torch.stack([positions_of([11, 1, 12]), positions_of([20, 4])])
    return torch.randint(0, vocabulary.size, positions.shape), positions


@pytest.mark.parametrize("explicit", [True, False])
def test_varlen_model_equals_sdpa_and_every_document_alone(make_model, packed_rows, explicit):
    ids, positions = packed_rows
    model = make_model()
    dense = model(ids, position_ids=positions).logits  # stock: transformers sees the resets and builds a dense mask
    assert set_attention(model, "varlen") == "varlen"
    kwargs = {"packing": Packing.from_position_ids(positions)} if explicit else {}
    packed = model(ids, position_ids=positions, **kwargs).logits
    torch.testing.assert_close(packed, dense, rtol=1e-5, atol=1e-5)
    alone = model(ids[:1, 12:24]).logits
    torch.testing.assert_close(packed[:1, 12:24], alone, rtol=1e-5, atol=1e-5)


def test_no_document_sees_another(make_model, packed_rows, vocabulary):
    """Changing one document leaves the others bit for bit; joined to one document they do change."""
    ids, positions = packed_rows
    model = make_model()
    set_attention(model, "varlen")
    changed = ids.clone()
    changed[0, :11] = (changed[0, :11] + 1) % vocabulary.size
    before, after = (model(x, position_ids=positions).logits for x in (ids, changed))
    assert not torch.equal(before[0, :11], after[0, :11])
    assert torch.equal(before[0, 11:], after[0, 11:])
    assert torch.equal(before[1], after[1])
    joined = torch.arange(24)[None]
    leak = model(ids[:1], position_ids=joined).logits - model(changed[:1], position_ids=joined).logits
    assert float(leak[0, 11:].detach().abs().max()) > 1e-3


@pytest.mark.parametrize("use_cache", [True, False])
def test_padding_masks_and_caches_fall_back_to_the_stock_mask(make_model, vocabulary, use_cache):
    """The trap: without a registered mask function transformers would hand over no mask and read the padding."""
    model = make_model()
    set_attention(model, "varlen")
    ids = torch.randint(0, vocabulary.size, (1, 9))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), ids], 1)
    mask = torch.cat([torch.zeros(1, 3), torch.ones(1, 9)], 1).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = model(ids).logits
    if not use_cache:
        out = model(padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
    else:
        parts, cache = [], None
        for begin, end in ((0, 6), (6, 11), (11, 12)):
            step = model(
                padded[:, begin:end],
                attention_mask=mask[:, :end],
                position_ids=positions[:, begin:end],
                past_key_values=cache,
                use_cache=True,
            )
            cache = step.past_key_values
            parts.append(step.logits)
        out = torch.cat(parts, 1)[:, 3:]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_cached_chunks_without_a_mask_are_aligned_bottom_right(make_model, vocabulary):
    model = make_model()
    set_attention(model, "varlen")
    ids = torch.randint(0, vocabulary.size, (2, 10))
    first = model(ids[:, :4], use_cache=True)
    second = model(ids[:, 4:], past_key_values=first.past_key_values, use_cache=True)
    both = torch.cat([first.logits, second.logits], 1)
    torch.testing.assert_close(both, model(ids).logits, rtol=1e-5, atol=1e-5)


def test_the_choice_is_not_saved_with_the_model(make_model, tmp_path):
    model = make_model()
    set_attention(model, "varlen")
    model.config.save_pretrained(tmp_path)
    assert "varlen" not in (tmp_path / "config.json").read_text()
    assert "vocab_size" in json.loads((tmp_path / "config.json").read_text())


def test_xformers_without_cuda_is_refused_and_auto_goes_on(make_model):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert "no CPU operator" in find_xformers_problem()
    with pytest.raises(ValueError, match="xformers.*use 'auto'"):
        set_attention(make_model(), "xformers")
    assert set_attention(make_model(), "auto") == "varlen"


# ---- on CUDA


@pytest.mark.cuda
@examples(10)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=8), st.sampled_from([(4, 4), (4, 2)]))
def test_xformers_equals_varlen_on_cuda(lengths, heads):
    if find_xformers_problem():
        pytest.skip(find_xformers_problem())
    packing = Packing(tuple(lengths), torch.device("cuda"))
    total = sum(lengths)
    inputs = [torch.randn(1, n, total, 32, device="cuda", requires_grad=True) for n in (heads[0], heads[1], heads[1])]
    outs = [attend_packed(*inputs, packing, kernel=k) for k in (attend_by_xformers, attend_by_torch)]
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(out.square().sum(), inputs) for out in outs]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.cuda
def test_xformers_model_equals_sdpa_on_cuda(make_model, packed_rows):
    if find_xformers_problem():
        pytest.skip(find_xformers_problem())
    ids, positions = (x.cuda() for x in packed_rows)
    model = make_model().cuda()
    dense = model(ids, position_ids=positions).logits
    register_attention()
    assert set_attention(model) == "xformers"
    torch.testing.assert_close(model(ids, position_ids=positions).logits, dense, rtol=1e-5, atol=1e-5)
