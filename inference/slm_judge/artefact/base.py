"""The base under an adapter: where it is, and how it is loaded."""

from pathlib import Path
from typing import Any

from slm_judge.errors import ModelError, require
from slm_judge.hub import hub_message


def in_float32(model: Any) -> Any:
    """Let 4-bit layers multiply in float32, on every CPU and in training as in evaluation.

    Files made for GPUs say bfloat16. And where the CPU has AVX512-BF16, bitsandbytes repacks the
    weights at the first evaluation and computes in bfloat16 from then on, also when training goes
    on, so that a resumed run would end with other weights than an uninterrupted one.
    """
    import torch

    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32
            module.support_avx512bf16_for_cpu = False
    return model


def load_base(training: dict[str, Any], device: str) -> Any:
    """Load the base under an adapter as it was in training.

    Args:
        training: `base` (repo or folder), `revision`, `quantization` ("nf4" or "none") and
            `dtype`, as `slm-judge train` saves them in `base.json`.
        device: where the model goes.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = torch.float32 if device == "cpu" else getattr(torch, training["dtype"])
    options: dict[str, Any] = {}
    if training["quantization"] == "nf4":
        require("bitsandbytes", "transformers")
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = AutoModelForCausalLM.from_pretrained(
        locate_base(training["base"]),
        revision=training["revision"],
        dtype=dtype,
        device_map={"": device},
        use_safetensors=True,
        **options,
    )
    return in_float32(model) if device == "cpu" else model


def locate_base(base: str) -> str:
    """What `from_pretrained` can load: "tiny" stands for the offline base, built where needed."""
    if base != "tiny":
        return base
    from slm_judge.offline.tiny import tiny_base

    return str(tiny_base())


def load_tokenizer(model: str | Path, revision: str | None = None) -> Any:
    """The tokenizer of a base or of a judge.

    Args:
        model: Hub repository, folder, or "tiny".
        revision: branch, tag or commit of a repository.

    Raises:
        ModelError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(locate_base(str(model)), revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(hub_message(str(model), revision, error)) from error
