"""The judge in bitsandbytes 4-bit (NF4)."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from slm_judge.artefact.base import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    Base,
    cast,
    load_base,
    load_model,
    load_tokenizer,
    nf4,
)
from slm_judge.artefact.judge_files import ADAPTER_FOLDER, Contract
from slm_judge.errors import require
from slm_judge.files import TEMPORARY, atomic_folder
from slm_judge.run import Run

from .gptq import NF4, Unrounded, save_moved


def quantize_bnb(run: Run, console: Console, unrounded: Unrounded | None = None) -> None:
    """Write `bnb-4bit/`: from `merged/`, or the base as it was trained on beside the adapter.

    `unrounded` as for `save_moved`.

    Raises:
        JudgeError: the run has no merged model.
    """
    require("bitsandbytes", "export")
    run.require(run.merged, f"export {run.folder}")
    recipe = run.recipe()
    settings = recipe.export
    if recipe.keeps_adapter:
        with atomic_folder(run.bnb) as work:
            _save_unmerged(run.adapter, work, settings.dtype)
        return
    with tempfile.TemporaryDirectory(dir=run.folder, prefix=TEMPORARY) as moved:
        kept = dict.fromkeys(settings.bnb_16bit)
        output = save_moved(run, Path(moved), NF4, console, kept, unrounded)
        with atomic_folder(run.bnb) as work:
            save_bnb(Path(moved), work, settings.dtype, [output, *settings.bnb_16bit])


def _save_unmerged(adapter: Path, folder: Path, dtype: str) -> None:
    """Write the base of an adapter, in 4 bits as training had it, and the adapter in a subfolder.

    `pipeline("decision")` and slm-judge put the one on the other. The adapter is kept in float16,
    half the bytes of training's float32; slm-judge computes with it in float32, the pipeline in the
    type of the other weights.
    """
    from safetensors.torch import load_file, save_file

    torch, base = require("torch", "export"), Base.load(adapter)
    # The very values of training: in another type, weights might round to other levels.
    on_gpu = base.device == "cuda" and torch.cuda.is_available()
    model = load_base(base, "cuda" if on_gpu else "cpu", base.dtype)
    kind = getattr(torch, _beside(dtype))
    cast(model, kind)
    model.config.dtype = kind
    model.config.quantization_config.bnb_4bit_compute_dtype = kind
    model.save_pretrained(folder)
    load_tokenizer(adapter).save_pretrained(folder)
    replace(Contract.load(adapter), adapter=ADAPTER_FOLDER).save(folder)
    (own := folder / ADAPTER_FOLDER).mkdir()
    shutil.copyfile(adapter / ADAPTER_CONFIG, own / ADAPTER_CONFIG)
    weights = {name: weight.half() for name, weight in load_file(adapter / ADAPTER_WEIGHTS).items()}
    save_file(weights, own / ADAPTER_WEIGHTS, {"format": "pt"})


def _beside(dtype: str) -> str:
    """16 bits beside the 4-bit weights, wherever the file is made.

    On a CPU, slm-judge computes with it in float32 (see the transformers backend).
    """
    return "float16" if dtype == "float16" else "bfloat16"


def save_bnb(model: Path, folder: Path, dtype: str, kept: Sequence[str]) -> None:
    """Round a judge's folder to NF4, but for the layers whose names end with one of `kept`."""
    torch = require("torch", "export")
    dtype = _beside(dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rounded = load_model(model, device, dtype, quantization_config=nf4(dtype, kept))
    rounded.save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)
    Contract.load(model).save(folder)
