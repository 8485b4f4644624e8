"""Attention to the rubric and to one's own row, without the scores that a mask would throw away.

A pack of L tokens has L^2 pairs, of which the mask of `slm_judge.backends.packing` keeps few: a row
of T tokens behind a rubric of P attends to P + T of them. Here the rubric's tokens attend among
themselves, all rows to the rubric at once, and rows of about the same length to themselves, padded
to the longest. The parts are put together by their softmax denominators, as FlashAttention puts
blocks together (Dao et al., 2022, arXiv 2205.14135).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "slm_judge_rows"
# Rows of a group are at most this much longer than its shortest: padding costs, groups cost calls.
_RATIO = 1.4

# What an architecture may add to the scores, and is not known here.
_FURTHER = ("softcap", "position_bias", "s_aux", "sinks")

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class _Group:
    """R rows, padded at their ends to T tokens."""

    shape: tuple[int, int]
    """R and T."""
    gather: torch.Tensor
    """R * T positions in the pack; padding repeats some position."""
    padding: torch.Tensor
    """R x 1 x T, true at padding."""
    kept: torch.Tensor
    """Which of the R * T are no padding."""
    positions: torch.Tensor
    """Of those, in the pack."""


@dataclass(frozen=True)
class Rows:
    """Where the rows of a pack are."""

    prefix: int
    """Tokens of the rubric, at least one."""
    groups: Sequence[_Group]


def rows_of(lengths: Sequence[int], prefix: int) -> Rows | None:
    """Describe a pack; None where its rows share nothing.

    Args:
        lengths: tokens of each row, in order.
        prefix: tokens of the rubric before them.
    """
    if not prefix:
        return None
    starts = torch.tensor([0, *lengths]).cumsum(0)[:-1] + prefix
    end = prefix + sum(lengths)
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    groups: list[list[int]] = []
    for row in order:
        if not groups or lengths[row] > _RATIO * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(row)
    return Rows(prefix, [_group(lengths, starts, end, group) for group in groups])


def _group(lengths: Sequence[int], starts: torch.Tensor, end: int, group: list[int]) -> _Group:
    longest = lengths[group[-1]]
    steps = torch.arange(longest)
    positions = (starts[group][:, None] + steps).clamp(max=end - 1)
    real = steps < torch.tensor([lengths[row] for row in group])[:, None]
    kept = real.flatten().nonzero().flatten()
    gather = positions.flatten()
    return _Group((len(group), longest), gather, ~real[:, None], kept, gather[kept])


def use(model: Any) -> None:
    """Let a model on a CPU attend in this way where its forward pass is given `rows`."""
    AttentionInterface.register(NAME, _attention)
    model.set_attn_implementation(NAME)


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, scaling: float | None = None,
    rows: Rows | None = None, **options: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention as transformers calls it; by the mask where `rows` did not come through."""
    plain = query.shape[-1] == value.shape[-1] and not options.get("dropout")
    if rows is None or not plain or any(options.get(name) is not None for name in _FURTHER):
        options["scaling"] = scaling
        found, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return found, None
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    found = _RowAttention.apply(query, key, value, rows, scale)
    return found.transpose(1, 2), None


class _RowAttention(torch.autograd.Function):
    """Queries, keys and values are 1 x heads x L x channels."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        rows: Rows, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        end = rows.prefix
        rubric, of_rubric = _flash(*_until(end, query, key, value), 0.0, True, scale=scale)
        shared, of_shared = _flash(
            query[:, :, end:], *_until(end, key, value), 0.0, False, scale=scale
        )
        own, of_own = torch.empty_like(shared), torch.empty_like(of_shared)
        for group in rows.groups:
            parts = (_padded(x, group) for x in (query, key, value))
            found, of_found = _flash(*parts, 0.0, True, scale=scale)
            own[0, :, group.positions - end] = _unpadded(found, group)
            of_own[0, :, group.positions - end] = _unpadded(of_found, group)
        denominators = torch.logaddexp(of_shared, of_own)
        shared *= (of_shared - denominators).exp_()[..., None]
        shared += own.mul_((of_own - denominators).exp_()[..., None])
        output = torch.cat([rubric, shared], dim=2)
        ctx.save_for_backward(query, key, value, output, of_rubric, denominators)
        ctx.rows, ctx.scale = rows, scale
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        # A block of keys gets its share of the gradients from the whole output and denominator.
        query, key, value, output, of_rubric, denominators = ctx.saved_tensors
        end, scale = ctx.rows.prefix, ctx.scale
        tensors = (gradient, query, key, value, output)
        first = _flash_backward(*_until(end, *tensors), of_rubric, 0.0, True, scale=scale)
        shared = _flash_backward(
            gradient[:, :, end:], query[:, :, end:], *_until(end, key, value),
            output[:, :, end:], denominators, 0.0, False, scale=scale,
        )  # fmt: skip
        found = tuple(torch.empty_like(x) for x in (query, key, value))
        found[0][:, :, :end], found[0][:, :, end:] = first[0], shared[0]
        for whole, a, b in zip(found[1:], first[1:], shared[1:], strict=True):
            torch.add(a, b, out=whole[:, :, :end])
        whole_denominators = torch.cat([of_rubric, denominators], dim=2)
        for group in ctx.rows.groups:
            parts = (_padded(x, group) for x in tensors)
            # Padding reads other rows: with this denominator its queries look at nothing.
            of_group = _padded(whole_denominators, group).masked_fill(group.padding, torch.inf)
            own = _flash_backward(*parts, of_group, 0.0, True, scale=scale)
            found[0][0, :, group.positions] += _unpadded(own[0], group)
            for whole, part in zip(found[1:], own[1:], strict=True):
                whole[0, :, group.positions] = _unpadded(part, group)
        return *found, None, None


def _until(end: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(x[:, :, :end] for x in tensors)


def _padded(x: torch.Tensor, group: _Group) -> torch.Tensor:
    """R x heads x T x ..., from 1 x heads x L x ..."""
    return x[0].index_select(1, group.gather).unflatten(1, group.shape).transpose(0, 1)


def _unpadded(x: torch.Tensor, group: _Group) -> torch.Tensor:
    """Heads x kept x ..., from R x heads x T x ..."""
    return x.transpose(0, 1).flatten(1, 2).index_select(1, group.kept)
