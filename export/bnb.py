"""The merged model in bitsandbytes 4-bit (NF4)."""

from slm_judge.artefact.base import load_tokenizer
from slm_judge.artefact.judge_files import Contract
from slm_judge.errors import require
from slm_judge.files import atomic_folder
from slm_judge.run import Run


def quantize_bnb(run: Run) -> None:
    """Write `bnb-4bit/` from `merged/`.

    Raises:
        JudgeError: the run has no merged model.
    """
    torch = require("torch", "export")
    transformers = require("transformers", "export")
    require("bitsandbytes", "export")
    merged = run.require(run.merged, f"export {run.folder}")
    # The same file wherever it is made: 16 bits beside the 4-bit weights. On a CPU, slm-judge
    # computes with it in float32 (see the transformers backend).
    dtype = torch.float16 if run.recipe().export.dtype == "float16" else torch.bfloat16
    model = transformers.AutoModelForCausalLM.from_pretrained(
        merged,
        dtype=dtype,
        device_map={"": "cuda" if torch.cuda.is_available() else "cpu"},
        quantization_config=transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
    )
    with atomic_folder(run.bnb) as work:
        model.save_pretrained(work)
        load_tokenizer(merged).save_pretrained(work)
        Contract.load(merged).save(work)
