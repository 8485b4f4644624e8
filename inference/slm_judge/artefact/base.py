"""The base under an adapter: what is kept about it, where it is, and how models are loaded.

Models come from strangers. Files are read that are nothing but data: code in a repository, kernels
from the Hub and pickled weights are refused, and nobody is asked.
"""

import importlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import TypeAdapter, ValidationError

from slm_judge.errors import JudgeError, ModelError, require
from slm_judge.files import write_json
from slm_judge.rubric import explain

from .device import dtype_for_answers, multiplies_bfloat16
from .judge_files import adapter_beside
from .locate import TEXTS, WEIGHTS, resolve, snapshot
from .tokenizer import read_tokenizer

BASE_FILE = "base.json"
OFFLINE = ("tiny", "smollm2")
"""Bases that need no Hub, by the names of their modules."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LORA_SETTINGS = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "rank_pattern", "alpha_pattern"),
    *("use_rslora", "task_type", "peft_version", "base_model_name_or_path", "revision"),
    "inference_mode",
    "auto_mapping",  # which loading does not follow
}
# Read by transformers when it is imported: it would download and run kernels where it has any.
os.environ["USE_HUB_KERNELS"] = "NO"


@dataclass(frozen=True)
class Base:
    """The base under an adapter, as training used it and as every later load takes it."""

    base: str
    """Hub repository, folder, or one of `OFFLINE`."""
    revision: str | None = None
    """The commit of a repository."""
    requested_revision: str | None = None
    """What the recipe asked for: a branch, a tag, a commit, or nothing."""
    quantization: Literal["nf4", "none"] = "none"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"

    def save(self, folder: Path) -> None:
        """Write `base.json`."""
        write_json(folder / BASE_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ModelError: there is none, or it is damaged.
        """
        path = folder / BASE_FILE
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            reason = explain(error) if isinstance(error, ValidationError) else error
            raise ModelError(
                f"{path} says what the adapter was trained on, but cannot be read. Copy it from "
                f"where the adapter was trained, or train again.\n{reason}"
            ) from error


def base_commit(base: str, revision: str | None) -> str | None:
    """The commit that a base's revision stands for now; None where it is not on the Hub.

    Raises:
        ModelError: there is no such repository or revision, or it cannot be reached.
    """
    if base in OFFLINE or Path(base).is_dir():
        return None
    return resolve(base, revision)


def load_base(base: Base, device: str, dtype: str | None = None) -> Any:
    """Load the base under an adapter, by default as answers are computed (`dtype_for_answers`).

    Raises:
        ModelError: it is not there any more, or cannot be loaded, or is half of a judge.
    """
    dtype = dtype or dtype_for_answers(device, base.dtype, multiplies_bfloat16(device))
    options = {"quantization_config": nf4(dtype)} if base.quantization == "nf4" else {}
    folder = locate_base(base.base, base.revision)
    if adapter_beside(folder):
        raise ModelError(
            f"{base.base} is a judge whose adapter lies beside the weights of its base. As a base, "
            "take its merged model."
        )
    return load_model(folder, device, dtype, **options)


def nf4(dtype: str, kept: Sequence[str] = ()) -> Any:
    """The 4-bit quantization of training and export, which computes in `dtype`.

    `kept` are ends of the names of all layers that stay in 16 bits, by default the output alone.
    """
    require("bitsandbytes", "transformers")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(kept) or None,
    )


def load_model(folder: str | Path, device: str, dtype: str, **options: Any) -> Any:
    """Load a folder, the one way for training, judging and export.

    `options` are those of `from_pretrained`; `dtype` may be "auto", that of the files.

    Raises:
        ModelError: it cannot be loaded, or not without running what is not ours.
    """
    from transformers import AutoModelForCausalLM

    hide_bars()
    _check_config(Path(folder))
    # Whatever the files ask for: eager attention would add the mask that keeps the rows of a pack
    # apart, which is true or false, to the scores.
    options |= {"attn_implementation": "sdpa", "use_safetensors": True, "trust_remote_code": False}
    with loading(folder):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, device_map={"": device}, output_loading_info=True, **options
        )
        if missing := sorted(info["missing_keys"]):  # transformers would draw them at random
            raise ModelError(f"{folder} has no weights {', '.join(missing[:3])} ({len(missing)}).")
    return in_float32(model) if device == "cpu" else model


def _check_config(folder: Path) -> None:
    if (folder / ADAPTER_CONFIG).exists():
        raise ModelError(f"{folder} is an adapter; a model was expected.")
    config = load_config(folder)
    with loading(folder):
        for part in (config, config.get_text_config()):
            settings = getattr(part, "quantization_config", None) or {}
            if (method := settings.get("quant_method", "bitsandbytes")) != "bitsandbytes":
                raise ModelError(
                    f"{folder} is quantized with {method!r}, for which code from elsewhere may be "
                    "run. Take weights in 16 or 32 bits, or in those of bitsandbytes."
                )


