"""The product of an adapted linear layer in one step of autograd, for training.

peft runs the base layer, the two small matrices, a factor and a sum as operations of their own, and casts the input to
the adapter's float32 and back: seven passes over arrays as large as the layer's output, which on a processor cost more
than the products. Here the adapter is added into the output of the base's product, and into the gradient of its input:

    y = x Wᵀ + (x Aᵀ) (s B)ᵀ        ∂x = ∂y W + (∂y s B) A

W is frozen, so its gradient is never made. peft's modules and parameters stay what they are; layers that need more than
this (DoRA, dropout, quantized or transposed weights, adapters that are merged, switched off or several, hooks on a
part) run peft's own forward, and so does a call without gradients.

Shapes: T tokens, I and O the widths of the layer's input and output, R the rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


class _LoraProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        """x [T, I], weight [O, I] and bias [O] of one precision; a [R, I], b [O, R] of any → [T, O]."""
        down, up = a.to(x.dtype), (b * scale).to(x.dtype)
        inner = x @ down.T  # [T, R]
        out = nn.functional.linear(x, weight, bias).addmm_(inner, up.T)
        ctx.save_for_backward(x, weight, inner, down, up)
        ctx.scale, ctx.dtypes = scale, (a.dtype, b.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        [gradient] = gradients
        x, weight, inner, down, up = ctx.saved_tensors
        wants_x, _, _, wants_a, wants_b, _ = ctx.needs_input_grad
        below = gradient @ up  # [T, R]
        of_x = (gradient @ weight).addmm_(below, down) if wants_x else None
        of_a = (below.T @ x).to(ctx.dtypes[0]) if wants_a else None
        of_b = (gradient.T @ inner).to(ctx.dtypes[1]).mul_(ctx.scale) if wants_b else None
        return of_x, None, None, of_a, of_b, None


def multiply_adapted(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """x [..., I] → x weightᵀ + bias + scale (x aᵀ) bᵀ, [..., O], in the precision of autocast where it is on.

    weight [O, I] and bias [O] get no gradient; a [R, I] and b [O, R] do.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    with torch.autocast(kind, enabled=False):
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        bias = None if bias is None else bias.to(dtype)
        out = _LoraProduct.apply(flat, weight.to(dtype), bias, a, b, scale)
    return out.view(*x.shape[:-1], out.shape[-1])


def accelerate_lora(model: nn.Module, adapter: str) -> int:
    """Let the adapted layers of a model that can do so run `multiply_adapted`; → how many can.

    adapter: the name under which peft keeps them. A layer decides again at every call, so that adapters may be switched
    off, merged or joined by others later.
    """
    from peft.tuners.lora.layer import Linear

    found = 0
    for layer in model.modules():
        if type(layer) is Linear and _is_plain(layer, adapter):
            layer.forward = _Forward(layer, adapter)
            found += 1
    return found


def _is_plain(layer: nn.Module, adapter: str) -> bool:
    """Whether this layer of peft is a frozen linear map and two small matrices, and nothing else."""
    base = layer.base_layer
    return (
        isinstance(base, nn.Linear)
        and base.weight.is_floating_point()
        and not layer.fan_in_fan_out
        and not layer.use_dora.get(adapter, False)
        and not getattr(layer, "lora_variant", {})
        and not layer.lora_bias.get(adapter, False)
        and isinstance(layer.lora_dropout[adapter], nn.Identity)
    )


def _is_watched(layer: nn.Module) -> bool:
    """Whether somebody waits for this layer to be called."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)


class _Forward:
    """The forward of one layer, in place of its class's own."""

    def __init__(self, layer: nn.Module, adapter: str) -> None:
        self._layer, self._adapter = layer, adapter

    def __call__(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        layer, name = self._layer, self._adapter
        base = layer.base_layer
        if (
            not torch.is_grad_enabled()
            or args
            or kwargs
            or layer.merged
            or layer.disable_adapters
            or layer.active_adapters != [name]
            or base.weight.requires_grad
            or not x.is_floating_point()
            or any(_is_watched(part) for part in (base, layer.lora_A[name], layer.lora_B[name]))
        ):
            return type(layer).forward(layer, x, *args, **kwargs)
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        return multiply_adapted(x, base.weight, base.bias, a, b, layer.scaling[name])
