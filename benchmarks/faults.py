"""Faults, with counts tried and counts failed: what docs/reliability.md promises.

    python -m benchmarks.faults --run runs/demo                          # a few minutes
    python -m benchmarks.faults --run runs/demo --kills 1000 --files 5000 --texts 1000000

`--run` is a verified run. Each section stands alone: `--only kills writers columns hub files`.

- kills: SIGKILL at random moments of `annotate`, `train` and `push`, started again until they end;
  what they make is compared with what an uninterrupted one makes: files byte for byte, the weights
  of the adapter, the files on the Hub (of tests/hub, on loopback).
- writers: four processes at a time make one output.
- columns: seconds for a table of 10,000 columns over those for 10, with the same rows.
- hub: each fault of tests/hub/faults.py at each request of a push and a pull.
- files: benchmarks/strangers.py. - texts: benchmarks/texts.py.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECONDS = 600  # for one job, or one process
WORDS = ("parcel", "refund", "lamp", "late", "please", "now", "money", "back", "thank", "you")
# Not by `spawn`: a killed job starts again in milliseconds, with all that is imported.
FORK = multiprocessing.get_context("fork")


@dataclass
class Count:
    """Of one kind of fault."""

    tried: int = 0
    failed: int = 0

    def add(self, good: bool, what: object = "") -> None:
        """Count one, and say what failed."""
        self.tried += 1
        self.failed += not good
        if not good:
            print(f"FAILED: {what}", flush=True)


def gguf_of(run: Path) -> Path:
    """The GGUF file that people get."""
    from slm_judge.artefact.locate import locate

    return locate(run / "gguf", None, None)


def texts(n: int, rng: random.Random) -> list[str]:
    """Messages of some words, a tenth of them repeated."""
    found = [" ".join(rng.choices(WORDS, k=rng.randrange(3, 25))) for _ in range(n)]
    return [rng.choice(found) if rng.random() < 0.1 else text for text in found]


def write_csv(path: Path, rows: list[str], columns: int = 1) -> Path:
    """A table with a text and further columns."""
    names = ["text", *(f"c{i}" for i in range(1, columns))]
    more = [str(i % 1000) for i in range(1, columns)]
    lines = (",".join([text, *more]) for text in rows)
    path.write_text("\n".join([",".join(names), *lines]) + "\n")
    return path


# --- jobs that are killed; each runs in a process of its own ---


def annotate_job(model: Path, source: Path, output: Path) -> None:
    """Annotate `source` in small pieces."""
    from slm_judge import Judge
    from slm_judge.annotate.job import annotate_table
    from slm_judge.annotate.rows import AnnotateOptions

    options = AnnotateOptions(rows_per_piece=16)
    with Judge.from_pretrained(model, n_threads=1, trust=True) as judge:
        annotate_table(judge, str(source), output, options, show_progress=False)


def train_job(folder: Path) -> None:
    """A few steps of training with a checkpoint each."""
    import torch
    from slm_judge.training.train import train

    torch.set_num_threads(1)
    train(small_recipe(folder), resume=True)


def small_recipe(folder: Path) -> Any:
    """The recipe of the demo on a few items."""
    from slm_judge.recipe import Recipe

    recipe = Recipe.from_file(ROOT / "recipes" / "tiny.yaml")
    training = {"epochs": 2, "checkpoint_minutes": 0.001, "targets": "sampled"}
    data = {"limit": 32, "test_share": 0.1, "validation_share": 0.1}
    return recipe.model_copy(
        update={
            "output": str(folder),
            "training": recipe.training.model_copy(update=training),
            "data": recipe.data.model_copy(update=data),
        }
    )


def push_job(run: Path, user: str) -> None:
    """Push a verified run to the Hub of the environment."""
    from rich.console import Console
    from slm_judge.export.push import push

    from slm_judge.run import Run

    os.environ["HF_TOKEN"] = f"hf_{user}"
    push(Run(run), user=user, console=Console(quiet=True))


def quietly(job: Callable[..., None], *arguments: object) -> None:
    """Run a job, with what it prints in a file that is read where it fails."""
    with Path(os.environ["SLM_JUDGE_FAULTS_LOG"]).open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        job(*arguments)
        os._exit(0)  # a fork should not tear down what its parent made


def killed_until_done(
    job: Callable[..., None],
    arguments: tuple[object, ...],
    longest: float,
    rng: random.Random,
    done: Callable[[], bool] = lambda: False,
) -> tuple[int, bool]:
    """Start a job again until it ends, and kill it within `longest` seconds, five times in six.

    A kill may come after the last thing that a job does; `done` tells.

    Returns:
        How often it was killed, and whether it ended well.
    """
    kills = 0
    while True:
        process = FORK.Process(target=quietly, args=(job, *arguments))
        process.start()
        process.join(rng.uniform(0, longest) if rng.random() < 5 / 6 else SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join(SECONDS)
        if process.exitcode != -signal.SIGKILL:
            if process.exitcode:
                print(Path(os.environ["SLM_JUDGE_FAULTS_LOG"]).read_text()[-3000:], flush=True)
            return kills, process.exitcode == 0
        kills += 1
        if done():
            return kills, True


def uninterrupted(job: Callable[..., None], *arguments: object) -> float:
    """Seconds of a job that nobody kills."""
    started = time.perf_counter()
    process = FORK.Process(target=quietly, args=(job, *arguments))
    process.start()
    process.join(SECONDS)
    if process.exitcode != 0:
        sys.exit(f"{job.__name__} fails: {Path(os.environ['SLM_JUDGE_FAULTS_LOG']).read_text()}")
    return time.perf_counter() - started


def killed_annotations(run: Path, n: int, work: Path, rng: random.Random) -> Iterator[Count]:
    """Kill `annotate`, with outputs of each format in turn."""
    import llama_cpp
    import pyarrow.parquet

    from slm_judge.annotate import job  # so that forks have it

    del llama_cpp, pyarrow.parquet, job
    model = gguf_of(run)
    count, kills = Count(), 0
    source = write_csv(work / "in.csv", texts(200, rng))
    whole, longest = {}, 0.0
    for suffix in ("csv", "jsonl", "parquet", "csv.gz"):
        longest = uninterrupted(annotate_job, model, source, work / f"whole.{suffix}")
        whole[suffix] = (work / f"whole.{suffix}").read_bytes()
    while kills < n:
        suffix = list(whole)[kills % len(whole)]
        output = work / f"out-{kills}.{suffix}"
        pieces = Path(f"{output}.parts")
        more, ended = killed_until_done(
            annotate_job, (model, source, output), longest / 2, rng,
            lambda output=output, pieces=pieces: output.exists() and not pieces.exists(),
        )  # fmt: skip
        kills += more
        same = ended and output.read_bytes() == whole[suffix]
        # Killed between its last act and its end, a job leaves the empty file of its lock.
        left = [p.name for p in work.iterdir() if ".slm-judge" in p.name or ".parts" in p.name]
        count.add(same and not left, (output, ended, left))
        output.unlink(missing_ok=True)
    print(f"annotate: {kills} kills, {count.tried} outputs", flush=True)
    yield Count(kills, count.failed)


def killed_trainings(n: int, work: Path, rng: random.Random) -> Iterator[Count]:
    """Kill `train`, which then goes on; the weights are those of an uninterrupted run."""
    from slm_judge.training import train  # so that forks have it

    del train

    def weights(folder: Path) -> bytes:
        return (folder / "adapter" / "adapter_model.safetensors").read_bytes()

    longest = uninterrupted(train_job, work / "whole")
    count, kills = Count(), 0
    while kills < n:
        folder = work / f"run-{kills}"
        more, ended = killed_until_done(train_job, (folder,), longest / 2, rng)
        kills += more
        left = list(work.glob("**/.slm-judge-*")) + list(work.glob(".*"))
        same = ended and weights(folder) == weights(work / "whole")
        count.add(same and not left, (folder, ended, left))
        shutil.rmtree(folder, ignore_errors=True)
    print(f"train: {kills} kills, {count.tried} runs", flush=True)
    yield Count(kills, count.failed)


def killed_pushes(run: Path, n: int, work: Path, rng: random.Random) -> Iterator[Count]:
    """Kill `push`; in the end the Hub has each file, in one commit a repository."""
    from slm_judge.run import Run
    from tests.hub.conftest import lighten

    run = lighten(Run(run), Run(work / "run")).folder
    count, kills = Count(), 0
    recipe = Run(run).recipe()
    names = [f"{recipe.name}{kind}" for kind in ("", "-lora", "-bnb-4bit", "-GGUF")]
    longest = uninterrupted(push_job, run, "whole")
    whole = {name: hub_files("whole", name) for name in names}
    while kills < n:
        user = f"user{kills}"
        more, ended = killed_until_done(push_job, (run, user), longest, rng)
        kills += more
        for name in names:
            files, commits = hub_files(user, name) if ended else ({}, 0)
            # The cards name the user; everything else is the same.
            same = {f: h for f, h in files.items() if f != "README.md"}
            count.add(
                bool(files) and commits == 2
                and same == {f: h for f, h in whole[name][0].items() if f != "README.md"},
                (user, name, commits),
            )  # fmt: skip
        shutil.rmtree(work / "hub" / "models" / user, ignore_errors=True)
    print(f"push: {kills} kills, {count.tried} repositories", flush=True)
    yield Count(kills, count.failed)


def hub_files(user: str, name: str) -> tuple[dict[str, str], int]:
    """Path -> SHA-256 of a repository's files, and its number of commits."""
    from tests.hub.server import Repo

    repo = Repo(Path(os.environ["SLM_JUDGE_FAULTS_HUB"]) / "models" / user / name)
    history = repo.history()
    return history[0]["files"], len(history)


