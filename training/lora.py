"""PEFT's LoRA layers, with the adapter's share added in place.

PEFT writes the scaled share of the adapter and its sum with the layer's output as tensors of their
own, forward and backward; on a CPU, such passes over memory cost as much as the adapter's sums. On
a GPU, a small base waits for the start of each operation, of which PEFT needs more: it turns what
a layer reads to float32 and back.
"""

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners import lora


class _Adapted(torch.autograd.Function):
    """x W' + scale (x A') B', for a frozen layer W and x of ... x in channels.

    It computes in the type of x; A, B and their gradients are float32.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: torch.Tensor, layer: Any, a: torch.Tensor, b: torch.Tensor, scale: float
    ) -> torch.Tensor:
        rows, a, b = x.flatten(0, -2), a.to(x.dtype), b.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            reduced = rows @ a.T
            output = torch.nn.functional.linear(rows, _weight(layer, x.dtype), layer.bias)
            output.addmm_(reduced, b.T, alpha=scale)
        ctx.save_for_backward(rows, reduced, a, b)
        ctx.layer, ctx.scale, ctx.shape = layer, scale, x.shape
        return output.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        rows, reduced, a, b = ctx.saved_tensors
        gradient = gradient.flatten(0, -2)
        of_reduced = (gradient @ b).mul_(ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ _weight(ctx.layer, gradient.dtype)
            of_x = of_x.addmm_(of_reduced, a).view(ctx.shape)
        of_b = (gradient.T @ reduced).float().mul_(ctx.scale)
        return of_x, None, (of_reduced.T @ rows).float(), of_b, None


def _weight(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """Output x input channels."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return layer.weight  # type: ignore[no-any-return]
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight, state).to(dtype)


def _in_place(layer: Any, x: torch.Tensor) -> bool:
    """Whether one plain adapter is to be added, in the type that the layer computes in."""
    alone = layer.active_adapters == [*layer.lora_A] and len(layer.lora_A) == 1
    if not alone or layer.disable_adapters or layer.merged or layer.lora_variant:
        return False
    (dropout,) = layer.lora_dropout.values()
    drops = layer.training and not isinstance(dropout, torch.nn.Identity)
    base = layer.get_base_layer()
    computes = getattr(base, "compute_dtype", None) or base.weight.dtype
    trained = layer.lora_A[layer.active_adapters[0]].weight.dtype
    return computes == x.dtype and trained == torch.float32 and not drops


class _AddsInPlace:
    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As PEFT's layer."""
        if args or kwargs or not _in_place(self, x):
            return super().forward(x, *args, **kwargs)  # type: ignore[misc, no-any-return]
        (name,) = self.lora_A
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        return _Adapted.apply(x, self.get_base_layer(), a, b, self.scaling[name])


class _Linear(_AddsInPlace, lora.Linear):
    pass


class _Linear4bit(_AddsInPlace, lora.Linear4bit):
    pass


def add_in_place(config: LoraConfig) -> None:
    """Let the adapter of `config`, which stays what it is, be computed in this way."""
    from bitsandbytes.nn import Linear4bit

    # A 4-bit layer is a linear layer too, so it comes first.
    config._register_custom_module({Linear4bit: _Linear4bit, torch.nn.Linear: _Linear})
