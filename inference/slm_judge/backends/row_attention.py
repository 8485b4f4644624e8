"""Attention to the rubric and to one's own row, without the scores that a mask would throw away.

A pack of L tokens has L^2 pairs, of which the mask of `slm_judge.backends.packing` keeps few: a row
of T tokens behind a rubric of P attends to P + T of them. Here the rubric's tokens attend among
themselves, all rows to the rubric at once, and each row to itself: on a CPU together with rows of
about its length, padded to the longest, on a CUDA GPU by kernels for rows of any length. The parts
are put together by their softmax denominators, as FlashAttention puts blocks together (Dao et al.,
2022, arXiv 2205.14135).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from slm_judge.artefact.device import usual_width
from slm_judge.errors import ModelError
from slm_judge.prompt.readers import EncodedPrompt

from . import out_of_memory
from .packing import Pack, pack

NAME = "slm_judge_rows"
# Rows of a group are at most this much longer than its shortest: padding costs, groups cost calls.
_RATIO = 1.4

# What an architecture may add to the scores, and is not known here.
_FURTHER = ("softcap", "position_bias", "s_aux", "sinks")

# Names in configurations of what would be dropped from attention in training.
_DROPOUT = ("attention_dropout", "attn_pdrop", "attn_dropout", "attention_probs_dropout_prob")

# How near the answers that `use_where_right` tries must be: 16 bits round to 0.004 a step.
_CLOSE = {2: 0.1, 4: 0.001}
"""Bytes of a number -> share of the answers' size."""

# From so many queries on, PyTorch's kernel for CPUs multiplies blocks of 256, before of 32 or 64.
_LARGE_BLOCKS = 768


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
    """Where the rows of a pack are: behind the rubric, one after the other."""

    prefix: int
    """Tokens of the rubric, of the pack or in the cache; 0 where the rows share none."""
    lengths: Sequence[int]
    """Tokens of each row."""
    rubric: "RubricCache | None" = field(default=None, repr=False)
    """Where a GPU reads the rubric's keys and values, if they are not the pack's."""
    _made: dict[torch.device, "list[_Part]"] = field(default_factory=dict, repr=False)

    @cached_property
    def groups(self) -> Sequence[_Group]:
        """The rows by their lengths, for a CPU."""
        lengths = self.lengths
        starts = torch.tensor([0, *lengths]).cumsum(0)[:-1] + self.prefix
        end = self.prefix + sum(lengths)
        order = sorted(range(len(lengths)), key=lambda row: lengths[row])
        groups: list[list[int]] = []
        for row in order:
            if not groups or lengths[row] > _RATIO * lengths[groups[-1][0]]:
                groups.append([])
            groups[-1].append(row)
        return [_group(lengths, starts, end, group) for group in groups]

    def parts(self, device: torch.device) -> "list[_Part]":
        """What a GPU computes: see `_parts`, made once for all layers."""
        if device not in self._made:
            self._made[device] = _parts(self, device)
        return self._made[device]


def _group(lengths: Sequence[int], starts: torch.Tensor, end: int, group: list[int]) -> _Group:
    longest = lengths[group[-1]]
    steps = torch.arange(longest)
    positions = (starts[group][:, None] + steps).clamp(max=end - 1)
    real = steps < torch.tensor([lengths[row] for row in group])[:, None]
    kept = real.flatten().nonzero().flatten()
    gather = positions.flatten()
    return _Group((len(group), longest), gather, ~real[:, None], kept, gather[kept])


def use(model: Any) -> None:
    """Let a model attend in this way where its forward pass is given `rows`."""
    AttentionInterface.register(NAME, _registered[-1])
    AttentionMaskInterface.register(NAME, sdpa_mask)  # for passes that are not told of rows
    model.set_attn_implementation(NAME)