# --- the others ---


def writers(run: Path, rounds: int, work: Path, rng: random.Random) -> Iterator[Count]:
    """Four processes on one output: each makes it as a whole, or says that another does."""
    model = gguf_of(run)
    source, count = write_csv(work / "in.csv", texts(400, rng)), Count()
    command = [sys.executable, "-m", "slm_judge", "annotate", str(source), "--model", str(model),
               "--rows-per-piece", "16", "--overwrite", "--threads", "1", "--output"]  # fmt: skip
    for _ in range(rounds):
        output = work / "out.csv"
        processes = [
            subprocess.Popen(
                [*command, str(output)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            for _ in range(4)
        ]
        said = [process.communicate(timeout=SECONDS)[0].decode() for process in processes]
        codes = [process.returncode for process in processes]
        for code, text in zip(codes, said, strict=True):
            told = code == 2 and "Another process is working on" in " ".join(text.split())
            count.add(code == 0 or told, text)
        count.add(0 in codes and len(output.read_text().splitlines()) == 401, codes)
    yield count


def columns(run: Path, work: Path, rng: random.Random) -> Iterator[Count]:
    """Seconds for 10,000 columns over those for 10: the median of three, with the same rows."""
    from statistics import median

    from slm_judge import Judge
    from slm_judge.annotate.job import annotate_table

    rows = texts(500, rng)
    seconds: dict[int, list[float]] = {10: [], 10_000: []}
    model = gguf_of(run)
    for n in seconds:
        write_csv(work / f"{n}.csv", rows, n)
    for _ in range(4):
        for n, found in seconds.items():
            with Judge.from_pretrained(model) as judge:
                started = time.perf_counter()
                annotate_table(
                    judge,
                    str(work / f"{n}.csv"),
                    work / "o.csv",
                    overwrite=True,
                    show_progress=False,
                )
                found.append(time.perf_counter() - started)
    few, many = (median(found[1:]) for found in seconds.values())  # the first one warms up
    print(f"columns: 10 in {few:.2f} s, 10,000 in {many:.2f} s: {many / few:.2f} times", flush=True)
    yield Count(1, int(many > 3 * few))


def other(module: str, *arguments: str) -> Iterator[Count]:
    """A benchmark of its own, which exits with 1 where something failed."""
    result = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, check=False)
    yield Count(1, int(result.returncode != 0))


def hub_faults() -> Iterator[Count]:
    """The tests of the Hub's faults, all of them."""
    yield from other("pytest", "-q", "-p", "no:cacheprovider", "tests/hub/test_faults.py")


def serve(folder: Path) -> str:
    """Start the Hub of the tests in a process of its own, and give its address."""
    address = FORK.SimpleQueue()

    def run() -> None:
        from tests.hub.server import LoopbackHub

        users = ["whole", *(f"user{i}" for i in range(100_000))]
        with LoopbackHub(folder, {f"hf_{user}": user for user in users}) as hub:
            address.put(hub.url)
            time.sleep(100_000)

    FORK.Process(target=run, daemon=True).start()
    return address.get()


def main() -> None:
    """Run the sections that are asked for, and print what was tried and what failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    run, found = args.run.resolve(), dict[str, Any]()
    rng = random.Random(args.seed)  # noqa: S311
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        os.environ["SLM_JUDGE_FAULTS_LOG"] = str(work / "log")
        os.environ["SLM_JUDGE_FAULTS_HUB"] = str(work / "hub")
        sections = {
            "kills of push": lambda at: killed_pushes(run, args.kills * 15 // 100, at, rng),
            "kills of annotate": lambda at: killed_annotations(run, args.kills * 8 // 10, at, rng),
            "kills of train": lambda at: killed_trainings(args.kills * 5 // 100, at, rng),
            "writers": lambda at: writers(run, args.rounds, at, rng),
            "columns": lambda at: columns(run, at, rng),
            "hub faults": lambda at: hub_faults(),
            "files": lambda at: other(
                "benchmarks.strangers", "--run", str(run), "--files", str(args.files)
            ),
            "texts": lambda at: other("benchmarks.texts", "--texts", str(args.texts)),
        }
        for title, section in sections.items():
            if args.only and not any(word in title for word in args.only):
                continue
            started, at = time.perf_counter(), work / title.replace(" ", "-")
            at.mkdir()
            if title == "kills of push":
                start_hub(work / "hub")
            counts = list(section(at))
            found[title] = {
                "tried": sum(count.tried for count in counts),
                "failed": sum(count.failed for count in counts),
                "seconds": round(time.perf_counter() - started, 1),
            }
            print(f"{title}: {json.dumps(found[title])}", flush=True)
    if args.output:
        args.output.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(int(any(section["failed"] for section in found.values())))


def start_hub(folder: Path) -> None:
    """Point the Hub's client, which reads this when it is imported, at one on loopback."""
    os.environ |= {
        "HF_HOME": str(folder.with_name("hf")),
        "HF_ENDPOINT": serve(folder),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


if __name__ == "__main__":
    main()
