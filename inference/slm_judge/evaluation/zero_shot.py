"""A base that was not trained, or a judge, asked the rubric through the judge's own prompt."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
from rich.console import Console

from slm_judge.annotate.rows import truncate
from slm_judge.artefact.base import OFFLINE, load_config, load_tokenizer, locate_base
from slm_judge.artefact.judge_files import DECISION, Contract
from slm_judge.artefact.locate import locate
from slm_judge.backends import memory_errors
from slm_judge.backends.transformers import TransformersBackend, load_weights
from slm_judge.data.item import Item
from slm_judge.errors import ModelError
from slm_judge.judge.answer import collected, leanings
from slm_judge.judge.judge import Judge, LoadOptions
from slm_judge.progress import progress_bar
from slm_judge.rubric import Rubric


def zero_shot(
    model: str, rubric: Rubric, items: Sequence[Item], console: Console | None = None
) -> dict[str, list[int]]:
    """What a model says about N items without training for it: dimension -> option indices.

    An item that is too long for the model is cut at the end of its longest field.

    Args:
        model: a base (Hub repository, folder, "smollm2" or "tiny") or a judge (Hub repository,
            folder or `.gguf` file), whose rubric must have these dimensions and options.
        rubric: what is asked.
        items: N items.
        console: where progress is written.

    Raises:
        ModelError: there is no such model, or it is a judge of something else.
        DataError: not even an empty item fits.
    """
    with load(model, rubric) as judge, progress_bar("rows", console=console) as bar:
        backend, theirs = judge.backend, judge.rubric.dimensions
        prompts = judge.encode([item.state for item in items])
        for i, prompt in enumerate(prompts):
            if prompt.n_tokens > backend.max_tokens:
                prompts[i] = truncate(backend, judge.rubric, items[i].state)
        advance = partial(bar.advance, bar.add_task(Path(model).name, total=len(items)))
        logits = collected(judge.rubric, judge.decide(prompts), len(items), advance)
    found: dict[str, list[int]] = {}
    for dimension, rows in zip(theirs, logits, strict=True):
        best = leanings(dimension, rows, backend.contract.calibration(dimension)).argmax(axis=-1)
        keys = map(dimension.key, range(len(dimension.options)))  # in another order, perhaps
        ours = np.array([rubric.dimension(dimension.name).index(key) for key in keys], dtype=int)
        found[dimension.name] = ours[best].tolist()
    return found


def load(
    model: str, rubric: Rubric, revision: str | None = None, **options: Unpack[LoadOptions]
) -> Judge:
    """A judge of `rubric`: that of a judge's files, or an untrained base.

    Args:
        model: see `zero_shot`.
        rubric: what is asked.
        revision: branch, tag or commit of a repository.
        options: of a judge, as in `Judge.from_pretrained`.

    Raises:
        ModelError: see `zero_shot`.
    """
    quantization = options.get("quantization")
    path = locate_base(model) if model in OFFLINE else locate(model, revision, quantization)
    if path.is_file() or (path / DECISION).is_file():
        judge = Judge.from_pretrained(path, **options)
        if _asked(judge.rubric) == _asked(rubric) and {*judge.rubric.fields} <= {*rubric.fields}:
            return judge
        judge.close()
        raise ModelError(
            f"{model} is a judge of another rubric, {judge.rubric.name}: the names of dimensions, "
            f"options and fields must be those of {rubric.name}. Name a judge of it, or a base."
        )
    load_config(path)
    tokenizer = load_tokenizer(path)
    contract = Contract.build(rubric, tokenizer)
    with memory_errors("Take a smaller base."):
        return Judge(TransformersBackend(load_weights(path), tokenizer, contract, path))


def _asked(rubric: Rubric) -> dict[str, set[str]]:
    """The names that give an answer its meaning."""
    return {d.name: {d.key(i) for i in range(len(d.options))} for d in rubric.dimensions}
