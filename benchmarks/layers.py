"""Where 4 bits lose a trained judge: some of its layers rounded at a time, the others as they are.

    python -m benchmarks.layers runs/demo
    python -m benchmarks.layers runs/popquorn --grids NF4

The weights of the run's `merged/` are rounded to the nearest value that the engine has
(bitsandbytes' own NF4 with double quantization, ggml's own Q4_0) and computed with in float32, so
that nothing else changes: one kind of layer in all blocks, all kinds in a third of the blocks, and
the embeddings, which are the output layer too where they are tied. Test and validation items: their
labels' equality with the merged model's, alpha's change with a paired 90 % interval, the root mean
square change of a calibrated logit (less the mean of its dimension's).
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bitsandbytes import functional
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from slm_judge.export.answers import Heard, ask

from benchmarks.four_bits import compared
from slm_judge import Judge
from slm_judge.artefact.base import load_tokenizer
from slm_judge.backends.transformers import TransformersBackend
from slm_judge.data.item import Item, load_split
from slm_judge.run import Run


def nf4(weight: torch.Tensor) -> torch.Tensor:
    """As bitsandbytes rounds and reads it, double quantization included."""
    packed, state = functional.quantize_4bit(weight.contiguous(), quant_type="nf4",
                                             compress_statistics=True)  # fmt: skip
    return functional.dequantize_4bit(packed, state)


def q4_0(weight: torch.Tensor) -> torch.Tensor:
    """As ggml does."""
    kind = GGMLQuantizationType.Q4_0
    return torch.from_numpy(dequantize(quantize(weight.numpy(), kind), kind))


GRIDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"NF4": nf4, "Q4_0": q4_0}


def parts(model: Any) -> Iterator[tuple[str, list[torch.nn.Parameter]]]:
    """Names of parts, and their weights."""
    layers = model.get_decoder().layers
    linear = [
        (number, name.split(".")[-1], module.weight)
        for number, layer in enumerate(layers)
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    yield "all linear layers", [weight for _, _, weight in linear]
    for kind in dict.fromkeys(kind for _, kind, _ in linear):
        yield f"`{kind}`", [weight for _, own, weight in linear if own == kind]
    for start in range(3):
        low, high = start * len(layers) // 3, (start + 1) * len(layers) // 3
        inside = [weight for number, _, weight in linear if low <= number < high]
        yield f"blocks {low} to {high - 1}", inside
    yield "embeddings", [model.get_input_embeddings().weight]


@contextmanager
def rounded(
    weights: Sequence[torch.nn.Parameter], grid: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Weights as a grid has them, given back afterwards."""
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.copy_(grid(weight.detach()))
    yield
    with torch.no_grad():
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)


def change(run: Run, reference: Heard, heard: Heard) -> dict[str, float]:
    """Root mean square of what a calibrated logit changed, less the mean of its dimension's."""
    found = {}
    for dimension in run.rubric().dimensions:
        one, two = (
            np.log(np.clip(of.probabilities(dimension.name), 1e-9, 1)) for of in (reference, heard)
        )
        apart = two - one
        apart -= apart.mean(axis=1, keepdims=True)
        found[dimension.name] = float(np.sqrt(np.square(apart).mean()))
    return found


def measure(run: Run, items: list[Item], grids: list[str]) -> Iterator[dict[str, Any]]:
    """A row a part and grid."""
    with Judge.from_pretrained(run.merged, trust=True) as judge:
        assert isinstance(judge.backend, TransformersBackend)
        model, tokenizer = judge.backend.model, load_tokenizer(run.merged)
        whole = sum(w.numel() for w in next(iter(parts(model)))[1])
        reference = ask(judge, items)
        for grid in grids:
            for name, weights in parts(model):
                with rounded(weights, GRIDS[grid]):
                    # Another engine: one keeps the rubric's keys and values, and the labels' rows.
                    contract = judge.backend.contract
                    engine = TransformersBackend(model, tokenizer, contract, run.merged)
                    heard = ask(Judge(engine), items)
                share = sum(weight.numel() for weight in weights) / whole
                yield {"grid": grid, "name": name, "share": share,
                       "dimensions": compared(run, items, name, reference, heard),
                       "logit": change(run, reference, heard)}  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row a part, the grids beside each other."""
    names = list(rows[0]["dimensions"])
    grids = list(dict.fromkeys(row["grid"] for row in rows))
    columns = [f"{grid}, {name}: change" for grid in grids for name in names]
    head = ["rounded", "share", *(f"{column} | = | logit" for column in columns)]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (1 + 3 * len(columns))}"]
    for part in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == part]
        cells = [part, f"{own[0]['share']:.2f}"]
        for row in own:
            for name, found in row["dimensions"].items():
                cells += [f"{found['change']['estimate']:+.3f} [{found['change']['low']:+.3f}, "
                          f"{found['change']['high']:+.3f}]",
                          f"{found['equal']:.3f}", f"{row['logit'][name]:.3f}"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).replace("-0", "−0")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--grids", nargs="+", choices=GRIDS, default=[*GRIDS])
    parser.add_argument("--items", type=int, default=600, help="most of them")
    arguments = parser.parse_args()
    run, rows = Run(arguments.run), list[dict[str, Any]]()
    items = [*load_split(run.data, "test"), *load_split(run.data, "validation")][: arguments.items]
    for row in measure(run, items, arguments.grids):
        rows.append(row)
        print(json.dumps(row), flush=True)
    print(f"\n{run.folder.name}, {len(items)} items\n\n{table(rows)}")


if __name__ == "__main__":
    main()
