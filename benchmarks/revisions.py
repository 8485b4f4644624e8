"""Is this working tree slower than a revision of it? Annotation and training, in one run.

    python benchmarks/revisions.py 777144e
    python benchmarks/revisions.py main --run runs/demo --model 0.6b --repeats 5

The revision is checked out beside this tree and installed into a temporary folder; both do the same
work in processes of their own, in turns (A B A B), through what both have: `Judge.from_pretrained`,
`annotate` and `slm-judge train`. The judges are those of `--run`, or of a tiny run that this tree
trains and exports first; with `--model`, also random weights of that shape (see shapes.py). Medians
of the turns, and of each turn's ratio; above 1, this tree is faster.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from shapes import MODELS, ROOT, judge_folder, judge_gguf, make_items

ANNOTATE = """
import json, sys, time
from slm_judge import Judge
rows, (path, near_tie) = json.load(open(sys.argv[1])), sys.argv[2:]
with Judge.from_pretrained(path) as judge:
    if near_tie == "none":
        judge.backend.near_tie = 0.0  # on random weights, all rows are near ties
    judge.annotate(rows[:32])
    started = time.perf_counter()
    judge.annotate(rows)
    print(len(rows) / (time.perf_counter() - started))
"""


@contextmanager
def installed(revision: str, folder: Path) -> Iterator[Path]:
    """A folder for PYTHONPATH with a revision's package in it; `""` is this working tree."""
    tree = ROOT
    if revision:
        tree = folder / "tree"
        git("worktree", "add", "--detach", str(tree), revision)
    try:
        site = folder / (revision or "this")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*command, "--target", str(site), str(tree)], check=True)
        yield site
    finally:
        if revision:
            git("worktree", "remove", "--force", str(tree))


def git(*arguments: str) -> None:
    """Run git on this repository."""
    command = ["git", "-C", str(ROOT), *arguments]
    subprocess.run(command, check=True, capture_output=True)


def python(site: Path, *arguments: str) -> str:
    """What a process says that imports slm_judge from `site`."""
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{site.name}: {' '.join(arguments)[-200:]}\n{done.stderr[-2000:]}")
    return done.stdout


def recipe(folder: Path, epochs: int) -> Path:
    """The demo's recipe on 240 items, with its output in `folder`."""
    source = ROOT / "recipes" / "tiny.yaml"
    raw = yaml.safe_load(source.read_text(encoding="utf-8")) | {"output": str(folder / "run")}
    for part, key in ((raw, "rubric"), (raw["data"], "train"), (raw["data"], "gold")):
        part[key] = str((source.parent / part[key]).resolve())
    raw["training"]["epochs"] = epochs
    raw["data"]["limit"] = 240
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def train_rate(site: Path, path: Path) -> float:
    """Rows a second of a training run with its evaluations, without start-up."""
    python(site, "-m", "slm_judge", "train", str(path), "--overwrite")
    adapter = path.parent / "run" / "adapter"
    history = json.loads((adapter / "training.json").read_text(encoding="utf-8"))["history"]
    return next(float(row["train_samples_per_second"]) for row in history if "train_loss" in row)


def workloads(arguments: argparse.Namespace, folder: Path, sites: list[Path]) -> dict[str, Any]:
    """Name -> a function of a site that gives rows a second."""
    judges = arguments.run
    if judges is None:
        path = recipe(folder, epochs=8)
        python(sites[1], "-m", "slm_judge", "train", str(path))
        kept = folder / "run" / "recipe.json"  # a file that earlier revisions read, too
        settings = json.loads(kept.read_text(encoding="utf-8"))
        settings["export"]["bnb"] = "merged"
        kept.write_text(json.dumps(settings), encoding="utf-8")
        python(sites[1], "-m", "slm_judge", "export", str(folder / "run"))
        judges = (folder / "run").rename(folder / "judges")
    rows = folder / "rows.json"
    states = [" ".join(item.state.values()) for item in make_items("goemotions", arguments.rows)]
    rows.write_text(json.dumps(states), encoding="utf-8")
    few = folder / "few.json"
    few.write_text(json.dumps(states[: arguments.rows // 10]), encoding="utf-8")
    paths = {f"tiny, {kind}": (rows, judges / kind, "usual")
             for kind in ("gguf", "merged", "bnb-4bit", "adapter")}  # fmt: skip
    if arguments.model:
        make = {"gguf": judge_gguf, "transformers": judge_folder}
        paths |= {f"{arguments.model}, {kind}": (few, make[kind](arguments.model, "goemotions"),
                  "none") for kind in make}  # fmt: skip
    made: dict[str, Any] = {
        f"annotate {name}": lambda site, job=job: float(
            python(site, "-c", ANNOTATE, *map(str, job))
        )
        for name, job in paths.items()
    }
    path = recipe(folder, epochs=2)
    return made | {"train tiny": lambda site: train_rate(site, path)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision", help="to compare this working tree with")
    parser.add_argument("--run", type=Path, help="a trained and exported run whose judges annotate")
    parser.add_argument("--model", choices=MODELS, help="also annotate with this shape")
    parser.add_argument("--rows", type=int, default=600, help="short ones, to annotate")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="the work whose name holds this, e.g. gguf")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktree is removed
    with (
        tempfile.TemporaryDirectory() as name,
        installed(arguments.revision, Path(name)) as before,
        installed("", Path(name)) as now,
    ):
        print(f"python benchmarks/revisions.py {' '.join(sys.argv[1:])}\n")
        print(f"| rows a second | {arguments.revision} | this tree | ratio |")
        print("| --- | ---: | ---: | ---: |")
        for title, work in workloads(arguments, Path(name), [before, now]).items():
            if arguments.only not in title:
                continue
            turns = [(work(before), work(now)) for _ in range(arguments.repeats)]
            old, new = map(statistics.median, zip(*turns, strict=True))
            # Of neighbours in time: a busy machine slows both.
            ratio = statistics.median(second / first for first, second in turns)
            print(f"| {title} | {old:,.1f} | {new:,.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
