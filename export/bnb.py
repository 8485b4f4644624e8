"""The merged model in bitsandbytes 4-bit (NF4)."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from slm_judge.artefact.base import load_model, load_tokenizer, nf4
from slm_judge.artefact.judge_files import Contract
from slm_judge.errors import require
from slm_judge.files import TEMPORARY, atomic_folder
from slm_judge.run import Run

from .gptq import NF4, Unrounded, save_moved


def quantize_bnb(run: Run, console: Console, unrounded: Unrounded | None = None) -> None:
    """Write `bnb-4bit/` from `merged/`; `unrounded` as for `save_moved`.

    Raises:
        JudgeError: the run has no merged model.
    """
    require("bitsandbytes", "export")
    run.require(run.merged, f"export {run.folder}")
    settings = run.recipe().export
    with tempfile.TemporaryDirectory(dir=run.folder, prefix=TEMPORARY) as moved:
        kept = dict.fromkeys(settings.bnb_16bit)
        output = save_moved(run, Path(moved), NF4, console, kept, unrounded)
        with atomic_folder(run.bnb) as work:
            save_bnb(Path(moved), work, settings.dtype, [output, *settings.bnb_16bit])


def save_bnb(model: Path, folder: Path, dtype: str, kept: Sequence[str]) -> None:
    """Round a judge's folder to NF4, but for the layers whose names end with one of `kept`."""
    torch = require("torch", "export")
    # 16 bits beside the 4-bit weights, wherever the file is made. On a CPU, slm-judge computes with
    # it in float32 (see the transformers backend).
    dtype = "float16" if dtype == "float16" else "bfloat16"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rounded = load_model(model, device, dtype, quantization_config=nf4(dtype, kept))
    rounded.save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)
    Contract.load(model).save(folder)
