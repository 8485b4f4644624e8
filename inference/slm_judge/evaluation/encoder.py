"""Sentence embeddings: a text as one vector, in the way of the sentence-transformers library.

That library would be a dependency for what is here a page: the model of transformers, the pooling
and the normalisation that the model's folder names.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from slm_judge.artefact.base import hide_bars, load_config, loading, locate_base
from slm_judge.artefact.device import choose_device, devices
from slm_judge.backends import memory_errors
from slm_judge.errors import ModelError, require
from slm_judge.progress import progress_bar

_BATCH = 32  # texts of similar length
_POOLINGS = ("cls", "max", "mean")
_VERY_LONG = 100_000  # tokens; tokenizers say "no limit" with a number of 31 digits


def embed(
    model: str, texts: Sequence[str], console: Console | None = None
) -> tuple[npt.NDArray[np.float32], list[str]]:
    """The embeddings of N texts, N x width, and notes on what was done to them.

    Args:
        model: folder or Hub repository of an encoder, with or without the files of
            sentence-transformers; without them the mean over tokens is taken.
        texts: N texts; the end of what is longer than the encoder reads is cut off.
        console: where progress is written.

    Raises:
        ModelError: there is no such encoder, or it needs what is not done here.
    """
    torch, folder = require("torch", "transformers"), locate_base(model)
    poolings, normalised = _modules(folder)
    net, tokenizer, longest = _load(folder, choose_device(None, devices()))
    rows: list[Any] = [None] * len(texts)
    with progress_bar("texts", console=console) as bar, loading(model), torch.inference_mode(), \
            memory_errors("Take a smaller encoder."):  # fmt: skip
        task = bar.add_task(Path(model).name, total=len(texts))
        sizes = [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]
        order = sorted(range(len(texts)), key=lambda i: -sizes[i])
        for start in range(0, len(texts), _BATCH):
            batch = order[start : start + _BATCH]
            inputs = tokenizer(
                [texts[i] for i in batch],
                truncation=True, max_length=longest, padding=True, return_tensors="pt",
            ).to(net.device)  # fmt: skip
            hidden, read = net(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
            found = torch.cat([_pool(kind, hidden, read) for kind in poolings], dim=-1)
            found = torch.nn.functional.normalize(found, dim=-1) if normalised else found
            for i, row in zip(batch, found.cpu().numpy(), strict=True):
                rows[i] = row
            bar.advance(task, len(batch))
    cut = sum(size > longest for size in sizes)
    note = f"{model} reads {longest} tokens: {cut} of {len(texts)} texts were cut."
    return np.array(rows, dtype=np.float32), [note] if cut else []


def _pool(kind: str, hidden: Any, read: Any) -> Any:
    """Rows x width, from rows x tokens x width, and which tokens are read, rows x tokens x 1."""
    if kind == "cls":
        return hidden[:, 0]
    if kind == "max":
        return hidden.masked_fill(read == 0, float("-inf")).amax(1)
    return (hidden * read).sum(1) / read.sum(1).clamp(min=1)


def _modules(folder: Path) -> tuple[list[str], bool]:
    """The poolings, whose results stand side by side, and whether rows get the length 1."""
    if not (file := folder / "modules.json").is_file():
        return ["mean"], False
    with loading(folder):
        paths = {m["type"].rpartition(".")[2]: m["path"] for m in _read(file)}
        config = _read(folder / paths.get("Pooling", "1_Pooling") / "config.json")
        named = config.get("pooling_mode", [])  # since sentence-transformers 5; before, a flag each
        chosen = [named] if isinstance(named, str) else list(named)
        flags = [key for key in config if key.startswith("pooling_mode_") and config[key]]
        chosen += [key.removeprefix("pooling_mode_").split("_token")[0] for key in flags]
    unknown = {*paths} - {"Transformer", "Pooling", "Normalize"} or {*chosen} - {*_POOLINGS}
    if unknown or not chosen:
        raise ModelError(
            f"{folder}: this encoder needs {', '.join(sorted(unknown)) or 'no pooling'}; done here "
            f"are the modules Transformer, Pooling ({', '.join(_POOLINGS)}) and Normalize."
        )
    return chosen, "Normalize" in paths


def _load(folder: Path, device: str) -> tuple[Any, Any, int]:
    """The model, its tokenizer, and the number of tokens that it reads."""
    transformers, config = require("transformers", "transformers"), load_config(folder)
    if getattr(config, "quantization_config", None) or not [*folder.glob("model*.safetensors")]:
        raise ModelError(f"{folder} needs weights in model*.safetensors, and not quantized ones.")
    hide_bars()
    safe: dict[str, Any] = {"trust_remote_code": False}
    with loading(folder):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="right", **safe)
        # Every model has eager attention; what the files ask for is not looked up.
        safe |= {"use_safetensors": True, "attn_implementation": "eager", "dtype": "float32"}
        model, info = transformers.AutoModel.from_pretrained(
            folder, output_loading_info=True, **safe
        )
        file = folder / "sentence_bert_config.json"
        said = _read(file).get("max_seq_length") if file.is_file() else None
    if missing := [key for key in info["missing_keys"] if not key.startswith("pooler.")]:
        raise ModelError(f"{folder} has no weights {', '.join(sorted(missing)[:3])}.")
    limits = [said, tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    return model.to(device).eval(), tokenizer, min(int(n) for n in (*limits, _VERY_LONG) if n)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