def load_config(folder: str | Path) -> Any:
    """The configuration of a model's folder.

    Raises:
        ModelError: it cannot be read, or needs code of its own.
    """
    from transformers import AutoConfig

    with loading(folder):
        path = Path(folder) / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_check_counts)
        if not isinstance(config, dict):
            raise ModelError(f"{path} holds no settings, but {type(config).__name__}.")
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def _check_counts(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of one object: transformers builds as many layers as it says, whatever the weights are."""
    for key, value in pairs:
        counts = re.search("(n|num)_.*(layer|expert|block)|depth", key)
        if counts and isinstance(value, int) and value > 10_000:
            raise ModelError(f"config.json: {key} is {value}, more than any model has.")
    return dict(pairs)


def tokens_read(config: Any) -> int:
    """Tokens of the longest prompt: all of its layers are to see all of it.

    The mask of a pack says what a token sees, and knows no sliding windows.

    Args:
        config: of a model's text part.
    """
    kinds = getattr(config, "layer_types", None) or []
    names = ["max_position_embeddings"]
    if "sliding_attention" in kinds or not (kinds or hasattr(config, "use_sliding_window")):
        names.append("sliding_window")
    if "chunked_attention" in kinds:
        names.append("attention_chunk_size")
    found = [getattr(config, name, None) for name in names]
    return min((n for n in found if isinstance(n, int) and n > 0), default=sys.maxsize)


def load_adapter(model: Any, folder: Path) -> Any:
    """Put the LoRA adapter in `folder` on its base.

    Raises:
        ModelError: it cannot be loaded, or is no plain LoRA adapter.
    """
    peft = require("peft", "transformers")
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):  # which PEFT would look for on the Hub
        if not (folder / name).is_file():
            raise ModelError(f"{folder} has no {name}; no other format is read.")
    with loading(folder):
        config = peft.PeftConfig.from_pretrained(str(folder))
        names = [*(config.target_modules or ["*"])] if config.peft_type == "LORA" else ["*"]
        names += [*getattr(config, "rank_pattern", ()), *getattr(config, "alpha_pattern", ())]
        plain, given = peft.LoraConfig().to_dict(), config.to_dict()
        odd = {key for key in given if given[key] != plain.get(key)} - _LORA_SETTINGS
        # PEFT imports what `megatron_core` names, and takes a text for a pattern, which may match
        # for ever.
        if odd or not all(re.fullmatch(r"[\w.-]+", name) for name in names):
            raise ModelError(
                f"{folder / ADAPTER_CONFIG} is not that of an adapter as `slm-judge train` makes "
                f"them{': ' if odd else ''}{', '.join(sorted(odd))}."
            )
        return peft.PeftModel.from_pretrained(model, folder, config=config)


@contextmanager
def loading(what: str | Path) -> Iterator[None]:
    """Turn what libraries raise over foreign or damaged files into one sentence.

    Raises:
        ModelError: something was raised, but not for want of memory.
    """
    try:
        yield
    except (JudgeError, MemoryError):
        raise
    except BaseException as error:
        # The tokenizer's Rust code ends in an exception that is none of Python's `Exception`.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, RuntimeError) and "memory" in str(error).lower():
            raise
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        reason = reason if " " in reason else repr(error)[:300]  # the key of a KeyError
        if "trust_remote_code" in str(error):
            reason = "it needs Python code of its own (`auto_map`), and such code is never run"
        raise ModelError(f"{what} cannot be loaded: {reason}") from error


def hide_bars() -> None:
    """Hide transformers' bars of loading and saving; those of the Hub's downloads still show."""
    from transformers.utils import logging

    logging.set_tqdm_hook(lambda bar, given, named: bar(*given, **named | {"disable": True}))


def cast(model: Any, dtype: Any) -> None:
    """Give a 4-bit model's other weights another type; `model.to` would refuse."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


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


def locate_base(base: str, revision: str | None = None, weights: bool = True) -> Path:
    """The folder of a base, downloaded where it is a Hub repository.

    Args:
        base: Hub repository, folder, or one of `OFFLINE`, which is built where needed.
        revision: branch, tag or commit of a repository.
        weights: whether they are needed, or the configuration and the tokenizer alone.

    Raises:
        ModelError: there is none.
    """
    if base in OFFLINE:
        module = importlib.import_module(f"slm_judge.offline.{base}")
        hide_bars()
        return Path(getattr(module, f"{base}_base")())
    if Path(base).is_dir():
        return Path(base)
    return snapshot(base, resolve(base, revision), *TEXTS, *(WEIGHTS if weights else ()))


def load_tokenizer(model: str | Path, revision: str | None = None) -> Any:
    """The tokenizer of a base or of a judge; see `locate_base`.

    Raises:
        ModelError: there is none, or it needs code of its own.
    """
    folder = locate_base(str(model), revision, weights=False)
    with loading(model):
        return read_tokenizer(folder)
