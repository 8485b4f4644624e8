"""The transformers engine: a merged, a 4-bit or an adapter folder, on CPU or GPU."""

import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from slm_judge.artefact.base import in_float32, load_base, load_tokenizer
from slm_judge.artefact.judge_files import Contract
from slm_judge.errors import ModelError, require
from slm_judge.prompt.readers import DecisionReader, EncodedPrompt
from slm_judge.rubric import Rubric

from . import Logits
from .packing import Pack, pack, split_into_packs

# More than twice the largest change of the difference between two labels' logits that was measured
# when the batch changed: benchmarks/determinism.py, docs/annotation.md. The bounds of 16 bits are
# those of their rounding, 2^-8 and 2^-11, for logits of up to 20.
_NEAR_TIE = {"float32": 0.002, "bfloat16": 0.2, "float16": 0.05}


class TransformersBackend:
    """Rows packed behind one copy of the rubric, logits at the slots alone."""

    name = "transformers"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        contract: Contract,
        path: Path,
        tokens_per_pack: int | None = None,
    ) -> None:
        """Wrap a loaded causal language model.

        Args:
            model: of transformers, or wrapped by PEFT.
            tokenizer: of the same folder.
            contract: the judge's.
            path: the judge's folder.
            tokens_per_pack: bound on the rows' tokens of one forward pass (a longer row goes
                alone).
        """
        require("torch", "transformers")
        self.model, self.contract, self.path = model.eval(), contract, path
        self.tokens_per_pack = tokens_per_pack or pack_budget(model.device)
        self._tokenizer = tokenizer
        self.reader = self.reader_of(contract.rubric)
        self.max_tokens = int(model.config.get_text_config().max_position_embeddings)
        self.near_tie = _NEAR_TIE[str(model.dtype).removeprefix("torch.")]
        self._cache: Any = None
        # Renamed in transformers 5.24; an adapter's wrapper takes any name.
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        named = "cache" in inspect.signature(base.forward).parameters
        self._cache_argument = "cache" if named else "past_key_values"
        ids = tokenizer(list(contract.labels), add_special_tokens=False)["input_ids"]
        self._label_ids = [token for (token,) in ids]

    def reader_of(self, rubric: Rubric) -> DecisionReader:
        """See `Backend.reader_of`."""
        contract = self.contract
        return DecisionReader(self._tokenizer, contract.decision_template, rubric, contract.labels)

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
        require("transformers", "transformers")
        contract = Contract.load(folder)
        try:
            tokenizer = load_tokenizer(folder)
            model = _load_model(folder, device, dtype)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{folder} cannot be loaded as a model: {error}") from error
        return cls(model, tokenizer, contract, folder)

    def run(
        self, prompts: Sequence[EncodedPrompt], alone: bool = False
    ) -> Iterator[tuple[int, Logits]]:
        """See `Backend.run`."""
        prefix = len(self.reader.prefix)
        usual = [i for i, p in enumerate(prompts) if p.input_ids[:prefix] == self.reader.prefix]
        chosen = [prompts[i] for i in usual]
        budget = prefix + (1 if alone else self.tokens_per_pack)
        for rows in split_into_packs(chosen, prefix, budget):
            packed = pack([chosen[row] for row in rows], prefix, cached=True)
            outputs = self._forward(packed, len(rows), self._rubric_cache())
            yield from zip([usual[row] for row in rows], outputs, strict=True)
        for i in sorted(set(range(len(prompts))) - set(usual)):
            yield i, self._forward(pack([prompts[i]], 0), 1)[0]

    def _rubric_cache(self) -> Any:
        """Keys and values of the rubric's tokens, computed once."""
        import torch
        from transformers import DynamicCache

        prefix = self.reader.prefix
        if self._cache is None:
            self._cache = DynamicCache()
            ids = torch.tensor([prefix], device=self.model.device)
            with torch.inference_mode():
                cache = {self._cache_argument: self._cache}
                self.model(input_ids=ids, use_cache=True, logits_to_keep=1, **cache)
        if extra := self._cache.get_seq_length() - len(prefix):  # of the last pack
            self._cache.crop(-extra)
        return self._cache

    def _forward(self, packed: Pack, n_rows: int, cache: Any = None) -> list[Logits]:
        import torch

        tensors = pack_tensors(packed, self.model.device)
        with torch.inference_mode():
            cached = {self._cache_argument: cache}
            output = self.model(**tensors, **cached, use_cache=cache is not None)
            logits = output.logits[0][:, self._label_ids]
        values = logits.float().cpu().numpy().reshape(n_rows, -1, len(self._label_ids))
        counts = [len(dimension.options) for dimension in self.contract.rubric.dimensions]
        return [[row[k, :count] for k, count in enumerate(counts)] for row in values]

    def close(self) -> None:
        """Free the model."""
        self._cache = None
        del self.model


def pack_tensors(packed: Pack, device: Any) -> dict[str, Any]:
    """A pack as keyword arguments of a causal language model's forward pass."""
    import torch

    return {key: torch.as_tensor(value, device=device) for key, value in vars(packed).items()}


def pack_budget(device: Any) -> int:
    """Tokens a pack: attention to all of a pack costs its square, forward passes cost launches."""
    if not str(device).startswith("cuda"):
        return 1024
    import torch

    gigabytes = torch.cuda.get_device_properties(device).total_memory / 1e9
    return 8192 if gigabytes > 40 else 4096 if gigabytes > 20 else 2048


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
    return in_float32(model) if device == "cpu" else model
