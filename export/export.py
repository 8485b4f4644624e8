"""`slm-judge export`: adapter -> merged -> bitsandbytes 4-bit and GGUF."""

import time

from rich.console import Console

from slm_judge.run import Run

from .bnb import quantize_bnb
from .gguf import export_gguf
from .merge import merge


def export(run: Run, console: Console | None = None) -> None:
    """Write `merged/`, `bnb-4bit/` and `gguf/` of a trained run.

    Raises:
        JudgeError: the run has no adapter, or a step failed.
    """
    console = console or Console()
    steps = (
        ("merging the adapter into its base", merge),
        ("quantizing to bitsandbytes NF4", quantize_bnb),
        (f"writing GGUF: {', '.join(run.recipe().export.gguf)}", export_gguf),
    )
    for number, (title, step) in enumerate(steps, start=1):
        started = time.monotonic()
        console.print(f"[{number}/{len(steps)}] {title}", highlight=False, markup=False)
        with console.status(title):  # moves where the output is a terminal
            step(run)
        console.print(f"      {time.monotonic() - started:.1f} s", highlight=False)
