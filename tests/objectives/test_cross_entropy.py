"""The chunked loss equals the plain one in value and gradient, and never holds all logits."""

import pytest
import torch
import torch.nn.functional as F

from unimodal.objectives.cross_entropy import compute_chunked_cross_entropy


def problem(dtype=torch.float32, num=50, width=16, sizes=(40, 7, 1)):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(num, width, generator=g, dtype=dtype).requires_grad_()
    parts = [torch.randn(size, width, generator=g, dtype=dtype).requires_grad_() for size in sizes]
    index = torch.randint(0, sum(sizes), (num,), generator=g)
    return hidden, parts, index


def plain(hidden, parts, index):
    logits = (
        F.linear(hidden, torch.cat(parts)).float() if hidden.dtype != torch.float64 else hidden @ torch.cat(parts).T
    )
    return F.cross_entropy(logits, index, reduction="none"), logits.logsumexp(-1)


@pytest.mark.parametrize("max_logits", [1, 48, 48 * 7, 1 << 20])
@pytest.mark.parametrize("frozen", [(), (0,), (0, 1, 2)])
def test_value_and_gradient_equal_the_plain_ones(max_logits, frozen):
    results = []
    for chunked in (False, True):
        hidden, parts, index = problem()
        for i in frozen:
            parts[i].requires_grad_(False)
        if not chunked:
            loss, lse = plain(hidden, parts, index)
        else:
            loss, lse = compute_chunked_cross_entropy(hidden, index, parts, max_logits)
        weights = torch.linspace(0, 2, len(loss))
        ((loss + 0.01 * lse.square()) * weights).sum().backward()
        results.append((loss.detach(), lse.detach(), hidden.grad, *(p.grad for p in parts)))
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_gradcheck_in_double():
    hidden, parts, index = problem(torch.float64, num=5, width=3, sizes=(4, 2))
    assert torch.autograd.gradcheck(
        lambda h, *p: compute_chunked_cross_entropy(h, index[:5] % 6, p, 12), (hidden, *parts)
    )


@pytest.mark.parametrize("num", [0, 1, 50])
@pytest.mark.parametrize("sizes", [(40, 0), (0, 40), (40, 0, 7)])
def test_parts_without_rows_and_batches_without_positions(num, sizes):
    hidden, parts, index = problem(num=num, sizes=sizes)
    loss, _ = compute_chunked_cross_entropy(hidden, index, parts, 200)
    loss.sum().backward()
    assert hidden.grad.shape == hidden.shape and [p.grad.shape for p in parts] == [p.shape for p in parts]


@pytest.mark.parametrize("max_logits", [48 * 7, 1 << 20])
def test_backward_may_be_called_again_and_is_differentiated_once(max_logits):
    hidden, parts, index = problem()
    loss, _ = compute_chunked_cross_entropy(hidden, index, parts, max_logits)
    first = torch.autograd.grad(loss.sum(), (hidden, *parts), retain_graph=True)
    second = torch.autograd.grad(loss.sum(), (hidden, *parts), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    again = torch.autograd.grad(loss.square().sum(), hidden, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        again.sum().backward()


def test_nothing_is_kept_for_a_backward_that_does_not_come():
    hidden, parts, index = problem()
    with torch.no_grad():
        assert compute_chunked_cross_entropy(hidden, index, parts)[0].grad_fn is None
    loss, _ = compute_chunked_cross_entropy(hidden, index, parts)
    node = loss.grad_fn
    assert {tuple(t.shape) for t in node.saved_tensors if t is not None} >= {(50, 40), (50, 16)}
    loss.sum().backward()
    with pytest.raises(RuntimeError, match="freed"):
        _ = node.saved_tensors


def test_the_logits_of_all_positions_never_exist():
    """The largest tensor that is made has at most `max_logits` elements (the parts themselves aside)."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    hidden, parts, index = problem(num=400, width=4, sizes=(900, 100))
    with Watch():
        loss, _ = compute_chunked_cross_entropy(hidden, index % 1000, parts, max_logits=20_000)
        loss.sum().backward()
    assert largest <= 20_000 < 400 * 1000


def test_under_autocast_the_products_run_in_half_precision():
    hidden, parts, index = problem()
    exact, _ = compute_chunked_cross_entropy(hidden, index, parts)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = compute_chunked_cross_entropy(hidden, index, parts, max_logits=100)
    loss.sum().backward()
    assert loss.dtype == torch.float32 and hidden.grad.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0, atol=0.1)
    assert not torch.equal(loss, exact)
