"""What four bits cost a trained judge, and what each remedy gives back.

    python -m benchmarks.four_bits runs/demo
    python -m benchmarks.four_bits runs/popquorn --types Q4_0 Q4_K_M Q8_0 --methods nearest fitted
    python -m benchmarks.four_bits runs/demo --json FILE --figure docs/four-bits.png --show

Files of a run that is exported (its `merged/` is what is rounded), asked about its test and
validation items: bytes, alpha with the annotators, the change against the merged model with a
paired 90 % interval, the share of equal labels, rows a second. `nearest` rounds the weights as they
are, `moved` as `export` does (layers fitted, then GPTQ; the values of Q4_0 in 5 bits), `fitted`
the same with the labels' rows fitted. Types whose blocks choose their scales by rules of their own
are rounded as they are, or `weighed` by the inputs' importance. `--show` prints
and draws what a file of `--json` has.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from slm_judge.export.answers import Heard, against_annotators, ask, between, losses
from slm_judge.export.artefacts import ADAPTER
from slm_judge.export.bnb import save_bnb
from slm_judge.export.gguf import (
    MOVED,
    VALUES,
    VALUES_GRID,
    VALUES_TYPE,
    add_keys,
    convert,
    quantize,
)
from slm_judge.export.gptq import NF4, Grid, Others, Unrounded, importance, save_moved
from slm_judge.model_card.figures import COLOURS, save, style

from slm_judge import Judge
from slm_judge.agreement.parts import parts
from slm_judge.artefact.judge_files import Contract
from slm_judge.data.item import Item, load_split, votes_of
from slm_judge.files import write_json
from slm_judge.run import Run

METHODS = ("nearest", "moved", "fitted", "weighed")
TYPES = ("Q4_0", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "BF16")
KEPT = ("self_attn.v_proj",)
Results = dict[str, Any]


class Files:
    """The files of a run, one after the other."""

    def __init__(self, run: Run, work: Path) -> None:
        """Keep what all have in common."""
        self._run, self._work = run, work
        self._unrounded, self._console = Unrounded(), Console()

    def nf4(self, methods: Sequence[str]) -> Iterator[tuple[str, Path, float]]:
        """Name, folder and seconds of each way to bitsandbytes' 4 bits."""
        for kept in ((), KEPT):
            for method in [way for way in METHODS[:3] if way in methods]:
                started = time.monotonic()
                source, output = self._source(NF4, method, dict.fromkeys(kept))
                folder = self._work / f"nf4-{method}-{len(kept)}"
                folder.mkdir()
                save_bnb(source, folder, "bfloat16", [output, *kept])
                name = f"NF4, {method}" + (", v_proj in 16 bits" if kept else "")
                yield name, folder, time.monotonic() - started

    def gguf(self, types: Sequence[str], methods: Sequence[str]) -> Iterator[Any]:
        """The same of llama.cpp's types."""
        for kind in types:
            ways = METHODS[:3] if kind in MOVED else ("nearest", "weighed")
            for method in [way for way in ways if way in methods]:
                started = time.monotonic()
                source, _ = self._source(MOVED.get(kind), method, {VALUES: VALUES_GRID})
                judge, file = self._work / "judge.gguf", self._work / f"{kind}-{method}.gguf"
                wide = convert(source, self._work / "wide.gguf", "bf16", "judge")
                add_keys(wide, judge, Contract.load(source))
                counts = importance(self._run) if method == "weighed" else None
                values = VALUES_TYPE if method in ("moved", "fitted") else None
                quantize(judge, file, kind, counts, values)
                for spare in (wide, judge):
                    spare.unlink()
                yield f"{kind}, {method}", file, time.monotonic() - started

    def _source(self, grid: Grid | None, method: str, others: Others) -> tuple[Path, str]:
        """What is rounded, and the name of its output layer."""
        if grid is None or method in ("nearest", "weighed"):
            return self._run.merged, "lm_head"
        folder = Path(tempfile.mkdtemp(dir=self._work))
        fit = method == "fitted"
        return folder, save_moved(
            self._run, folder, grid, self._console, others, self._unrounded, fit
        )


def size(path: Path) -> int:
    """Bytes of the weights."""
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def measure(run: Run, items: list[Item], arguments: argparse.Namespace) -> Iterator[Results]:
    """A row a file, the merged model first."""
    reference = None
    with tempfile.TemporaryDirectory(dir=run.folder) as work:
        files = Files(run, Path(work))
        plan = [iter([("merged, 16 bits", run.merged, 0.0)])]
        if "NF4" in arguments.types:
            plan.append(files.nf4(arguments.methods))
        plan.append(files.gguf([t for t in arguments.types if t != "NF4"], arguments.methods))
        for name, path, seconds in (one for part in plan for one in part):
            with Judge.from_pretrained(path, trust=True) as judge:
                ask(judge, items[:8])  # warm
                started = time.monotonic()
                heard = ask(judge, items)
                rate = len(items) / (time.monotonic() - started)
            reference = reference or heard
            row: Results = {"name": name, "bytes": size(path), "seconds": round(seconds, 1),
                            "rows_per_second": round(rate, 2),
                            "dimensions": compared(run, items, name, reference, heard)}  # fmt: skip
            yield row


