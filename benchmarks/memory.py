"""Peak memory of `slm-judge annotate` for inputs of growing length.

    python benchmarks/memory.py --model runs/demo/gguf --rows 10000 100000 1000000

The texts are short and drawn from 50,000 different ones, so that the time is spent on streaming;
memory would grow with the number of rows if input or output were ever whole in memory.
"""

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shapes import _WORDS

DIFFERENT = 50_000


def write_rows(path: Path, n_rows: int) -> None:
    """A CSV of short texts."""
    rng = random.Random(0)  # noqa: S311
    texts = [" ".join(rng.choices(_WORDS, k=rng.randint(2, 5))) for _ in range(DIFFERENT)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows((i, rng.choice(texts)) for i in range(n_rows))


def measure(model: str, n_rows: int, folder: Path) -> dict[str, Any]:
    """Annotate in a process of its own, and ask the system for its peak."""
    source, output = folder / f"{n_rows}.csv", folder / f"{n_rows}.parquet"
    write_rows(source, n_rows)
    command = [sys.executable, "-m", "slm_judge", "annotate", str(source), "--model", model,
               "--output", str(output)]  # fmt: skip
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    seconds = time.perf_counter() - started
    return {
        "rows": n_rows, "input_mb": round(source.stat().st_size / 1e6, 1),
        "seconds": round(seconds, 1), "rows_per_second": round(n_rows / seconds),
        "peak_mib": round(usage.ru_maxrss / 1024),
    }  # fmt: skip


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="runs/demo/gguf")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = [measure(arguments.model, n, Path(folder)) for n in arguments.rows]
    print("| rows | input MB | seconds | rows/s | peak MiB |\n| ---: | ---: | ---: | ---: | ---: |")
    for row in results:
        print(f"| {' | '.join(str(value) for value in row.values())} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
