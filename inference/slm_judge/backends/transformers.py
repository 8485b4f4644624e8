"""The transformers engine: a merged, a 4-bit or an adapter folder, on CPU or GPU."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..contract import Contract
from ..errors import ModelError, require
from ..prompt import DecisionReader, EncodedPrompt
from . import Logits


class TransformersBackend:
    """Whole prompts, sorted by length, padded on the left so that the slots line up."""

    name = "transformers"

    def __init__(
        self, model: Any, tokenizer: Any, contract: Contract, tokens_per_batch: int = 8192
    ) -> None:
        """Wrap a loaded causal language model.

        Args:
            model: of transformers, or wrapped by PEFT.
            tokenizer: of the same folder.
            contract: the judge's.
            tokens_per_batch: bound on rows x longest prompt in one forward pass.
        """
        require("torch", "transformers")
        self.model, self.contract = model.eval(), contract
        self.tokens_per_batch = tokens_per_batch
        self.reader = DecisionReader(
            tokenizer, contract.decision_template, contract.rubric, contract.labels
        )
        ids = tokenizer(list(contract.labels), add_special_tokens=False)["input_ids"]
        self._label_ids = [token for (token,) in ids]
        self._padding = tokenizer.pad_token_id or 0

    @classmethod
    def load(
        cls, folder: Path, device: str | None = None, dtype: str | None = None
    ) -> "TransformersBackend":
        """Load a judge's folder. An adapter is put on its base, quantized as in training.

        Args:
            folder: with weights or an adapter, a tokenizer and the contract's files.
            device: e.g. "cuda"; by default a GPU where there is one.
            dtype: of the weights, e.g. "float32"; by default that of the files.

        Raises:
            ModelError: the folder cannot be loaded.
        """
        require("torch", "transformers")
        transformers = require("transformers", "transformers")
        contract = Contract.load(folder)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            model = _load_model(folder, device, dtype)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{folder} cannot be loaded as a model: {error}") from error
        return cls(model, tokenizer, contract)

    def logits(self, states: Sequence[dict[str, str]]) -> Iterator[tuple[int, Logits]]:
        """See `Backend.logits`."""
        prompts = self.reader.encode(states)
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].input_ids))
        start = 0
        while start < len(order):
            rows = max(1, self.tokens_per_batch // len(prompts[order[start]].input_ids))
            batch = order[start : start + rows]
            start += rows
            yield from zip(batch, self._forward([prompts[i] for i in batch]), strict=True)

    def _forward(self, prompts: list[EncodedPrompt]) -> list[Logits]:
        import torch

        inputs = left_padded(prompts, self._padding)
        device = self.model.device
        tensors = {key: torch.as_tensor(value, device=device) for key, value in inputs.items()}
        with torch.inference_mode():
            logits = self.model(**tensors, use_cache=False).logits[:, :, self._label_ids]
        values = logits.float().cpu().numpy()
        counts = [len(dimension.options) for dimension in self.contract.rubric.dimensions]
        return [[row[k, :count] for k, count in enumerate(counts)] for row in values]

    def close(self) -> None:
        """Free the model."""
        del self.model


def left_padded(prompts: Sequence[EncodedPrompt], padding: int) -> dict[str, Any]:
    """Model inputs of B prompts, longest length L, K slots, which line up at the right.

    Returns:
        `input_ids`, `attention_mask`, `position_ids` (B x L) and `logits_to_keep` (K positions).
    """
    length = max(len(prompt.input_ids) for prompt in prompts)
    ids = np.full((len(prompts), length), padding, dtype=np.int64)
    mask = np.zeros((len(prompts), length), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt.input_ids) :] = prompt.input_ids
        mask[row, length - len(prompt.input_ids) :] = 1
    ends = {tuple(slot - len(p.input_ids) for slot in p.slots) for p in prompts}
    if len(ends) != 1:
        raise ModelError("The answer slots of the rows do not line up; the template is not ours.")
    (offsets,) = ends
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0),
        "logits_to_keep": np.array([length + offset for offset in offsets]),
    }


def _load_model(folder: Path, device: str | None, dtype: str | None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if (folder / "adapter_config.json").exists():
        peft = require("peft", "train")
        base = json.loads((folder / "base.json").read_text(encoding="utf-8"))
        return peft.PeftModel.from_pretrained(load_base(base, device), folder)
    # Few CPUs compute in 16 bits at a useful speed; float32 holds every 16-bit weight exactly.
    dtype = dtype or ("float32" if device == "cpu" else "auto")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        require("bitsandbytes", "transformers")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map={"": device}, use_safetensors=True
    )
    if device == "cpu":
        _compute_in(torch.float32, model)
    return model


def _compute_in(dtype: Any, model: Any) -> None:
    """Set the dtype in which 4-bit layers multiply (files made for GPUs say bfloat16)."""
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = dtype


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
    return AutoModelForCausalLM.from_pretrained(
        training["base"],
        revision=training["revision"],
        dtype=dtype,
        device_map={"": device},
        use_safetensors=True,
        **options,
    )
