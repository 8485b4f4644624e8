"""The base under an adapter: what is kept about it, where it is, and how models are loaded."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from huggingface_hub import hf_hub_download
from pydantic import TypeAdapter, ValidationError

from slm_judge.errors import ModelError, require
from slm_judge.files import write_json
from slm_judge.hub import hub_message
from slm_judge.rubric import explain

BASE_FILE = "base.json"


@dataclass(frozen=True)
class Base:
    """The base under an adapter, as training used it and as every later load takes it."""

    base: str
    """Hub repository, folder, or "tiny"."""
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
    if base == "tiny" or Path(base).is_dir():
        return None
    try:
        config = hf_hub_download(base, "config.json", revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(hub_message(base, revision, error)) from error
    return Path(config).parent.name  # of the cache: snapshots/<commit>


def load_base(base: Base, device: str, dtype: str | None = None) -> Any:
    """Load the base under an adapter, by default in training's dtype (float32 on a CPU).

    Raises:
        ModelError: it is not there any more, or cannot be loaded.
    """
    dtype = dtype or ("float32" if device == "cpu" else base.dtype)
    options = {"quantization_config": nf4(dtype)} if base.quantization == "nf4" else {}
    try:
        return load_model(locate_base(base.base), device, dtype, revision=base.revision, **options)
    except (OSError, ValueError) as error:
        raise ModelError(hub_message(base.base, base.revision, error)) from error


def nf4(dtype: str) -> Any:
    """The 4-bit quantization of training and export, which computes in `dtype`."""
    require("bitsandbytes", "transformers")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def load_model(folder: str | Path, device: str, dtype: str, **options: Any) -> Any:
    """Load a folder or a Hub repository, the one way for training, judging and export.

    `options` are those of `from_pretrained`; `dtype` may be "auto", that of the files.
    """
    from transformers import AutoModelForCausalLM

    hide_bars()
    # Whatever the files ask for: eager attention would add the mask that keeps the rows of a pack
    # apart, which is true or false, to the scores.
    options |= {"attn_implementation": "sdpa", "use_safetensors": True}
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map={"": device}, **options
    )
    return in_float32(model) if device == "cpu" else model


def hide_bars() -> None:
    """Hide transformers' bars of loading and saving; those of the Hub's downloads still show."""
    from transformers.utils import logging

    logging.set_tqdm_hook(lambda bar, given, named: bar(*given, **named | {"disable": True}))


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


def locate_base(base: str) -> str:
    """What `from_pretrained` can load: "tiny" stands for the offline base, built where needed."""
    if base != "tiny":
        return base
    from slm_judge.offline.tiny import tiny_base

    hide_bars()
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
