"""What a GPU's kernels are asked, put together by their definition on a CPU."""

from itertools import pairwise

import pytest
import torch

from slm_judge.backends import row_attention
from slm_judge.backends.row_attention import Rows

HEADS, KEY_HEADS, CHANNELS = 4, 2, 16


def scores(query, key, scale, causal):
    """Heads x queries x keys."""
    found = torch.einsum("qhc,khc->hqk", query, key) * scale
    seen = torch.ones(found.shape[1:], dtype=torch.bool)
    return found.masked_fill(~seen.tril(), -torch.inf) if causal else found


def sequences(part, q=0, k=0):
    queries, keys = (ends.tolist() for ends in part.ends)
    assert part.longest == tuple(max(b - a for a, b in pairwise(e)) for e in (queries, keys))
    for q0, q1, k0, k1 in zip(queries, queries[1:], keys, keys[1:], strict=False):
        yield slice(q + q0, q + q1), slice(k + k0, k + k1)


def flash(part, query, key, value, scale):
    """By definition; `aten::_flash_attention_forward` is CUDA's alone."""
    output, denominators = [], []
    assert (len(query), len(key)) == tuple(ends[-1] for ends in part.ends)
    for queries, keys in sequences(part):
        k, v = (x[keys].repeat_interleave(HEADS // KEY_HEADS, dim=1) for x in (key, value))
        found = scores(query[queries], k, scale, part.causal)
        output.append(torch.einsum("hqk,khc->qhc", found.softmax(-1), v))
        denominators.append(found.logsumexp(-1))
    return torch.cat(output), torch.cat(denominators, dim=1)


def flash_backward(part, gradient, query, key, value, output, denominators, scale):
    """By definition, of one block of keys, from the whole output and denominator."""
    grads = [torch.zeros_like(x) for x in (query, key, value)]
    for queries, keys in sequences(part, part.queries.start, part.keys.start):
        k, v = (x[keys].repeat_interleave(HEADS // KEY_HEADS, dim=1) for x in (key, value))
        g = gradient[queries]
        p = (scores(query[queries], k, scale, part.causal) - denominators[:, queries, None]).exp()
        moved = torch.einsum("qhc,khc->hqk", g, v) - (g * output[queries]).sum(-1).T[..., None]
        by_score = p * moved * scale
        grads[0][queries] += torch.einsum("hqk,khc->qhc", by_score, k)
        for grad, x in ((grads[1], torch.einsum("hqk,qhc->khc", by_score, query[queries])),
                        (grads[2], torch.einsum("hqk,qhc->khc", p, g))):  # fmt: skip
            grad[keys] += x.unflatten(1, (KEY_HEADS, -1)).sum(2)
    return grads[0][part.queries], grads[1][part.keys], grads[2][part.keys]


@pytest.mark.parametrize("prefix", [20, 0])
def test_the_parts_of_a_gpu_are_attention_by_the_mask(monkeypatch, prefix):
    monkeypatch.setattr(row_attention, "_gpu_flash", flash)
    monkeypatch.setattr(row_attention, "_gpu_flash_backward", flash_backward)
    torch.manual_seed(0)
    lengths = [30, 5, 6, 1, 21]
    total = prefix + sum(lengths)
    shapes = [(total, HEADS), (total, KEY_HEADS), (total, KEY_HEADS)]
    inputs = [torch.randn(*shape, CHANNELS, dtype=torch.float64) for shape in shapes]
    owner = torch.tensor([-1] * prefix + [r for r, n in enumerate(lengths) for _ in range(n)])
    mask = ((owner == -1) | (owner[:, None] == owner)).tril()
    found = []
    for by_rows in (True, False):
        tensors = [x.clone().requires_grad_() for x in inputs]
        if by_rows:
            output = row_attention._GpuRowAttention.apply(*tensors, Rows(prefix, lengths), 0.25)
        else:
            output = torch.nn.functional.scaled_dot_product_attention(
                *(x.transpose(0, 1) for x in tensors), attn_mask=mask, scale=0.25, enable_gqa=True
            ).transpose(0, 1)
        output.sin().sum().backward()
        found.append([output, *(x.grad for x in tensors)])
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


def test_behind_a_rubric_whose_keys_lie_elsewhere_it_is_the_same(monkeypatch):
    monkeypatch.setattr(row_attention, "_gpu_flash", flash)
    torch.manual_seed(0)
    prefix, lengths = 20, [30, 5, 6, 1, 21]
    total = prefix + sum(lengths)
    query, key, value = (
        torch.randn(total, heads, CHANNELS, dtype=torch.float64)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    whole = row_attention._GpuRowAttention.apply(query, key, value, Rows(prefix, lengths), 0.25)
    of_rubric, own = (key[:prefix], value[:prefix]), [x[prefix:] for x in (query, key, value)]
    found = row_attention._behind_rubric(*own, of_rubric, Rows(prefix, lengths), 0.25)
    torch.testing.assert_close(found, whole[prefix:])


def test_pytorch_has_the_kernels_with_the_arguments_that_they_are_given():
    """Private names of PyTorch: where a version changes them, a GPU goes by the mask."""
    forward, backward = (
        [one.name for one in getattr(torch.ops.aten, name).default._schema.arguments]
        for name in ("_flash_attention_forward", "_flash_attention_backward")
    )
    ends = ["cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal"]
    assert forward[:10] == ["query", "key", "value", *ends, "return_debug_mask"]
    given = ["grad_out", "query", "key", "value", "out", "logsumexp", *ends, "rng_state", "unused"]
    assert backward[:14] == given
    assert "scale" in forward
    assert "scale" in backward