def use_where_right(model: Any, dtype: torch.dtype, training: bool = False) -> bool:
    """As `use`, where this device gains by it and the model comes to the same; else False.

    On a CUDA GPU that has the kernels, in 16 bits: a pass then needs no mask. On a CPU in float32,
    beside the mask. Whether `rows` reach every layer, whether the answers are those of the mask,
    and for training whether there are gradients, is tried on two short rows.

    Args:
        model: on its device.
        dtype: in which attention is computed.
        training: whether the passes to come are those of a trainer, under autocast.
    """
    device, config = model.device, model.config.get_text_config()
    if device.type == "cuda":
        # The kernels need Ampere.
        gains = dtype.itemsize == 2 and torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        gains = device.type == "cpu" and dtype == torch.float32
    if not gains or (training and any(getattr(config, name, 0) for name in _DROPOUT)):
        return False
    before, reached = config._attn_implementation, False
    try:
        reached = _reaches(model, dtype, training)
    except Exception as error:  # whatever else it is: by the mask it stays, as it was
        if out_of_memory(error):
            raise
    if not reached:
        model.set_attn_implementation(before)
    return reached


def _reaches(model: Any, dtype: torch.dtype, training: bool) -> bool:
    """Make a model attend by rows; whether all of its layers do, and rightly."""
    device, ids = model.device, [1, 2, 3, 4, 5]
    two = [EncodedPrompt(ids + more, [5]) for more in ([6, 7, 8], [9, 10, 11, 12])]
    tried, close = pack(two, len(ids)), _CLOSE[dtype.itemsize]
    usual = pack_tensors(tried, device) | {"use_cache": False}
    usual["logits_to_keep"] = 0  # all
    calls = _calls.count
    with torch.autocast(device.type, dtype, enabled=training):
        with torch.no_grad():
            wanted = model(**usual).logits.float()
        use(model)
        with torch.set_grad_enabled(training):
            found = model(**usual | told_rows(tried, device)).logits.float()
    calls = _calls.count - calls
    if training:
        found.square().mean().backward()
        model.zero_grad(set_to_none=True)
    near = _near(found.detach(), wanted, close)
    if near and device.type == "cuda" and not training:
        near = _near(_behind_a_cache(model, two, ids), wanted[:, len(ids) :], close)
    return near and calls == model.config.get_text_config().num_hidden_layers


def _near(found: torch.Tensor, wanted: torch.Tensor, close: float) -> bool:
    return bool((found - wanted).norm() < close * wanted.norm())


def _behind_a_cache(model: Any, rows: Sequence[EncodedPrompt], rubric: list[int]) -> torch.Tensor:
    """Logits of rows, the rubric's keys in a cache."""
    device, cache = model.device, RubricCache()
    named = {"cache": cache, "use_cache": True}
    with torch.no_grad():
        model(input_ids=torch.tensor([rubric], device=device), **named)
        cache.full = True
        packed = pack(rows, len(rubric), cached=True)
        given = pack_tensors(packed, device, mask=False) | told_rows(packed, device, cache)
        found: torch.Tensor = model(**given | named | {"logits_to_keep": 0}).logits.float()
    return found


def told_rows(packed: Pack, device: torch.device, cache: Any = None) -> dict[str, Any]:
    """Arguments of a model's forward pass: on a CPU beside the pack's mask, else in its place."""
    rows = {"rows": Rows(packed.prefix, packed.lengths, cache)}
    return rows if device.type == "cpu" else no_mask(device) | rows


