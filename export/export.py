"""`slm-judge export`: adapter -> merged -> bitsandbytes 4-bit and GGUF."""

import time

from rich.console import Console
from rich.text import Text

from slm_judge.run import Run
from slm_judge.screen import say

from .bnb import quantize_bnb
from .gguf import contents, export_gguf
from .merge import merge


def export(run: Run, console: Console | None = None) -> None:
    """Write `merged/`, `bnb-4bit/` and `gguf/` of a trained run.

    Raises:
        JudgeError: the run has no adapter, a step failed, or another process is at work on it.
    """
    console = console or Console()
    steps = (
        ("merging the adapter into its base", merge),
        ("quantizing to bitsandbytes NF4", quantize_bnb),
        (f"writing GGUF: {', '.join(run.recipe().export.gguf)}", export_gguf),
    )
    with run.alone():
        for number, (title, step) in enumerate(steps, start=1):
            started = time.monotonic()
            say(console, [f"[{number}/{len(steps)}] {title}"], "")
            with console.status(Text(title)):  # moves where the output is a terminal
                step(run)
            say(console, [f"      {time.monotonic() - started:.1f} s"], "")
        for name in run.recipe().export.gguf:
            say(console, [f"      {name}: {contents(run.gguf_file(name))}"], "")
