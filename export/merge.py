"""Adapter and base in one model."""

from slm_judge.artefact.base import Base, load_adapter, load_base, load_tokenizer
from slm_judge.artefact.judge_files import Contract
from slm_judge.errors import require
from slm_judge.files import atomic_folder
from slm_judge.run import Run


def merge(run: Run) -> None:
    """Write `merged/`: the adapter merged into its base, in the recipe's dtype.

    A base that was frozen in 4 bits is merged as it was, 4-bit values written out, so that the
    merged model is the function that was trained and not that of a base the adapter never saw.

    Raises:
        JudgeError: the run has no adapter.
    """
    torch = require("torch", "export")
    require("peft", "export")
    adapter = run.require(run.adapter, f"train {run.recipe_file}")
    tokenizer, contract = load_tokenizer(adapter), Contract.load(adapter)
    model = load_base(Base.load(adapter), "cpu", "float32")
    if getattr(model, "is_quantized", False):
        model = model.dequantize()
    model = load_adapter(model.float(), adapter).merge_and_unload()
    model = model.to(getattr(torch, run.recipe().export.dtype))
    with atomic_folder(run.merged) as work:
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        contract.save(work)