class RubricCache(DynamicCache):
    """Keys and values of the rubric. Once `full`, passes over rows add nothing: on a GPU, where
    attention reads them here, putting theirs behind it would be passes over memory.
    """

    full = False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `DynamicCache`, until it is full."""
        if self.full:
            return key_states, value_states
        found: tuple[torch.Tensor, torch.Tensor] = super().update(
            key_states, value_states, *args, **kwargs
        )
        return found


def no_mask(device: torch.device) -> dict[str, Any]:
    """A mask that says nothing, and has the shape that transformers hands on as it is."""
    return {"attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)}


def pack_tensors(packed: Pack, device: Any, mask: bool = True) -> dict[str, Any]:
    """A pack as keyword arguments of a causal language model's forward pass."""
    names = ("input_ids", "position_ids", "logits_to_keep", *(["attention_mask"] if mask else []))
    return {name: torch.as_tensor(getattr(packed, name), device=device) for name in names}


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, scaling: float | None = None,
    rows: Rows | None = None, **options: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention as transformers calls it; by the mask where `rows` did not come through."""
    if rows is None and attention_mask is not None and attention_mask.shape[-1] < key.shape[2]:
        raise ModelError("This model does not tell its attention where rows are.")  # when tried
    plain = query.shape[-1] == value.shape[-1] and not options.get("dropout")
    plain = plain and all(options.get(name) is None for name in _FURTHER)
    if query.is_cuda and rows is not None:
        return _on_gpu(module, query, key, value, rows, scaling, plain), None
    ahead = key.shape[2] - query.shape[2]  # in a cache, without gradients the rubric
    known = not ahead or (rows and ahead == rows.prefix and not torch.is_grad_enabled())
    if rows is None or not rows.prefix or not plain or not known:
        options["scaling"] = scaling
        found, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return found, None
    _calls.count += 1
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    found = _RowAttention.apply(query, key, value, rows, scale)
    return found.transpose(1, 2), None


_registered = [_attention]


def leave_uncompiled() -> None:
    """Attention by rows, and what it reads: lists of lengths, and something else in each layer."""
    if len(_registered) == 1:
        _registered.append(torch.compiler.disable(_attention))
        RubricCache.update = torch.compiler.disable(RubricCache.update)  # type: ignore[method-assign]
    AttentionInterface.register(NAME, _registered[-1])


class _Calls:
    """How often attention was computed by rows."""

    count = 0


_calls = _Calls()


def _on_gpu(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: Rows,
    scaling: float | None, plain: bool,
) -> torch.Tensor:  # fmt: skip
    """1 x L x heads x channels."""
    if not plain:
        raise ModelError("This model's attention is not known here.")  # when it is tried
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = (x.to(dtype) for x in (query, key, value))
    _calls.count += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    if rows.rubric is None:
        return _GpuRowAttention.apply(query, key, value, rows, scale)[None]
    layer = rows.rubric.layers[module.layer_idx]
    of_rubric = layer.keys[0].transpose(0, 1), layer.values[0].transpose(0, 1)
    return _behind_rubric(query, key, value, of_rubric, rows, scale)[None]


def _behind_rubric(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    of_rubric: tuple[torch.Tensor, torch.Tensor], rows: Rows, scale: float,
) -> torch.Tensor:  # fmt: skip
    """Tensors of rows alone, L x heads x channels; keys and values of the rubric elsewhere."""
    *_, shared, own = rows.parts(query.device)
    return _joined(
        *_gpu_flash(shared, query, *of_rubric, scale), *_gpu_flash(own, query, key, value, scale)
    )


def _joined(
    one: torch.Tensor, of_one: torch.Tensor, two: torch.Tensor, of_two: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The outputs of the same queries for two sets of keys, each with its denominators, as one."""
    share = torch.sigmoid(of_two - of_one).T[..., None].to(one.dtype)
    return torch.lerp(one, two, share, out=out)


class _GpuRowAttention(torch.autograd.Function):
    """Queries are L x heads x channels, keys and values as many; the rubric is the first ones."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        rows: Rows, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        *before, own = (
            _gpu_flash(part, query[part.queries], key[part.keys], value[part.keys], scale)
            for part in rows.parts(query.device)
        )
        output, denominators = own
        if before:
            (rubric, of_rubric), shared = before
            output = torch.empty_like(query, memory_format=torch.contiguous_format)
            output[: rows.prefix] = rubric
            _joined(*shared, *own, out=output[rows.prefix :])
            of_rows = torch.logaddexp(shared[1], own[1])
            denominators = torch.cat([of_rubric, of_rows], dim=1)
        ctx.save_for_backward(query, key, value, output, denominators)
        ctx.rows, ctx.scale = rows, scale
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        query, key, value, output, denominators = ctx.saved_tensors
        found = tuple(torch.zeros_like(x) for x in (query, key, value))
        for part in ctx.rows.parts(query.device):
            grads = _gpu_flash_backward(
                part, gradient, query, key, value, output, denominators, ctx.scale
            )
            for whole, grad, where in zip(
                found, grads, (part.queries, part.keys, part.keys), strict=True
            ):
                whole[where] += grad
        return *found, None, None


@dataclass(frozen=True)
class _Part:
    """Queries that attend to keys: one run of the kernel."""

    queries: slice
    keys: slice
    ends: tuple[torch.Tensor, torch.Tensor]
    """Of the sequences of queries, and of keys."""
    longest: tuple[int, int]
    causal: bool


def _parts(rows: Rows, device: torch.device) -> list[_Part]:
    """The rubric to itself, the rows to it, the rows to themselves; without a rubric the last."""
    prefix, total, found = rows.prefix, sum(rows.lengths), list[_Part]()
    rubric, together, ends = (
        torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
        for lengths in ([prefix], [total], rows.lengths)
    )
    first, behind = slice(0, prefix), slice(prefix, None)
    if prefix:
        found.append(_Part(first, first, (rubric, rubric), (prefix, prefix), causal=True))
        found.append(_Part(behind, first, (together, rubric), (total, prefix), causal=False))
    longest = max(rows.lengths)
    found.append(_Part(behind, behind, (ends, ends), (longest, longest), causal=True))
    return found


def _gpu_flash(
    part: _Part, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of the part's queries (L x heads x channels) and denominators (heads x L)."""
    output, denominators, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, *part.ends, *part.longest, 0.0, part.causal, False, scale=scale
    )
    return output, denominators


