"""`slm-judge export`: adapter -> merged -> bitsandbytes 4-bit and GGUF."""

import time
from collections.abc import Callable

from rich.console import Console

from slm_judge.artefact.locate import DEFAULT_FILE, default_gguf, default_text
from slm_judge.backends import memory_errors
from slm_judge.data.item import split_file
from slm_judge.files import write_text
from slm_judge.run import Run
from slm_judge.screen import say

from .bnb import quantize_bnb
from .cost import tell_cost
from .gguf import contents, export_gguf, quantization_type
from .gptq import Unrounded
from .merge import merge


def export(run: Run, console: Console | None = None) -> None:
    """Write `merged/`, `bnb-4bit/` and `gguf/` of a trained run, and say what each loses.

    Raises:
        JudgeError: the run has no adapter, llama.cpp knows no such quantization, a step failed, or
            another process is at work on it.
    """
    console, unrounded = console or Console(), Unrounded()
    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("merging the adapter into its base", lambda: merge(run)),
        ("quantizing to bitsandbytes NF4", lambda: quantize_bnb(run, console, unrounded)),
        (
            f"writing GGUF: {', '.join(run.recipe().export.gguf)}",
            lambda: export_gguf(run, console, unrounded),
        ),
    )
    for name in run.recipe().export.gguf:
        quantization_type(name)
    with run.alone(), memory_errors("Export on a machine with more of it, or without a GPU."):
        for number, (title, step) in enumerate(steps, start=1):
            started = time.monotonic()
            say(console, [f"[{number}/{len(steps)}] {title}"], "")
            step()
            say(console, [f"      {time.monotonic() - started:.1f} s"], "")
        for name in run.recipe().export.gguf:
            say(console, [f"      {name}: {contents(run.gguf_file(name))}"], "")
        validation = split_file(run.data, "validation")
        if validation.exists():
            tell_cost(run, console)
        else:
            (run.gguf / DEFAULT_FILE).unlink(missing_ok=True)  # of an earlier export
            write_text(run.gguf / DEFAULT_FILE, default_text(default_gguf(run)))
            say(console, [f"{validation} is missing: what the files lose is not said."])
