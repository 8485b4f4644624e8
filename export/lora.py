"""`slm-judge export --lora`: one base, many judges; base and adapter as two GGUF files."""

import json
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.console import Console

from slm_judge.artefact.base import ADAPTER_CONFIG, Base, load_adapter, load_base, load_tokenizer
from slm_judge.artefact.judge_files import Contract
from slm_judge.errors import require
from slm_judge.files import TEMPORARY, atomic_file, write_text
from slm_judge.offline.llama_source import LORA_CONVERTER
from slm_judge.run import Run
from slm_judge.screen import say

from .gguf import MOVED, add_keys, convert, quantize


def export_lora(run: Run, console: Console | None = None) -> None:
    """Write `gguf-lora/`: the base in each quantization of the recipe, and the adapter.

    The base is as training saw it: where it was frozen in 4 bits, these values, written out. In a
    type whose weights are moved for one judge, it is not made, since it is to serve all; where
    there is no other, it is in Q8_0.
    Judges of the same base, frozen alike, share its files; a base that is there is kept.

    Raises:
        JudgeError: the run has no adapter, or it is no plain LoRA, which alone llama.cpp adds.
    """
    require("torch", "export")
    console, adapter = console or Console(), run.require(run.adapter, f"train {run.recipe_file}")
    with run.alone(), tempfile.TemporaryDirectory(dir=run.folder, prefix=TEMPORARY) as made:
        work, tokenizer, base = Path(made), load_tokenizer(adapter), Base.load(adapter)
        model = load_base(base, "cpu", "float32")
        if getattr(model, "is_quantized", False):
            model = model.dequantize()
        model.float().save_pretrained(work / "base")
        named = known_as(base, model)
        tokenizer.save_pretrained(work / "base")
        _save_scaled(model, adapter, work / "adapter")
        plain = convert(
            work / "adapter", work / "lora.gguf", "f16", run.recipe().name,
            LORA_CONVERTER, ("--base", str((work / "base").resolve())),
        )  # fmt: skip
        with atomic_file(run.lora_file()) as path:
            add_keys(plain, path, Contract.load(adapter), named)
        whole = work / "whole.gguf"
        asked = run.recipe().export.gguf
        kept = [name for name in asked if name not in MOVED] or ["Q8_0"]
        if left := [name for name in asked if name in MOVED]:
            moved, bases = ", ".join(left), ", ".join(kept)
            say(console, [f"No base in {moved}, whose weights are moved for one judge: {bases}."])
        for name in kept:
            if not (target := run.lora_file(name)).exists():
                if not whole.exists():
                    plain = convert(work / "base", work / "base.gguf", "bf16", run.recipe().base)
                    add_keys(plain, whole, None, named)
                with atomic_file(target) as path:
                    quantize(whole, path, name)
    files = sorted(path.name for path in run.lora.iterdir())
    say(console, [f"{run.lora}: {', '.join(files)}"], "")


def known_as(base: Base, model: Any) -> str:
    """What tells a base from others, in files that travel: no folder of this machine."""
    name = f"{base.base}@{base.revision or ''}"
    if Path(base.base).is_dir():
        output = model.get_output_embeddings().weight.detach().numpy()
        name = f"{Path(base.base).name}@{sha256(output).hexdigest()[:16]}"
    return f"{name} {base.quantization}"


def _save_scaled(model: object, adapter: Path, folder: Path) -> None:
    """Save the adapter with its scales multiplied into B.

    llama.cpp knows one scale for all layers, alpha / rank; 0 stands for no scale at all. So ranks
    that differ by layer, and rank-stabilised scales, stay what they are. `load_adapter` refuses
    what is no plain LoRA, such as output rows that were trained as a whole (`modules_to_save`).
    """
    import torch

    peft = load_adapter(model, adapter)
    with torch.no_grad():
        for module in filter(lambda part: hasattr(part, "lora_B"), peft.modules()):
            for name, scale in module.scaling.items():
                if name in module.lora_B:
                    module.lora_B[name].weight.mul_(scale)
                else:
                    module.lora_embedding_B[name].mul_(scale)
    peft.save_pretrained(folder, save_embedding_layers=False)
    settings = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    write_text(folder / ADAPTER_CONFIG, json.dumps(settings | {"lora_alpha": 0}))
