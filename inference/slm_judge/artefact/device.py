"""Where a model computes, in which type of numbers, and how much at a time."""

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from slm_judge.errors import ModelError, require

_SMALLEST, _LARGEST = 512, 8192
_PRODUCTS_KEPT = "128"
"""Of oneDNN's ready-made products, one a shape, of which packs of different lengths have many:
PyTorch and oneDNN would keep 1024 each, about 0.7 MB apiece. A pack needs far fewer."""


def devices() -> list[str]:
    """What PyTorch finds here, the fastest first: cuda or mps (Apple's GPUs), and cpu."""
    torch = require("torch", "transformers")
    found = torch.accelerator.current_accelerator(check_available=True)
    return [*([found.type] if found else ()), "cpu"]


def choose_device(asked: str | None, there: Sequence[str]) -> str:
    """The device that is asked for, perhaps with a number (cuda:1); else the first of `there`.

    Raises:
        ModelError: it is not there.
    """
    if asked in (None, "auto"):
        return there[0]
    if asked.partition(":")[0] in there:
        return asked
    raise ModelError(f"{asked} is asked for, but PyTorch finds no such device here; there is "
                     f"{', '.join(there)}.")  # fmt: skip


def multiplies_bfloat16(device: str) -> bool:
    """Whether the device is a CUDA GPU that has instructions for it, from Ampere on."""
    torch = require("torch", "transformers")
    if not device.startswith("cuda"):
        return False
    with torch.cuda.device(torch.device(device)):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def dtype_for_answers(device: str, files: str, bfloat16: bool) -> str:
    """What answers are computed in unless it is told: on a CUDA GPU what the files have.

    But float16 for bfloat16 on one that cannot multiply it (before Ampere), and float32 elsewhere:
    few CPUs compute in 16 bits at a useful speed, float32 holds every 16-bit weight exactly, and
    a judge gives the same answers on all of them.

    Args:
        device: as `choose_device` gives it.
        files: dtype of the weights in the files.
        bfloat16: whether the device multiplies that, see `multiplies_bfloat16`.
    """
    if device.startswith("cuda"):
        return "float16" if files == "bfloat16" and not bfloat16 else files
    return "float32"


def dtype_for_training(asked: str, device: str, bfloat16: bool) -> str:
    """What training computes in: of `auto`, 16 bits on a CUDA GPU, float32 elsewhere.

    Raises:
        ModelError: float16 is asked for where its gradients cannot be scaled.
    """
    on_gpu = device.startswith("cuda")
    if asked == "float16" and not on_gpu:
        raise ModelError(f"training.dtype: float16 needs a CUDA GPU; on {device}, take float32.")
    if asked != "auto":
        return asked
    return ("bfloat16" if bfloat16 else "float16") if on_gpu else "float32"


@contextmanager
def full_width(device: Any) -> Iterator[None]:
    """On AMD's CPUs with AVX512, let PyTorch multiply float32 with oneDNN's kernels.

    MKL leaves AVX512 alone there. PyTorch calls oneDNN where it is allowed to round factors to
    bfloat16; on a CPU where it would do so (with AMX), everything stays as it is. The permission is
    the process's, so the first who asks for it gives it and the last takes it back (a bound on what
    oneDNN keeps stays, in the environment, where none was set). Meanwhile
    `torch.get_float32_matmul_precision`, the older way to ask, raises an error.
    """
    if not str(device).startswith("cpu") or not _onednn_is_wider():
        yield
        return
    with _permission.lock:
        if not _permission.holders:
            _permission.before = _permission.set("bf16")
        _permission.holders += 1
    try:
        yield
    finally:
        with _permission.lock:
            _permission.holders -= 1
            if not _permission.holders:
                _permission.set(_permission.before)


@contextmanager
def usual_width() -> Iterator[None]:
    """Within `full_width`, PyTorch's usual products: for what multiplies many small blocks.

    oneDNN is asked anew for each block, which takes longer than a block of a few rows does.
    """
    permission = _permission
    with permission.lock:
        lifted = permission.holders > 0
        if lifted:
            permission.set(permission.before)
    try:
        yield
    finally:
        with permission.lock:
            if lifted and permission.holders:
                permission.set("bf16")


class _Permission:
    """To round factors to bfloat16: who holds it, and what held before."""

    def __init__(self) -> None:
        self.lock, self.holders, self.before = Lock(), 0, "none"

    def set(self, precision: str) -> str:
        """Say how products of float32 may be computed; returns what held."""
        matmul = require("torch", "transformers").backends.mkldnn.matmul
        before, matmul.fp32_precision = matmul.fp32_precision, precision
        return str(before)


_permission = _Permission()


def _onednn_is_wider() -> bool:
    """Whether oneDNN computes in float32 with AVX512 here, and MKL without."""
    with _permission.lock:
        return _found_wider()


@cache
def _found_wider() -> bool:
    torch = require("torch", "transformers")
    matmul = getattr(torch.backends.mkldnn, "matmul", None)  # since PyTorch 2.9
    width = torch.backends.cpu.get_cpu_capability()
    if matmul is None or "AVX512" not in width or not _made_by_amd():
        return False
    for caches in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(caches, _PRODUCTS_KEPT)  # read at the first product
    return _keeps_float32(matmul)


def _made_by_amd() -> bool:
    with suppress(OSError):
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    return "AuthenticAMD" in platform.processor()  # on Windows


def _keeps_float32(matmul: Any) -> bool:
    """Whether products are exact to float32 where PyTorch may round their factors to bfloat16."""
    torch, size = require("torch", "transformers"), 512
    x = torch.full((size, size), 1 + 2.0**-12)  # 1 in bfloat16
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        return bool((x @ torch.eye(size) == x).all())
    finally:
        matmul.fp32_precision = before


def pack_budget(device: Any, config: Any) -> int:
    """Tokens of a forward and backward pass that a GPU's free memory has room for.

    Without a CUDA GPU, 1024. On one, where a pass costs launches, what training keeps of a token
    fills up to two fifths of what is free.

    Args:
        device: of PyTorch.
        config: of the model's text part.
    """
    if not str(device).startswith("cuda"):
        return 1024
    free, _ = require("torch", "transformers").cuda.mem_get_info(device)
    return tokens_that_fit(0.4 * free, config)


def tokens_that_fit(size: float, config: Any) -> int:
    """A power of two, so that a little more or less free memory gives the same packs.

    A layer keeps about 14 vectors of its width a token (its inputs, norms, queries, keys, values
    and sums) and 4 of the width of its MLP, in 16 bits.

    Args:
        size: bytes.
        config: of the model's text part.
    """
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    token = config.num_hidden_layers * (14 * config.hidden_size + 4 * wide) * 2
    fitting = max(int(size // token), 1)
    return min(max(1 << fitting.bit_length() - 1, _SMALLEST), _LARGEST)


def pass_sizes(largest: int) -> list[int]:
    """Tokens that passes are filled up to: the powers of two from the smallest on, and the largest.

    None where that is smaller than the smallest; none is above 16,384.
    """
    largest = min(largest, 2 * _LARGEST)
    powers = (1 << n for n in range(_SMALLEST.bit_length() - 1, largest.bit_length()))
    return sorted({n for n in powers if n < largest} | {largest}) if largest >= _SMALLEST else []
