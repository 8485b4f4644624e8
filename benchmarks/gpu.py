"""All that a GPU should show, in one command: tests, training, annotation, determinism.

    python benchmarks/gpu.py runs/gpu --minutes 12      # as much as fits, the most wanted first

Shapes of Qwen3-0.6B and Qwen3-1.7B with random weights. Each step is a command of its own, whose
output lands in the folder; one that fails or runs out of time does not stop the others. Build the
models beforehand, which needs no GPU: `--prepare`.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from shapes import MODELS, judge_folder
from throughput import versions

HERE, BOTH = Path(__file__).parent, ("--data", "goemotions", "answer-quality")
SIZES = ("1.7b", "0.6b")


def steps() -> dict[str, list[str]]:
    """Name -> command behind `python`."""
    import llama_cpp

    found = {"tests": ["-m", "pytest", "-q", "-m", "gpu", str(HERE.parent / "tests" / "gpu")]}
    for size in SIZES:
        found[f"training-{size}"] = ["training.py", "--model", size, *BOTH, "--steps", "5"]
        found[f"annotation-{size}"] = [
            "throughput.py", "--model", size, *BOTH, "--engines", "transformers", "--device",
            "cuda", "--dtype", "bfloat16", "nf4", "--seconds", "6",
        ]  # fmt: skip
    for dtype in ("bfloat16", "float16"):
        found[f"determinism-{dtype}"] = ["determinism.py", "--shape", "0.6b", "--dtype", dtype,
                                         "--engine", "transformers"]  # fmt: skip
    if llama_cpp.llama_supports_gpu_offload():  # a wheel that was built for CUDA
        found["llama.cpp"] = ["throughput.py", "--model", "1.7b", "--engines", "gguf", *BOTH]
    return found


def run(name: str, command: list[str], folder: Path, seconds: float) -> str:
    """Run a step; how it ended."""
    script = [] if command[0] == "-m" else ["--json", str(folder.resolve() / f"{name}.json")]
    started = time.monotonic()
    with (folder / f"{name}.log").open("w") as log:
        try:
            code = subprocess.run(
                [sys.executable, *command, *script], stdout=log, stderr=subprocess.STDOUT,
                timeout=seconds, cwd=HERE if script else HERE.parent, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"cut off after {seconds:.0f} s"
    return f"exit code {code} after {time.monotonic() - started:.0f} s"


def main() -> None:
    """Run the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=60, help="for all steps together")
    parser.add_argument("--only", nargs="+", help="these steps alone")
    parser.add_argument("--prepare", action="store_true", help="build the models, and stop")
    given = parser.parse_args()
    for size in SIZES:
        assert size in MODELS
        for data in BOTH[1:]:
            judge_folder(size, data)
    if given.prepare:
        return
    if not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device here.")
    given.folder.mkdir(parents=True, exist_ok=True)
    end, said = time.monotonic() + 60 * given.minutes, {"device": torch.cuda.get_device_name()}
    said["versions"] = versions()
    for name, command in steps().items():
        if not given.only or name in given.only:
            left = end - time.monotonic()
            said[name] = run(name, command, given.folder, left) if left > 20 else "no time left"
            print(f"{name}: {said[name]}", flush=True)
    (given.folder / "summary.json").write_text(json.dumps(said, indent=2) + "\n")


if __name__ == "__main__":
    main()
