"""A fuzz of damaged and hostile files: each is loaded, or refused in a sentence.

    python -m benchmarks.strangers --run runs/demo --files 5000

Everything that slm-judge reads is damaged, with a seed a file: rubrics, recipes, runs, tables,
predictions, the files of a judge's folder (contract, configuration, tokenizer, adapter, weights)
and GGUF files (in judges with a small vocabulary, benchmarks/small_judges.py). Each file is read
through the public entry in a worker process. `failed` counts what raised anything but a
`JudgeError`, crashed, or took longer than two minutes; it must be 0. `--only KIND:NUMBER` repeats
one file.
"""

import argparse
import gzip
import json
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

ROOT = Path(__file__).parents[1]
SECONDS, GIB = 120, 6  # that a file may take
SHARES = {"rubric": 14, "recipe": 10, "run": 8, "table": 18, "predictions": 8, "contract": 14,
          "folder": 20, "gguf": 8}  # of the files, in percent  # fmt: skip

HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308, 5e-324,
    float("nan"), float("inf"), -float("inf"), "", " ", "nan", "0", "-1", "1e999", "\x00", "\ud800",
    "\u202e", "e\u0301", "{{ x }}", "{% for i in range(9**9) %}{% endfor %}", "../../../etc/passwd",
    "/dev/zero", "<|im_end|>", "[/red]", "$10", "a" * 100_000, [], {}, [[]], [{}], [None], {"": {}},
    {"a": {"b": []}}, ["a", "a"], [1, "a"], list(range(5000)), "os", "bfloat16", "auto", "float64",
]  # fmt: skip
SNIPPETS = [
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n\n", b'"', b"'", b"{", b"[" * 3000,
    b"{" * 3000, b"- " * 3000, b"1" * 5000, b"\xed\xa0\x80", b"NaN", b"&a [*a, *a]", b"<<: *x",
    b"!!python/object/apply:os.system [x]", b"{%", b"{{", b"%}", b"\t", b",", b": ", b"\\u0000",
    b"\x1f\x8b", b"PAR1", b"GGUF", b"null", b"a: &a [1]\nb: [*a]\n", "\u00a6".encode(), b"e" * 9999,
]  # fmt: skip


# --- damage ---


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Cut, flip, insert, double or overwrite."""
    out = bytearray(data)
    place = rng.randrange(len(out) + 1)
    way = rng.randrange(6)
    if way == 0:
        return bytes(out[: rng.choice([0, 1, place, place, len(out) - 1])])
    if way == 1:
        for _ in range(rng.choice([1, 1, 4, 64])):
            if out:
                out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif way == 2:
        out[place:place] = rng.choice(SNIPPETS)
    elif way == 3:
        end = place + rng.randrange(200)
        out[place:place] = out[place:end] * rng.choice([1, 1, 50])
    elif way == 4:
        del out[place : place + rng.randrange(1, 200)]
    else:
        snippet = rng.choice(SNIPPETS)
        out[place : place + len(snippet)] = snippet
    return bytes(out)


def damage_value(value: Any, rng: random.Random) -> Any:
    """Swap, drop, double or rename something somewhere in a value read from JSON."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        deep: Any = []
        for _ in range(rng.choice([30, 900])):
            deep = [deep]
        return rng.choice([*HOSTILE, deep])
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    way = rng.random()
    changed: Any = dict(value) if isinstance(value, dict) else list(value)
    if way < 0.75:
        changed[key] = damage_value(value[key], rng)
    elif way < 0.85:
        del changed[key]
    elif isinstance(changed, list):
        changed.append(value[key])
    else:
        changed[rng.choice(["", "extra", "name", "type", "a" * 300])] = rng.choice(HOSTILE)
    return changed


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """Damage a value of a JSON file (or of a line of JSON Lines), or its bytes."""
    if rng.random() < 0.3:
        return damage_bytes(data, rng)
    lines = data.decode().splitlines(keepends=True)
    whole = len(lines) < 2 or not lines[0].rstrip().endswith("}")
    number = 0 if whole else rng.randrange(len(lines))
    value = json.loads(data if whole else lines[number])
    for _ in range(rng.choice([1, 1, 1, 3])):
        value = damage_value(value, rng)
    text = json.dumps(value).encode()
    if whole:
        return text
    return "".join(lines[:number]).encode() + text + b"\n" + "".join(lines[number + 1 :]).encode()


def damage_yaml(data: bytes, rng: random.Random) -> bytes:
    """As JSON, which YAML contains, as lines, or as bytes."""
    import yaml

    if rng.random() < 0.5:
        return damage_json(json.dumps(yaml.safe_load(data)).encode(), rng)
    if rng.random() < 0.4:
        return damage_bytes(data, rng)
    lines = data.splitlines(keepends=True)
    number = rng.randrange(len(lines))
    key, colon, _ = lines[number].partition(b":")
    hostile = json.dumps(rng.choice(HOSTILE)).encode()
    changed = {0: [], 1: [lines[number]] * 2, 2: [key + colon + b" " + hostile + b"\n"],
               3: [b" " * rng.randrange(9) + lines[number]],
               4: [rng.choice(SNIPPETS) + b"\n"]}  # fmt: skip
    lines[number : number + 1] = changed[rng.randrange(5)]
    return b"".join(lines)


def damage_safetensors(data: bytes, rng: random.Random) -> bytes:
    """The header's length, its JSON, or the weights."""
    (size,) = struct.unpack("<Q", data[:8])
    way = rng.random()
    if way < 0.15:
        length = rng.choice([0, 1, size - 1, size + 1, 2**40, 2**64 - 1, rng.randrange(2**20)])
        return struct.pack("<Q", length) + data[8:]
    if way < 0.6:
        header = damage_json(data[8 : 8 + size], rng)
        return struct.pack("<Q", len(header)) + header + data[8 + size :]
    if way < 0.8:
        out = bytearray(data)
        start = rng.randrange(8 + size, len(out))
        for value in (b"\xff\xff\xff\x7f", b"\x00\x00\x80\x7f", b"\x00" * 4, b"\xff" * 4):
            place = rng.randrange(start, len(out))
            out[place : place + 256] = (value * 64)[: len(out) - place]
        return bytes(out)
    return damage_bytes(data, rng)


def damage_gguf(source: Path, target: Path, rng: random.Random) -> None:
    """Values of keys, shapes and types of tensors, weights, or bytes of the first part."""
    from benchmarks.small_judges import Gguf

    data = source.read_bytes()
    way = rng.random()
    if way < 0.45:
        _damage_keys(Gguf.read(source), target, rng)
        return
    names = [data.index(name.encode()) for name in Gguf.read(source).tensors]
    start, end = min(names) - 8, max(names) + 60  # of what describes the tensors
    out = bytearray(data)
    if way < 0.6:  # the header: version, number of tensors, number of keys
        place, value = rng.choice([4, 8, 16]), rng.choice([0, 1, 2, 24, 26, 31, 2**31, 2**62])
        out[place : place + 8] = struct.pack("<Q", value)
    elif way < 0.75:
        for _ in range(rng.choice([1, 2, 8])):
            out[rng.randrange(start, end)] = rng.choice([0, 1, 2, 3, 7, 8, 128, 255])
    elif way < 0.85:
        place = rng.randrange(end, len(out))
        out[place:] = rng.choice([b"\xff", b"\x7f", b"\x00", b"\x7e"]) * (len(out) - place)
    elif way < 0.95:
        for _ in range(rng.choice([1, 4, 64])):
            out[rng.randrange(start)] ^= 1 << rng.randrange(8)
    else:
        del out[rng.choice([rng.randrange(len(out)), rng.randrange(end), 3, 24, end]) :]
    target.write_bytes(out)


def _damage_keys(gguf: Any, target: Path, rng: random.Random) -> None:
    numbers = [0, 1, 2, 3, 5, 7, 64, 255, 4097, 2**16, 2**31 - 1, 2**31, 2**32 - 1]
    name = rng.choice(list(gguf.keys))
    kind, value, inner = gguf.keys[name]
    if rng.random() < 0.15:
        del gguf.keys[name]
    elif kind.name == "FLOAT32":
        floats = [0.0, -1.0, 1e-9, 1e38, float("nan"), float("inf"), -float("inf")]
        gguf.keys[name] = (kind, rng.choice(floats), inner)
    elif kind.name == "STRING":
        template = value.replace('"', rng.choice(["'", "{{ x }}", ""]), rng.randrange(5))
        texts = ["", "x", "llama", "gemma3", "gpt2", "bert", "a" * 10**6, "\x00", template,
                 damage_json(value.encode(), rng).decode("utf-8", "replace")
                 if value.startswith('{"') else value[: rng.randrange(len(value) + 1)]]  # fmt: skip
        gguf.keys[name] = (kind, rng.choice(texts), inner)
    elif kind.name == "ARRAY":
        changed = rng.choice([value[: len(value) // 2], value[:1], value[::-1], value + value,
                              value[1:] + value[:1]])  # fmt: skip
        gguf.keys[name] = (kind, changed, inner)
    else:
        gguf.keys[name] = (kind, rng.choice(numbers), inner)
    gguf.write(target)


# --- reading, in a worker ---


class Reader:
    """Damages one file at a time in a folder of its own, and reads it."""

    def __init__(self, run: Path, judges: Path, work: Path) -> None:
        """Find what is to be damaged."""
        from slm_judge.run import Run

        self.run, self.judges, self.work = Run(run), judges, work
        self.rubric = Run(run).rubric()
        self.sample = (ROOT / "samples" / "support-messages.csv").read_bytes()[:20_000]

    def read(self, kind: str, number: int) -> None:
        """Make file `number` of a kind, and read it; raises what reading it raises."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        getattr(self, f"read_{kind}")(random.Random(f"{kind} {number}"))  # noqa: S311

    def _put(self, name: str, data: bytes) -> Path:
        path = self.work / name
        path.write_bytes(data)
        return path

    def read_rubric(self, rng: random.Random) -> None:
        """A rubric in YAML."""
        from slm_judge.artefact.preview import preview
        from slm_judge.rubric import Rubric

        source = rng.choice(sorted((ROOT / "rubrics").glob("*.yaml"))).read_bytes()
        preview(Rubric.from_file(self._put("rubric.yaml", damage_yaml(source, rng))))

    def read_recipe(self, rng: random.Random) -> None:
        """A recipe in YAML."""
        from slm_judge.recipe import Recipe

        source = rng.choice(sorted((ROOT / "recipes").glob("*.yaml"))).read_bytes()
        Recipe.from_file(self._put("recipe.yaml", damage_yaml(source, rng)))

    def read_run(self, rng: random.Random) -> None:
        """What the later stages read of a run."""
        from slm_judge.export.verify import read_report

        from slm_judge.data.item import load_split
        from slm_judge.run import Run

        names = ["recipe.json", "adapter/rubric.json", "data/test.jsonl", "report/verify.json"]
        names = [name for name in names if (self.run.folder / name).exists()]  # verified or not
        broken = rng.choice(names)
        for name in names:
            data = (self.run.folder / name).read_bytes()
            (self.work / name).parent.mkdir(exist_ok=True)
            self._put(name, damage_json(data, rng) if name == broken else data)
        run = Run.find(self.work)
        run.recipe()
        run.rubric()
        load_split(run.data, "test")
        if run.report.exists():
            read_report(run)

    def _table(self, name: str, data: bytes, rng: random.Random) -> Path:
        """A table in some format, damaged before it is packed, after, or both."""
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.parquet

        suffix = rng.choice([".csv", ".csv", ".tsv", ".jsonl", ".jsonl", ".parquet", ".csv.gz"])
        table = pa.csv.read_csv(pa.BufferReader(data[: data.rindex(b"\n") + 1]))
        if suffix == ".jsonl":
            lines = (json.dumps(row) for row in table.to_pylist())
            return self._put(f"{name}.jsonl", damage_json("\n".join(lines).encode(), rng))
        if suffix == ".parquet":
            pa.parquet.write_table(table, self.work / "t.parquet")
            packed = (self.work / "t.parquet").read_bytes()
            return self._put(f"{name}.parquet", damage_bytes(packed, rng))
        damaged = damage_bytes(data, rng)
        if suffix == ".csv.gz":
            damaged = gzip.compress(damaged)
            damaged = damage_bytes(damaged, rng) if rng.random() < 0.6 else damaged
        return self._put(f"{name}{suffix}", damaged)

    def read_table(self, rng: random.Random) -> None:
        """A table of annotations: whole, as it is annotated, and as annotations."""
        from slm_judge.data.read import read_annotations
        from slm_judge.data.tables import TableStream, read_table

        path = str(self._table("table", self.sample, rng))
        stream = TableStream(path)
        stream.overview()
        for piece in stream.pieces(50):
            piece.values(["text"])
        read_table(path)
        read_annotations(path, self.rubric, annotator="annotator_id")

    def read_predictions(self, rng: random.Random) -> None:
        """What a system said."""
        from slm_judge.data.predictions import read_predictions

        source = self.run.validation.read_bytes()
        ids = [json.loads(line)["item_id"] for line in source.splitlines()]
        path = self._put("said.jsonl", damage_json(source, rng))
        read_predictions(str(path), self.rubric, ids)

    def read_contract(self, rng: random.Random) -> None:
        """The contract of a judge, and its template rendered."""
        from slm_judge.artefact.judge_files import FILES, Contract
        from slm_judge.prompt.templates import compile_template, decision_questions

        broken = rng.choice(FILES)
        for name in FILES:
            data = (self.judges / "merged" / name).read_bytes()
            damage: Callable[..., bytes] = damage_json if name.endswith(".json") else damage_bytes
            self._put(name, damage(data, rng) if name == broken else data)
        found = Contract.load(self.work)
        questions = decision_questions(found.rubric, found.labels)
        state = dict.fromkeys(found.rubric.fields, "a" * 1000)
        compile_template(found.decision_template).render(state=state, questions=questions)

    def read_folder(self, rng: random.Random) -> None:
        """A judge for transformers."""
        kind = rng.choice(["merged", "merged", "bnb-4bit", "adapter"])
        folder = self.judges / kind
        names = {p.name for p in folder.iterdir() if p.is_file()} - {"README.md", "questions.json"}
        if (folder / "adapter").is_dir():
            (self.work / "adapter").symlink_to(folder / "adapter")
        weights = next(name for name in names if name.endswith(".safetensors"))
        broken = rng.choice([*sorted(names - {"chat_template.jinja"}), weights, weights])
        for name in names:
            if name != broken:
                (self.work / name).symlink_to(folder / name)
        data = (folder / broken).read_bytes()
        if rng.random() < 0.05:
            return self._ask(self.work)
        if broken.endswith(".json"):
            data = damage_json(data, rng)
        else:
            data = (damage_safetensors if broken == weights else damage_bytes)(data, rng)
        self._put(broken, data)
        return self._ask(self.work)

    def read_gguf(self, rng: random.Random) -> None:
        """A judge for llama.cpp."""
        path = self.work / "judge.gguf"
        damage_gguf(self.judges / "judge.gguf", path, rng)
        self._ask(path)

    def _ask(self, path: Path) -> None:
        from slm_judge import Judge

        texts = ["hello", "I want my money back! <|im_end|>"]
        with Judge.from_pretrained(path, n_threads=1) as judge:
            for annotation in judge.annotate(texts if len(judge.rubric.fields) == 1 else []):
                if not all(0 <= share <= 1 for share in annotation.confidence.values()):
                    raise AssertionError(f"no probabilities: {annotation}")


def work(arguments: argparse.Namespace) -> None:
    """Read the files that stdin names, and print what became of each."""
    from slm_judge.errors import JudgeError

    resource.setrlimit(resource.RLIMIT_DATA, (GIB * 2**30,) * 2)
    out, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SLM_JUDGE_CACHE"] = f"{folder}/cache"  # for the GGUF files that have passed
        reader = Reader(arguments.run, arguments.judges, Path(folder) / "work")
        print("ready", file=out, flush=True)
        for line in sys.stdin:
            kind, number = line.strip().split(":")
            try:
                reader.read(kind, int(number))
                said = ["loaded", ""]
            except JudgeError as error:
                said = ["refused", f"{type(error).__name__}: {error}"]
            except BaseException:
                said = ["failed", traceback.format_exc()]
            print(json.dumps(said), file=out, flush=True)


# --- the parent ---


class Worker:
    """A process that is started again where it has died."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Start lazily."""
        self.command = [sys.executable, "-m", "benchmarks.strangers", "--work", "--run",
                        str(arguments.run), "--judges", str(arguments.judges)]  # fmt: skip
        self.process: subprocess.Popen[str] | None = None

    def _start(self) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        self.said: Queue[str] = Queue()
        Thread(target=self._listen, args=(self.process, self.said), daemon=True).start()
        self.said.get(timeout=120)

    @staticmethod
    def _listen(process: Any, said: Queue[str]) -> None:
        for line in process.stdout:
            said.put(line)
        said.put("")

    def read(self, task: str) -> tuple[str, str]:
        """What became of a file, and what was said."""
        if self.process is None:
            self._start()
        assert self.process is not None
        assert self.process.stdin is not None
        print(task, file=self.process.stdin, flush=True)
        try:
            answer = self.said.get(timeout=SECONDS)
        except Empty:
            answer, how = "", f"not done after {SECONDS} s"
        else:
            how = "the worker died"
        if answer:
            outcome, message = json.loads(answer)
            return outcome, message
        self.process.kill()
        code = self.process.wait()
        self.log.seek(0)
        self.process = None
        return "failed", f"{how} ({code}): {self.log.read()[-2000:]}"

    def stop(self) -> None:
        """End the process."""
        if self.process:
            self.process.kill()
            self.process.wait()


def tasks(n_files: int) -> list[str]:
    """Kind and number of each file, the slow ones first."""
    total = sum(SHARES.values())
    found = []
    for kind, share in reversed(SHARES.items()):
        found += [f"{kind}:{number}" for number in range(round(n_files * share / total))]
    return found


def main() -> None:
    """Read `--files` files and print the counts of each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--judges", type=Path, help="by default made, in a temporary folder")
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", help="KIND:NUMBER, or KIND for all of it")
    parser.add_argument("--show", action="store_true", help="print every sentence")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.run = arguments.run.resolve()
    if arguments.work:
        return work(arguments)
    from benchmarks.small_judges import small_judges
    from slm_judge.run import Run

    temporary = tempfile.TemporaryDirectory()
    if not arguments.judges:
        arguments.judges = small_judges(Run(arguments.run), Path(temporary.name) / "judges")
    only = arguments.only or ""
    chosen = [only] if ":" in only else [t for t in tasks(arguments.files) if t.startswith(only)]
    workers: Queue[Worker] = Queue()
    for _ in range(arguments.workers):
        workers.put(Worker(arguments))
    counts: Counter[tuple[str, str]] = Counter()

    def one(task: str) -> None:
        worker = workers.get()
        began = time.monotonic()
        outcome, message = worker.read(task)
        took = time.monotonic() - began
        workers.put(worker)
        counts[task.partition(":")[0], outcome] += 1
        if outcome == "failed" or arguments.show or took > SECONDS / 3:
            print(f"{task} {outcome} after {took:.1f} s: {message}\n", flush=True)

    start = time.monotonic()
    with ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(one, chosen))
    while not workers.empty():
        workers.get().stop()
    seconds = time.monotonic() - start
    for kind in SHARES:
        found = {o: counts[kind, o] for o in ("loaded", "refused", "failed")}
        if any(found.values()):
            print(f"{kind:12}", *(f"{count:6} {outcome}" for outcome, count in found.items()))
    failed = sum(count for (_, outcome), count in counts.items() if outcome == "failed")
    print(f"{sum(counts.values())} files in {seconds:.0f} s, "
          f"{sum(counts.values()) / seconds:.1f} a second; failed: {failed}")  # fmt: skip
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