def _gpu_flash_backward(
    part: _Part, gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor,
    value: torch.Tensor, output: torch.Tensor, denominators: torch.Tensor, scale: float,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    # As on a CPU: a block of keys gets its share from the whole output and denominator.
    state = torch.zeros(2, dtype=torch.uint64, device=query.device)  # of dropout, which is none
    found: tuple[torch.Tensor, ...] = torch.ops.aten._flash_attention_backward(
        gradient[part.queries].contiguous(), query[part.queries], key[part.keys], value[part.keys],
        output[part.queries], denominators[:, part.queries].contiguous(), *part.ends,
        *part.longest, 0.0, part.causal, state, torch.empty(0, device=query.device), scale=scale,
    )  # fmt: skip
    return found


class _RowAttention(torch.autograd.Function):
    """Queries, keys and values are 1 x heads x L x channels; behind a cache more keys."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        rows: Rows, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        end, ahead = rows.prefix, key.shape[2] - query.shape[2]
        rubric, of_rubric = query[:, :, :0], None
        if not ahead:
            rubric, of_rubric = _flash(*_until(end, query, key, value), 0.0, True, scale=scale)
        shared, of_shared = _flash(
            query[:, :, end - ahead :], *_until(end, key, value), 0.0, False, scale=scale
        )
        own, of_own = torch.empty_like(shared), torch.empty_like(of_shared)
        for group in rows.groups:
            parts = (_padded(query, group, ahead), _padded(key, group), _padded(value, group))
            found, of_found = _flash(*parts, 0.0, True, scale=scale)
            own[0, :, group.positions - end] = _unpadded(found, group)
            of_own[0, :, group.positions - end] = _unpadded(of_found, group)
        denominators = torch.logaddexp(of_shared, of_own)
        shared *= (of_shared - denominators).exp_()[..., None]
        shared += own.mul_((of_own - denominators).exp_()[..., None])
        output = shared if ahead else torch.cat([rubric, shared], dim=2)
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


def _flash(query: torch.Tensor, *rest: Any, **options: Any) -> Any:
    """The output and the denominators."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with _blocks_of(query):
        return kernel(query, *rest, **options)


def _flash_backward(gradient: torch.Tensor, *rest: Any, **options: Any) -> Any:
    """The gradients of queries, keys and values."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    with _blocks_of(gradient):
        return kernel(gradient, *rest, **options)


def _blocks_of(query: torch.Tensor) -> Any:
    return usual_width() if query.shape[2] < _LARGE_BLOCKS else nullcontext()


def _until(end: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(x[:, :, :end] for x in tensors)


def _padded(x: torch.Tensor, group: _Group, ahead: int = 0) -> torch.Tensor:
    """R x heads x T x ..., from 1 x heads x L x ..., of which `ahead` are in the cache."""
    return x[0].index_select(1, group.gather - ahead).unflatten(1, group.shape).transpose(0, 1)


def _unpadded(x: torch.Tensor, group: _Group) -> torch.Tensor:
    """Heads x kept x ..., from R x heads x T x ..."""
    return x.transpose(0, 1).flatten(1, 2).index_select(1, group.kept)