def compared(run: Run, items: list[Item], name: str, reference: Heard, heard: Heard) -> Results:
    """Per dimension: alpha with the annotators, its change, labels equal to the reference's."""
    found = {}
    for dimension in run.rubric().dimensions:
        votes = votes_of(items, dimension.name)
        both = {ADAPTER: reference.labels(dimension.name), name: heard.labels(dimension.name)}
        found[dimension.name] = {
            "alpha": against_annotators(both[name], votes, dimension)["alpha"],
            "equal": between(parts(dimension)[0], reference, heard)["agreement"],
            "change": losses(both, votes, dimension, 0.01)[name],
        }
    return found


def table(rows: Sequence[Results]) -> str:
    """Markdown."""
    names = list(rows[0]["dimensions"])
    head = ["file", "MB", *(f"{name} | change | =" for name in names), "rows/s", "s to make"]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (3 + 3 * len(names))}"]
    for row in rows:
        cells = [row["name"], f"{row['bytes'] / 1e6:.0f}"]
        for found in row["dimensions"].values():
            change = found["change"]
            interval = f"[{change['low']:+.3f}, {change['high']:+.3f}]"
            cells += [f"{found['alpha']:.3f}", f"{change['estimate']:+.3f} {interval}",
                      f"{found['equal']:.3f}"]  # fmt: skip
        lines.append(
            f"| {' | '.join([*cells, str(row['rows_per_second']), str(row['seconds'])])} |"
        )
    return "\n".join(lines).replace("-0", "−0")


def figure(rows: Sequence[Results], path: Path) -> None:
    """Equal labels (mean of the dimensions) over bytes, and over rows a second, as PNG.

    NF4+ has `v_proj` in 16 bits.
    """
    reference, *files = rows
    equal = {row["name"]: fmean(d["equal"] for d in row["dimensions"].values()) for row in rows}
    with style():
        drawn = Figure(figsize=(9.6, 4.4))
        panels = drawn.subplots(1, 2, sharey=True)
        scale = {"bytes": 1e6, "rows_per_second": reference["rows_per_second"]}
        for axes, key in zip(panels, scale, strict=True):
            for below, (method, colour) in enumerate(zip(METHODS, COLOURS, strict=False)):
                points = [row for row in files if row["name"].split(", ")[1] == method]
                x, y = ([row[key] / scale[key] for row in points],
                        [equal[row["name"]] for row in points])  # fmt: skip
                axes.plot(x, y, "o", color=colour, label=method)
                for row, *at in zip(points, x, y, strict=True):
                    kind = row["name"].replace(f", {method}", "")
                    kind = kind.replace(", v_proj in 16 bits", "+")
                    left, offset = below % 2, (-4, -9) if below % 2 else (4, 3)
                    axes.annotate(kind, at, offset, textcoords="offset points", fontsize=7,
                                  color=colour, ha="right" if left else "left")  # fmt: skip
            axes.margins(x=0.12)
        panels[0].set(xlabel="MB", ylabel="labels equal to the merged model's")
        panels[1].set(xlabel="rows a second, merged model in float32 = 1")
        handles, labels = panels[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        path.write_bytes(save(drawn, "png"))
    print(path)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--types", nargs="+", default=["NF4", *TYPES])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--items", type=int, default=600, help="most of them")
    parser.add_argument("--json", type=Path, help="also write the figures here, after each file")
    parser.add_argument("--figure", type=Path, help="draw them here")
    parser.add_argument("--show", action="store_true", help="what --json has, without computing")
    arguments = parser.parse_args()
    run, rows = Run(arguments.run), list[Results]()
    if arguments.show:
        kept = json.loads(arguments.json.read_text(encoding="utf-8"))
        tell(kept["run"], kept["items"], kept["rows"], arguments.figure)
        return
    items = [*load_split(run.data, "test"), *load_split(run.data, "validation")][: arguments.items]
    for row in measure(run, items, arguments):
        rows.append(row)
        print(json.dumps(row), flush=True)
        if arguments.json:
            write_json(arguments.json, {"run": run.folder.name, "items": len(items), "rows": rows})
    tell(run.folder.name, len(items), rows, arguments.figure)


def tell(name: str, items: int, rows: Sequence[Results], path: Path | None) -> None:
    """Print, and draw."""
    print(f"\n{name}, {items} items\n\n{table(rows)}")
    if path:
        figure(rows, path)


if __name__ == "__main__":
    main()
