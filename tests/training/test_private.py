"""What slm-judge uses of its dependencies without their promise that it stays.

A new version that breaks one of these fails here, by its name, before anything else does.
"""

import inspect
import re
from importlib import import_module

import pytest

from tests.conftest import ROOT

# Module, class or function of it, and what its source must still speak of.
INTERFACES = {
    "Trainer counts labels unless told that they are not shifted": (
        "transformers.trainer", "Trainer", r"\b_loss_shifts_labels\b"),
    "TrainingArguments keeps the number of GPUs": (
        "transformers.training_args", "TrainingArguments", r"\b_n_gpu\b"),
    "Trainer prepares inputs": ("transformers.trainer", "Trainer", r"def _prepare_inputs\b"),
    "a configuration names its attention": (
        "transformers.configuration_utils", "PreTrainedConfig", r"\b_attn_implementation\b"),
    "a cache forgets its last tokens": (
        "transformers.cache_utils", "DynamicCache", r"class DynamicCache\b"),
    "names of layers that stay in 16 bits": (
        "transformers.quantizers.quantizers_utils", "should_convert_module", r"\bpatterns\b"),
    "PEFT takes adapters of other classes": (
        "peft", "LoraConfig", r"def _register_custom_module\b"),
    "a 4-bit layer says what it computes in": (
        "bitsandbytes.nn", "Linear4bit", r"\bself\.compute_dtype\b"),
    "gguf's script copies a file with new keys": (
        "gguf.scripts.gguf_new_metadata", "copy_with_new_metadata", r"\bremove_metadata\b"),
    "llama.cpp's types as numbers": ("gguf", "GGMLQuantizationType", r"\bQ4_0\b"),
}  # fmt: skip


@pytest.mark.parametrize("name", INTERFACES)
def test_a_dependency_still_has(name):
    module, thing, words = INTERFACES[name]
    found = getattr(import_module(module), thing, None)
    assert found is not None, f"{module} has no {thing} any more: {name}"
    assert re.search(words, inspect.getsource(found)), f"{module}.{thing} changed: {name}"


def test_llama_cpp_python_still_has_every_function_that_is_called():
    import llama_cpp

    files = [*(ROOT / "inference").rglob("*.py"), *(ROOT / "export").rglob("*.py")]
    called = {
        name
        for path in files
        for name in re.findall(
            r"\b(?:llama|self\._llama|llama_cpp)\.((?:llama|ggml|LLAMA|GGML)_\w+)", path.read_text()
        )
    }
    assert len(called) > 20
    assert [name for name in sorted(called) if not hasattr(llama_cpp, name)] == []


def test_a_cache_can_be_cropped():
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 5, 2), torch.zeros(1, 1, 5, 2), 0)
    cache.crop(-2)
    assert cache.get_seq_length() == 3
