"""The merged model in bitsandbytes 4-bit (NF4)."""

import tempfile
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
    torch = require("torch", "export")
    require("bitsandbytes", "export")
    merged = run.require(run.merged, f"export {run.folder}")
    # 16 bits beside the 4-bit weights, wherever the file is made. On a CPU, slm-judge computes with
    # it in float32 (see the transformers backend).
    settings = run.recipe().export
    dtype = "float16" if settings.dtype == "float16" else "bfloat16"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kept = settings.bnb_16bit
    with tempfile.TemporaryDirectory(dir=run.folder, prefix=TEMPORARY) as moved:
        output = save_moved(run, Path(moved), NF4, console, kept, unrounded)
        quantization = nf4(dtype, [output, *kept])
        model = load_model(moved, device, dtype, quantization_config=quantization)
        with atomic_folder(run.bnb) as work:
            model.save_pretrained(work)
            load_tokenizer(merged).save_pretrained(work)
            Contract.load(merged).save(work)
