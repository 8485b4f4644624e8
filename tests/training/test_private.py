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
    "masks of SDPA are made by": ("transformers.masking_utils", "sdpa_mask", r"def sdpa_mask\b"),
    "SDPA attends by": (
        "transformers.integrations.sdpa_attention", "sdpa_attention_forward",
        r"\battention_mask\b"),
    "layers are": (
        "transformers.modeling_layers", "GradientCheckpointingLayer", r"\bnn\.Module\b"),
    "a model's forward pass takes keys and values as `cache`": (
        "transformers.models.qwen3.modeling_qwen3", "Qwen3Model", r"\bcache: Cache\b"),
    "a cache has the keys and values of its layers": (
        "transformers.cache_utils", "DynamicLayer", r"\bself\.keys\b[^§]*\bself\.values\b"),
    "Trainer recomputes activations where it is told to": (
        "transformers.trainer", "Trainer", r"\bargs\.activation_checkpointing\b"),
    "PEFT says what kind of LoRA a layer has": (
        "peft.tuners.lora.layer", "LoraLayer", r"\bself\.lora_variant\b"),
    "PEFT takes adapters of other classes": (
        "peft", "LoraConfig", r"def _register_custom_module\b"),
    "a 4-bit layer says what it computes in": (
        "bitsandbytes.nn", "Linear4bit", r"\bself\.compute_dtype\b"),
    "a 4-bit layer may compute in bfloat16 on a CPU": (
        "bitsandbytes.nn", "Linear4bit", r"\bself\.support_avx512bf16_for_cpu\b"),
    "4-bit weights carry how they were rounded": (
        "bitsandbytes.nn", "Params4bit", r"\bself\.quant_state\b"),
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


def test_llama_cpp_python_still_has_every_setting_that_is_set():
    """Its structures take any name, so that one they do not know any more would do nothing."""
    import llama_cpp

    for path, struct in (
        ("inference/slm_judge/backends/gguf.py", llama_cpp.llama_context_params),
        ("export/gguf.py", llama_cpp.llama_model_quantize_params),
    ):
        set_there = {*re.findall(r"\bparams\.(\w+)(?= =)", (ROOT / path).read_text())}
        assert len(set_there) > 3
        assert set_there <= {name for name, *_ in struct._fields_}, path


def test_pytorch_still_has_what_attention_and_compiled_layers_call():
    import torch

    for name in ("_scaled_dot_product_flash_attention_for_cpu",
                 "_scaled_dot_product_flash_attention_for_cpu_backward"):  # fmt: skip
        assert hasattr(torch.ops.aten, name), name
    for name in ("allow_unspec_int_on_nn_module", "recompile_limit"):
        assert hasattr(torch._dynamo.config, name), name
    assert torch.nn.Linear(1, 1)._compiled_call_impl is None  # the benchmark sets it back


def test_a_cache_can_be_cropped():
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 5, 2), torch.zeros(1, 1, 5, 2), 0)
    cache.crop(-2)
    assert cache.get_seq_length() == 3
